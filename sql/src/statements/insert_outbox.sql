insert into outbox (user_id, source, event_id, order_id, version, status, received_at)
select * from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[],
                     $7::timestamptz[])
