-- The event logs: append-only. received_at stands in the key in every layout, because a time-partitioned
-- table needs it there.
create table order_events (
    user_id     uuid        not null,
    order_id    text        not null,
    event_id    text        not null,
    status      text        not null,
    outcome     text        not null check (outcome in ('applied', 'stale')),
    version     bigint      not null, -- of the order after this event
    occurred_at timestamptz not null,
    received_at timestamptz not null,
    payload     json        not null, -- the bytes as they came; jsonb would drop and reorder, and costs twice
    primary key (user_id, order_id, event_id, received_at)
);

create table dispute_events (
    user_id     uuid        not null,
    order_id    text        not null,
    event_id    text        not null,
    action      text        not null,
    outcome     text        not null check (outcome in ('applied', 'stale')),
    version     bigint      not null,
    occurred_at timestamptz not null,
    received_at timestamptz not null,
    payload     json        not null, -- the bytes as they came; jsonb would drop and reorder, and costs twice
    primary key (user_id, order_id, event_id, received_at)
);
