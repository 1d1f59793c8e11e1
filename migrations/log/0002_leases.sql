-- Who does what only one may do at a time. A lease that is not renewed ends by itself: whoever was killed or paused
-- is followed by another within its time.
CREATE TABLE log.leases (
    name   text        PRIMARY KEY,
    holder uuid        NOT NULL,
    until  timestamptz NOT NULL
) WITH (fillfactor = 50);
