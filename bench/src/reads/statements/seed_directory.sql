insert into order_directory (user_id, order_id)
select user_id, 'order-' || number || '-' || n
from unnest($1::uuid[], $2::bigint[]) as users(user_id, number), generate_series(0::bigint, $3::bigint - 1) as n
