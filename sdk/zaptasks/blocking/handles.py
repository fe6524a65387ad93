"""Handles for the blocking client: one execution on the server, to wait for, look at and steer.

A method without words of its own here has those of the async handle.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Generic, TypeVar, TypeVarTuple, Unpack, overload

from zaptasks.activity_handle import ActivityTokenHandle
from zaptasks.exported_history import WorkflowHistory
from zaptasks.handles import ExecutionHandle, R, TaskHandle, WorkflowHandle
from zaptasks.options import Durability, Seconds
from zaptasks.output import OutputItem
from zaptasks.records import Acknowledged, ExecutionInfo, HistoryEvent, Waiting

from .stepping import Loop

T = TypeVar("T")
V = TypeVar("V")
Ts = TypeVarTuple("Ts")
C = TypeVar("C")


def documented_by(source: type) -> Callable[[type[C]], type[C]]:
    """Give the methods of a class that have no docstring the one of the same name in `source`."""

    def document(cls: type[C]) -> type[C]:
        for name, member in vars(cls).items():
            if not name.startswith("_") and not member.__doc__:
                member.__doc__ = getattr(source, name).__doc__
        return cls

    return document


class Items(Iterator[T]):
    """What an async list gives, fetched while it is iterated; it may be left half way. For one thread at a time.

    Each item is waited for as long as it takes, or for `timeout` seconds; after a `TimeoutError` one may ask again.
    """

    def __init__(self, loop: Loop, items: AsyncIterator[T], timeout: Seconds | None = None) -> None:
        self._loop = loop
        self._items = items
        self._timeout = timeout

    def __next__(self) -> T:
        try:
            return self._loop.run(_next(self._items), self._timeout, "the next item")
        except StopAsyncIteration:
            raise StopIteration from None


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)


@documented_by(ExecutionHandle)
class BlockingExecutionHandle(Generic[R]):
    """One run of a task or workflow. Without a run id it means the latest run of the id, whichever that is."""

    def __init__(self, loop: Loop, handle: ExecutionHandle[R]) -> None:
        self._loop = loop
        self._handle = handle

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.workflow_id} run {self.run_id or 'latest'}>"

    @property
    def workflow_id(self) -> str:
        """The id, which all its runs share."""
        return self._handle.workflow_id

    @property
    def run_id(self) -> str:
        """The run; empty for the latest."""
        return self._handle.run_id

    @property
    def durability(self) -> Durability | None:
        """How durable the start was when the server answered it; None if this handle started nothing, or if the server
        does not say."""
        return self._handle.durability

    @overload
    def result(self, *, timeout: Seconds | None = None) -> R: ...
    @overload
    def result(self, type: type[T], *, timeout: Seconds | None = None) -> T: ...
    def result(self, type: Any = None, *, timeout: Seconds | None = None) -> Any:
        """Wait until it is over and return what it returned, as `type` if one is given.

        Without one it is read as what the workflow that the handle was made for is annotated with, and is plain JSON
        where only its name is known.

        The server tells it the moment it happens; nothing polls. It waits for as long as it takes, or for `timeout`
        seconds and then raises `TimeoutError`; the execution goes on either way.

        Raises `TaskFailed`, `TaskCanceled`, `TaskTerminated` or `TaskTimedOut` for any other end, `CallFailed` with
        status 404 for an execution that the server does not know, `BadBody` for a result that is no `type`, and
        `CodecError` for one whose key is not here.
        """
        return self._loop.run(self._handle.result(type), timeout, f"the result of {self.workflow_id}")

    def describe(self) -> ExecutionInfo:
        return self._loop.run(self._handle.describe())

    def history(self, *, follow: bool = False, timeout: Seconds | None = None) -> Iterator[HistoryEvent]:
        """Everything that happened to it so far, oldest first, fetched page by page while you iterate.

        With `follow` it goes on with what happens, as it happens, until the run is closed. It waits for the next event
        for as long as it takes, or for `timeout` seconds, and then raises `TimeoutError`; iterating goes on after that.
        With a server that cannot do that, as Go's, it is a `CallFailed` with status 501.
        """
        return Items(self._loop, self._handle.history(follow=follow), timeout)

    @overload
    def output(self, type: type[T], *, after: int = 0, timeout: Seconds | None = None) -> Iterator[OutputItem[T]]: ...
    @overload
    def output(self, *, after: int = 0, timeout: Seconds | None = None) -> Iterator[OutputItem[Any]]: ...
    def output(self, type: Any = Any, *, after: int = 0, timeout: Seconds | None = None) -> Iterator[OutputItem[Any]]:
        """What its activities emit, as it comes, from the first item past the number `after` that the server still has.

        It ends when the execution is closed, with every run that follows it; what was emitted before can be read for a
        minute after that. Values are read as `type`. Nothing is durable: items may be missing, and `is_after_gap` of
        the next one says so. It waits for the next item for as long as it takes, or for `timeout` seconds, and then
        raises `TimeoutError`; iterating goes on after that. Raises `CallFailed` with status 404 for an execution that
        the server does not know, and 501 for a server that has no output.
        """
        return Items(self._loop, self._handle.output(type, after=after), timeout)

    def explain(self) -> list[Waiting]:
        return self._loop.run(self._handle.explain())

    def cancel(self, reason: str = "", *, durability: Durability | None = None) -> Acknowledged:
        return self._loop.run(self._handle.cancel(reason, durability=durability))

    def terminate(self, reason: str = "", *, durability: Durability | None = None) -> Acknowledged:
        return self._loop.run(self._handle.terminate(reason, durability=durability))


@documented_by(ActivityTokenHandle)
class BlockingActivityTokenHandle:
    """One attempt of an activity or task, by its token. Made by `get_activity_handle`.

    Every call raises `CallFailed` for an attempt that is over: with status 409 where a later one runs or waits, with
    404 where nothing is open any more, or the token never was one.
    """

    def __init__(self, loop: Loop, handle: ActivityTokenHandle) -> None:
        self._loop = loop
        self._handle = handle

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.token}>"

    @property
    def token(self) -> str:
        """The token."""
        return self._handle.token

    def complete(self, result: object = None) -> None:
        self._loop.run(self._handle.complete(result))

    def fail(self, error: BaseException) -> None:
        self._loop.run(self._handle.fail(error))

    def report_canceled(self, reason: str = "") -> None:
        self._loop.run(self._handle.report_canceled(reason))

    def heartbeat(self, *details: object) -> bool:
        return self._loop.run(self._handle.heartbeat(*details))


class BlockingTaskHandle(BlockingExecutionHandle[Any]):
    """A one-shot task, as `start_task` returns it."""

    _handle: TaskHandle


@documented_by(WorkflowHandle)
class BlockingWorkflowHandle(BlockingExecutionHandle[R]):
    """A workflow.

    Signals, queries and updates are named by their methods, from which type checkers know what they take and return
    (`handle.query(Order.state)`), or by text.
    """

    _handle: WorkflowHandle[R]

    def __init__(self, loop: Loop, handle: WorkflowHandle[R]) -> None:
        super().__init__(loop, handle)

    @overload
    def signal(self, signal: Callable[[Any], Any], /, *, durability: Durability | None = None) -> Acknowledged: ...
    @overload
    def signal(
        self, signal: Callable[[Any, V], Any], value: V, /, *, durability: Durability | None = None
    ) -> Acknowledged: ...
    @overload
    def signal(self, signal: str, value: object = None, /, *, durability: Durability | None = None) -> Acknowledged: ...
    def signal(self, signal: Any, value: object = None, /, *, durability: Durability | None = None) -> Acknowledged:
        return self._loop.run(self._handle.signal(signal, value, durability=durability))

    @overload
    def query(self, query: Callable[[Any, Unpack[Ts]], T], /, *args: *Ts) -> T: ...
    @overload
    def query(self, query: str, /, *args: object) -> Any: ...
    def query(self, query: Any, /, *args: *Ts) -> Any:
        return self._loop.run(self._handle.query(query, *args))

    @overload
    def update(
        self,
        update: Callable[[Any, Unpack[Ts]], Coroutine[Any, Any, T]],
        /,
        *args: *Ts,
        id: str = "",
        timeout: Seconds | None = None,
    ) -> T: ...
    @overload
    def update(
        self, update: Callable[[Any, Unpack[Ts]], T], /, *args: *Ts, id: str = "", timeout: Seconds | None = None
    ) -> T: ...
    @overload
    def update(self, update: str, /, *args: object, id: str = "", timeout: Seconds | None = None) -> Any: ...
    def update(self, update: Any, /, *args: *Ts, id: str = "", timeout: Seconds | None = None) -> Any:
        """Have it handle an update, and return what the handler returns, read as the method is annotated.

        It waits as `result` does, for at most `timeout` seconds if that is given; the update goes on after a
        `TimeoutError`. `id` names the update within the run: a repeat with the same one gets the same answer, and
        nothing is done twice.

        Raises `UpdateRejected` if the workflow did not want it, `UpdateFailed` with what its handler raised,
        `CallFailed` with status 404 for a workflow that is not open, and `BadBody` for an answer of another type.
        """
        return self._loop.run(self._handle.update(update, *args, id=id), timeout, "the answer to the update")

    def export_history(self) -> WorkflowHistory:
        return self._loop.run(self._handle.export_history())

    def reset(
        self, event_id: int, reason: str = "", *, durability: Durability | None = None
    ) -> BlockingWorkflowHandle[R]:
        handle = self._loop.run(self._handle.reset(event_id, reason, durability=durability))
        return BlockingWorkflowHandle(self._loop, handle)
