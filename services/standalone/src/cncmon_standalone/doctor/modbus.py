"""The least that shows whether a Modbus TCP device answers: one read of one register or coil.

MODBUS Messaging on TCP/IP Implementation Guide V1.0b, section 3.1.3 (MBAP header); MODBUS Application Protocol V1.1b3,
sections 6.1 to 6.4 (reads) and 7 (exceptions).
"""

import asyncio
import struct

from cncmon_core.machine import ModbusConnection, Signal

_FUNCTIONS = {"coil": 1, "discrete": 2, "holding": 3, "input": 4}
_EXCEPTIONS = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "device failure",
    5: "acknowledge",
    6: "device busy",
    10: "gateway path unavailable",
    11: "gateway target does not respond",
}
_TRANSACTION = 0x434E
_ERROR_BIT = 0x80


class NoAnswerError(Exception):
    """The device can't be reached or doesn't speak Modbus; the text says which."""


async def ask(connection: ModbusConnection, signal: Signal) -> str | None:
    """Read the first register of a signal; return None, or the exception that the device answers.

    Raises:
        NoAnswerError
    """
    timeout_s = connection.timeout_ms / 1000
    place = f"{connection.host}:{connection.port}"
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(connection.host, connection.port)
    except TimeoutError as error:
        raise NoAnswerError(f"{place} does not take the connection within {timeout_s:g} s") from error
    except OSError as error:
        raise NoAnswerError(f"{place} can't be reached: {error.strerror or error}") from error
    try:
        function = _FUNCTIONS[signal.table]
        pdu = struct.pack(">BHH", function, signal.register, 1)
        writer.write(struct.pack(">HHHB", _TRANSACTION, 0, len(pdu) + 1, connection.unit_id) + pdu)
        async with asyncio.timeout(timeout_s):
            header = await reader.readexactly(9)
    except TimeoutError as error:
        raise NoAnswerError(f"{place} takes the connection, and does not answer within {timeout_s:g} s") from error
    except (OSError, asyncio.IncompleteReadError) as error:
        raise NoAnswerError(f"{place} closes the connection instead of answering") from error
    finally:
        writer.close()
    transaction, protocol, _, _, answered, code = struct.unpack(">HHHBBB", header)
    if protocol != 0 or transaction != _TRANSACTION or answered & ~_ERROR_BIT != function:
        raise NoAnswerError(f"{place} answers, but not in Modbus")
    if answered & _ERROR_BIT:
        return f"exception {code} ({_EXCEPTIONS.get(code, 'unknown')}) for register {signal.register}"
    return None
