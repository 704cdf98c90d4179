-- Fewer rows than sent means that somebody else released one, and the batch is folded anew.
delete from parked p
using unnest($1::uuid[], $2::text[], $3::bigint[]) as k (user_id, source, seq)
where p.user_id = k.user_id and p.source = k.source and p.seq = k.seq
  and p.user_id = any($1)
