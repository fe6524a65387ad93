"""The bodies of the calls that a server takes, as structs, and how they become engine commands.

Go's SDK and Go's server spell several fields differently, and some opcodes mean different things
to them. Each struct names every spelling; its properties say which one counts. Unknown keys are
ignored, as Go ignores them. `Raw` fields are payloads: kept as the JSON text that came.
"""

from __future__ import annotations

import base64
import binascii
import enum
from typing import Annotated, Any, Protocol, TypeVar

import msgspec

from zapserver.engine.commands import (
    Action,
    ActivityTimeouts,
    IdConflict,
    IdReuse,
    Payload,
    ScheduleSpec,
    WorkflowTimeouts,
)
from zapserver.engine.errors import Invalid
from zapserver.engine.limits import PAYLOAD_BYTES_MAX, SMALL_PAYLOAD_BYTES_MAX
from zapserver.engine.retry import RetryPolicy
from zapserver.engine.validation import TASK_MS_MAX, too_large
from zapserver.engine.views import PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX
from zapserver.store.interface import Durability
from zapwire.body import unreadable
from zapwire.frame import Buffer

DEFAULT_TASK_QUEUE = "default"
FALLBACK_TASK_QUEUE = "ats"
"""What Go's Add/Now client hard-codes over HTTP. It names no queue over ZAP, so both mean the default one."""

EMITTED_ITEMS_MAX = 1_000
"""Items of one message of output; a worker sends several."""
EMITTED_DROPPED_MAX = 1_000_000_000
"""How many items one message may say were dropped: they are only counted."""

ABSENT = msgspec.Raw(b"")
_EMPTY_TEXT = msgspec.Raw(b'""')
"""Base64 of nothing."""


class Named(msgspec.Struct):
    name: str = ""


class Request(msgspec.Struct):
    """What every body may carry."""

    namespace: str = ""
    durability: str = ""
    """Ours: what the answer waits for: "memory", "written" or "synced" (the default)."""


class ExecutionRequest(Request):
    workflow_id: str = ""
    workflowId: str = ""  # noqa: N815
    run_id: str = ""
    runId: str = ""  # noqa: N815

    @property
    def workflow(self) -> str:
        return self.workflow_id or self.workflowId

    @property
    def run(self) -> str:
        return self.run_id or self.runId


class RetryPolicyBody(msgspec.Struct):
    initial_interval_ms: int = 0
    backoff_coefficient: float = 0.0
    maximum_interval_ms: int = 0
    maximum_attempts: int = 0
    non_retryable_error_types: list[str] = []

    def policy(self) -> RetryPolicy:
        return RetryPolicy(
            initial_interval_ms=self.initial_interval_ms,
            backoff_coefficient=self.backoff_coefficient,
            maximum_interval_ms=self.maximum_interval_ms,
            maximum_attempts=self.maximum_attempts,
            non_retryable_error_types=tuple(self.non_retryable_error_types),
        )


class TaskOptions(Request):
    """Ours, in the spare slots of 0x50 and 0x51. A Go client sends none of it."""

    request_id: str = ""
    workflow_id: str = ""
    task_queue: str = ""
    identity: str = ""
    retry_policy: RetryPolicyBody | None = None
    schedule_to_start_ms: int = 0
    schedule_to_close_ms: int = 0
    start_to_close_ms: int = 0
    heartbeat_ms: int = 0
    memo: msgspec.Raw = ABSENT
    headers: dict[str, str] | None = None
    id_reuse_policy: str = ""
    id_conflict_policy: str = ""

    def timeouts(self) -> ActivityTimeouts | None:
        return _task_timeouts(self)


class WorkflowTimeoutsBody(msgspec.Struct):
    workflow_execution_ms: int = 0
    workflow_run_ms: int = 0
    workflow_task_ms: int = 0
    """For workers that replay; more than the bound counts as the bound. A worker of the Go kind holds its task for as
    long as the run lasts."""


def workflow_timeouts(body: WorkflowTimeoutsBody | None) -> WorkflowTimeouts:
    if body is None:
        return WorkflowTimeouts()
    return WorkflowTimeouts(
        execution_ms=_span("workflow_execution_ms", body.workflow_execution_ms),
        run_ms=_span("workflow_run_ms", body.workflow_run_ms),
        task_ms=min(_span("workflow_task_ms", body.workflow_task_ms), TASK_MS_MAX),
    )


class StartRequest(ExecutionRequest):
    workflow_type: str = ""
    workflowType: Named | None = None  # noqa: N815
    task_queue: str = ""
    taskQueue: Named | None = None  # noqa: N815
    input: msgspec.Raw = ABSENT
    request_id: str = ""
    retry_policy: RetryPolicyBody | None = None
    timeouts: WorkflowTimeoutsBody | None = None
    memo: msgspec.Raw = ABSENT
    search_attributes: dict[str, Any] | None = None
    cron_schedule: str = ""
    headers: dict[str, str] | None = None
    identity: str = ""
    signal_name: str = ""
    signalName: str = ""  # noqa: N815
    signal_input: msgspec.Raw = ABSENT
    eager_subscription: str = ""
    """Ours."""
    id_reuse_policy: str = ""
    id_conflict_policy: str = ""

    @property
    def type(self) -> str:
        return self.workflow_type or (self.workflowType.name if self.workflowType else "")

    @property
    def queue(self) -> str:
        return self.task_queue or (self.taskQueue.name if self.taskQueue else "") or DEFAULT_TASK_QUEUE

    @property
    def signal(self) -> str:
        return self.signal_name or self.signalName


class SignalRequest(ExecutionRequest):
    signal_name: str = ""
    signalName: str = ""  # noqa: N815
    input: msgspec.Raw = ABSENT
    identity: str = ""
    request_id: str = ""

    @property
    def signal(self) -> str:
        return self.signal_name or self.signalName


class EndRequest(ExecutionRequest):
    """Cancel and terminate."""

    reason: str = ""
    identity: str = ""


class ListRequest(Request):
    query: str = ""
    page_size: int = 0
    next_page_token: str = ""


class HistoryRequest(StartRequest):
    """0x66 is history, and signal-with-start when it names a signal."""

    after_event_id: int = 0
    page_size: int = 0
    reverse: bool = False
    wait: bool = False
    """Ours: answer once there is an event past `after_event_id`, or the run is closed."""


class QueryRequest(ExecutionRequest):
    query_type: str = ""
    queryType: str = ""  # noqa: N815
    args: msgspec.Raw = ABSENT
    query_args: msgspec.Raw = ABSENT
    timeout_ms: int = 5_000

    @property
    def type(self) -> str:
        return self.query_type or self.queryType


class ResetRequest(EndRequest):
    event_id: int = 0


class AwaitRequest(ExecutionRequest):
    follow: bool = False


class UpdateWithStartRequest(StartRequest):
    update_name: str = ""
    update_id: str = ""
    args: msgspec.Raw = ABSENT
    wait: str = ""


class UpdateRequest(ExecutionRequest):
    update_name: str = ""
    update_id: str = ""
    args: msgspec.Raw = ABSENT
    wait: str = ""


class ReadOutputRequest(ExecutionRequest):
    after: Annotated[int, msgspec.Meta(ge=0)] = 0


class EmitRequest(Request):
    task_token: str = ""
    items: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=EMITTED_ITEMS_MAX)] = []
    dropped: Annotated[int, msgspec.Meta(ge=0, le=EMITTED_DROPPED_MAX)] = 0


class AbandonRequest(Request):
    request_id: int = 0


class ScheduleActivityRequest(ExecutionRequest):
    task_queue: str = ""
    activity_type: str = ""
    input: msgspec.Raw = ABSENT
    start_to_close_ms: int = 0
    heartbeat_ms: int = 0
    schedule_to_close_ms: int = 0
    schedule_to_start_ms: int = 0
    retry_policy: RetryPolicyBody | None = None


class SubscribeRequest(Request):
    task_queue: str = ""
    taskQueue: Named | None = None  # noqa: N815
    identity: str = ""
    sdk_name: str = ""
    sdk_version: str = ""
    build_id: str = ""
    slots: int | None = None
    types: list[str] | None = None
    replays: bool = False
    per_second: float = 0.0
    queue_per_second: float = 0.0

    @property
    def queue(self) -> str:
        return self.task_queue or (self.taskQueue.name if self.taskQueue else "")


class SubscriptionRequest(Request):
    subscription_id: str = ""
    subscriptionId: str = ""  # noqa: N815
    slots: int = 0

    @property
    def id(self) -> str:
        return self.subscription_id or self.subscriptionId


class AnswerQueryRequest(Request):
    token: str = ""
    result: msgspec.Raw = ABSENT
    error: str = ""


class IntervalBody(msgspec.Struct):
    interval_ms: int = 0
    phase_ms: int | None = None


class SpecBody(msgspec.Struct):
    cron: list[str] | None = None
    interval_ms: int = 0
    phase_ms: int | None = None
    intervals: list[IntervalBody] | None = None
    start_time_ms: int | None = None
    end_time_ms: int | None = None
    jitter_ms: int = 0
    timezone: str = ""

    def spec(self) -> ScheduleSpec:
        return ScheduleSpec(
            cron=tuple(self.cron or ()),
            interval_ms=self.interval_ms,
            phase_ms=self.phase_ms,
            intervals=tuple((item.interval_ms, item.phase_ms) for item in self.intervals or ()),
            start_ms=self.start_time_ms or None,
            end_ms=self.end_time_ms or None,
            jitter_ms=self.jitter_ms,
            timezone=self.timezone,
        )

    @property
    def is_empty(self) -> bool:
        return not self.cron and not self.interval_ms and not self.intervals


class ActionBody(msgspec.Struct):
    workflow_id: str = ""
    workflow_type: str = ""
    task_queue: str = ""
    input: msgspec.Raw = ABSENT
    is_task: bool = False
    """Ours: start a one-shot task of this type, not a workflow. What follows is ours too."""
    retry_policy: RetryPolicyBody | None = None
    timeouts: WorkflowTimeoutsBody | None = None
    """Of a workflow; a task has the four that follow, as in 0x50."""
    schedule_to_start_ms: int = 0
    schedule_to_close_ms: int = 0
    start_to_close_ms: int = 0
    heartbeat_ms: int = 0
    memo: msgspec.Raw = ABSENT
    search_attributes: dict[str, Any] | None = None
    headers: dict[str, str] | None = None

    def action(self) -> Action:
        return Action(
            type=self.workflow_type,
            task_queue=self.task_queue or DEFAULT_TASK_QUEUE,
            is_task=self.is_task,
            workflow_id=self.workflow_id,
            input=payload(self.input, "input"),
            retry_policy=None if self.retry_policy is None else self.retry_policy.policy(),
            memo=payload(self.memo, "memo", SMALL_PAYLOAD_BYTES_MAX),
            timeouts=workflow_timeouts(self.timeouts),
            task_timeouts=_task_timeouts(self),
            search_attributes=self.search_attributes,
            headers=self.headers,
        )


class ScheduleBody(msgspec.Struct):
    """A number that is 0 is not given, as Go's peers write it."""

    id: str = ""
    spec: SpecBody = msgspec.field(default_factory=SpecBody)
    action: ActionBody = msgspec.field(default_factory=ActionBody)
    paused: bool | None = None
    overlap_policy: str = ""
    catchup_window_ms: int = 0
    pause_on_failure: bool | None = None
    remaining_actions: int = 0


class ScheduleRequest(Request):
    """0x70 to 0x76, 0x98 and 0x99."""

    schedule_id: str = ""
    scheduleId: str = ""  # noqa: N815
    schedule: ScheduleBody | None = None
    paused: bool = True
    note: str = ""
    overlap_policy: str = ""
    request_id: str = ""
    start_time_ms: int | None = None
    end_time_ms: int | None = None
    page_size: int = 0
    next_page_token: str = ""

    @property
    def id(self) -> str:
        return self.schedule_id or self.scheduleId or (self.schedule.id if self.schedule else "")


class NamespaceInfoBody(msgspec.Struct):
    name: str = ""
    description: str = ""
    ownerEmail: str = ""  # noqa: N815


class NamespaceRequest(Request):
    """0x80 to 0x82: `name` is the SDK's spelling, `namespaceInfo` and `namespace` the server's."""

    name: str = ""
    description: str = ""
    owner_email: str = ""
    retention_ms: int = 0
    namespaceInfo: NamespaceInfoBody | None = None  # noqa: N815
    page_size: int = 0
    next_page_token: str = ""


class DeadLetterRequest(ExecutionRequest):
    page_size: int = 0
    next_page_token: str = ""
    identity: str = ""


class Timed(Protocol):
    """Anything with the timeouts of an activity."""

    schedule_to_start_ms: int
    schedule_to_close_ms: int
    start_to_close_ms: int
    heartbeat_ms: int


def activity_timeouts(body: Timed) -> ActivityTimeouts:
    return ActivityTimeouts(
        schedule_to_start_ms=_span("schedule_to_start_ms", body.schedule_to_start_ms),
        schedule_to_close_ms=_span("schedule_to_close_ms", body.schedule_to_close_ms),
        start_to_close_ms=_span("start_to_close_ms", body.start_to_close_ms),
        heartbeat_ms=_span("heartbeat_ms", body.heartbeat_ms),
    )


# --- payloads --------------------------------------------------------------------------------------


def payload(raw: msgspec.Raw, what: str, bytes_max: int = PAYLOAD_BYTES_MAX) -> Payload | None:
    """A payload cut loose from the frame that it came in; None when the key was absent.

    Raises `TooLarge`, and `Invalid` for one that could not be read where it is passed on.
    """
    return _bounded(raw.copy(), what, bytes_max) if raw else None


def failure_payload(raw: msgspec.Raw) -> Payload | None:
    """A failure, or None when the key was absent. The engine leaves out what cannot be read. Raises `TooLarge`."""
    return _sized(raw.copy(), "failure", PAYLOAD_BYTES_MAX) if raw else None


def json_payload(data: Buffer, what: str, bytes_max: int = PAYLOAD_BYTES_MAX) -> Payload | None:
    """A payload that came as bytes of its own (a result, a detail list). It must be one JSON value.

    Raises `TooLarge`, and `Invalid`: what is not JSON could not be passed on inside a JSON body.
    """
    text = bytes(data)
    if not text:
        return None
    if not is_json(text):
        raise Invalid(f"the {what} is not JSON: {text[:60]!r}")
    return _bounded(Payload(text), what, bytes_max)


def base64_or_json(raw: msgspec.Raw, what: str) -> Payload | None:
    """A payload that Go's SDK sends as base64 of JSON text, and others as plain JSON.

    A string that is base64 of valid JSON counts as such; any other value is itself. So "abcd", whose
    base64 reading is no JSON, stays the string that it is.
    """
    if not raw or raw == _EMPTY_TEXT:
        return None
    return _bounded(_base64_or_json(bytes(raw)), what, PAYLOAD_BYTES_MAX)


def _base64_or_json(text: bytes) -> Payload:
    if text[:1] == b'"':
        try:
            inner = base64.b64decode(msgspec.json.decode(text, type=str), validate=True)
        except (binascii.Error, ValueError):
            return Payload(text)
        if is_json(inner):
            return Payload(inner)
    return Payload(text)


def _bounded(found: Payload, what: str, bytes_max: int) -> Payload:
    _sized(found, what, bytes_max)
    if reason := unreadable(bytes(found)):
        raise Invalid(f"the {what} {reason}")
    return found


def _sized(found: Payload, what: str, bytes_max: int) -> Payload:
    if len(found) > bytes_max:
        raise too_large(what, len(found), bytes_max, is_small=bytes_max == SMALL_PAYLOAD_BYTES_MAX)
    return found


def is_json(text: bytes) -> bool:
    """Whether `text` is one JSON value in valid UTF-8."""
    try:
        text.decode()
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def fallback_queue(name: str) -> str:
    return DEFAULT_TASK_QUEUE if name in ("", FALLBACK_TASK_QUEUE) else name


def base64_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def page_size(asked: int) -> int:
    """The page size to use: the default for 0, and never more than the bound."""
    return min(asked, PAGE_SIZE_MAX) if asked > 0 else PAGE_SIZE_DEFAULT


def read_durability(name: str) -> Durability:
    """The level that a request names. Raises `Invalid`."""
    try:
        return Durability[name.upper()]
    except KeyError:
        known = ", ".join(repr(level.name.lower()) for level in Durability)
        raise Invalid(f"durability {name[:40]!r} is not one of {known}") from None


SPAN_MS_MAX = 100 * 365 * 24 * 3_600_000


ChoiceT = TypeVar("ChoiceT", bound=enum.StrEnum)


def choice(what: str, value: str, kind: type[ChoiceT], default: ChoiceT) -> ChoiceT:
    """One of the values of an enumeration; the default for an empty one. Raises `Invalid`."""
    if not value:
        return default
    try:
        return kind(value)
    except ValueError:
        raise Invalid(f"{what} is {value[:80]!r}; it must be one of {', '.join(kind)}") from None


def id_policies(request: StartRequest | TaskOptions) -> tuple[IdReuse, IdConflict]:
    return (
        choice("id_reuse_policy", request.id_reuse_policy, IdReuse, IdReuse.ALLOW),
        choice("id_conflict_policy", request.id_conflict_policy, IdConflict, IdConflict.FAIL),
    )


def _span(what: str, milliseconds: int) -> int:
    if not 0 <= milliseconds <= SPAN_MS_MAX:
        raise Invalid(f"{what} is {milliseconds}; it must be 0 (none) to {SPAN_MS_MAX} ms")
    return milliseconds


def _task_timeouts(body: TaskOptions | ActionBody) -> ActivityTimeouts | None:
    """Those of a one-shot task; None when none is given."""
    if body.schedule_to_start_ms or body.schedule_to_close_ms or body.start_to_close_ms or body.heartbeat_ms:
        return ActivityTimeouts(
            schedule_to_start_ms=_span("schedule_to_start_ms", body.schedule_to_start_ms),
            schedule_to_close_ms=_span("schedule_to_close_ms", body.schedule_to_close_ms),
            start_to_close_ms=_span("start_to_close_ms", body.start_to_close_ms),
            heartbeat_ms=_span("heartbeat_ms", body.heartbeat_ms),
        )
    return None
