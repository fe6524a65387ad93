"""An environment for tests that are plain functions: its trio loop runs in a thread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from zaptasks.blocking.calls import ServerCalls
from zaptasks.blocking.stepping import Hop, LoopThread, SteppedClient, run_stepped
from zaptasks.client import AsyncClient
from zaptasks.options import Seconds
from zaptasks.records import UpdateAnswer

if TYPE_CHECKING:
    from .environment import WorkflowEnvironment

T = TypeVar("T")

END_SECONDS_MAX: Final = 20.0
"""How long the thread may take to end before it is left behind, with a line in the log."""


class BlockingEnvironment:
    """What `with WorkflowEnvironment(...) as env` gives.

        with testing.WorkflowEnvironment(workflows=[Order], activities=[charge]) as env:
            order = env.client.start_workflow(Order, "tea", 450)
            env.sleep(days=1)
            assert order.result() == "too late"

    Time passes only within a call: between two calls it stands still, whatever the test does meanwhile.
    """

    def __init__(self, manager: AbstractAsyncContextManager[WorkflowEnvironment]) -> None:
        self._loop = _Loop(manager)
        self.client: Final = ServerCalls(self._loop)
        """As `zaptasks.Client`, with every call that a server can answer, and its handles.

        It lacks `now` and `add`, which may run things in the process. A function that takes either client is annotated
        with `zaptasks.ServerCalls`.
        """

    def now(self) -> datetime:
        """The virtual time, in UTC."""
        return self._loop.environment.now()

    def sleep(self, seconds: Seconds = 0, *, days: float = 0, hours: float = 0, minutes: float = 0) -> None:
        """Let time pass, as `WorkflowEnvironment.sleep`."""
        self._loop.call(partial(self._loop.environment.sleep, seconds, days=days, hours=hours, minutes=minutes))

    def advance(self, seconds: Seconds = 0, *, days: float = 0, hours: float = 0, minutes: float = 0) -> None:
        """Let time pass now, whatever runs, as `WorkflowEnvironment.advance`."""
        self._loop.call(partial(self._loop.environment.advance, seconds, days=days, hours=hours, minutes=minutes))

    def close(self) -> None:
        """End it, and wait for that. Raises what ended its loop before, if something did."""
        self._loop.close()


class _Loop:
    """Makes the calls of the blocking client and its handles; time passes while it makes one."""

    def __init__(self, manager: AbstractAsyncContextManager[WorkflowEnvironment]) -> None:
        self._ended: Future[None] = Future()
        self._thread = LoopThread("zaptasks-testing", manager, self._ended)
        self.environment: Final = self._thread.value
        self.server: Final = _SteppedClient(self.environment.client)
        self._skips_time = self.environment.skips_time
        self.environment.skips_time = False

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: Seconds | None = None, what: str = "the call") -> T:
        return run_stepped(coroutine, self.call, timeout, what)

    def call(self, method: Callable[..., Awaitable[T]], *args: object, deadline: float | None = None) -> T:
        result: T = self._thread.call(self._while_time_passes, method, args, deadline=deadline)
        return result

    async def _while_time_passes(self, method: Callable[..., Awaitable[T]], args: tuple[object, ...]) -> T:
        self.environment.skips_time = self._skips_time
        try:
            return await method(*args)
        finally:
            self.environment.skips_time = False

    def close(self) -> None:
        self._thread.leave()
        self._thread.join(END_SECONDS_MAX)
        if self._ended.done():
            self._ended.result()


class _SteppedClient(SteppedClient):
    """Waits are made as a whole on the loop, where it is known what waits in vain."""

    def __init__(self, inner: AsyncClient) -> None:
        super().__init__(inner)
        self._inner = inner

    async def wait(self, opcode: int, request: Mapping[str, object], type: type[T]) -> T:
        hop: Hop[T] = Hop(self._inner.wait, (opcode, request, type))
        return await hop

    async def wait_updated(self, opcode: int, name: str, request: Mapping[str, object]) -> UpdateAnswer:
        hop: Hop[UpdateAnswer] = Hop(self._inner.wait_updated, (opcode, name, request))
        return await hop
