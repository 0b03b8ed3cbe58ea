"""The driver's README and sample say what the code does."""

from pathlib import Path

import msgspec
from msgspec import inspect

from cncmon_agent.drivers.modbus import driver, plan
from cncmon_agent.drivers.modbus.driver import ModbusDriver
from cncmon_core import machine_files
from cncmon_core.machine import ModbusConnection, Signal

FOLDER = Path(driver.__file__).parent
README = (FOLDER / "README.md").read_text()


def rows(struct: type[msgspec.Struct]) -> list[str]:
    """Return the README's table rows of a document's fields: name on the wire, default, description."""
    made = []
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    for field in info.fields:
        kinds = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
        said = next(k.extra_json_schema["description"] for k in kinds if isinstance(k, inspect.Metadata))
        default = "" if field.required or field.default is None else f" `{field.default}`"
        made.append(f"| `{field.encode_name}` |{default} | {said} |")
    return made


def test_the_readme_names_every_field() -> None:
    for struct in (ModbusConnection, Signal):
        for row in rows(struct):
            assert row in README


def test_the_readme_names_every_type_and_limit() -> None:
    types = inspect.type_info(Signal)
    assert isinstance(types, inspect.StructType)
    kind = next(f.type for f in types.fields if f.name == "type")
    assert isinstance(kind, inspect.Metadata)
    assert isinstance(kind.type, inspect.LiteralType)
    listed = README.split("\nTypes: ")[1].split(".")[0].split(", ")
    assert set(listed) == set(kind.type.values)
    assert f"{plan.BITS_MAX:,} bits" in README
    assert f"every {driver.RETRY_REFUSED_S:g} s" in README


def test_the_sample_machine_can_be_used() -> None:
    found = machine_files.load([FOLDER / "machine.yaml"])
    assert found.problems == []
    machine = found.machines["lathe-07"]
    # Holding 100 to 120, input, coil, discrete.
    assert ModbusDriver(machine).requests == 4
    assert {signal.table for signal in machine.spec.signals} == {"holding", "input", "coil", "discrete"}
    assert {signal.word_order for signal in machine.spec.signals} == {"big", "little"}
