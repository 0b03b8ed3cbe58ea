-- What tells a database that regressed, or is another one, from the one that the stream's samples went into.

ALTER TABLE delivery
    ADD COLUMN counter bigint NOT NULL DEFAULT 0,
    ADD COLUMN refused text,
    ADD COLUMN adopted text;
COMMENT ON COLUMN delivery.counter IS
    'Raised by the leader after each change of watermarks or floor, and before it is reported: an older copy has a lower one.';
COMMENT ON COLUMN delivery.refused IS
    'Why this database does not lead: the stream''s samples went into another one. NULL: it leads, or never tried.';
COMMENT ON COLUMN delivery.adopted IS
    'The database (system identifier, timeline, oid) that `cncmon db adopt` chose; NULL: nothing is to be adopted.';
