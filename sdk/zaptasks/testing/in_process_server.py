"""The server in this process: the real dispatcher and engine, with a store that keeps nothing, at the end of socket
pairs instead of a port."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count

from zapserver.dispatch import Dispatcher
from zapserver.namespaces import Namespaces
from zaptasks.connector import CAPABILITIES, SDK_NAME, VERSION, Connector, node_id
from zaptasks.worker import Worker
from zapwire.client_link import ReconnectingLink, keep_link
from zapwire.connection import Role
from zapwire.errors import BadHandshake, ConnectionLost, ZapError
from zapwire.handshake import Hello
from zapwire.link import Link
from zapwire.link_group import LinkGroup, LinkLimits, open_link_group
from zapwire.link_handler import LinkHandler

from .skipping import VirtualClock


class WatchedDispatcher(Dispatcher):
    """Tells of everything that a connection brought."""

    def __init__(self, namespaces: Namespaces, clock: VirtualClock) -> None:
        super().__init__(namespaces, clock=clock)
        self.on_news: Callable[[], None] = _nothing

    def batch_end(self, link: Link) -> None:
        super().batch_end(link)
        self.on_news()

    def disconnected(self, link: Link, error: ZapError) -> None:
        super().disconnected(link, error)
        self.on_news()


class InProcessServer:
    """A server without an address. It is one for `zapwire.client_link.keep_link`."""

    def __init__(self, dispatcher: WatchedDispatcher, group: LinkGroup) -> None:
        self.dispatcher = dispatcher
        self._group = group

    def __str__(self) -> str:
        return "the server in this process"

    async def open(self, group: LinkGroup) -> Link:
        """A link of `group` to this server. Raises `ConnectionLost` once the server has ended."""
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setblocking(False)
        self._group.nursery.start_soon(self._serve, theirs)
        link = Link(ours, Role.CLIENT, group)
        await link.shake_hands()
        return link

    async def _serve(self, sock: socket.socket) -> None:
        link = Link(sock, Role.SERVER, self._group)
        try:
            await link.shake_hands()
        except (BadHandshake, ConnectionLost):  # its client was canceled meanwhile
            return
        link.begin()
        await link.run()


@dataclass(frozen=True, slots=True, kw_only=True)
class InProcessConnector(Connector):
    """How clients and workers find an `InProcessServer`."""

    server: InProcessServer
    workers: list[Worker]
    """Those that are connected."""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return str(self.server)

    @asynccontextmanager
    async def open(
        self,
        handler: LinkHandler | None = None,
        *,
        on_connected: Callable[[Link], Awaitable[None]] | None = None,
    ) -> AsyncIterator[ReconnectingLink]:
        hello = Hello(node_id(self.identity), CAPABILITIES, {"sdk": SDK_NAME, "version": VERSION})
        if isinstance(handler, Worker):
            self.workers.append(handler)
        try:
            async with keep_link(self.server, hello, handler=handler, on_connected=on_connected) as link:
                yield link
        finally:
            if isinstance(handler, Worker):
                self.workers.remove(handler)


@asynccontextmanager
async def open_in_process_server(clock: VirtualClock) -> AsyncIterator[InProcessServer]:
    """A server for the length of the block. Its ids and its randomness are the same every time."""
    randoms = random.Random(0)
    numbers = count(1)
    namespaces = Namespaces(
        now_ms=clock.now_ms,
        new_id=lambda: f"{next(numbers):08x}{randoms.getrandbits(96):024x}",
        random=randoms.random,
    )
    dispatcher = WatchedDispatcher(namespaces, clock)
    hello = Hello("zaptasks-testing", CAPABILITIES, {"sdk": "zapserver", "version": VERSION})
    async with open_link_group(hello, dispatcher, LinkLimits()) as group:
        yield InProcessServer(dispatcher, group)


def _nothing() -> None:
    return None
