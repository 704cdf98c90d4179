insert into dispute_events
    (user_id, order_id, event_id, action, outcome, version, occurred_at, received_at, payload)
select * from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[],
                     $7::timestamptz[], $8::timestamptz[], $9::json[])
