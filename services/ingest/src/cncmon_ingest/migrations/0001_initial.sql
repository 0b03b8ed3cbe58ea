-- Samples, the ledger that makes delivery exactly once in effect, dead letters and gaps.

CREATE TABLE sensor_data (
    time                 timestamptz      NOT NULL,
    machine_id           text             NOT NULL,
    temperature          double precision,
    spindle_speed        double precision,
    x_pos_mm             double precision,
    y_pos_mm             double precision,
    z_pos_mm             double precision,
    feed_rate_actual     double precision,
    spindle_load_percent double precision,
    machine_state        text,
    active_program_line  bigint,
    total_power_kw       double precision,
    mode                 text,
    program              text,
    part_count           bigint,
    tool_number          bigint,
    anomaly_score        double precision,
    extras               jsonb
);
COMMENT ON TABLE sensor_data IS
    'One row a sample. temperature °C, spindle_speed rpm, positions mm, feed_rate_actual mm/min, total_power_kw kW; '
    'NULL: not available. No unique index: the ledger decides what is new.';

-- Who reported a machine last; written when ingest first sees it or when it moves to another edge.
CREATE TABLE machines (
    machine_id text        PRIMARY KEY,
    site       text        NOT NULL,
    edge       text        NOT NULL,
    first_seen timestamptz NOT NULL DEFAULT now()
);

-- One row a batch above its epoch's watermark. The primary key is what makes a second delivery a no-op.
CREATE TABLE ledger (
    epoch       bigint   NOT NULL,
    seq         bigint   NOT NULL,
    sha256      bytea    NOT NULL,
    stored      integer  NOT NULL,
    dead        integer  NOT NULL,
    disposition text     NOT NULL CHECK (disposition IN ('stored', 'dead')),
    committed   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (epoch, seq)
);

-- Messages without identity headers (the original system's form) are known by their place in the stream.
CREATE TABLE ledger_unidentified (
    stream         text        NOT NULL,
    stream_created timestamptz NOT NULL,
    stream_seq     bigint      NOT NULL,
    sha256         bytea       NOT NULL,
    stored         integer     NOT NULL,
    dead           integer     NOT NULL,
    disposition    text        NOT NULL CHECK (disposition IN ('stored', 'dead')),
    stored_at      timestamptz NOT NULL,
    PRIMARY KEY (stream, stream_created, stream_seq, stored_at)
);
COMMENT ON COLUMN ledger_unidentified.stored_at IS
    'The time JetStream gave the message. Part of the key: a stream that lost its tail gives its sequences out again.';

-- The contiguous watermark of each epoch, with the totals of what was pruned at or under it. Rows are never deleted.
CREATE TABLE watermarks (
    epoch             bigint  PRIMARY KEY,
    site              text    NOT NULL,
    edge              text    NOT NULL,
    seq               bigint  NOT NULL DEFAULT 0,
    batches_stored    bigint  NOT NULL DEFAULT 0,
    batches_dead      bigint  NOT NULL DEFAULT 0,
    samples_stored    bigint  NOT NULL DEFAULT 0,
    samples_dead      bigint  NOT NULL DEFAULT 0,
    closed_seq        bigint,
    closed_samples    bigint,
    advanced          timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX watermarks_edge ON watermarks (site, edge);
COMMENT ON COLUMN watermarks.closed_seq IS
    'The last seq a later start of the agent recovered of this epoch; NULL while it may still grow.';

-- What could not be stored, with its bytes. frame is -1 for a whole message.
CREATE TABLE dead_letters (
    identity   text        NOT NULL,
    sha256     bytea       NOT NULL,
    frame      integer     NOT NULL,
    reason     text        NOT NULL,
    detail     text        NOT NULL,
    subject    text        NOT NULL,
    stream_seq bigint      NOT NULL,
    headers    jsonb       NOT NULL,
    payload    bytea       NOT NULL,
    state      text        NOT NULL DEFAULT 'dead' CHECK (state IN ('dead', 'replayed', 'dropped')),
    created    timestamptz NOT NULL DEFAULT now(),
    replayed   timestamptz,
    id         bigint      GENERATED ALWAYS AS IDENTITY UNIQUE,
    PRIMARY KEY (identity, sha256, frame)
);
CREATE INDEX dead_letters_state ON dead_letters (state, created DESC);

-- What an edge declared as dropped: seqs that will never come.
CREATE TABLE gaps (
    epoch    bigint      NOT NULL,
    seq_from bigint      NOT NULL,
    seq_to   bigint      NOT NULL CHECK (seq_to >= seq_from),
    samples  bigint,
    reason   text        NOT NULL,
    declared timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (epoch, seq_from)
);

-- Alarms, state changes and epoch closings, as the edges reported them.
CREATE TABLE events (
    time       timestamptz NOT NULL,
    site       text        NOT NULL,
    edge       text        NOT NULL,
    type       text        NOT NULL,
    machine_id text,
    data       jsonb       NOT NULL
);
CREATE INDEX events_time ON events (time DESC);

-- How far the stream is committed and which life of the database this is (a restore begins a new generation).
CREATE TABLE delivery (
    only_row        boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    generation      bigint      NOT NULL DEFAULT 1,
    stream_created  timestamptz,
    committed_floor bigint      NOT NULL DEFAULT 0
);
INSERT INTO delivery DEFAULT VALUES;

-- Chunks of a day where the server has TimescaleDB; otherwise time_bucket exists all the same.
DO $$
BEGIN
    -- Installed and preloaded: only then has it settings. Without preload, creating it would end the session.
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb')
        AND current_setting('timescaledb.max_background_workers', true) IS NOT NULL
    THEN
        CREATE EXTENSION IF NOT EXISTS timescaledb;
        PERFORM create_hypertable('sensor_data', 'time', chunk_time_interval => INTERVAL '1 day', create_default_indexes => false);
    ELSE
        CREATE FUNCTION time_bucket(bucket_width interval, ts timestamptz) RETURNS timestamptz
            LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
            RETURN date_bin(bucket_width, ts, TIMESTAMPTZ '2000-01-03 00:00:00+00');
    END IF;
END
$$;
CREATE INDEX sensor_data_machine_time ON sensor_data (machine_id, time DESC);
