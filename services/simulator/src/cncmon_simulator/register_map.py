"""From values to registers, by a MachineProfile: the profile that the reader gets is the one the server packs by."""

import struct
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

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
    "bool": "H",
}

_Encode = Callable[[Any], tuple[Any, Read]]
"""From a value to (argument of struct.pack, what a reader gets)."""


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


class RegisterMap:
    """A contiguous block of registers that holds all signals of a profile.

    `first` is the register it starts at, `count` how many there are. Registers that no signal names are zero.
    """

    def __init__(self, signals: list[Signal]) -> None:
        self.signals = sorted(signals, key=lambda signal: (signal.register, signal.bit or 0))
        self.first = self.signals[0].register
        self.count = max(s.register + s.registers() for s in self.signals) - self.first
        self._plain: list[tuple[str, int, _Encode]] = []
        self._bits: list[tuple[str, int, int]] = []
        self._struct = self._compile()

    def _compile(self) -> struct.Struct:
        form, slots, at, slot_of = ">", 0, self.first, dict[int, int]()
        for signal in self.signals:
            if signal.bit is not None and signal.register in slot_of:
                self._bits.append((signal.name, slot_of[signal.register], signal.bit))
                continue
            if signal.register < at:
                raise ConfigError(f"signal {signal.name}: register {signal.register} belongs to another signal too")
            form += "2x" * (signal.register - at)
            at = signal.register + signal.registers()
            if signal.bit is not None:
                slot_of[signal.register] = slots
                self._bits.append((signal.name, slots, signal.bit))
                form += "H"
            else:
                self._plain.append((signal.name, slots, _encoder(signal)))
                form += _slot_format(signal)
            slots += 1
        self._empty = [0] * slots
        return struct.Struct(form)

    def encode(self, values: Mapping[str, Value]) -> tuple[bytes, dict[str, Read]]:
        """Return the registers as big-endian bytes, and what a correct reader gets from them.

        Numbers become raw = round((value - offset) / scale), kept within the type's range.
        """
        arguments: list[Any] = self._empty.copy()
        reads: dict[str, Read] = {}
        for name, slot, encode in self._plain:
            arguments[slot], reads[name] = encode(values[name])
        for name, slot, bit in self._bits:
            is_set = bool(values[name])
            arguments[slot] |= is_set << bit
            reads[name] = is_set
        return self._struct.pack(*arguments), reads

    def covers(self, name: str, address: int, count: int) -> bool:
        """Return whether a read of `count` registers from `address` holds the whole signal."""
        signal = next(s for s in self.signals if s.name == name)
        return address <= signal.register and signal.register + signal.registers() <= address + count


def patch(block: bytes, first: int, signal: Signal, raw: float) -> bytes:
    """Return the block, which starts at register `first`, with the raw number of one signal replaced."""
    at = 2 * (signal.register - first)
    packed = _words(struct.pack(f">{_FORMATS[signal.type]}", raw), signal.word_order)
    return block[:at] + packed + block[at + len(packed) :]


def read_of(signal: Signal, raw: float) -> float:
    """Return what a correct reader gets from the raw number of a signal without an enumeration."""
    form = f">{_FORMATS[signal.type]}"
    stored: float = struct.unpack(form, struct.pack(form, raw))[0]
    return stored if (signal.scale, signal.offset) == (1, 0) else stored * signal.scale + signal.offset


def _words(packed: bytes, order: str) -> bytes:
    if order == "big":
        return packed
    return b"".join(packed[i : i + 2] for i in range(len(packed) - 2, -1, -2))


def _slot_format(signal: Signal) -> str:
    registers = signal.registers()
    if signal.type == "string" or (signal.word_order == "little" and registers > 1):
        return f"{2 * registers}s"
    return _FORMATS[signal.type]


def _encoder(signal: Signal) -> _Encode:
    if signal.type == "string":
        return _text_encoder(2 * signal.length)
    if signal.enumeration is not None:
        return _word_encoder({word: int(raw) for raw, word in signal.enumeration.items()})
    if signal.type == "bool":
        return lambda value: (int(value), bool(value))
    number = _float_encoder(signal) if signal.type.startswith("float") else _integer_encoder(signal)
    if signal.word_order == "big" or signal.registers() == 1:
        return number
    pack = struct.Struct(f">{_FORMATS[signal.type]}").pack

    def encode(value: Any) -> tuple[Any, Read]:
        raw, read = number(value)
        packed = pack(raw)
        return (packed[2:] + packed[:2] if len(packed) == 4 else _words(packed, "little")), read

    return encode


def _text_encoder(bytes_max: int) -> _Encode:
    def encode(value: Any) -> tuple[Any, Read]:
        return value.encode("ascii")[:bytes_max], value[:bytes_max]

    return encode


def _word_encoder(raw_of: dict[str, int]) -> _Encode:
    return lambda value: (raw_of[value], value)


def _integer_encoder(signal: Signal) -> _Encode:
    bits = 16 * signal.registers()
    low, high = (0, (1 << bits) - 1) if signal.type.startswith("u") else (-(1 << bits - 1), (1 << bits - 1) - 1)
    scale, offset = signal.scale, signal.offset
    if scale == 1 and offset == 0:

        def encode_whole(value: Any) -> tuple[Any, Read]:
            raw = round(value)
            raw = low if raw < low else min(raw, high)
            return raw, raw

        return encode_whole

    def encode(value: Any) -> tuple[Any, Read]:
        raw = round((value - offset) / scale)
        if raw < low:
            raw = low
        elif raw > high:
            raw = high
        return raw, raw * scale + offset

    return encode


def _float_encoder(signal: Signal) -> _Encode:
    form = struct.Struct(f">{_FORMATS[signal.type]}")
    pack, unpack = form.pack, form.unpack
    scale, offset = signal.scale, signal.offset

    def encode(value: Any) -> tuple[Any, Read]:
        raw = (value - offset) / scale
        return raw, unpack(pack(raw))[0] * scale + offset

    return encode
