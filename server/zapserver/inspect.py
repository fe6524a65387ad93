"""`zaptasks inspect`: frames for eyes and programs, from a file or live between two peers.

Everything printed comes from a peer, so nothing is printed raw: a control character in a body must not
reach the terminal.
"""

from __future__ import annotations

import base64
import datetime
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec
import trio

from zapserver.captures import BadLine, read_capture
from zapserver.dissect import Dissector, Frame, Kind
from zapserver.printable import printable
from zapserver.settings import Address
from zapwire.errors import BadBody
from zapwire.message import MAGIC

BODY_CHARACTERS_SHOWN: Final = 160
"""What a line shows of a body, unless everything is asked for."""
NAME_CHARACTERS_SHOWN: Final = 60
"""The same for a token, a name or a spec."""

CONNECT_SECONDS_MAX: Final = 10.0
READ_BYTES_MAX: Final = 64 * 1024

_BARE_STARTS: Final = (0, 8)
"""Where the magic stands in a message, and in a call, that was captured without its length prefix."""

Show = Callable[[Frame], None]


def dissect_capture(data: bytes) -> Iterator[Frame | BadLine]:
    """Every frame of a captured file, and every line of it that cannot be read, in order."""
    connections: dict[int, Dissector] = {}
    for item in read_capture(data):
        if isinstance(item, BadLine):
            yield item
            continue
        dissector = connections.setdefault(item.conn, Dissector(item.conn))
        if not item.direction and _is_bare(item.data):
            yield dissector.message(item.direction, item.data)
        else:
            yield from dissector.feed(item.direction, item.data)
    for dissector in connections.values():
        yield from dissector.finish()


def _is_bare(data: bytes) -> bool:
    """Whether these bytes are a message itself. As a length prefix, its magic would mean 5,259,610 bytes."""
    return any(data[at : at + 6] == MAGIC + b"\x01\x00" for at in _BARE_STARTS)


# --- as text ------------------------------------------------------------------------------------------


def text_lines(item: Frame | BadLine, *, verbose: bool = False) -> Iterator[str]:
    """One line for a frame, one for its damage, and with `verbose` one for each field."""
    if isinstance(item, BadLine):
        yield f"! line {item.line}: {printable(item.reason)}"
        return
    direction = item.direction or "---"
    yield f"{item.offset:>8}  {item.conn:>2} {direction} {_title(item)}  {_summary(item, verbose)}".rstrip()
    if verbose:
        for row in item.rows:
            note = f"  ({row.note})" if row.note else ""
            yield f"{row.offset:>16}  {row.size:>3}  {row.name:<15} {printable(row.value)}{note}"
    if item.damage is not None:
        yield f"       ! offset {item.damage.offset}: {printable(item.damage.reason)}"


def _title(frame: Frame) -> str:
    """Request id, kind, status and opcode, in columns."""
    number = "" if frame.request_id is None else f"#{frame.request_id}"
    status = frame.status if frame.kind is Kind.RESPONSE and frame.status is not None else ""
    opcode = f"0x{frame.opcode:02X} {frame.name or 'unknown'}" if frame.opcode else ""
    if frame.kind is Kind.RESPONSE and not frame.opcode:
        opcode = "to an unseen call"
    return f"{number:>6} {frame.kind.value:<9} {status:>3} {opcode:<28}"


def _summary(frame: Frame, verbose: bool) -> str:
    if frame.kind is Kind.BROKEN:
        return f"{len(frame.data)} bytes"
    parts = [f"{name}={_shown(value, NAME_CHARACTERS_SHOWN, verbose)}" for name, value in frame.texts]
    if frame.error:
        parts.append(f"error={printable(frame.error)}")
    if frame.body:
        parts.append(_shown(body_text(frame), BODY_CHARACTERS_SHOWN, verbose))
    return " ".join(parts)


def _shown(text: str, most: int, verbose: bool) -> str:
    text = printable(text)
    return text if verbose or len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def body_text(frame: Frame) -> str:
    """The body on one line: JSON as it came, CBOR as JSON, anything else as digits."""
    if frame.is_cbor:
        try:
            return printable(msgspec.json.encode(frame.value).decode())
        except (BadBody, msgspec.MsgspecError):
            return f"cbor {frame.body.hex()}"
    try:
        text = frame.body.decode()
    except UnicodeDecodeError:
        return f"hex {frame.body.hex()}"
    return printable(text)


# --- as JSON ------------------------------------------------------------------------------------------


def json_line(item: Frame | BadLine, number: int, *, verbose: bool = False) -> str:
    """One JSON object. Those of frames have the keys of a recording, so that they can be inspected again."""
    return msgspec.json.encode(_document(item, number, verbose), enc_hook=_plain).decode()


def _document(item: Frame | BadLine, number: int, verbose: bool) -> dict[str, Any]:
    if isinstance(item, BadLine):
        return {"n": number, "hex": "", "problem": {"line": item.line, "reason": item.reason}}
    document: dict[str, Any] = {
        "n": number,
        "conn": item.conn,
        "dir": item.direction,
        "offset": item.offset,
        "kind": item.kind.value,
    }
    if item.request_id is not None:
        document["request_id"] = item.request_id
    if item.opcode:
        document["opcode"] = item.opcode
        document["name"] = item.name or None
    if item.status is not None:
        document["status"] = item.status
    if item.error:
        document["error"] = item.error
    document.update(item.texts)
    if item.body:
        try:
            document["body"] = item.value
        except BadBody:
            document["body_hex"] = item.body.hex()
    if item.damage is not None:
        document["problem"] = {"offset": item.damage.offset, "reason": item.damage.reason}
    if verbose:
        document["fields"] = [
            {"offset": row.offset, "size": row.size, "name": row.name, "value": row.value} for row in item.rows
        ]
    document["hex"] = item.data.hex()
    return document


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    raise NotImplementedError(type(value).__name__)


# --- live ---------------------------------------------------------------------------------------------


async def run_proxy(
    listen: Address,
    to: Address,
    show: Show,
    tell: Callable[[str], None],
    *,
    task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Pass every connection on to `to` and show what goes by, until canceled.

    Bytes are passed on before they are looked at, and unchanged: a stream that cannot be read still
    reaches its peer. Raises OSError when `listen` cannot be had; a peer that cannot be reached is told.
    """
    listeners = await trio.open_tcp_listeners(listen.port, host=listen.host)
    host, port = listeners[0].socket.getsockname()[:2]
    bound = Address(host, port)
    tell(f"listening on {bound}, passing on to {to}")
    task_status.started(bound)
    last_conn = 0

    async def serve(client: trio.SocketStream) -> None:
        nonlocal last_conn
        last_conn += 1
        conn = last_conn
        try:
            with trio.fail_after(CONNECT_SECONDS_MAX):
                server = await trio.open_tcp_stream(to.host, to.port)
        except (OSError, trio.TooSlowError) as error:
            tell(f"connection {conn}: {to} cannot be reached: {error or 'no answer in time'}")
            await client.aclose()
            return
        tell(f"connection {conn} opened")
        await _relay(Dissector(conn), client, server, show)
        tell(f"connection {conn} closed")

    await trio.serve_listeners(serve, listeners)


async def _relay(dissector: Dissector, client: trio.SocketStream, server: trio.SocketStream, show: Show) -> None:
    async with client, server, trio.open_nursery() as nursery:

        async def pump(direction: str, source: trio.SocketStream, sink: trio.SocketStream) -> None:
            try:
                while data := await source.receive_some(READ_BYTES_MAX):
                    await sink.send_all(data)
                    _show_all(dissector.feed(direction, bytes(data)), show)
                await sink.send_eof()
            except trio.BrokenResourceError:
                nursery.cancel_scope.cancel()  # one side is gone: so is the other

        nursery.start_soon(pump, "c2s", client, server)
        nursery.start_soon(pump, "s2c", server, client)
    _show_all(dissector.finish(), show)


def _show_all(frames: Iterable[Frame], show: Show) -> None:
    for frame in frames:
        show(frame)
