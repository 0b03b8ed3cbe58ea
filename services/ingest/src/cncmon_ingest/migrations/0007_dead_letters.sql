-- Dead letters that hold several frames, and what is left of those that are past their retention.

ALTER TABLE dead_letters ADD COLUMN frames integer NOT NULL DEFAULT 1;
COMMENT ON COLUMN dead_letters.frame IS
    'The frame''s number in its message; -1: the whole message; -2 or less: several frames with their numbers, the first '
    'of them number -2 - frame.';
COMMENT ON COLUMN dead_letters.frames IS 'How many dead frames the letter stands for.';

-- Letters that are past their retention: numbers without bytes. Edges that no heartbeat names are counted as one.
CREATE TABLE dead_letter_totals (
    reason  text        NOT NULL,
    state   text        NOT NULL CHECK (state IN ('dead', 'replayed', 'dropped')),
    site    text        NOT NULL,
    edge    text        NOT NULL,
    letters bigint      NOT NULL,
    frames  bigint      NOT NULL,
    bytes   bigint      NOT NULL,
    first   timestamptz NOT NULL,
    last    timestamptz NOT NULL,
    PRIMARY KEY (reason, state, site, edge)
);
COMMENT ON COLUMN dead_letter_totals.state IS 'What the letters were when their retention ended; dead: samples lost.';
