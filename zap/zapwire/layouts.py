"""Every fixed layout of the wire, declared once with construct: the specification that people read.

Documents, `inspect` and the conformance vectors are made from these declarations. The code that carries
traffic (`frame`, `envelope`, `handshake`) is precompiled `struct` instead: it reads a header in 0.1 us, construct
in 11 us. tests/test_layouts.py proves the two equal, in both directions.

Everything is little-endian. What is declared is the form that every known peer writes: the root object
directly after the header, and each payload after the object in the order of the fields that point at them.
A reader must accept any other arrangement too; `message.parse` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from construct import (
    Bytes,
    Check,
    Const,
    Construct,
    Enum,
    Int8ul,
    Int16ul,
    Int32sl,
    Int32ul,
    Padding,
    Rebuild,
    StringEncoded,
    Struct,
    len_,
    this,
)

FRAME: Final = Struct(
    "length" / Rebuild(Int32ul, len_(this.payload)),  # at most 10,485,760
    "payload" / Bytes(this.length),  # a message, or in calls a correlation header and a message
)

CORRELATION: Final = Struct(
    "request_id" / Int32ul,  # the caller's, counted per connection; the answer repeats it
    "kind" / Enum(Int32ul, request=1, response=2),  # where a plain message has its version and flags
)

HEADER_BYTES: Final = 16
HEADER: Final = Struct(
    "magic" / Const(b"ZAP\x00"),
    "version" / Const(1, Int16ul),
    "flags" / Int8ul,  # 1 compressed, 2 encrypted, 4 signed, 8 CBOR body
    "opcode" / Int8ul,  # 0 in answers and handshakes
    "root" / Int32ul,  # where the root object starts, from the message's first byte; 0: there is none
    "size" / Int32ul,  # of the whole message; bytes after it are ignored
)

SLOT: Final = Struct(
    "offset" / Int32sl,  # from the slot's own address to the payload; 0: null
    "length" / Int32ul,  # of the payload in bytes, of a list in elements
)


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a root object. `type` is `u32`, `bytes`, `text`, or `raw` for `width` bytes in place."""

    offset: int
    type: str
    name: str
    note: str = ""
    width: int = 8

    @property
    def has_payload(self) -> bool:
        """True when the field is a slot and its value lies after the object."""
        return self.type in ("bytes", "text")


@dataclass(frozen=True, slots=True)
class ObjectLayout:
    """The layout of one kind of message, and `message`, the construct that reads and writes all of it.

    The fields stand in the order in which their payloads follow the object.
    """

    name: str
    size: int
    fields: tuple[Field, ...]
    note: str
    message: Construct = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", _message(self.size, self.fields))


def _message(size: int, fields: tuple[Field, ...]) -> Construct:
    """The whole message: header, root object with computed slots, payloads."""
    payloads = [item for item in fields if item.has_payload]
    end = HEADER_BYTES + size

    def total(context: Any) -> int:
        return end + sum(_length(context, item) for item in payloads)

    parts = [
        "magic" / HEADER.magic,
        "version" / HEADER.version,
        "flags" / HEADER.flags,
        "opcode" / HEADER.opcode,
        "root" / Const(HEADER_BYTES, HEADER.root),
        "size" / Rebuild(HEADER.size, total),
    ]
    position = 0
    for item in sorted(fields, key=lambda item: item.offset):
        parts.append(Padding(item.offset - position))
        parts += _fixed_part(item, _target(end, payloads, item))
        position = item.offset + (4 if item.type == "u32" else item.width)
    parts.append(Padding(size - position))
    for item in payloads:
        payload = Bytes(this[f"{item.name}_slot"].length)
        parts.append(item.name / (StringEncoded(payload, "utf8") if item.type == "text" else payload))
    parts.append(Check(lambda context: context.size == total(context)))
    for item in payloads:
        parts.append(_check_slot(item, _target(end, payloads, item)))
    return Struct(*parts)


def _fixed_part(item: Field, target: Callable[[Any], int]) -> list[Construct]:
    if item.type == "u32":
        return [item.name / Int32ul]
    if item.type == "raw":
        return [item.name / Bytes(item.width)]
    slot = Struct(
        "offset" / Rebuild(Int32sl, lambda context: target(context._)),
        "length" / Rebuild(Int32ul, lambda context: _length(context._, item)),
    )
    return [f"{item.name}_slot" / Rebuild(slot, lambda context: {})]


def _target(end: int, payloads: list[Field], item: Field) -> Callable[[Any], int]:
    """The slot's offset: 0 for an empty value, else from the slot past the payloads that come before."""

    def offset(context: Any) -> int:
        if not _length(context, item):
            return 0
        before = payloads[: payloads.index(item)]
        return end + sum(_length(context, other) for other in before) - (HEADER_BYTES + item.offset)

    return offset


def _check_slot(item: Field, target: Callable[[Any], int]) -> Construct:
    return Check(lambda context: context[f"{item.name}_slot"].offset == target(context))


def _length(context: Any, item: Field) -> int:
    value = context[item.name]
    return len(value.encode()) if isinstance(value, str) else len(value)


ENVELOPE: Final = ObjectLayout(
    "envelope",
    24,
    (
        Field(0, "bytes", "body", "JSON, or CBOR when the flags say so; null when there is none"),
        Field(8, "u32", "status", "0 in requests; in answers and pushes 0 or 200 is success, else as in HTTP"),
        Field(12, "text", "error", "in failures only"),
        Field(20, "u32", "receipt", "ours, in answers: 1 in memory, 2 written, 3 synced; 0 says nothing"),
    ),
    "nearly every opcode, both ways; with a null body also the answer to a respond frame",
)

RESPOND: Final = ObjectLayout(
    "respond",
    32,
    (
        Field(0, "bytes", "token", "the task token from the delivery"),
        Field(8, "bytes", "payload", "commands, result, failure, details or reason, by opcode"),
    ),
    "a worker answers a delivery: 0xA2 to 0xA5, 0x95, 0x9C",
)

SUBMIT: Final = ObjectLayout(
    "submit",
    24,
    (
        Field(0, "text", "task_type"),
        Field(8, "bytes", "payload", "JSON"),
        Field(16, "bytes", "options", "ours: a JSON object; Go leaves these bytes zero"),
    ),
    "0x50, run a task now",
)

SCHEDULE: Final = ObjectLayout(
    "schedule",
    32,
    (
        Field(0, "text", "name"),
        Field(16, "text", "interval", "a Go duration, or null when a cron expression is given"),
        Field(24, "text", "cron", "a cron expression, or null when an interval is given"),
        Field(8, "bytes", "options", "ours: a JSON object; Go leaves these bytes zero"),
    ),
    "0x51, run a task on a schedule",
)

SUBMIT_REPLY: Final = ObjectLayout(
    "submit reply",
    16,
    (
        Field(0, "u32", "status", "0 or 200 is success, else as in HTTP"),
        Field(4, "bytes", "body", "JSON"),
        Field(12, "u32", "receipt", "ours: as in the envelope"),
    ),
    "the answer to 0x50 and 0x51",
)

HELLO_V1: Final = ObjectLayout(
    "hello of v1",
    64,
    (
        Field(0, "raw", "node_id", "printable ASCII, zero padded", width=60),
        Field(60, "u32", "node_id_length", "1 to 60"),
    ),
    "the first message of each side, as a Go peer sends it",
)

HELLO: Final = ObjectLayout(
    "hello",
    80,
    (
        *HELLO_V1.fields,
        Field(64, "u32", "capabilities", "bits; 0 means that nothing of the extension is there"),
        Field(72, "bytes", "details", "a CBOR map: sdk, version, max_frame"),
    ),
    "the first message of each side, with our extension",
)

OBJECT_LAYOUTS: Final = (ENVELOPE, RESPOND, SUBMIT, SCHEDULE, SUBMIT_REPLY, HELLO_V1, HELLO)
