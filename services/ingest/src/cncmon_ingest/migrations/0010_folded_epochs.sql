-- Epochs that are closed and delivered, folded: an edge in a crash loop leaves one at each start.

CREATE TABLE folded_epochs (
    epoch bigint PRIMARY KEY,
    seq   bigint NOT NULL
);
COMMENT ON TABLE folded_epochs IS
    'Up to seq every batch of the epoch is stored or a dead letter, and counted in folded_totals. No watermark row is '
    'needed for that. Rows are never deleted: without one, an old card''s batches would be stored again.';

CREATE TABLE folded_totals (
    site           text   NOT NULL,
    edge           text   NOT NULL,
    epochs         bigint NOT NULL,
    batches_stored bigint NOT NULL,
    batches_dead   bigint NOT NULL,
    samples_stored bigint NOT NULL,
    samples_dead   bigint NOT NULL,
    PRIMARY KEY (site, edge)
);
COMMENT ON TABLE folded_totals IS 'What the folded epochs of each edge held.';

-- What there is to fold, oldest first.
CREATE INDEX watermarks_closed ON watermarks (advanced) WHERE closed_seq <= seq;

-- An epoch that comes back gets its row again, with the watermark it had: whoever inserts it, workers of the version
-- before as well. Its totals begin at zero, since folded_totals has what is at or under that watermark.
CREATE FUNCTION unfold() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    folded_seq bigint;
BEGIN
    SELECT seq INTO folded_seq FROM folded_epochs WHERE epoch = NEW.epoch;
    IF folded_seq > 0 THEN
        NEW.seq := greatest(NEW.seq, folded_seq);
        NEW.closed_seq := greatest(NEW.closed_seq, folded_seq);
        NEW.base := NULL;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER unfold BEFORE INSERT ON watermarks FOR EACH ROW EXECUTE FUNCTION unfold();

-- Who may read or write the ledger may do so with what belongs to it.
DO $$
DECLARE
    part record;
BEGIN
    FOR part IN
        SELECT DISTINCT target.name, a.privilege_type AS privilege,
               CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS grantee
        FROM pg_class c CROSS JOIN aclexplode(c.relacl) a
        CROSS JOIN unnest(ARRAY['folded_epochs', 'folded_totals']) AS target(name)
        WHERE c.oid = 'ledger'::regclass AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT %s ON %I TO %s', part.privilege, part.name, part.grantee);
    END LOOP;
END
$$;
