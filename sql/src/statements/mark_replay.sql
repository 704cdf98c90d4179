-- Only the death that was replayed: the replay itself may have ended in a new one.
update dead_letters set replay_began_at = $3, replayed_to = $4 where id = $1 and dead_at = $2
