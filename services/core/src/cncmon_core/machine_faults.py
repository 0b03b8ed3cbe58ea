"""What is wrong with a document and what is allowed there, in words for the person who wrote it."""

import re
from difflib import get_close_matches
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import inspect

from cncmon_core.names import NAME_CHARS_MAX, NAME_PATTERN

_WORDS: Final = {
    "`str`": "text",
    "`int`": "a whole number",
    "`float`": "a number",
    "`bool`": "true or false",
    "`object`": "a mapping",
    "`array`": "a list",
    "`null`": "nothing",
    NAME_PATTERN: f"a-z, 0-9 and '-', a letter or digit first and last, at most {NAME_CHARS_MAX} characters",
}
_RANGE: Final = "; allowed are"
_VALUE_CHARS_MAX: Final = 60
_STEP = re.compile(r"\.([^.\[]+)|\[([^\]]*)\]")


class Fault(NamedTuple):
    """A fault in a document and its place in msgspec's notation, such as `$.spec.signals[2].type`."""

    path: str
    text: str


def value_at(document: Any, path: str) -> str:
    """Return what stands at a path of a document, short enough for a message; empty where nothing does."""
    for field, index in _STEP.findall(path):
        if field and isinstance(document, dict) and field in document:
            document = document[field]
        elif index.isdigit() and isinstance(document, list) and int(index) < len(document):
            document = document[int(index)]
        else:
            return ""
    if isinstance(document, dict):
        return "a mapping"
    if isinstance(document, list):
        return f"a list of {len(document)}"
    text = repr(document) if isinstance(document, str) else msgspec.json.encode(document).decode()
    return text if len(text) <= _VALUE_CHARS_MAX else f"{text[:_VALUE_CHARS_MAX]}…"


def of_validation(error: msgspec.ValidationError, document: type[msgspec.Struct]) -> Fault:
    """Return the fault that msgspec found in a document of a type."""
    text, _, path = str(error).partition(" - at `")
    what, _, inside = path.partition("` in `")
    if inside:
        text, path = f"{text}, as {what}", inside
    path = path.rstrip("`") or "$"
    allowed = _allowed(text, _type_at(path, document))
    if allowed.startswith(_RANGE):
        text = re.sub(r" [<>]=? -?[0-9.]+$", "", text)
    return Fault(path, _in_plain_words(text) + allowed)


def _in_plain_words(text: str) -> str:
    text = text.replace("Object contains unknown", "unknown").replace("Object missing required", "missing")
    text = text.replace("Invalid enum value", "unknown word").replace("Expected", "expected")
    pattern = re.search(r"`str` matching regex '(.*)'", text)
    if pattern:
        return f"expected {_WORDS.get(pattern[1], f'text like {pattern[1]}')}"
    for word, plain in _WORDS.items():
        text = text.replace(word, plain)
    return text


def _allowed(text: str, kind: Any) -> str:
    """Return what is allowed where that is more than the message says already."""
    unknown = re.search("unknown field `(.*)`", text)
    if unknown and isinstance(kind, inspect.StructType):
        known = [field.encode_name for field in kind.fields]
        near = get_close_matches(unknown[1], known, 1)
        return f"; {f'did you mean {near[0]}? K' if near else 'k'}nown are {', '.join(known)}"
    if isinstance(kind, inspect.LiteralType):
        return f"; known are {', '.join(map(str, kind.values))}"
    if isinstance(kind, (inspect.IntType, inspect.FloatType)) and kind.ge is not None and kind.le is not None:
        return f"{_RANGE} {kind.ge} to {kind.le}"
    if isinstance(kind, inspect.StrType) and "got `bool`" in text:
        return "; put it in quotes: YAML reads on, off, yes and no as true and false"
    return ""


def _type_at(path: str, document: type[msgspec.Struct]) -> Any:
    """Return msgspec's description of what belongs at a path, or None where anything does."""
    kind: Any = inspect.type_info(document)
    for field, _index in _STEP.findall(path):
        if isinstance(kind, inspect.StructType):
            kind = next((known.type for known in kind.fields if known.encode_name == field), None)
        elif isinstance(kind, inspect.ListType):
            kind = kind.item_type
        elif isinstance(kind, inspect.DictType):
            kind = kind.value_type
        kind = _plain(kind)
    return kind


def _plain(kind: Any) -> Any:
    """Take away what says nothing about the value: descriptions, and `or nothing`."""
    if isinstance(kind, inspect.Metadata):
        return _plain(kind.type)
    if isinstance(kind, inspect.UnionType):
        return _plain(next((t for t in kind.types if not isinstance(t, inspect.NoneType)), None))
    return kind
