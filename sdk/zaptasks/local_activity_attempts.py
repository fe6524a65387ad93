"""Local activities, as a worker calls them: attempts, the time of each, and the pauses between them.

All of it has to fit into the time that the server gives for the workflow task: after that it would give the task to
another worker, which would begin again.
"""

from __future__ import annotations

import functools
import logging
import math
from dataclasses import dataclass
from typing import Final

import trio

from zapwire.failure import TIMEOUT_ERROR, Failure

from .errors import RemoteError
from .failures import failure_of
from .handlers import is_async
from .options import RetryPolicy
from .workflow import LocalCall

log = logging.getLogger("zaptasks.worker")

LOCAL_SHARE: Final = 0.8
"""Of the time for a workflow task: the rest is for what the workflow does with the outcomes, and for the answer on its
way."""

ADVICE: Final = "for what takes longer there is execute_activity"


@dataclass(frozen=True, slots=True)
class Allowance:
    """The time that all local activities of a workflow task have together."""

    seconds: float
    deadline: float
    """By trio's clock."""

    @classmethod
    def of_task(cls, timeout_ms: int, began: float) -> Allowance:
        """That of a task with this timeout, which came at `began`."""
        seconds = timeout_ms / 1000 * LOCAL_SHARE
        return cls(seconds, began + seconds)

    def __str__(self) -> str:
        return f"the {self.seconds:g} s that the local activities of one workflow task have together"

    @property
    def left(self) -> float:
        return self.deadline - trio.current_time()


async def call_locally(call: LocalCall, allowance: Allowance, limiter: trio.CapacityLimiter) -> object:
    """What the function returns, after as many attempts as its retry policy and the allowance admit.

    Raises what the last attempt raised, and a `RemoteError` of type TimeoutError for one that took too long. A `def`
    function runs in a thread, which cannot be stopped: one that takes too long is left behind to end by itself.
    """
    attempt = 1
    while True:
        try:
            return await _attempt(call, attempt, allowance, limiter)
        except (trio.Cancelled, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit and the like end the attempt and not the worker
            await trio.lowlevel.checkpoint_if_cancelled()
            log.warning("local activity %r, attempt %d: %s", call.name, attempt, type(error).__name__, exc_info=error)
            failure = failure_of(error)
            pause = pause_after(call.retry_policy, failure, attempt)
            if pause is None:
                raise
            if pause >= allowance.left:
                raise _out_of_time(failure, attempt, pause, allowance) from error
        await trio.sleep(pause)
        attempt += 1


async def _attempt(call: LocalCall, attempt: int, allowance: Allowance, limiter: trio.CapacityLimiter) -> object:
    left = allowance.left
    if left <= 0:
        raise _timed_out(f"it did not begin within {allowance}: {ADVICE}", non_retryable=True)
    allowed = math.inf if call.start_to_close is None else call.start_to_close
    with trio.move_on_after(min(allowed, left)) as scope:
        if is_async(call.function):
            return await call.function(*call.args)
        function = functools.partial(call.function, *call.args)
        return await trio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=limiter)
    assert scope.cancelled_caught, "nothing else leaves the block"
    if allowed < left:
        raise _timed_out(f"attempt {attempt} took longer than its start_to_close of {allowed:g} s")
    raise _timed_out(f"it did not end within {allowance}: {ADVICE}", non_retryable=True)


def pause_after(policy: RetryPolicy | None, failure: Failure, attempt: int) -> float | None:
    """Seconds until the next attempt; None where there is none."""
    if policy is None or failure.non_retryable or failure.code in policy.non_retryable_error_types:
        return None
    return None if attempt == policy.maximum_attempts else policy.interval(attempt)


def _timed_out(message: str, *, non_retryable: bool = False) -> RemoteError:
    return RemoteError(Failure(message=message, code=TIMEOUT_ERROR, non_retryable=non_retryable))


def _out_of_time(failure: Failure, attempt: int, pause: float, allowance: Allowance) -> RemoteError:
    """The failure of the last attempt that fits, with why there is no other."""
    why = f"attempt {attempt}; another one, {pause:g} s later, does not fit into {allowance}: {ADVICE}"
    message = f"{failure.message} ({why})"
    return RemoteError(Failure(message=message, code=failure.code, details=failure.details, non_retryable=True))
