"""One activity or task handler outside of any worker."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, ParamSpec, TypeVar, overload

import msgspec
import trio

from zaptasks.context import CancelRequested, CompleteLater, TaskContext, as_current, said_before
from zaptasks.converters import PLAIN
from zaptasks.handlers import is_async, name_of
from zaptasks.options import Seconds, to_seconds

P = ParamSpec("P")
T = TypeVar("T")


class ActivityEnvironment:
    """Runs one activity as a worker would, and writes down what it says.

        env = testing.ActivityEnvironment(attempt=2, heartbeat_details=[5])
        assert await env.run(import_rows, "rows.csv") == 10
        assert env.heartbeats == [(10,)]

    The arguments are what the activity sees of its task: see `zaptasks.TaskContext`. An environment is for one run.
    """

    def __init__(
        self,
        *,
        attempt: int = 1,
        maximum_attempts: int = 0,
        heartbeat_details: Sequence[object] = (),
        heartbeat_timeout: Seconds | None = None,
        start_to_close: Seconds | None = None,
        workflow_id: str = "test",
        run_id: str = "test-run",
        task_queue: str = "default",
        on_heartbeat: Callable[[], None] | None = None,
    ) -> None:
        """`on_heartbeat` is called with each heartbeat, from the activity's own thread: there it can be canceled."""
        if attempt < 1:
            raise ValueError(f"attempt is {attempt}: the first one is 1")
        self.heartbeats: list[tuple[Any, ...]] = []
        """What the next attempt would read after each heartbeat, as JSON has it."""
        self.progress: list[tuple[float | None, str]] = []
        """How far the activity said that it was, and what it was doing."""
        self.emitted: list[Any] = []
        """What it streamed, as JSON has it."""
        self.completes_later = False
        """Whether it left its completion to others; `run` returned None then."""
        self._attempt = attempt
        self._maximum_attempts = maximum_attempts
        self._details = tuple(heartbeat_details)
        self._heartbeat_timeout = (
            None if heartbeat_timeout is None else to_seconds(heartbeat_timeout, "heartbeat_timeout")
        )
        self._start_to_close = None if start_to_close is None else to_seconds(start_to_close, "start_to_close")
        self._workflow_id = workflow_id
        self._run_id = run_id
        self._task_queue = task_queue
        self._on_heartbeat = on_heartbeat
        self._scope = trio.CancelScope()
        self._context: TaskContext | None = None
        self._cancel_reason: str | None = None
        self._trio: trio.lowlevel.TrioToken | None = None
        self._thread = 0
        self._is_async = False

    @overload
    async def run(self, activity: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    async def run(self, activity: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...
    async def run(self, activity: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the activity and return what it returns, or raise what it raises.

        A `def` function runs in a thread, also one that a worker would run in a process. One that a cancel ends raises
        `CancelRequested`, with the reason. Canceling this call leaves a thread behind.
        """
        if self._context is not None:
            raise RuntimeError("this environment has run an activity already: make one for each run")
        self._is_async = is_async(activity)
        self._trio = trio.lowlevel.current_trio_token()
        self._thread = threading.get_ident()
        self._context = self._new_context(name_of(activity))
        if self._cancel_reason is not None:
            self.cancel(self._cancel_reason)
        try:
            with as_current(self._context), self._scope:
                if self._is_async:
                    return await activity(*args, **kwargs)
                return await trio.to_thread.run_sync(partial(activity, *args, **kwargs), abandon_on_cancel=True)
        except CompleteLater:
            self.completes_later = True
            return None
        raise CancelRequested(self._context.cancel_reason)

    def cancel(self, reason: str = "") -> None:
        """Ask the activity to stop, before it begins or while it runs, from any thread.

        An `async def` function is canceled at its next checkpoint, a `def` function reads `cancel_requested`.
        """
        self._cancel_reason = reason
        if self._context is None or self._trio is None:
            return
        self._context._cancel(reason)
        if not self._is_async:
            return
        if threading.get_ident() == self._thread:
            self._scope.cancel()
        else:
            self._trio.run_sync_soon(self._scope.cancel)

    def _new_context(self, type: str) -> TaskContext:
        # What an attempt says is read back by the next one as JSON has it.
        details = said_before(msgspec.Raw(PLAIN.encode(list(self._details), "heartbeat_details")))
        return TaskContext(
            id=f"{self._workflow_id}-{type}",
            type=type,
            attempt=self._attempt,
            maximum_attempts=self._maximum_attempts,
            namespace="default",
            task_queue=self._task_queue,
            workflow_id=self._workflow_id,
            run_id=self._run_id,
            scheduled_time=datetime.now(UTC),
            start_to_close=self._start_to_close,
            heartbeat_timeout=self._heartbeat_timeout,
            heartbeat_details=details,
            send=self._beat,
            emit=lambda item: self.emitted.append(PLAIN.decode(item)),
            task_token="test-token",
        )

    def _beat(self, said: bytes) -> None:
        details = PLAIN.decode(said)
        last = details[-1] if details else None
        if isinstance(last, Mapping) and last.keys() == {"progress", "text"}:
            self.progress.append((last["progress"], last["text"]))
        self.heartbeats.append(said_before(msgspec.Raw(said)))
        if self._on_heartbeat is not None:
            self._on_heartbeat()
