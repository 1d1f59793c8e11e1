-- Secrets of accounts. They stand beside the log, never in it: an event is for ever, a secret is not. What an event
-- says (which credential counts, which session has ended) is what decides; a row here that no event speaks of is
-- nothing.
CREATE SCHEMA accounts;

-- Hashes of passwords, PHC strings of Argon2id. One row each time a password is set.
CREATE TABLE accounts.credentials (
    credential_id uuid PRIMARY KEY,
    account_id    uuid        NOT NULL,
    hash          text        NOT NULL,
    made_at       timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX credentials_account ON accounts.credentials (account_id);

-- Second factors (TOTP, RFC 6238): the secret is sealed with the account's key.
CREATE TABLE accounts.factors (
    factor_id      uuid PRIMARY KEY,
    account_id     uuid        NOT NULL,
    secret         text        NOT NULL,
    -- The last time step that a code was taken of: none is taken twice.
    last_step      bigint      NOT NULL DEFAULT 0,
    -- SHA-256 of the recovery codes that are left.
    recovery_codes bytea[]     NOT NULL,
    made_at        timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX factors_account ON accounts.factors (account_id);

-- Sessions: families of refresh tokens.
CREATE TABLE accounts.sessions (
    session_id uuid PRIMARY KEY,
    account_id uuid        NOT NULL,
    role       text        NOT NULL,
    -- The position of its first event: what ends an account's sessions ends those that began before it.
    position   bigint      NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- The end in any case, however often it is refreshed.
    expires_at timestamptz NOT NULL,
    ended_at   timestamptz
);
CREATE INDEX sessions_account ON accounts.sessions (account_id) WHERE ended_at IS NULL;
CREATE INDEX sessions_expire ON accounts.sessions (expires_at);

-- Refresh tokens, by their SHA-256 (they are 256 random bits, so no slow hash is needed). A token that was used stays
-- until its session expires, so that its second use is noticed.
CREATE TABLE accounts.refresh_tokens (
    hash       bytea PRIMARY KEY,
    session_id uuid        NOT NULL REFERENCES accounts.sessions ON DELETE CASCADE,
    expires_at timestamptz NOT NULL,
    used_at    timestamptz,
    -- The token that took its place.
    successor  bytea
);
CREATE INDEX refresh_tokens_session ON accounts.refresh_tokens (session_id);

-- Sessions whose access tokens are to be refused before they expire by themselves; every process follows it.
CREATE TABLE accounts.revocations (
    session_id uuid PRIMARY KEY,
    revoked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- After this its last access token has expired.
    until      timestamptz NOT NULL
);
CREATE INDEX revocations_revoked ON accounts.revocations (revoked_at);

-- How far the steward of accounts has followed the log.
CREATE TABLE accounts.checkpoint (
    one      boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch    int    NOT NULL DEFAULT 1,
    position bigint NOT NULL DEFAULT 0
);
INSERT INTO accounts.checkpoint DEFAULT VALUES;

-- Mails to be sent, one for each event that asks for one: written with the checkpoint, so none is missed.
CREATE TABLE accounts.mails (
    event_id   uuid PRIMARY KEY,
    account_id uuid        NOT NULL,
    kind       text        NOT NULL,
    -- What the mail's token speaks of.
    about      uuid,
    expires_at timestamptz,
    -- waiting · sent · dropped (nobody to send it to, or too late) · failed (after all tries)
    state      text        NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'sent', 'dropped', 'failed')),
    attempts   int         NOT NULL DEFAULT 0,
    try_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- What went wrong last; without the address.
    error      text,
    done_at    timestamptz
);
CREATE INDEX mails_waiting ON accounts.mails (try_at) WHERE state = 'waiting';
