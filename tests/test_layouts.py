"""The declared layouts and the fast codec are the same thing, on every recorded frame and on generated messages."""

from __future__ import annotations

from typing import Any

import pytest
from construct import ConstructError
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import vectors

from zapwire import layouts
from zapwire.body import encode_cbor
from zapwire.envelope import (
    decode_envelope,
    decode_respond,
    decode_submit_reply,
    decode_task_schedule,
    decode_task_submit,
    encode_request,
    encode_respond,
    encode_response,
    encode_submit_reply,
    encode_task_schedule,
    encode_task_submit,
    submit_receipt,
    with_receipt,
)
from zapwire.frame import KIND_REQUEST, KIND_RESPONSE, FrameDecoder, call_frame, frame, split_call
from zapwire.handshake import Capability, Hello, decode_hello, encode_hello
from zapwire.layouts import OBJECT_LAYOUTS, ObjectLayout
from zapwire.message import Builder, parse
from zapwire.opcodes import Layout, by_number

FRAMES = vectors.recorded_frames()

BODIES = st.binary(max_size=60)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
BYTE = st.integers(0, 255)
OPCODES = st.integers(1, 255)
U32 = st.integers(0, 2**32 - 1)
NODE_IDS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=60)
DETAILS = st.dictionaries(st.text("abc_", max_size=8), st.integers() | TEXTS | st.binary(max_size=8), max_size=4)


def read(layout: ObjectLayout, message: bytes) -> dict[str, Any]:
    """What construct reads: the flags, the opcode and the fields."""
    found = layout.message.parse(message)
    return {name: found[name] for name in ("flags", "opcode", *(field.name for field in layout.fields))}


def write(layout: ObjectLayout, **fields: Any) -> bytes:
    built: bytes = layout.message.build({"flags": 0, "opcode": 0} | fields)
    return built


def read_fast(layout: ObjectLayout, message: bytes) -> dict[str, Any]:
    """The same from the fast codec, in the layout's terms."""
    flags = parse(message).flags
    head: dict[str, Any] = {"flags": flags & 0xFF, "opcode": flags >> 8}
    match layout.name:
        case "envelope":
            envelope = decode_envelope(message)
            return head | {
                "body": envelope.body,
                "status": envelope.status,
                "error": envelope.error,
                "receipt": envelope.receipt,
            }
        case "respond":
            return head | dict(zip(("token", "payload"), decode_respond(message), strict=True))
        case "submit":
            task = decode_task_submit(message)
            return head | {"task_type": task.task_type, "payload": task.payload, "options": task.options}
        case "schedule":
            schedule = decode_task_schedule(message)
            names = ("name", "interval", "cron", "options")
            return head | {name: getattr(schedule, name) for name in names}
        case "submit reply":
            status, body = decode_submit_reply(message)
            return head | {"status": status, "body": body, "receipt": submit_receipt(message)}
    hello = decode_hello(message)
    node_id = hello.node_id.encode()
    head |= {"node_id": node_id.ljust(60, b"\0"), "node_id_length": len(node_id)}
    if layout is layouts.HELLO_V1:
        return head
    return head | {
        "capabilities": int(hello.capabilities),
        "details": encode_cbor(hello.details) if hello.details else b"",
    }


def layout_of(opcode: int) -> ObjectLayout:
    known = by_number.get(opcode)
    return {
        Layout.ENVELOPE: layouts.ENVELOPE,
        Layout.RESPOND: layouts.RESPOND,
        Layout.SUBMIT: layouts.SUBMIT,
        Layout.SCHEDULE: layouts.SCHEDULE,
    }[known.layout if known else Layout.ENVELOPE]


@pytest.mark.parametrize("record", FRAMES, ids=vectors.identify)
def test_a_recorded_frame_is_what_the_layouts_say(record: vectors.Case) -> None:
    data = bytes.fromhex(record["hex"])
    payload: bytes = layouts.FRAME.parse(data).payload
    assert [payload] == FrameDecoder().feed(data)
    assert layouts.FRAME.build({"payload": payload}) == frame(payload) == data
    message = payload
    layout = layouts.HELLO_V1
    if record["decoded"]["kind"] != "handshake":
        kind, request_id, message = split_call(payload)
        if record["decoded"]["kind"] != "message":
            head = layouts.CORRELATION.parse(payload)
            assert (int(head.kind), head.request_id) == (kind, request_id)
            assert str(head.kind) == record["decoded"]["kind"]
        layout = layout_of(parse(message).opcode)
    fields = read(layout, message)
    assert fields == read_fast(layout, message)
    assert write(layout, **fields) == message


@pytest.mark.parametrize("case", vectors.message_cases("build"), ids=vectors.identify)
def test_a_recorded_header_is_what_the_layout_says(case: vectors.Case) -> None:
    data = bytes.fromhex(case["hex"])
    header = layouts.HEADER.parse(data)
    message = parse(data)
    assert (header.opcode << 8 | header.flags, header.size) == (message.flags, message.size)
    assert (header.root == 0) == message.root().is_null()
    assert layouts.HEADER.build(header) == data[:16]


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("envelope-request", layouts.ENVELOPE),
        ("envelope-response-error", layouts.ENVELOPE),
        ("task-submit-0x50", layouts.SUBMIT),
        ("task-schedule-interval-0x51", layouts.SCHEDULE),
        ("task-schedule-cron-0x51", layouts.SCHEDULE),
    ],
)
def test_a_built_vector_is_what_its_layout_says(name: str, layout: ObjectLayout) -> None:
    (case,) = (case for case in vectors.message_cases("build") if case["name"] == name)
    data = bytes.fromhex(case["hex"])
    fields = read(layout, data)
    assert fields == read_fast(layout, data)
    assert write(layout, **fields) == data


@given(U32, st.sampled_from([KIND_REQUEST, KIND_RESPONSE]), BODIES)
def test_calls(request_id: int, kind: int, message: bytes) -> None:
    data = call_frame(request_id, kind, message)
    correlation = layouts.CORRELATION.build({"request_id": request_id, "kind": kind})
    assert layouts.FRAME.build({"payload": correlation + message}) == data


@given(OPCODES, BYTE, BODIES)
def test_requests(opcode: int, flags: int, body: bytes) -> None:
    _equal(
        layouts.ENVELOPE,
        encode_request(opcode, body, flags),
        {"opcode": opcode, "flags": flags, "body": body, "status": 0, "error": "", "receipt": 0},
    )


@given(U32, BYTE, BODIES, TEXTS, U32)
def test_responses(status: int, flags: int, body: bytes, error: str, receipt: int) -> None:
    fields = {"opcode": 0, "flags": flags, "body": body, "status": status, "error": error}
    _equal(layouts.ENVELOPE, encode_response(status, body, error, flags, receipt), {**fields, "receipt": receipt})
    plain = encode_response(status, body, error, flags)
    assert with_receipt(plain, receipt) == encode_response(status, body, error, flags, receipt)


@given(OPCODES, BYTE, BODIES, BODIES)
def test_respond_frames(opcode: int, flags: int, token: bytes, payload: bytes) -> None:
    _equal(
        layouts.RESPOND,
        encode_respond(opcode, token, payload, flags),
        {"opcode": opcode, "flags": flags, "token": token, "payload": payload},
    )


@given(TEXTS, BODIES, BODIES)
def test_task_submits(task_type: str, payload: bytes, options: bytes) -> None:
    _equal(
        layouts.SUBMIT,
        encode_task_submit(task_type, payload, options),
        {"opcode": 0x50, "flags": 0, "task_type": task_type, "payload": payload, "options": options},
    )


@given(TEXTS, TEXTS, TEXTS, BODIES)
def test_task_schedules(name: str, interval: str, cron: str, options: bytes) -> None:
    _equal(
        layouts.SCHEDULE,
        encode_task_schedule(name, interval=interval, cron=cron, options=options),
        {"opcode": 0x51, "flags": 0, "name": name, "interval": interval, "cron": cron, "options": options},
    )


@given(U32, BODIES, U32)
def test_submit_replies(status: int, body: bytes, receipt: int) -> None:
    fields = {"opcode": 0, "flags": 0, "status": status, "body": body, "receipt": receipt}
    _equal(layouts.SUBMIT_REPLY, encode_submit_reply(status, body, receipt), fields)
    with_one = with_receipt(encode_submit_reply(status, body), receipt, is_submit_reply=True)
    assert with_one == encode_submit_reply(status, body, receipt)


@given(NODE_IDS, st.integers(0, 2**32 - 1), DETAILS)
def test_hellos(node_id: str, bits: int, details: dict[str, Any]) -> None:
    hello = Hello(node_id, Capability(bits), details if bits else {})
    fields: dict[str, Any] = {"node_id": node_id.encode().ljust(60, b"\0"), "node_id_length": len(node_id)}
    if bits:
        fields |= {"capabilities": bits, "details": encode_cbor(details) if details else b""}
    layout = layouts.HELLO if bits else layouts.HELLO_V1
    _equal(layout, encode_hello(hello), {"opcode": 0, "flags": 0} | fields)


def _equal(layout: ObjectLayout, fast: bytes, fields: dict[str, Any]) -> None:
    assert write(layout, **fields) == fast
    assert read(layout, fast) == read_fast(layout, fast) == fields


@pytest.mark.parametrize("layout", OBJECT_LAYOUTS, ids=lambda layout: layout.name)
def test_the_builder_writes_the_same(layout: ObjectLayout) -> None:
    """The third way to the same bytes: the general builder, field by field in the declared order."""
    builder = Builder()
    root = builder.start_object(layout.size)
    fields: dict[str, Any] = {}
    for number, field in enumerate(layout.fields, start=1):
        if field.type == "u32":
            fields[field.name] = 1000 + number
            root.set_uint32(field.offset, 1000 + number)
        elif field.type == "raw":
            fields[field.name] = bytes(range(field.width))
            for index in range(field.width):
                root.set_uint8(field.offset + index, index)
        elif field.type == "text":
            fields[field.name] = "ä" * number
            root.set_text(field.offset, "ä" * number)
        else:
            fields[field.name] = b"x" * number
            root.set_bytes(field.offset, b"x" * number)
    root.finish_as_root()
    assert write(layout, opcode=0x60, flags=8, **fields) == builder.finish_with_flags(0x6008)


@pytest.mark.parametrize("layout", OBJECT_LAYOUTS, ids=lambda layout: layout.name)
def test_fields_lie_side_by_side_within_the_object(layout: ObjectLayout) -> None:
    end = 0
    for field in sorted(layout.fields, key=lambda field: field.offset):
        assert field.offset >= end, field.name
        end = field.offset + (4 if field.type == "u32" else field.width)
    assert end <= layout.size
    assert layout.size % 8 == 0


@pytest.mark.parametrize("byte", [0, 4, 8, 12, 16, 28])
def test_a_declared_layout_refuses_another_arrangement(byte: int) -> None:
    """So that the equality above means something: construct does not read whatever it is given."""
    data = bytearray(encode_response(404, b"null", "not found"))
    data[byte] ^= 1
    with pytest.raises(ConstructError):
        layouts.ENVELOPE.message.parse(bytes(data))
