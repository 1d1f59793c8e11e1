-- Which life of this server it is. PostgreSQL empties an unlogged table when it recovers from a crash, and so does a
-- replica that is promoted: then the server may have lost commits that did not wait for the disk, numbers of changes
-- will be given again, and a projector writes a new id. After an orderly restart the id is still there.
CREATE UNLOGGED TABLE views.incarnation (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    id  uuid    NOT NULL DEFAULT gen_random_uuid()
);
