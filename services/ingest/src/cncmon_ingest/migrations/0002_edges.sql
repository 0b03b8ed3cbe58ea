-- Gaps that a batch can be taken out of, edges and their heartbeats.

ALTER TABLE gaps
    ADD COLUMN base  bigint,
    ADD COLUMN state text NOT NULL DEFAULT 'declared' CHECK (state IN ('declared', 'passed', 'abandoned'));
COMMENT ON TABLE gaps IS
    'Seqs that are not in the database and that nobody has, as ranges: disjoint, and none of them in the ledger.';
COMMENT ON COLUMN gaps.base IS 'Samples of the epoch before seq_from; NULL: unknown.';
COMMENT ON COLUMN gaps.state IS
    'declared: by the agent, the watermark has yet to pass it. passed: it has. abandoned: found missing by ingest; '
    'never moves the watermark.';
-- What the leader looks through in every round.
CREATE INDEX gaps_declared ON gaps (epoch, seq_from) WHERE state = 'declared';

ALTER TABLE ledger ADD COLUMN base bigint;
COMMENT ON COLUMN ledger.base IS 'Samples of the epoch before this batch, by the agent''s count; NULL: unknown.';

ALTER TABLE watermarks
    ADD COLUMN base    bigint DEFAULT 0,
    ADD COLUMN gaps_to bigint NOT NULL DEFAULT 0,
    ADD COLUMN named   timestamptz NOT NULL DEFAULT '-infinity';
UPDATE watermarks SET base = NULL WHERE seq > 0;
COMMENT ON COLUMN watermarks.base IS 'Samples of the epoch at or under seq, by the agent''s count; NULL: unknown.';
COMMENT ON COLUMN watermarks.gaps_to IS 'No seq above this has ever been in gaps: workers need not look there.';
COMMENT ON COLUMN watermarks.named IS 'JetStream''s time of the message that gave the epoch another site and edge.';

-- The last heartbeat of each edge. received: by the database''s clock.
CREATE TABLE edges (
    site     text        NOT NULL,
    edge     text        NOT NULL,
    boot_id  text        NOT NULL,
    time     timestamptz NOT NULL,
    received timestamptz NOT NULL,
    document jsonb       NOT NULL,
    PRIMARY KEY (site, edge)
);

-- What heartbeats said of each epoch. listed: when one last did. settled: given up, nothing of it is to be looked for.
CREATE TABLE edge_epochs (
    epoch            bigint      PRIMARY KEY,
    site             text        NOT NULL,
    edge             text        NOT NULL,
    boot_id          text        NOT NULL,
    last_seq         bigint      NOT NULL,
    accepted_samples bigint,
    freed_seq        bigint      NOT NULL,
    listed           timestamptz NOT NULL,
    settled          boolean     NOT NULL DEFAULT false
);
CREATE INDEX edge_epochs_open ON edge_epochs (site, edge) WHERE NOT settled;
