-- $1 user, $2 new version, $3 time
update orders set version = $2, base_version = version, updated_at = $3
where user_id = $1 and order_id = 'first'
