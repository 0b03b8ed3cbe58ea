import math

import pytest

from cncmon_core.errors import ConfigError
from cncmon_core.machine import SAMPLE_SIGNALS, Signal
from cncmon_simulator.register_map import RegisterMap, load_profile, patch, read_of

EXTRAS = {"poll_counter", "alarm_code", "parts_planned", "tool_wear_percent", "door_open", "feed_override_percent"}


def registers_of(block: bytes) -> list[int]:
    return [int.from_bytes(block[i : i + 2], "big") for i in range(0, len(block), 2)]


def test_the_profile_has_every_field_in_one_block_of_one_read() -> None:
    profile = load_profile()
    assert {signal.name for signal in profile.spec.signals} == SAMPLE_SIGNALS | EXTRAS
    registers = RegisterMap(profile.spec.signals)
    assert registers.count <= 125
    used = {r for s in profile.spec.signals for r in range(s.register, s.register + s.registers())}
    assert used == set(range(registers.first, registers.first + registers.count))


def test_the_profile_has_every_kind_of_signal() -> None:
    signals = load_profile().spec.signals
    assert {s.type for s in signals} >= {"int16", "uint16", "int32", "uint32", "float32", "float64", "string"}
    assert {s.word_order for s in signals if s.registers() == 2} == {"big", "little"}
    assert any(s.bit is not None for s in signals)
    assert any(s.offset for s in signals)
    assert {word for s in signals if s.name == "machine_state" for word in (s.enumeration or {}).values()} == {
        "running",
        "idle",
        "hold",
        "alarm",
    }


VALUES = {
    "int16": -12345,
    "uint16": 54321,
    "int32": -1_234_567_890,
    "uint32": 4_000_000_000,
    "int64": -1_234_567_890_123_456_789,
    "uint64": 18_000_000_000_000_000_000,
    "float32": 0.1,
    "float64": math.pi,
}


@pytest.mark.parametrize("order", ["big", "little"])
@pytest.mark.parametrize("kind", VALUES)
def test_every_type_in_both_word_orders(kind: str, order: str, decode) -> None:
    signals = [
        Signal(name="before", register=7, type="uint16"),
        Signal(name="it", register=9, type=kind, word_order=order),  # type: ignore[arg-type]
    ]
    registers = RegisterMap(signals)
    block, reads = registers.encode({"before": 1, "it": VALUES[kind]})
    assert (registers.first, registers.count, len(block)) == (7, 2 + signals[1].registers(), 2 * registers.count)
    assert decode(signals, 7, registers_of(block)) == reads
    assert reads["it"] == pytest.approx(VALUES[kind], rel=1e-7)


def test_scale_and_offset_round_and_stay_in_range(decode) -> None:
    signals = [Signal(name="it", register=0, type="int16", scale=0.1, offset=-40.0)]
    registers = RegisterMap(signals)
    for value, raw in ((20.04, 600), (-50.0, -100), (1e9, 32767), (-1e9, -32768)):
        block, reads = registers.encode({"it": value})
        assert int.from_bytes(block, "big", signed=True) == raw
        assert reads == {"it": raw / 10 - 40.0} == decode(signals, 0, registers_of(block))


def test_bits_share_a_register() -> None:
    signals = [Signal(name=f"bit{bit}", register=3, bit=bit) for bit in (0, 3, 15)]
    block, reads = RegisterMap(signals).encode({"bit0": True, "bit3": False, "bit15": True})
    assert block == bytes([0x80, 0x01])
    assert reads == {"bit0": True, "bit3": False, "bit15": True}


def test_text_is_cut_and_padded() -> None:
    signals = [Signal(name="it", register=0, type="string", length=2)]
    assert RegisterMap(signals).encode({"it": "O1"}) == (b"O1\0\0", {"it": "O1"})
    assert RegisterMap(signals).encode({"it": "O1234"}) == (b"O123", {"it": "O123"})


def test_two_signals_of_one_register_are_refused() -> None:
    with pytest.raises(ConfigError, match="signal b: register 1 belongs to another"):
        RegisterMap([Signal(name="a", register=0, type="int32"), Signal(name="b", register=1)])


def test_patch_replaces_one_signal() -> None:
    signal = Signal(name="it", register=11, type="uint32", word_order="little")
    assert patch(b"\1" * 8, 10, signal, 0xAABBCCDD) == b"\1\1\xcc\xdd\xaa\xbb\1\1"
    assert read_of(signal, 5) == 5
