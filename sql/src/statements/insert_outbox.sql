-- seq comes from the column's default: see the table.
insert into outbox (user_id, source, event_id, order_id, kind, version, status, state, received_at, ordinal)
select * from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[],
                     $8::json[], $9::timestamptz[]) with ordinality
