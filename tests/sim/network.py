"""Connections: bytes that travel in order, in pieces, late, or not at all, and the server's end of each."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Protocol, cast

from tests.sim.world import Timer, World

from zapserver.dispatch import Dispatcher
from zapwire.connection import CallReceived, CallRefused, Connection, Ended, HelloReceived, PushReceived, Role
from zapwire.envelope import encode_response
from zapwire.errors import ConnectionLost, ZapError
from zapwire.handshake import Capability, Hello
from zapwire.link import Link
from zapwire.link_group import LinkLimits

LIMITS = LinkLimits()
STALL_MS_MAX = int(LIMITS.write_stall_seconds * 1000)
NOTICE_MS_MAX = 45_000
"""Three probes without an answer: the latest that an end notices that nobody is there."""


class Wire:
    """One direction. `receive` gets the bytes, and b"" for the end of the stream."""

    def __init__(self, world: World, delay_ms: int, torn_rate: float) -> None:
        self._world = world
        self._delay_ms = delay_ms
        self._torn_rate = torn_rate
        self._pieces: deque[tuple[int, bytes]] = deque()
        self._latest_ms = 0
        self.receive: Callable[[bytes], None] = _nobody
        self.is_cut = False
        self.is_stalled = False

    def send(self, data: bytes) -> None:
        if self.is_cut:
            return
        world = self._world
        pieces = [data]
        if len(data) > 1 and self._torn_rate and world.chance(self._torn_rate):
            at = world.between(1, len(data) - 1)
            pieces = [data[:at], data[at:]]
            world.count("frames torn")
        for piece in pieces:
            self._put(piece)

    def end(self) -> None:
        """Nothing more will be sent."""
        if not self.is_cut:
            self._put(b"")

    def _put(self, piece: bytes) -> None:
        world = self._world
        self._latest_ms = max(self._latest_ms, world.now_ms + world.between(0, self._delay_ms))
        self._pieces.append((self._latest_ms, piece))
        world.after(self._latest_ms - world.now_ms, self._deliver)

    @property
    def waiting_bytes(self) -> int:
        """What the other side has not read although it could."""
        return sum(len(piece) for _, piece in self._pieces) if self.is_stalled else 0

    def cut(self) -> None:
        self.is_cut = True
        self._pieces.clear()

    def resume(self) -> None:
        self.is_stalled = False
        self._deliver()

    def _deliver(self) -> None:
        if self.is_stalled:
            return
        ready = []
        while self._pieces and self._pieces[0][0] <= self._world.now_ms:
            piece = self._pieces.popleft()[1]
            if piece:
                ready.append(piece)
                continue
            if ready:
                self.receive(b"".join(ready))
            self._pieces.clear()
            self.receive(b"")
            return
        if ready:
            self.receive(b"".join(ready))


def _nobody(data: bytes) -> None:
    return None


def _nothing() -> None:
    return None


class Cable:
    """Both directions of one connection."""

    def __init__(self, world: World, delay_ms: int, torn_rate: float) -> None:
        self._world = world
        self.to_server = Wire(world, delay_ms, torn_rate)
        self.to_client = Wire(world, delay_ms, torn_rate)
        self.on_drained: Callable[[], None] = _nothing
        """The client has read what waited for it."""
        self.calm_since_ms = 0
        """Since when this connection is well."""
        self.is_cut = False

    def stall(self) -> None:
        """The client reads no more."""
        self.to_client.is_stalled = True

    def resume(self) -> None:
        """The client reads again."""
        if self.to_client.is_stalled:
            self.calm_since_ms = self._world.now_ms + 1_000
            self.to_client.resume()
            self.on_drained()

    def cut(self, notice_ms_max: int) -> None:
        """Nothing arrives any more; each end notices when it does."""
        if self.is_cut:
            return
        self.is_cut = True
        for wire in (self.to_server, self.to_client):
            wire.cut()
            self._world.after(self._world.between(0, notice_ms_max), lambda wire=wire: wire.receive(b""))  # type: ignore[misc]


class Watcher(Protocol):
    """Who looks at what the server hears and says."""

    def called(self, link: SimLink, request_id: int, opcode: int, message: bytes) -> None: ...
    def answering(self, link: SimLink, request_id: int, message: bytes) -> None: ...
    def pushing(self, link: SimLink, opcode: int, body: bytes) -> None: ...
    def parted(self, link: SimLink) -> None: ...


class SimLink:
    """The server's end: a `zapwire.Link` for a `Dispatcher`, without its socket and tasks."""

    def __init__(self, world: World, dispatcher: Dispatcher, watcher: Watcher, cable: Cable, bytes_scale: int) -> None:
        self._world = world
        self._dispatcher = dispatcher
        self._watcher = watcher
        self._bytes_scale = bytes_scale
        self.cable = cable
        cable.to_server.receive = self._receive
        cable.on_drained = self._drained
        self._machine: Connection[None] = Connection(Role.SERVER, Hello("server", Capability.RECEIPTS))
        self._unread: list[bytes] = []
        """What came while too much waited for the peer."""
        self._waiting: list[tuple[int, Coroutine[Any, Any, None]]] = []
        self._stall: Timer | None = None
        self._is_known = False
        """The dispatcher was told of the beginning."""
        self.is_over = False

    def __repr__(self) -> str:
        return f"<SimLink {self.node_id}>"

    # --- what a dispatcher uses of a link --------------------------------------------------------------

    @property
    def node_id(self) -> str:
        return self._machine.peer.node_id if self._machine.peer is not None else "nobody"

    @property
    def capabilities(self) -> Capability:
        return self._machine.capabilities

    @property
    def outbox_bytes(self) -> int:
        return self.cable.to_client.waiting_bytes * self._bytes_scale

    def owes(self, request_id: int) -> bool:
        return not self.is_over and self._machine.owes(request_id)

    def reply_raw(self, request_id: int, message: bytes) -> None:
        if not self.is_over:
            frame = self._machine.reply_raw(request_id, message)
            self._watcher.answering(self, request_id, message)
            self._write(frame)

    def reply(self, request_id: int, status: int, body: bytes = b"null", error: str = "", *, flags: int = 0) -> None:
        self.reply_raw(request_id, encode_response(status, body, error, flags))

    def send(self, opcode: int, body: bytes, *, flags: int = 0) -> None:
        if not self.is_over:
            self._watcher.pushing(self, opcode, body)
            self._write(self._machine.push(opcode, body, flags=flags))

    def start_soon(self, function: Callable[..., Awaitable[None]], *args: object) -> None:
        self._world.count("waits for a peer to read")
        self._advance(cast("Coroutine[Any, Any, None]", function(*args)))

    async def wait_sent(self, size: int = 0) -> None:
        while self.outbox_bytes > size:
            await _below(size)

    def _advance(self, task: Coroutine[Any, Any, None]) -> None:
        try:
            size = task.send(None)
        except StopIteration:
            return
        self._waiting.append((size, task))

    # --- bytes ---------------------------------------------------------------------------------------

    def _write(self, frame: bytes) -> None:
        wire = self.cable.to_client
        wire.send(frame)
        if not wire.is_stalled or self.is_over:
            return
        if self.outbox_bytes > LIMITS.outbox_bytes:
            self._world.count("outbox full")
            self._world.after(0, lambda: self.lose(ConnectionLost("too much waits for the peer")))
        elif self._stall is None:
            self._stall = self._world.after(STALL_MS_MAX, self._give_up)

    def _give_up(self) -> None:
        self._world.count("stalled peer given up")
        self.lose(ConnectionLost("the peer takes nothing"))

    def _receive(self, data: bytes) -> None:
        if self.is_over:
            return
        if not data:
            self.lose(ConnectionLost("the peer is gone"))
        elif self.outbox_bytes > LIMITS.pause_bytes or self._unread:
            self._world.count("reading paused")
            self._unread.append(data)
        else:
            self._read(data)

    def _drained(self) -> None:
        if self.is_over:
            return
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        waiting, self._waiting = self._waiting, []
        for _, task in waiting:
            self._advance(task)
        unread, self._unread = self._unread, []
        for data in unread:
            if not self.is_over:
                self._read(data)

    def _read(self, data: bytes) -> None:
        dispatcher, link = self._dispatcher, cast(Link, self)
        for event in self._machine.receive_data(data):
            match event:
                case HelloReceived():
                    self._write(self._machine.hello_frame())
                    dispatcher.connected(link)
                    self._is_known = True
                case CallReceived():
                    self._watcher.called(self, event.request_id, event.envelope.opcode, event.message)
                    dispatcher.on_call(link, event.request_id, event.envelope, event.message)
                case PushReceived():
                    dispatcher.on_push(link, event.envelope)
                case CallRefused():
                    self._world.fail("wire", f"a call of {self.node_id} was refused: {event.status} {event.reason}")
                case Ended():
                    self._world.fail("wire", f"the stream of {self.node_id} broke: {event.error}")
                case _:
                    raise AssertionError(f"a server makes no calls: {event!r}")
        dispatcher.batch_end(link)

    # --- the end -------------------------------------------------------------------------------------

    def lose(self, error: ZapError) -> None:
        """The server's end notices that the connection is over."""
        if self.is_over:
            return
        self.abandon()
        self.cable.to_client.end()
        self._watcher.parted(self)
        if self._is_known:
            self._dispatcher.disconnected(cast(Link, self), error)

    def abandon(self) -> None:
        """The process is gone: nobody is told."""
        self.is_over = True
        for _, task in self._waiting:
            task.close()
        self._waiting.clear()
        if self._stall is not None:
            self._stall.cancel()


@types.coroutine
def _below(size: int) -> Generator[int, None, None]:
    yield size
