-- $1 users, $2 events, $3 time
insert into outbox (user_id, source, event_id, order_id, kind, version, status, state, received_at, ordinal)
select user_id, 'order', event_id, 'first', 'created', 1, 'created', '{}', $3, hashtext(event_id)
from unnest($1::uuid[], $2::text[]) as rows(user_id, event_id)
