"""From values to registers, by a MachineProfile: the profile that the reader gets is the one the server packs by."""

import struct
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple

from cncmon_core import machine_files
from cncmon_core.errors import ConfigError
from cncmon_core.machine import MachineProfile, Signal

PROFILE_NAME: Final = "simulated"
COUNTER: Final = "poll_counter"

Value = float | int | str | bool
Read = float | int | str | bool | None
"""What a correct reader gets; None where the registers hold no usable value."""

_FORMATS: Final = {
    "int16": "h",
    "uint16": "H",
    "int32": "i",
    "uint32": "I",
    "int64": "q",
    "uint64": "Q",
    "float32": "f",
    "float64": "d",
}


def load_profile() -> MachineProfile:
    """Return the profile of the simulated machines, which is part of this package.

    Raises:
        ConfigError: the file was damaged.
    """
    path = Path(str(files("cncmon_simulator") / "profiles" / f"{PROFILE_NAME}.yaml"))
    found = machine_files.load([path])
    if found.problems:
        raise ConfigError("; ".join(map(str, found.problems)))
    return found.profiles[PROFILE_NAME]


class _Whole(NamedTuple):
    """A whole-number signal with scale and offset."""

    name: str
    slot: int
    scale: float
    divisor: int
    offset: float
    low: int
    high: int


class _Swapped(NamedTuple):
    """A slot of several registers, low word first: packed by itself, then turned round."""

    slot: int
    form: struct.Struct


class RegisterMap:
    """A contiguous block of registers that holds all signals of a profile.

    `first` is the register it starts at, `count` how many there are. Registers that no signal names are zero. Encoding
    is on the path of every poll: the signals are sorted by kind once, so that a poll is a few tight loops.
    """

    def __init__(self, signals: list[Signal]) -> None:
        """Compile the map.

        Raises:
            ConfigError: two signals claim a register.
        """
        self.signals = sorted(signals, key=lambda signal: (signal.register, signal.bit or 0))
        self.first = self.signals[0].register
        self.count = max(s.register + s.registers() for s in self.signals) - self.first
        self._counts: list[tuple[str, int, int, int]] = []
        self._wholes: list[_Whole] = []
        self._floats: list[tuple[str, int, float, int, float, struct.Struct]] = []
        self._words: list[tuple[str, int, dict[str, int]]] = []
        self._texts: list[tuple[str, int, int]] = []
        self._bits: list[tuple[str, int, int]] = []
        self._swapped: list[_Swapped] = []
        self._form, self._empty = self._compile()

    def _compile(self) -> tuple[struct.Struct, list[Any]]:
        form, slots, at = ">", 0, self.first
        slot_of_bits: dict[int, int] = {}
        for signal in self.signals:
            if signal.bit is not None and signal.register in slot_of_bits:
                self._bits.append((signal.name, slot_of_bits[signal.register], signal.bit))
                continue
            if signal.register < at:
                raise ConfigError(f"signal {signal.name}: register {signal.register} belongs to another signal too")
            form += "2x" * (signal.register - at)
            at = signal.register + signal.registers()
            if signal.bit is not None or signal.type == "bool":
                slot_of_bits[signal.register] = slots
                self._bits.append((signal.name, slots, signal.bit or 0))
                form += "H"
            else:
                self._sort_in(signal, slots)
                form += self._slot_format(signal, slots)
            slots += 1
        return struct.Struct(form), [0] * slots

    def _sort_in(self, signal: Signal, slot: int) -> None:
        if signal.type == "string":
            self._texts.append((signal.name, slot, 2 * signal.length))
        elif signal.enumeration is not None:
            self._words.append((signal.name, slot, {word: int(raw) for raw, word in signal.enumeration.items()}))
        elif signal.type.startswith("float"):
            form = struct.Struct(f">{_FORMATS[signal.type]}")
            self._floats.append((signal.name, slot, signal.scale, _divisor(signal.scale), signal.offset, form))
        elif (signal.scale, signal.offset) == (1, 0):
            self._counts.append((signal.name, slot, *_limits(signal)))
        else:
            divisor = _divisor(signal.scale)
            self._wholes.append(_Whole(signal.name, slot, signal.scale, divisor, signal.offset, *_limits(signal)))

    def _slot_format(self, signal: Signal, slot: int) -> str:
        if signal.type == "string":
            return f"{2 * signal.length}s"
        if signal.word_order == "big" or signal.registers() == 1:
            return _FORMATS[signal.type]
        self._swapped.append(_Swapped(slot, struct.Struct(f">{_FORMATS[signal.type]}")))
        return f"{2 * signal.registers()}s"

    def encode(self, values: Mapping[str, Value]) -> tuple[bytes, dict[str, Read]]:
        """Return the registers as big-endian bytes, and what a correct reader gets from them.

        Numbers become raw = round((value - offset) / scale), kept within the type's range. A whole-number type without
        scale and offset takes whole numbers only.

        Raises:
            KeyError: a signal has no value, or an enumeration no such word.
        """
        at: Any = values
        slots = self._empty.copy()
        reads: dict[str, Read] = {}
        for name, slot, low, high in self._counts:
            raw = at[name]
            slots[slot] = reads[name] = raw if low <= raw <= high else (low if raw < low else high)
        for name, slot, scale, divisor, offset, low, high in self._wholes:
            raw = round((at[name] - offset) / scale)
            if raw < low or raw > high:
                raw = low if raw < low else high
            slots[slot] = raw
            reads[name] = (raw / divisor if divisor else raw * scale) + offset
        for name, slot, scale, divisor, offset, form in self._floats:
            raw = (at[name] - offset) / scale
            slots[slot] = raw
            raw = form.unpack(form.pack(raw))[0]
            reads[name] = (raw / divisor if divisor else raw * scale) + offset
        for name, slot, raw_of in self._words:
            word = at[name]
            slots[slot] = raw_of[word]
            reads[name] = word
        for name, slot, bytes_max in self._texts:
            reads[name] = text = at[name][:bytes_max]
            slots[slot] = text.encode("ascii")
        for name, slot, bit in self._bits:
            reads[name] = is_set = bool(at[name])
            slots[slot] |= is_set << bit
        for slot, form in self._swapped:
            slots[slot] = swap(form.pack(slots[slot]))
        return self._form.pack(*slots), reads


def swap(packed: bytes) -> bytes:
    """Return 2, 4 or 8 bytes with their 16-bit words in the opposite order."""
    if len(packed) == 4:
        return packed[2:] + packed[:2]
    return b"".join(packed[i : i + 2] for i in range(len(packed) - 2, -1, -2))


def patch(block: bytes, first: int, signal: Signal, raw: float) -> bytes:
    """Return the block, which starts at register `first`, with the raw number of one signal replaced."""
    at = 2 * (signal.register - first)
    packed = struct.pack(f">{_FORMATS[signal.type]}", raw)
    if signal.word_order == "little":
        packed = swap(packed)
    return block[:at] + packed + block[at + len(packed) :]


def read_of(signal: Signal, raw: float) -> float:
    """Return what a correct reader gets from the raw number of a signal without an enumeration."""
    form = f">{_FORMATS[signal.type]}"
    stored: float = struct.unpack(form, struct.pack(form, raw))[0]
    if (signal.scale, signal.offset) == (1, 0):
        return stored
    divisor = _divisor(signal.scale)
    return (stored / divisor if divisor else stored * signal.scale) + signal.offset


def _divisor(scale: float) -> int:
    """Return the whole number that a scale such as 0.001 is one part of, else 0.

    A correct reader divides by it: 253 / 10 is the float nearest to 25.3, 253 * 0.1 is its neighbour.
    """
    divisor = round(1 / scale) if scale and abs(scale) < 1 else 0
    return divisor if divisor and 1 / divisor == scale else 0


def _limits(signal: Signal) -> tuple[int, int]:
    bits = 16 * signal.registers()
    return (0, (1 << bits) - 1) if signal.type.startswith("u") else (-(1 << bits - 1), (1 << bits - 1) - 1)
