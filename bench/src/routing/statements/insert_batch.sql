-- $1 users, $2 events, $3 time
insert into outbox (user_id, source, event_id, order_id, version, status, received_at)
select user_id, 'order', event_id, 'first', 1, 'created', $3
from unnest($1::uuid[], $2::text[]) as rows(user_id, event_id)
