-- No `user_id = any($3)` as elsewhere: a relay's batch is of all shards, so there is nothing for Citus to prune, and a
-- generic plan searches such an array row by row.
delete from outbox
using unnest($1::bigint[], $2::integer[], $3::uuid[]) as k (known_seq, known_ordinal, known_user)
where seq = known_seq and ordinal = known_ordinal and user_id = known_user and /*owned*/ true
