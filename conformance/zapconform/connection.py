"""A raw connection to the target: it can write anything, and it knows nothing of what is legal.

Blocking sockets with a deadline on every wait. Nothing is read behind the caller's back, so what a
case has seen is what it asked for.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from zapconform import wire
from zapconform.case import Failed, TargetUnreachable

FRAMES_KEPT = 40
"""Of the frames of a case, the first half and the last half of so many stand in its report."""

HEX_BYTES_KEPT = 192
"""So many bytes of a frame are printed."""

READ_BYTES = 256 * 1024


@dataclass(frozen=True)
class Traffic:
    """Something that went over a connection, for the report."""

    connection: str
    direction: str
    at_ms: int
    size: int
    hex: str
    reading: str


@dataclass
class TrafficLog:
    """The traffic of one case, bounded: its beginning and its end."""

    started: float = field(default_factory=time.monotonic)
    head: list[Traffic] = field(default_factory=list)
    tail: list[Traffic] = field(default_factory=list)
    dropped: int = 0
    complete: bool = False
    """Set when the case has its verdict: what tidies up after it is not part of it."""

    def add(self, connection: str, direction: str, data: bytes, reading: str = "") -> None:
        if self.complete:
            return
        at_ms = int((time.monotonic() - self.started) * 1000)
        cut = data[:HEX_BYTES_KEPT].hex() + ("…" if len(data) > HEX_BYTES_KEPT else "")
        entry = Traffic(connection, direction, at_ms, len(data), cut, reading)
        if len(self.head) < FRAMES_KEPT // 2:
            self.head.append(entry)
            return
        self.tail.append(entry)
        if len(self.tail) > FRAMES_KEPT // 2:
            del self.tail[0]
            self.dropped += 1

    @property
    def entries(self) -> list[Traffic]:
        return self.head + self.tail


class Connection:
    """One TCP connection. Frames that arrive are handed to `on_frame` in order."""

    def __init__(
        self, address: tuple[str, int], log: TrafficLog, label: str, timeout: float, receive_bytes: int = 0
    ) -> None:
        """`receive_bytes` makes the receive buffer that small, for a peer that means not to read."""
        self.label = label
        self.timeout = timeout
        self.ended = ""
        """How the connection ended, or empty while it lives."""
        self._log = log
        self._received = bytearray()
        self._frames: list[bytes] = []
        try:
            self._socket = _connect(address, timeout, receive_bytes)
        except OSError as reason:
            raise TargetUnreachable(f"{address[0]}:{address[1]}: {reason}") from reason
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # --- writing -----------------------------------------------------------------------------------

    def send_bytes(self, data: bytes, *, quiet: bool = False) -> bool:
        """Write these bytes as they are. False when the peer has ended the connection."""
        if not quiet:
            self._log.add(self.label, "sent", data, "raw bytes")
        return self._write(data)

    def send_frame(self, payload: bytes) -> bool:
        self._log.add(self.label, "sent", payload, wire.describe(payload))
        return self._write(wire.frame(payload))

    def _write(self, data: bytes) -> bool:
        if self.ended:
            return False
        self._socket.settimeout(self.timeout)
        try:
            self._socket.sendall(data)
        except TimeoutError:
            raise Failed(
                expected=f"the peer to read {len(data)} bytes within {self.timeout:g} s",
                actual="its receive window stayed full",
            ) from None
        except OSError as reason:
            self._end(f"write failed: {reason}")
            return False
        return True

    def try_send(self, data: bytes, seconds: float) -> int:
        """Write as much as the peer takes within this time without reading; how much it was."""
        if self.ended:
            return 0
        deadline = time.monotonic() + seconds
        sent = 0
        self._socket.setblocking(False)
        try:
            while sent < len(data) and (left := deadline - time.monotonic()) > 0:
                if _ready([self._socket.fileno()], select.POLLOUT, left):
                    sent += self._socket.send(data[sent : sent + READ_BYTES])
        except OSError as reason:
            self._end(f"write failed: {reason}")
        return sent

    # --- reading ------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._socket.fileno()

    def next_frame(self, deadline: float) -> bytes | None:
        """The next frame's payload; None when there is none by the deadline or the connection ended."""
        while not self._frames:
            if self.ended or not self._read(deadline):
                return None
        return self._frames.pop(0)

    def has_frames(self) -> bool:
        return bool(self._frames)

    def _read(self, deadline: float) -> bool:
        left = deadline - time.monotonic()
        if not _ready([self._socket.fileno()], select.POLLIN, left):
            return False
        self._socket.settimeout(self.timeout)
        try:
            data = self._socket.recv(READ_BYTES)
        except OSError as reason:
            self._end(f"read failed: {reason}")
            return True
        if not data:
            self._end("closed by the peer" + (" inside a frame" if self._received else ""))
            return True
        self._received += data
        self._split()
        return True

    def _split(self) -> None:
        while len(self._received) >= 4:
            length = int.from_bytes(self._received[:4], "little")
            if length > wire.FRAME_BYTES_MAX:
                raise Failed(
                    expected=f"frames of at most {wire.FRAME_BYTES_MAX} bytes from the target",
                    actual=f"a length prefix of {length}",
                )
            if len(self._received) < 4 + length:
                return
            payload = bytes(self._received[4 : 4 + length])
            del self._received[: 4 + length]
            self._log.add(self.label, "received", payload, wire.describe(payload))
            self._frames.append(payload)

    def wait_ended(self, seconds: float) -> bool:
        """Whether the peer ends the connection within this time; frames that arrive meanwhile are kept."""
        deadline = time.monotonic() + seconds
        while not self.ended:
            if not self._read(deadline):
                return False
        return True

    # --- ending ------------------------------------------------------------------------------------

    def _end(self, how: str) -> None:
        self.ended = how
        self._log.add(self.label, "ended", b"", how)
        self._socket.close()

    def close(self) -> None:
        if not self.ended:
            self._end("closed by this side")

    def reset(self) -> None:
        """End the connection with a TCP reset, as a machine that loses power and comes back does."""
        if not self.ended:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._end("reset by this side")


def _connect(address: tuple[str, int], timeout: float, receive_bytes: int) -> socket.socket:
    """`socket.create_connection`, but for the buffer, which must be set before the connection is made."""
    if not receive_bytes:
        return socket.create_connection(address, timeout)
    family, kind, protocol, _, found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
    made = socket.socket(family, kind, protocol)
    made.settimeout(timeout)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    try:
        made.connect(found)
    except OSError:
        made.close()
        raise
    return made


def wait_readable(connections: Sequence[Connection], deadline: float) -> bool:
    """Whether any of these connections has something to read before the deadline."""
    live = [c.fileno() for c in connections if not c.ended]
    return bool(live) and _ready(live, select.POLLIN, deadline - time.monotonic())


def _ready(descriptors: Sequence[int], event: int, seconds: float) -> bool:
    """`poll` and not `select`, which knows no descriptor above 1023."""
    if seconds <= 0:
        return False
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, event)
    return bool(poller.poll(seconds * 1000))
