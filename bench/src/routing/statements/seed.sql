-- One order a user, for reads and for read-modify-write.
insert into orders (user_id, order_id, status, version, base_version, amount_minor, currency, created_at, updated_at)
select user_id, 'first', 'created', 1, 0, 1000, 'EUR', $2, $2
from unnest($1::uuid[]) as users(user_id)
