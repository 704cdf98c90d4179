-- When the oldest row of a window of pages was received; null where it holds none.
select min(received_at) from inbox where ctid >= $1::text::tid and ctid < $2::text::tid
