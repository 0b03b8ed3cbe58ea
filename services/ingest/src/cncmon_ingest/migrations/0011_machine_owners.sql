-- Whose machines are, and from when on: a sample is judged at its own time.

CREATE TABLE machine_owners (
    machine_id text        NOT NULL,
    site       text        NOT NULL CHECK (site <> ''),
    edge       text        NOT NULL,
    from_time  timestamptz NOT NULL,
    recorded   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (machine_id, from_time)
);
COMMENT ON TABLE machine_owners IS
    'A machine''s owner from a time on, until its next row. The first sender with a site owns it from -infinity. Machines '
    'that only senders without a site have sent are in none.';
COMMENT ON COLUMN machine_owners.recorded IS 'When this was written: workers read what is newer than they are.';
CREATE INDEX machine_owners_recorded ON machine_owners (recorded);

-- Who reported a machine last owns it: nothing more is known of the time before.
INSERT INTO machine_owners (machine_id, site, edge, from_time)
SELECT machine_id, site, edge, '-infinity' FROM machines WHERE site <> '';
