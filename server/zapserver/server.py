"""A whole server in one block: the ZAP listener, the engine's timer, and HTTP.

    async with open_server(Settings(zap=Address("127.0.0.1", 0))) as server:
        print(server.zap_address)

Everything runs in the block's own nursery. Leaving the block drains the server: it takes nothing new and
answers what is in hand. Canceling the block cuts it off.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Any, Final, cast

import anycorn
import structlog
import trio
from starlette.types import ASGIApp, Receive, Scope, Send

from zapserver.dispatch import Dispatcher
from zapserver.http import make_app
from zapserver.namespaces import Namespaces
from zapserver.settings import Address, Settings
from zapserver.timer import Timer
from zaptasks.groups import unwrapped
from zapwire.listener import open_listener
from zapwire.tcp import bind_tcp

HTTP_IDLE_SECONDS_MAX: Final = 10.0
"""How long a connection may take for a request's header, and may stay idle between two requests."""
HTTP_DRAIN_SECONDS_MAX: Final = 3.0
HTTP_UNREAD_MS_MAX: Final = 10_000
"""A client that does not read its answers is cut off by the kernel: the HTTP server itself would wait for ever."""
HTTP_BACKLOG: Final = 256

log = structlog.get_logger("zapserver")


class StartError(Exception):
    """The server cannot start; the message says which address is in the way, and why."""


def wall_clock_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class Server:
    """A running server. `dispatcher` is for those who embed one and want to look inside."""

    def __init__(self, dispatcher: Dispatcher, zap_address: Address, http_address: Address) -> None:
        self.dispatcher = dispatcher
        self.zap_address = zap_address
        self.http_address = http_address


@asynccontextmanager
async def open_server(
    settings: Settings, *, clock: Callable[[], int] = wall_clock_ms, ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """Serve until the block ends. With `ssl_context`, ZAP is spoken over TLS.

    `clock` returns milliseconds since the epoch.

    Raises:
        StartError: an address cannot be had; nothing has been served.
    """
    dispatcher = Dispatcher(Namespaces(settings.namespace, now_ms=clock()), clock=clock)
    with unwrapped():
        async with AsyncExitStack() as stack:
            http_sockets = await _bind_http(settings.http)
            for sock in http_sockets:
                stack.enter_context(sock)
            http_address = Address(*http_sockets[0].getsockname()[:2])
            try:
                listener = await stack.enter_async_context(
                    open_listener(
                        settings.zap.host,
                        settings.zap.port,
                        dispatcher,
                        node_id=settings.node_id,
                        details={"sdk": "zapserver", "version": version("zaptasks")},
                        ssl_context=ssl_context,
                    )
                )
            except OSError as error:
                raise StartError(_cannot_listen("ZAP", settings.zap, error)) from None
            timers = await stack.enter_async_context(trio.open_nursery())
            timers.start_soon(Timer(dispatcher).run)
            async with trio.open_nursery() as serving:
                draining = trio.Event()
                await serving.start(_serve_http, dispatcher, http_sockets, draining)
                yield Server(dispatcher, Address(*listener.address), http_address)
                # Both at once, so that neither takes anything new while the other one ends.
                draining.set()
                serving.start_soon(listener.aclose)
            timers.cancel_scope.cancel()


# --- HTTP ---------------------------------------------------------------------------------------------


async def _serve_http(
    dispatcher: Dispatcher,
    sockets: list[socket.socket],
    draining: trio.Event,
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    config = anycorn.Config()
    # The sockets are ours, bound already, so that a port in use is known before anything runs.
    config.bind = [f"fd://{sock.detach()}" for sock in sockets]
    config.backlog = HTTP_BACKLOG
    config.keep_alive_timeout = HTTP_IDLE_SECONDS_MAX
    config.graceful_timeout = HTTP_DRAIN_SECONDS_MAX
    config.include_server_header = False
    config.errorlog = _http_logger()
    # An ASGI app and trio's task status are what anycorn takes; its types spell both differently.
    app, started = cast(Any, _without_lifespan(make_app(dispatcher))), cast(Any, task_status)
    await anycorn.serve(app, config, shutdown_trigger=draining.wait, mode="asgi", task_status=started)


def _without_lifespan(app: ASGIApp) -> ASGIApp:
    """Our app has nothing to start or stop. Starlette's own lifespan takes being canceled for a failure to stop,
    which would hide the exception that the server's block was canceled for."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for stage in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{stage}.complete"})

    return serve


async def _bind_http(address: Address) -> list[socket.socket]:
    try:
        sockets = await bind_tcp(address.host, address.port, backlog=HTTP_BACKLOG)
    except OSError as error:
        raise StartError(_cannot_listen("HTTP", address, error)) from None
    for sock in sockets:
        # Accepted sockets inherit both.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, HTTP_UNREAD_MS_MAX)
    return sockets


def _cannot_listen(what: str, address: Address, error: OSError) -> str:
    # A name that cannot be resolved is an OSError too, with a number of another kind.
    reason = str(error) if isinstance(error, socket.gaierror) or not error.errno else os.strerror(error.errno)
    return f"{what} address {address} cannot be had: {reason}"


def _http_logger() -> logging.Logger:
    """Its warnings and errors. What it says about every start and request is said better elsewhere."""
    logger = logging.getLogger("zapserver.http")
    logger.setLevel(logging.WARNING)
    return logger
