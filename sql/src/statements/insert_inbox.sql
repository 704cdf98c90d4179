-- What comes back is new; what does not was taken before.
insert into inbox (user_id, source, event_id, payload_hash, received_at)
select * from unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::timestamptz[])
on conflict do nothing
returning user_id, source, event_id
