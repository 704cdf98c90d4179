-- A webhook that dies again is the same letter with a new reason; that it was replayed before counts no more.
insert into dead_letters as d
    (id, source, user_id, class, reason, attempts, received_at, dead_at, payload, headers)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
on conflict (id) do update
set class = excluded.class, reason = excluded.reason, attempts = d.attempts + excluded.attempts,
    dead_at = excluded.dead_at, headers = excluded.headers, replay_began_at = null, replayed_to = null
