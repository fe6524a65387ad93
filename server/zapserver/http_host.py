"""Hosting an ASGI app on anycorn: on sockets of ours, with bounds, and with care for what it does not take care of."""

from __future__ import annotations

import logging
import socket
from typing import Any, Final, cast

import anycorn
import trio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zapwire.tcp import bind_tcp

IDLE_SECONDS_MAX: Final = 10.0
"""How long a connection may take for a request's head, and may stay idle between two requests."""
DRAIN_SECONDS_MAX: Final = 3.0
"""What requests in hand get when the server ends."""
UNREAD_MS_MAX: Final = 10_000
"""A client that does not read its answers is cut off by the kernel: anycorn would wait for it for ever."""
BACKLOG: Final = 256


async def bind_http(host: str, port: int) -> list[socket.socket]:
    """Listen on every address of `host`. Raises OSError."""
    sockets = await bind_tcp(host, port, backlog=BACKLOG)
    for sock in sockets:
        # Accepted sockets inherit both.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS_MAX)
    return sockets


async def serve_http(
    app: ASGIApp,
    sockets: list[socket.socket],
    draining: trio.Event,
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `draining` is set; then take nothing new, and end when what is in hand is answered.

    Takes over the sockets, which are bound already: a port in use is known before anything runs.
    """
    config = anycorn.Config()
    config.bind = [f"fd://{sock.detach()}" for sock in sockets]
    config.backlog = BACKLOG
    config.keep_alive_timeout = IDLE_SECONDS_MAX
    config.graceful_timeout = DRAIN_SECONDS_MAX
    config.include_server_header = False
    config.errorlog = _logger()
    # An ASGI app and trio's task status are what anycorn takes; its types spell both differently.
    hosted, started = cast(Any, _hosted(app)), cast(Any, task_status)
    await anycorn.serve(hosted, config, shutdown_trigger=draining.wait, mode="asgi", task_status=started)


def _hosted(app: ASGIApp) -> ASGIApp:
    """The app, with the two things done that starlette and anycorn leave undone."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return

        async def send_and_discard(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                await _send_last(message, receive, send)
            else:
                await send(message)

        await app(scope, receive, send_and_discard)

    return serve


async def _lifespan(receive: Receive, send: Send) -> None:
    """There is nothing to start or stop. Starlette's own lifespan takes being canceled for a failure to stop, and
    would hide the exception that the server's block was canceled for."""
    for stage in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{stage}.complete"})


async def _send_last(message: Message, receive: Receive, send: Send) -> None:
    """Send the end of an answer while whatever else arrives is thrown away.

    After the end anycorn tells the app that the request is over, through the queue that only the app reads: when
    a client is still sending a body that was refused, that queue is full, and the connection would hang for ever.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_discard, receive)
        await send(message)
        nursery.cancel_scope.cancel()


async def _discard(receive: Receive) -> None:
    while True:
        await receive()


def _logger() -> logging.Logger:
    """anycorn's warnings and errors. What it says about every start and request is said better elsewhere."""
    logger = logging.getLogger("zapserver.http")
    logger.setLevel(logging.WARNING)
    return logger
