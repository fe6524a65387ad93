"""Activities: what a workflow has done by workers, with everything that reaches outside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, Literal, TypeAlias, TypedDict, TypeVar, TypeVarTuple, Unpack, overload

import msgspec

from zaptasks.arguments import result_reader
from zaptasks.errors import ActivityFailed, PayloadError
from zaptasks.handlers import name_of
from zaptasks.json_types import Reader
from zaptasks.options import RetryPolicy, Seconds, check_options, to_ms
from zaptasks.payloads import encode_arguments

from . import commands as c
from . import history as h
from .execution import Run, current_run
from .scheduler import Task, checkpoint, checkpoint_if_cancelled, current_task, task_or_none, wait

T = TypeVar("T")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

OnCancel: TypeAlias = Literal["wait", "request", "abandon"]
"""What a cancel of the code that waits for an activity or a child means for that: "wait": it is asked to stop, and
its end is waited for; "request": it is asked to stop; "abandon": it is left alone."""


class SessionActivityOptions(TypedDict, total=False):
    """What an activity of a session may be asked for with: where it runs is known."""

    start_to_close: Seconds | None
    """How long one attempt may take."""
    schedule_to_start: Seconds | None
    """How long it may wait for a worker."""
    schedule_to_close: Seconds | None
    """How long all attempts may take together."""
    heartbeat_timeout: Seconds | None
    """How long an attempt may be silent."""
    retry_policy: RetryPolicy | None
    on_cancel: OnCancel
    """By default "wait"."""


class ActivityOptions(SessionActivityOptions, total=False):
    """What an activity may be asked for with."""

    task_queue: str
    """Whose workers do it; by default the workflow's own."""


class Outcome:
    """An event that is to come, and the tasks that wait for it."""

    __slots__ = ("_waiting", "event")

    def __init__(self) -> None:
        self.event: h.Event | None = None
        self._waiting: dict[Task, None] = {}

    def settle(self, event: h.Event) -> None:
        if self.event is None:
            self.event = event
            for task in self._waiting:
                task.scheduler.reschedule(task, event)
            self._waiting.clear()

    async def wait(self, on_cancel: Callable[[], bool]) -> h.Event:
        """The event. A cancel calls `on_cancel`, which says whether it ends the wait."""
        if self.event is not None:
            await checkpoint()
            return self.event
        task = current_task()
        self._waiting[task] = None

        def abort() -> bool:
            if not on_cancel():
                return False
            del self._waiting[task]
            return True

        event: h.Event = await wait(abort)
        return event


def decode_result(read: Reader, payload: bytes | None, what: str) -> Any:
    """A result as the type that its function is annotated with. Raises `PayloadError` for another shape."""
    try:
        return read(payload or b"null")
    except msgspec.MsgspecError as error:
        raise PayloadError(f"the result of {what} does not fit its type: {error}", path="$") from None


def check_on_cancel(on_cancel: OnCancel) -> None:
    if on_cancel not in ("wait", "request", "abandon"):
        raise ValueError(f'on_cancel is {on_cancel!r}: it must be "wait", "request" or "abandon"')


class ActivityHandle(Generic[R]):
    """An activity that was asked for. Made by `start_activity`."""

    def __init__(self, run: Run, command: c.ScheduleActivity, read: Reader, on_cancel: OnCancel):
        self.id: Final = command.id
        self.type: Final = command.type
        self._run = run
        self._read = read
        self._on_cancel = on_cancel
        self._outcome = Outcome()
        self._is_cancel_requested = False
        run.add(command)
        run.expect(command.id, self._told)

    def _told(self, event: h.Event) -> None:
        self._run.settle(self.id)
        self._outcome.settle(event)

    @property
    def is_done(self) -> bool:
        return self._outcome.event is not None

    def cancel(self) -> None:
        """Ask it to stop. What comes of that is its result: `ActivityFailed` of type CanceledError, or another."""
        if self.is_done or self._is_cancel_requested:
            return
        task = task_or_none()
        if task is not None:
            task.check_may_change("cancel an activity")
        self._is_cancel_requested = True
        self._run.add_cancel(c.CancelActivity(id=self.id))

    async def result(self) -> R:
        """Wait for its end. Raises `ActivityFailed`; when this wait is cancelled, `on_cancel` says what follows."""
        event = await self._outcome.wait(self._cancelled)
        if event.event_type == "ACTIVITY_TASK_COMPLETED":
            value: R = decode_result(self._read, event.payload("result"), f"activity {self.type!r}")
            return value
        if event.event_type == h.ACTIVITY_CANCELED and self._is_cancel_requested:
            await checkpoint_if_cancelled()
        raise ActivityFailed(self.type, event.failure)

    def _cancelled(self) -> bool:
        if self._on_cancel != "abandon":
            self.cancel()
        return self._on_cancel != "wait"


def start_checked(
    function: str, activity: str | Callable[..., Any], args: tuple[object, ...], options: ActivityOptions
) -> ActivityHandle[Any]:
    """What all the functions here begin with: `function` is the one that is called, for the error about options."""
    check_options(options, ActivityOptions, function)
    return _ask(activity, args, **options)


def _ask(
    activity: str | Callable[..., Any],
    args: tuple[object, ...],
    *,
    task_queue: str = "",
    start_to_close: Seconds | None = None,
    schedule_to_start: Seconds | None = None,
    schedule_to_close: Seconds | None = None,
    heartbeat_timeout: Seconds | None = None,
    retry_policy: RetryPolicy | None = None,
    on_cancel: OnCancel = "wait",
) -> ActivityHandle[Any]:
    check_on_cancel(on_cancel)
    name = name_of(activity)
    command = c.ScheduleActivity(
        id=current_task().next_command_id(),
        type=name,
        task_queue=task_queue,
        input=encode_arguments(args, f"the arguments of activity {name!r}"),
        start_to_close_ms=to_ms(start_to_close, "start_to_close"),
        schedule_to_start_ms=to_ms(schedule_to_start, "schedule_to_start"),
        schedule_to_close_ms=to_ms(schedule_to_close, "schedule_to_close"),
        heartbeat_ms=to_ms(heartbeat_timeout, "heartbeat_timeout"),
        retry_policy=None if retry_policy is None else retry_policy.to_wire(),
    )
    read = result_reader(None if isinstance(activity, str) else activity)
    return ActivityHandle(current_run(), command, read, on_cancel)


@overload
async def execute_activity(
    activity: Callable[[Unpack[Ts]], Awaitable[R]],
    /,
    *args: *Ts,
    **options: Unpack[ActivityOptions],
) -> R: ...
@overload
async def execute_activity(
    activity: Callable[[Unpack[Ts]], R],
    /,
    *args: *Ts,
    **options: Unpack[ActivityOptions],
) -> R: ...
@overload
async def execute_activity(
    activity: str,
    /,
    *args: object,
    **options: Unpack[ActivityOptions],
) -> Any: ...
async def execute_activity(
    activity: Any,
    /,
    *args: *Ts,
    **options: Unpack[ActivityOptions],
) -> Any:
    """Have a worker of `task_queue` (by default the workflow's own) do `activity(*args)`, and return its result.

    Without a retry policy it is tried until it succeeds or a timeout ends it: give it a `start_to_close`, at least.
    Raises `ActivityFailed`. When this wait is cancelled, `on_cancel` says what becomes of the activity: by default it
    is asked to stop, with the reason of the cancel, and its end is waited for.
    """
    await checkpoint_if_cancelled()
    handle = start_checked("execute_activity", activity, args, options)
    return await handle.result()


@overload
def start_activity(
    activity: Callable[[Unpack[Ts]], Awaitable[R]],
    /,
    *args: *Ts,
    **options: Unpack[ActivityOptions],
) -> ActivityHandle[R]: ...
@overload
def start_activity(
    activity: Callable[[Unpack[Ts]], R],
    /,
    *args: *Ts,
    **options: Unpack[ActivityOptions],
) -> ActivityHandle[R]: ...
@overload
def start_activity(
    activity: str,
    /,
    *args: object,
    **options: Unpack[ActivityOptions],
) -> ActivityHandle[Any]: ...
def start_activity(
    activity: Any,
    /,
    *args: *Ts,
    **options: Unpack[ActivityOptions],
) -> ActivityHandle[Any]:
    """Like `execute_activity`, without waiting: `await handle.result()` waits, and may be called by any task."""
    return start_checked("start_activity", activity, args, options)


@overload
async def execute_activity_method(
    activity: Callable[[Any, Unpack[Ts]], Awaitable[R]],
    /,
    *args: *Ts,
    **options: Unpack[ActivityOptions],
) -> R: ...
@overload
async def execute_activity_method(
    activity: Callable[[Any, Unpack[Ts]], R],
    /,
    *args: *Ts,
    **options: Unpack[ActivityOptions],
) -> R: ...
async def execute_activity_method(
    activity: Any,
    /,
    *args: *Ts,
    **options: Unpack[ActivityOptions],
) -> Any:
    """Like `execute_activity`, for a method named through its class: `execute_activity_method(Mailer.send, mail)`."""
    await checkpoint_if_cancelled()
    handle = start_checked("execute_activity_method", activity, args, options)
    return await handle.result()


@overload
def start_activity_method(
    activity: Callable[[Any, Unpack[Ts]], Awaitable[R]],
    /,
    *args: *Ts,
    **options: Unpack[ActivityOptions],
) -> ActivityHandle[R]: ...
@overload
def start_activity_method(
    activity: Callable[[Any, Unpack[Ts]], R],
    /,
    *args: *Ts,
    **options: Unpack[ActivityOptions],
) -> ActivityHandle[R]: ...
def start_activity_method(
    activity: Any,
    /,
    *args: *Ts,
    **options: Unpack[ActivityOptions],
) -> ActivityHandle[Any]:
    """Like `start_activity`, for a method named through its class."""
    return start_checked("start_activity_method", activity, args, options)
