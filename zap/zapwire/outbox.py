"""The writing half of a link: what goes to the kernel at once, what is gathered, what waits for room."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Final

import trio

from zapwire.errors import ConnectionLost
from zapwire.frame import CORRELATION_BYTES, KIND_REQUEST, PREFIX_BYTES, split_call
from zapwire.link_group import LinkGroup

GATHER_FRAMES_MAX: Final = 8
"""How many frames are gathered before they leave.

All in one send would cost least (14.3 us of both processors a call, 15.6 with 8 frames a send), but then one end
works while the other waits. Leaving in parts, 32 calls in flight make 53,000 a second instead of 32,000: median
of 9 runs each, in turns, client and server in two processes on two cores."""

SEND_BYTES_MAX: Final = 256 * 1024
"""The most that is gathered, and joined for one send: more than a socket's buffer takes would be copied for nothing."""

WOULD_BLOCK: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""What a non-blocking socket raises, with and without TLS, when it cannot go on now."""


class Outbox:
    """Frames on their way to one socket.

    The first write since the peer was last heard goes to the kernel at once, without a checkpoint: that is the
    call made alone. Later ones are gathered and leave a few at a time, the last at the end of the batch or in the
    next trio tick: those are the many calls in flight. A task exists only while the kernel's buffer is full.

    `fail` is called when the peer does not read; the connection must then be closed.
    """

    __slots__ = (
        "_broken",
        "_closed",
        "_draining",
        "_fail",
        "_frames",
        "_group",
        "_marked",
        "_progress",
        "_sock",
        "_torn",
        "bytes",
        "heard",
    )

    def __init__(self, sock: socket.socket, group: LinkGroup, fail: Callable[[ConnectionLost], None]) -> None:
        self._sock = sock
        self._group = group
        self._fail = fail
        self.bytes = 0
        """How many bytes wait here."""
        self.heard = True
        """Whether the peer was heard since the last write that went out at once. Set by the reader."""
        self._frames: list[bytes] = []  # whole, and not offered to the kernel yet
        self._torn: memoryview | None = None  # what a full kernel buffer left of a send
        self._marked = False  # the flusher will come
        self._draining = False  # a task waits for room in the kernel's buffer
        self._broken = False  # a send has failed: nothing leaves any more
        self._closed = False
        self._progress: trio.Event | None = None  # somebody waits for this to shrink

    def write(self, frame: bytes) -> None:
        """Send a frame, now or soon."""
        waiting = self.bytes
        self._frames.append(frame)
        self.bytes = waiting + len(frame)
        if self._draining:
            if waiting > self._group.limits.outbox_bytes and not self._closed:
                self._fail(ConnectionLost(f"the peer does not read: {waiting} bytes wait for it"))
        elif len(self._frames) >= GATHER_FRAMES_MAX or self.bytes > SEND_BYTES_MAX:
            self._send()
        elif self._marked:
            pass  # it leaves with the others
        elif self.heard and not self._group.flusher.batches:
            self.heard = False
            self._send()
        else:
            self._marked = True
            self._group.flusher.mark(self)

    def flush(self) -> None:
        """Send what was gathered."""
        self._marked = False
        if self._frames and not self._draining:
            self._send()

    def _send(self) -> None:
        """Hand what waits to the kernel, until all is gone or the kernel's buffer is full."""
        frames = self._frames
        while frames and not (self._broken or self._closed):
            if len(frames) == 1:
                data = frames[0]
                count = 1
            else:
                count = self._frames_of_one_send()
                data = b"".join(frames[:count])
            try:
                sent = self._sock.send(data)
            except WOULD_BLOCK:
                sent = 0
            except OSError:
                # What the peer sent before it went is still to be read; the reader meets the end after it.
                self._broken = True
                return
            del frames[:count]
            self.bytes -= sent
            if sent < len(data):
                # The rest of a torn frame must follow, and TLS wants to be offered the same bytes again.
                self._torn = memoryview(data)[sent:]
                if not self._draining:
                    self._draining = True
                    self._group.nursery.start_soon(self._drain)
                return

    def _frames_of_one_send(self) -> int:
        if self.bytes <= SEND_BYTES_MAX:
            return len(self._frames)
        size = len(self._frames[0])
        for count, frame in enumerate(self._frames[1:], start=1):
            size += len(frame)
            if size > SEND_BYTES_MAX:
                return count
        return len(self._frames)

    async def _drain(self) -> None:
        """Wait for room in the kernel's buffer and fill it, until nothing is left to send."""
        seconds = self._group.limits.write_stall_seconds
        with contextlib.suppress(trio.ClosedResourceError):
            while self._torn is not None and not self._closed:
                with trio.move_on_after(seconds) as scope:
                    await trio.lowlevel.wait_writable(self._sock)
                waiting = self.bytes
                self._send_torn()
                # The kernel calls a socket writable once a third of its buffer is free, which a slow peer may not
                # reach in time: it is given up only if not even a byte finds room.
                if scope.cancelled_caught and self.bytes == waiting and not self._broken:
                    self._fail(ConnectionLost(f"the peer read nothing for {seconds:g} s: {waiting} bytes wait for it"))
                    break
        self._draining = False
        self._tell_progress()

    def _send_torn(self) -> None:
        if self._torn is None:
            return  # closed while the task waited
        try:
            sent = self._sock.send(self._torn)
        except WOULD_BLOCK:
            return
        except OSError:
            self._broken = True
            self._torn = None
            return
        self.bytes -= sent
        if sent < len(self._torn):
            self._torn = self._torn[sent:]
        else:
            self._torn = None
            self._send()
        self._tell_progress()

    async def below(self, size: float) -> None:
        """Wait until no more than `size` bytes wait here, or nothing leaves any more."""
        while self.bytes > size and self._draining and not self._closed:
            if self._progress is None:
                self._progress = trio.Event()
            await self._progress.wait()

    def _tell_progress(self) -> None:
        if self._progress is not None:
            self._progress.set()
            self._progress = None

    def withdraw(self, request_id: int) -> bool:
        """Take a call back; False if it has left, or may have."""
        for index, frame in enumerate(self._frames):
            if _request_id(frame) == request_id:
                del self._frames[index]
                self.bytes -= len(frame)
                return True
        return False

    def stop(self) -> None:
        """Send nothing more: the socket is about to be closed."""
        self._closed = True
        self._tell_progress()

    def clear(self) -> set[int]:
        """Drop what waits; returns the request ids of the calls that never left, not even in part."""
        never_sent = {request_id for frame in self._frames if (request_id := _request_id(frame)) is not None}
        self._frames.clear()
        self._torn = None
        self.bytes = 0
        return never_sent


def _request_id(frame: bytes) -> int | None:
    """The request id of a framed call of ours; None for anything else."""
    kind, request_id, _ = split_call(frame[PREFIX_BYTES : PREFIX_BYTES + CORRELATION_BYTES])
    return request_id if kind == KIND_REQUEST else None
