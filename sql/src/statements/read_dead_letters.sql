-- All of them, or the one with this id.
select id, source, user_id, class, reason, attempts, received_at, dead_at, payload, headers, replay_began_at,
       replayed_to
from dead_letters
where $1::uuid is null or id = $1
order by dead_at, id
