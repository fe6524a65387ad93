"""Peers for the link tests: a bare stream that sends what it is told, and a handler that remembers what it was told."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import trio

from zapwire.client_link import open_link
from zapwire.envelope import Envelope, decode_envelope, encode_push, encode_request, encode_response
from zapwire.errors import ZapError
from zapwire.frame import KIND_REQUEST, KIND_RESPONSE, call_frame, frame, split_call
from zapwire.handshake import Capability, Hello, decode_hello, encode_hello
from zapwire.link import Link
from zapwire.link_group import LinkLimits
from zapwire.link_handler import LinkHandler, RefusingHandler
from zapwire.listener import Listener, open_listener

ECHO: Final = 0xC5
"""Answered at once with its own body."""
HOLD: Final = 0xC6
"""Not answered until the test does."""
RAISE: Final = 0xC7
"""The handler raises what the test put into `Recorder.error`."""
NOTE: Final = 0xC8
"""One-way."""

GO_PEER: Final = Capability(0)
"""The capabilities of a peer that has none."""


class Recorder(RefusingHandler):
    """Serves the opcodes above, and writes down every call of a `LinkHandler` method in order."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str, object]] = []  # (method, peer, what it was about)
        self.links: list[Link] = []
        self.held: list[tuple[Link, int, bytes]] = []
        self.error: Exception = ValueError("boom")
        self.ends: list[ZapError] = []
        self._news = trio.Event()

    def _note(self, method: str, link: Link, about: object = None) -> None:
        self.log.append((method, link.node_id, about))
        self._news.set()
        self._news = trio.Event()

    async def until(self, ready: Callable[[], object]) -> None:
        """Wait until this is true; looked at after each call of the handler."""
        while not ready():
            await self._news.wait()

    def methods(self) -> list[str]:
        return [method for method, _, _ in self.log]

    def connected(self, link: Link) -> None:
        self.links.append(link)
        self._note("connected", link)

    def on_call(self, link: Link, request_id: int, envelope: Envelope, message: bytes) -> None:
        self._note("on_call", link, envelope.opcode)
        match envelope.opcode:
            case 0xC5:
                link.reply(request_id, 200, envelope.body)
            case 0xC6:
                self.held.append((link, request_id, bytes(envelope.body)))
            case 0xC7:
                raise self.error
            case _:
                super().on_call(link, request_id, envelope, message)

    def on_push(self, link: Link, envelope: Envelope) -> None:
        self._note("on_push", link, (envelope.opcode, bytes(envelope.body)))

    def batch_end(self, link: Link) -> None:
        self._note("batch_end", link)

    def disconnected(self, link: Link, error: ZapError) -> None:
        self.ends.append(error)
        self._note("disconnected", link, str(error))


class RawPeer:
    """One end of a TCP connection that knows ZAP and keeps to none of its rules by itself."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._received = bytearray()

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def say_hello(self, node_id: str = "raw", capabilities: Capability = GO_PEER) -> None:
        await self.send(frame(encode_hello(Hello(node_id, capabilities))))

    async def hear_hello(self) -> Hello:
        return decode_hello(await self.payload())

    async def call(self, request_id: int, opcode: int, body: bytes = b"{}") -> None:
        await self.send(framed_call(request_id, opcode, body))

    async def payload(self) -> bytes:
        """The next frame's payload."""
        (length,) = struct.unpack("<I", await self._exactly(4))
        return await self._exactly(length)

    async def message(self) -> tuple[int, int, Envelope]:
        """The next frame as (kind, request id, envelope)."""
        kind, request_id, message = split_call(await self.payload())
        return kind, request_id, decode_envelope(message)

    async def reply(self, request_id: int, status: int = 200, body: bytes = b"null", error: str = "") -> None:
        await self.send(call_frame(request_id, KIND_RESPONSE, encode_response(status, body, error)))

    async def ended(self) -> bool:
        """Wait for the end of the connection; False if anything but the end comes."""
        try:
            return not self._received and not await self.stream.receive_some(1)
        except trio.BrokenResourceError:
            return True

    async def _exactly(self, count: int) -> bytes:
        while len(self._received) < count:
            data = await self.stream.receive_some(65536)
            if not data:
                raise EOFError(f"the stream ended {len(self._received)} bytes into {count}")
            self._received += data
        data, self._received = bytes(self._received[:count]), self._received[count:]
        return data

    def vanish(self) -> None:
        """Reset the connection, as a peer that crashed does."""
        self.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()


def framed_call(request_id: int, opcode: int, body: bytes = b"{}") -> bytes:
    return call_frame(request_id, KIND_REQUEST, encode_request(opcode, body))


def framed_push(opcode: int, body: bytes = b"{}") -> bytes:
    return frame(encode_push(opcode, body))


@contextlib.asynccontextmanager
async def raw_client(listener: Listener, *, small_buffers: bool = False) -> AsyncIterator[RawPeer]:
    """A bare connection to a listener of ours."""
    sock = trio.socket.socket()
    if small_buffers:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect(listener.address)
    async with trio.SocketStream(sock) as stream:
        yield RawPeer(stream)


class RawServer:
    """A bare listener; what it accepts does only what the test says."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        self.port: int = listener.socket.getsockname()[1]
        self.accepted: list[RawPeer] = []

    async def accept(self) -> RawPeer:
        peer = RawPeer(await self._listener.accept())
        self.accepted.append(peer)
        return peer

    async def accept_and_greet(self, capabilities: Capability = GO_PEER) -> RawPeer:
        """Accept a connection and do the handshake as a server does."""
        peer = await self.accept()
        await peer.hear_hello()
        await peer.say_hello("raw-server", capabilities)
        return peer


@contextlib.asynccontextmanager
async def raw_server(*, small_buffers: bool = False) -> AsyncIterator[RawServer]:
    """A bare listener on a free port."""
    sock = trio.socket.socket()
    if small_buffers:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.bind(("127.0.0.1", 0))
    sock.listen(16)
    async with trio.SocketListener(sock) as listener:
        server = RawServer(listener)
        try:
            yield server
        finally:
            for peer in server.accepted:
                await peer.stream.aclose()


@contextlib.asynccontextmanager
async def linked_to_raw(
    *,
    capabilities: Capability = GO_PEER,
    limits: LinkLimits | None = None,
    handler: LinkHandler | None = None,
    small_buffers: bool = False,
) -> AsyncIterator[tuple[Link, RawPeer]]:
    """A client link of ours and the bare server that it is connected to."""
    greeted: list[RawPeer] = []
    async with raw_server(small_buffers=small_buffers) as server:

        async def greet() -> None:
            greeted.append(await server.accept_and_greet(capabilities))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(greet)
            async with open_link("127.0.0.1", server.port, node_id="client", limits=limits, handler=handler) as link:
                while not greeted:
                    await trio.lowlevel.checkpoint()
                yield link, greeted[0]


@contextlib.asynccontextmanager
async def neighbor(listener: Listener) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """A second client of a listener; calling it fails unless its own connection has worked all the time."""
    host, port = listener.address
    async with open_link(host, port, node_id="neighbor") as link:

        async def works() -> None:
            assert (await link.call(ECHO, b"still here")).body == b"still here"

        await works()
        yield works


@contextlib.asynccontextmanager
async def served(limits: LinkLimits | None = None) -> AsyncIterator[tuple[Link, Listener, Recorder]]:
    """A client's link to a listener, both ours, and the handler of the listener."""
    recorder = Recorder()
    async with (
        open_listener("127.0.0.1", 0, recorder, node_id="server", limits=limits) as listener,
        open_link(*listener.address, node_id="client", limits=limits) as link,
    ):
        yield link, listener, recorder


def decode_reply(payload: bytes) -> tuple[int, int, bytes]:
    """(request id, status, body) of an answer's payload."""
    kind, request_id, message = split_call(payload)
    assert kind == KIND_RESPONSE
    envelope = decode_envelope(message)
    return request_id, envelope.status, bytes(envelope.body)
