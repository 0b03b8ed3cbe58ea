"""The extension against what decides: wherever it takes a frame, it gives what Python gives, byte for byte."""

import json
import random
import runpy
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from struct import pack, unpack
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cncmon_ingest
from cncmon_core.frames import FRAMES_MAX, join
from cncmon_core.sample import FIELDS, STATES, Sample, encode_sample
from cncmon_ingest import fast, rows
from cncmon_ingest.decode import DAYS_MAX, Decoded, Incoming, Limits, decode

OLDEST, NEWEST = datetime(1950, 1, 1, tzinfo=UTC), datetime(2300, 1, 1, tzinfo=UTC)
LIMITS = Limits(OLDEST, NEWEST)


@contextmanager
def in_python() -> Iterator[None]:
    with mock.patch.object(fast, "pack", return_value=None):
        yield


def decoded(payload: bytes, limits: Limits = LIMITS) -> Decoded:
    return decode(Incoming("CNC_DATA.hall.e1", {}, payload, 1, NEWEST), limits)


def assert_the_same(payload: bytes, limits: Limits = LIMITS) -> None:
    found = decoded(payload, limits)
    with in_python():
        wanted = decoded(payload, limits)
    assert found == wanted


def takes(frame: bytes, limits: Limits = LIMITS) -> bool:
    """Whether the extension takes the frame; that it takes it rightly is checked as well."""
    assert_the_same(join([frame]), limits)
    taken = fast.pack(join([frame]), rows.microseconds(limits.oldest), rows.microseconds(limits.newest))
    assert taken is not None, "no extension: is there a C compiler? `make setup` says so"
    packed, machine_ids, ticks, left = taken
    mine = packed != [None]
    assert (len(machine_ids), len(ticks), len(left)) == ((1, 1, 0) if mine else (0, 0, 1))
    return mine


USUAL = {
    "machine_id": '"cnc-001"',
    "timestamp": '"2026-03-04T05:06:07.891Z"',
    "temperature": "44.7",
    "spindle_speed": "8003.7",
    "x_pos_mm": "-67.741",
    "machine_state": '"running"',
    "active_program_line": "17",
    "mode": '"AUTOMATIC"',
    "extras": '{"alarm_code":0,"door_open":false}',
}


def frame(leave: str = "", **changes: str) -> bytes:
    """A frame of the usual form, with the JSON of some fields exchanged."""
    fields = {name: value for name, value in (USUAL | changes).items() if name != leave}
    return ("{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}").encode(
        "utf-8", "surrogateescape"
    )


def at(text: str) -> bytes:
    return frame(timestamp=f'"{text}"')


def sized(length: int) -> bytes:
    short = frame(program='""')
    return frame(program=f'"{"x" * (length - len(short))}"')


def real(number: int) -> Sample:
    """A sample as an agent makes it: scaled registers, floats of 32 bits, an extra."""
    return Sample(
        machine_id=f"cnc-{number % 40:03}",
        timestamp=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=number * 100_003),
        temperature=(250 + number) * 0.1,
        spindle_speed=2500 + number,
        x_pos_mm=100.0999984741211 + number,
        y_pos_mm=99.9 - number / 3,
        z_pos_mm=None if number % 7 == 0 else 10.25,
        machine_state="running",
        active_program_line=number,
        total_power_kw=7.25,
        mode="AUTOMATIC",
        program="O1234",
        part_count=number // 100,
        extras={
            "alarm_code": 0,
            "door_open": number % 2 == 0,
            "feed_override_percent": 100,
            "load": [0.5, 1.25],
            "tool_wear_percent": unpack(">f", pack(">f", number / 7))[0],
        },
    )


def test_it_is_built() -> None:
    assert fast.NATIVE, "no extension: is there a C compiler? `make setup` says so"


def test_samples_of_agents_are_taken() -> None:
    payload = join([encode_sample(real(number)) for number in range(500)])
    taken = fast.pack(payload, rows.microseconds(OLDEST), rows.microseconds(NEWEST))
    assert taken is not None
    assert taken[3] == []
    assert taken[1] == {f"cnc-{number:03}" for number in range(40)}
    assert_the_same(payload)


TAKEN = {
    "usual": frame(),
    "white space": frame(extras='{ "a" : [ 1 ,\t2 ] , "b c" : " d " }').replace(b",", b" ,\n").replace(b":", b"\t: ", 1)
    + b" \r\n",
    "white space before": b"\n " + frame(),
    "other order": frame(leave="machine_id")[:-1] + b',"machine_id":"cnc-001"}',
    "required alone": b'{"spindle_speed":null,"temperature":null,"timestamp":"2026-01-01T00:00:00Z","machine_id":"m"}',
    "null state": frame(machine_state="null", mode="null", active_program_line="null", extras="null"),
    "no extras": frame(extras="{ }"),
    "empty text": frame(mode='""'),
    "machine of 128 bytes": frame(machine_id=f'"{"m" * 128}"'),
    "1024 bytes": sized(1024),
    "tilde": frame(mode='"~ }{,:/"'),
    "leap day": at("2024-02-29T00:00:00Z"),
    "leap day of a leap century": at("2000-02-29T23:59:59.999999Z"),
    "end of a year": at("2024-12-31T23:59:59Z"),
    "first year": at("1971-01-01T00:00:00Z"),
    "last year": at("2199-12-31T23:59:59.999999Z"),
    "zone of zero": at("2026-01-01T00:00:00.5+00:00"),
    "one place": at("2026-01-01T00:00:00.5Z"),
    "whole float": frame(temperature="25"),
    "-0.0": frame(temperature="-0.0"),
    "0.0 with many zeros": frame(temperature="0.000000"),
    "15 digits": frame(temperature="0.123456789012345"),
    "17 digits": frame(temperature="0.30000000000000004"),
    "17 digits before the point": frame(temperature="12345678901234567"),
    "half way": frame(temperature="9007199254740993"),
    "half way, divided": frame(temperature="900719925474099.3"),
    "a little above half way": frame(temperature="698.72064345654195", spindle_speed="85.146730287639123"),
    "tens that are no double": frame(temperature="3e23", spindle_speed="1e-23"),
    "exponent": frame(temperature="-1.25E+2", spindle_speed="1e-3"),
    "far exponent": frame(temperature="1.7976931348623157e299"),
    "18 digits of an int": frame(active_program_line="-999999999999999999"),
    "zero": frame(active_program_line="0"),
    "extras of all kinds": frame(
        extras='{"a":true,"b":null,"c":"x","d":-7,"e":0.0001,"f":-0.0,"g":[],"h":{},"i":[[1.5],{"a":{"a":0}}]}'
    ),
    "extras, 14 places before the point": frame(extras='{"a":12345678901234.0}'),
    "extras, large": frame(extras='{"a":123456789012345.0}'),
    "extras, 16 digits": frame(extras='{"a":0.1234567890123456}'),
    "extras, of 32 bits": frame(extras='{"a":86.95165252685547,"b":-0.10000000149011612,"c":1234567936.5}'),
    "depth 8": frame(extras='{"a":' * 8 + "1" + "}" * 8),
    "depth 8 of arrays": frame(extras='{"a":' + "[" * 7 + "]" * 7 + "}"),
    "32 keys": frame(extras="{" + ",".join(f'"k{number}":{number}' for number in range(32)) + "}"),
    "same key elsewhere": frame(extras='{"a":{"a":1},"b":[{"a":1},{"a":2}]}'),
}

LEFT = {
    "nothing": b"",
    "no object": b"[]",
    "empty object": b"{}",
    "cut": frame()[:-1],
    "more behind": frame() + b"x",
    "comma behind": frame()[:-1] + b",}",
    "no comma": frame().replace(b',"temperature"', b' "temperature"'),
    "unknown field": frame(colour='"red"'),
    "duplicate field": frame()[:-1] + b',"temperature":1}',
    **{f"no {name}": frame(leave=name) for name in ("machine_id", "timestamp", "temperature", "spindle_speed")},
    "null machine": frame(machine_id="null"),
    "null time": frame(timestamp="null"),
    "no machine": frame(machine_id='""'),
    "machine of 129 bytes": frame(machine_id=f'"{"m" * 129}"'),
    "1025 bytes": sized(1025),
    "unknown state": frame(machine_state='"dancing"'),
    "beginning of a state": frame(machine_state='"run"'),
    "DEL": frame(mode='"\x7f"'),
    "control character": frame(mode='"\x1f"'),
    "tab": frame(mode='"\t"'),
    "no UTF-8": frame(mode='"\udc80"'),
    "UTF-8": frame(mode='"é"'),
    "escape": frame(mode='"\\u0041"'),
    "escaped quote": frame(mode='"\\""'),
    "U+0000": frame(mode='"\\u0000"'),
    "escape in a key": frame(extras='{"\\u0041":1}'),
    "no leap year": at("2023-02-29T00:00:00Z"),
    "no leap century": at("2100-02-29T00:00:00Z"),
    "April 31": at("2026-04-31T00:00:00Z"),
    "day 0": at("2026-04-00T00:00:00Z"),
    "month 0": at("2026-00-01T00:00:00Z"),
    "month 13": at("2026-13-01T00:00:00Z"),
    "24:00": at("2026-01-01T24:00:00Z"),
    "minute 60": at("2026-01-01T00:60:00Z"),
    "second 60": at("2026-06-30T23:59:60Z"),
    "year 1970": at("1970-12-31T23:59:59Z"),
    "year 2200": at("2200-01-01T00:00:00Z"),
    "seven places": at("2026-01-01T00:00:00.1234567Z"),
    "no place": at("2026-01-01T00:00:00.Z"),
    "no zone": at("2026-01-01T00:00:00"),
    "other zone": at("2026-01-01T00:00:00+01:00"),
    "zone of minus zero": at("2026-01-01T00:00:00-00:00"),
    "small letters": at("2026-01-01t00:00:00z"),
    "space for T": at("2026-01-01 00:00:00Z"),
    "more behind the zone": at("2026-01-01T00:00:00Z "),
    "time as a number": frame(timestamp="1767225600"),
    "-0": frame(temperature="-0"),
    "int -0": frame(active_program_line="-0"),
    "leading zero": frame(temperature="01"),
    "leading zeros behind minus": frame(temperature="-00.5"),
    "no digit before the point": frame(temperature=".5"),
    "no digit behind the point": frame(temperature="1."),
    "no digit of the exponent": frame(temperature="1e"),
    "sign of the exponent alone": frame(temperature="1e+"),
    "plus": frame(temperature="+1"),
    "minus": frame(temperature="-"),
    "1e400": frame(temperature="1e400"),
    "1e-400": frame(temperature="1e-400"),
    "endless exponent": frame(temperature=f"1e{'9' * 30}"),
    "18 digits": frame(temperature="0.300000000000000041"),
    "NaN": frame(temperature="NaN"),
    "true for a float": frame(temperature="true"),
    "text for a float": frame(temperature='"1"'),
    "float for an int": frame(active_program_line="1.0"),
    "exponent of an int": frame(active_program_line="1e2"),
    "19 digits of an int": frame(active_program_line="9223372036854775807"),
    "over 64 bits": frame(active_program_line="9223372036854775808"),
    "almost null": frame(extras="nul"),
    "extras, a list": frame(extras="[]"),
    "extras, exponent": frame(extras='{"a":1e5}'),
    "extras, zeros behind": frame(extras='{"a":1.50}'),
    "extras, zeros alone": frame(extras='{"a":0.00}'),
    "extras, small": frame(extras='{"a":0.00001}'),
    "extras, 16 digits and not the shortest": frame(extras='{"a":0.10000000000000001}'),
    "extras, 18 digits": frame(extras='{"a":0.123456789012345678}'),
    "extras, zero behind 15 digits": frame(extras='{"a":0.1234567890123450}'),
    "extras, -0": frame(extras='{"a":-0}'),
    "extras, leading zero": frame(extras='{"a":01}'),
    "extras, large int": frame(extras='{"a":1234567890123456789}'),
    "extras, duplicate key": frame(extras='{"a":1,"b":2,"a":3}'),
    "extras, no value": frame(extras='{"a":}'),
    "extras, comma behind": frame(extras='{"a":1,}'),
    "extras, comma behind in a list": frame(extras='{"a":[1,]}'),
    "extras, unclosed": frame(extras='{"a":[1'),
    "extras, wrongly closed": frame(extras='{"a":[1}}'),
    "extras, word": frame(extras='{"a":tru}'),
    "extras, U+0000": frame(extras='{"a":"\\u0000"}'),
    "depth 9": frame(extras='{"a":' * 9 + "1" + "}" * 9),
    "depth 9 of arrays": frame(extras='{"a":' + "[" * 8 + "]" * 8 + "}"),
    "depth 300": frame(extras='{"a":' + "[" * 300 + "]" * 300 + "}"),
    "33 keys": frame(extras="{" + ",".join(f'"k{number}":{number}' for number in range(33)) + "}"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken(name: str) -> None:
    assert takes(TAKEN[name])


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left(name: str) -> None:
    assert not takes(LEFT[name])


@pytest.mark.parametrize("length", range(len(TAKEN["extras of all kinds"])))
def test_cut_frames_are_left(length: int) -> None:
    assert not takes(TAKEN["extras of all kinds"][:length])


@pytest.mark.parametrize("state", sorted(STATES))
def test_every_state_is_taken(state: str) -> None:
    assert takes(frame(machine_state=f'"{state}"'))


@pytest.mark.parametrize(("microsecond", "taken"), [(0, False), (1, True), (2, True), (3, False)])
def test_limits_of_time(microsecond: int, taken: bool) -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    limits = Limits(moment + timedelta(microseconds=1), moment + timedelta(microseconds=2))
    assert takes(at(f"2026-01-01T00:00:00.{microsecond:06}Z"), limits) is taken


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0\0\0",
        join([frame()]) + b"x",
        join([frame()])[:-1],
        b"\xff\xff\xff\xff" + frame(),
        join([frame()]) + b"\0\0\0\x01",
        join([b""] * (FRAMES_MAX + 1)),
    ],
    ids=["empty", "no prefix", "tail", "cut", "overrun", "overrun at the end", "too many"],
)
def test_unusual_framing_is_pythons(payload: bytes) -> None:
    assert fast.pack(payload, 0, 0) is None
    assert_the_same(payload)


def test_as_many_frames_as_there_may_be() -> None:
    payload = join([b""] * FRAMES_MAX)
    taken = fast.pack(payload, 0, 0)
    assert taken is not None
    assert taken[3] == list(range(FRAMES_MAX))


@pytest.mark.parametrize("arguments", [(), (b"",), ("", 0, 0), (b"", None, 0), (b"", 0, 1 << 64), (b"", 0, 0, 0)])
def test_wrong_arguments_raise(arguments: tuple[Any, ...]) -> None:
    from cncmon_ingest import _rows

    with pytest.raises((TypeError, OverflowError)):
        _rows.pack(*arguments)


@pytest.mark.parametrize("days", [DAYS_MAX - 1, DAYS_MAX, DAYS_MAX + 1])
@pytest.mark.parametrize("unusual", [{0}, {5, 9}, {DAYS_MAX - 1, DAYS_MAX}, set(range(0, 300, 2)), set()])
def test_days_are_counted_in_the_order_of_the_frames(days: int, unusual: set[int]) -> None:
    first = datetime(2026, 1, 1, tzinfo=UTC)
    parts = [
        frame(
            timestamp=f'"{(first + timedelta(days=number % days)).isoformat()}"',
            mode='"é"' if number in unusual else '"e"',
        )
        for number in range(days + 30)
    ]
    assert_the_same(join(parts))


def test_an_extension_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from cncmon_ingest import _rows

    with monkeypatch.context() as patch:
        patch.setattr(_rows, "FIELDS", (*FIELDS, "colour"))
        assert runpy.run_path(fast.__file__)["NATIVE"] is False
    monkeypatch.setattr(_rows, "TICK_US", 1)
    assert runpy.run_path(fast.__file__)["NATIVE"] is False


def test_without_the_extension_python_takes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cncmon_ingest, "_rows")
    monkeypatch.setitem(sys.modules, "cncmon_ingest._rows", None)
    module = runpy.run_path(fast.__file__)
    assert module["NATIVE"] is False
    assert module["pack"](join([frame()]), 0, 0) is None


ODD_NUMBERS = [
    *("0", "-0", "-0.0", "0.0", "1e400", "-1e400", "1e-400", "1e5", "1E-5", "0e0", "-0e0", "01", "1.", ".5", "+1", "-"),
    *("5e-324", "2.2250738585072014e-308", "1.7976931348623157e308", "9007199254740993", "0.1", "0.10", "0.00001"),
    *("1e22", "1e23", "123456789012345680", "9223372036854775807", "-9223372036854775808", "9223372036854775808"),
    *("179769313486231580793e289", "1" * 40, "0." + "0" * 40 + "1", "NaN", "Infinity", "0x1"),
]
numbers = (
    st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.floats(allow_nan=False, allow_infinity=False, width=32).map(repr)
    | st.decimals(-(10**5), 10**5, places=3).map(str)
    | st.integers(-(10**20), 10**20).map(str)
    | st.from_regex(r"-?(0|[1-9][0-9]{0,19})(\.[0-9]{1,19})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
    | st.sampled_from(ODD_NUMBERS)
)
plain = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters='"\\'), max_size=12)
texts = plain.map(json.dumps) | st.builds(
    json.dumps, st.text(st.characters(codec="utf-8"), max_size=8), ensure_ascii=st.booleans()
)
zones: st.SearchStrategy[Any] = st.sampled_from([UTC, UTC, UTC, timezone(timedelta(hours=2)), None])
times = (
    st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=zones).map(datetime.isoformat)  # noqa: DTZ001
    | st.datetimes(datetime(1960, 1, 1), datetime(2210, 1, 1)).map(lambda moment: moment.isoformat() + "Z")  # noqa: DTZ001
    | st.from_regex(
        r"(19|20|21|22)[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\.[0-9]{1,7})?(Z|[+-]00:00)?",
        fullmatch=True,
    )
).map(lambda text: f'"{text}"')
blanks = st.sampled_from(["", "", "", "", " ", "\n\t", "\r", "\v"])


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    members = draw(st.lists(st.tuples(texts | st.sampled_from(['"a"', '"b"']), values), max_size=4))
    return f"{draw(blanks)},".join(f"{draw(blanks)}{name}{draw(blanks)}:{value}" for name, value in members).join("{}")


values = st.recursive(
    numbers | texts | st.sampled_from(["true", "false", "null", "nul"]),
    lambda inner: objects(inner) | st.lists(inner, max_size=4).map(lambda items: " ,".join(items).join("[]")),
    max_leaves=8,
)
OF_FIELDS = dict.fromkeys(FIELDS, numbers) | {
    "machine_id": texts,
    "timestamp": times,
    "machine_state": st.sampled_from([f'"{state}"' for state in sorted(STATES)]) | texts,
    "mode": texts,
    "program": texts,
    "extras": objects(values),
    **dict.fromkeys(("active_program_line", "part_count", "tool_number"), st.integers(-(10**18), 10**18).map(str)),
}
GOOD = {"machine_id": '"m"', "timestamp": '"2026-01-01T00:00:00.25Z"', "temperature": "1.5", "spindle_speed": "null"}


@st.composite
def whole_frames(draw: st.DrawFn) -> bytes:
    """All that there must be, some more fields, and perhaps one twice or unknown."""
    fields = list((GOOD | {name: draw(OF_FIELDS[name]) for name in draw(st.sets(st.sampled_from(FIELDS)))}).items())
    fields += draw(st.lists(st.tuples(st.sampled_from([*FIELDS, "colour"]), values), max_size=1))
    if draw(st.booleans()):
        fields = draw(st.permutations(fields))
    text = f"{draw(blanks)},{draw(blanks)}".join(f'"{name}"{draw(blanks)}:{value}' for name, value in fields)
    return (draw(blanks) + text.join("{}") + draw(blanks)).encode()


@st.composite
def broken_frames(draw: st.DrawFn) -> bytes:
    found = bytearray(draw(whole_frames()))
    for place, byte in draw(st.lists(st.tuples(st.integers(0, len(found) - 1), st.integers(0, 255)), max_size=3)):
        found[place] = byte
    return bytes(found[: draw(st.just(len(found)) | st.integers(0, len(found)))])


@settings(max_examples=500, deadline=None)
@given(
    st.lists(whole_frames() | whole_frames() | broken_frames() | st.binary(max_size=20), max_size=6),
    st.just(b"") | st.binary(max_size=6),
    st.sampled_from([LIMITS, Limits.at(datetime(2026, 1, 1, tzinfo=UTC), 300, 3650), Limits.at(NEWEST, 0, 0)]),
)
def test_any_message_gives_what_python_gives(parts: list[bytes], tail: bytes, limits: Limits) -> None:
    assert_the_same(join(parts) + tail, limits)


@settings(max_examples=300, deadline=None)
@given(numbers, numbers)
def test_any_number_gives_what_python_gives(number: str, extra: str) -> None:
    assert_the_same(join([frame(temperature=number, active_program_line=number), frame(extras=f'{{"a":{extra}}}')]))


@settings(max_examples=500, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_any_double_in_extras_gives_what_python_gives(wide: float, narrow: float) -> None:
    texts = [repr(wide), repr(narrow), f"{wide:.17g}", f"{narrow:.16g}", f"{narrow % 1e9:.12f}"]
    assert_the_same(join([frame(extras=f'{{"a":{text}}}') for text in texts]))


@settings(max_examples=300, deadline=None)
@given(st.lists(times, min_size=1, max_size=20))
def test_any_time_gives_what_python_gives(moments: list[str]) -> None:
    assert_the_same(join([frame(timestamp=moment) for moment in moments]))


def test_every_day_is_the_calendars() -> None:
    first = datetime(1971, 1, 1, 12, tzinfo=UTC)
    count = (datetime(2200, 1, 1, tzinfo=UTC) - first).days + 1
    moments = [first + timedelta(days=number) for number in range(count)]
    for start in range(0, count, FRAMES_MAX):
        part = moments[start : start + FRAMES_MAX]
        taken = fast.pack(join([at(moment.isoformat()) for moment in part]), -(1 << 62), 1 << 62)
        assert taken is not None
        assert taken[2] == {rows.microseconds(moment) // rows.TICK_US for moment in part}
        assert [row and int.from_bytes(row[6:14], signed=True) for row in taken[0]] == [*map(rows.microseconds, part)]


FLIPS = b'"\\{}[]:,.0159-+eEnulltrue \x00\x1f\x7f\x80TZ'


def test_flipped_bytes_give_what_python_gives() -> None:
    """25,000 frames, each with up to three bytes exchanged, put in or taken out; a fifth of the messages as well."""
    rng = random.Random(20260301)
    seeds = [*TAKEN.values(), *(encode_sample(real(number)) for number in range(20))]

    def flipped(data: bytes) -> bytes:
        found = bytearray(data)
        for _ in range(rng.randint(0, 3)):
            place = rng.randrange(len(found))
            byte = rng.choice(FLIPS) if rng.random() < 0.8 else rng.randrange(256)
            found[place : place + rng.choice([0, 1, 1, 1, 2])] = bytes([byte] * rng.choice([0, 1, 1, 1, 2]))
        return bytes(found)

    native = 0
    for number in range(500):
        payload = join([flipped(rng.choice(seeds)) for _ in range(50)])
        if number % 5 == 0:
            payload = flipped(payload)
        assert_the_same(payload)
        taken = fast.pack(payload, rows.microseconds(OLDEST), rows.microseconds(NEWEST))
        native += len(taken[0]) - len(taken[3]) if taken else 0
    assert native > 5_000, "hardly any was of the usual form: this compares Python with itself"


def test_nothing_is_kept() -> None:
    payloads = [join([frame(), frame(mode='"é"'), frame(machine_id='"other"'), b"{"]), join([frame()]) + b"x"]

    def call(times: int) -> int:
        for _ in range(times):
            for payload in payloads:
                fast.pack(payload, rows.microseconds(OLDEST), rows.microseconds(NEWEST))
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = call(100)
        assert call(10_000) - before < 20_000
    finally:
        tracemalloc.stop()
