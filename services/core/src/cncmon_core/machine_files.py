"""Machine documents from YAML files: every fault with its file, line and path, and one bad document spoils no other."""

import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from cncmon_core import machine_faults
from cncmon_core.machine import (
    API_VERSION,
    Document,
    EdgeNode,
    Machine,
    MachineProfile,
)
from cncmon_core.machine_rules import problems_of_signals, problems_of_spec, with_profile

FILE_BYTES_MAX: Final = 16 << 20
NODES_MAX: Final = 100_000
"""Bounds what aliases of aliases expand to."""
DEPTH_MAX: Final = 64
"""Bounds nesting: PyYAML's composer recurses in C, where too deep ends the process."""
_TOO_MANY: Final = f"more than {NODES_MAX} values in one document (aliases counted each time)"

_KINDS: Final[dict[str, type[Document]]] = {kind.__name__: kind for kind in (Machine, MachineProfile, EdgeNode)}
_ANY_KIND: Final = "Machine, MachineProfile or EdgeNode"
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
        what = " ".join(part for part in (self.document, self.path.removeprefix("$").removeprefix(".")) if part)
        return f"{where}: {what + ': ' if what else ''}{self.text}"


@dataclass
class Machines:
    """What the files hold, by name: machines with their signals resolved, and what is wrong with the rest.

    Edges are checked, and nothing more is done with them: outside Kubernetes an edge is set up by its own settings.
    """

    machines: dict[str, Machine] = field(default_factory=dict)
    profiles: dict[str, MachineProfile] = field(default_factory=dict)
    edges: dict[str, EdgeNode] = field(default_factory=dict)
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
        for file in _files_of(path, found.problems):
            parsed += _parse_file(file, found.problems)
    for item in parsed:
        if isinstance(item.document, MachineProfile):
            _add(item, found.profiles, problems_of_signals(item.document.spec.signals), found.problems)
        elif isinstance(item.document, EdgeNode):
            _add(item, found.edges, [], found.problems)
    for item in parsed:
        if isinstance(item.document, Machine):
            item, faults = _with_profile(item, item.document, found.profiles)
            _add(item, found.machines, faults, found.problems)
    return found


def _files_of(path: Path, problems: list[Problem]) -> list[Path]:
    try:
        if not path.is_dir():
            return [path]
        files = sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml"))
    except OSError as error:
        problems.append(Problem(str(path), 0, "", "", f"can't be read: {error.strerror}"))
        return []
    if not files:
        problems.append(Problem(str(path), 0, "", "", "the folder holds no .yaml file"))
    return files


def _with_profile(
    item: _Parsed, machine: Machine, profiles: dict[str, MachineProfile]
) -> tuple[_Parsed, list[tuple[str, str]]]:
    """Return the machine with its profile's signals (its own in place of those of the same name), and its faults."""
    faults = problems_of_spec(machine.spec)
    if machine.spec.profile_ref is None:
        return item, faults
    name = machine.spec.profile_ref.name
    profile = profiles.get(name)
    if profile is None:
        known = ", ".join(sorted(profiles)) or "none"
        text = f"no usable MachineProfile {name!r} in these files; known: {known}"
        return item, [*faults, ("$.spec.profileRef.name", text)]
    spec = with_profile(machine.spec, profile.spec)
    return _Parsed(msgspec.structs.replace(machine, spec=spec), item.file, item.lines), faults


def _add(item: _Parsed, into: dict[str, Any], faults: list[tuple[str, str]], problems: list[Problem]) -> None:
    name = item.document.metadata.name
    if name in into:
        faults = [*faults, ("$.metadata.name", "another document of this kind has this name already")]
    problems += [item.problem(path, text) for path, text in faults]
    if not faults:
        into[name] = item.document


def _parse_file(file: Path, problems: list[Problem]) -> list[_Parsed]:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_BYTES_MAX:
            problems.append(Problem(str(file), 0, "", "", f"no regular file of at most {FILE_BYTES_MAX >> 20} MiB"))
            return []
        text = file.read_text(encoding="utf-8")
        _check_shape(text)
        nodes = list(yaml.compose_all(text, Loader=_Loader))
    except UnicodeDecodeError as error:
        said = f"no UTF-8 text: byte 0x{error.object[error.start]:02x} at position {error.start}"
        problems.append(Problem(str(file), 0, "", "", said))
        return []
    except OSError as error:
        problems.append(Problem(str(file), 0, "", "", f"can't be read: {error.strerror}"))
        return []
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        hint = " (a tab: YAML is indented by spaces)" if _begins_with_tab(text, line) else ""
        problems.append(Problem(str(file), line, "", "", f"not YAML: {error.problem}{hint}"))
        return []
    except (yaml.YAMLError, RecursionError) as error:
        problems.append(Problem(str(file), 0, "", "", f"not YAML: {_one_line(error)}"))
        return []
    return [parsed for node in nodes for parsed in _parse_node(node, str(file), problems)]


def _begins_with_tab(text: str, line: int) -> bool:
    return any(found.lstrip(" ").startswith("\t") for found in text.split("\n")[max(line - 1, 0) : line])


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())


def _fault(text: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, text, mark)


def _check_shape(text: str) -> None:
    """Refuse what composing would choke on, in one pass over the parser's events."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.DocumentStartEvent):
            nodes = 0
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.NodeEvent):
            nodes += 1
            depth += isinstance(event, yaml.CollectionStartEvent)
            if depth > DEPTH_MAX:
                raise _fault(f"nested more than {DEPTH_MAX} deep", event.start_mark)
            if nodes > NODES_MAX:
                raise _fault(_TOO_MANY, event.start_mark)


def _parse_node(node: Any, file: str, problems: list[Problem]) -> list[_Parsed]:
    if node is None:
        return []
    first = node.start_mark.line + 1
    try:
        lines = _Index(node).lines
        value = _Loader("").construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else first
        problems.append(Problem(file, line, "", "", f"not usable YAML: {error.problem}"))
        return []
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problems.append(Problem(file, first, "", "", f"not usable YAML: {error}"))
        return []
    if not isinstance(value, dict) or value.get("kind") not in list(_KINDS):
        kind = value.get("kind") if isinstance(value, dict) else type(value).__name__
        problems.append(Problem(file, first, "", "$.kind", f"{kind!r}; expected {_ANY_KIND} ({API_VERSION})"))
        return []
    metadata = value.get("metadata")
    label = f"{value['kind']} {_one_line(metadata.get('name', '?') if isinstance(metadata, dict) else '?')}"
    try:
        document = msgspec.convert(_stringify_enumerations(value), Document)
    except msgspec.ValidationError as error:
        path, text = machine_faults.of_validation(error, _KINDS[value["kind"]])
        problems.append(Problem(file, _line_of(path, lines), label, path, text))
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


class _Index:
    """The line (from 1) of every path of a document in msgspec's notation, such as `$.spec.signals[2].type`."""

    def __init__(self, node: Any) -> None:
        """Index a document.

        Raises:
            yaml.MarkedYAMLError, ValueError: it can't be indexed, and so not used.
        """
        self.lines: dict[str, int] = {}
        self._nodes = 0
        self._add(node, "$", frozenset())

    def _add(self, node: Any, path: str, above: frozenset[int]) -> None:
        if id(node) in above:
            raise ValueError("an anchor that contains itself")
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise ValueError(_TOO_MANY)
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            self._add_fields(node, path, above | {id(node)})
        elif isinstance(node, yaml.SequenceNode):
            for index, child in enumerate(node.value):
                self._add(child, f"{path}[{index}]", above | {id(node)})

    def _add_fields(self, node: Any, path: str, above: frozenset[int]) -> None:
        seen: set[str] = set()
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _fault("a field's name must be text", key.start_mark)
            if key.value in seen:
                raise _fault(f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
            self.lines[f"{path}.{key.value}"] = key.start_mark.line + 1
            self._add(child, f"{path}.{key.value}", above)


def _line_of(path: str, lines: dict[str, int]) -> int:
    """Return the line of a path, or of the nearest part of it that stands in the file."""
    while path not in lines:
        cut = max(path.rfind("."), path.rfind("["))
        if cut <= 0:
            return lines.get("$", 0)
        path = path[:cut]
    return lines[path]
