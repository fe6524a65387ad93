"""Local activities: short functions that the worker itself calls while it has the workflow task.

The outcome is kept in the history as a marker. A worker that is lost before it answers has the function called again
by the next one. There is no queue, and all attempts have to fit into the time for one workflow task.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypedDict, TypeVar, TypeVarTuple, Unpack, overload

import msgspec

from zaptasks.arguments import result_reader
from zaptasks.errors import ActivityFailed
from zaptasks.handlers import name_of
from zaptasks.options import RetryPolicy, Seconds, check_options, to_seconds
from zapwire.failure import decode_failure

from .activities import decode_result
from .execution import current_run
from .local_calls import LocalCall
from .places import caller
from .scheduler import checkpoint_if_cancelled, current_task

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class _Kept(msgspec.Struct):
    """The details of a marker: one of the two is there."""

    result: msgspec.Raw = msgspec.Raw(b"")
    failure: msgspec.Raw = msgspec.Raw(b"")


class LocalActivityOptions(TypedDict, total=False):
    """What a local activity may be asked for with."""

    start_to_close: Seconds | None
    """How long one attempt may take."""
    retry_policy: RetryPolicy | None
    """By default there is one attempt."""


@overload
async def execute_local_activity(
    activity: Callable[[Unpack[Ts]], Awaitable[R]],
    /,
    *args: *Ts,
    **options: Unpack[LocalActivityOptions],
) -> R: ...
@overload
async def execute_local_activity(
    activity: Callable[[Unpack[Ts]], R],
    /,
    *args: *Ts,
    **options: Unpack[LocalActivityOptions],
) -> R: ...
async def execute_local_activity(
    activity: Any,
    /,
    *args: *Ts,
    **options: Unpack[LocalActivityOptions],
) -> Any:
    """Have this worker call `activity(*args)` now, and return its result. Raises `ActivityFailed`.

    For something short that the server need not queue: all attempts, with the pauses between them, have four fifths of
    the time for a workflow task (8 of the 10 seconds, unless the start gave a `task_timeout`), together with the other
    local activities of that task. What does not fit fails, with type TimeoutError or with the failure of the last
    attempt. A cancel does not end it.
    """
    check_options(options, LocalActivityOptions, "execute_local_activity")
    await checkpoint_if_cancelled()
    name = name_of(activity)
    start_to_close = options.get("start_to_close")
    call = LocalCall(
        current_task().next_command_id(),
        name,
        activity,
        args,
        caller(),
        start_to_close=None if start_to_close is None else to_seconds(start_to_close, "start_to_close") or None,
        retry_policy=options.get("retry_policy"),
    )
    kept = msgspec.json.decode(await current_run().local_calls.make(call), type=_Kept)
    if bytes(kept.failure):
        raise ActivityFailed(name, decode_failure(bytes(kept.failure)))
    return decode_result(result_reader(activity), bytes(kept.result), f"local activity {name!r}")
