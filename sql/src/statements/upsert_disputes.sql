-- See upsert_orders.sql.
insert into disputes as d
    (user_id, order_id, status, version, base_version, reason, amount_minor, currency, opened_at, updated_at,
     evidence_due_at)
select * from unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::text[], $7::bigint[],
                     $8::text[], $9::timestamptz[], $10::timestamptz[], $11::timestamptz[])
on conflict (user_id, order_id) do update
set status = excluded.status, version = excluded.version, base_version = excluded.base_version,
    reason = excluded.reason, amount_minor = excluded.amount_minor, currency = excluded.currency,
    updated_at = excluded.updated_at, evidence_due_at = excluded.evidence_due_at
where d.version = excluded.base_version
returning d.user_id
