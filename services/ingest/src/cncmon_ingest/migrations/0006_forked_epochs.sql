-- Hashes of batches at or under the watermark, and epochs under which two agents publish.

CREATE TABLE ledger_hashes (
    epoch    bigint      NOT NULL,
    seq_from bigint      NOT NULL,
    seq_to   bigint      NOT NULL CHECK (seq_to >= seq_from),
    digests  bytea       NOT NULL,
    pruned   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (epoch, seq_from)
);
-- A hash is read by its place, without the others.
ALTER TABLE ledger_hashes ALTER COLUMN digests SET STORAGE EXTERNAL;
CREATE INDEX ledger_hashes_pruned ON ledger_hashes (pruned);
COMMENT ON TABLE ledger_hashes IS
    'What the ledger knew of batches that were pruned from it, for as long as the stream may hold another batch of '
    'their identity. Disjoint ranges of an epoch''s seqs.';
COMMENT ON COLUMN ledger_hashes.digests IS 'The first 8 bytes of the SHA-256 of each batch from seq_from to seq_to.';

CREATE TABLE forked_epochs (
    epoch bigint      PRIMARY KEY,
    site  text        NOT NULL,
    edge  text        NOT NULL,
    found timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX forked_epochs_edge ON forked_epochs (site, edge);
CREATE INDEX forked_epochs_found ON forked_epochs (found);
COMMENT ON TABLE forked_epochs IS
    'Epochs under which two agents publish: one was cloned or reverted with its memory. Rows are never deleted.';

-- Who may read or write the ledger may do so with what belongs to it.
DO $$
DECLARE
    part record;
BEGIN
    FOR part IN
        SELECT DISTINCT target.name, a.privilege_type AS privilege,
               CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS grantee
        FROM pg_class c CROSS JOIN aclexplode(c.relacl) a
        CROSS JOIN unnest(ARRAY['ledger_hashes', 'forked_epochs']) AS target(name)
        WHERE c.oid = 'ledger'::regclass AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT %s ON %I TO %s', part.privilege, part.name, part.grantee);
    END LOOP;
END
$$;
