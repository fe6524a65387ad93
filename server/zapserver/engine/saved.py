"""Executions, activities, schedules and events as records, and back: what is kept of them and in which form.

A field of `records` is either in one of the tuples here or soft: gone with the process and rebuilt by whoever needs it.
A test holds the two together. Fields are added with a default, so that older records can be read.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from operator import attrgetter
from typing import Any, TypeVar

import msgspec

from zapserver.engine.commands import (
    Action,
    ActivityTimeouts,
    Headers,
    Overlap,
    Payload,
    QueueKind,
    ScheduleSpec,
    Status,
    WorkflowTimeouts,
)
from zapserver.engine.records import (
    NULL,
    TASK_TIMEOUTS,
    AcceptedUpdate,
    Activity,
    ActivityState,
    Backfill,
    Child,
    Event,
    EventType,
    Execution,
    Lease,
    ParentLink,
    RecentAction,
    RequestKey,
    Schedule,
    ScheduledRun,
    WorkflowTask,
    WorkflowTimer,
    task_activity_id,
)
from zapserver.engine.retry import TASK_RETRY, RetryPolicy

T = TypeVar("T")

INLINE_BYTES_MAX = 4_096
"""A longer payload of an execution stands only in its history, and is read from there: a record is written again with
every change, and a payload never changes."""

PAYLOAD_ATTRIBUTES = frozenset({"input", "result", "failure", "details", "memo", "args"})
"""Attributes of events that are payloads: JSON that nobody here looks into."""

_ABSENT = msgspec.Raw()
# What is the very object of a default is left out of a record.
_POLICY = RetryPolicy()
_NO_TIMEOUTS = ActivityTimeouts()
_NO_WORKFLOW_TIMEOUTS = WorkflowTimeouts()


class _Record(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    pass


class ActivityRecord(msgspec.Struct, omit_defaults=True, gc=False):
    """The fields down to `command_id` are those of the activity, as they are; the others are converted.

    That of a one-shot task leaves out what its execution says.
    """

    activity_id: str = ""
    type: str = ""
    scheduled_ms: int = 0
    attempt: int = 0
    charged: int = 0
    ready_ms: int = 0
    retry_ms: int = 0
    scheduled_event_id: int = 0
    retry_policy: RetryPolicy = _POLICY
    timeouts: ActivityTimeouts = _NO_TIMEOUTS
    lease: Lease | None = None
    cancel_reason: str | None = None
    command_id: str = ""

    queue: str = ""
    state: str = ActivityState.SCHEDULED.value
    input: msgspec.Raw = _ABSENT
    input_is_long: bool = False
    heartbeat_details: msgspec.Raw = _ABSENT
    last_failure: msgspec.Raw = _ABSENT
    call_position: int = -1


class WorkflowTaskRecord(_Record):
    attempt: int = 0
    ready_ms: int = 0
    lease: Lease | None = None
    calls_made: int = 0
    last_event_id: int = 0
    has_news: bool = True


class TimerRecord(_Record):
    command_id: str
    started_event_id: int
    started_ms: int
    due_ms: int


class ExecutionRecord(msgspec.Struct, omit_defaults=True, gc=False):
    """The fields down to `build_id` are those of the execution, as they are; the others are converted."""

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
    close_ms: int | None = None
    close_reason: str = ""
    search_attributes: dict[str, Any] | None = None
    request_keys: tuple[RequestKey, ...] = ()
    identity: str = ""
    retry_policy: RetryPolicy | None = None
    timeouts: WorkflowTimeouts = _NO_WORKFLOW_TIMEOUTS
    activity_timeouts: ActivityTimeouts | None = None
    cron_schedule: str = ""
    task_due_ms: int | None = None
    schedule_id: str = ""
    cancel_reason: str = ""
    cancel_identity: str = ""
    cancel_due_ms: int | None = None
    is_dead_letter: bool = False
    new_run_id: str = ""
    parent: ParentLink | None = None
    is_replayed: bool = False
    seen_event_id: int = 0
    news_event_id: int = 0
    task_failures: int = 0
    task_failure: str = ""
    task_retry_ms: int | None = None
    children: dict[str, Child] = {}
    updates: dict[str, AcceptedUpdate] = {}
    signal_ids: dict[str, None] = {}
    headers: Headers | None = None
    build_id: str = ""

    status: int = Status.RUNNING
    input: msgspec.Raw = _ABSENT
    result: msgspec.Raw = _ABSENT
    failure: msgspec.Raw = _ABSENT
    memo: msgspec.Raw = _ABSENT
    long_payloads: tuple[str, ...] = ()
    """Names of payloads that are read from the history: the input in the first event, the others in the last."""
    has_calls: bool = False
    timers: list[TimerRecord] = []
    task: WorkflowTaskRecord | None = None
    activity: ActivityRecord | None = None


class ActionRecord(_Record):
    type: str
    task_queue: str
    is_task: bool
    workflow_id: str = ""
    input: msgspec.Raw = _ABSENT
    """Not `Payload | None`, which cannot be read: to msgspec a Raw is no alternative to anything."""
    retry_policy: RetryPolicy | None = None
    memo: msgspec.Raw = _ABSENT
    timeouts: WorkflowTimeouts = WorkflowTimeouts()
    task_timeouts: ActivityTimeouts | None = None
    search_attributes: dict[str, Any] | None = None
    headers: Headers | None = None


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


PLAIN_EXECUTION_FIELDS = ExecutionRecord.__struct_fields__[: ExecutionRecord.__struct_fields__.index("status")]
"""Kept as they are. `status`, the payloads, the timers, the task and the activity are converted."""

PLAIN_ACTIVITY_FIELDS = ActivityRecord.__struct_fields__[: ActivityRecord.__struct_fields__.index("queue")]

PLAIN_ACTION_FIELDS = tuple(name for name in ActionRecord.__struct_fields__ if name not in ("input", "memo"))

SCHEDULE_FIELDS = ScheduleRecord.__struct_fields__
PLAIN_SCHEDULE_FIELDS = tuple(name for name in SCHEDULE_FIELDS if name != "action")

_plain_execution = attrgetter(*PLAIN_EXECUTION_FIELDS)
_plain_activity = attrgetter(*PLAIN_ACTIVITY_FIELDS)
_plain_action = attrgetter(*PLAIN_ACTION_FIELDS)
_plain_schedule = attrgetter(*PLAIN_SCHEDULE_FIELDS)

_encode = msgspec.json.Encoder().encode
_decode_execution = msgspec.json.Decoder(ExecutionRecord).decode
_decode_activity = msgspec.json.Decoder(ActivityRecord).decode
_decode_schedule = msgspec.json.Decoder(ScheduleRecord).decode
_decode_events = msgspec.json.Decoder(list[tuple[int, EventType, dict[str, msgspec.Raw]]]).decode


# --- executions ----------------------------------------------------------------------------------


def encode_execution(execution: Execution) -> bytes:
    """The record of an execution, open or closed."""
    record = ExecutionRecord(*_plain_execution(execution))  # by place: by name took three times as long
    record.status = int(execution.status)
    if execution.timeouts == _NO_WORKFLOW_TIMEOUTS:
        record.timeouts = _NO_WORKFLOW_TIMEOUTS
    if not execution.is_task or execution.activity_timeouts is TASK_TIMEOUTS:
        record.activity_timeouts = None
    if execution.is_task and execution.retry_policy is TASK_RETRY:
        record.retry_policy = None
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
        record.timers = [
            TimerRecord(
                command_id=timer.command_id,
                started_event_id=timer.started_event_id,
                started_ms=timer.started_ms,
                due_ms=timer.due_ms,
            )
            for timer in execution.timers.values()
        ]
        if execution.task is not None:
            task = execution.task
            record.task = WorkflowTaskRecord(
                attempt=task.attempt, ready_ms=task.ready_ms, lease=task.lease, calls_made=task.calls_made
            )
            record.task.last_event_id = task.last_event_id
            record.task.has_news = task.has_news
        if execution.is_task:
            for activity in execution.open_activities.values():
                record.activity = _activity_record(activity)
    return _encode(record)


def decode_execution(data: bytes) -> tuple[Execution, ExecutionRecord]:
    """The execution, and its record for what `recovery` builds from it: the long payloads, the task, the activity."""
    record = _decode_execution(data)
    record.type, record.task_queue = _shared(record.type), _shared(record.task_queue)
    record.retry_policy, record.timeouts = _shared(record.retry_policy), _shared(record.timeouts)
    record.activity_timeouts = _shared(record.activity_timeouts)
    if record.activity_timeouts is None:
        record.activity_timeouts = TASK_TIMEOUTS if record.is_task else _NO_TIMEOUTS
    if record.is_task and record.retry_policy is None:
        record.retry_policy = TASK_RETRY
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
        last_event_id=record.last_event_id,
        has_news=record.has_news,
    )


def restored_timers(execution: Execution, records: list[TimerRecord]) -> dict[str, WorkflowTimer]:
    """The timers of a workflow; not armed yet."""
    return {
        each.command_id: WorkflowTimer(
            execution.run_id, each.command_id, each.started_event_id, each.started_ms, each.due_ms
        )
        for each in records
    }


# --- activities ------------------------------------------------------------------------------------


def encode_activity(activity: Activity) -> bytes:
    return _encode(_activity_record(activity))


def decode_activity(data: bytes) -> ActivityRecord:
    return _decode_activity(data)


def _activity_record(activity: Activity) -> ActivityRecord:
    record = ActivityRecord(*_plain_activity(activity))
    record.state = activity.state.value
    if activity.execution.is_task:
        record.activity_id = record.type = ""
        record.retry_policy, record.timeouts = _POLICY, _NO_TIMEOUTS
    else:
        record.queue = activity.queue[1]
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
    if execution.is_task:
        assert execution.retry_policy is not None
        record.activity_id, record.type = task_activity_id(execution.run_id), execution.type
        record.queue = execution.task_queue
        record.retry_policy, record.timeouts = execution.retry_policy, execution.activity_timeouts
    else:
        record.type, record.queue = _shared(record.type), _shared(record.queue)
        record.retry_policy, record.timeouts = _shared(record.retry_policy), _shared(record.timeouts)
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
    action = schedule.action
    record = ScheduleRecord(
        action=ActionRecord(
            input=_ABSENT if action.input is None else action.input,
            memo=_ABSENT if action.memo is None else action.memo,
            **dict(zip(PLAIN_ACTION_FIELDS, _plain_action(action), strict=True)),
        ),
        **dict(zip(PLAIN_SCHEDULE_FIELDS, _plain_schedule(schedule), strict=True)),
    )
    return _encode(record)


def decode_schedule(data: bytes) -> Schedule:
    """The schedule; which of its runs are open is for `recovery` to say."""
    record = _decode_schedule(data)
    action = Action(
        input=_present(record.action.input),
        memo=_present(record.action.memo),
        **dict(zip(PLAIN_ACTION_FIELDS, _plain_action(record.action), strict=True)),
    )
    return Schedule(action=action, **dict(zip(PLAIN_SCHEDULE_FIELDS, _plain_schedule(record), strict=True)))


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


def _present(raw: msgspec.Raw) -> Payload | None:
    """The payload by itself: what was read is a view that keeps its whole record in memory."""
    return raw.copy() if raw else None


@functools.lru_cache(maxsize=4_096)
def _shared(value: T) -> T:
    """The first of equal values: a hundred thousand tasks have a handful of types, queues and policies."""
    return value
