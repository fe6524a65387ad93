"""zapwire against what the Go system was recorded doing: the bytes it builds, what it reads, what it sent."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tests.helpers import programs, vectors

from zapwire.body import decode_json
from zapwire.envelope import decode_envelope, decode_respond, decode_task_schedule, decode_task_submit
from zapwire.errors import BadMessage
from zapwire.frame import KIND_ONE_WAY, KIND_REQUEST, KIND_RESPONSE, FrameDecoder, split_call
from zapwire.handshake import decode_hello
from zapwire.message import Builder, Message, Object, parse
from zapwire.opcodes import Layout, by_number

BUILD = vectors.message_cases("build")
READ = vectors.message_cases("read")
FRAMES = vectors.recorded_frames()


@pytest.mark.parametrize("case", BUILD, ids=vectors.identify)
def test_builds_the_recorded_bytes(case: vectors.Case) -> None:
    assert programs.execute(Builder(case.get("capacity", 256)), case).hex() == case["hex"]


def test_capacity_and_an_earlier_message_do_not_change_the_bytes() -> None:
    for capacity in (0, 1, 16, 17, 4096):
        builder = Builder(capacity)
        for case in BUILD:
            assert programs.execute(builder, case).hex() == case["hex"], case["name"]
            builder.reset()


@pytest.mark.parametrize("case", BUILD, ids=vectors.identify)
def test_a_field_reads_as_what_it_was_built_with(case: vectors.Case) -> None:
    message = parse(bytes.fromhex(case["hex"]))
    built = {step["id"]: step for step in case["steps"] if "id" in step}
    roots = [step for step in case["steps"] if step.get("root")]
    assert message.flags == case["flags"]
    assert message.root().is_null() == (not roots)
    for root in roots:
        _check_object(message.root(), root, built)


def _check_object(target: Object, step: dict[str, Any], built: dict[str, dict[str, Any]]) -> None:
    last = {field["offset"]: field for field in step["fields"]}  # the last set of an offset counts
    for offset, field in last.items():
        kind, value = field["type"], field["value"]
        if kind == "object":
            assert not target.object(offset).is_null()
            _check_object(target.object(offset), built[value], built)
        elif kind == "list":
            _check_list(target, offset, built[value])
        elif kind == "bytes":
            assert target.bytes(offset) == bytes.fromhex(value)
        elif kind == "text":
            assert target.text(offset) == value
        elif kind == "bool":
            assert target.bool(offset) is value
        elif kind in ("f32", "f64"):
            expected = programs.float_of(kind, value)
            actual = target.float32(offset) if kind == "f32" else target.float64(offset)
            assert actual == expected or (math.isnan(actual) and math.isnan(expected))
        else:
            accessor = programs.SETTERS[kind].removeprefix("set_")
            assert getattr(target, accessor)(offset) == int(value)


def _check_list(target: Object, offset: int, step: dict[str, Any]) -> None:
    items = target.list(offset, element_bytes=step["elem_size"])
    assert items.is_null() == (not step["items"])
    if step["kind"] == "bytes":
        assert items.raw() == bytes.fromhex("".join(step["items"]))
    else:
        read = {"u8": items.uint8, "u32": items.uint32, "u64": items.uint64}[step["kind"]]
        assert [read(index) for index in range(len(items))] == [int(item) for item in step["items"]]


@pytest.mark.parametrize("case", READ, ids=vectors.identify)
def test_reads_what_go_reads_or_null(case: vectors.Case) -> None:
    data = bytes.fromhex(case["hex"])
    if case["parse"] != "ok":
        with pytest.raises(BadMessage):
            parse(data)
        return
    message = parse(data)
    assert (message.flags, message.size, message.opcode) == (case["flags"], case["size"], case["flags"] >> 8)
    root = message.root()
    assert root.is_null() or not case["root_is_null"]
    for read in case["reads"]:
        _check_read(message, root, read)


def _check_read(message: Message, root: Object, read: dict[str, Any]) -> None:
    """Go's value or null; and null only for the reasons that the rule gives."""
    kind, offset, go = read["type"], read["offset"], read["value"]
    if kind in ("u8", "u32", "u64", "i32"):
        value = {"u8": root.uint8, "u32": root.uint32, "u64": root.uint64, "i32": root.int32}[kind](offset)
        assert value == (0 if root.is_null() else int(go)), read
    elif kind == "bytes":
        view = root.bytes(offset)
        assert view == bytes.fromhex(go) or (not view and (root.is_null() or _points_into_header(root, offset))), read
    elif kind == "object_is_null":
        assert root.object(offset).is_null() == go or root.is_null() or _points_into_header(root, offset), read
    else:
        assert kind == "list_len"
        items = root.list(offset)
        unsafe = root.is_null() or _points_into_header(root, offset) or go > message.size
        assert len(items) == go or (items.is_null() and (unsafe or _runs_past_the_end(message, root, offset, go))), read


def _points_into_header(root: Object, offset: int) -> bool:
    return 0 <= _target(root, offset) < 16


def _runs_past_the_end(message: Message, root: Object, offset: int, length: int) -> bool:
    return _target(root, offset) + length > message.size


def _target(root: Object, offset: int) -> int:
    start: int = root._offset  # the message does not say where its objects are; the reader knows
    return start + offset + root.int32(offset)


@pytest.mark.parametrize("record", FRAMES, ids=vectors.identify)
def test_a_recorded_frame_decodes_to_its_reading(record: vectors.Case) -> None:
    (payload,) = FrameDecoder().feed(bytes.fromhex(record["hex"]))
    expected = record["decoded"]
    if expected["kind"] == "handshake":
        hello = decode_hello(payload)
        assert hello.node_id
        assert (hello.capabilities, hello.details) == (0, {})
        return
    kind, request_id, message = split_call(payload)
    assert kind == {"message": KIND_ONE_WAY, "request": KIND_REQUEST, "response": KIND_RESPONSE}[expected["kind"]]
    assert request_id == expected.get("req_id", 0)
    assert f"0x{parse(message).opcode:02X}" == expected["opcode"]
    silent = {"status": 0, "error": ""} if "body" in expected else {}  # the recording leaves out what says nothing
    assert _reading(message) == silent | {key: expected[key] for key in expected if key not in _ADDRESS}


_ADDRESS = ("kind", "req_id", "opcode")


def _reading(message: bytes) -> dict[str, Any]:
    """A message in the recording's own terms."""
    opcode = by_number.get(parse(message).opcode)
    layout = opcode.layout if opcode else Layout.ENVELOPE
    if layout is Layout.RESPOND:
        token, payload = decode_respond(message)
        return {"token": str(token, "utf-8"), "payload": str(payload, "utf-8")}
    if layout is Layout.SUBMIT:
        task = decode_task_submit(message)
        assert not task.options
        return {"text_0": task.task_type, "bytes_8": str(task.payload, "utf-8"), "text_16": None, "text_24": None}
    if layout is Layout.SCHEDULE:
        schedule = decode_task_schedule(message)
        assert not schedule.options
        return {"text_0": schedule.name, "bytes_8": None, "text_16": schedule.interval, "text_24": schedule.cron}
    envelope = decode_envelope(message)
    body = decode_json(envelope.body) if envelope.body else None
    return {"body": body, "status": envelope.status, "error": envelope.error}


@pytest.mark.parametrize("name", vectors.RECORDINGS)
@pytest.mark.parametrize("direction", ["c2s", "s2c"])
def test_a_recorded_stream_gives_its_frames_however_it_is_cut(name: str, direction: str) -> None:
    frames = [bytes.fromhex(record["hex"]) for record in vectors.recording(name) if record["dir"] == direction]
    payloads = [data[4:] for data in frames]
    stream = b"".join(frames)
    assert payloads
    for size in (1, 2, 3, 5, 7, 64, 1000, len(stream)):
        decoder = FrameDecoder()
        received = [
            payload for start in range(0, len(stream), size) for payload in decoder.feed(stream[start : start + size])
        ]
        assert received == payloads
        assert decoder.pending == 0
