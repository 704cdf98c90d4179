-- $1 users, $2 their numbers, $3 orders a user, $4 events an order, $5 time
insert into orders (user_id, order_id, status, version, base_version, amount_minor, currency, created_at, updated_at)
select user_id, 'order-' || number || '-' || n, 'updated', $4::bigint, $4::bigint - 1, 1000 + (number * 31 + n) % 9000, 'EUR', $5, $5
from unnest($1::uuid[], $2::bigint[]) as users(user_id, number), generate_series(0::bigint, $3::bigint - 1) as n
