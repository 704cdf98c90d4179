-- The tables that every layout has, with the same columns and keys. Each key contains user_id, so that the
-- same statements run on one server, on manual shards and on Citus.

-- What was taken already: the only deduplication. Never time-partitioned, because a unique key on a
-- time-partitioned table contains the time and so deduplicates nothing.
create table inbox (
    user_id      uuid        not null,
    source       text        not null,
    event_id     text        not null,
    payload_hash uuid        not null, -- xxh3-128: the same id with another payload is not a duplicate
    received_at  timestamptz not null,
    primary key (user_id, source, event_id)
);

-- How far a partition of a topic has been applied to this shard; moved in the transaction of the batch.
-- user_id is the shard's anchor: a fixed uuid that hashes into the shard, so that the row lives there.
create table kafka_fence (
    user_id         uuid    not null,
    topic           text    not null,
    kafka_partition integer not null,
    epoch           bigint  not null, -- of the shard's slots: a fence says nothing about records routed at another one
    first_offset    bigint  not null, -- of the newest batch
    next_offset     bigint  not null, -- the first offset that has not been applied
    primary key (user_id, topic, kafka_partition)
) with (fillfactor = 50); -- one row, updated with each batch: room for HOT updates

-- What became of the records of a partition, counted in the transaction of their batch; see outcome.rs. A record is in
-- exactly one of the first seven columns, what is no event too: over all shards their sum is the number of records.
-- parked = released + expired + its rows in the table parked.
-- user_id is the shard's anchor, as in kafka_fence.
create table kafka_outcomes (
    user_id                          uuid    not null,
    topic                            text    not null,
    kafka_partition                  integer not null,
    applied                          bigint  not null,
    duplicate                        bigint  not null,
    duplicate_with_different_payload bigint  not null,
    stale                            bigint  not null,
    illegal                          bigint  not null,
    parked                           bigint  not null,
    dead_lettered                    bigint  not null, -- no event, refused by the database, or its queue was full
    released                         bigint  not null, -- were parked, and are rows now
    expired                          bigint  not null, -- were parked, and are dead letters now
    primary key (user_id, topic, kafka_partition)
) with (fillfactor = 50); -- updated with each batch, as kafka_fence

-- Events that came before the one that they wait for, and those that came behind them: the queue of a user and source,
-- in the order of seq. It is not Kafka's offset, because offsets of two partitions say nothing about each other, and a
-- user's partition changes when partitions are added.
create table parked (
    user_id         uuid        not null,
    source          text        not null,
    seq             bigint      not null,
    event_id        text        not null,
    order_id        text        not null,
    opens           boolean     not null, -- it opens its order or dispute: others may wait for it
    bytes           integer     not null, -- of payload, key and headers, for whoever reads them
    topic           text,                 -- these three are null for what did not come from Kafka
    kafka_partition integer,
    kafka_offset    bigint,
    record_key      bytea,
    headers         jsonb       not null, -- [[key, value], ...]; a value that is no text is {"base64": ...}
    received_at     timestamptz not null,
    parked_at       timestamptz not null,
    deadline        timestamptz not null, -- if it is still too early then, it is a dead letter
    payload         json        not null, -- the bytes as they came
    primary key (user_id, source, seq),
    check ((topic is null) = (kafka_partition is null) and (topic is null) = (kafka_offset is null))
);

create table orders (
    user_id      uuid        not null,
    order_id     text        not null,
    status       text        not null check (status in ('created', 'updated', 'success', 'failed')),
    version      bigint      not null, -- how many events were applied
    base_version bigint      not null, -- the version from which this one was computed: the optimistic lock
    amount_minor bigint      check (amount_minor >= 0),
    currency     text,
    created_at   timestamptz not null,
    updated_at   timestamptz not null,
    primary key (user_id, order_id),
    check ((amount_minor is null) = (currency is null))
) with (fillfactor = 80);

create table disputes (
    user_id         uuid        not null,
    order_id        text        not null,
    status          text        not null check (status in
                        ('open', 'under_review', 'submitted', 'won', 'lost', 'closed', 'canceled')),
    version         bigint      not null,
    base_version    bigint      not null,
    reason          text        not null,
    amount_minor    bigint      not null check (amount_minor >= 0),
    currency        text        not null,
    opened_at       timestamptz not null,
    updated_at      timestamptz not null,
    evidence_due_at timestamptz,
    primary key (user_id, order_id)
) with (fillfactor = 80);

-- What the relay has still to publish, one row an applied event. (seq, ordinal) is the order in which a user's rows
-- leave: seq is drawn when the row is written, which is after its transaction has read the states, so what depends on
-- a committed event always comes behind it. No cache: a session's stock of numbers would be old.
create sequence outbox_seq;
create table outbox (
    seq         bigint      not null default nextval('outbox_seq'),
    ordinal     integer     not null, -- of the row in its statement
    user_id     uuid        not null,
    source      text        not null,
    event_id    text        not null,
    order_id    text        not null,
    kind        text        not null, -- what the event reported
    version     bigint      not null,
    status      text        not null,
    state       json        not null, -- of the order or dispute after this event
    received_at timestamptz not null,
    primary key (seq, ordinal, user_id)
) with (
    -- A queue: whatever is in it goes soon. Vacuumed by rows, not by a share of a table that is empty or huge.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_vacuum_cost_delay = 0
);
alter sequence outbox_seq owned by outbox.seq; -- goes with the table

-- order -> user: finds an order without its user, by one index probe a shard.
create table order_directory (
    order_id text not null,
    user_id  uuid not null,
    primary key (order_id, user_id)
);

-- What direct mode could not apply; in Kafka mode the dead-letter topics have it. Not a table of a slot: a letter may
-- name no user, and stays in the database in which it was written.
create table dead_letters (
    id              uuid        primary key, -- of source and payload: the same webhook again is the same letter
    source          text        not null,
    user_id         uuid,
    class           text        not null,
    reason          text        not null,
    attempts        integer     not null, -- over all its deliveries
    received_at     timestamptz not null, -- of the first delivery
    dead_at         timestamptz not null, -- of the latest
    payload         bytea       not null, -- the bytes as they came, whatever they are
    headers         json        not null, -- [[name, value], ...]
    replay_began_at timestamptz,
    replayed_to     text
);
