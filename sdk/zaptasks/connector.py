"""Where the server is, and how this process introduces itself there."""

from __future__ import annotations

import os
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import trio

from zapwire.client_link import Backoff, ReconnectingLink, open_reconnecting_link
from zapwire.handshake import BODIES, CBOR, NODE_ID_BYTES_MAX, Capability
from zapwire.link import Link
from zapwire.link_handler import LinkHandler

from .options import Bodies

VERSION: Final = "0.1.0"
SDK_NAME: Final = "zaptasks-python"

CAPABILITIES: Final = Capability.CBOR_BODIES | Capability.RECEIPTS
"""What clients and workers can do beyond v1."""

ZAP_PORT: Final = 9999
"""Where a server listens unless it was told otherwise."""


def parse_address(text: str) -> tuple[str, int]:
    """Read "host:port", "host" (port 9999), "port" or ":port" (this machine), "[::1]:port". Raises `ValueError`."""
    host, separator, port = text.strip().rpartition(":")
    if (not separator and not port.isdecimal()) or (text.count(":") > 1 and not host.endswith("]")):
        host, port = text.strip(), str(ZAP_PORT)
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if "/" in text or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is no address of a ZAP server: write host:port, such as 127.0.0.1:{ZAP_PORT}")
    return host, int(port)


def parse_url(url: str) -> str:
    """A server's HTTP address, without a slash at its end. Raises `ValueError`."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no URL of a server: write one such as http://127.0.0.1:7243")
    return url.rstrip("/")


def default_identity() -> str:
    """Who we are to people who look at the server: the host and the process, as Go's workers say it."""
    return f"{socket.gethostname()}@{os.getpid()}"


def node_id(identity: str) -> str:
    """A name for one connection. It is unique, because the newest connection of a name replaces the older one."""
    suffix = f"-{secrets.token_hex(4)}"
    readable = "".join(character if "!" <= character <= "~" else "_" for character in identity)
    return readable[: NODE_ID_BYTES_MAX - len(suffix)] + suffix


class ConnectionCount:
    """How often a connection was made, for those who act on each."""

    def __init__(self) -> None:
        self._count = 0
        self._another = trio.Event()

    async def add(self, link: Link) -> None:
        self._count += 1
        self._another.set()
        self._another = trio.Event()

    async def wait(self, after: int) -> int:
        """Wait for a connection later than the `after`-th, and return its number."""
        while self._count <= after:
            await self._another.wait()
        return self._count


@dataclass(frozen=True, slots=True, kw_only=True)
class Connector:
    """Opens connections to one server."""

    host: str
    port: int
    identity: str
    ssl_context: ssl.SSLContext | None = None
    backoff: Backoff | None = None
    bodies: Bodies = "json"

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def open(
        self,
        handler: LinkHandler | None = None,
        *,
        on_connected: Callable[[Link], Awaitable[None]] | None = None,
    ) -> AbstractAsyncContextManager[ReconnectingLink]:
        """A connection of its own that comes back by itself; the block is entered at once, connected or not."""
        return open_reconnecting_link(
            self.host,
            self.port,
            node_id=node_id(self.identity),
            handler=handler,
            on_connected=on_connected,
            capabilities=CAPABILITIES,
            details={"sdk": SDK_NAME, "version": VERSION, **({BODIES: CBOR} if self.bodies == "cbor" else {})},
            ssl_context=self.ssl_context,
            backoff=self.backoff,
        )
