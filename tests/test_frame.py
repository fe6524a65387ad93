"""Frames: nothing is lost or invented however the stream is torn, and a prefix costs nothing."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zapwire.errors import FrameTooLarge, LocalProtocolError
from zapwire.frame import (
    FRAME_BYTES_MAX,
    KIND_ONE_WAY,
    KIND_REQUEST,
    KIND_RESPONSE,
    REQUEST_ID_MAX,
    FrameDecoder,
    call_frame,
    frame,
    split_call,
)

PAYLOADS = st.lists(st.binary(max_size=40), max_size=12)


def prefix(length: int) -> bytes:
    return length.to_bytes(4, "little")


@st.composite
def torn_streams(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    """Payloads, and their stream cut at arbitrary places, empty pieces included."""
    payloads = draw(PAYLOADS)
    stream = b"".join(frame(payload) for payload in payloads)
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    edges = [0, *cuts, len(stream)]
    return payloads, [stream[start:stop] for start, stop in itertools.pairwise(edges)]


@given(torn_streams())
def test_a_torn_stream_gives_the_same_payloads(case: tuple[list[bytes], list[bytes]]) -> None:
    payloads, pieces = case
    decoder = FrameDecoder()
    assert [payload for piece in pieces for payload in decoder.feed(piece)] == payloads
    assert decoder.pending == 0


@given(PAYLOADS)
def test_whole_and_byte_by_byte(payloads: list[bytes]) -> None:
    stream = b"".join(frame(payload) for payload in payloads)
    assert FrameDecoder().feed(stream) == payloads
    decoder = FrameDecoder()
    assert [payload for byte in stream for payload in decoder.feed(bytes([byte]))] == payloads


@given(PAYLOADS, st.binary(min_size=1, max_size=3))
def test_trailing_bytes_wait_for_the_rest_of_their_frame(payloads: list[bytes], trailing: bytes) -> None:
    decoder = FrameDecoder()
    assert decoder.feed(b"".join(frame(payload) for payload in payloads) + trailing) == payloads
    assert decoder.pending == len(trailing)


@pytest.mark.parametrize("convert", [bytes, bytearray, memoryview])
def test_any_buffer_is_taken_and_payloads_are_bytes_of_their_own(convert: type) -> None:
    data = bytearray(frame(b"one") + frame(b"two"))
    payloads = FrameDecoder().feed(convert(data))
    data[:] = bytes(len(data))
    assert payloads == [b"one", b"two"]
    assert all(type(payload) is bytes for payload in payloads)


def test_the_limit_is_inclusive() -> None:
    whole = frame(bytes(FRAME_BYTES_MAX))
    assert [len(payload) for payload in FrameDecoder().feed(whole)] == [FRAME_BYTES_MAX]
    with pytest.raises(LocalProtocolError, match="10485761 bytes: at most 10485760"):
        frame(bytes(FRAME_BYTES_MAX + 1))
    with pytest.raises(LocalProtocolError, match="10485761 bytes: at most 10485760"):
        call_frame(1, KIND_REQUEST, bytes(FRAME_BYTES_MAX - 7))


@pytest.mark.parametrize("length", [FRAME_BYTES_MAX + 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF])
@pytest.mark.parametrize("pieces", [(4,), (1, 1, 1, 1), (3, 1), (2, 2)])
def test_a_prefix_above_the_limit_is_refused_with_its_last_byte(length: int, pieces: tuple[int, ...]) -> None:
    decoder = FrameDecoder()
    data = prefix(length)
    for size in pieces[:-1]:
        assert decoder.feed(data[:size]) == []
        data = data[size:]
    with pytest.raises(FrameTooLarge, match=f"{length} bytes: at most {FRAME_BYTES_MAX}"):
        decoder.feed(data)
    assert decoder.pending == 0


@pytest.mark.parametrize("torn_at", range(16))
def test_frames_before_a_refused_one_are_handed_over(torn_at: int) -> None:
    stream = frame(b"good") + frame(b"") + prefix(101)
    decoder = FrameDecoder(limit=100)
    received = decoder.feed(stream[:torn_at])
    with pytest.raises(FrameTooLarge) as refused:
        decoder.feed(stream[torn_at:])
    assert received + refused.value.frames == [b"good", b""]


def test_after_a_refusal_every_feed_is_refused_and_holds_nothing() -> None:
    decoder = FrameDecoder(limit=100)
    with pytest.raises(FrameTooLarge):
        decoder.feed(frame(b"good") + prefix(101))
    for data in (b"", frame(b"later"), bytes(1000)):
        with pytest.raises(FrameTooLarge) as refused:
            decoder.feed(data)
        assert refused.value.frames == []
        assert decoder.pending == 0


def test_a_prefix_followed_by_nothing_costs_nothing() -> None:
    decoders = [FrameDecoder() for _ in range(100)]
    tracemalloc.start()
    try:
        for decoder in decoders:
            decoder.feed(prefix(FRAME_BYTES_MAX))
            decoder.feed(b"x" * 100)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [decoder.pending for decoder in decoders] == [104] * 100
    assert held < 100 * 1024


def test_a_large_frame_in_many_pieces() -> None:
    payload = bytes(range(256)) * 4096
    data = frame(payload) + frame(b"next")
    decoder = FrameDecoder()
    received = [found for start in range(0, len(data), 65536) for found in decoder.feed(data[start : start + 65536])]
    assert received == [payload, b"next"]


@given(st.integers(0, REQUEST_ID_MAX), st.sampled_from([KIND_REQUEST, KIND_RESPONSE]), st.binary(max_size=60))
def test_a_call_splits_into_what_it_was_made_of(request_id: int, kind: int, message: bytes) -> None:
    (payload,) = FrameDecoder().feed(call_frame(request_id, kind, message))
    assert split_call(payload) == (kind, request_id, message)


@given(st.binary(max_size=40))
def test_whatever_is_not_a_call_is_one_way_and_whole(payload: bytes) -> None:
    kind, request_id, message = split_call(payload)
    if len(payload) >= 8 and payload[4:8] in (b"\x01\0\0\0", b"\x02\0\0\0"):
        assert (kind, request_id, message) == (payload[4], int.from_bytes(payload[:4], "little"), payload[8:])
    else:
        assert (kind, request_id, message) == (KIND_ONE_WAY, 0, payload)


@pytest.mark.parametrize(("request_id", "kind"), [(-1, 1), (REQUEST_ID_MAX + 1, 1), (1, 0), (1, 3)])
def test_a_call_that_no_peer_could_read_is_refused_here(request_id: int, kind: int) -> None:
    with pytest.raises(LocalProtocolError):
        call_frame(request_id, kind, b"")
