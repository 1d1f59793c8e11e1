-- A record of somebody else's in the topic may name the position of another key's event: both are parked, each under its
-- own key.
DROP INDEX views.parked_key;
ALTER TABLE views.parked
    DROP CONSTRAINT parked_name_instance_position_key,
    ADD UNIQUE (name, instance, partition_key, position);
