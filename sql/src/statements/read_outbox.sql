select seq, ordinal, user_id, source, event_id, order_id, kind, version, status, state::text, received_at
from outbox where /*owned*/ true
order by seq, ordinal, user_id limit $1
