"""Machine documents from YAML files: every fault with its file, line and path, and one bad document spoils no other."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from cncmon_core.machine import (
    API_VERSION,
    Document,
    Machine,
    MachineProfile,
    MachineSpec,
    problems_of_signals,
    problems_of_spec,
)

FILE_BYTES_MAX: Final = 16 << 20
NODES_MAX: Final = 100_000
"""Bounds what aliases of aliases expand to."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Problem:
    """Why a document is left out."""

    file: str
    line: int
    document: str
    path: str
    text: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        what = " ".join(part for part in (self.document, self.path.removeprefix("$.")) if part)
        return f"{where}: {what + ': ' if what else ''}{self.text}"


@dataclass
class Machines:
    """What the files hold: machines by name with their signals resolved, and what is wrong with the rest."""

    machines: dict[str, Machine] = field(default_factory=dict)
    profiles: dict[str, MachineProfile] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class _Parsed:
    document: Document
    file: str
    lines: dict[str, int]

    def problem(self, path: str, text: str) -> Problem:
        return Problem(self.file, _line_of(path, self.lines), self.name, path, text)

    @property
    def name(self) -> str:
        return f"{type(self.document).__name__} {self.document.metadata.name}"


def load(paths: Iterable[Path]) -> Machines:
    """Return the machines of YAML files and of folders of them (`*.yaml`, `*.yml`, in name order).

    Nothing raises: what can't be used is in `problems`, the rest is used.
    """
    found = Machines()
    parsed: list[_Parsed] = []
    for path in paths:
        files = sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml")) if path.is_dir() else [path]
        if not files:
            found.problems.append(Problem(str(path), 0, "", "", "the folder holds no .yaml file"))
        for file in files:
            parsed += _parse_file(file, found.problems)
    for item in parsed:
        if isinstance(item.document, MachineProfile):
            _add(item, found.profiles, problems_of_signals(item.document.spec.signals), found.problems)
    for item in parsed:
        if isinstance(item.document, Machine):
            _add(_with_profile(item, found), found.machines, problems_of_spec(item.document.spec), found.problems)
    return found


def _with_profile(item: _Parsed, found: Machines) -> _Parsed:
    """Return the machine with its profile's signals, its own signals in place of those of the same name."""
    document = item.document
    if not isinstance(document, Machine) or document.spec.profile_ref is None:
        return item
    name = document.spec.profile_ref.name
    profile = found.profiles.get(name)
    if profile is None:
        known = ", ".join(sorted(found.profiles)) or "none"
        found.problems.append(
            item.problem("$.spec.profileRef.name", f"no usable MachineProfile {name!r} in these files; known: {known}")
        )
        return item
    signals = {signal.name: signal for signal in (*profile.spec.signals, *document.spec.signals)}
    spec: MachineSpec = msgspec.structs.replace(document.spec, signals=list(signals.values()))
    return _Parsed(msgspec.structs.replace(document, spec=spec), item.file, item.lines)


def _add(item: _Parsed, into: dict[str, Any], faults: list[tuple[str, str]], problems: list[Problem]) -> None:
    name = item.document.metadata.name
    if name in into:
        faults = [*faults, ("$.metadata.name", "another document of this kind has this name already")]
    problems += [item.problem(path, text) for path, text in faults]
    unresolved = isinstance(item.document, Machine) and not item.document.spec.signals
    if not faults and not unresolved:
        into[name] = item.document


def _parse_file(file: Path, problems: list[Problem]) -> list[_Parsed]:
    try:
        if file.stat().st_size > FILE_BYTES_MAX:
            problems.append(Problem(str(file), 0, "", "", f"larger than {FILE_BYTES_MAX >> 20} MiB"))
            return []
        text = file.read_text(encoding="utf-8")
        nodes = list(yaml.compose_all(text, Loader=_Loader))
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(str(file), 0, "", "", f"can't be read: {error}"))
        return []
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        problems.append(Problem(str(file), line, "", "", f"not YAML: {error.problem}"))
        return []
    except (yaml.YAMLError, RecursionError) as error:
        problems.append(Problem(str(file), 0, "", "", f"not YAML: {error}"))
        return []
    return [parsed for node in nodes for parsed in _parse_node(node, str(file), problems)]


def _parse_node(node: Any, file: str, problems: list[Problem]) -> list[_Parsed]:
    if node is None:
        return []
    lines: dict[str, int] = {}
    first = node.start_mark.line + 1
    try:
        _index_lines(node, "$", lines, set())
        value = _Loader("").construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problems.append(Problem(file, first, "", "", f"not usable YAML: {getattr(error, 'problem', None) or error}"))
        return []
    if not isinstance(value, dict) or value.get("kind") not in ("Machine", "MachineProfile"):
        kind = value.get("kind") if isinstance(value, dict) else type(value).__name__
        problems.append(
            Problem(file, first, "", "$.kind", f"{kind!r}; expected Machine or MachineProfile ({API_VERSION})")
        )
        return []
    metadata = value.get("metadata")
    label = f"{value['kind']} {metadata.get('name', '?') if isinstance(metadata, dict) else '?'}"
    try:
        document = msgspec.convert(_stringify_enumerations(value), Machine | MachineProfile)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `")
        path = path.rstrip("`") or "$"
        problems.append(Problem(file, _line_of(path, lines), label, path, _in_plain_words(text)))
        return []
    return [_Parsed(document, file, lines)]


def _stringify_enumerations(value: dict[str, Any]) -> dict[str, Any]:
    """YAML reads `0: running` as a number key; JSON, and so Kubernetes, has text keys only. Take both."""
    spec = value.get("spec")
    signals = spec.get("signals") if isinstance(spec, dict) else None
    for signal in signals if isinstance(signals, list) else ():
        if isinstance(signal, dict) and isinstance(signal.get("enumeration"), dict):
            signal["enumeration"] = {str(raw): word for raw, word in signal["enumeration"].items()}
    return value


def _in_plain_words(text: str) -> str:
    text = text.replace("Object contains unknown field", "unknown field").replace(
        "Object missing required field", "missing field"
    )
    return (
        text.replace("`str`", "text")
        .replace("`int`", "a whole number")
        .replace("`float`", "a number")
        .replace("`object`", "a mapping")
    )


def _index_lines(node: Any, path: str, lines: dict[str, int], above: set[int]) -> None:
    """Fill `lines` with the line (from 1) of every path in msgspec's notation, such as `$.spec.signals[2].type`."""
    if id(node) in above:
        raise ValueError("an anchor that contains itself")
    if len(lines) > NODES_MAX:
        raise ValueError(f"more than {NODES_MAX} values in one document (aliases counted each time)")
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            lines[f"{path}.{key.value}"] = key.start_mark.line + 1
            _index_lines(child, f"{path}.{key.value}", lines, above | {id(node)})
            lines[f"{path}.{key.value}"] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _index_lines(child, f"{path}[{index}]", lines, above | {id(node)})


def _line_of(path: str, lines: dict[str, int]) -> int:
    """Return the line of a path, or of the nearest part of it that stands in the file."""
    while path not in lines:
        cut = max(path.rfind("."), path.rfind("["))
        if cut <= 0:
            return lines.get("$", 0)
        path = path[:cut]
    return lines[path]
