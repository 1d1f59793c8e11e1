-- The last record that was applied, where a projection reads from Kafka: what it said is the checkpoint's epoch and
-- position, so whoever begins there can tell whether the topic is still the same. NULL: read from the log.
ALTER TABLE views.checkpoints ADD COLUMN source_offset bigint;

-- Records in the topic that are no events of the log.
CREATE TABLE views.strays (
    name      text        NOT NULL,
    instance  int         NOT NULL,
    partition smallint    NOT NULL,
    "offset"  bigint      NOT NULL,
    error     text        NOT NULL,
    found_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (name, instance, partition, "offset"),
    FOREIGN KEY (name, instance) REFERENCES views.projections ON DELETE CASCADE
);
