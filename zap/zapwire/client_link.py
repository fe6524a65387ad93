"""The client's end: one connection, or one that comes back by itself."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
import trio

from zapwire.connection import Role
from zapwire.envelope import Envelope
from zapwire.errors import BadHandshake, ConnectionLost, NotSent, ZapError
from zapwire.frame import Buffer
from zapwire.handshake import Capability, Hello
from zapwire.link import Link
from zapwire.link_group import LinkGroup, LinkLimits, open_link_group
from zapwire.link_handler import LinkHandler, RefusingHandler
from zapwire.tcp import connect_tcp

# Not structlog's default, which prints: a library must leave an application's stdout alone.
log = structlog.wrap_logger(logging.getLogger(__name__))


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait between attempts to connect: a random part of a bound that doubles (full jitter).

    The bound starts anew after a connection that held for `seconds_max`.
    """

    seconds_min: float = 0.1
    seconds_max: float = 10.0

    def delay(self, failures: int, source: random.Random) -> float:
        """The pause in seconds after so many attempts in a row."""
        bound = min(self.seconds_max, self.seconds_min * 2.0 ** min(failures, 32))
        return source.uniform(0, bound)


class Address(Protocol):
    """Where a link is opened to. Its text is for people."""

    async def open(self, group: LinkGroup) -> Link:
        """Connect and shake hands. Raises `BadHandshake` or `ConnectionLost`."""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """Where to connect over TCP, and how."""

    host: str
    port: int
    ssl_context: ssl.SSLContext | None
    connect_timeout: float

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    async def open(self, group: LinkGroup) -> Link:
        """Connect and shake hands. Raises `BadHandshake` or `ConnectionLost`."""
        try:
            with trio.fail_after(self.connect_timeout):
                sock = await connect_tcp(self.host, self.port)
        except trio.TooSlowError:
            raise ConnectionLost(f"no connection to {self} within {self.connect_timeout:g} s") from None
        except OSError as error:
            raise ConnectionLost(f"no connection to {self}: {error}") from error
        if self.ssl_context is not None:
            try:
                sock = self.ssl_context.wrap_socket(sock, server_hostname=self.host, do_handshake_on_connect=False)
            except OSError as error:
                raise ConnectionLost(f"{self} closed the connection before the TLS handshake: {error}") from error
        link = Link(sock, Role.CLIENT, group)
        await link.shake_hands()
        return link


@contextlib.asynccontextmanager
async def open_link(
    host: str,
    port: int,
    *,
    node_id: str,
    handler: LinkHandler | None = None,
    capabilities: Capability = Capability.CBOR_BODIES,
    details: Mapping[str, Any] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    connect_timeout: float = 5.0,
    limits: LinkLimits | None = None,
) -> AsyncIterator[Link]:
    """Connect to a peer; at the end of the block the connection is closed as by `Link.aclose`.

    `node_id`, `capabilities` and `details` are what the peer is told in the handshake. Without a `handler`
    every call of the peer is answered 501 and its one-way messages are ignored. `connect_timeout` is in seconds
    and ends at the TCP connection; then the handshake's limit counts. Raises `ConnectionLost` or `BadHandshake`
    when there is no connection, `LocalProtocolError` for a node id that is not 1 to 60 bytes of printable ASCII.
    When the connection ends, calls fail and the block goes on: see `open_reconnecting_link`.
    """
    hello = Hello(node_id, capabilities, details or {})
    address = TcpAddress(host, port, ssl_context, connect_timeout)
    async with open_link_group(hello, handler or RefusingHandler(), limits or LinkLimits()) as group:
        link = await address.open(group)
        link.begin()
        group.nursery.start_soon(link.run)
        try:
            yield link
        finally:
            await link.aclose()


class ReconnectingLink:
    """A connection that comes back: calls wait for it, up to their timeout; opened with `open_reconnecting_link`."""

    def __init__(
        self,
        address: Address,
        group: LinkGroup,
        *,
        backoff: Backoff,
        random_source: random.Random,
        on_connected: Callable[[Link], Awaitable[None]] | None,
    ) -> None:
        self._address = address
        self._group = group
        self._backoff = backoff
        self._random = random_source
        self._on_connected = on_connected
        self._link: Link | None = None
        self._connected = trio.Event()
        self._failure: ZapError | None = None
        self._closed: NotSent | None = None
        self._running = trio.CancelScope()
        self.attempts = 0
        """Attempts to connect so far."""
        self.first_attempt = trio.Event()
        """Set when the first attempt has ended, either way."""

    @property
    def failure(self) -> ZapError | None:
        """Why the last attempt or connection ended; None before the first end."""
        return self._failure

    @property
    def link(self) -> Link | None:
        """The connection that calls go to now, if there is one."""
        link = self._link
        return link if link is not None and link.open else None

    async def wait_connected(self) -> Link:
        """Wait until calls can be sent, and return the link that they go to."""
        while True:
            if self._closed is not None:
                raise NotSent(f"the connection was closed: {self._closed}")
            link = self.link
            if link is not None:
                return link
            if self._connected.is_set():
                # The link has ended in this tick and its task has not run yet.
                await trio.lowlevel.checkpoint()
            else:
                await self._connected.wait()

    async def call(
        self, opcode: int, body: Buffer = b"{}", *, timeout: float | None = None, flags: int = 0
    ) -> Envelope:
        """As `Link.call`. Without a connection the call waits for one, then for the rest of its timeout.

        It is never sent twice: a call that was made on a connection that ends fails with it.
        """
        link = self.link
        if link is None:
            link, timeout = await self._wait_for_link(timeout)
        return await link.call(opcode, body, timeout=timeout, flags=flags)

    async def call_raw(self, message: Buffer, *, timeout: float | None = None) -> bytes:
        """As `Link.call_raw`. Without a connection the call waits for one, then for the rest of its timeout."""
        link = self.link
        if link is None:
            link, timeout = await self._wait_for_link(timeout)
        return await link.call_raw(message, timeout=timeout)

    def send(self, opcode: int, body: Buffer, *, flags: int = 0) -> None:
        """As `Link.send`. Raises `NotSent` when there is no connection."""
        link = self.link
        if link is None:
            raise NotSent(f"not connected to {self._address}: {self._failure or 'connecting'}")
        link.send(opcode, body, flags=flags)

    async def _wait_for_link(self, timeout: float | None) -> tuple[Link, float | None]:
        """A link, and what is left of the timeout."""
        start = trio.current_time()
        with trio.move_on_after(math.inf if timeout is None else timeout):
            link = await self.wait_connected()
            return link, None if timeout is None else max(0.0, start + timeout - trio.current_time())
        raise NotSent(f"not connected to {self._address} within {timeout:g} s: {self._failure or 'connecting'}")

    async def aclose(self, reason: str = "this end closed the connection") -> None:
        """Close the connection as `Link.aclose` does, and connect no more. Calls that wait get `NotSent`."""
        self._closed = NotSent(reason)
        self._connected.set()
        try:
            if self._link is not None:
                await self._link.aclose(reason)
        finally:
            self._running.cancel()

    async def keep_connected(self) -> None:
        """Connect, serve, and connect again, until closed. The task of `open_reconnecting_link`."""
        failures = 0
        with self._running:
            while True:
                self.attempts += 1
                start = trio.current_time()
                self._failure = await self._connect_once()
                self.first_attempt.set()
                if self._closed is not None:
                    return
                if trio.current_time() - start >= self._backoff.seconds_max:
                    failures = 0
                pause = self._backoff.delay(failures, self._random)
                failures += 1
                log.info("not connected", address=str(self._address), reason=str(self._failure), retry_seconds=pause)
                await trio.sleep(pause)

    async def _connect_once(self) -> ZapError | None:
        """One connection from beginning to end; returns why it ended, or why there was none."""
        try:
            link = await self._address.open(self._group)
        except (BadHandshake, ConnectionLost) as error:
            return error
        link.begin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._publish, link)
            await link.run()
            nursery.cancel_scope.cancel()
        self._link = None
        if self._closed is None and self._connected.is_set():
            self._connected = trio.Event()
        return link.error

    async def _publish(self, link: Link) -> None:
        """Let `on_connected` use the new link first, then everybody."""
        if self._on_connected is not None:
            try:
                await self._on_connected(link)
            except Exception as error:
                log.error("on_connected failed", peer=link.node_id, exc_info=error)
                link.close(f"on_connected failed: {type(error).__name__}")
                return
        self._link = link
        self._connected.set()
        self.first_attempt.set()


def open_reconnecting_link(
    host: str,
    port: int,
    *,
    node_id: str,
    handler: LinkHandler | None = None,
    on_connected: Callable[[Link], Awaitable[None]] | None = None,
    capabilities: Capability = Capability.CBOR_BODIES,
    details: Mapping[str, Any] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    connect_timeout: float = 5.0,
    limits: LinkLimits | None = None,
    backoff: Backoff | None = None,
    random_source: random.Random | None = None,
) -> contextlib.AbstractAsyncContextManager[ReconnectingLink]:
    """Keep a connection to a peer, whatever happens to it; arguments as `open_link`.

    The block starts at once, connected or not. On every new connection `on_connected(link)` is awaited before
    other calls go, to subscribe again; it is canceled when that connection ends, and an error in it closes the
    connection, to be tried again later. `random_source` spreads the attempts of many clients.
    """
    return keep_link(
        TcpAddress(host, port, ssl_context, connect_timeout),
        Hello(node_id, capabilities, details or {}),
        handler=handler,
        on_connected=on_connected,
        limits=limits,
        backoff=backoff,
        random_source=random_source,
    )


@contextlib.asynccontextmanager
async def keep_link(
    address: Address,
    hello: Hello,
    *,
    handler: LinkHandler | None = None,
    on_connected: Callable[[Link], Awaitable[None]] | None = None,
    limits: LinkLimits | None = None,
    backoff: Backoff | None = None,
    random_source: random.Random | None = None,
) -> AsyncIterator[ReconnectingLink]:
    """As `open_reconnecting_link`, to an address of any kind."""
    async with open_link_group(hello, handler or RefusingHandler(), limits or LinkLimits()) as group:
        link = ReconnectingLink(
            address,
            group,
            backoff=backoff or Backoff(),
            random_source=random_source or random.Random(),
            on_connected=on_connected,
        )
        group.nursery.start_soon(link.keep_connected)
        try:
            yield link
        finally:
            await link.aclose()
