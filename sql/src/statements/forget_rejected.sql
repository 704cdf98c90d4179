-- An event that became no row is not known either: it may come again, and then it is judged anew. In the
-- transaction that inserted it, so nobody ever saw it.
delete from inbox i
using unnest($1::uuid[], $2::text[], $3::text[]) as k (user_id, source, event_id)
where i.user_id = k.user_id and i.source = k.source and i.event_id = k.event_id
  and i.user_id = any($1)
