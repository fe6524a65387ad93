"""Time, and waiting for it or for a condition."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NoReturn

from .scheduler import checkpoint, checkpoint_if_cancelled, current_task, wait
from .scopes import fail_after, move_on_at


def current_time() -> float:
    """Seconds since 1970, by the server's clock: the time of the newest event that the run has seen."""
    return current_task().scheduler.host.time


async def sleep(seconds: float) -> None:
    """Wait for `seconds`, however long, and through restarts of anything. 0 is a checkpoint."""
    if math.isnan(seconds) or seconds < 0:
        raise ValueError(f"seconds is {seconds!r}: it must be 0 or more")
    if seconds == 0:
        await checkpoint()
    else:
        await sleep_until(current_time() + seconds)


async def sleep_until(deadline: float) -> None:
    """Wait until `deadline`, in seconds of `current_time`. One that has passed is a checkpoint."""
    await checkpoint_if_cancelled()
    with move_on_at(deadline):
        await sleep_forever()


async def sleep_forever() -> NoReturn:
    """Wait until cancelled."""
    await wait()
    raise AssertionError("nobody wakes a task that sleeps forever")


async def wait_condition(predicate: Callable[[], object], timeout: float | None = None) -> None:
    """Wait until `predicate()` is true; it is when this returns, since nothing runs in between.

    It is asked whenever all tasks of the run wait, and must only look. Several that hold at once are served in the
    order in which they began to wait, each after the one before has run. Raises `TooSlowError` after `timeout` seconds.
    """
    if timeout is not None:
        with fail_after(timeout):
            await wait_condition(predicate)
        return
    await checkpoint_if_cancelled()
    task = current_task()
    if task.scheduler.look(f"the condition of {task.name}", predicate):
        return
    entry = (predicate, task)
    conditions = task.scheduler.conditions
    conditions.append(entry)

    def abort() -> bool:
        conditions.remove(entry)
        return True

    await wait(abort)
