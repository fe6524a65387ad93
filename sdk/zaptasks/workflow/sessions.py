"""Sessions: several activities on the same worker, which has a place for them until the block ends.

    the workflow                         the server                       the worker
    ------------                         ----------                       ----------
    an activity takes a place     ->     in line for a place        ->    it signals the name of its own queue
    the block begins              <-     the signal                 <-    and holds the place
    activities on that queue      ->     only this worker has it    ->    runs them
    the block ends: cancel        ->     the activity is canceled   ->    the place is free

The activity that holds the place is tried once. So it ends when the worker's connection does, or when the worker
leaves, and with it the session.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack, overload

import msgspec

from zaptasks.errors import ActivityFailed
from zaptasks.options import RetryPolicy, Seconds, check_options, to_ms
from zaptasks.payloads import encode_arguments

from . import activities as a
from . import commands as c
from . import history as h
from .errors import SessionLost, SessionNotOpened
from .execution import Run, current_run
from .scheduler import checkpoint_if_cancelled, current_task
from .scopes import CancelScope
from .waits import wait_condition

log = logging.getLogger("zaptasks.workflow")

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

SESSION: Final = "zaptasks.session"
"""The type of the activity that holds a place, and how the name of the signal begins that says where."""

CREATION_SECONDS: Final = 60.0
WORKER_LOST: Final = "WorkerLost"
"""How the server calls the failure of an attempt whose worker is gone."""

_ONCE: Final = RetryPolicy(maximum_attempts=1).to_wire()


class _Place(a.ActivityHandle[str]):
    """The activity that holds the place. `ended` is called when it ends, whatever the reason."""

    def __init__(self, run: Run, command: c.ScheduleActivity, ended: Callable[[], None]) -> None:
        self._ended = ended
        super().__init__(run, command, msgspec.json.Decoder(str).decode, "request")

    def _told(self, event: h.Event) -> None:
        super()._told(event)
        self._ended()

    def why_ended(self) -> str:
        event = self._outcome.event
        assert event is not None
        if event.event_type == "ACTIVITY_TASK_COMPLETED":
            return self._read(event.payload("result") or b'""') or "the worker ended it"
        return event.failure.message

    async def wait(self) -> None:
        """Wait until it has ended, or for a cancel."""
        await self._outcome.wait(lambda: True)


class Session:
    """A place on a worker. `async with open_session() as session` makes it.

    What was asked for in it is asked to stop when its block ends or its worker is lost, whatever its `on_cancel` says.
    """

    def __init__(self) -> None:
        self.task_queue = ""
        """The queue that only this worker serves, for what has no method here."""
        self.over = ""
        """Why nothing more can be asked for in it; empty while it lasts."""
        self._place: _Place
        self._asked: list[a.ActivityHandle[Any]] = []

    @overload
    async def execute_activity(
        self, activity: Callable[[Unpack[Ts]], Awaitable[R]], /, *args: *Ts, **options: Unpack[a.SessionActivityOptions]
    ) -> R: ...
    @overload
    async def execute_activity(
        self, activity: Callable[[Unpack[Ts]], R], /, *args: *Ts, **options: Unpack[a.SessionActivityOptions]
    ) -> R: ...
    @overload
    async def execute_activity(
        self, activity: str, /, *args: object, **options: Unpack[a.SessionActivityOptions]
    ) -> Any: ...
    async def execute_activity(self, activity: Any, /, *args: *Ts, **options: Unpack[a.SessionActivityOptions]) -> Any:
        """Like `workflow.execute_activity`, on this session's worker. Raises `SessionLost` once it is over."""
        await checkpoint_if_cancelled()
        handle = self._start("execute_activity", activity, args, options)
        try:
            return await handle.result()
        except ActivityFailed as error:
            if error.type == WORKER_LOST:
                await self._place.wait()  # it was on the same connection
            if not self.over:
                raise
            await checkpoint_if_cancelled()
            raise SessionLost(self.over) from error  # a shield keeps the cancel of the block away

    @overload
    def start_activity(
        self, activity: Callable[[Unpack[Ts]], Awaitable[R]], /, *args: *Ts, **options: Unpack[a.SessionActivityOptions]
    ) -> a.ActivityHandle[R]: ...
    @overload
    def start_activity(
        self, activity: Callable[[Unpack[Ts]], R], /, *args: *Ts, **options: Unpack[a.SessionActivityOptions]
    ) -> a.ActivityHandle[R]: ...
    @overload
    def start_activity(
        self, activity: str, /, *args: object, **options: Unpack[a.SessionActivityOptions]
    ) -> a.ActivityHandle[Any]: ...
    def start_activity(
        self, activity: Any, /, *args: *Ts, **options: Unpack[a.SessionActivityOptions]
    ) -> a.ActivityHandle[Any]:
        """Like `workflow.start_activity`, on this session's worker. Raises `SessionLost` once it is over."""
        return self._start("start_activity", activity, args, options)

    def _start(
        self, function: str, activity: Any, args: tuple[object, ...], options: a.SessionActivityOptions
    ) -> a.ActivityHandle[Any]:
        check_options(options, a.SessionActivityOptions, f"session.{function}")
        if self.over:
            raise SessionLost(self.over)
        on_worker: a.ActivityOptions = {**options, "task_queue": self.task_queue}
        handle = a.start_checked(function, activity, args, on_worker)
        self._asked = [asked for asked in self._asked if not asked.is_done]
        self._asked.append(handle)
        return handle

    def end(self, reason: str) -> None:
        """Nothing more can be asked for in it, and what was asked for is to stop. Only the first reason counts."""
        if not self.over:
            self.over = reason
            for handle in self._asked:
                handle.cancel()


class SessionManager:
    """What `open_session` returns."""

    def __init__(self, task_queue: str, creation_timeout: Seconds) -> None:
        self._task_queue = task_queue
        self._creation_ms = to_ms(creation_timeout, "creation_timeout")
        self._session = Session()
        self._scope = CancelScope()

    async def __aenter__(self) -> Session:
        await checkpoint_if_cancelled()
        run = current_run()
        command_id = current_task().next_command_id()
        self._signal = f"{SESSION}/{command_id}"
        run.inbox.watch_signal(self._signal, self._opened)
        place = self._place = self._session._place = _Place(run, self._command(command_id), self._ended)
        try:
            await wait_condition(lambda: self._session.task_queue or place.is_done)
        except BaseException:
            self._give_up()
            raise
        if place.is_done:
            self._give_up()
            raise SessionLost(self._session.over) if self._session.task_queue else self._not_opened()
        self._scope.__enter__()
        return self._session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._scope.__exit__(kind, error, traceback)
        finally:
            self._give_up()
        if self._scope.cancelled_caught:  # by nobody but `_ended` and `_opened`
            raise SessionLost(self._session.over) from None

    def _command(self, command_id: str) -> c.ScheduleActivity:
        return c.ScheduleActivity(
            id=command_id,
            type=SESSION,
            task_queue=self._task_queue,
            input=encode_arguments((self._signal,), "the arguments of a session"),
            schedule_to_start_ms=self._creation_ms,
            retry_policy=_ONCE,
        )

    def _give_up(self) -> None:
        """Let go of the place. Nothing can be asked of a run that is dropped."""
        run = current_run()
        if not run.is_closed:
            run.inbox.unwatch_signal(self._signal)
            self._session.end(f"the session on {self._session.task_queue!r} is over: its block has ended")
            self._place.cancel()

    # --- what is told ------------------------------------------------------------------------------------

    def _opened(self, payload: bytes | None) -> None:
        """A worker has the place. A second time it is another worker, unless that came back after its server did."""
        try:
            queue = msgspec.json.decode(payload or b"null", type=str)
        except msgspec.MsgspecError as error:  # somebody else's signal: it must not harm the run
            log.error("a signal %r that no worker sent was dropped: %s", self._signal, error)
            return
        if not self._session.task_queue:
            self._session.task_queue = queue
        elif queue != self._session.task_queue:
            self._lose("its place went to another worker")

    def _ended(self) -> None:
        self._lose(self._place.why_ended())

    def _lose(self, why: str) -> None:
        self._session.end(f"the session on {self._session.task_queue!r} was lost: {why}")
        self._scope.cancel("the session was lost")

    def _not_opened(self) -> SessionNotOpened:
        queue = self._task_queue or current_run().info.task_queue
        return SessionNotOpened(
            f"no worker of task queue {queue!r} gave this session a place: {self._place.why_ended()}; a worker has as"
            " many as open_worker(sessions=...) says"
        )


def open_session(*, task_queue: str = "", creation_timeout: Seconds = CREATION_SECONDS) -> SessionManager:
    """A block whose activities run on one worker: `async with open_session(task_queue="gpu") as session:`.

    Any worker of `task_queue` (by default the workflow's own) that was opened with `sessions=N` may have it; it has
    one of the N places there until the block ends. Raises `SessionNotOpened` when none is free within
    `creation_timeout` seconds. When the worker is lost or leaves, the block is cancelled at once and raises
    `SessionLost`: open another one, and begin with what the activities left on the lost worker.
    """
    return SessionManager(task_queue, creation_timeout)
