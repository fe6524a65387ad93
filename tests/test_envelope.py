"""Envelopes, respond frames, Add/Now requests: exact bytes, any legal arrangement; a peer can cause only BadMessage."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zapwire.envelope import (
    FLAG_CBOR,
    Envelope,
    TaskSchedule,
    TaskSubmit,
    decode_envelope,
    decode_respond,
    decode_submit_reply,
    decode_task_schedule,
    decode_task_submit,
    encode_ack,
    encode_push,
    encode_request,
    encode_respond,
    encode_response,
    encode_submit_reply,
    encode_task_schedule,
    encode_task_submit,
)
from zapwire.errors import BadMessage, LocalProtocolError
from zapwire.frame import KIND_REQUEST, call_frame
from zapwire.message import Builder, parse

BODIES = st.binary(max_size=60)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
OPCODES = st.integers(1, 255)

DECODERS: tuple[Callable[[bytes], object], ...] = (
    decode_envelope,
    decode_respond,
    decode_submit_reply,
    decode_task_schedule,
    decode_task_submit,
)


def test_the_documented_bytes() -> None:
    health = (
        "32000000 01000000 01000000 5A415000 0100 0090 10000000 2A000000 18000000 02000000" + " 00000000" * 4 + " 7B7D"
    )
    assert call_frame(1, KIND_REQUEST, encode_request(0x90, b"{}")) == bytes.fromhex(health)
    missing = "5A415000 0100 0000 10000000 3E000000 18000000 04000000 94010000 10000000 12000000 00000000 6E756C6C"
    assert encode_response(404, b"null", "workflow not found") == bytes.fromhex(missing) + b"workflow not found"
    ack = "5A415000 0100 0000 10000000 28000000 00000000 00000000 C8000000 00000000 00000000 00000000"
    assert encode_ack(200) == bytes.fromhex(ack)


@given(OPCODES, BODIES, st.integers(0, 255))
def test_a_request_round_trips(opcode: int, body: bytes, flags: int) -> None:
    data = encode_request(opcode, body, flags)
    assert decode_envelope(data) == Envelope(opcode, flags, 0, body, "")
    assert parse(data).flags == opcode << 8 | flags


@given(st.integers(0, 2**32 - 1), BODIES, TEXTS, st.sampled_from([0, FLAG_CBOR]))
def test_a_response_round_trips(status: int, body: bytes, error: str, flags: int) -> None:
    envelope = decode_envelope(encode_response(status, body, error, flags))
    assert envelope == Envelope(0, flags, status, body, error)
    assert envelope.ok == (status in (0, 200))


@given(OPCODES, BODIES)
def test_a_push_carries_success(opcode: int, body: bytes) -> None:
    assert decode_envelope(encode_push(opcode, body)) == Envelope(opcode, 0, 200, body, "")


@given(st.integers(0, 999), TEXTS)
def test_an_ack_is_an_envelope_without_a_body(status: int, error: str) -> None:
    assert decode_envelope(encode_ack(status, error)) == Envelope(0, 0, status, b"", error)


@given(OPCODES, BODIES, BODIES)
def test_a_respond_frame_round_trips(opcode: int, token: bytes, payload: bytes) -> None:
    data = encode_respond(opcode, token, payload)
    assert decode_respond(data) == (token, payload)
    assert parse(data).opcode == opcode


@given(TEXTS, BODIES, BODIES)
def test_a_task_submit_round_trips(task_type: str, payload: bytes, options: bytes) -> None:
    data = encode_task_submit(task_type, payload, options)
    assert decode_task_submit(data) == TaskSubmit(task_type, payload, options)
    assert parse(data).opcode == 0x50


@given(TEXTS, TEXTS, TEXTS, BODIES)
def test_a_task_schedule_round_trips(name: str, interval: str, cron: str, options: bytes) -> None:
    data = encode_task_schedule(name, interval=interval, cron=cron, options=options)
    assert decode_task_schedule(data) == TaskSchedule(name, interval, cron, options)
    assert parse(data).opcode == 0x51


@given(st.integers(0, 2**32 - 1), BODIES)
def test_a_submit_reply_round_trips(status: int, body: bytes) -> None:
    data = encode_submit_reply(status, body)
    assert decode_submit_reply(data) == (status, body)
    root = parse(data).root()
    assert (root.uint32(0), bytes(root.bytes(4))) == (status, body)  # as the Go client reads it


@given(st.binary(max_size=20), BODIES, TEXTS)
def test_any_legal_arrangement_decodes(before: bytes, body: bytes, error: str) -> None:
    """The root need not come first, and its payloads need not follow it."""
    builder = Builder()
    blob = builder.write_bytes(before + body)
    inner = builder.start_object(16)
    inner.set_text(0, error)
    inner.finish()
    root = builder.start_object(24)
    root.set_list(0, blob + len(before) if body else 0, len(body))
    root.set_uint32(8, 418)
    root.set_text(12, error)
    root.finish_as_root()
    assert decode_envelope(builder.finish_with_flags(0x6008)) == Envelope(0x60, 8, 418, body, error)

    builder.reset()
    payload = builder.write_bytes(before + body)
    root = builder.start_object(24)
    root.set_text(0, error)
    root.set_list(8, payload + len(before) if body else 0, len(body))
    root.finish_as_root()
    message = builder.finish()
    assert decode_respond(message) == (error.encode(), body)
    assert {type(part) for part in decode_respond(message)} == {bytes}
    assert decode_task_submit(message) == TaskSubmit(error, body)


@pytest.mark.parametrize("size", range(33))
def test_an_object_shorter_than_the_layout_reads_as_if_zeros_followed(size: int) -> None:
    builder = Builder()
    builder.start_object(size).finish_as_root()
    short = builder.finish_with_flags(0x6000)
    assert decode_envelope(short) == Envelope(0x60, 0, 0, b"", "")
    assert decode_respond(short) == (b"", b"")
    assert decode_task_submit(short) == TaskSubmit("", b"")
    assert decode_task_schedule(short) == TaskSchedule("", "", "")
    assert decode_submit_reply(short) == (0, b"")


def test_a_body_without_a_status_is_read() -> None:
    """The object may end behind the body's slot; what comes after it is then the body, not a status."""
    builder = Builder()
    root = builder.start_object(8)
    root.set_bytes(0, b"{}")
    root.finish_as_root()
    assert decode_envelope(builder.finish_with_flags(0x9000)).body == b"{}"


MESSAGES = st.one_of(
    st.builds(encode_request, OPCODES, BODIES),
    st.builds(encode_response, st.integers(0, 999), BODIES, TEXTS),
    st.builds(encode_respond, OPCODES, BODIES, BODIES),
    st.builds(encode_task_submit, TEXTS, BODIES, BODIES),
    st.builds(encode_task_schedule, TEXTS, interval=TEXTS, options=BODIES),
    st.builds(encode_submit_reply, st.integers(0, 999), BODIES),
    st.binary(max_size=100),
)


@given(MESSAGES, st.data())
def test_the_fast_reading_of_a_damaged_message_is_the_general_reading(message: bytes, data: st.DataObject) -> None:
    damaged = bytearray(message)
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.sampled_from([0, 1, 16, 24, 128, 255]))
    sent = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    _check_against_the_general_reading(sent)


@pytest.mark.parametrize("pointer", [0, 1, 15, 39, 40, 41, 79, 2**31 - 1, -1, -8, -16, -17, -24, -40, -(2**31)])
@pytest.mark.parametrize("length", [0, 1, 16, 40, 41, 2**31, 2**32 - 1])
def test_a_slot_never_leads_out_of_the_message(pointer: int, length: int) -> None:
    """Not into its header, not past its declared size where more bytes follow, and nowhere when it is null."""
    for offset in (0, 4, 8, 12, 16, 24):
        data = bytearray(b"ZAP\x00\x01\x00\x00\x60" + struct.pack("<II", 16, 56) + b"abcdefgh" * 9)
        struct.pack_into("<iI", data, 16 + offset, pointer, length)
        _check_against_the_general_reading(bytes(data))


@pytest.mark.parametrize("size", range(72))
def test_nothing_past_the_declared_size_is_read(size: int) -> None:
    """The bytes are there, but the message ends before them."""
    for slot in (b"", struct.pack("<iI", 24, 2)):
        data = b"ZAP\x00\x01\x00\x00\x60" + struct.pack("<II", 16, size) + slot + b"\x01\x00\x00\x00" * 14
        _check_against_the_general_reading(data)


def _check_against_the_general_reading(sent: bytes) -> None:
    try:
        parsed = parse(sent)
    except BadMessage:
        for decode in DECODERS:
            with pytest.raises(BadMessage):
                decode(sent)
        return
    root = parsed.root()
    assert decode_envelope(sent) == Envelope(
        parsed.opcode, parsed.flags & 0xFF, root.uint32(8), bytes(root.bytes(0)), root.text(12), root.uint32(20)
    )
    assert decode_respond(sent) == (root.bytes(0), root.bytes(8))
    assert decode_submit_reply(sent) == (root.uint32(0), root.bytes(4))
    if "�" in root.text(0) + root.text(16) + root.text(24):
        return  # names that are not UTF-8 are tested below
    assert decode_task_submit(sent) == TaskSubmit(root.text(0), bytes(root.bytes(8)), bytes(root.bytes(16)))
    assert decode_task_schedule(sent) == TaskSchedule(root.text(0), root.text(16), root.text(24), bytes(root.bytes(8)))


@given(MESSAGES, st.binary(min_size=1, max_size=20))
def test_trailing_bytes_change_nothing(message: bytes, trailing: bytes) -> None:
    for decode in DECODERS:
        try:
            expected = decode(message)
        except BadMessage:
            continue
        assert decode(message + trailing) == expected


@pytest.mark.parametrize("decode", DECODERS)
def test_a_truncated_message_is_refused_at_every_length(decode: Callable[[bytes], object]) -> None:
    message = encode_response(200, b"body", "error")
    for length in range(len(message)):
        with pytest.raises(BadMessage):
            decode(message[:length])


def test_slices_keep_the_type_of_the_payload() -> None:
    data = encode_request(0x60, b"body")
    assert type(decode_envelope(data).body) is bytes
    view = decode_envelope(memoryview(data)).body
    assert isinstance(view, memoryview)
    assert view.obj is data
    assert bytes(view) == b"body"


def test_an_error_text_that_is_not_utf8_reads_with_replacements() -> None:
    message = encode_response(500, b"", "bad").replace(b"bad", b"b\xffd")
    assert decode_envelope(message).error == "b�d"


def test_an_error_text_without_a_utf8_form_is_still_sent() -> None:
    assert decode_envelope(encode_response(400, b"", "no type '\ud800'")).error == "no type '\\ud800'"


@pytest.mark.parametrize(
    ("message", "decode"),
    [
        (encode_task_submit("name", b""), decode_task_submit),
        (encode_task_schedule("name", cron="0 3 * * *"), decode_task_schedule),
        (encode_task_schedule("x", cron="name"), decode_task_schedule),
        (encode_task_schedule("x", interval="name"), decode_task_schedule),
    ],
)
def test_a_name_that_is_not_utf8_is_refused_with_its_bytes(message: bytes, decode: Callable[[bytes], object]) -> None:
    with pytest.raises(BadMessage, match=r"b'n\\xffme' is not UTF-8"):
        decode(message.replace(b"name", b"n\xffme"))


@pytest.mark.parametrize(
    "encode",
    [
        lambda: encode_request(256, b""),
        lambda: encode_request(-1, b""),
        lambda: encode_request(0x60, b"", 256),
        lambda: encode_response(-1, b""),
        lambda: encode_response(2**32, b""),
        lambda: encode_respond(0, b"", b""),
        lambda: encode_respond(256, b"", b""),
        lambda: encode_submit_reply(2**32),
        lambda: encode_task_submit("\ud800", b""),
        lambda: encode_task_schedule("x", cron="\udfff"),
    ],
)
def test_what_cannot_be_put_on_the_wire_is_refused_here(encode: Callable[[], bytes]) -> None:
    with pytest.raises(LocalProtocolError):
        encode()


@pytest.mark.parametrize("encode", [encode_request, encode_push])
def test_opcode_0_is_never_sent(encode: Callable[[int, bytes], bytes]) -> None:
    """A one-way message with flags 0 could not be told from a call."""
    with pytest.raises(LocalProtocolError, match="opcode 0"):
        encode(0, b"")
