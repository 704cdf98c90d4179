-- The event logs: append-only, one time partition a day, kept by pg_partman. received_at is set once, by the
-- front door, so a redelivery belongs to the same time partition; unique keys must contain it.
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
) partition by range (received_at);

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
) partition by range (received_at);

create schema if not exists partman;
create extension if not exists pg_partman schema partman;

-- pg_partman 5 renamed the arguments and dropped the type 'native' that 4.x requires.
do $$
declare
    major  integer := (select split_part(extversion, '.', 1)::integer from pg_extension where extname = 'pg_partman');
    parent text;
begin
    foreach parent in array array['public.order_events', 'public.dispute_events'] loop
        if major >= 5 then
            perform partman.create_parent(
                p_parent_table := parent, p_control := 'received_at', p_interval := '1 day',
                p_premake := 4, p_start_partition := (current_date - 8)::text);
        else
            perform partman.create_parent(
                p_parent_table := parent, p_control := 'received_at', p_type := 'native', p_interval := 'daily',
                p_premake := 4, p_start_partition := (current_date - 8)::text);
        end if;
    end loop;
end
$$;
