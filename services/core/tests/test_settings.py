from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from cncmon_core.errors import SettingsError
from cncmon_core.nats_link import NatsSettings
from cncmon_core.service import ServiceSettings
from cncmon_core.settings import describe, load, variable_of


class Example(msgspec.Struct, frozen=True):
    dsn: Annotated[str, Meta(description="Where the data goes.")]
    linger_ms: Annotated[int, Meta(ge=1, le=100, description="Wait.")] = 10
    ratio: Annotated[float, Meta(gt=0)] = 0.5
    loud: bool = False
    level: Literal["low", "high"] = "low"
    tags: Annotated[tuple[str, ...], Meta(max_length=3, description="Labels.")] = ()
    ports: list[int] = msgspec.field(default_factory=lambda: [1, 2])
    seed: int | None = None


def environ(**values: str) -> dict[str, str]:
    return {"CNCMON_X_DSN": "d"} | {f"CNCMON_X_{name.upper()}": value for name, value in values.items()}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("linger_ms", "100", 100),
        ("linger_ms", " 7\n", 7),
        ("ratio", "0.25", 0.25),
        ("ratio", "2", 2.0),
        ("loud", "true", True),
        ("loud", "1", True),
        ("loud", "False", False),
        ("level", "high", "high"),
        ("tags", "a", ("a",)),
        ("tags", "a, b ,,c", ("a", "b", "c")),
        ("ports", "80,443", [80, 443]),
        ("seed", "5", 5),
        ("dsn", "postgresql://a,b/c", "postgresql://a,b/c"),
    ],
)
def test_values(name: str, text: str, value: object) -> None:
    assert getattr(load(Example, "X", environ(**{name: text})), name) == value


def test_what_is_not_set_or_empty_has_its_default() -> None:
    default = Example(dsn="d")
    assert load(Example, "X", environ()) == default
    assert load(Example, "X", environ(linger_ms="", tags="", ports=" ", level="", seed="")) == default


def test_other_variables_are_not_ours() -> None:
    others = {"CNCMON_Y_LINGER_MS": "x", "X_LINGER_MS": "x", "CNCMON_X_UNHEARD_OF": "x", "cncmon_x_linger_ms": "x"}
    assert load(Example, "X", environ() | others) == Example(dsn="d")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("linger_ms", "0"),
        ("linger_ms", "101"),
        ("linger_ms", "ten"),
        ("linger_ms", "1.5"),
        ("ratio", "0"),
        ("loud", "maybe"),
        ("level", "middle"),
        ("tags", "a,b,c,d"),
        ("ports", "80,x"),
    ],
)
def test_what_can_not_be_used_is_named(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=f"^CNCMON_X_{name.upper()} is {text!r}: "):
        load(Example, "X", environ(**{name: text}))


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as error:
        load(Example, "X", {"CNCMON_X_LINGER_MS": "x", "CNCMON_X_LEVEL": "y"})
    for name in ("DSN", "LINGER_MS", "LEVEL"):
        assert f"CNCMON_X_{name} is " in str(error.value)


@pytest.mark.parametrize("values", [{}, {"CNCMON_X_DSN": ""}, {"CNCMON_X_DSN": "  "}])
def test_a_setting_without_default_must_be_set(values: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="CNCMON_X_DSN is not set"):
        load(Example, "X", values)


def test_the_process_s_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNCMON_X_DSN", "from outside")
    assert load(Example, "X").dsn == "from outside"


def test_describe() -> None:
    assert describe(Example, "X")[:2] == [
        ("CNCMON_X_DSN", "", "Where the data goes."),
        ("CNCMON_X_LINGER_MS", "10", "Wait."),
    ]
    assert ("CNCMON_X_PORTS", "1,2", "") in describe(Example, "X")


@pytest.mark.parametrize(
    ("settings", "section"), [(Example, "X"), (ServiceSettings, "SERVICE"), (NatsSettings, "NATS")]
)
def test_a_default_as_described_can_be_set(settings: type[msgspec.Struct], section: str) -> None:
    described = {variable: default for variable, default, _ in describe(settings, section)}
    described.setdefault("CNCMON_X_DSN", "d")
    wanted = settings(**({"dsn": "d"} if settings is Example else {}))
    assert load(settings, section, described | ({"CNCMON_X_DSN": "d"} if settings is Example else {})) == wanted


def test_variable_of() -> None:
    assert variable_of("AGENT", "linger_ms") == "CNCMON_AGENT_LINGER_MS"
