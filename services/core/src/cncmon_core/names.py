"""Names on the wire: subjects, streams, consumers, buckets and headers."""

import re
from typing import NamedTuple

from cncmon_core.errors import InvalidNameError

STREAM = "CNC_DATA"
SUBJECT_PREFIX = "CNC_DATA"
SUBJECT_ALL = "CNC_DATA.>"
EVENTS_SUFFIX = "events"
DURABLE = "PROCESSOR"
DURABLE_REREAD = "REREAD_"
"""And the generation: the consumer that reads the stream again after the database went back."""

KV_STATUS = "edge_status"
KV_CONFIG = "edge_config"
KV_WATERMARK = "edge_watermark"
KV_DATABASE_KEY = "database"
"""In that bucket, beside the edges': what the database was last. Without a dot, so no edge's key."""

NAME_CHARS_MAX = 63
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
"""A DNS label (RFC 1123 section 2.1), so that a name is also a Kubernetes name and one subject token."""
_NAME = re.compile(NAME_PATTERN)
_TOKEN = re.compile(rf"^[-_=a-zA-Z0-9]{{1,{NAME_CHARS_MAX}}}$", re.ASCII)


class Origin(NamedTuple):
    """Who sent a message, as its subject tells: the one place from which site and edge are taken."""

    site: str
    edge: str


def check_name(what: str, name: str) -> str:
    """Return `name` if it may name a site, edge or machine.

    Raises:
        InvalidNameError: says what is allowed.
    """
    if len(name) > NAME_CHARS_MAX or not _NAME.fullmatch(name):
        raise InvalidNameError(
            f"{what} {name!r}: use a-z, 0-9 and '-', start and end with a letter or digit, "
            f"at most {NAME_CHARS_MAX} characters"
        )
    return name


def samples_subject(site: str, edge: str) -> str:
    """Return the subject of an edge's sample batches."""
    return f"{SUBJECT_PREFIX}.{site}.{edge}"


def events_subject(site: str, edge: str) -> str:
    """Return the subject of an edge's events: alarms, state changes, gap declarations, epoch closings."""
    return f"{SUBJECT_PREFIX}.{site}.{edge}.{EVENTS_SUFFIX}"


def edge_key(site: str, edge: str) -> str:
    """Return the key of an edge in every KV bucket."""
    return f"{site}.{edge}"


def origin_of(subject: str) -> Origin:
    """Return site and edge of a message from its subject; empty strings where the subject names none.

    The original system's subjects (`CNC.EDGE.<edge>`, `CNC_DATA.<anything>`) name an edge at most. A subject's token
    may be almost anything; only what can be a key of a bucket and fits a name is taken for a site or an edge.
    """
    tokens = subject.split(".")
    if tokens[0] == SUBJECT_PREFIX and len(tokens) >= 3:
        site, edge = tokens[1], tokens[2]
    elif subject.startswith("CNC.EDGE."):
        site, edge = "", tokens[2]
    else:
        return Origin("", "")
    return Origin(site, edge) if (not site or _TOKEN.match(site)) and _TOKEN.match(edge) else Origin("", "")


def republish_subject(bucket: str, site: str, edge: str) -> str:
    """Return the subject on which a KV bucket republishes an edge's key: agents need no `kv.watch`."""
    return f"cncmon.kv.{bucket}.{site}.{edge}"
