select d.user_id, d.order_id, d.status, d.version, d.reason, d.amount_minor, d.currency, d.opened_at,
       d.updated_at, d.evidence_due_at
from unnest($1::uuid[], $2::text[]) as k (user_id, order_id)
join disputes d using (user_id, order_id)
where d.user_id = any($1)
