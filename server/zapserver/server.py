"""A whole server in one block: the ZAP listener, the engine's timer, and HTTP.

    async with open_server(Settings(zap=Address("127.0.0.1", 0))) as server:
        print(server.zap_address)

Everything runs in the block's own nursery. Leaving the block drains the server: it takes nothing new and
answers what is in hand. Canceling the block cuts it off.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version

import structlog
import trio

from zapserver.clock import SteadyClock
from zapserver.dispatch import Dispatcher
from zapserver.http import make_app
from zapserver.http_host import bind_http, serve_http
from zapserver.mending import Mender
from zapserver.namespaces import Namespaces
from zapserver.settings import MEMORY, Address, Settings
from zapserver.store import StoreError
from zapserver.stores import Stores
from zapserver.sweeping import Sweeper
from zapserver.timer import Timer
from zaptasks.groups import unwrapped
from zapwire.handshake import Capability
from zapwire.link_group import LinkLimits
from zapwire.listener import open_listener

CAPABILITIES = Capability.CBOR_BODIES | Capability.RECEIPTS
"""What the server can do beyond v1, with peers that can do it too."""

log = structlog.get_logger("zapserver")


class StartError(Exception):
    """The server cannot start; the message says which address or file is in the way, and why."""


class Server:
    """A running server. `dispatcher` is for those who embed one and want to look inside."""

    def __init__(self, dispatcher: Dispatcher, zap_address: Address, http_address: Address) -> None:
        self.dispatcher = dispatcher
        self.zap_address = zap_address
        self.http_address = http_address


@asynccontextmanager
async def open_server(
    settings: Settings, *, clock: Callable[[], int] | None = None, ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """Serve until the block ends. With `ssl_context`, ZAP is spoken over TLS.

    `clock` returns milliseconds since the epoch; by default it is a `SteadyClock`.

    Raises:
        StartError: an address or the data cannot be had; nothing has been served.
    """
    bounds = settings.server_limits
    with unwrapped():
        async with AsyncExitStack() as stack:
            stores = Stores(settings.data)
            stack.callback(stores.close)
            steady = SteadyClock()
            clock = clock or steady
            namespaces = _open_namespaces(stores, settings, clock())
            steady.not_before(max(namespace.engine.now_ms for namespace in namespaces))
            dispatcher = Dispatcher(namespaces, clock=clock)
            try:
                http_sockets = await bind_http(settings.http.host, settings.http.port)
            except OSError as error:
                raise StartError(_cannot_listen("HTTP", settings.http, error)) from None
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
                        capabilities=CAPABILITIES,
                        details={"sdk": "zapserver", "version": version("zaptasks")},
                        ssl_context=ssl_context,
                        limits=LinkLimits(unanswered_calls=bounds.calls_in_flight_max),
                        connections_max=bounds.connections_max,
                        connections_per_address_max=bounds.connections_per_address_max,
                        refused=dispatcher.namespaces.refused,
                    )
                )
            except OSError as error:
                raise StartError(_cannot_listen("ZAP", settings.zap, error)) from None
            timers = await stack.enter_async_context(trio.open_nursery())
            timers.start_soon(Timer(dispatcher).run)
            timers.start_soon(Mender(dispatcher).run)
            timers.start_soon(Sweeper(dispatcher).run)
            async with trio.open_nursery() as serving:
                draining = trio.Event()
                await serving.start(serve_http, make_app(dispatcher), http_sockets, draining)
                yield Server(dispatcher, Address(*listener.address), http_address)
                # Both at once, so that neither takes anything new while the other one ends.
                draining.set()
                dispatcher.is_ending = True
                await dispatcher.settle()
                serving.start_soon(listener.aclose)
            timers.cancel_scope.cancel()


def _open_namespaces(stores: Stores, settings: Settings, now_ms: int) -> Namespaces:
    began = time.perf_counter()
    try:
        namespaces = Namespaces(
            settings.namespace,
            now_ms=now_ms,
            limits=settings.limits,
            open_store=stores.open,
            known=stores.known(),
            namespaces_max=min(settings.server_limits.namespaces_max, stores.namespaces_max),
        )
    except StoreError as error:
        raise StartError(f"data directory {settings.data}: {error}") from error
    except OSError as error:
        raise StartError(f"data directory {settings.data} cannot be used: {error}") from error
    if settings.data != MEMORY:
        _tell_what_was_found(namespaces, settings.data, time.perf_counter() - began)
    return namespaces


def _tell_what_was_found(namespaces: Namespaces, data: str, seconds: float) -> None:
    counts = [namespace.engine.views.counts() for namespace in namespaces]
    log.info(
        "opened",
        data=data,
        namespaces=len(namespaces),
        open_executions=sum(each["open_executions"] for each in counts),
        schedules=sum(each["schedules"] for each in counts),
        seconds=round(seconds, 3),
    )
    for name, error in namespaces.unreadable.items():
        log.error("a namespace cannot be read and is not served", namespace=name, reason=str(error))
    for namespace in namespaces:
        for damage in namespace.damaged:
            log.error("a record is damaged and not served", namespace=namespace.name, reason=str(damage))


def _cannot_listen(what: str, address: Address, error: OSError) -> str:
    # A name that cannot be resolved is an OSError too, with a number of another kind.
    reason = str(error) if isinstance(error, socket.gaierror) or not error.errno else os.strerror(error.errno)
    return f"{what} address {address} cannot be had: {reason}"
