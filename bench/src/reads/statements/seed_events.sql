-- $1 users, $2 their numbers, $3 orders a user, $4 events an order, $5 time of the first event, $6 us between events,
-- $7 number of all users. The same rows in every layout.
with events as (
    select user_id, number, event, $5::timestamptz + (event * $7 + number) * $6 * interval '1 microsecond' as at
    from unnest($1::uuid[], $2::bigint[]) as users(user_id, number),
         generate_series(0::bigint, $3::bigint * $4 - 1) as event
)
insert into order_events (user_id, order_id, event_id, status, outcome, version, occurred_at, received_at, payload)
select user_id, 'order-' || number || '-' || event / $4, 'event-' || number || '-' || event, 'updated', 'applied',
       event % $4 + 1, at, at, json_build_object('filler', repeat('x', 200))
from events
