-- $1 user, $2 event, $3 time
insert into outbox (user_id, source, event_id, order_id, version, status, received_at)
values ($1, 'order', $2, 'first', 1, 'created', $3)
