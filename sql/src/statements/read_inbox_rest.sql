-- Whether a row lies at or behind a page.
select 1 from inbox where ctid >= $1::text::tid limit 1
