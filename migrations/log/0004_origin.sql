-- Where a request came from, as a network: it tells no person, and stays when somebody is erased. Events from before have
-- none. No row is touched; appends wait for the lock for a second at most, and who reads for longer is waited for.
DO $$
BEGIN
    SET LOCAL lock_timeout = '1s';
    FOR attempt IN 1..30 LOOP
        BEGIN
            ALTER TABLE log.events ADD COLUMN origin cidr;
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            PERFORM pg_sleep(1);
        END;
    END LOOP;
    RAISE EXCEPTION 'log.events is being read for too long to be given a column: try again'
        USING ERRCODE = 'lock_not_available';
END $$;

-- Rows of an append as they are sent from here on. Writers of the release before go on with log.new_event.
CREATE TYPE log.event_to_append AS (
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
    partition_key  uuid,
    origin         cidr
);
