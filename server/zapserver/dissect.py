"""Taking a byte stream apart for eyes: frames, opcodes, fields and bodies. Pure: bytes in, frames out.

A connection would refuse what is damaged. Here everything is shown, with the place and the reason of each
damage, and what follows is read as far as it can be: a bad message costs only itself, since frames are
counted by their prefixes; a bad prefix costs the rest of its direction.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from zapwire import layouts
from zapwire.body import decode_cbor, decode_json
from zapwire.envelope import FLAG_CBOR
from zapwire.errors import BadBody, BadHandshake, BadMessage
from zapwire.frame import (
    CORRELATION_BYTES,
    FRAME_BYTES_MAX,
    KIND_REQUEST,
    KIND_RESPONSE,
    PREFIX_BYTES,
    split_call,
)
from zapwire.handshake import decode_hello
from zapwire.layouts import ObjectLayout
from zapwire.message import HEADER_BYTES, MAGIC, Message, Object, parse
from zapwire.opcodes import Layout, by_number

CALLS_REMEMBERED_MAX: Final = 65_536
"""Requests whose answers may still come; past it the oldest is forgotten, and its answer shown without a name."""

_PREFIX: Final = struct.Struct("<I")
_HELLO_START: Final = MAGIC + b"\x01\x00\x00\x00"
"""Magic, version 1 and flags 0: what a call header of kind 1 would look like too, were it not for what follows."""

_LAYOUTS: Final = {
    Layout.ENVELOPE: layouts.ENVELOPE,
    Layout.RESPOND: layouts.RESPOND,
    Layout.SUBMIT: layouts.SUBMIT,
    Layout.SCHEDULE: layouts.SCHEDULE,
}
_PAYLOAD_FIELDS: Final = ("body", "payload")
_OPPOSITE: Final = {"c2s": "s2c", "s2c": "c2s"}


class Kind(enum.StrEnum):
    """What a frame is."""

    HANDSHAKE = "handshake"
    REQUEST = "request"
    RESPONSE = "response"
    ONE_WAY = "one-way"
    EMPTY = "empty"  # a frame of no bytes, which every peer ignores
    BROKEN = "broken"  # bytes that are no frame


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong, and where: a byte offset in the stream of this direction."""

    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class Row:
    """A field as it lies in the stream. `offset` is its first byte, `size` what it takes in place."""

    offset: int
    size: int
    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, or the bytes where one should have been.

    `texts` are the named values beside the body: `node_id`, `token`, `task_type`, `interval`, `cron`, `options`.
    """

    conn: int
    direction: str
    offset: int
    data: bytes
    kind: Kind
    request_id: int | None = None
    opcode: int = 0
    name: str = ""
    status: int | None = None
    error: str = ""
    body: bytes = b""
    is_cbor: bool = False
    texts: tuple[tuple[str, str], ...] = ()
    rows: tuple[Row, ...] = ()
    damage: Damage | None = None

    @property
    def value(self) -> Any:
        """The body decoded. Raises `BadBody`."""
        return decode_cbor(self.body) if self.is_cbor else decode_json(self.body)


class Dissector:
    """Reads one connection: both directions, or one stream of which nobody knows the direction ("")."""

    def __init__(self, conn: int = 1) -> None:
        self._conn = conn
        self._streams: dict[str, _Stream] = {}
        self._asked: dict[tuple[str, int], int] = {}

    def feed(self, direction: str, data: bytes) -> Iterator[Frame]:
        """The frames that these bytes complete, in order."""
        stream = self._streams.setdefault(direction, _Stream())
        for offset, piece, reason in stream.feed(data):
            if reason:
                yield Frame(self._conn, direction, offset, piece, Kind.BROKEN, damage=Damage(offset, reason))
            else:
                yield self._frame(direction, offset, piece, PREFIX_BYTES)

    def message(self, direction: str, data: bytes) -> Frame:
        """A single message, or a call header and a message, without the frame around it."""
        return self._frame(direction, 0, data, 0)

    def finish(self) -> Iterator[Frame]:
        """What is left when the bytes end: a torn frame in either direction."""
        for direction, stream in self._streams.items():
            if stream.pending:
                reason = f"the stream ends inside a frame: {len(stream.pending)} bytes of {stream.wanted}"
                damage = Damage(stream.offset, reason)
                yield Frame(self._conn, direction, stream.offset, bytes(stream.pending), Kind.BROKEN, damage=damage)

    def _frame(self, direction: str, offset: int, data: bytes, prefix: int) -> Frame:
        payload = data[prefix:]
        at = offset + prefix
        if not payload:
            return Frame(self._conn, direction, offset, data, Kind.EMPTY)
        if payload.startswith(_HELLO_START) and payload[8:12] != MAGIC:
            return self._handshake(direction, offset, data, at, payload)
        kind, request_id, message = split_call(payload)
        head = at + len(payload) - len(message)
        shown_kind = {KIND_REQUEST: Kind.REQUEST, KIND_RESPONSE: Kind.RESPONSE}.get(kind, Kind.ONE_WAY)
        shown_id = request_id if kind else None
        rows = [*_prefix_rows(offset, prefix, len(payload)), *_correlation_rows(at, kind, request_id)]
        try:
            parsed = parse(message)
        except BadMessage as error:
            opcode = self._asked_opcode(direction, request_id) if kind == KIND_RESPONSE else 0
            name = _name(opcode)
            damage = Damage(head, str(error))
            return Frame(
                self._conn, direction, offset, data, shown_kind, shown_id, opcode, name, rows=tuple(rows), damage=damage
            )
        opcode = parsed.opcode
        if kind == KIND_REQUEST:
            self._remember(direction, request_id, opcode)
        elif kind == KIND_RESPONSE:
            opcode = self._asked_opcode(direction, request_id)
        layout = _layout(opcode, is_answer=kind == KIND_RESPONSE)
        fields = _Fields(parsed, head, layout)
        is_cbor = bool(parsed.flags & FLAG_CBOR)
        return Frame(
            conn=self._conn,
            direction=direction,
            offset=offset,
            data=data,
            kind=shown_kind,
            request_id=shown_id,
            opcode=opcode,
            name=_name(opcode),
            status=fields.number("status"),
            error=fields.text("error"),
            body=fields.body,
            is_cbor=is_cbor,
            texts=fields.texts(),
            rows=(*rows, *_header_rows(parsed, head, message), *fields.rows()),
            damage=_damage(parsed, fields, is_cbor, kind, head),
        )

    def _handshake(self, direction: str, offset: int, data: bytes, at: int, payload: bytes) -> Frame:
        """A hello; one that a peer would refuse is shown with the reason."""
        rows = list(_prefix_rows(offset, at - offset, len(payload)))
        damage = None
        texts: list[tuple[str, str]] = []
        try:
            hello = decode_hello(payload)
            texts.append(("node_id", hello.node_id))
            if hello.capabilities:
                texts.append(("capabilities", "|".join(item.name or "?" for item in hello.capabilities)))
            texts += [(str(key), str(value)) for key, value in hello.details.items()]
        except BadHandshake as error:
            damage = Damage(at, str(error))
        try:
            parsed = parse(payload)
            layout = layouts.HELLO if parsed.root().uint32(layouts.HELLO_V1.size) else layouts.HELLO_V1
            rows += [*_header_rows(parsed, at, payload), *_Fields(parsed, at, layout).rows()]
        except BadMessage:
            pass  # decode_hello has said so
        return Frame(
            self._conn, direction, offset, data, Kind.HANDSHAKE, texts=tuple(texts), rows=tuple(rows), damage=damage
        )

    def _remember(self, direction: str, request_id: int, opcode: int) -> None:
        if len(self._asked) >= CALLS_REMEMBERED_MAX:
            self._asked.pop(next(iter(self._asked)))
        self._asked[direction, request_id] = opcode

    def _asked_opcode(self, direction: str, request_id: int) -> int:
        return self._asked.pop((_OPPOSITE.get(direction, direction), request_id), 0)


class _Stream:
    """Cuts one direction into frames, and stops at the first prefix that cannot be one."""

    __slots__ = ("is_lost", "offset", "pending")

    def __init__(self) -> None:
        self.offset = 0
        self.pending = bytearray()
        self.is_lost = False

    @property
    def wanted(self) -> int:
        """How many bytes the frame that has begun takes, prefix included."""
        if len(self.pending) < PREFIX_BYTES:
            return PREFIX_BYTES
        return PREFIX_BYTES + int(_PREFIX.unpack_from(self.pending)[0])

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes, str]]:
        """Offset, bytes and damage ("" for a frame) of each piece."""
        if self.is_lost:
            yield self.offset, data, "these bytes follow a bad length prefix and cannot be cut into frames"
            self.offset += len(data)
            return
        self.pending += data
        while len(self.pending) >= PREFIX_BYTES:
            wanted = self.wanted
            if wanted > PREFIX_BYTES + FRAME_BYTES_MAX:
                self.is_lost = True
                rest = bytes(self.pending)
                self.pending.clear()
                length = wanted - PREFIX_BYTES
                reason = f"a frame of {length} bytes: at most {FRAME_BYTES_MAX} are allowed; the rest cannot be read"
                yield self.offset, rest, reason
                self.offset += len(rest)
                return
            if len(self.pending) < wanted:
                return
            piece = bytes(memoryview(self.pending)[:wanted])
            del self.pending[:wanted]
            yield self.offset, piece, ""
            self.offset += wanted


class _Fields:
    """The fields that a layout names, read as any reader of the wire would read them."""

    def __init__(self, message: Message, head: int, layout: ObjectLayout) -> None:
        self._root: Object = message.root()
        self._root_at = struct.unpack_from("<I", message.data, 8)[0] if message.size >= HEADER_BYTES else 0
        self._head = head
        self._layout = layout
        self._by_name = {field.name: field for field in layout.fields}
        self._data = message.data

    def number(self, name: str) -> int | None:
        field = self._by_name.get(name)
        return None if field is None else self._root.uint32(field.offset)

    def text(self, name: str) -> str:
        field = self._by_name.get(name)
        return "" if field is None else self._root.text(field.offset)

    @property
    def body(self) -> bytes:
        """The JSON or CBOR value that the message carries."""
        name = next((name for name in _PAYLOAD_FIELDS if name in self._by_name), "")
        return bytes(self._root.bytes(self._by_name[name].offset)) if name else b""

    def body_offset(self) -> int:
        """Where the body starts in the stream, or the message if there is none."""
        name = next((name for name in _PAYLOAD_FIELDS if name in self._by_name), "")
        slot = self._root_at + self._by_name[name].offset if name else 0
        return self._head + slot + int(struct.unpack_from("<i", self._data, slot)[0]) if slot else self._head

    def lost_pointers(self) -> Iterator[tuple[int, str]]:
        """Slots that point out of the message: every reader takes them for null."""
        if self._root.is_null():
            return
        for field in self._layout.fields:
            slot = self._root_at + field.offset
            if field.has_payload and slot + 8 <= len(self._data):
                pointer, length = struct.unpack_from("<iI", self._data, slot)
                start = slot + pointer
                if pointer and (start < HEADER_BYTES or start + length > len(self._data)):
                    reason = f"{field.name} points at bytes {start} to {start + length} of {len(self._data)}"
                    yield self._head + slot, f"{reason}: outside of the message, read as null"

    def texts(self) -> tuple[tuple[str, str], ...]:
        """The named values that are neither the body nor its status."""
        named = (field for field in self._layout.fields if field.has_payload)
        values = ((field.name, self._root.text(field.offset)) for field in named)
        return tuple((name, value) for name, value in values if value and name not in (*_PAYLOAD_FIELDS, "error"))

    def rows(self) -> Iterator[Row]:
        """The root object field by field."""
        if self._root.is_null():
            return
        start = self._head + self._root_at
        for field in sorted(self._layout.fields, key=lambda field: field.offset):
            if field.type == "u32":
                value, size = str(self._root.uint32(field.offset)), 4
            elif field.type == "raw":
                raw = bytes(self._root.uint8(field.offset + index) for index in range(field.width))
                value, size = repr(raw.rstrip(b"\x00"))[1:], field.width
            else:
                length = len(self._root.bytes(field.offset))
                value, size = (f"{length} bytes" if length else "null"), 8
            yield Row(start + field.offset, size, field.name, value, field.note)


def _layout(opcode: int, *, is_answer: bool) -> ObjectLayout:
    known = by_number.get(opcode)
    if known is None:
        return layouts.ENVELOPE
    if is_answer:
        return layouts.SUBMIT_REPLY if known.layout in (Layout.SUBMIT, Layout.SCHEDULE) else layouts.ENVELOPE
    return _LAYOUTS[known.layout]


def _damage(message: Message, fields: _Fields, is_cbor: bool, kind: int, head: int) -> Damage | None:
    """The first thing about a readable message that its receiver would stumble over."""
    for offset, reason in fields.lost_pointers():
        return Damage(offset, reason)
    if message.opcode == 0 and kind != KIND_RESPONSE:
        return Damage(head, "opcode 0 is never used in a request or a one-way message")
    body = fields.body
    if body:
        try:
            decode_cbor(body) if is_cbor else decode_json(body)
        except BadBody as error:
            return Damage(fields.body_offset(), str(error))
    return None


def _name(opcode: int) -> str:
    known = by_number.get(opcode)
    return known.name if known else ""


def _prefix_rows(offset: int, prefix: int, length: int) -> Iterator[Row]:
    if prefix:
        yield Row(offset, prefix, "length", str(length), "of the frame's payload")


def _correlation_rows(at: int, kind: int, request_id: int) -> Iterator[Row]:
    if kind:
        yield Row(at, 4, "request_id", str(request_id))
        yield Row(at + 4, CORRELATION_BYTES - 4, "kind", str(kind), "1 request, 2 response")


def _header_rows(message: Message, head: int, data: bytes) -> Iterator[Row]:
    root, size = struct.unpack_from("<II", data, 8)
    yield Row(head, 4, "magic", repr(bytes(data[:4]))[1:])
    yield Row(head + 4, 2, "version", str(message.version))
    yield Row(head + 6, 1, "flags", f"0x{message.flags & 0xFF:02X}", "8 CBOR body")
    yield Row(head + 7, 1, "opcode", f"0x{message.opcode:02X}", _name(message.opcode))
    yield Row(head + 8, 4, "root", str(root), "where the root object starts in the message")
    yield Row(head + 12, 4, "size", str(size), "of the message")
