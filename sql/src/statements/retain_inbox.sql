-- What is too old in a window of pages. By ctid: each page is read about once in the life of its rows, and inserts pay
-- for no index on received_at. No subquery, because Citus distributes none with a limit; it takes the window in each of
-- its shards. See decision 10.
delete from inbox where ctid >= $1::text::tid and ctid < $2::text::tid and received_at < $3
