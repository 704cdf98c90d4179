-- Who this shard is. One row, compared with the map by every connection; the CHECKs that refuse foreign rows are
-- added with it, because they name the shard's slots.
create table shard_identity (
    only_row boolean primary key default true check (only_row),
    shard_id bigint not null,
    epoch    bigint not null,
    hash_id  text   not null,
    slots    text   not null -- inclusive ranges: 0-1023,2048-3071
);
