"""Makes each chart's values.schema.json and the table in its README from the comments of values.yaml.

A value's comment is `# -- what it is`, on as many lines as it takes, then perhaps `# @schema {JSON schema as YAML}`;
its type is that of its default. `$ref` names one of DEFINITIONS; `settings.X` are the settings of a service, from its
code: type, bounds and words are written once. `--check` writes nothing, and fails where a file is not what it should
be.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from cncmon_agent.settings import AgentSettings
from cncmon_api.settings import ApiSettings
from cncmon_core.nats_link import NatsSettings
from cncmon_core.settings import variable_of
from cncmon_ingest.settings import IngestSettings
from cncmon_operator.settings import OperatorSettings

CHARTS: Final = Path(__file__).parents[1] / "charts"
BEGIN, END = "<!-- values: made by scripts/charts.py -->", "<!-- end of values -->"

_QUANTITY = {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"}
_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NAME = {"type": "string", "maxLength": 253, "pattern": f"^({_LABEL}(\\.{_LABEL})*)?$"}
_AMOUNTS = {
    "type": "object",
    "patternProperties": {"^([a-z0-9.-]+/)?[a-z0-9-]+$": {"anyOf": [_QUANTITY, {"type": "integer", "minimum": 0}]}},
    "additionalProperties": False,
}
_OBJECT = {"type": "object"}

DEFINITIONS: Final[dict[str, dict[str, Any]]] = {
    "strings": {"type": "object", "additionalProperties": {"type": "string"}},
    "object": _OBJECT,
    "objects": {"type": "array", "items": _OBJECT},
    "names": {
        "type": "array",
        "items": {"type": "object", "properties": {"name": _NAME}, "required": ["name"], "additionalProperties": False},
    },
    "env": {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
                "value": {"type": "string"},
                "valueFrom": _OBJECT,
            },
            "required": ["name"],
            "additionalProperties": False,
        },
    },
    "quantity": _QUANTITY,
    "resources": {
        "type": "object",
        "properties": {"requests": _AMOUNTS, "limits": _AMOUNTS},
        "additionalProperties": False,
    },
    "objectName": _NAME,
    "host": {"type": "string", "maxLength": 253, "pattern": f"^((\\*\\.)?{_LABEL}(\\.{_LABEL})*)?$"},
    "port": {"type": "integer", "minimum": 1, "maximum": 65535},
    "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    "countOrPercent": {
        "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^([0-9]|[1-9][0-9]|100)%$|^$"}]
    },
    "cidrs": {"type": "array", "items": {"type": "string", "pattern": "^[0-9a-fA-F.:]+/[0-9]{1,3}$"}},
}

SETTINGS: Final[dict[str, tuple[str, type[msgspec.Struct], set[str]]]] = {
    # Without those that the chart sets from other values, and that a container must leave as they are.
    "settings.ingest": ("INGEST", IngestSettings, {"database_dsn", "stream_replicas", "bootstrap_timeout_ms"}),
    "settings.api": ("API", ApiSettings, {"database_dsn", "host", "port"}),
    "settings.operator": ("OPERATOR", OperatorSettings, {"namespace"}),
    "settings.nats": (
        "NATS", NatsSettings, {"servers", "user", "password", "tls_ca_file", "tls_cert_file", "tls_key_file"},
    ),
    "settings.agent": ("AGENT", AgentSettings, {"site", "edge", "data_dir", "cold_dir", "machines", "accepted_log"}),
}  # fmt: skip


class FaultyValuesError(Exception):
    """values.yaml has a value without words, or words that can't be read; the message names it."""


def settings_schema(reference: str) -> dict[str, Any]:
    """Return the schema of a service's settings: one property a field, with its bounds and its words."""
    section, struct, without = SETTINGS[reference]
    whole = msgspec.json.schema(struct)
    properties = dict(whole["$defs"][struct.__name__]["properties"])
    kept = {}
    for field, schema in properties.items():
        if field in without:
            continue
        words = schema.get("description", "")
        kept[field] = schema | {"description": f"{variable_of(section, field)}: {words}"}
    return {"type": "object", "properties": kept, "additionalProperties": False}


class Values:
    """The values of one chart: read line by line, since YAML readers drop comments."""

    def __init__(self, text: str) -> None:
        self.defaults: dict[str, Any] = yaml.safe_load(text)
        self.words: dict[str, str] = {}
        self.schemas: dict[str, dict[str, Any]] = {}
        self._read(text)

    def _read(self, text: str) -> None:
        path: list[str] = []
        words: list[str] = []
        schema: dict[str, Any] = {}
        for number, line in enumerate(text.splitlines(), 1):
            stripped = line.strip()
            if stripped.startswith("# -- "):
                words, schema = [stripped[5:]], {}
            elif stripped.startswith("# @schema "):
                schema = yaml.safe_load(stripped[10:])
            elif stripped.startswith("#"):
                if words:
                    words.append(stripped[1:].strip())
            elif stripped and not stripped.startswith("- "):
                depth = (len(line) - len(line.lstrip())) // 2
                if depth > len(path):
                    raise FaultyValuesError(f"line {number}: indented too far")
                path = [*path[:depth], stripped.split(":", 1)[0]]
                if words:
                    self.words[".".join(path)] = " ".join(words)
                    self.schemas[".".join(path)] = schema
                words, schema = [], {}

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of all of them."""
        top = self._object("", self.defaults)
        # A parent chart hands its own values down in it.
        top["properties"]["global"] = {"type": "object"}
        return {"$schema": "http://json-schema.org/draft-07/schema#", **top}

    def _object(self, path: str, values: dict[str, Any]) -> dict[str, Any]:
        properties = {
            name: self._value(f"{path}.{name}" if path else name, default) for name, default in values.items()
        }
        return {"type": "object", "properties": properties, "additionalProperties": False}

    def _value(self, path: str, default: Any) -> dict[str, Any]:
        if path not in self.words:
            if not isinstance(default, dict) or not default:
                raise FaultyValuesError(f"{path}: no comment that says what it is")
            return self._object(path, default)
        said = dict(self.schemas[path])
        reference = said.pop("$ref", None)
        if reference in SETTINGS:
            found = settings_schema(reference)
        elif reference is not None:
            found = dict(DEFINITIONS[reference])
        else:
            found = {"type": said.pop("type", None) or _type_of(path, default)}
        return {"description": self.words[path], **found, **said, "default": default}

    def table(self) -> str:
        """Return the table for the README."""
        rows = ["| value | default | meaning |", "|---|---|---|"]
        for path, words in self.words.items():
            default: Any = self.defaults
            for name in path.split("."):
                default = default[name]
            shown = json.dumps(default, ensure_ascii=False).replace("|", "\\|")
            rows.append(f"| `{path}` | `{shown}` | {_with_choice(words, self.schemas[path])} |")
        return "\n".join(rows)


def _with_choice(words: str, schema: dict[str, Any]) -> str:
    if choice := schema.get("enum"):
        return f"{words} One of {', '.join(f'`{one}`' for one in choice)}."
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"{words} {low} to {high}."
    return words.replace("|", "\\|")


def _type_of(path: str, default: Any) -> str:
    for kind, name in ((bool, "boolean"), (int, "integer"), (str, "string"), (list, "array")):
        if isinstance(default, kind):
            return name
    raise FaultyValuesError(f"{path}: its default does not say its type; give it one in @schema")


def made(chart: Path) -> dict[Path, str]:
    """Return what the chart's generated files should be."""
    values = Values((chart / "values.yaml").read_text(encoding="utf-8"))
    readme = chart / "README.md"
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise FaultyValuesError(f"{readme} must have the lines {BEGIN} and {END} once")
    before, _, after = text.partition(BEGIN)[0], *text.partition(END)[1:]
    return {
        chart / "values.schema.json": json.dumps(values.schema(), indent=1, ensure_ascii=False) + "\n",
        readme: f"{before}{BEGIN}\n{values.table()}\n{END}{after}",
    }


def main() -> int:
    """Write the files, or with --check say which differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is out of date")
    check: bool = parser.parse_args().check
    stale = []
    for chart in sorted(path.parent for path in CHARTS.glob("*/Chart.yaml")):
        for path, text in made(chart).items():
            if path.exists() and path.read_text(encoding="utf-8") == text:
                continue
            stale.append(path)
            if not check:
                path.write_text(text, encoding="utf-8")
    for path in stale:
        print(f"{path.relative_to(CHARTS.parent)} {'is out of date: run scripts/charts.py' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
