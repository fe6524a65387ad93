"""A reading of the ZAP message format that is written to be obviously right, and nothing else.

It copies, it slices, it converts one field at a time. Speed is of no interest here: this code
exists so that a codec that is fast can be compared with one that is plain.

Layout, all little-endian: a header of 16 bytes (magic, u16 version, u16 flags, u32 offset of the
root object, u32 size of the whole message), then objects, lists and text in any order. A pointer
is an i32 counted from the slot that holds it; 0 is null.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAGIC = b"ZAP\x00"
VERSION = 1
HEADER_BYTES = 16

INTEGER_BYTES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "f32": 4, "f64": 8}
"""Width of every number. Floats are handled as their bit patterns, so that no rounding can hide."""

SLOT_BYTES = INTEGER_BYTES | {"bool": 1, "text": 8, "bytes": 8, "object": 4, "list": 8}
"""Width of what stands in the fixed section for a field of each kind."""


class Unreadable(ValueError):
    """Bytes that are not a ZAP message, with the reason."""


def little(value: int, width: int) -> bytes:
    """An integer, negative ones in two's complement, as `width` little-endian bytes."""
    return (value % (1 << (8 * width))).to_bytes(width, "little")


# --- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Message:
    """A parsed message: exactly `size` bytes, and what its header says."""

    data: bytes
    flags: int
    root_offset: int

    @property
    def opcode(self) -> int:
        return self.flags >> 8

    def root(self) -> Object:
        return Object(self.data, self.root_offset)


@dataclass(frozen=True)
class Object:
    """A place in a message. Whatever cannot be read there is zero, empty or null."""

    data: bytes
    start: int

    def is_null(self) -> bool:
        return not HEADER_BYTES <= self.start <= len(self.data)

    def number(self, kind: str, offset: int) -> int:
        if self.is_null():
            return 0
        width = INTEGER_BYTES[kind]
        first = self.start + offset
        if first + width > len(self.data):
            return 0
        return int.from_bytes(self.data[first : first + width], "little", signed=kind.startswith("i"))

    def u8(self, offset: int) -> int:
        return self.number("u8", offset)

    def u32(self, offset: int) -> int:
        return self.number("u32", offset)

    def bool(self, offset: int) -> bool:
        return self.u8(offset) != 0

    def _target(self, offset: int) -> int:
        """Where the pointer at `offset` leads, or 0 when that is nowhere in the body."""
        relative = self.number("i32", offset)
        target = self.start + offset + relative
        if relative == 0 or not HEADER_BYTES <= target <= len(self.data):
            return 0
        return target

    def bytes(self, offset: int) -> bytes:
        target = self._target(offset)
        length = self.u32(offset + 4)
        if target == 0 or target + length > len(self.data):
            return b""
        return self.data[target : target + length]

    def text(self, offset: int) -> str:
        return self.bytes(offset).decode("utf-8", "replace")

    def object(self, offset: int) -> Object:
        return Object(self.data, self._target(offset))

    def list_length(self, offset: int, element_bytes: int = 1) -> int:
        """The count of a list of elements of this size; 0 when it would run past the end."""
        target = self._target(offset)
        count = self.u32(offset + 4)
        if target == 0 or target + count * element_bytes > len(self.data):
            return 0
        return count

    def numbers(self, offset: int, kind: str) -> list[int]:
        """The elements of a list of numbers."""
        width = INTEGER_BYTES[kind]
        elements = Object(self.data, self._target(offset))
        return [elements.number(kind, index * width) for index in range(self.list_length(offset, width))]


def parse(data: bytes) -> Message:
    """The message at the start of `data`; what follows its size is not part of it."""
    if len(data) < HEADER_BYTES:
        raise Unreadable(f"{len(data)} bytes are less than a header of {HEADER_BYTES}")
    if data[0:4] != MAGIC:
        raise Unreadable(f"magic is {data[0:4].hex()}, not {MAGIC.hex()}")
    version = int.from_bytes(data[4:6], "little")
    if version != VERSION:
        raise Unreadable(f"version is {version}, not {VERSION}")
    size = int.from_bytes(data[12:16], "little")
    if size > len(data):
        raise Unreadable(f"the header says {size} bytes, {len(data)} are there")
    return Message(data[:size], int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:12], "little"))


# --- writing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """One field of an object: where, of what type, and its value.

    Types: the names of `INTEGER_BYTES`, `bool`, `text` (str), `bytes`, `object` (an offset that
    `Writer.object` returned) and `list` (a pair that `Writer.list` returned).
    """

    offset: int
    kind: str
    value: int | str | bytes | tuple[int, int]


class Writer:
    """Builds a message the way Go's builder does, byte for byte: inner things before outer ones."""

    def __init__(self) -> None:
        self._body = bytearray(HEADER_BYTES)
        self._root = 0

    def _align(self) -> int:
        self._body += bytes(-len(self._body) % 8)
        return len(self._body)

    def object(self, size: int, fields: Sequence[Field], *, root: bool = False) -> int:
        """Write an object with a data section of `size` bytes; its offset is the answer."""
        start = self._align()
        reach = max([size] + [field.offset + SLOT_BYTES[field.kind] for field in fields])
        section = bytearray(reach)
        tail = bytearray()  # texts and bytes follow the section in the order in which they were set
        for field in fields:
            slot = field.offset
            encoded = self._slot(start, slot, field, len(section) + len(tail))
            section[slot : slot + len(encoded)] = encoded
            tail += _payload(field)
        self._body += section + tail
        if root:
            self._root = start
        return start

    def _slot(self, start: int, slot: int, field: Field, payload_at: int) -> bytes:
        """What stands in the fixed section for this field."""
        value = field.value
        match field.kind, value:
            case "bool", int():
                return bytes([1 if value else 0])
            case "text" | "bytes", str() | bytes():
                length = len(_payload(field))
                return little(payload_at - slot, 4) + little(length, 4) if length else bytes(8)
            case "object", int():
                return little(value - (start + slot), 4) if value else bytes(4)
            case "list", (int(offset), int(count)):
                return little(offset - (start + slot), 4) + little(count, 4) if count else bytes(8)
            case kind, int() if kind in INTEGER_BYTES:
                return little(value, INTEGER_BYTES[kind])
        raise TypeError(f"a field of kind {field.kind!r} cannot hold {value!r}")

    def list(self, kind: str, items: Sequence[int] | Sequence[bytes]) -> tuple[int, int]:
        """Write a list of numbers of this kind, or of raw bytes; its offset and count are the answer."""
        start = self._align()
        content = b"".join(item if isinstance(item, bytes) else little(item, INTEGER_BYTES[kind]) for item in items)
        self._body += content
        return start, len(content) if kind == "bytes" else len(items)

    def finish(self, flags: int = 0) -> bytes:
        header = MAGIC + little(VERSION, 2) + little(flags, 2) + little(self._root, 4) + little(len(self._body), 4)
        return header + bytes(self._body[HEADER_BYTES:])


def _payload(field: Field) -> bytes:
    if isinstance(field.value, str) and field.kind == "text":
        return field.value.encode()
    if isinstance(field.value, bytes):
        return field.value
    return b""


def message(size: int, fields: Sequence[Field], *, opcode: int = 0, low_flags: int = 0) -> bytes:
    """A message that is one root object."""
    writer = Writer()
    writer.object(size, fields, root=True)
    return writer.finish(opcode << 8 | low_flags)
