"""A server, a client and a worker in this process, in virtual time."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Final, Self

import trio

from zaptasks.client import AsyncClient, require_trio
from zaptasks.converters import PLAIN, DataConverter
from zaptasks.groups import unwrapped
from zaptasks.handlers import Handlers
from zaptasks.options import Seconds, to_ms
from zaptasks.worker import Worker, open_worker

from .blocking import BlockingEnvironment
from .client import open_environment_client
from .in_process_server import InProcessConnector, open_in_process_server
from .skipping import Skipper, VirtualClock

START: Final = datetime(2030, 1, 1, tzinfo=UTC)
"""Every environment begins here, a Tuesday, unless it is told otherwise: what a test sees is the same every day."""


class WorkflowEnvironment:
    """A whole system for one test, in virtual time and without a port.

        async with testing.WorkflowEnvironment(workflows=[Order], activities=[charge]) as env:
            order = await env.client.start_workflow(Order, "tea", 450)
            await env.sleep(days=1)
            assert await order.result() == "too late"

    Server, client and worker are the real ones; nothing is kept on a disk. Time stands still while anything can happen:
    while a task of the trio loop can run, an activity runs (in a thread too) or a workflow does. When nothing can, it
    goes on at once to the next deadline: of a timer, a retry, a timeout, a schedule, or of `sleep`. So a hundred days
    take milliseconds. What waits for a result that never comes gets `Stuck`.

    `tasks`, `activities` and `workflows` are those of `open_worker`, on `task_queue`; for another queue, open one more
    worker with `zaptasks.open_worker(env.client, ...)`.
    `start` is when it begins. Without `skip_time` only `sleep` and `advance` pass time. `converter` is the client's.

    In a plain function, without trio, `with` does for `async with`: see `BlockingEnvironment`.
    """

    def __init__(
        self,
        *,
        tasks: Handlers = (),
        activities: Handlers = (),
        workflows: Handlers = (),
        task_queue: str = "default",
        start: datetime = START,
        skip_time: bool = True,
        converter: DataConverter = PLAIN,
    ) -> None:
        if start.tzinfo is None:
            raise ValueError(f"start is {start!r}, without a time zone: write start=datetime(2030, 1, 1, tzinfo=UTC)")
        self._task_queue = task_queue
        self._handlers: dict[str, Handlers] = {"tasks": tasks, "activities": activities, "workflows": workflows}
        self._clock = VirtualClock(round(start.timestamp() * 1000))
        self._skip_time = skip_time
        self._converter = converter
        self._workers: list[Worker] = []
        self._stack = AsyncExitStack()
        self._skipper: Skipper
        self._blocking: BlockingEnvironment
        self.client: AsyncClient
        """An `AsyncClient` like any other."""
        self.worker: Worker
        """The worker of `task_queue`."""

    async def __aenter__(self) -> Self:
        require_trio("`async with WorkflowEnvironment(...)`", "in a plain test write `with`")
        async with AsyncExitStack() as stack:
            stack.enter_context(unwrapped())
            server = await stack.enter_async_context(open_in_process_server(self._clock))
            self._skipper = Skipper(self._clock, server.dispatcher, self._works_on)
            server.dispatcher.on_news = self._skipper.notice
            server.dispatcher.on_deadline_moved = self._skipper.notice
            self._skipper.is_on = False
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            nursery.start_soon(self._skipper.run)
            connector = InProcessConnector(identity="test", server=server, workers=self._workers)
            self.client = await stack.enter_async_context(
                open_environment_client(connector, self._skipper, self._converter)
            )
            self.worker = await stack.enter_async_context(self._open_worker())
            stack.callback(self._skipper.switch, on=False)
            self._skipper.switch(on=self._skip_time)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, traceback)

    def __enter__(self) -> BlockingEnvironment:
        self._blocking = BlockingEnvironment(self)
        return self._blocking

    def __exit__(self, *_: object) -> None:
        self._blocking.close()

    def _open_worker(self) -> AbstractAsyncContextManager[Worker]:
        """What hangs at the end of a test is canceled at once."""
        return open_worker(
            self.client,
            self._task_queue,
            tasks=self._handlers["tasks"],
            activities=self._handlers["activities"],
            workflows=self._handlers["workflows"],
            shutdown_timeout=0,
        )

    def _works_on(self) -> list[str]:
        return [what for worker in self._workers for what in worker.works_on]

    # --- time ----------------------------------------------------------------------------------------------

    @property
    def skips_time(self) -> bool:
        """Whether time is skipped by itself; may be set."""
        return self._skipper.is_on

    @skips_time.setter
    def skips_time(self, on: bool) -> None:
        self._skipper.switch(on=on)

    def now(self) -> datetime:
        """The virtual time, in UTC."""
        return datetime.fromtimestamp(self._clock.now_ms / 1000, UTC)

    async def sleep(self, seconds: Seconds = 0, *, days: float = 0, hours: float = 0, minutes: float = 0) -> None:
        """Let time pass, with everything that is due in it, one after the other and each up to its end.

        What is being worked on holds time: an activity that hangs makes this wait for ever. See `advance`.
        """
        await self._skipper.sleep(_ms(seconds, days, hours, minutes))

    async def advance(self, seconds: Seconds = 0, *, days: float = 0, hours: float = 0, minutes: float = 0) -> None:
        """Let time pass now, whatever runs: so an activity that hangs runs into its timeouts."""
        await self._skipper.advance(_ms(seconds, days, hours, minutes))


def _ms(seconds: Seconds, days: float, hours: float, minutes: float) -> int:
    span = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    return to_ms(span + 86_400 * days + 3_600 * hours + 60 * minutes, "the time to pass")
