import pytest
from hypothesis import given
from hypothesis import strategies as st

from cncmon_core import names
from cncmon_core.errors import InvalidNameError


@pytest.mark.parametrize("name", ["a", "0", "cnc-001", "a--b", "x" * 63, "1a"])
def test_valid(name: str) -> None:
    assert names.check_name("machine", name) == name


@pytest.mark.parametrize(
    "name",
    ["", "-", "-a", "a-", "A", "a.b", "a b", "a_b", "a/b", "x" * 64, "é", "a*", "a>", "a\n", "\na", "a\0", "٣", "ﬀ"],
    ids=ascii,
)
def test_invalid(name: str) -> None:
    with pytest.raises(InvalidNameError, match="use a-z, 0-9 and '-'") as error:
        names.check_name("edge", name)
    assert str(error.value).startswith(f"edge {name!r}")
    assert isinstance(error.value, ValueError)


@given(st.text(max_size=70))
def test_what_is_valid_is_one_subject_token(name: str) -> None:
    try:
        names.check_name("site", name)
    except InvalidNameError:
        return
    assert name.isascii()
    assert not set(name) & set(" .*>\t\r\n")
    assert 1 <= len(name) <= 63
    assert names.origin_of(names.samples_subject(name, name)) == (name, name)


@pytest.mark.parametrize(
    ("subject", "origin"),
    [
        ("CNC_DATA.hall.e1", ("hall", "e1")),
        ("CNC_DATA.hall.e1.events", ("hall", "e1")),
        ("CNC_DATA.hall.e1.more.tokens", ("hall", "e1")),
        ("CNC_DATA.original", ("", "")),
        ("CNC_DATA", ("", "")),
        ("CNC.EDGE.e7", ("", "e7")),
        ("CNC.EDGE.e7.x", ("", "e7")),
        ("CNC.EDGE.", ("", "")),
        ("CNC.EDGE", ("", "")),
        ("CNC_DATAX.hall.e1", ("", "")),
        ("OTHER.CNC_DATA.hall.e1", ("", "")),
        ("", ("", "")),
    ],
)
def test_origin_of(subject: str, origin: tuple[str, str]) -> None:
    assert names.origin_of(subject) == origin


def test_names_on_the_wire() -> None:
    assert names.samples_subject("hall", "e1") == "CNC_DATA.hall.e1"
    assert names.events_subject("hall", "e1") == "CNC_DATA.hall.e1.events"
    assert names.edge_key("hall", "e1") == "hall.e1"
    assert names.republish_subject(names.KV_WATERMARK, "hall", "e1") == "cncmon.kv.edge_watermark.hall.e1"
