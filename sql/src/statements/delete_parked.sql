-- Fewer rows than sent means that somebody else released one, and the batch is folded anew. The event is compared too: once
-- its queue was empty, another one may stand at its place.
delete from parked p
using unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[]) as k (user_id, source, seq, event_id)
where p.user_id = k.user_id and p.source = k.source and p.seq = k.seq and p.event_id = k.event_id
  and p.user_id = any($1)
