"""The server's end: accept connections, one task each, and hand them to one handler."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import structlog
import trio

from zapwire.connection import Role
from zapwire.errors import BadHandshake, ConnectionLost
from zapwire.handshake import Capability, Hello
from zapwire.link import Link
from zapwire.link_group import LinkGroup, LinkLimits, open_link_group
from zapwire.link_handler import LinkHandler
from zapwire.tcp import bind_tcp, tune

CONNECTIONS_MAX: Final = 10_000
"""Connections of one listener, handshakes included; a further one is closed as soon as it is accepted."""

CONNECTIONS_PER_ADDRESS_MAX: Final = 5_000
"""The same for those from one address: one machine, or everybody behind one proxy, leaves room for others."""

OVERLOAD_PAUSE_SECONDS: Final = 0.1
"""How long to wait before accepting again when the system has no descriptors or memory left."""

_OVERLOAD: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_FATAL: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP, errno.EFAULT})

# Not structlog's default, which prints: a library must leave an application's stdout alone.
log = structlog.wrap_logger(logging.getLogger(__name__))


class Listener:
    """Accepts connections until it is closed; opened with `open_listener`."""

    def __init__(
        self,
        sockets: list[socket.socket],
        group: LinkGroup,
        *,
        ssl_context: ssl.SSLContext | None,
        connections_max: int,
        connections_per_address_max: int,
    ) -> None:
        self._sockets = sockets
        self._group = group
        self._ssl_context = ssl_context
        self._connections_max = connections_max
        self._per_address_max = connections_per_address_max
        self._of_address: Counter[str] = Counter()
        self._links: dict[str, Link] = {}
        self._closed = False
        host, bound_port = sockets[0].getsockname()[:2]
        self.address: tuple[str, int] = (host, bound_port)
        """Where it listens: the first address, with the port that was really bound."""
        self.connections = 0
        """Connections now, handshakes included."""

    @property
    def refused(self) -> Mapping[str, int]:
        """How often each bound refused a peer something, by the bound's name."""
        return MappingProxyType(self._group.refused)

    @property
    def links(self) -> Mapping[str, Link]:
        """The open links by the peers' node ids."""
        return MappingProxyType(self._links)

    async def aclose(self, reason: str = "the server is closing") -> None:
        """Accept no more, send every peer what waits for it, within `close_seconds`, and close the connections.

        Cancel closes them at once.
        """
        self._closed = True
        for sock in self._sockets:
            if sock.fileno() >= 0:
                trio.lowlevel.notify_closing(sock)
                sock.close()
        async with trio.open_nursery() as nursery:
            for link in self._links.values():
                nursery.start_soon(link.aclose, reason)

    async def accept(self, listening: socket.socket) -> None:
        """Accept on one socket until the listener is closed. An error that no waiting can mend is raised."""
        while not self._closed:
            try:
                await trio.lowlevel.wait_readable(listening)
                sock, address = listening.accept()
            except (BlockingIOError, trio.ClosedResourceError):
                continue
            except OSError as error:
                if listening.fileno() < 0:
                    return  # it was closed in the tick in which a connection came
                if error.errno in _FATAL:
                    raise
                if error.errno in _OVERLOAD:
                    log.warning("cannot accept connections", error=str(error), connections=self.connections)
                    await trio.sleep(OVERLOAD_PAUSE_SECONDS)
                continue  # anything else is the end of that one connection
            host = str(address[0])
            limit = self._full(host)
            if limit:
                self._group.refused[limit] += 1
                log.warning("connection refused", peer=_text(address), limit=limit, connections=self.connections)
                sock.close()
                continue
            self.connections += 1
            self._of_address[host] += 1
            self._group.nursery.start_soon(self._serve, sock, host, _text(address))

    def _full(self, host: str) -> str:
        """The name of the bound that a connection from this address would break, or ""."""
        if self.connections >= self._connections_max:
            return "connections"
        return "connections-per-address" if self._of_address[host] >= self._per_address_max else ""

    async def _serve(self, sock: socket.socket, host: str, address: str) -> None:
        """One connection, from its handshake to its end."""
        try:
            try:
                link = await self._shake_hands(sock)
            except (BadHandshake, ConnectionLost) as error:
                log.info("no handshake", peer=address, reason=str(error))
                return
            self._replace(link)
            try:
                link.begin()
                await link.run()
            finally:
                if self._links.get(link.node_id) is link:
                    del self._links[link.node_id]
        finally:
            self.connections -= 1
            self._of_address[host] -= 1
            if not self._of_address[host]:
                del self._of_address[host]

    async def _shake_hands(self, sock: socket.socket) -> Link:
        tune(sock)
        if self._ssl_context is not None:
            try:
                sock = self._ssl_context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            except OSError as error:
                raise ConnectionLost(f"the peer went before the TLS handshake: {error}") from error
        link = Link(sock, Role.SERVER, self._group)
        await link.shake_hands()
        return link

    def _replace(self, link: Link) -> None:
        """The newest connection of a node wins: a worker that restarted is not locked out until TCP notices."""
        older = self._links.get(link.node_id)
        self._links[link.node_id] = link
        if older is not None:
            log.info("connection replaced", peer=link.node_id)
            older.close(f"a newer connection of {link.node_id} took its place")
            older.finish()


@contextlib.asynccontextmanager
async def open_listener(
    host: str,
    port: int,
    handler: LinkHandler,
    *,
    node_id: str,
    capabilities: Capability = Capability.CBOR_BODIES,
    details: Mapping[str, Any] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    limits: LinkLimits | None = None,
    connections_max: int = CONNECTIONS_MAX,
    connections_per_address_max: int = CONNECTIONS_PER_ADDRESS_MAX,
    refused: Counter[str] | None = None,
) -> AsyncIterator[Listener]:
    """Listen on every address of `host` and serve every connection with `handler`.

    Port 0 is any free port: see `Listener.address`. `node_id`, `capabilities` and `details` are what peers are
    told in the handshake. A second connection with a node id that is connected already replaces the first one.
    `refused` counts by name what bounds refused.
    At the end of the block the listener is closed as by `aclose`. Raises `OSError` if it cannot listen, and
    `LocalProtocolError` for a node id that is not 1 to 60 bytes of printable ASCII.
    """
    hello = Hello(node_id, capabilities, details or {})
    async with open_link_group(hello, handler, limits or LinkLimits(), refused) as group:
        sockets = await bind_tcp(host, port)
        listener = Listener(
            sockets,
            group,
            ssl_context=ssl_context,
            connections_max=connections_max,
            connections_per_address_max=connections_per_address_max,
        )
        for sock in sockets:
            group.nursery.start_soon(listener.accept, sock)
        try:
            yield listener
        finally:
            await listener.aclose()


def _text(address: object) -> str:
    match address:
        case (str(host), int(port), *_):
            return f"{host}:{port}"
    return str(address)
