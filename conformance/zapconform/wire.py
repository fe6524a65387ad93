"""Frames, the correlation header, the handshake and the tasks envelope, as bytes and back.

Everything that this kit sends is made here, or deliberately damaged by a case. Everything is plain:
one function for each layout, named after it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from zapconform.codec import MAGIC, VERSION, Field, Message, Unreadable, little, message, parse

FRAME_BYTES_MAX = 10 * 1024 * 1024
"""The longest payload that a peer must take; one byte more must be refused."""

KIND_REQUEST = 1
KIND_RESPONSE = 2

NODE_ID_BYTES_MAX = 60
HELLO_OBJECT_BYTES = 64
HELLO_MESSAGE_BYTES = 16 + HELLO_OBJECT_BYTES
EXTENDED_HELLO_OBJECT_BYTES = 80
CAPABILITY_CBOR = 0x01
CAPABILITY_RECEIPTS = 0x04
FLAG_CBOR = 0x08
CAPABILITY_BITS_KNOWN = 0x3F
"""CBOR bodies, replay history, receipts, compressed bodies, goodbye, streams."""


# --- frames -----------------------------------------------------------------------------------------


def frame(payload: bytes) -> bytes:
    return little(len(payload), 4) + payload


def call_payload(request_id: int, request: bytes) -> bytes:
    return little(request_id, 4) + little(KIND_REQUEST, 4) + request


def response_payload(request_id: int, reply: bytes) -> bytes:
    return little(request_id, 4) + little(KIND_RESPONSE, 4) + reply


def call_frame(request_id: int, request: bytes) -> bytes:
    return frame(call_payload(request_id, request))


@dataclass(frozen=True)
class Correlated:
    """A frame that belongs to a call: `kind` is `KIND_REQUEST` or `KIND_RESPONSE`."""

    request_id: int
    kind: int
    message: bytes


def correlated(payload: bytes) -> Correlated | None:
    """The call that a frame belongs to, or None for a plain message."""
    if len(payload) < 8:
        return None
    kind = int.from_bytes(payload[4:8], "little")
    if kind not in (KIND_REQUEST, KIND_RESPONSE):
        return None
    return Correlated(int.from_bytes(payload[0:4], "little"), kind, payload[8:])


# --- handshake ---------------------------------------------------------------------------------------


def hello(node_id: bytes, *, length: int | None = None) -> bytes:
    """The handshake message of v1: 60 bytes of id, zero padded, and the id's length."""
    padded = node_id[:NODE_ID_BYTES_MAX].ljust(NODE_ID_BYTES_MAX, b"\x00")
    section = padded + little(len(node_id) if length is None else length, 4)
    return message(HELLO_OBJECT_BYTES, [Field(i, "u8", byte) for i, byte in enumerate(section)])


def extended_hello(node_id: bytes, *, capabilities: int, details: bytes) -> bytes:
    """The longer handshake: u32 capability bits at 64, Bytes at 72 with a CBOR map."""
    section = node_id.ljust(NODE_ID_BYTES_MAX, b"\x00") + little(len(node_id), 4)
    fields = [Field(i, "u8", byte) for i, byte in enumerate(section)]
    fields += [Field(64, "u32", capabilities), Field(72, "bytes", details)]
    return message(EXTENDED_HELLO_OBJECT_BYTES, fields)


@dataclass(frozen=True)
class Hello:
    """What a peer said in its handshake."""

    node_id: bytes
    length: int
    flags: int
    message_bytes: int
    capabilities: int
    details: bytes


def is_hello(payload: bytes) -> bool:
    """Whether a frame is a handshake. Its flags of 0 make it look like a request, but no message follows."""
    return payload[0:8] == MAGIC + little(VERSION, 4) and payload[8:12] != MAGIC and len(payload) >= HELLO_MESSAGE_BYTES


def read_hello(payload: bytes) -> Hello:
    """Raises `Unreadable` when this is not a handshake at all."""
    parsed = parse(payload)
    root = parsed.root()
    section = bytes(root.u8(i) for i in range(NODE_ID_BYTES_MAX))
    length = root.u32(NODE_ID_BYTES_MAX)
    extended = len(parsed.data) - root.start >= EXTENDED_HELLO_OBJECT_BYTES
    return Hello(
        node_id=section[:length],
        length=length,
        flags=parsed.flags,
        message_bytes=len(parsed.data),
        capabilities=root.u32(64) if extended else 0,
        details=root.bytes(72) if extended else b"",
    )


# --- the tasks envelope --------------------------------------------------------------------------------


def compact(value: object) -> bytes:
    """JSON the way Go writes it: no spaces, keys in the order given, UTF-8."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def request(opcode: int, body: bytes, *, low_flags: int = 0) -> bytes:
    """An envelope request: a 24-byte root with only the body set."""
    return message(24, [Field(0, "bytes", body)], opcode=opcode, low_flags=low_flags)


def response(opcode: int, status: int, body: bytes, error: bytes = b"") -> bytes:
    """An envelope as servers send it."""
    return message(24, [Field(0, "bytes", body), Field(8, "u32", status), Field(12, "bytes", error)], opcode=opcode)


def worker_answer(opcode: int, token: bytes, payload: bytes) -> bytes:
    """A worker's binary frame (0xA2 to 0xA5): a 32-byte root, the token at 0 and the payload at 8."""
    return message(32, [Field(0, "bytes", token), Field(8, "bytes", payload)], opcode=opcode)


def task_submit(task_type: str, payload: bytes, options: bytes = b"") -> bytes:
    """0x50: type at 0, JSON payload at 8; `options`, an addition of zaptasks, at 16."""
    fields = [Field(0, "text", task_type), Field(8, "bytes", payload)]
    if options:
        fields.append(Field(16, "bytes", options))
    return message(24, fields, opcode=0x50)


def task_schedule(name: str, *, interval: str = "", cron: str = "", options: bytes = b"") -> bytes:
    """0x51: name at 0, a Go duration at 16 or a cron expression at 24; `options` at 8."""
    fields = [Field(0, "text", name), Field(16, "text", interval), Field(24, "text", cron)]
    if options:
        fields.append(Field(8, "bytes", options))
    return message(32, fields, opcode=0x51)


@dataclass(frozen=True)
class Envelope:
    """A reply or a push, decoded."""

    flags: int
    body: bytes
    status: int
    error: str
    byte_8: int
    """The first byte of the status, which Go's worker reads as `cancel requested` in a heartbeat's reply."""
    receipt: int
    """An addition of zaptasks: 1 in memory, 2 written, 3 synced; 0 where nothing is said."""

    @property
    def opcode(self) -> int:
        return self.flags >> 8


def read_envelope(data: bytes) -> Envelope:
    parsed = parse(data)
    root = parsed.root()
    return Envelope(parsed.flags, root.bytes(0), root.u32(8), root.text(12), root.u8(8), root.u32(20))


def read_submit_reply(data: bytes) -> Envelope:
    """The reply to 0x50 and 0x51: u32 status at 0, Bytes at 4. It has no error text of its own."""
    parsed = parse(data)
    root = parsed.root()
    body = root.bytes(4)
    return Envelope(parsed.flags, body, root.u32(0), body.decode("utf-8", "replace"), root.u8(8), root.u32(12))


# --- one line for people ---------------------------------------------------------------------------------


def describe(payload: bytes) -> str:
    """What a frame's payload is, for the report."""
    header = correlated(payload)
    try:
        if is_hello(payload):
            return f"handshake of {read_hello(payload).node_id!r}"
        parsed = parse(header.message if header else payload)
    except Unreadable as reason:
        return f"not a message: {reason}"
    prefix = ""
    if header:
        prefix = f"{'request' if header.kind == KIND_REQUEST else 'response'} {header.request_id} "
    return prefix + _describe_message(parsed, header is not None and header.kind == KIND_RESPONSE)


def _describe_message(parsed: Message, is_response: bool) -> str:
    root = parsed.root()
    opcode = f"0x{parsed.opcode:02X}"
    if not is_response and parsed.opcode in (0x50, 0x51):
        return f"{opcode} {_quoted(root.bytes(0))} " + " ".join(_quoted(root.bytes(at)) for at in (8, 16, 24))
    if not is_response and parsed.opcode in (0xA2, 0xA3, 0xA4, 0xA5, 0x95, 0x9C):
        return f"{opcode} token {_quoted(root.bytes(0))} payload {_quoted(root.bytes(8))}"
    if is_response and root.u32(0) in (0, 200, 400, 404, 409, 413, 500, 501, 503) and root.bytes(4):
        return f"status {root.u32(0)} {_quoted(root.bytes(4))}"
    error = f" error {_quoted(root.bytes(12))}" if root.bytes(12) else ""
    return f"{opcode} status {root.u32(8)} {_quoted(root.bytes(0))}{error}"


def _quoted(data: bytes) -> str:
    text = data.decode("utf-8", "replace")
    return text if len(text) <= 160 else f"{text[:160]}… ({len(data)} bytes)"


def parse_json(data: bytes) -> Any:
    """JSON with every number as it was written; raises ValueError."""
    return json.loads(data.decode("utf-8"))
