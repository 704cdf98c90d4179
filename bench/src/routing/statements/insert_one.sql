-- $1 user, $2 event, $3 time. The ordinal is the event's, so that two of a user within one microsecond have two keys.
insert into outbox (user_id, source, event_id, order_id, kind, version, status, state, received_at, ordinal)
values ($1, 'order', $2, 'first', 'created', 1, 'created', '{}', $3, hashtext($2))
