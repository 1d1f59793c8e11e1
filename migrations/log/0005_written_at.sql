-- Where the last writer wrote: the server's start, the database and the table. Anything else now means that the log may have
-- gone back to a former state: a new epoch. NULL: written by the release before, which did not look.
ALTER TABLE log.head ADD COLUMN written_at text;
