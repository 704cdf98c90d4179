-- Users with a queue that can move: its head is past its deadline or no longer too early, which is what two
-- transactions leave behind of which one parked while the other created what it waits for; or an event in it is the
-- first to open what one before it waits for.
select distinct p.user_id
from parked p
left join orders o on o.user_id = p.user_id and o.order_id = p.order_id
left join disputes d on d.user_id = p.user_id and d.order_id = p.order_id
where (p.deadline <= $1
       or p.source = 'orders' and (p.opens or o.user_id is not null)
       or p.source = 'chargebacks' and (d.user_id is not null or p.opens and o.user_id is not null))
  and not exists (
      select from parked b where b.user_id = p.user_id and b.source = p.source and b.seq < p.seq)
   or p.opens
  and (p.source = 'orders' and o.user_id is null
       or p.source = 'chargebacks' and o.user_id is not null and d.user_id is null)
  and exists (
      select from parked b
      where b.user_id = p.user_id and b.source = p.source and b.seq < p.seq and b.order_id = p.order_id)
  and not exists (
      select from parked b
      where b.user_id = p.user_id and b.source = p.source and b.seq < p.seq and b.order_id = p.order_id and b.opens)
limit $2
