"""What a worker and its processes say to each other: msgpack, each message behind its length.

Payloads in them are plain JSON. The worker alone compresses and encrypts, so that keys stay in one process.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import datetime
from typing import Final, Literal, TypeAlias

import msgspec

_LENGTH: Final = struct.Struct(">I")
MESSAGE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Far more than a payload has; beyond it something has written over the connection."""


class _Message(msgspec.Struct, frozen=True, tag=True, tag_field="what", array_like=True):
    call: int
    """Which call of this process it belongs to. What a thread that was left behind says comes too late."""


class Run(_Message, frozen=True):
    """To the process: call this function."""

    module: str
    path: str
    is_task: bool
    input: bytes | None
    heartbeat_details: bytes
    id: str
    type: str
    attempt: int
    maximum_attempts: int
    namespace: str
    task_queue: str
    workflow_id: str
    run_id: str
    scheduled_time: datetime | None
    start_to_close: float | None
    heartbeat_timeout: float | None
    task_token: str
    headers: dict[str, str]


class Cancel(_Message, frozen=True):
    """To the process: somebody wants the call to stop."""

    reason: str


class Heartbeat(_Message, frozen=True):
    details: bytes


class Emit(_Message, frozen=True):
    item: bytes


class Measure(_Message, frozen=True):
    """What the process counts or measures."""

    kind: Literal["counter", "gauge", "timer"]
    name: str
    value: float
    tags: dict[str, str]


class Log(_Message, frozen=True):
    """A line that the process logged."""

    logger: str
    level: int
    text: str


class Done(_Message, frozen=True):
    result: bytes


class Failed(_Message, frozen=True):
    failure: bytes


class Canceled(_Message, frozen=True):
    """The function heeded a cancel."""


class Later(_Message, frozen=True):
    """The function ended with `complete_later`."""


ToProcess: TypeAlias = Run | Cancel
Answer: TypeAlias = Done | Failed | Canceled | Later
Said: TypeAlias = Heartbeat | Emit | Measure
ToWorker: TypeAlias = Said | Log | Answer

_encode: Final = msgspec.msgpack.Encoder().encode
read_to_process: Final[Callable[[bytes], ToProcess]] = msgspec.msgpack.Decoder(ToProcess).decode
read_to_worker: Final[Callable[[bytes], ToWorker]] = msgspec.msgpack.Decoder(ToWorker).decode


def framed(message: ToProcess | ToWorker) -> bytes:
    data = _encode(message)
    return _LENGTH.pack(len(data)) + data


class Frames:
    """Cuts a stream into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> bytes | None:
        """The next whole message, or None until more was fed. Raises `ValueError` for what is no stream of them."""
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > MESSAGE_BYTES_MAX:
            raise ValueError(f"a message of {length} bytes; at most {MESSAGE_BYTES_MAX} are sent")
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        message = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        return message
