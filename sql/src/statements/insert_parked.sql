-- A place that somebody else took meanwhile comes back as a row too few, and the batch is folded anew. `returning` is
-- for Citus, see upsert_orders.sql.
insert into parked
    (user_id, source, seq, event_id, order_id, opens, bytes, topic, kafka_partition, kafka_offset, record_key,
     headers, received_at, parked_at, deadline, payload)
select * from unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::boolean[], $7::integer[],
                     $8::text[], $9::integer[], $10::bigint[], $11::bytea[], $12::jsonb[], $13::timestamptz[],
                     $14::timestamptz[], $15::timestamptz[], $16::json[])
on conflict do nothing
returning user_id
