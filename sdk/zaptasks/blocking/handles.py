"""Handles for the blocking client: one execution on the server, to wait for, look at and steer.

What is said nowhere here is said by the async handle of the same name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar, overload

from zaptasks.handles import ExecutionHandle, TaskHandle, WorkflowHandle
from zaptasks.options import Durability, Seconds
from zaptasks.records import Acknowledged, ExecutionInfo, HistoryEvent, Waiting

from .loop import ClientLoop

T = TypeVar("T")
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
    """What an async list gives, fetched while it is iterated; it may be left half way. For one thread at a time."""

    def __init__(self, loop: ClientLoop, items: AsyncIterator[T]) -> None:
        self._loop = loop
        self._items = items

    def __next__(self) -> T:
        try:
            return self._loop.run(_next(self._items))
        except StopAsyncIteration:
            raise StopIteration from None


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)


@documented_by(ExecutionHandle)
class BlockingExecutionHandle:
    """One run of a task or workflow. Without a run id it means the latest run of the id, whichever that is."""

    def __init__(self, loop: ClientLoop, handle: ExecutionHandle) -> None:
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
    def result(self, *, timeout: Seconds | None = None) -> Any: ...
    @overload
    def result(self, type: type[T], *, timeout: Seconds | None = None) -> T: ...
    def result(self, type: Any = Any, *, timeout: Seconds | None = None) -> Any:
        """Wait until it is over and return what it returned, as `type` if one is given.

        The server tells it the moment it happens; nothing polls. It waits for as long as it takes, or for `timeout`
        seconds and then raises `TimeoutError`; the execution goes on either way.

        Raises `TaskFailed`, `TaskCanceled`, `TaskTerminated` or `TaskTimedOut` for any other end, `CallFailed` with
        status 404 for an execution that the server does not know, `BadBody` for a result that is no `type`, and
        `CodecError` for one whose key is not here.
        """
        return self._loop.run(self._handle.result(type), timeout, f"the result of {self.workflow_id}")

    def describe(self) -> ExecutionInfo:
        return self._loop.run(self._handle.describe())

    def history(self) -> Iterator[HistoryEvent]:
        return Items(self._loop, self._handle.history())

    def explain(self) -> list[Waiting]:
        return self._loop.run(self._handle.explain())

    def cancel(self, reason: str = "", *, durability: Durability | None = None) -> Acknowledged:
        return self._loop.run(self._handle.cancel(reason, durability=durability))

    def terminate(self, reason: str = "", *, durability: Durability | None = None) -> Acknowledged:
        return self._loop.run(self._handle.terminate(reason, durability=durability))


class BlockingTaskHandle(BlockingExecutionHandle):
    """A one-shot task, as `start_task` returns it."""

    _handle: TaskHandle


@documented_by(WorkflowHandle)
class BlockingWorkflowHandle(BlockingExecutionHandle):
    """A workflow."""

    _handle: WorkflowHandle

    def __init__(self, loop: ClientLoop, handle: WorkflowHandle) -> None:
        super().__init__(loop, handle)

    def signal(self, name: str, value: object = None, *, durability: Durability | None = None) -> Acknowledged:
        return self._loop.run(self._handle.signal(name, value, durability=durability))

    def query(self, name: str, *args: object) -> Any:
        return self._loop.run(self._handle.query(name, *args))

    def update(self, name: str, *args: object, id: str = "", timeout: Seconds | None = None) -> Any:
        """Have it handle an update, and return what the handler returns.

        It waits as `result` does, for at most `timeout` seconds if that is given; the update goes on after a
        `TimeoutError`. `id` names the update within the run: a repeat with the same one gets the same answer, and
        nothing is done twice.

        Raises `UpdateRejected` if the workflow did not want it, `UpdateFailed` with what its handler raised, and
        `CallFailed` with status 404 for a workflow that is not open.
        """
        return self._loop.run(self._handle.update(name, *args, id=id), timeout, f"the answer to update {name!r}")

    def reset(self, event_id: int, reason: str = "", *, durability: Durability | None = None) -> BlockingWorkflowHandle:
        handle = self._loop.run(self._handle.reset(event_id, reason, durability=durability))
        return BlockingWorkflowHandle(self._loop, handle)
