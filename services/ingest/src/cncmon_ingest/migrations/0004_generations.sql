-- A database that goes back: its lives, and the stream read again. Messages that are tried alone.

ALTER TABLE delivery
    ADD COLUMN reread_from  bigint,
    ADD COLUMN reread_to    bigint,
    ADD COLUMN reread_begun timestamptz,
    ADD COLUMN reread_ended timestamptz,
    ADD COLUMN reread_asked boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN delivery.reread_from IS
    'Stream sequence from which this generation reads the stream again; NULL: it never had to.';
COMMENT ON COLUMN delivery.reread_to IS 'The stream''s last sequence when this generation began.';
COMMENT ON COLUMN delivery.reread_asked IS 'Somebody wants the stream to be read again from its beginning.';

-- Messages that were delivered often and are tried alone, by their place in the stream: a row is there while one is.
CREATE TABLE suspects (
    stream_created timestamptz NOT NULL,
    stream_seq     bigint      NOT NULL,
    attempts       integer     NOT NULL,
    begun          timestamptz NOT NULL,
    PRIMARY KEY (stream_created, stream_seq)
);
COMMENT ON COLUMN suspects.attempts IS 'How often it was tried alone, counted before each attempt begins.';
