-- $1 user
select version from orders where user_id = $1 and order_id = 'first' for update
