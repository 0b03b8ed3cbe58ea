"""The generated definitions: kept as generated, and saying of every field what the structs say."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
import yaml
from msgspec import Meta, inspect

from cncmon_core.machine import EdgeNodeSpec, MachineProfileSpec, MachineSpec
from cncmon_core.resource_status import EdgeNodeStatus, MachineProfileStatus, MachineStatus
from cncmon_operator.crds import schema
from cncmon_operator.crds.__main__ import files

FILES = Path(__file__).parents[3] / "charts/cnc-monitor/files"

STRUCTS = {
    "machines": (MachineSpec, MachineStatus),
    "machineprofiles": (MachineProfileSpec, MachineProfileStatus),
    "edgenodes": (EdgeNodeSpec, EdgeNodeStatus),
}


def kept(plural: str) -> dict[str, Any]:
    """Return the schema of a resource, from the file that a chart installs."""
    definition = yaml.safe_load((FILES / "crds" / f"{plural}.yaml").read_text())
    (version,) = definition["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]
    return found


def test_the_files_are_what_the_code_gives() -> None:
    there = {str(path.relative_to(FILES)): path.read_text() for path in FILES.rglob("*.yaml")}
    assert there == files(), "run scripts/generate.sh"


@pytest.mark.parametrize(
    ("plural", "part"), [(plural, part) for plural in STRUCTS for part in ("spec", "status")], ids=str
)
def test_field_by_field_they_say_the_same(plural: str, part: str) -> None:
    struct = STRUCTS[plural][("spec", "status").index(part)]
    compare(part, kept(plural)[part], inspect.type_info(struct), defaults=part == "spec")


def compare(path: str, said: dict[str, Any], kind: Any, *, defaults: bool) -> None:
    """Compare a schema with msgspec's own description of a type, which the generator does not use."""
    while isinstance(kind, inspect.Metadata | inspect.UnionType):
        inner = kind.type if isinstance(kind, inspect.Metadata) else kind.types[0]
        kind = inner
    match kind:
        case inspect.StructType():
            assert said["type"] == "object", path
            assert sorted(said["properties"]) == sorted(field.encode_name for field in kind.fields), path
            required = [f.encode_name for f in kind.fields if f.required]
            assert sorted(said.get("required", [])) == sorted(required), path
            for field in kind.fields:
                below = said["properties"][field.encode_name]
                assert below["description"], f"{path}.{field.encode_name}"
                none = not defaults or field.default in (msgspec.NODEFAULT, msgspec.UNSET, "")
                default = None if none else field.default
                assert below.get("default") == default, f"{path}.{field.encode_name}"
                compare(f"{path}.{field.encode_name}", below, field.type, defaults=defaults)
        case inspect.ListType():
            assert (said["type"], said["maxItems"], said.get("minItems")) == ("array", kind.max_length, kind.min_length)
            compare(f"{path}[]", said["items"], kind.item_type, defaults=defaults)
        case inspect.DictType():
            assert (said["type"], said["maxProperties"], said["minProperties"]) == (
                "object", kind.max_length, kind.min_length
            )  # fmt: skip
            compare(f"{path}{{}}", said["additionalProperties"], kind.value_type, defaults=defaults)
        case inspect.LiteralType():
            assert (said["type"], said["enum"]) == ("string", sorted(kind.values)), path
        case inspect.StrType():
            found = said["type"], said["maxLength"], said.get("minLength"), said.get("pattern")
            assert found == ("string", kind.max_length, kind.min_length, kind.pattern), path
        case inspect.IntType() | inspect.FloatType():
            assert said["type"] == ("integer" if isinstance(kind, inspect.IntType) else "number"), path
            lowest = kind.ge if kind.gt is None else kind.gt
            assert (said.get("minimum"), said.get("maximum")) == (lowest, kind.le), path
            assert said.get("exclusiveMinimum", False) == (kind.gt is not None), path
        case inspect.DateTimeType():
            assert (said["type"], said["format"]) == ("string", "date-time"), path
        case _:
            raise AssertionError(f"{path}: nothing is known of {kind}")


class Silent(msgspec.Struct):
    field: Annotated[int, Meta(ge=0)] = 0


class Endless(msgspec.Struct):
    text: Annotated[str, Meta(description="As long as you like.")] = ""


class EndlessList(msgspec.Struct):
    numbers: Annotated[list[int], Meta(description="As many as you like.")] = []


@pytest.mark.parametrize(
    ("struct", "said"),
    [
        (Silent, "Silent.field has no description"),
        (Endless, r"Endless.text has no bound \(maxLength\)"),
        (EndlessList, r"EndlessList.numbers has no bound \(maxItems\)"),
    ],
)
def test_a_field_that_no_cluster_should_have_is_refused(struct: type[msgspec.Struct], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        schema.of(struct)
