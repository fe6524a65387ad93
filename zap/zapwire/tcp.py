"""Plain sockets for links: connected, bound, and tuned, all non-blocking."""

from __future__ import annotations

import contextlib
import socket
from typing import Final

import trio

BACKLOG: Final = 1024
"""Connections that may wait to be accepted: a restarted server meets all its workers at once."""

KEEPALIVE_IDLE_SECONDS: Final = 30
KEEPALIVE_INTERVAL_SECONDS: Final = 10
KEEPALIVE_PROBES: Final = 3
"""A vanished peer of an idle connection is noticed after 30 + 3 * 10 seconds."""

UNACKNOWLEDGED_MILLISECONDS: Final = 60_000
"""How long sent bytes may go unacknowledged. Keep-alive says nothing while there are any, and the kernel alone
would try for a quarter of an hour."""

# Not every system has every option.
_OPTIONS: Final = (
    (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", KEEPALIVE_IDLE_SECONDS),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", KEEPALIVE_INTERVAL_SECONDS),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", KEEPALIVE_PROBES),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", UNACKNOWLEDGED_MILLISECONDS),
)


def tune(sock: socket.socket) -> None:
    """Make a connected socket non-blocking, send small frames at once, and notice a vanished peer."""
    sock.setblocking(False)
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    for level, name, value in _OPTIONS:
        if hasattr(socket, name):
            # A peer that is already gone makes some systems refuse; the first read will tell.
            with contextlib.suppress(OSError):
                sock.setsockopt(level, getattr(socket, name), value)


async def connect_tcp(host: str, port: int) -> socket.socket:
    """Connect to the first address of `host` that answers. Raises `OSError` with what each of them said."""
    try:
        stream = await trio.open_tcp_stream(host, port)
    except OSError as error:
        attempts = error.__cause__
        if isinstance(attempts, BaseExceptionGroup):
            raise OSError("; ".join(str(attempt) for attempt in attempts.exceptions)) from error
        raise
    sock = socket.socket(fileno=stream.socket.detach())
    tune(sock)
    return sock


async def bind_tcp(host: str, port: int, *, backlog: int = BACKLOG) -> list[socket.socket]:
    """Listen on every address of `host`, on the same port; port 0 is any free one. Raises `OSError`."""
    found = await trio.socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], port, *address[2:]))
            sock.listen(backlog)
            sock.setblocking(False)
            port = sock.getsockname()[1]
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets
