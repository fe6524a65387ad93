"""Events, locks, semaphores, limiters and conditions, with trio's names and semantics; waiters are served in order."""

from __future__ import annotations

import math
from collections import OrderedDict
from types import TracebackType
from typing import final

from .errors import WouldBlock
from .scheduler import (
    Task,
    checkpoint,
    checkpoint_if_cancelled,
    current_task,
    task_or_none,
    wait,
    yield_to_others,
)


def check_may_change(what: str) -> None:
    task = task_or_none()
    if task is not None:
        task.check_may_change(what)


class Lot:
    """Tasks that wait in line."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: OrderedDict[Task, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    async def park(self) -> None:
        task = current_task()
        self._waiting[task] = None

        def abort() -> bool:
            lot, task.lot = task.lot, None  # perhaps another one than at first
            assert lot is not None
            del lot._waiting[task]
            return True

        task.lot = self
        await wait(abort)

    def unpark(self, count: float = 1) -> list[Task]:
        """Wake the first ones."""
        woken: list[Task] = []
        while self._waiting and len(woken) < count:
            task, _ = self._waiting.popitem(last=False)
            task.lot = None
            task.scheduler.reschedule(task)
            woken.append(task)
        return woken

    def move_to(self, other: Lot, count: float) -> None:
        """Let the first ones wait elsewhere."""
        moved = 0
        while self._waiting and moved < count:
            task, _ = self._waiting.popitem(last=False)
            other._waiting[task] = None
            task.lot = other
            moved += 1

    def first(self) -> Task | None:
        return next(iter(self._waiting), None)


class Event:
    """Something that happens once: `set` it, and everybody who waits goes on."""

    __slots__ = ("_is_set", "_lot")

    def __init__(self) -> None:
        self._is_set = False
        self._lot = Lot()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        check_may_change("set an event")
        self._is_set = True
        self._lot.unpark(math.inf)

    async def wait(self) -> None:
        """Wait until it is set; a checkpoint if it is already."""
        if self._is_set:
            await checkpoint()
        else:
            await self._lot.park()


class _AsyncContext:
    async def acquire(self) -> None:
        raise NotImplementedError

    def release(self) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not current_task().scheduler.is_closed:
            self.release()


@final
class Lock(_AsyncContext):
    """One task at a time: `async with lock:`. Only the task that took it can give it back."""

    def __init__(self) -> None:
        self._owner: Task | None = None
        self._lot = Lot()

    def locked(self) -> bool:
        return self._owner is not None

    def acquire_nowait(self) -> None:
        """Take it, or raise `WouldBlock`."""
        task = current_task()
        task.check_may_change("take a lock")
        if self._owner is task:
            raise RuntimeError("attempt to re-acquire an already held Lock")
        if self._owner is not None or self._lot:
            raise WouldBlock
        self._owner = task

    async def acquire(self) -> None:
        await checkpoint_if_cancelled()
        try:
            self.acquire_nowait()
        except WouldBlock:
            await self._lot.park()  # whoever gives it back gives it to us
        else:
            await yield_to_others()

    def release(self) -> None:
        if self._owner is not current_task():
            raise RuntimeError("can't release a Lock you don't own")
        check_may_change("give back a lock")
        woken = self._lot.unpark()
        self._owner = woken[0] if woken else None

    @property
    def lot(self) -> Lot:
        return self._lot

    def is_owned_by(self, task: Task) -> bool:
        return self._owner is task


@final
class Semaphore(_AsyncContext):
    """A count that `acquire` takes from and `release` adds to; at 0, `acquire` waits."""

    def __init__(self, initial_value: int, *, max_value: int | None = None) -> None:
        if not isinstance(initial_value, int) or initial_value < 0:
            raise ValueError(f"initial_value is {initial_value!r}: it must be an int of 0 or more")
        if max_value is not None and max_value < initial_value:
            raise ValueError(f"max_value is {max_value}: it must be initial_value ({initial_value}) or more")
        self._value = initial_value
        self._max_value = max_value
        self._lot = Lot()

    @property
    def value(self) -> int:
        return self._value

    @property
    def max_value(self) -> int | None:
        return self._max_value

    def acquire_nowait(self) -> None:
        """Take one, or raise `WouldBlock`."""
        check_may_change("take from a semaphore")
        if self._value == 0:
            raise WouldBlock
        self._value -= 1

    async def acquire(self) -> None:
        await checkpoint_if_cancelled()
        try:
            self.acquire_nowait()
        except WouldBlock:
            await self._lot.park()
        else:
            await yield_to_others()

    def release(self) -> None:
        check_may_change("release a semaphore")
        if self._lot:
            self._lot.unpark()
        elif self._max_value is not None and self._value == self._max_value:
            raise ValueError("semaphore released too many times")
        else:
            self._value += 1


@final
class CapacityLimiter(_AsyncContext):
    """At most `total_tokens` tasks at a time: `async with limiter:`."""

    def __init__(self, total_tokens: float) -> None:
        self._total = 0.0
        self._borrowers: dict[Task, None] = {}
        self._lot = Lot()
        self.total_tokens = total_tokens

    @property
    def total_tokens(self) -> float:
        return self._total

    @total_tokens.setter
    def total_tokens(self, value: float) -> None:
        if value != math.inf and (not isinstance(value, int) or value < 0):
            raise ValueError(f"total_tokens is {value!r}: it must be an int of 0 or more, or math.inf")
        check_may_change("change a limiter")
        self._total = value
        self._serve()

    @property
    def borrowed_tokens(self) -> int:
        return len(self._borrowers)

    @property
    def available_tokens(self) -> float:
        return self._total - len(self._borrowers)

    def acquire_nowait(self) -> None:
        """Take a token, or raise `WouldBlock`."""
        task = current_task()
        task.check_may_change("take a token")
        if task in self._borrowers:
            raise RuntimeError("this task is already holding one of this CapacityLimiter's tokens")
        if self._lot or len(self._borrowers) >= self._total:
            raise WouldBlock
        self._borrowers[task] = None

    async def acquire(self) -> None:
        await checkpoint_if_cancelled()
        try:
            self.acquire_nowait()
        except WouldBlock:
            await self._lot.park()
        else:
            await yield_to_others()

    def release(self) -> None:
        task = current_task()
        task.check_may_change("give back a token")
        if task not in self._borrowers:
            raise RuntimeError("this task isn't holding any of this CapacityLimiter's tokens")
        del self._borrowers[task]
        self._serve()

    def _serve(self) -> None:
        for task in self._lot.unpark(max(0, self._total - len(self._borrowers))):
            self._borrowers[task] = None


@final
class Condition(_AsyncContext):
    """Tasks that wait, with a lock held, until another one tells them to look again."""

    def __init__(self, lock: Lock | None = None) -> None:
        if lock is not None and type(lock) is not Lock:
            raise TypeError("lock must be a workflow.Lock")
        self._lock = lock or Lock()
        self._lot = Lot()

    def locked(self) -> bool:
        return self._lock.locked()

    def acquire_nowait(self) -> None:
        self._lock.acquire_nowait()

    async def acquire(self) -> None:
        await self._lock.acquire()

    def release(self) -> None:
        self._lock.release()

    async def wait(self) -> None:
        """Give the lock back, wait for a notify, and take the lock again, cancelled or not."""
        from .scopes import CancelScope

        self._check_owner()
        self._lock.release()
        try:
            await self._lot.park()  # a notify moves us into the line of the lock
        except BaseException:
            if not current_task().scheduler.is_closed:
                with CancelScope(shield=True):
                    await self._lock.acquire()
            raise

    def notify(self, n: int = 1) -> None:
        """Wake `n` of those who wait, once they can have the lock."""
        self._check_owner()
        check_may_change("notify")
        self._lot.move_to(self._lock.lot, n)

    def notify_all(self) -> None:
        self._check_owner()
        check_may_change("notify")
        self._lot.move_to(self._lock.lot, math.inf)

    def _check_owner(self) -> None:
        if not self._lock.is_owned_by(current_task()):
            raise RuntimeError("must hold the lock of the condition")
