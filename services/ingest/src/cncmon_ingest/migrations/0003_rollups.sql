-- Rollups and state intervals with the marks they are recomputed by; samples in partitions of a day where there are no
-- chunks.

-- What lies in chunks (TimescaleDB) or partitions (plain PostgreSQL), each of so many days from 2000-01-01 on.
CREATE TABLE storage (
    name         text        PRIMARY KEY,
    chunk_days   integer     NOT NULL,
    whole_before timestamptz NOT NULL DEFAULT '-infinity',
    dropped_to   timestamptz NOT NULL DEFAULT '-infinity'
);
COMMENT ON COLUMN storage.whole_before IS
    'All that is older lies in one partition: what was there before there were partitions.';
COMMENT ON COLUMN storage.dropped_to IS 'What is older was given up by retention; nothing is computed from it again.';
INSERT INTO storage (name, chunk_days) VALUES
    ('sensor_data', 1), ('rollup_10s', 7), ('rollup_1min', 30), ('rollup_1h', 365);

-- Ranges whose rollups and states are out of date. Ingest only adds; the leader takes away what it had read before.
CREATE TABLE dirty_ranges (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    machine_ids text[]      NOT NULL,
    from_time   timestamptz NOT NULL,
    to_time     timestamptz NOT NULL CHECK (to_time > from_time),
    failure     text
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX dirty_ranges_newest ON dirty_ranges (to_time DESC, id) WHERE failure IS NULL;
COMMENT ON TABLE dirty_ranges IS
    'In whole ticks of 10 s. failure: why it could not be recomputed; such a range waits for someone to look at it.';

-- What each machine was doing, from its first sample to the last and the time that this stands for: without holes.
CREATE TABLE state_intervals (
    machine_id text        NOT NULL,
    from_time  timestamptz NOT NULL,
    to_time    timestamptz NOT NULL CHECK (to_time > from_time),
    state      text        NOT NULL CHECK (state IN ('running', 'idle', 'alarm', 'hold', 'offline')),
    program    text,
    alarm      text,
    PRIMARY KEY (machine_id, from_time)
);
CREATE INDEX state_intervals_to ON state_intervals (to_time);

-- The state that a sample is evidence of: offline before alarm before hold before running before idle. Where the
-- controller gave no state that is known, what it measured decides: something turns or feeds, or something is measured.
CREATE FUNCTION sample_state(machine_state text, alarm text, spindle_speed double precision,
                             feed_rate_actual double precision, measured boolean) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE
        WHEN machine_state = 'offline' OR machine_state IS NULL AND alarm IS NULL AND NOT measured THEN 'offline'
        WHEN machine_state = 'alarm' OR alarm IS NOT NULL THEN 'alarm'
        WHEN machine_state IS NOT NULL THEN machine_state
        WHEN spindle_speed <> 0 OR feed_rate_actual <> 0 THEN 'running'
        ELSE 'idle'
    END;

-- The alarm that a sample tells of, by `alarm_code` or else `alarm` in extras; 0, false and nothing are none.
CREATE FUNCTION sample_alarm(extras jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE
        WHEN coalesce(extras ->> 'alarm_code', extras ->> 'alarm') IN ('', '0', '0.0', 'false') THEN NULL
        ELSE left(coalesce(extras ->> 'alarm_code', extras ->> 'alarm'), 128)
    END;

-- The average of a sum; PostgreSQL refuses a quotient that is too small for its type.
CREATE FUNCTION average(total double precision, number double precision, low double precision, high double precision)
    RETURNS double precision LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE
        WHEN low < -1e290 OR high > 1e290 OR number = 0 THEN NULL
        WHEN abs(total) < 1e-290 THEN 0
        ELSE total / number
    END;

-- A summand of `average`.
CREATE FUNCTION summand(value double precision) RETURNS double precision LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN abs(value) <= 1e290 THEN value END;

-- A rollup has one row for each of its buckets that has samples. time: the bucket's beginning.
CREATE TABLE rollup_model (
    time       timestamptz NOT NULL,
    machine_id text        NOT NULL,
    samples    bigint      NOT NULL,
    running_us bigint      NOT NULL,
    idle_us    bigint      NOT NULL,
    alarm_us   bigint      NOT NULL,
    hold_us    bigint      NOT NULL,
    offline_us bigint      NOT NULL,
    temperature_count integer NOT NULL,
    temperature_min double precision, temperature_max double precision,
    temperature_avg double precision, temperature_last double precision,
    spindle_speed_count integer NOT NULL,
    spindle_speed_min double precision, spindle_speed_max double precision,
    spindle_speed_avg double precision, spindle_speed_last double precision,
    x_pos_mm_count integer NOT NULL,
    x_pos_mm_min double precision, x_pos_mm_max double precision,
    x_pos_mm_avg double precision, x_pos_mm_last double precision,
    y_pos_mm_count integer NOT NULL,
    y_pos_mm_min double precision, y_pos_mm_max double precision,
    y_pos_mm_avg double precision, y_pos_mm_last double precision,
    z_pos_mm_count integer NOT NULL,
    z_pos_mm_min double precision, z_pos_mm_max double precision,
    z_pos_mm_avg double precision, z_pos_mm_last double precision,
    feed_rate_actual_count integer NOT NULL,
    feed_rate_actual_min double precision, feed_rate_actual_max double precision,
    feed_rate_actual_avg double precision, feed_rate_actual_last double precision,
    spindle_load_percent_count integer NOT NULL,
    spindle_load_percent_min double precision, spindle_load_percent_max double precision,
    spindle_load_percent_avg double precision, spindle_load_percent_last double precision,
    total_power_kw_count integer NOT NULL,
    total_power_kw_min double precision, total_power_kw_max double precision,
    total_power_kw_avg double precision, total_power_kw_last double precision,
    anomaly_score_count integer NOT NULL,
    anomaly_score_min double precision, anomaly_score_max double precision,
    anomaly_score_avg double precision, anomaly_score_last double precision,
    active_program_line_count integer NOT NULL,
    active_program_line_min bigint, active_program_line_max bigint,
    active_program_line_avg double precision, active_program_line_last bigint,
    part_count_count integer NOT NULL,
    part_count_min bigint, part_count_max bigint,
    part_count_avg double precision, part_count_last bigint,
    tool_number_count integer NOT NULL,
    tool_number_min bigint, tool_number_max bigint,
    tool_number_avg double precision, tool_number_last bigint
);

DO $$
DECLARE
    part   record;
    hyper  boolean := EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb');
    ends   timestamptz;
    source text := 'sensor_data';
BEGIN
    FOR part IN SELECT name, chunk_days FROM storage WHERE name <> 'sensor_data' LOOP
        IF hyper THEN
            EXECUTE format('CREATE TABLE %I (LIKE rollup_model)', part.name);
            PERFORM create_hypertable(part.name::regclass, 'time', create_default_indexes => false,
                                      chunk_time_interval => make_interval(days => part.chunk_days));
        ELSE
            EXECUTE format('CREATE TABLE %I (LIKE rollup_model) PARTITION BY RANGE (time)', part.name);
        END IF;
        EXECUTE format('ALTER TABLE %I ADD PRIMARY KEY (machine_id, time)', part.name);
        EXECUTE format('COMMENT ON TABLE %I IS %L', part.name,
            '…_count: samples that have the field. …_last: of two samples at the same moment the greater. …_avg: '
            'NULL where a value lies beyond ±1e290. …_us: time in the bucket that state_intervals has in a state.');
    END LOOP;
    DROP TABLE rollup_model;

    IF hyper THEN
        CREATE FUNCTION ensure_partition(parent text, moment timestamptz) RETURNS void LANGUAGE sql
            RETURN NULL;
        CREATE FUNCTION drop_older(parent text, moment timestamptz) RETURNS bigint
            LANGUAGE sql SECURITY DEFINER SET search_path FROM CURRENT
            AS 'UPDATE storage SET dropped_to = greatest(dropped_to, moment) WHERE name = parent;
                SELECT count(*) FROM drop_chunks(parent::regclass, older_than => moment)';
    ELSE
        -- Two that need the same one at once: the second waits and finds it. Attaching keeps nobody from writing.
        CREATE FUNCTION ensure_partition(parent text, moment timestamptz) RETURNS void
            LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $function$
        DECLARE
            place  storage;
            width  interval;
            begins timestamptz;
            part   text;
        BEGIN
            SELECT * INTO STRICT place FROM storage WHERE name = parent;
            width := make_interval(hours => 24 * place.chunk_days);
            begins := date_bin(width, moment, '2000-01-01 00:00:00+00');
            part := parent || '_p' || to_char(begins AT TIME ZONE 'UTC', 'YYYYMMDD');
            IF moment < place.whole_before OR to_regclass(quote_ident(part)) IS NOT NULL THEN
                RETURN;
            END IF;
            -- A lock of a table, not an advisory one: with it this session learns what others have made meanwhile.
            LOCK TABLE storage IN SHARE ROW EXCLUSIVE MODE;
            IF to_regclass(quote_ident(part)) IS NOT NULL THEN
                RETURN;
            END IF;
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', part, parent);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, part,
                           greatest(begins, place.whole_before), begins + width);
        END
        $function$;

        CREATE FUNCTION drop_older(parent text, moment timestamptz) RETURNS bigint
            LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET timezone = 'UTC' AS $function$
        DECLARE
            part    record;
            dropped bigint := 0;
        BEGIN
            UPDATE storage SET dropped_to = greatest(dropped_to, moment) WHERE name = parent;
            FOR part IN
                SELECT c.oid::regclass AS name FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                WHERE i.inhparent = parent::regclass
                  AND substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''(.+)''\)')::timestamptz <= moment
            LOOP
                EXECUTE format('DROP TABLE %s', part.name);
                dropped := dropped + 1;
            END LOOP;
            RETURN dropped;
        END
        $function$;

        source := 'sensor_data_before';
        ALTER TABLE sensor_data RENAME TO sensor_data_before;
        ALTER INDEX sensor_data_machine_time RENAME TO sensor_data_before_machine_time;
        CREATE TABLE sensor_data (LIKE sensor_data_before) PARTITION BY RANGE (time);
        CREATE INDEX sensor_data_machine_time ON sensor_data (machine_id, time DESC);
        COMMENT ON TABLE sensor_data IS
            'One row a sample. temperature °C, spindle_speed rpm, positions mm, feed_rate_actual mm/min, '
            'total_power_kw kW; NULL: not available. No unique index: the ledger decides what is new.';
        SELECT date_bin('24 hours', greatest(max(time), now()), '2000-01-01 00:00:00+00') + INTERVAL '48 hours'
        INTO ends FROM sensor_data_before HAVING max(time) IS NOT NULL;
        IF ends IS NOT NULL THEN
            EXECUTE format('ALTER TABLE sensor_data ATTACH PARTITION sensor_data_before '
                           'FOR VALUES FROM (MINVALUE) TO (%L)', ends);
            UPDATE storage SET whole_before = ends WHERE name = 'sensor_data';
        END IF;
        -- Workers of the version before make none by themselves: a week for them to be followed by new ones.
        PERFORM ensure_partition('sensor_data', now() + make_interval(hours => 24 * day))
        FROM generate_series(-1, 8) AS day;
    END IF;

    -- Who may read or write samples and ledger may do so with what belongs to them.
    FOR part IN
        SELECT DISTINCT target.name, a.privilege_type AS privilege,
               CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS grantee
        FROM pg_class c CROSS JOIN aclexplode(c.relacl) a
        CROSS JOIN unnest(ARRAY['sensor_data', 'rollup_10s', 'rollup_1min', 'rollup_1h', 'state_intervals', 'storage',
                                'dirty_ranges']) AS target(name)
        WHERE c.oid IN (source::regclass, 'ledger'::regclass) AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT %s ON %I TO %s', part.privilege, part.name, part.grantee);
    END LOOP;
    IF source = 'sensor_data_before' AND ends IS NULL THEN
        DROP TABLE sensor_data_before;
    END IF;
END
$$;

-- Workers of the version before go on storing for a while, and mark nothing.
ALTER TABLE delivery ADD COLUMN unmarked_since timestamptz;
COMMENT ON COLUMN delivery.unmarked_since IS
    'Since then workers may have stored samples without marks; NULL: all of them mark.';
UPDATE delivery SET unmarked_since = now() WHERE EXISTS (SELECT FROM machines);

-- What is there already has to be computed once, an hour of a machine at a time.
INSERT INTO dirty_ranges (machine_ids, from_time, to_time)
SELECT ARRAY[m.machine_id], hour, hour + INTERVAL '1 hour'
FROM machines m
CROSS JOIN LATERAL (SELECT min(time) AS first, max(time) AS last FROM sensor_data WHERE machine_id = m.machine_id) span
CROSS JOIN LATERAL
    generate_series(date_bin('1 hour', span.first, '2000-01-01 00:00:00+00'), span.last, '1 hour') AS hour
WHERE EXISTS (SELECT FROM sensor_data s
              WHERE s.machine_id = m.machine_id AND s.time >= hour AND s.time < hour + INTERVAL '1 hour');
