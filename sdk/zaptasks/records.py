"""What the server tells about executions, schedules and namespaces, as the client hands it out.

Structs that are decoded straight from the answers. Keys that a server does not send read as empty, keys that
nobody here knows are ignored, so that servers older and newer than this client can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Final, TypeVar, cast

import msgspec
from msgspec.structs import replace

from zapwire.envelope import Receipt
from zapwire.failure import Failure, decode_failure, encode_failure

from .converters import PLAIN, DataConverter
from .errors import ExecutionError, TaskCanceled, TaskFailed, TaskTerminated, TaskTimedOut
from .headers import Headers, headers_of_start
from .options import DURABILITIES, Durability, RetryPolicy, Seconds, present, to_ms, workflow_timeouts
from .payloads import SMALL_PAYLOAD_BYTES_MAX, encode_optional
from .spec import Interval, parse_spec


class Status(Enum):
    """Where an execution stands; the values are Go's numbers, past them ours."""

    UNSPECIFIED = 0
    RUNNING = 1
    COMPLETED = 2
    FAILED = 3
    CANCELED = 4
    TERMINATED = 5
    CONTINUED_AS_NEW = 6
    TIMED_OUT = 7
    CANCELING = 8

    @property
    def is_open(self) -> bool:
        """Whether it may still end in any way."""
        return self in (Status.RUNNING, Status.CANCELING, Status.UNSPECIFIED)


_ERRORS: Final[dict[Status, type[ExecutionError]]] = {
    Status.FAILED: TaskFailed,
    Status.CANCELED: TaskCanceled,
    Status.TERMINATED: TaskTerminated,
    Status.TIMED_OUT: TaskTimedOut,
}


def read_status(number: int, name: str) -> Status:
    """The status by its name, else by its number: Go's wire has no number for CANCELING."""
    try:
        return Status[name] if name else Status(number)
    except (KeyError, ValueError):
        return Status.UNSPECIFIED


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    pass


class _Acknowledgement(_Record, frozen=True, kw_only=True):
    """An answer that says how durable it is: in its receipt over ZAP, in its body over HTTP."""

    level: str = msgspec.field(default="", name="durability")

    @property
    def durability(self) -> Durability | None:
        """How durable what was asked for was when the server answered; None if it did not say, as Go's does not."""
        return next((known for known in DURABILITIES if known == self.level), None)


T = TypeVar("T")

_LEVELS: Final[dict[int, Durability]] = {
    Receipt.MEMORY: "memory",
    Receipt.WRITTEN: "written",
    Receipt.SYNCED: "synced",
}


def with_receipt(answer: T, receipt: int) -> T:
    """The answer, with the level that its receipt names; a receipt of no known level changes nothing."""
    level = _LEVELS.get(receipt)
    if level is None or not isinstance(answer, _Acknowledgement):
        return answer
    return msgspec.structs.replace(answer, level=level)


class ExecutionInfo(_Record, frozen=True, kw_only=True):
    """A task or workflow: what it is and where it stands.

    `kind` is "task" or "workflow". Payloads (`input`, `result`, `memo`) are what JSON makes of them; listings leave
    out all but the memo, and the headers. `build_id` is that of the worker that had its task last.
    """

    workflow_id: str
    run_id: str
    type: str = msgspec.field(default="", name="workflow_type")
    kind: str = "workflow"
    status_number: int = msgspec.field(default=0, name="status")
    status_name: str = ""
    task_queue: str = ""
    history_length: int = 0
    attempt: int = 1
    start_time: datetime | None = None
    close_time: datetime | None = None
    input: Any = None
    result: Any = None
    memo: Any = None
    search_attributes: dict[str, Any] = {}
    headers: dict[str, str] = {}
    build_id: str = ""
    schedule_id: str = ""
    cancel_reason: str = ""
    close_reason: str = ""
    is_dead_letter: bool = msgspec.field(default=False, name="dead_letter")
    raw_failure: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="failure")

    @property
    def status(self) -> Status:
        return read_status(self.status_number, self.status_name)

    @property
    def error(self) -> ExecutionError | None:
        """What `result()` raises for this execution; None while it is open, and if it completed."""
        failure = decode_failure(self.raw_failure) if self.raw_failure else None
        return error_of(self.workflow_id, self.run_id, self.status, failure, self.close_reason)


def error_of(
    workflow_id: str, run_id: str, status: Status, failure: Failure | None, reason: str = ""
) -> ExecutionError | None:
    """The exception for an end that is no completion."""
    kind = _ERRORS.get(status)
    if kind is None:
        return None
    if failure is None:
        failure = Failure(message=reason, code=f"{status.name.title().replace('_', '')}Error")
    return kind(workflow_id, run_id, failure)


class ClosedExecution(_Record, frozen=True, kw_only=True):
    """The answer to AwaitExecution."""

    workflow_id: str = ""
    run_id: str = ""
    status_number: int = msgspec.field(default=0, name="status")
    status_name: str = ""
    reason: str = ""
    result: msgspec.Raw = msgspec.Raw(b"")
    raw_failure: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="failure")

    @property
    def status(self) -> Status:
        return read_status(self.status_number, self.status_name)


class HistoryEvent(_Record, frozen=True, kw_only=True, rename="camel"):
    """One thing that happened to an execution. `event_id` counts from 1 without gaps."""

    event_id: int
    event_time: datetime
    event_type: str
    attributes: dict[str, Any] = {}


class Waiting(_Record, frozen=True, kw_only=True):
    """One thing that an open execution waits for, and why."""

    what: str
    reason: str
    since: datetime
    until: datetime | None = None
    activity_id: str = ""
    identity: str = ""
    build_id: str = ""
    attempt: int = 0


class Started(_Acknowledgement, frozen=True, kw_only=True):
    """The answer to a start."""

    workflow_id: str = ""
    run_id: str = ""
    is_new: bool = True


class ExecutionPage(_Record, frozen=True, kw_only=True):
    executions: list[ExecutionInfo] = []
    dead_letters: list[ExecutionInfo] = []
    next_page_token: str = ""


class HistoryPage(_Record, frozen=True, kw_only=True):
    events: list[HistoryEvent] = []
    next_cursor: int = 0
    run_id: str = ""
    is_open: bool | None = None
    """Whether more can come; only where that was asked."""


class Described(_Record, frozen=True, kw_only=True):
    info: ExecutionInfo


class Explained(_Record, frozen=True, kw_only=True):
    waits_for: list[Waiting] = []


class QueryAnswer(_Record, frozen=True, kw_only=True):
    query_result: msgspec.Raw = msgspec.Raw(b"")


class UpdateAnswer(_Record, frozen=True, kw_only=True):
    workflow_id: str = ""
    run_id: str = ""
    result: msgspec.Raw = msgspec.Raw(b"")
    raw_failure: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="failure")


# --- schedules -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Every:
    """An interval, and where in it the times lie.

    With a `phase` they are the multiples of the interval since 1970 (UTC) plus the phase: `Every(3600, 900)` is a
    quarter past each hour. Without one they count from the making of the schedule.
    """

    interval: Seconds
    phase: Seconds | None = None

    def to_wire(self) -> dict[str, int]:
        body = {"interval_ms": to_ms(self.interval, "interval")}
        if self.phase is not None:
            body["phase_ms"] = to_ms(self.phase, "phase")
        return body


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSpec:
    """When a schedule fires: at every time of each cron expression, and every `interval`.

    `phase` places the interval's times as `Every` says, and `intervals` are more of them. `timezone` is where the
    expressions read the clock, an IANA name; "" is UTC. Nothing fires before `start_time` or after `end_time`; each
    firing is late by up to `jitter`.
    """

    cron: Sequence[str] = ()
    interval: Seconds | None = None
    phase: Seconds | None = None
    intervals: Sequence[Every] = ()
    start_time: datetime | None = None
    end_time: datetime | None = None
    jitter: Seconds | None = None
    timezone: str = ""

    @classmethod
    def parse(cls, text: str) -> ScheduleSpec:
        """From a Go duration or a cron expression. Raises `ValueError` for anything else."""
        spec = parse_spec(text)
        if isinstance(spec, Interval) and not spec.on_second:
            return cls(interval=spec.seconds)
        return cls(cron=(text.strip(),))

    def to_wire(self) -> dict[str, object]:
        if isinstance(self.cron, str):
            raise ValueError(f"cron is {self.cron!r}: it must be a sequence of expressions")
        body: dict[str, object] = {
            "cron": list(self.cron) or None,
            "interval_ms": to_ms(self.interval, "interval"),
            "jitter_ms": to_ms(self.jitter, "jitter"),
            "timezone": self.timezone,
        }
        if self.phase is not None:
            body["phase_ms"] = to_ms(self.phase, "phase")
        if self.intervals:
            body["intervals"] = [every.to_wire() for every in self.intervals]
        for name, when in (("start_time", self.start_time), ("end_time", self.end_time)):
            if when is not None:
                body[f"{name}_ms"] = moment_ms(when, name)
        return body


def moment_ms(when: datetime, what: str) -> int:
    """Milliseconds since the epoch. Raises `ValueError` for a time without a time zone."""
    if when.utcoffset() is None:
        raise ValueError(f"{what} is {when!r}: it must have a time zone")
    return round(when.timestamp() * 1000)


@dataclass(frozen=True, slots=True)
class StartTask:
    """What a schedule does: start a one-shot task, as `client.now` does."""

    type: str
    payload: object = None
    task_queue: str = "default"
    retry_policy: RetryPolicy | None = None
    schedule_to_start: Seconds | None = field(default=None, kw_only=True)
    schedule_to_close: Seconds | None = field(default=None, kw_only=True)
    start_to_close: Seconds | None = field(default=None, kw_only=True)
    heartbeat_timeout: Seconds | None = field(default=None, kw_only=True)
    memo: Mapping[str, object] | None = field(default=None, kw_only=True)
    headers: Headers | None = field(default=None, kw_only=True)

    def to_wire(self, converter: DataConverter = PLAIN) -> dict[str, object]:
        body: dict[str, object] = {"workflow_type": self.type, "task_queue": self.task_queue, "is_task": True}
        if self.payload is not None:
            body["input"] = msgspec.Raw(converter.encode(self.payload, f"the payload of {self.type!r}"))
        return body | present(
            retry_policy=None if self.retry_policy is None else self.retry_policy.to_wire(),
            schedule_to_start_ms=to_ms(self.schedule_to_start, "schedule_to_start"),
            schedule_to_close_ms=to_ms(self.schedule_to_close, "schedule_to_close"),
            start_to_close_ms=to_ms(self.start_to_close, "start_to_close"),
            heartbeat_ms=to_ms(self.heartbeat_timeout, "heartbeat_timeout"),
            memo=converter.encode_optional(self.memo, f"the memo of {self.type!r}", SMALL_PAYLOAD_BYTES_MAX),
            headers=headers_of_start(None, self.headers),
        )


@dataclass(frozen=True, slots=True)
class StartWorkflow:
    """What a schedule does: start a workflow with these arguments. Without an id each run gets one of its own."""

    type: str
    args: Sequence[object] = ()
    task_queue: str = "default"
    workflow_id: str = ""
    retry_policy: RetryPolicy | None = None
    execution_timeout: Seconds | None = field(default=None, kw_only=True)
    run_timeout: Seconds | None = field(default=None, kw_only=True)
    task_timeout: Seconds | None = field(default=None, kw_only=True)
    memo: Mapping[str, object] | None = field(default=None, kw_only=True)
    search_attributes: Mapping[str, object] | None = field(default=None, kw_only=True)
    headers: Headers | None = field(default=None, kw_only=True)

    def to_wire(self, converter: DataConverter = PLAIN) -> dict[str, object]:
        body: dict[str, object] = {"workflow_type": self.type, "task_queue": self.task_queue}
        if self.args:
            body["input"] = converter.encode_arguments(tuple(self.args), f"the arguments of {self.type!r}")
        return body | present(
            workflow_id=self.workflow_id,
            retry_policy=None if self.retry_policy is None else self.retry_policy.to_wire(),
            timeouts=workflow_timeouts(self.execution_timeout, self.run_timeout, self.task_timeout),
            memo=converter.encode_optional(self.memo, f"the memo of {self.type!r}", SMALL_PAYLOAD_BYTES_MAX),
            search_attributes=encode_optional(self.search_attributes, f"the search attributes of {self.type!r}"),
            headers=headers_of_start(None, self.headers),
        )


class IntervalInfo(_Record, frozen=True, kw_only=True):
    interval_ms: int = 0
    phase_ms: int | None = None


class ScheduleSpecInfo(_Record, frozen=True, kw_only=True):
    cron: list[str] | None = None
    interval_ms: int = 0
    phase_ms: int | None = None
    intervals: list[IntervalInfo] = []
    start_time_ms: int = 0
    end_time_ms: int = 0
    jitter_ms: int = 0
    timezone: str = ""


class ScheduleActionInfo(_Record, frozen=True, kw_only=True):
    type: str = msgspec.field(default="", name="workflow_type")
    task_queue: str = ""
    workflow_id: str = ""
    input: Any = None
    is_task: bool = False
    memo: Any = None
    search_attributes: dict[str, Any] = {}
    headers: dict[str, str] = {}


class RunningAction(_Record, frozen=True, kw_only=True):
    workflow_id: str
    run_id: str


class RecentAction(_Record, frozen=True, kw_only=True):
    """A run that a schedule started, and for which time."""

    workflow_id: str
    run_id: str
    schedule_time: datetime
    start_time: datetime


class ScheduleProgress(_Record, frozen=True, kw_only=True):
    """What a schedule has done so far and will do next.

    `state` is "active", "paused", "used up" (no action of its limit is left) or "ended". `recent_actions` are the last
    ten, the latest last; `buffer_size` runs wait for the open one, and `backfill_slots` are still to be acted on.
    """

    state: str = ""
    action_count: int = 0
    remaining_actions: int | None = None
    missed_catchup_count: int = 0
    overlap_skipped: int = 0
    buffer_dropped: int = 0
    buffer_size: int = 0
    backfill_slots: int = 0
    running_count: int = 0
    running_workflows: list[RunningAction] = []
    recent_actions: list[RecentAction] = []
    next_action_times: list[datetime] = []
    create_time: datetime | None = None
    update_time: datetime | None = None
    note: str = ""


class ScheduleInfo(_Acknowledgement, frozen=True, kw_only=True):
    """A schedule. `info` is filled by `describe_schedule` and empty in listings.

    `durability` is that of the call that made or changed it, and None where it was only looked at.
    """

    id: str
    spec: ScheduleSpecInfo = ScheduleSpecInfo()
    action: ScheduleActionInfo = ScheduleActionInfo()
    paused: bool = False
    overlap_policy: str = ""
    catchup_window_ms: int | None = None
    pause_on_failure: bool = False
    remaining_actions: int | None = None
    info: ScheduleProgress = ScheduleProgress()


class ScheduleList(_Record, frozen=True, kw_only=True):
    schedules: list[ScheduleInfo] = []


class Backfilled(_Record, frozen=True, kw_only=True):
    slots: int = 0


class MatchingTimes(_Record, frozen=True, kw_only=True):
    matching_times: list[datetime] = []


class Triggered(_Acknowledgement, frozen=True, kw_only=True):
    status: str = ""
    workflow_id: str = ""
    run_id: str = ""


# --- namespaces and health ---------------------------------------------------------------------------


class NamespaceDetails(_Record, frozen=True, kw_only=True):
    name: str = ""
    state: int = 0
    description: str = ""
    owner_email: str = ""


class NamespaceConfig(_Record, frozen=True, kw_only=True):
    retention_ms: int = 0


class NamespaceInfo(_Record, frozen=True, kw_only=True):
    """A namespace: executions, queues and schedules of different ones never meet."""

    info: NamespaceDetails = NamespaceDetails()
    config: NamespaceConfig = NamespaceConfig()

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def description(self) -> str:
        return self.info.description

    @property
    def retention(self) -> float:
        """How long closed executions are kept, in seconds."""
        return self.config.retention_ms / 1000


class NamespaceList(_Record, frozen=True, kw_only=True):
    namespaces: list[NamespaceInfo] = []


class Health(_Acknowledgement, frozen=True, kw_only=True):
    """What the server says of itself. `durability` is the most that a call can ask it for."""

    service: str = ""
    status: str = ""
    """"ok", or "failing" while the store of the default namespace takes nothing."""
    namespace: str = ""
    store: str | dict[str, str] = ""
    """"ok", or why not, for each namespace whose store takes nothing; "" from a server that does not say."""
    queued_bytes: int = 0
    """Decided and on its way to the disk."""
    refused: dict[str, int] = {}
    """How often each limit refused something since the server started; limits that did not are left out."""


class Acknowledged(_Acknowledgement, frozen=True, kw_only=True):
    """The answer to a call that changes something and returns nothing else."""


# --- payloads in answers -----------------------------------------------------------------------------

_PAYLOADS: Final = ("input", "result", "details", "memo", "args")
"""The attributes of events that hold payloads, beside the failure."""


def reveal(answer: T, converter: DataConverter) -> T:
    """The answer, with what `converter` can decode in the open; payloads that it cannot decode stay as they are."""
    return cast(T, _reveal(answer, converter))


def _reveal(answer: object, converter: DataConverter) -> object:
    match answer:
        case Described():
            return replace(answer, info=_reveal_info(answer.info, converter))
        case ExecutionPage():
            return replace(
                answer,
                executions=[_reveal_info(info, converter) for info in answer.executions],
                dead_letters=[_reveal_info(info, converter) for info in answer.dead_letters],
            )
        case HistoryPage():
            return replace(answer, events=[_reveal_event(event, converter) for event in answer.events])
        case Explained():
            return replace(
                answer,
                waits_for=[replace(item, reason=converter.find_text(item.reason)) for item in answer.waits_for],
            )
        case ScheduleInfo():
            return _reveal_schedule(answer, converter)
        case ScheduleList():
            return replace(answer, schedules=[_reveal_schedule(item, converter) for item in answer.schedules])
    return answer


def _reveal_info(info: ExecutionInfo, converter: DataConverter) -> ExecutionInfo:
    failure = info.raw_failure
    return replace(
        info,
        input=converter.reveal(info.input),
        result=converter.reveal(info.result),
        memo=converter.reveal(info.memo),
        raw_failure=msgspec.Raw(encode_failure(converter.decode_failure(failure))) if failure else failure,
    )


def _reveal_event(event: HistoryEvent, converter: DataConverter) -> HistoryEvent:
    attributes = {
        name: converter.reveal(value) if name in _PAYLOADS else value for name, value in event.attributes.items()
    }
    if "failure" in attributes:
        attributes["failure"] = converter.reveal_failure(attributes["failure"])
    if isinstance(attributes.get("reason"), str):
        attributes["reason"] = converter.find_text(attributes["reason"])
    return replace(event, attributes=attributes)


def _reveal_schedule(schedule: ScheduleInfo, converter: DataConverter) -> ScheduleInfo:
    action = schedule.action
    return replace(
        schedule,
        action=replace(action, input=converter.reveal(action.input), memo=converter.reveal(action.memo)),
    )
