-- Who this shard is. One row, compared with the map by every connection; the CHECKs that refuse foreign rows are
-- added with it, because they name the shard's slots.
create table shard_identity (
    only_row boolean primary key default true check (only_row),
    shard_id bigint not null,
    epoch    bigint not null,
    hash_id  text   not null,
    slots    text   not null -- inclusive ranges: 0-1023,2048-3071
);

-- Who owns which slot over all shards, one row a version; see catalog.rs.
create table shard_catalog (
    epoch      bigint primary key,
    document   jsonb       not null,
    written_at timestamptz not null default now()
);

-- What a reshard has planned and how far it is; see reshard/journal.rs.
create table reshard_journal (
    id         uuid primary key,
    plan       jsonb       not null,
    done       integer     not null, -- steps
    ended_at   timestamptz,
    written_at timestamptz not null default now()
);

-- A row that is replicated behind all others: where it has arrived, everything before it has.
create table reshard_marker (
    id uuid primary key
);

-- What the fences said when this shard's slots changed last, and what came along with slots; see applied.rs. Of the same
-- topic and partition each slot is in one row.
create table shard_past (
    topic           text    not null,
    kafka_partition integer not null,
    next_offset     bigint  not null, -- the first offset that had not been applied
    slots           text    not null, -- inclusive ranges
    primary key (topic, kafka_partition, next_offset)
);
