"""One edge's configuration: all its machines in one document, in KV `edge_config`, validated whole or refused whole.

`{"schema": 1, "revision": 7, "site": "hall", "edge": "e1", "machines": [Machine, ...]}`; a Machine is the one of YAML
files and Kubernetes, with its profile's signals resolved into it. Whoever writes the document counts `revision` up;
the truth is what the bucket holds, not the highest revision.
"""

import hashlib
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from cncmon_core import machine_faults
from cncmon_core.errors import EdgeConfigError
from cncmon_core.frames import MAX_PAYLOAD_RESERVE_BYTES
from cncmon_core.machine import Machine, Metadata
from cncmon_core.machine_rules import problems_of_spec
from cncmon_core.names import NAME_CHARS_MAX

SCHEMA: Final = 1

DOCUMENT_BYTES_MAX: Final = (1 << 20) - MAX_PAYLOAD_RESERVE_BYTES
"""What fits into a message of a NATS server as it comes (max_payload 1 MiB): some 650 machines of a dozen signals."""

MACHINES_MAX: Final = 1000

PROBLEMS_MAX: Final = 50
"""Of one document: they travel in a heartbeat, and nobody reads more."""


class ConfigProblem(msgspec.Struct, frozen=True):
    """Why a document is refused. machine: its name, empty where it is the document's own fault.

    path: the place in the machine (`$.spec.pollIntervalMs`) or in the document; problem: value, fault, what is allowed.
    """

    machine: str
    path: str
    problem: str

    def __str__(self) -> str:
        place = self.path.removeprefix("$").removeprefix(".")
        return " ".join(part for part in (self.machine and f"Machine {self.machine}", place) if part) + (
            f": {self.problem}" if self.machine or place else self.problem
        )


class EdgeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The document; machines in order of their names, no two of one name."""

    schema: int
    revision: int
    site: str
    edge: str
    machines: list[Machine]

    @property
    def by_name(self) -> dict[str, Machine]:
        """The machines by name."""
        return {machine.metadata.name: machine for machine in self.machines}

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of what is configured: of everything but the revision, so that it tells same from changed."""
        return hashlib.sha256(_encode([self.site, self.edge, self.machines])).hexdigest()


class _Envelope(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    schema: int
    revision: int
    site: str
    edge: str
    machines: list[msgspec.Raw]


class _Schema(msgspec.Struct):
    schema: int
    revision: Any = None


_encode = msgspec.json.Encoder(order="deterministic").encode


def make(site: str, edge: str, revision: int, machines: Iterable[Machine]) -> EdgeConfig:
    """Return the document of machines whose profiles are resolved.

    What an edge has no use for is left out: annotations (a `kubectl apply` keeps the whole resource in one), status,
    and the references to a profile and to a shift calendar.
    """
    chosen = sorted(machines, key=lambda machine: machine.metadata.name)
    return EdgeConfig(schema=SCHEMA, revision=revision, site=site, edge=edge, machines=[_bare(m) for m in chosen])


def encode(config: EdgeConfig) -> bytes:
    """Return the document's bytes; the same configuration always gives the same."""
    return _encode(config)


def _bare(machine: Machine) -> Machine:
    metadata = Metadata(name=machine.metadata.name, labels=machine.metadata.labels)
    spec = msgspec.structs.replace(machine.spec, profile_ref=None, shift_calendar_ref=None)
    return msgspec.structs.replace(machine, metadata=metadata, spec=spec, status={})


def decode(data: bytes, site: str, edge: str) -> EdgeConfig:
    """Return the configuration of an edge, all of it usable.

    Raises:
        EdgeConfigError: names every machine and field that is not, with its value and what is allowed.
    """
    envelope = _open(data)
    found: dict[str, Machine] = {}
    problems = _problems_of_envelope(envelope, site, edge)
    for index, raw in enumerate(envelope.machines[:MACHINES_MAX]):
        if len(problems) > PROBLEMS_MAX:
            break
        machine, faults = _machine(raw, index, envelope)
        if machine is not None and machine.metadata.name in found:
            fault = "another machine of this document has this name already"
            faults = [*faults, ConfigProblem(machine.metadata.name, "$.metadata.name", fault)]
        problems += faults
        if machine is not None:
            found.setdefault(machine.metadata.name, machine)
    if problems:
        more = [_of_document("and more problems")] if len(problems) > PROBLEMS_MAX else []
        raise EdgeConfigError([*problems[:PROBLEMS_MAX], *more], envelope.revision)
    return make(site, edge, envelope.revision, found.values())


def _open(data: bytes) -> _Envelope:
    """Return the document with its machines unread.

    Raises:
        EdgeConfigError: it is none, too large, or of a schema that is not ours.
    """
    if len(data) > DOCUMENT_BYTES_MAX:
        raise EdgeConfigError([_of_document(f"{len(data)} bytes; at most {DOCUMENT_BYTES_MAX}")])
    revision = None
    try:
        told = msgspec.json.decode(data, type=_Schema)
        revision = told.revision if isinstance(told.revision, int) else None
        if told.schema != SCHEMA:
            hint = ": update the agent" if told.schema > SCHEMA else ""
            raise EdgeConfigError(
                [ConfigProblem("", "$.schema", f"{told.schema}; this version reads {SCHEMA}{hint}")], revision
            )
        return msgspec.json.decode(data, type=_Envelope)
    except msgspec.ValidationError as error:
        fault = machine_faults.of_validation(error, _Envelope)
        raise EdgeConfigError([ConfigProblem("", fault.path, _with_value(fault, data))], revision) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EdgeConfigError([_of_document(f"not JSON: {error}")]) from error


def _of_document(text: str) -> ConfigProblem:
    return ConfigProblem("", "$", text)


def _problems_of_envelope(envelope: _Envelope, site: str, edge: str) -> list[ConfigProblem]:
    problems = []
    for field, value, wanted in (("site", envelope.site, site), ("edge", envelope.edge, edge)):
        if value != wanted:
            problems.append(ConfigProblem("", f"$.{field}", f"{_short(value)!r}; this {field} is {wanted!r}"))
    if envelope.revision < 1:
        problems.append(ConfigProblem("", "$.revision", f"{envelope.revision}; at least 1"))
    if len(envelope.machines) > MACHINES_MAX:
        problems.append(
            ConfigProblem("", "$.machines", f"{len(envelope.machines)} machines; at most {MACHINES_MAX} an edge")
        )
    return problems


def _machine(raw: msgspec.Raw, index: int, envelope: _Envelope) -> tuple[Machine | None, list[ConfigProblem]]:
    data = bytes(raw)
    try:
        machine = msgspec.json.decode(data, type=Machine)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        name = _name_of(data) or f"number {index + 1}"
        if not isinstance(error, msgspec.ValidationError):
            return None, [ConfigProblem(name, "$", f"not JSON: {error}")]
        fault = machine_faults.of_validation(error, Machine)
        if fault.path == "$.kind":
            fault = fault._replace(text="expected Machine")
        return None, [ConfigProblem(name, fault.path, _with_value(fault, data))]
    spec, faults = machine.spec, problems_of_spec(machine.spec)
    if spec.profile_ref is not None:
        text = f"{spec.profile_ref.name!r}; an edge has no profiles: who writes this document must resolve it"
        faults.append(("$.spec.profileRef.name", text))
    for field, value, wanted in (("site", spec.site, envelope.site), ("edge", spec.edge, envelope.edge)):
        if value != wanted:
            faults.append((f"$.spec.{field}", f"{value!r}; this document is that of {field} {_short(wanted)!r}"))
    return machine, [ConfigProblem(machine.metadata.name, path, text) for path, text in faults]


def _plain(data: bytes) -> Any:
    """Return what JSON holds, or None where it is none: a decoder that met the fault sooner did not read the rest."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _name_of(data: bytes) -> str:
    """Return what a machine that can't be used is called, so that it can be found; empty where it has no name."""
    machine = _plain(data)
    metadata = machine.get("metadata") if isinstance(machine, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return _short(name) if isinstance(name, str) else ""


def _short(text: str) -> str:
    return text if len(text) <= NAME_CHARS_MAX else f"{text[:NAME_CHARS_MAX]}…"


def _with_value(fault: machine_faults.Fault, data: bytes) -> str:
    if fault.path == "$" or "unknown field" in fault.text:
        return fault.text
    value = machine_faults.value_at(_plain(data), fault.path)
    return f"{value}: {fault.text}" if value else fault.text
