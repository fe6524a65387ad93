"""Cancel scopes and nurseries, with trio's semantics: level-triggered, shielded, exception groups.

Written after trio's own (`trio/_core/_run.py`, trio 0.35); tests run the same programs on both. What differs: sets
are in insertion order here, so that the same run always does the same; a deadline is a timer of the server's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Generic, Protocol, TypeVar, TypeVarTuple, Unpack, final

from .errors import Cancelled, TooSlowError
from .scheduler import Task, current_task, task_or_none, wait, yield_to_others

T_contra = TypeVar("T_contra", contravariant=True)
Ts = TypeVarTuple("Ts")


class CancelStatus:
    """What of the code is cancelled together: one for each scope that is entered, in a tree."""

    __slots__ = ("children", "is_abandoned", "is_cancelled", "parent", "scope", "tasks")

    def __init__(self, scope: CancelScope, parent: CancelStatus | None) -> None:
        self.scope = scope
        self.parent: CancelStatus | None = None
        self.children: dict[CancelStatus, None] = {}
        self.tasks: dict[Task, None] = {}
        self.is_cancelled = False
        self.is_abandoned = False
        """A scope around this one was left before it."""
        self.attach(parent)

    def attach(self, parent: CancelStatus | None) -> None:
        if self.parent is not None:
            del self.parent.children[self]
        self.parent = parent
        if parent is not None:
            parent.children[self] = None
        self.recalculate()

    @property
    def sees_parents_cancel(self) -> bool:
        return self.parent is not None and not self.scope.shield and self.parent.is_cancelled

    def recalculate(self) -> None:
        waiting = [self]
        while waiting:
            status = waiting.pop(0)
            is_cancelled = status.scope.cancel_called or status.sees_parents_cancel
            if is_cancelled == status.is_cancelled:
                continue
            status.is_cancelled = is_cancelled
            if is_cancelled:
                for task in list(status.tasks):
                    task.deliver_cancel()
            waiting.extend(status.children)

    def cancelled(self) -> Cancelled:
        """The exception for a task under this status, with the reason of whoever canceled."""
        status: CancelStatus | None = self
        while status is not None and not status.scope.cancel_called:
            status = status.parent
        return Cancelled("" if status is None else status.scope.cancel_reason)

    def encloses(self, other: CancelStatus | None) -> bool:
        while other is not None and other is not self:
            other = other.parent
        return other is self

    def effective_deadline(self) -> float:
        if self.is_cancelled:
            return -math.inf
        if self.parent is None or self.scope.shield:
            return self.scope.deadline
        return min(self.scope.deadline, self.parent.effective_deadline())

    def close(self) -> None:
        if self.parent is not None:
            del self.parent.children[self]
            self.parent = None
        if self.tasks or self.children:
            self._abandon()
            self.is_cancelled = True
            for task in list(self.tasks):
                task.deliver_cancel()
            for child in list(self.children):
                child.recalculate()

    def _abandon(self) -> None:
        self.is_abandoned = True
        for child in self.children:
            child._abandon()


@final
class CancelScope:
    """A block that can be cancelled as one: `with CancelScope(deadline=..., shield=...) as scope:`.

    Times are seconds of the workflow's clock (`current_time`). A deadline becomes a timer at the server, which counts
    from the moment that it hears of it. A scope is used once.
    """

    __slots__ = (
        "_cancel_called",
        "_deadline",
        "_entered_by",
        "_has_been_entered",
        "_relative_deadline",
        "_shield",
        "_timer",
        "cancel_reason",
        "cancelled_caught",
        "status",
    )

    def __init__(
        self, *, deadline: float = math.inf, relative_deadline: float = math.inf, shield: bool = False
    ) -> None:
        if math.isnan(deadline):
            raise ValueError("deadline must not be NaN")
        if math.isnan(relative_deadline) or relative_deadline < 0:
            raise ValueError(f"relative_deadline is {relative_deadline!r}: it must be 0 or more seconds")
        if deadline != math.inf and relative_deadline != math.inf:
            raise ValueError("give a deadline or a relative deadline, not both")
        self._deadline = float(deadline)
        self._relative_deadline = float(relative_deadline)
        self._shield = bool(shield)
        self._has_been_entered = False
        self._cancel_called = False
        self._timer: str | None = None
        self._entered_by: Task | None = None
        self.cancelled_caught: bool = False
        """Whether a cancel ended the block early."""
        self.cancel_reason: str = ""
        self.status: CancelStatus | None = None

    def __enter__(self) -> CancelScope:
        task = current_task()
        if self._has_been_entered:
            raise RuntimeError("each CancelScope may only be used for a single 'with' block")
        self._has_been_entered = True
        if self._relative_deadline != math.inf:
            self._deadline = task.scheduler.host.time + self._relative_deadline
            self._relative_deadline = math.inf
        self._entered_by = task
        if task.scheduler.host.time >= self._deadline:
            self._cancel_called = True
        self.status = CancelStatus(self, task.status)
        task.activate(self.status)
        self._set_timer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        return _leave_with(self.leave(error), error)

    def leave(self, error: BaseException | None) -> BaseException | None:
        """End the block; what is left of `error` after its own cancels are taken out."""
        task = current_task()
        if task.scheduler.is_closed:
            return error
        status = self.status
        if status is None:
            return _in_context(RuntimeError("this CancelScope was left already"), error)
        if task.status is status:
            task.activate(status.parent)
        elif not status.is_abandoned:
            if not status.encloses(task.status):
                return _in_context(RuntimeError(f"this CancelScope is left by {task!r}, which is not in it"), error)
            error = _in_context(RuntimeError("this CancelScope is left before one that was entered in it"), error)
            task.activate(status.parent)
        is_ours = status.is_cancelled and not status.sees_parents_cancel
        if error is not None and (is_ours or (task.status is not status and status.is_abandoned)):
            error = self._take_out_cancels(error)
        status.close()
        self.status = None
        self._set_timer()
        return error

    def _take_out_cancels(self, error: BaseException) -> BaseException | None:
        if isinstance(error, Cancelled):
            self.cancelled_caught = True
            return None
        if isinstance(error, BaseExceptionGroup):
            taken, rest = error.split(Cancelled)
            if taken is not None:
                self.cancelled_caught = True
            return rest
        return error

    def cancel(self, reason: str = "") -> None:
        """Cancel the block. What waits in it is woken with `Cancelled`, now and at every wait that follows."""
        task = task_or_none()
        if task is not None:
            task.check_may_change("cancel a scope")
        if self._cancel_called:
            return
        self._cancel_called = True
        self.cancel_reason = reason
        self._set_timer()
        if self.status is not None:
            self.status.recalculate()

    @property
    def cancel_called(self) -> bool:
        """Whether it is cancelled: by `cancel`, or because its deadline passed and the run was told so."""
        return self._cancel_called

    @property
    def shield(self) -> bool:
        """Whether cancels from around this scope stay outside."""
        return self._shield

    @shield.setter
    def shield(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"shield is {value!r}: it must be True or False")
        self._shield = value
        if self.status is not None:
            self.status.recalculate()

    @property
    def deadline(self) -> float:
        """When the scope is cancelled by itself, in seconds of `current_time`; `math.inf` for never."""
        if self._relative_deadline != math.inf:
            raise RuntimeError("a scope with a relative deadline has an absolute one only once it is entered")
        return self._deadline

    @deadline.setter
    def deadline(self, value: float) -> None:
        if math.isnan(value):
            raise ValueError("deadline must not be NaN")
        if self._relative_deadline != math.inf:
            raise RuntimeError("a scope with a relative deadline has an absolute one only once it is entered")
        self._deadline = float(value)
        self._drop_timer()
        self._set_timer()

    @property
    def relative_deadline(self) -> float:
        """How many seconds are left; before entering, how many there will be."""
        if self._has_been_entered:
            return self._deadline - current_task().scheduler.host.time
        if self._deadline != math.inf:
            raise RuntimeError("a scope with an absolute deadline has a relative one only once it is entered")
        return self._relative_deadline

    @relative_deadline.setter
    def relative_deadline(self, value: float) -> None:
        if math.isnan(value) or value < 0:
            raise ValueError(f"relative_deadline is {value!r}: it must be 0 or more seconds")
        if self._has_been_entered:
            self.deadline = current_task().scheduler.host.time + value
        elif self._deadline != math.inf:
            raise RuntimeError("a scope with an absolute deadline has a relative one only once it is entered")
        else:
            self._relative_deadline = float(value)

    @property
    def is_relative(self) -> bool | None:
        """Whether the deadline is relative still; None once it is entered, or where there is none."""
        if self._has_been_entered or (self._deadline == self._relative_deadline == math.inf):
            return None
        return self._relative_deadline != math.inf

    # --- the timer behind the deadline ---------------------------------------------------------------------

    def _set_timer(self) -> None:
        is_needed = self.status is not None and not self._cancel_called and self._deadline != math.inf
        if is_needed and self._timer is None:
            task = current_task()
            host = task.scheduler.host
            self._timer = host.start_timer(max(0.0, self._deadline - host.time), self._fired)
        elif not is_needed:
            self._drop_timer()

    def _drop_timer(self) -> None:
        if self._timer is not None and self._entered_by is not None:
            timer, self._timer = self._timer, None
            self._entered_by.scheduler.host.cancel_timer(timer)

    def _fired(self) -> None:
        self._timer = None
        self._cancel_called = True
        if self.status is not None:
            self.status.recalculate()


def move_on_after(seconds: float, *, shield: bool = False) -> CancelScope:
    """A scope that is cancelled after `seconds`, counted from where it is entered."""
    _check_seconds(seconds)
    return CancelScope(relative_deadline=seconds, shield=shield)


def move_on_at(deadline: float, *, shield: bool = False) -> CancelScope:
    """A scope that is cancelled at `deadline`, in seconds of `current_time`."""
    return CancelScope(deadline=deadline, shield=shield)


@contextmanager
def fail_after(seconds: float, *, shield: bool = False) -> Generator[CancelScope, None, None]:
    """Like `move_on_after`, and raises `TooSlowError` where that would move on."""
    with move_on_after(seconds, shield=shield) as scope:
        yield scope
    if scope.cancelled_caught:
        raise TooSlowError


@contextmanager
def fail_at(deadline: float, *, shield: bool = False) -> Generator[CancelScope, None, None]:
    """Like `move_on_at`, and raises `TooSlowError` where that would move on."""
    with move_on_at(deadline, shield=shield) as scope:
        yield scope
    if scope.cancelled_caught:
        raise TooSlowError


def _check_seconds(seconds: float) -> None:
    if math.isnan(seconds) or seconds < 0:
        raise ValueError(f"seconds is {seconds!r}: it must be 0 or more")


def current_effective_deadline() -> float:
    """The earliest deadline around the running code; -inf when it is cancelled, inf when there is none."""
    status = current_task().status
    return math.inf if status is None else status.effective_deadline()


# --- nurseries ---------------------------------------------------------------------------------------------


class TaskStatus(Protocol[T_contra]):
    """What `Nursery.start` gives to the function that it starts, as `task_status`."""

    def started(self, value: T_contra = ..., /) -> None: ...


class _Ignored:
    def started(self, value: object = None) -> None:
        """Nobody waits to hear of it."""


TASK_STATUS_IGNORED: Final[TaskStatus[Any]] = _Ignored()
"""The default for a `task_status` parameter: the function can then be called without `start` too."""

_NOTHING: Final = object()


class Nursery:
    """Tasks that end together. Made by `open_nursery`."""

    def __init__(self, cancel_scope: CancelScope, status: CancelStatus, parent: Task | None) -> None:
        self.cancel_scope: Final = cancel_scope
        self.status = status
        self.children: dict[Task, None] = {}
        self.is_closed = False
        self._parent = parent
        self._errors: list[BaseException] = []
        self._block_runs = parent is not None
        self._parent_waits = False
        self._pending_starts = 0

    @property
    def child_tasks(self) -> frozenset[Task]:
        """The tasks in it that run."""
        return frozenset(self.children)

    def start_soon(
        self,
        async_fn: Callable[[Unpack[Ts]], Coroutine[Any, Any, object]],
        *args: *Ts,
        name: object = None,
    ) -> None:
        """Run `async_fn(*args)` in a task of its own, which begins when this one waits."""
        current_task().scheduler.spawn(async_fn, args, self, name=name)

    async def start(
        self, async_fn: Callable[..., Coroutine[Any, Any, object]], *args: object, name: object = None
    ) -> Any:
        """Like `start_soon`, and wait until the task calls `task_status.started(value)`; returns that value.

        Until then the task runs under this call: what it raises is raised here, and a cancel of this call reaches it.
        """
        if self.is_closed:
            raise RuntimeError("the nursery is closed to new tasks")
        self._pending_starts += 1
        try:
            status: _Starting[Any]
            try:
                async with open_nursery() as waiting_room:
                    status = _Starting(waiting_room, self)
                    function = functools.partial(async_fn, task_status=status)
                    label = name or getattr(async_fn, "__qualname__", None)
                    task = current_task().scheduler.spawn(function, args, waiting_room, name=label)
                    task.eventual_nursery = self
            except BaseExceptionGroup as group:
                if len(group.exceptions) == 1:
                    _raise_as_it_was(group.exceptions[0])
                raise
            if status.value is _NOTHING:
                raise RuntimeError(f"{async_fn!r} ended without calling task_status.started()")
            return status.value
        finally:
            self._pending_starts -= 1
            self.check_closed()

    # --- how it ends ---------------------------------------------------------------------------------------

    def add_error(self, error: BaseException) -> None:
        self._errors.append(error)
        self.cancel_scope.cancel()

    def error(self) -> BaseException | None:
        """Of a nursery without a block: what its tasks raised, but for cancels."""
        if not self._errors:
            return None
        _, rest = BaseExceptionGroup("Exceptions from a workflow and its handlers", self._errors).split(Cancelled)
        return rest

    def child_finished(self, task: Task, value: object, error: BaseException | None) -> None:
        del self.children[task]
        if error is not None:
            self.add_error(error)
        self.check_closed()

    def check_closed(self) -> None:
        if self._block_runs or self.children or self._pending_starts:
            return
        self.is_closed = True
        if self._parent_waits:
            assert self._parent is not None
            self._parent_waits = False
            self._parent.scheduler.reschedule(self._parent)

    async def block_finished(self, error: BaseException | None) -> BaseException | None:
        """The `async with` block is over: wait for the tasks; what they and the block raised, as a group."""
        assert self._parent is not None
        if error is not None:
            self.add_error(error)
        self._block_runs = False
        self.check_closed()
        if self.is_closed:
            await yield_to_others()
        else:
            self._parent_waits = True
            await wait(None)
        popped = self._parent.nurseries.pop()
        assert popped is self, "nurseries are left in the order in which they were opened, backwards"
        if not self._errors:
            return None
        errors, self._errors = self._errors, []
        return BaseExceptionGroup("Exceptions from a workflow's nursery", errors)


class NurseryManager:
    """What `open_nursery` returns."""

    async def __aenter__(self) -> Nursery:
        task = current_task()
        task.check_may_change("open a nursery")
        scope = CancelScope()
        scope.__enter__()
        assert scope.status is not None
        self._nursery = Nursery(scope, scope.status, task)
        task.nurseries.append(self._nursery)
        return self._nursery

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if current_task().scheduler.is_closed:
            return False
        combined = await self._nursery.block_finished(error)
        return _leave_with(self._nursery.cancel_scope.leave(combined), error)


def open_nursery() -> NurseryManager:
    """A block that starts tasks and is left when all of them have ended: `async with open_nursery() as nursery:`.

    What a task raises cancels the others; everything that was raised leaves the block as one exception group.
    """
    return NurseryManager()


class _Starting(Generic[T_contra]):
    """The `task_status` of a task that `Nursery.start` waits for."""

    def __init__(self, old: Nursery, new: Nursery) -> None:
        self._old = old
        self._new = new
        self.value: object = _NOTHING

    def started(self, value: object = None) -> None:
        if self.value is not _NOTHING:
            raise RuntimeError("task_status.started() was called twice")
        self.value = value
        if self._old.status.is_cancelled:
            return  # the caller is cancelled: the task stays under it and ends with it
        if self._new.is_closed:
            raise RuntimeError("the nursery that the task was started in is closed")
        old = self._old
        moved = list(old.children)
        for task in moved:
            task.nursery = self._new
            task.eventual_nursery = None
            self._new.children[task] = None
        old.children.clear()
        for status in list(old.status.children):
            status.attach(self._new.status)
        for task in list(old.status.tasks):
            if task is not old._parent:
                task.activate(self._new.status)
        old.check_closed()


def _in_context(error: BaseException, context: BaseException | None) -> BaseException:
    error.__context__ = context
    return error


def _raise_as_it_was(error: BaseException) -> None:
    """Raise an exception out of a group without the group as its context."""
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context
        del error, context


def _leave_with(remaining: BaseException | None, error: BaseException | None) -> bool:
    """What an exit returns or raises so that `remaining` goes on from the block."""
    if remaining is None:
        return True
    if remaining is error:
        return False
    _raise_as_it_was(remaining)
    return False
