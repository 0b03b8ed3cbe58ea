-- Messages without identity are known by stream, sequence, JetStream's time and content, whatever stream they lie in now.

-- A restored stream is another one by its creation time and holds the same messages: what it was stored twice as goes.
DELETE FROM ledger_unidentified AS later USING ledger_unidentified AS first
WHERE (later.stream, later.stream_seq, later.stored_at, later.sha256)
    = (first.stream, first.stream_seq, first.stored_at, first.sha256) AND later.stream_created > first.stream_created;
-- Programs of before insert ON CONFLICT DO NOTHING and name no key: they go by this one as well.
ALTER TABLE ledger_unidentified
    DROP CONSTRAINT ledger_unidentified_pkey,
    ADD PRIMARY KEY (stream, stream_seq, stored_at, sha256);
COMMENT ON COLUMN ledger_unidentified.stream_created IS
    'When the stream was created that the message came from. A row of the stream that is there now goes when that has '
    'dropped the message, a row of another one by its age: a snapshot may bring its messages back.';
COMMENT ON COLUMN ledger_unidentified.stored_at IS
    'The time that JetStream gave the message. Part of the key: a stream that lost its tail reuses its sequences.';
