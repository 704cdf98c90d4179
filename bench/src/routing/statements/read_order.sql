-- $1 user
select user_id, status, version, amount_minor, currency, updated_at
from orders
where user_id = $1 and order_id = 'first'
