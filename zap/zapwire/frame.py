"""Frames: how messages are cut out of a byte stream, and how a call is told from a one-way message.

A frame is a u32 length and that many bytes of payload, little-endian. The payload of a one-way send is
a message; a call puts 8 bytes before the message: u32 request id and u32 kind (1 request, 2 response).
The kind lies where a plain message has its version and flags, which read as 1 only when the flags are
0. That is why a one-way message always carries an opcode, and opcode 0 is never used.
"""

from __future__ import annotations

import struct
from typing import Final, NoReturn

from zapwire.errors import FrameTooLarge, LocalProtocolError

FRAME_BYTES_MAX: Final = 10 * 1024 * 1024
"""The longest payload that a frame may carry, inclusive: what every Go peer accepts, to the byte."""

PREFIX_BYTES: Final = 4
CORRELATION_BYTES: Final = 8

KIND_ONE_WAY: Final = 0
KIND_REQUEST: Final = 1
KIND_RESPONSE: Final = 2

REQUEST_ID_MAX: Final = 0xFFFF_FFFF

_CALL_KINDS: Final = (KIND_REQUEST, KIND_RESPONSE)

_PREFIX: Final = struct.Struct("<I")
_CORRELATION: Final = struct.Struct("<II")
_CALL_HEAD: Final = struct.Struct("<III")

Buffer = bytes | bytearray | memoryview
"""What every function here takes. What comes out of a stream is `bytes`: cut once, then never copied again."""


def frame(payload: Buffer) -> bytes:
    """Put the length prefix before a payload. Send the result with one write."""
    if len(payload) > FRAME_BYTES_MAX:
        raise LocalProtocolError(_too_long(len(payload)))
    return _PREFIX.pack(len(payload)) + payload


def call_frame(request_id: int, kind: int, message: Buffer) -> bytes:
    """Frame a request (`KIND_REQUEST`) or a response (`KIND_RESPONSE`) in one piece."""
    length = len(message) + CORRELATION_BYTES
    if length > FRAME_BYTES_MAX:
        raise LocalProtocolError(_too_long(length))
    if kind not in _CALL_KINDS:
        raise LocalProtocolError(f"call kind {kind}: a call is 1 (request) or 2 (response)")
    if not 0 <= request_id <= REQUEST_ID_MAX:
        raise LocalProtocolError(f"request id {request_id}: must be 0 to {REQUEST_ID_MAX}")
    return _CALL_HEAD.pack(length, request_id, kind) + message


def split_call(payload: bytes) -> tuple[int, int, bytes]:
    """Take a payload apart into (kind, request id, message); a one-way message has kind 0 and id 0.

    A payload too short for the question is passed on as a one-way message, which its parser refuses.
    """
    if len(payload) >= CORRELATION_BYTES:
        request_id, kind = _CORRELATION.unpack_from(payload)
        if kind in _CALL_KINDS:
            return kind, request_id, payload[CORRELATION_BYTES:]
    return KIND_ONE_WAY, 0, payload


def _too_long(length: int) -> str:
    return f"a frame of {length} bytes: at most {FRAME_BYTES_MAX} are allowed"


class FrameDecoder:
    """Cuts a byte stream into payloads, however the stream was torn.

    It holds no more than the bytes that arrived of one unfinished frame: the buffer grows with them
    and is never sized from the prefix, so a peer that announces 10 MiB and sends nothing costs nothing.
    """

    __slots__ = ("_error", "_limit", "_need", "_pending")

    def __init__(self, limit: int = FRAME_BYTES_MAX) -> None:
        self._limit = limit
        self._pending = bytearray()
        self._need = PREFIX_BYTES  # how long _pending must become before anything can be decided
        self._error: FrameTooLarge | None = None

    @property
    def pending(self) -> int:
        """Bytes held of a frame that has not ended: more than 0 at the end of a stream means it was torn."""
        return len(self._pending)

    def feed(self, data: Buffer) -> list[bytes]:
        """Take the next bytes of the stream and return the payloads that they complete.

        Raises `FrameTooLarge` as soon as a prefix above the limit is readable. The payloads completed
        before it in the same bytes are in the error's `frames`, so that what a peer did right is
        answered however its bytes were torn. After that the stream has no next frame: every further
        call raises the same error.
        """
        if self._error is not None:
            self._error.frames = []
            raise self._error
        if type(data) is not bytes:
            data = bytes(data)
        payloads: list[bytes] = []
        position = self._finish_pending(data, payloads) if self._pending else 0
        # The hot path, 0.25 us a small frame: payloads are sliced straight out of the fed bytes.
        end = len(data)
        limit = self._limit
        unpack = _PREFIX.unpack_from
        while end - position >= PREFIX_BYTES:
            (length,) = unpack(data, position)
            if length > limit:
                self._refuse(length, payloads)
            stop = position + PREFIX_BYTES + length
            if stop > end:
                self._need = stop - position
                break
            payloads.append(data[position + PREFIX_BYTES : stop])
            position = stop
        if position < end:
            self._pending += data[position:] if position else data
        return payloads

    def _finish_pending(self, data: bytes, payloads: list[bytes]) -> int:
        """Complete the frame begun by earlier bytes and return how many bytes of `data` that took."""
        pending = self._pending
        position = 0
        while True:
            taken = data[position : position + self._need - len(pending)]
            pending += taken
            position += len(taken)
            if len(pending) < self._need:
                return position
            if len(pending) == PREFIX_BYTES:
                (length,) = _PREFIX.unpack(pending)
                if length > self._limit:
                    self._refuse(length, payloads)
                self._need = PREFIX_BYTES + length
                if length:
                    continue
            payloads.append(bytes(memoryview(pending)[PREFIX_BYTES:]))
            self._pending = bytearray()
            self._need = PREFIX_BYTES
            return position

    def _refuse(self, length: int, payloads: list[bytes]) -> NoReturn:
        self._pending = bytearray()
        self._error = FrameTooLarge(f"a frame of {length} bytes: at most {self._limit} are allowed", frames=payloads)
        raise self._error
