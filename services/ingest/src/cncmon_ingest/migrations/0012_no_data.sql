-- `no_data`, the state of a time that nothing is known of, apart from `offline`, which an edge reports. And when edges
-- were silent, to tell why.

ALTER TABLE state_intervals
    DROP CONSTRAINT state_intervals_state_check,
    ADD CONSTRAINT state_intervals_state_check
        CHECK (state IN ('running', 'idle', 'alarm', 'hold', 'offline', 'no_data')),
    ADD COLUMN undivided boolean NOT NULL DEFAULT true;
COMMENT ON COLUMN state_intervals.undivided IS
    'Computed by a program that knew no no_data: where it says offline, nothing may be known.';

-- NULL: likewise, offline_us holds it.
ALTER TABLE rollup_10s ADD COLUMN no_data_us bigint;
ALTER TABLE rollup_1min ADD COLUMN no_data_us bigint;
ALTER TABLE rollup_1h ADD COLUMN no_data_us bigint;

CREATE TABLE edge_silences (
    site      text        NOT NULL,
    edge      text        NOT NULL,
    from_time timestamptz NOT NULL,
    to_time   timestamptz NOT NULL CHECK (to_time > from_time),
    PRIMARY KEY (site, edge, from_time)
);
CREATE INDEX edge_silences_to ON edge_silences (to_time);
COMMENT ON TABLE edge_silences IS
    'Times between two heartbeats of an edge that are over and were long; of one that lasts `edges` has the beginning.';

-- Who may read or write states may do so with what tells their causes.
DO $$
DECLARE
    part record;
BEGIN
    FOR part IN
        SELECT DISTINCT target.name, a.privilege_type AS privilege,
               CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS grantee
        FROM pg_class c CROSS JOIN aclexplode(c.relacl) a
        CROSS JOIN unnest(ARRAY['edge_silences', 'machine_owners']) AS target(name)
        WHERE c.oid = 'state_intervals'::regclass AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT %s ON %I TO %s', part.privilege, part.name, part.grantee);
    END LOOP;
END
$$;

-- What was offline is computed once more where its samples are there: at most a day of a machine in one mark.
INSERT INTO dirty_ranges (machine_ids, from_time, to_time)
SELECT ARRAY[i.machine_id], part, least(
    part + INTERVAL '1 day', date_bin('10 seconds', i.to_time, '2000-01-01 00:00:00+00') + INTERVAL '10 seconds')
FROM state_intervals i
CROSS JOIN LATERAL (SELECT dropped_to FROM storage WHERE name = 'sensor_data') AS kept
CROSS JOIN LATERAL generate_series(
    date_bin('10 seconds', greatest(i.from_time, kept.dropped_to), '2000-01-01 00:00:00+00'), i.to_time, '1 day'
) AS part
WHERE i.state = 'offline' AND i.to_time > kept.dropped_to;
