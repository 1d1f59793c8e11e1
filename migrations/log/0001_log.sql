-- The log: one order, no gaps. The schema `log` itself is made by the migrator.

-- One row: where the log stands. A writer holds it from its decision to its commit, so positions become visible
-- in order and a rollback leaves no hole.
CREATE TABLE log.head (
    one               boolean PRIMARY KEY DEFAULT true CHECK (one),
    position          bigint      NOT NULL DEFAULT 0 CHECK (position >= 0),
    epoch             int         NOT NULL DEFAULT 1 CHECK (epoch >= 1),
    -- The clock of the last append; recorded_at never goes back behind it.
    recorded_at       timestamptz NOT NULL DEFAULT '-infinity',
    -- Which server, and which of its timelines, wrote last. Another one means a restore or a promotion: a new epoch.
    system_identifier bigint,
    timeline          int,
    -- Counts the settlings of unknown outcomes, so that each is a commit of its own.
    settled           bigint      NOT NULL DEFAULT 0
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
INSERT INTO log.head DEFAULT VALUES;

-- Which positions belong to which history.
CREATE TABLE log.epochs (
    epoch             int PRIMARY KEY,
    -- The first position of the epoch; all before belong to the ones before.
    from_position     bigint      NOT NULL,
    system_identifier bigint,
    timeline          int,
    started_at        timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO log.epochs (epoch, from_position) VALUES (1, 1);

CREATE TABLE log.events (
    position       bigint      NOT NULL,
    stream_id      uuid        NOT NULL,
    category       text        NOT NULL,
    version        bigint      NOT NULL CHECK (version >= 1),
    event_id       uuid        NOT NULL,
    event_type     text        NOT NULL,
    schema_version smallint    NOT NULL,
    -- As text: it is read and sent far more often than looked into, and stays as it was written, byte for byte.
    payload        json        NOT NULL,
    correlation_id uuid        NOT NULL,
    causation_id   uuid,
    actor          text        NOT NULL,
    traceparent    text,
    recorded_at    timestamptz NOT NULL,
    partition_key  uuid        NOT NULL,
    PRIMARY KEY (position)
) PARTITION BY RANGE (position);

-- The partitions there are. Each is made apart, with its unique index on (stream_id, version), and attached ahead
-- of need, so that no append waits for one.
CREATE TABLE log.partitions (
    from_position bigint PRIMARY KEY,
    -- The first position behind it.
    to_position   bigint NOT NULL CHECK (to_position > from_position)
);

-- An event is never changed and never removed.
CREATE FUNCTION log.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'events are never changed or removed' USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER events_are_facts BEFORE UPDATE OR DELETE OR TRUNCATE ON log.events
    FOR EACH STATEMENT EXECUTE FUNCTION log.refuse_change();

-- One row for each partition in which a stream has events, written with the first of them there: a read of a stream
-- touches those partitions alone. Never updated, so a hot stream costs nothing here.
CREATE TABLE log.streams (
    stream_id    uuid   NOT NULL,
    -- The partition's first position.
    partition    bigint NOT NULL,
    -- The version of the stream's first event in it.
    from_version bigint NOT NULL CHECK (from_version >= 1),
    PRIMARY KEY (stream_id, partition)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.5);

-- The answers of commands that came with an Idempotency-Key, written with their events.
CREATE TABLE log.answers (
    -- SHA-256 of actor, route and key, its first 128 bits.
    key         uuid        PRIMARY KEY,
    -- SHA-256 of the request, its first 128 bits.
    fingerprint uuid        NOT NULL,
    status      smallint    NOT NULL,
    version     bigint      NOT NULL,
    position    bigint      NOT NULL,
    epoch       int         NOT NULL,
    location    text,
    body        bytea       NOT NULL,
    created_at  timestamptz NOT NULL
);
-- Finds those that have expired. Times only grow, and all answers of a commit share one: a cheap index.
CREATE INDEX answers_created ON log.answers (created_at);

-- Folded states; any may be missing or old.
CREATE TABLE log.snapshots (
    stream_id    uuid        PRIMARY KEY,
    version      bigint      NOT NULL,
    position     bigint      NOT NULL,
    -- The version of the fold that made it; another one cannot use it.
    fold_version smallint    NOT NULL,
    state        jsonb       NOT NULL,
    taken_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What an append is sent as: arrays of rows.
CREATE TYPE log.new_event AS (
    position       bigint,
    stream_id      uuid,
    category       text,
    version        bigint,
    event_id       uuid,
    event_type     text,
    schema_version smallint,
    payload        json,
    correlation_id uuid,
    causation_id   uuid,
    actor          text,
    traceparent    text,
    partition_key  uuid
);
CREATE TYPE log.new_stream AS (stream_id uuid, partition bigint, from_version bigint);
CREATE TYPE log.new_answer AS (
    key         uuid,
    fingerprint uuid,
    status      smallint,
    version     bigint,
    position    bigint,
    location    text,
    body        bytea
);
