-- Keys of personal data, one for each account. The schema `vault` itself is made by the migrator. It may live in a
-- database of its own, so that its backups are kept apart from those of what the keys open.
CREATE TABLE vault.keys (
    -- Whose data it opens. The nil UUID: the shop's own key, which keyed hashes are made with.
    subject    uuid PRIMARY KEY,
    -- AES-256-GCM under a master key: nonce, ciphertext, tag. NULL: destroyed, for good.
    wrapped    bytea,
    -- Which master key wraps it.
    master     text        NOT NULL,
    made_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    erased_at  timestamptz,
    CHECK ((wrapped IS NULL) = (erased_at IS NOT NULL))
);
