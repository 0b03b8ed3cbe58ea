"""Settings from the environment: one frozen struct a service, one variable a field."""

import os
from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec

from cncmon_core.errors import SettingsError

PREFIX = "CNCMON_"


def load[T: msgspec.Struct](settings: type[T], section: str, environ: Mapping[str, str] | None = None) -> T:
    """Return the settings of a service: field `linger_ms` of section `AGENT` comes from `CNCMON_AGENT_LINGER_MS`.

    Lists are comma-separated. An empty variable counts as not set, so that a chart may leave a value blank. White space
    around a value is dropped: a secret made from a file often ends in a newline.

    Raises:
        SettingsError: names every variable that can't be used, and why.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    problems: list[str] = []
    hints = get_type_hints(settings, include_extras=True)
    for field in msgspec.structs.fields(settings):
        variable = variable_of(section, field.name)
        text = environ.get(variable, "").strip()
        if not text:
            if field.required:
                problems.append(f"{variable} is not set, and there is no default")
            continue
        value: Any = [item.strip() for item in text.split(",") if item.strip()] if _is_list(hints[field.name]) else text
        try:
            values[field.name] = msgspec.convert(value, hints[field.name], strict=False)
        except msgspec.ValidationError as error:
            problems.append(f"{variable} is {text!r}: {error}")
    if problems:
        raise SettingsError("; ".join(problems))
    return settings(**values)


def variable_of(section: str, field: str) -> str:
    """Return the environment variable of a field."""
    return f"{PREFIX}{section}_{field}".upper()


def describe(settings: type[msgspec.Struct], section: str) -> list[tuple[str, str, str]]:
    """Return (variable, default, description) for each field, for `--help` and the docs."""
    rows = []
    hints = get_type_hints(settings, include_extras=True)
    for field in msgspec.structs.fields(settings):
        texts = [
            m.description for m in get_args(hints[field.name])[1:] if isinstance(m, msgspec.Meta) and m.description
        ]
        default = "" if field.required else _shown(_default(field))
        rows.append((variable_of(section, field.name), default, " ".join(texts)))
    return rows


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def _shown(default: Any) -> str:
    if isinstance(default, (list, tuple)):
        return ",".join(map(str, default))
    return "" if default is None else str(default)


def _is_list(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return get_origin(hint) in (list, tuple)
