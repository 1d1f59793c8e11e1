-- How far the work under a lease has come, for whoever takes it over: what it works on may be away just then. NULL: not
-- known.
ALTER TABLE log.leases ADD COLUMN place bigint;
