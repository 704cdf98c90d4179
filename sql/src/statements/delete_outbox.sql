-- `user_id = any` lets Citus prune.
delete from outbox as published
using unnest($1::bigint[], $2::integer[], $3::uuid[]) as k (known_seq, known_ordinal, known_user)
where seq = known_seq and ordinal = known_ordinal and user_id = known_user
  and user_id = any($3) and /*owned*/ true
