"""Calls that a run has its worker make before it answers, and their outcomes, which markers keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zaptasks.errors import PayloadError
from zaptasks.failures import failure_of
from zaptasks.options import RetryPolicy
from zaptasks.payloads import encode_payload

from . import commands as c
from .endings import raw_failure
from .places import Place
from .scheduler import Task, current_task, wait
from .steps import Step

if TYPE_CHECKING:
    from .execution import Run

LOCAL: Final = "local-activity"
"""The name of the markers that keep outcomes of local activities."""


@dataclass(frozen=True, slots=True)
class LocalCall:
    """A function that the worker is to call while it has the workflow task."""

    id: str
    name: str
    function: Callable[..., Any]
    args: tuple[object, ...]
    place: Place
    start_to_close: float | None = None
    """Seconds for one attempt."""
    retry_policy: RetryPolicy | None = None
    """None: one attempt."""


class LocalCalls:
    """The local calls of one run."""

    def __init__(self, run: Run) -> None:
        self.open: Final[dict[str, LocalCall]] = {}
        """By command id: what the worker is to do now."""
        self._run = run
        self._tasks: dict[str, Task] = {}
        self._early: dict[str, bytes] = {}
        """Recorded outcomes of calls that the replayed code has not come to."""

    async def make(self, call: LocalCall) -> bytes:
        """Let the worker make a call; its outcome, as the marker keeps it. No cancel ends the wait."""
        early = self._early.pop(call.id, None)
        if early is not None:
            self._run.add(c.RecordMarker(id=call.id, name=LOCAL, details=msgspec.Raw(early)), call.place)
            return early
        self.open[call.id] = call
        self._tasks[call.id] = current_task()
        details: bytes = await wait(None)
        return details

    def _settle(self, call: LocalCall, details: bytes) -> None:
        del self.open[call.id]
        self._run.add(c.RecordMarker(id=call.id, name=LOCAL, details=msgspec.Raw(details)), call.place)
        self._run.scheduler.reschedule(self._tasks.pop(call.id), details)
        self._run.step()

    def recall(self, call_id: str, details: bytes) -> None:
        """In a replay: the outcome that was recorded, for the task that waits for it now or later."""
        call = self.open.get(call_id)
        if call is None:
            self._early[call_id] = details
        else:
            self._settle(call, details)

    def check(self) -> None:
        """Raise `NondeterminismError` if the replayed code waits for a call that the history has no outcome of."""
        for call in self.open.values():
            was = self._run.matching.recorded_at(call.id)
            what = f"local activity {call.name!r}"
            now = Step(text=what, kind="record-marker", name=call.name, place=call.id, source=call.place)
            raise self._run.matching.mismatch(call.id, was, now, call.place)

    def done(self, call_id: str, result: object, error: BaseException | None) -> None:
        """A call was made: go on with what it returned or raised."""
        call = self.open[call_id]
        details: dict[str, msgspec.Raw]
        try:
            if error is None:
                details = {"result": msgspec.Raw(encode_payload(result, f"the result of {call.name!r}"))}
            else:
                details = {"failure": raw_failure(failure_of(error))}
        except PayloadError as unfit:
            details = {"failure": raw_failure(failure_of(unfit))}
        self._settle(call, msgspec.json.encode(details))

    def forget_recorded(self) -> None:
        """The replay is over."""
        self._early.clear()
