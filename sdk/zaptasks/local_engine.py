"""Tasks and schedules inside this process: what the client falls back to, and usable on its own.

`LocalEngine.now` runs a handler in a small pool of threads, `LocalEngine.add` runs a function at every
firing of a schedule (local_schedule.py says when that is). A handler sees what it would see in a worker
behind a server: its payload has been through JSON into the types of its annotations, its result has to
go through JSON too, and `current_task()` works. Nothing is stored or repeated: a task has one attempt,
and what has not run when the process ends is gone.
"""

from __future__ import annotations

import atexit
import heapq
import inspect
import logging
import threading
import uuid
import weakref
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, ClassVar, Final, Self, TypeAlias

import msgspec
import trio

from zapwire.errors import ZapError

from .context import TaskContext, as_current
from .converters import PLAIN, DataConverter
from .handlers import Handler, Kind, check_name
from .headers import Headers
from .local_schedule import Clock, LocalTime, Schedule, SystemClock, schedule
from .spec import Cron, Interval, parse_spec

THREADS_MAX: Final = 8
"""Handlers that run at the same time, unless the engine is made with another number."""

QUEUE_TASKS_MAX: Final = 1_000
"""Tasks that wait for a thread, unless the engine is made with another number."""

REQUEST_IDS_MAX: Final = 10_000
"""Request ids that are remembered with their outcome, beyond those that have not finished."""

STOP_SECONDS: Final = 10.0
"""What `stop` and the end of a `with` block give to the work that was accepted."""

_AGENDA_SLACK: Final = 64
"""Removed schedules that may lie in the heap beside as many as there are living ones."""

DefaultHandler: TypeAlias = Callable[[str, Any], object]
"""Called with the type and the payload of a task that no function is registered for; may be async."""

logger = logging.getLogger("zaptasks.local")


class NoHandler(ZapError, LookupError):
    """A task of a type that nothing in this process handles."""

    code: ClassVar[str] = "no_handler"
    status = 404


class QueueFull(ZapError):
    """So many tasks wait for a thread that this one was not accepted."""

    code: ClassVar[str] = "queue_full"
    status = 429


class EngineStopped(ZapError):
    """The engine takes no more work: it was stopped."""

    code: ClassVar[str] = "engine_stopped"
    status = 503


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What `stop` left behind, by task type or schedule name; false when there is nothing."""

    running: tuple[str, ...]
    dropped: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.running or self.dropped)


class LocalEngine:
    """Runs tasks and schedules in threads of this process.

    `handler` is called for tasks of types without a function of their own. Handlers and scheduled
    functions may be `async def`: each run then gets a trio event loop in its thread. Cron expressions
    without a zone are read in `zone`, by default the local time of the process.

    Every method may be called from any thread, handlers included. The threads are daemons: a process
    that ends does not wait for them. Call `stop`, or use the engine as a context manager, to let work
    finish.
    """

    def __init__(
        self,
        handler: DefaultHandler | None = None,
        *,
        threads: int = THREADS_MAX,
        queue: int = QUEUE_TASKS_MAX,
        zone: tzinfo | None = None,
        clock: Clock | None = None,
        converter: DataConverter = PLAIN,
    ) -> None:
        if threads < 1 or queue < 1:
            raise ValueError(f"threads={threads}, queue={queue}: both must be at least 1")
        self._default = handler
        self.converter: Final = converter
        self._threads_max = threads
        self._queue_max = queue
        self._zone = LocalTime() if zone is None else zone
        self._clock = SystemClock() if clock is None else clock
        self._handlers: dict[str, Handler] = {}
        self._requests: OrderedDict[str, Future[Any]] = OrderedDict()
        self._schedules: dict[str, Schedule] = {}
        self._agenda: list[tuple[float, int, Schedule]] = []  # a heap: when to look at each schedule
        self._order = count()
        self._queue: deque[_Task | _Firing] = deque()
        self._running: dict[int, _Task | _Firing] = {}  # by thread
        self._threads = 0
        self._waiting_threads = 0
        self._timer_started = False
        self._stopped = False
        # One lock for all of it; each condition wakes its own kind of thread. Reentrant, because a log
        # handler or a finalizer may run in a thread that holds it, and may submit a task.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._timer = threading.Condition(self._lock)
        self._progress = threading.Condition(self._lock)
        _engines.add(self)

    # ------------------------------------------------------------------------------------ tasks

    def register(self, task_type: str, fn: Callable[..., object]) -> None:
        """Have `fn(payload)` handle tasks of this type, in place of the default handler or an earlier one.

        Raises TypeError for a function that cannot be called with one argument.
        """
        handler = Handler(check_name(task_type, Kind.TASK), fn)
        with self._lock:
            self._handlers[task_type] = handler

    def now(
        self, task_type: str, payload: object = None, *, request_id: str | None = None, headers: Headers | None = None
    ) -> Future[Any]:
        """Run the handler of `task_type` with `payload` in a thread, soon; returns without waiting.

        The future gets the handler's result, or what it raised (also logged). A request id that was
        seen before runs nothing and returns the first call's future; the last `REQUEST_IDS_MAX` are
        remembered. `headers` are what `current_task().headers` is for the handler.

        Raises `PayloadError` for a payload that has no JSON form, `NoHandler`, `QueueFull` and
        `EngineStopped`; in each case nothing was accepted.
        """
        body = None if payload is None else self.converter.encode(payload, f"the payload of {task_type!r}")
        with self._lock:
            self._check_open()
            if request_id is not None and request_id in self._requests:
                return self._requests[request_id]
            task = _Task(task_type, self._handler(task_type), body, request_id, headers, self.converter)
            if len(self._queue) >= self._queue_max:
                raise QueueFull(f"{len(self._queue)} tasks wait already, at most {self._queue_max} may: {task_type!r}")
            self._enqueue(task)
            if request_id is not None:
                self._requests[request_id] = task.future
                self._forget_oldest_request()
        return task.future

    def _forget_oldest_request(self) -> None:
        # One that has not finished is never forgotten. It waits or runs, so there are at most so many.
        while len(self._requests) > REQUEST_IDS_MAX + self._queue_max + self._threads_max:
            request_id, future = self._requests.popitem(last=False)
            if not future.done():
                self._requests[request_id] = future

    def _handler(self, task_type: str) -> Callable[[bytes | str | None], object]:
        """The function for a type, as one that takes the payload's JSON."""
        handler = self._handlers.get(task_type)
        if handler is not None:
            return partial(_call_handler, handler)
        if self._default is not None:
            return partial(_call_default, self._default, task_type)
        known = ", ".join(map(repr, sorted(self._handlers))) or "none"
        raise NoHandler(f"nothing handles tasks of type {task_type!r}: register a function (registered: {known})")

    # -------------------------------------------------------------------------------- schedules

    def add(self, name: str, spec: str | Interval | Cron, fn: Callable[..., object]) -> None:
        """Run `fn()` at every firing of `spec`, in place of what was added under `name` before.

        A period fires first after one period. While a run is going on or waits for a thread, firings are
        skipped: runs of one schedule never overlap and never pile up. What `fn` raises is logged and the
        schedule goes on. Raises ValueError for a bad spec and `EngineStopped`.
        """
        when = spec if isinstance(spec, Interval | Cron) else parse_spec(spec)
        handler = Handler(check_name(name, Kind.TASK), fn)
        with self._lock:
            self._check_open()
            added = schedule(handler, when, self._clock, self._zone)
            self._forget(name)
            self._schedules[name] = added
            self._put_on_agenda(added)
            if not self._timer_started:
                threading.Thread(target=self._keep_time, name="zaptasks-local-timer", daemon=True).start()
                self._timer_started = True
            self._timer.notify()

    def remove(self, name: str) -> bool:
        """Fire no more for `name`; a run that goes on is left alone. False if there was no such schedule."""
        with self._lock:
            return self._forget(name)

    def _forget(self, name: str) -> bool:
        forgotten = self._schedules.pop(name, None)
        if forgotten is None:
            return False
        # Its place in the heap stays until its time, when `_keep_time` passes over it. A name that is
        # added again and again must not fill the heap until then.
        forgotten.removed = True
        if len(self._agenda) > 2 * len(self._schedules) + _AGENDA_SLACK:
            self._agenda = [entry for entry in self._agenda if not entry[2].removed]
            heapq.heapify(self._agenda)
        return True

    def _put_on_agenda(self, item: Schedule) -> None:
        heapq.heappush(self._agenda, (item.look_at, next(self._order), item))

    def _keep_time(self) -> None:
        """The one thread that fires schedules. What fires runs in the pool."""
        with self._lock:
            while not self._stopped:
                now = self._clock.monotonic()
                while self._agenda and self._agenda[0][0] <= now:
                    item = heapq.heappop(self._agenda)[2]
                    if not item.removed:
                        self._look_at(item)
                self._clock.wait(self._timer, self._agenda[0][0] - now if self._agenda else None)

    def _look_at(self, item: Schedule) -> None:
        try:
            fired = item.advance(self._clock)
        except ValueError as error:  # nothing fires any more, for example after the year 9999
            logger.warning("schedule %s ends: %s", item.name, error)
            self._forget(item.name)
            return
        self._put_on_agenda(item)
        if not fired:
            return
        if item.pending or len(self._queue) >= self._queue_max:
            item.skipped += 1
        else:
            item.pending = True
            self._enqueue(_Firing(item))

    # ------------------------------------------------------------------------------------- pool

    def _enqueue(self, run: _Task | _Firing) -> None:
        if len(self._queue) >= self._waiting_threads and self._threads < self._threads_max:
            number = self._threads + 1
            threading.Thread(target=self._serve, name=f"zaptasks-local-{number}", daemon=True).start()
            self._threads = number
        self._queue.append(run)
        self._work.notify()

    def _serve(self) -> None:
        """One thread of the pool."""
        while (run := self._take()) is not None:
            run.run()
            skipped = 0
            with self._lock:
                del self._running[threading.get_ident()]
                if isinstance(run, _Firing):
                    skipped = run.schedule.end_run()
                self._progress.notify_all()
            if skipped:
                logger.info("schedule %s: %d firings skipped: the run before had not ended", run.name, skipped)

    def _take(self) -> _Task | _Firing | None:
        with self._lock:
            while not self._queue:
                if self._stopped:
                    self._threads -= 1
                    return None
                self._waiting_threads += 1
                self._work.wait()
                self._waiting_threads -= 1
            run = self._queue.popleft()
            self._running[threading.get_ident()] = run
            return run

    # ------------------------------------------------------------------------------------- ends

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Wait, at most `timeout` seconds, until nothing runs or waits to run; False if something does.

        Firings that are still to come do not count, nor does the handler that calls this.
        """
        with self._lock:
            return self._progress.wait_for(self._idle, timeout)

    def stop(self, timeout: float = STOP_SECONDS) -> Unfinished:
        """Take no more work, end all schedules, and give accepted tasks `timeout` seconds to finish.

        Returns what is left: handlers that still run (a thread cannot be ended from outside; its result
        still reaches its future) and tasks that were dropped before they began (their futures are
        cancelled). Calling it again waits again.
        """
        with self._lock:
            self._stopped = True
            for item in self._schedules.values():
                item.removed = True
            self._schedules.clear()
            self._agenda.clear()
            self._work.notify_all()
            self._timer.notify_all()
            self._progress.wait_for(self._idle, timeout)
            dropped = [run for run in self._queue if isinstance(run, _Task)]
            self._queue.clear()
            running = tuple(run.name for run in self._others())
            self._progress.notify_all()
        for task in dropped:
            task.future.cancel()  # outside the lock: a future's callbacks are somebody else's code
        return Unfinished(running, tuple(task.name for task in dropped))

    def _idle(self) -> bool:
        return not self._queue and not self._others()

    def _others(self) -> list[_Task | _Firing]:
        """What runs in threads other than this one."""
        return [run for thread, run in self._running.items() if thread != threading.get_ident()]

    def _check_open(self) -> None:
        if self._stopped:
            raise EngineStopped("this engine was stopped: make a new one")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        left = self.stop()
        if left:
            logger.warning("stopped with work left: running %s, dropped %s", left.running, left.dropped)


# ------------------------------------------------------------------------------------ what to run


class _Task:
    """One call of `now`."""

    def __init__(
        self,
        name: str,
        handler: Callable[[bytes | str | None], object],
        body: bytes | None,
        request_id: str | None,
        headers: Headers | None,
        converter: DataConverter,
    ) -> None:
        self.name = name
        self.handler = handler
        self.body = body
        self.id = request_id or uuid.uuid4().hex
        self.headers = headers
        self.converter = converter
        self.future: Future[Any] = Future()

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            with _as_first_attempt(self.name, self.id, self.headers):
                result = self.handler(None if self.body is None else self.converter.open(self.body))
            decoded = self.converter.decode(self.converter.encode(result, f"the result of {self.name!r}"))
        except BaseException as error:  # SystemExit too: it ends this task and not its thread
            logger.error("task %s failed: %r", self.name, error, exc_info=error)
            self.future.set_exception(error)
        else:
            self.future.set_result(decoded)


class _Firing:
    """One run of a schedule's function."""

    def __init__(self, fired: Schedule) -> None:
        self.schedule = fired
        self.name = fired.name

    def run(self) -> None:
        if self.schedule.removed:  # since it was queued
            return
        try:
            with _as_first_attempt(self.name, uuid.uuid4().hex):
                _call_handler(self.schedule.handler, None)
        except BaseException as error:
            logger.error("schedule %s: a run failed: %r", self.name, error, exc_info=error)


def _call_handler(handler: Handler, body: bytes | str | None) -> object:
    return _call(handler.function, *handler.parameters.from_payload(body))


def _call_default(handler: DefaultHandler, task_type: str, body: bytes | str | None) -> object:
    return _call(handler, task_type, None if body is None else msgspec.json.decode(body))


def _call(fn: Callable[..., object], *args: object) -> object:
    result = fn(*args)
    return trio.run(_settle, result) if inspect.isawaitable(result) else result


async def _settle(result: Awaitable[object]) -> object:
    return await result


def _as_first_attempt(task_type: str, task_id: str, headers: Headers | None = None) -> AbstractContextManager[None]:
    """Make `current_task()` work: this is the first and only attempt, and its heartbeats reach nobody."""
    context = TaskContext(
        id=task_id,
        type=task_type,
        attempt=1,
        maximum_attempts=1,
        namespace="default",
        task_queue="local",
        workflow_id=task_id,
        run_id=task_id,
        scheduled_time=datetime.now(UTC),
        start_to_close=None,
        heartbeat_timeout=None,
        heartbeat_details=(),
        headers=headers,
        send=_send_nowhere,
        emit=_send_nowhere,
    )
    return as_current(context)


def _send_nowhere(said: bytes) -> None:
    """Nobody waits for a sign of life, or for output, in the same process."""


# ------------------------------------------------------------------------------- the process ends

_engines: weakref.WeakSet[LocalEngine] = weakref.WeakSet()


@atexit.register
def _abandon_all() -> None:
    """Let no pool thread pick up more work while the interpreter is taken down around it."""
    for engine in list(_engines):
        engine.stop(timeout=0)
