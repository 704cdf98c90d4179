-- Which of the events that are waited for are there, and since when.
select user_id, source, event_id, received_at
from inbox
join unnest($1::uuid[], $2::text[], $3::text[]) as wanted (user_id, source, event_id)
using (user_id, source, event_id)
