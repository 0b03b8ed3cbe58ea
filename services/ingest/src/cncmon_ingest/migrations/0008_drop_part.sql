-- Retention drops one chunk or partition a transaction. `drop_older`, which drops all of them in one, stays for workers
-- of the version before.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') THEN
        CREATE FUNCTION oldest_parts(parent text, moment timestamptz, most integer) RETURNS SETOF text
            LANGUAGE sql STABLE SET search_path FROM CURRENT AS
            'SELECT format(''%I.%I'', chunk_schema, chunk_name) FROM timescaledb_information.chunks
             WHERE hypertable_name = parent AND range_end <= moment ORDER BY range_end LIMIT most';
        CREATE FUNCTION drop_part(parent text, part text, moment timestamptz) RETURNS bigint
            LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $function$
        DECLARE
            ends timestamptz;
        BEGIN
            SELECT range_end INTO ends FROM timescaledb_information.chunks
            WHERE hypertable_name = parent AND format('%I.%I', chunk_schema, chunk_name) = part AND range_end <= moment;
            IF NOT FOUND THEN
                RETURN 0;
            END IF;
            UPDATE storage SET dropped_to = moment WHERE name = parent AND dropped_to < moment;
            RETURN (SELECT count(*) FROM drop_chunks(parent::regclass, older_than => ends));
        END
        $function$;
    ELSE
        -- Without SET, so that it is inlined: thousands of partitions are looked at. Callers set the time zone.
        CREATE FUNCTION partition_end(bounds text) RETURNS timestamptz LANGUAGE sql STABLE
            RETURN substring(bounds FROM 'TO \(''(.+)''\)')::timestamptz;
        COMMENT ON FUNCTION partition_end IS 'What a partition ends before, by its bounds; NULL: no moment.';
        CREATE FUNCTION oldest_parts(parent text, moment timestamptz, most integer) RETURNS SETOF text
            LANGUAGE sql STABLE SET search_path FROM CURRENT SET timezone = 'UTC' AS
            'SELECT part::text FROM (
                 SELECT c.oid::regclass AS part, partition_end(pg_get_expr(c.relpartbound, c.oid)) AS ends
                 FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = parent::regclass
             ) AS ended
             WHERE ends <= moment ORDER BY ends LIMIT most';
        CREATE FUNCTION drop_part(parent text, part text, moment timestamptz) RETURNS bigint
            LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET timezone = 'UTC' AS $function$
        DECLARE
            found regclass;
        BEGIN
            SELECT c.oid INTO found FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE i.inhparent = parent::regclass AND c.oid = to_regclass(part)
              AND partition_end(pg_get_expr(c.relpartbound, c.oid)) <= moment;
            IF found IS NULL THEN
                RETURN 0;
            END IF;
            UPDATE storage SET dropped_to = moment WHERE name = parent AND dropped_to < moment;
            EXECUTE format('DROP TABLE %s', found);
            RETURN 1;
        END
        $function$;
    END IF;
    COMMENT ON FUNCTION oldest_parts IS 'Chunks or partitions that end at or before the moment, the oldest first.';
    COMMENT ON FUNCTION drop_part IS
        'Drops a chunk or partition that ends at or before the moment; returns how many went, 0 where it does not.';
END
$$;
