"""Executions, activities, schedules and events as records, and back: what is kept of them and in which form.

A field of `records` is either in one of the tuples here or soft: gone with the process and rebuilt by whoever needs it.
A test holds the two together. Fields are added with a default, so that older records can be read.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Any

import msgspec

from zapserver.engine.commands import (
    Action,
    ActivityTimeouts,
    Overlap,
    Payload,
    QueueKind,
    ScheduleSpec,
    Status,
    WorkflowTimeouts,
)
from zapserver.engine.records import (
    NULL,
    Activity,
    ActivityState,
    Backfill,
    Event,
    EventType,
    Execution,
    Lease,
    RecentAction,
    RequestKey,
    Schedule,
    ScheduledRun,
    WorkflowTask,
)
from zapserver.engine.retry import RetryPolicy

INLINE_BYTES_MAX = 4_096
"""A longer payload of an execution stands only in its history, and is read from there: a record is written again with
every change, and a payload never changes."""

PAYLOAD_ATTRIBUTES = frozenset({"input", "result", "failure", "details", "memo", "args"})
"""Attributes of events that are payloads: JSON that nobody here looks into."""

_ABSENT = msgspec.Raw()


class _Record(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    pass


class ActivityRecord(_Record):
    activity_id: str
    type: str
    queue: str
    state: str
    scheduled_ms: int
    attempt: int = 0
    charged: int = 0
    ready_ms: int = 0
    retry_ms: int = 0
    scheduled_event_id: int = 0
    input: msgspec.Raw = _ABSENT
    input_is_long: bool = False
    retry_policy: RetryPolicy = RetryPolicy()
    timeouts: ActivityTimeouts = ActivityTimeouts()
    lease: Lease | None = None
    cancel_reason: str | None = None
    heartbeat_details: msgspec.Raw = _ABSENT
    last_failure: msgspec.Raw = _ABSENT
    call_position: int = -1


class WorkflowTaskRecord(_Record):
    attempt: int = 0
    ready_ms: int = 0
    lease: Lease | None = None
    calls_made: int = 0


class ExecutionRecord(_Record):
    number: int
    workflow_id: str
    run_id: str
    type: str
    task_queue: str
    is_task: bool
    start_ms: int
    first_start_ms: int
    history_length: int = 0
    history_bytes: int = 0
    last_event_ms: int = 0
    signal_count: int = 0
    attempt: int = 1
    status: int = Status.RUNNING
    close_ms: int | None = None
    close_reason: str = ""
    input: msgspec.Raw = _ABSENT
    result: msgspec.Raw = _ABSENT
    failure: msgspec.Raw = _ABSENT
    memo: msgspec.Raw = _ABSENT
    long_payloads: tuple[str, ...] = ()
    """Names of payloads that are read from the history: the input in the first event, the others in the last."""
    search_attributes: dict[str, Any] | None = None
    request_keys: tuple[RequestKey, ...] = ()
    identity: str = ""
    retry_policy: RetryPolicy | None = None
    timeouts: WorkflowTimeouts = WorkflowTimeouts()
    activity_timeouts: ActivityTimeouts = ActivityTimeouts()
    cron_schedule: str = ""
    task_due_ms: int | None = None
    schedule_id: str = ""
    cancel_reason: str = ""
    cancel_identity: str = ""
    cancel_due_ms: int | None = None
    is_dead_letter: bool = False
    has_calls: bool = False
    task: WorkflowTaskRecord | None = None
    activity: ActivityRecord | None = None


class ActionRecord(_Record):
    """An `Action`. Its payloads may be absent here: msgspec takes `Raw | None` for a type that only a null fits."""

    type: str
    task_queue: str
    is_task: bool
    workflow_id: str = ""
    input: msgspec.Raw = _ABSENT
    retry_policy: RetryPolicy | None = None
    memo: msgspec.Raw = _ABSENT
    timeouts: WorkflowTimeouts = WorkflowTimeouts()
    task_timeouts: ActivityTimeouts | None = None
    search_attributes: dict[str, Any] | None = None


class ScheduleRecord(_Record):
    schedule_id: str
    spec: ScheduleSpec
    action: ActionRecord
    overlap: Overlap
    created_ms: int
    updated_ms: int
    anchor_ms: int
    paused: bool = False
    note: str = ""
    catchup_window_ms: int | None = None
    pause_on_failure: bool = False
    actions_limit: int | None = None
    remaining_actions: int | None = None
    next_ms: int | None = None
    next_due_ms: int | None = None
    last_slot_ms: int | None = None
    not_before_ms: int = 0
    work_ms: int | None = None
    action_count: int = 0
    skipped_overlap: int = 0
    buffer_dropped: int = 0
    missed: int = 0
    buffered: list[ScheduledRun] = []
    backfills: list[Backfill] = []
    backfill_requests: dict[str, int] = {}
    recent_actions: list[RecentAction] = []


PLAIN_EXECUTION_FIELDS = (
    "number",
    "workflow_id",
    "run_id",
    "type",
    "task_queue",
    "is_task",
    "start_ms",
    "first_start_ms",
    "history_length",
    "history_bytes",
    "last_event_ms",
    "signal_count",
    "attempt",
    "close_ms",
    "close_reason",
    "search_attributes",
    "request_keys",
    "identity",
    "retry_policy",
    "timeouts",
    "activity_timeouts",
    "cron_schedule",
    "task_due_ms",
    "schedule_id",
    "cancel_reason",
    "cancel_identity",
    "cancel_due_ms",
    "is_dead_letter",
)
"""Kept as they are. `status`, the payloads, the task and the activity are converted."""

PLAIN_ACTIVITY_FIELDS = (
    "activity_id",
    "type",
    "scheduled_ms",
    "attempt",
    "charged",
    "ready_ms",
    "retry_ms",
    "scheduled_event_id",
    "retry_policy",
    "timeouts",
    "lease",
    "cancel_reason",
)

SCHEDULE_FIELDS = ScheduleRecord.__struct_fields__

_plain_execution = attrgetter(*PLAIN_EXECUTION_FIELDS)
_plain_activity = attrgetter(*PLAIN_ACTIVITY_FIELDS)
_of_schedule = attrgetter(*SCHEDULE_FIELDS)

_encode = msgspec.json.Encoder().encode
_decode_execution = msgspec.json.Decoder(ExecutionRecord).decode
_decode_activity = msgspec.json.Decoder(ActivityRecord).decode
_decode_schedule = msgspec.json.Decoder(ScheduleRecord).decode
_decode_events = msgspec.json.Decoder(list[tuple[int, EventType, dict[str, msgspec.Raw]]]).decode


# --- executions ----------------------------------------------------------------------------------


def encode_execution(execution: Execution) -> bytes:
    """The record of an execution, open or closed."""
    record = ExecutionRecord(**dict(zip(PLAIN_EXECUTION_FIELDS, _plain_execution(execution), strict=True)))
    record.status = int(execution.status)
    for name in ("input", "result", "failure"):
        payload = getattr(execution, name)
        if payload is None:
            continue
        if len(payload) > INLINE_BYTES_MAX:
            record.long_payloads += (name,)
        else:
            setattr(record, name, payload)
    if execution.memo is not None:
        record.memo = execution.memo
    if execution.status.is_open:
        record.has_calls = bool(execution.calls)
        if execution.task is not None:
            task = execution.task
            record.task = WorkflowTaskRecord(
                attempt=task.attempt, ready_ms=task.ready_ms, lease=task.lease, calls_made=task.calls_made
            )
        if execution.is_task:
            for activity in execution.open_activities.values():
                record.activity = _activity_record(activity)
    return _encode(record)


def decode_execution(data: bytes) -> tuple[Execution, ExecutionRecord]:
    """The execution, and its record for what `recovery` builds from it: the long payloads, the task, the activity."""
    record = _decode_execution(data)
    execution = Execution(
        **dict(zip(PLAIN_EXECUTION_FIELDS, _plain_execution(record), strict=True)),
        status=Status(record.status),
        input=_present(record.input),
        result=_present(record.result),
        failure=_present(record.failure),
        memo=_present(record.memo),
        is_saved=True,
    )
    return execution, record


def restored_task(execution: Execution, record: WorkflowTaskRecord) -> WorkflowTask:
    """The workflow task of an execution; in no line yet."""
    return WorkflowTask(
        execution=execution,
        type=execution.type,
        queue=(QueueKind.WORKFLOW, execution.task_queue),
        attempt=record.attempt,
        ready_ms=record.ready_ms,
        lease=record.lease,
        calls_made=record.calls_made,
    )


# --- activities ------------------------------------------------------------------------------------


def encode_activity(activity: Activity) -> bytes:
    return _encode(_activity_record(activity))


def decode_activity(data: bytes) -> ActivityRecord:
    return _decode_activity(data)


def _activity_record(activity: Activity) -> ActivityRecord:
    record = ActivityRecord(
        queue=activity.queue[1],
        state=activity.state.value,
        **dict(zip(PLAIN_ACTIVITY_FIELDS, _plain_activity(activity), strict=True)),
    )
    if activity.input is not None and not activity.execution.is_task:
        record.input_is_long = len(activity.input) > INLINE_BYTES_MAX
        if not record.input_is_long:
            record.input = activity.input
    if activity.heartbeat_details is not None:
        record.heartbeat_details = activity.heartbeat_details
    if activity.last_failure is not None:
        record.last_failure = msgspec.Raw(activity.last_failure)
    if activity.call is not None:
        record.call_position = activity.call.position
    return record


def restored_activity(execution: Execution, record: ActivityRecord) -> Activity:
    """The activity, without its call and without an input that is long; in no line yet."""
    return Activity(
        execution=execution,
        queue=(QueueKind.ACTIVITY, record.queue),
        state=ActivityState(record.state),
        input=execution.input if execution.is_task else _present(record.input),
        heartbeat_details=_present(record.heartbeat_details),
        last_failure=bytes(record.last_failure) or None,
        **dict(zip(PLAIN_ACTIVITY_FIELDS, _plain_activity(record), strict=True)),
    )


# --- schedules -------------------------------------------------------------------------------------


def encode_schedule(schedule: Schedule) -> bytes:
    fields = dict(zip(SCHEDULE_FIELDS, _of_schedule(schedule), strict=True))
    action = {name: getattr(schedule.action, name) for name in ActionRecord.__struct_fields__}
    fields["action"] = ActionRecord(**{name: value for name, value in action.items() if value is not None})
    return _encode(ScheduleRecord(**fields))


def decode_schedule(data: bytes) -> Schedule:
    """The schedule; which of its runs are open is for `recovery` to say."""
    record = _decode_schedule(data)
    fields = dict(zip(SCHEDULE_FIELDS, _of_schedule(record), strict=True))
    action = msgspec.structs.asdict(record.action)
    fields["action"] = Action(**{**action, "input": _written(action["input"]), "memo": _written(action["memo"])})
    return Schedule(**fields)


# --- events ----------------------------------------------------------------------------------------


def encode_events(events: Iterable[Event]) -> bytes:
    """Events that follow each other; their ids are counted from the key."""
    return _encode([(event.time_ms, event.type, event.attributes) for event in events])


def decode_events(first_event_id: int, data: bytes) -> list[Event]:
    return [
        Event(event_id, time_ms, event_type, {name: _attribute(name, raw) for name, raw in attributes.items()})
        for event_id, (time_ms, event_type, attributes) in enumerate(_decode_events(data), first_event_id)
    ]


def _attribute(name: str, raw: msgspec.Raw) -> Any:
    if name in PAYLOAD_ATTRIBUTES:
        return None if raw == NULL else raw
    return msgspec.json.decode(raw)


# --- index records -----------------------------------------------------------------------------------

_decode_place = msgspec.json.Decoder(tuple[int, int]).decode
_decode_number = msgspec.json.Decoder(int).decode
_decode_ids = msgspec.json.Decoder(tuple[str, str]).decode


def encode_place(close_ms: int, number: int) -> bytes:
    """Where a closed execution is."""
    return _encode((close_ms, number))


def decode_place(data: bytes) -> tuple[int, int]:
    return _decode_place(data)


def encode_number(number: int) -> bytes:
    return _encode(number)


def decode_number(data: bytes) -> int:
    return _decode_number(data)


def encode_ids(workflow_id: str, run_id: str) -> bytes:
    """The execution that answers a request."""
    return _encode((workflow_id, run_id))


def decode_ids(data: bytes) -> tuple[str, str]:
    return _decode_ids(data)


def _written(raw: msgspec.Raw) -> Payload | None:
    """A payload; none was once written as a null."""
    return None if raw == NULL else _present(raw)


def _present(raw: msgspec.Raw) -> Payload | None:
    return raw if raw else None
