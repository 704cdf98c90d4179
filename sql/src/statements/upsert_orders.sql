-- Writes a row only over the version from which it was computed: fewer rows than sent means that somebody
-- else wrote in between, and the batch is folded anew. `returning` is for Citus: without it, its INSERT ... SELECT
-- counts the rows that were sent instead of those that were written, and the lock would be none.
insert into orders as o
    (user_id, order_id, status, version, base_version, amount_minor, currency, created_at, updated_at)
select * from unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[],
                     $8::timestamptz[], $9::timestamptz[])
on conflict (user_id, order_id) do update
set status = excluded.status, version = excluded.version, base_version = excluded.base_version,
    amount_minor = excluded.amount_minor, currency = excluded.currency, updated_at = excluded.updated_at
where o.version = excluded.base_version
returning o.user_id
