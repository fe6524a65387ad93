"""Events as they come with a workflow task, and what of them is the trace of a command."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from zapwire.failure import Failure, decode_failure

from . import commands as c

T = TypeVar("T")

ANSWERED: Final = "WORKFLOW_TASK_COMPLETED"
STARTED: Final = "WORKFLOW_EXECUTION_STARTED"
SIGNALED: Final = "WORKFLOW_EXECUTION_SIGNALED"
CANCEL_REQUESTED: Final = "WORKFLOW_EXECUTION_CANCEL_REQUESTED"
RESET: Final = "WORKFLOW_EXECUTION_RESET"
UPDATE_ACCEPTED: Final = "WORKFLOW_EXECUTION_UPDATE_ACCEPTED"
UPDATE_COMPLETED: Final = "WORKFLOW_EXECUTION_UPDATE_COMPLETED"
ACTIVITY_CANCEL_REQUESTED: Final = "ACTIVITY_TASK_CANCEL_REQUESTED"
ACTIVITY_CANCELED: Final = "ACTIVITY_TASK_CANCELED"
TIMER_STARTED: Final = "TIMER_STARTED"
TIMER_FIRED: Final = "TIMER_FIRED"
TIMER_CANCELED: Final = "TIMER_CANCELED"
CHILD_STARTED: Final = "CHILD_WORKFLOW_STARTED"
CHILD_START_FAILED: Final = "CHILD_WORKFLOW_START_FAILED"
CHILD_CANCELED: Final = "CHILD_WORKFLOW_CANCELED"
MARKER: Final = "MARKER_RECORDED"

ACTIVITY_CLOSED: Final = frozenset(
    {"ACTIVITY_TASK_COMPLETED", "ACTIVITY_TASK_FAILED", "ACTIVITY_TASK_TIMED_OUT", ACTIVITY_CANCELED}
)
CHILD_CLOSED: Final = frozenset(
    {
        "CHILD_WORKFLOW_COMPLETED",
        "CHILD_WORKFLOW_FAILED",
        CHILD_CANCELED,
        "CHILD_WORKFLOW_TERMINATED",
        "CHILD_WORKFLOW_TIMED_OUT",
    }
)
EXTERNAL: Final = frozenset(
    {
        "EXTERNAL_WORKFLOW_CANCEL_REQUESTED",
        "EXTERNAL_WORKFLOW_CANCEL_FAILED",
        "EXTERNAL_WORKFLOW_SIGNALED",
        "EXTERNAL_WORKFLOW_SIGNAL_FAILED",
    }
)
OUTCOMES: Final = ACTIVITY_CLOSED | CHILD_CLOSED | EXTERNAL | {CHILD_STARTED, CHILD_START_FAILED, TIMER_FIRED}
"""Events that answer a command."""

ENDS: Final[dict[str, type[c.End]]] = {
    "WORKFLOW_EXECUTION_COMPLETED": c.Complete,
    "WORKFLOW_EXECUTION_FAILED": c.Fail,
    "WORKFLOW_EXECUTION_CANCELED": c.Cancel,
    "WORKFLOW_EXECUTION_CONTINUED_AS_NEW": c.ContinueAsNew,
}
ENDS_FROM_OUTSIDE: Final = frozenset({"WORKFLOW_EXECUTION_TERMINATED", "WORKFLOW_EXECUTION_TIMED_OUT"})


class Event(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One line of a history, its attributes as they came."""

    event_id: int
    event_time: datetime
    event_type: str
    attributes: dict[str, msgspec.Raw] = {}

    @property
    def time_ms(self) -> int:
        return round(self.event_time.timestamp() * 1000)

    def get(self, name: str, kind: type[T]) -> T:
        """An attribute; the zero value of its type where it is absent."""
        raw = self.attributes.get(name)
        return kind() if raw is None else msgspec.json.decode(raw, type=kind)

    def payload(self, name: str) -> bytes | None:
        """An attribute that holds JSON of the application, None for none and for null."""
        raw = self.attributes.get(name)
        return None if raw is None or bytes(raw) == b"null" else bytes(raw)

    @property
    def command_id(self) -> str:
        return self.get("commandId", str)

    @property
    def failure(self) -> Failure:
        return decode_failure(self.payload("failure") or b"")


class EventPage(msgspec.Struct, frozen=True):
    """A part of a history, as the server answers; `next_cursor` is 0 for the last."""

    events: list[Event] = []
    next_cursor: int = 0


class Recorded(NamedTuple):
    """The trace of a command that some worker made."""

    kind: type[c.Named]
    subject: str
    """Its type or name, where a command of that kind has one."""
    event: Event

    @property
    def text(self) -> str:
        """In the words that `commands.describe` has for the command."""
        if self.kind is c.StartTimer:
            return f"timer of {self.event.get('fireAfterMs', int) / 1000:g} s"
        if self.kind is c.Upsert:
            return "change of memo or search attributes"
        return f"{_NOUNS[self.kind]} {self.subject!r}"


_TRACES: Final[dict[str, tuple[type[c.Named], str]]] = {
    "ACTIVITY_TASK_SCHEDULED": (c.ScheduleActivity, "activityType"),
    TIMER_STARTED: (c.StartTimer, ""),
    CHILD_STARTED: (c.StartChild, "workflowType"),
    CHILD_START_FAILED: (c.StartChild, "workflowType"),
    "EXTERNAL_WORKFLOW_CANCEL_REQUESTED": (c.CancelExternal, "workflowId"),
    "EXTERNAL_WORKFLOW_CANCEL_FAILED": (c.CancelExternal, "workflowId"),
    "EXTERNAL_WORKFLOW_SIGNALED": (c.SignalExternal, "workflowId"),
    "EXTERNAL_WORKFLOW_SIGNAL_FAILED": (c.SignalExternal, "workflowId"),
    MARKER: (c.RecordMarker, "name"),
    "WORKFLOW_EXECUTION_UPSERTED": (c.Upsert, ""),
}
_NOUNS: Final[dict[type[Any], str]] = {
    c.ScheduleActivity: "activity",
    c.StartChild: "child workflow",
    c.CancelExternal: "cancel of workflow",
    c.SignalExternal: "signal to workflow",
    c.RecordMarker: "marker",
}


def recorded(event: Event) -> Recorded | None:
    """The command that an event is the trace of; None for every other event."""
    trace = _TRACES.get(event.event_type)
    if trace is None or not event.command_id:
        return None
    kind, attribute = trace
    return Recorded(kind, event.get(attribute, str) if attribute else "", event)


def subject_of(command: c.Named) -> str:
    """What `Recorded.subject` is for a command that is made now."""
    match command:
        case c.ScheduleActivity() | c.StartChild():
            return command.type
        case c.CancelExternal() | c.SignalExternal():
            return command.workflow_id
        case c.RecordMarker():
            return command.name
        case _:
            return ""
