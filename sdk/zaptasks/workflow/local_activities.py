"""Local activities: short functions that the worker itself calls while it has the workflow task.

The outcome is kept in the history as a marker. A worker that is lost before it answers has the function called again
by the next one. It has no queue, no attempts and no timeouts of its own: it must end well within the time for one
workflow task, 10 s by default.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, TypeVarTuple, overload

import msgspec

from zaptasks.arguments import result_reader
from zaptasks.errors import ActivityFailed
from zaptasks.handlers import name_of
from zapwire.failure import decode_failure

from .activities import decode_result
from .execution import LocalCall, current_run
from .places import caller
from .scheduler import checkpoint_if_cancelled, current_task

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class _Kept(msgspec.Struct):
    """The details of a marker: one of the two is there."""

    result: msgspec.Raw = msgspec.Raw(b"")
    failure: msgspec.Raw = msgspec.Raw(b"")


@overload
async def execute_local_activity(activity: Callable[[*Ts], Awaitable[R]], /, *args: *Ts) -> R: ...
@overload
async def execute_local_activity(activity: Callable[[*Ts], R], /, *args: *Ts) -> R: ...
async def execute_local_activity(activity: Any, /, *args: *Ts) -> Any:
    """Have this worker call `activity(*args)` now, and return its result. Raises `ActivityFailed`.

    For something short that the server need not queue and retry. A cancel does not end it.
    """
    await checkpoint_if_cancelled()
    name = name_of(activity)
    call = LocalCall(current_task().next_command_id(), name, activity, args, caller())
    kept = msgspec.json.decode(await current_run().call_locally(call), type=_Kept)
    if bytes(kept.failure):
        raise ActivityFailed(name, decode_failure(bytes(kept.failure)))
    return decode_result(result_reader(activity), bytes(kept.result), f"local activity {name!r}")
