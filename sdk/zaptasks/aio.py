"""The client and the worker for asyncio.

    from zaptasks import aio

    async with aio.open_client("127.0.0.1:9999") as client:
        async with aio.open_worker(client, tasks=[send]):
            handle = await client.now("email.send", {"to": "ada@example.org"})
            print(await handle.result())

Connections live on one trio loop in a thread of its own, which all clients and workers of the process share. A call
hops there and back once. `async def` handlers run on the asyncio loop that opened their worker, the others in threads.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar, Unpack

from zapwire.client_link import Backoff

from . import client as trio_client
from . import worker as trio_worker
from .asyncio_bridge import call, hold, on_asyncio, running_loop
from .asyncio_interceptors import interceptors_on_asyncio
from .client import AsyncClient
from .converters import PLAIN, DataConverter
from .handlers import Function, Kind
from .headers import HeaderSource
from .options import Bodies, Seconds, check_options
from .trio_thread import Block
from .worker_options import WorkerOptions

__all__ = ["Client", "Worker", "open_client", "open_worker", "run_worker"]

log = logging.getLogger("zaptasks.worker")

T = TypeVar("T")


class Client(AsyncClient):
    """The client for asyncio, with the methods and the handles of `AsyncClient`. Made by `open_client`.

    Any number of asyncio tasks may use it at once, on any loop and in any thread. A canceled call tells the server that
    nobody waits.
    """

    def __init__(self, block: Block[AsyncClient], inner: AsyncClient) -> None:
        super().__init__(
            inner._link,
            inner.connector,
            inner._connections,
            namespace=inner.namespace,
            timeout=inner.timeout,
            headers=inner._header_source,
            converter=inner.converter,
        )
        self._block = block

    async def wait_first_attempt(self) -> None:
        await call(self._block, super().wait_first_attempt)

    async def wait_connection(self, *, after: int) -> int:
        return await call(self._block, self._connections.wait, after)

    async def _repeatedly(
        self, attempt: Callable[[float | None], Awaitable[T]], timeout: float | None, repeat: bool
    ) -> T:
        return await call(self._block, super()._repeatedly, attempt, timeout, repeat)


class Worker:
    """A running worker. Made by `open_worker`."""

    def __init__(
        self, block: Block[trio_worker.Worker], inner: trio_worker.Worker, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._block = block
        self._inner = inner
        self._loop = loop

    @property
    def task_queue(self) -> str:
        """The queue that it serves."""
        return self._inner.task_queue

    @property
    def identity(self) -> str:
        """Who it is to people who look at the server."""
        return self._inner.identity

    @property
    def build_id(self) -> str:
        """Which build of the code it runs, to people who read histories; "" if it names none."""
        return self._inner.build_id

    @property
    def running(self) -> int:
        """How many deliveries are being handled, answers on their way included."""
        return self._inner.running

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection now."""
        return self._inner.is_connected

    async def add_task(self, name: str, function: Function, *, slots: int = 1) -> None:
        """Serve one more type of task, with slots of its own; returns once the server knows.

        A name that is served already gets the new function, from the next delivery on, and keeps its slots.
        """
        carried = on_asyncio(self._loop, {name: function}, Kind.TASK)[name]

        async def add() -> None:
            await self._inner.add_task(name, carried, slots=slots)

        await call(self._block, add)

    async def drain(self) -> None:
        """Take no more work, and wait until what runs is answered, for at most `shutdown_timeout`.

        What still runs then is handed back when the worker closes. Calling it again only returns.
        """
        await call(self._block, self._inner.drain)


@asynccontextmanager
async def open_client(
    zap: str = "",
    *,
    namespace: str = "default",
    identity: str = "",
    ssl_context: ssl.SSLContext | None = None,
    timeout: Seconds = 10.0,
    wait: bool = True,
    backoff: Backoff | None = None,
    headers: HeaderSource | None = None,
    converter: DataConverter = PLAIN,
    bodies: Bodies = "json",
) -> AsyncIterator[Client]:
    """Connect to the server at `zap`, as `zaptasks.open_client` does, for an asyncio program.

    `headers` is called on the asyncio loop, in the task that starts something.
    """
    manager = trio_client.open_client(
        zap,
        namespace=namespace,
        identity=identity,
        ssl_context=ssl_context,
        timeout=timeout,
        wait=wait,
        backoff=backoff,
        headers=headers,
        converter=converter,
        bodies=bodies,
    )
    async with hold(manager) as (block, inner):
        client = Client(block, inner)
        try:
            yield client
        finally:
            client.mark_closed()


@asynccontextmanager
async def open_worker(
    client: AsyncClient, task_queue: str = "default", **options: Unpack[WorkerOptions]
) -> AsyncIterator[Worker]:
    """Serve a task queue for the length of an `async with` block, as `zaptasks.open_worker` does.

    `async def` tasks and activities run on this asyncio loop, with the context variables of this place; `def` ones run
    in threads, with the same. Workflows run on the trio thread: they await what their context gives them, and nothing
    of asyncio. Interceptors run on this asyncio loop, around either kind of handler.

    A cancel by the server, and the end of the worker, cancel a handler's asyncio task: `str(error)` of the
    `CancelledError` and `current_task().cancel_reason` say why. It may clean up for 30 seconds.
    """
    loop = running_loop()
    check_options(options, WorkerOptions, "open_worker")
    carried = WorkerOptions(
        **options
        | {
            "tasks": on_asyncio(loop, options.get("tasks", ()), Kind.TASK),
            "activities": on_asyncio(loop, options.get("activities", ()), Kind.ACTIVITY),
            "interceptors": interceptors_on_asyncio(loop, options.get("interceptors", ())),
        }
    )
    async with hold(trio_worker.open_worker(client, task_queue, **carried)) as (block, inner):
        yield Worker(block, inner, loop)


async def run_worker(client: AsyncClient, task_queue: str = "default", **options: Unpack[WorkerOptions]) -> None:
    """Serve a task queue until SIGTERM or SIGINT, then drain and return. Only on the main thread's loop.

    A second signal ends the draining: what still runs is handed back at once.
    """
    loop = running_loop()
    check_options(options, WorkerOptions, "run_worker")
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    try:
        async with open_worker(client, task_queue, **options) as worker:
            first = await signals.get()
            log.info("%s: taking no more work; %d tasks run", first.name, worker.running)
            draining = asyncio.ensure_future(worker.drain())
            second = asyncio.ensure_future(signals.get())
            try:
                await asyncio.wait([draining, second], return_when=asyncio.FIRST_COMPLETED)
            finally:
                draining.cancel()
                second.cancel()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
