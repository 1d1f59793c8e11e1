-- What the log adds up to. The schema `views` itself is made by the migrator; the tables of each projection's
-- instances are made by the projection.

-- One row an instance: a projection built at one time by one version of its fold.
CREATE TABLE views.projections (
    name         text        NOT NULL,
    instance     int         NOT NULL CHECK (instance >= 1),
    fold_version int         NOT NULL,
    -- building: beside the live one · live: what readers see · previous: fed on, for a way back
    state        text        NOT NULL CHECK (state IN ('building', 'live', 'previous')),
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    switched_at  timestamptz,
    PRIMARY KEY (name, instance)
);
CREATE UNIQUE INDEX projections_one_live ON views.projections (name) WHERE state = 'live';
CREATE UNIQUE INDEX projections_one_building ON views.projections (name) WHERE state = 'building';

-- Where each partition of an instance stands; written in the transaction of its rows.
CREATE TABLE views.checkpoints (
    name      text     NOT NULL,
    instance  int      NOT NULL,
    partition smallint NOT NULL,
    epoch     int      NOT NULL,
    position  bigint   NOT NULL,
    PRIMARY KEY (name, instance, partition),
    FOREIGN KEY (name, instance) REFERENCES views.projections ON DELETE CASCADE
) WITH (fillfactor = 20, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

-- The number of the newest change. Its row is locked last in each projector's transaction, so numbers become
-- visible in order and none is missing: whoever sees number n and then n + 2 has missed one.
CREATE TABLE views.head (
    one    boolean PRIMARY KEY DEFAULT true CHECK (one),
    number bigint  NOT NULL DEFAULT 0
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
INSERT INTO views.head DEFAULT VALUES;

-- What changed, for the caches: written with the rows, published from here, pruned after a while.
CREATE TABLE views.changes (
    number   bigint      PRIMARY KEY,
    name     text        NOT NULL,
    instance int         NOT NULL,
    -- rows: these keys have changed · switch: readers go to this instance
    kind     text        NOT NULL CHECK (kind IN ('rows', 'switch')),
    epoch    int         NOT NULL,
    -- All partitions of the instance stand at least here.
    position bigint      NOT NULL,
    keys     uuid[]      NOT NULL,
    made_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Events that could not be applied, and all later ones of the same key, in order.
CREATE TABLE views.parked (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name          text        NOT NULL,
    instance      int         NOT NULL,
    partition_key uuid        NOT NULL,
    position      bigint      NOT NULL,
    stream_id     uuid        NOT NULL,
    event_type    text        NOT NULL,
    error         text        NOT NULL,
    parked_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (name, instance, position),
    FOREIGN KEY (name, instance) REFERENCES views.projections ON DELETE CASCADE
);
CREATE INDEX parked_key ON views.parked (name, instance, partition_key, position);
