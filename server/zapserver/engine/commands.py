"""What can be asked of the engine, and what it answers: one frozen struct each.

A command is a whole transaction: `Engine.step` either applies all of it or refuses it with an
`EngineError` and changes nothing. Structs of msgspec rather than frozen dataclasses, because one is
built for every call on the hot path: 0.2 us against 1.1 us for six fields.

Payloads are opaque JSON text. The engine never looks inside one, so the digits of a number and the
order of keys arrive as they were sent.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec

from zapserver.engine.retry import RetryPolicy

Payload: TypeAlias = msgspec.Raw
PeerKey: TypeAlias = int
Headers: TypeAlias = dict[str, str]
"""Small texts that a starter gives along: whatever belongs to the execution sees them."""
Waiter: TypeAlias = Hashable
"""Whatever the shell needs to find the call again that waits for an answer."""

R = TypeVar("R")


class QueueKind(enum.IntEnum):
    WORKFLOW = 0
    ACTIVITY = 1


class Status(enum.IntEnum):
    """The status of an execution, with the numbers that Go's SDK uses."""

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
        return self is Status.RUNNING or self is Status.CANCELING

    @property
    def wire(self) -> int:
        """The number on the ZAP wire, where Go has none for CANCELING."""
        return 0 if self is Status.CANCELING else int(self)

    @property
    def long_name(self) -> str:
        return f"WORKFLOW_EXECUTION_STATUS_{self.name}"


class IdReuse(enum.StrEnum):
    """Whether an id that a closed execution had may be used again."""

    ALLOW = "allow-duplicate"
    ALLOW_FAILED_ONLY = "allow-duplicate-failed-only"
    REJECT = "reject-duplicate"


class IdConflict(enum.StrEnum):
    """What happens when an open execution has the id."""

    FAIL = "fail"
    USE_EXISTING = "use-existing"
    TERMINATE_EXISTING = "terminate-existing"


class ParentClosePolicy(enum.StrEnum):
    """What becomes of a child that is open when its parent's run closes."""

    TERMINATE = "terminate"
    CANCEL = "cancel"
    ABANDON = "abandon"


class UpdateStage(enum.StrEnum):
    """How far an update has to be for its caller to be answered."""

    ACCEPTED = "accepted"
    COMPLETED = "completed"


class Overlap(enum.StrEnum):
    """What a schedule does when it is time and a run of it is still open."""

    SKIP = "skip"
    ALLOW = "allow"
    BUFFER_ONE = "buffer-one"
    BUFFER_ALL = "buffer-all"
    CANCEL_OTHER = "cancel-other"
    TERMINATE_OTHER = "terminate-other"


class _Struct(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Command(_Struct, Generic[R], frozen=True, kw_only=True):
    """Anything that `Engine.step` takes; `R` is what it returns."""


# --- answers -------------------------------------------------------------------------------------


class Started(_Struct, frozen=True):
    workflow_id: str
    run_id: str
    is_new: bool = True
    """False when a request id was seen before and this is the execution that it started."""


class ActivityScheduled(_Struct, frozen=True):
    activity_id: str
    task_token: str


class Backfilled(_Struct, frozen=True):
    slots: int
    """How many slots of the range are acted on, now or as the overlap policy lets them."""


class Heartbeaten(_Struct, frozen=True):
    cancel_requested: bool


class Subscribed(_Struct, frozen=True):
    subscription_id: str


# --- what executions and activities are made of ---------------------------------------------------


class ActivityTimeouts(_Struct, frozen=True, omit_defaults=True):
    """Milliseconds; zero means none."""

    schedule_to_start_ms: int = 0
    schedule_to_close_ms: int = 0
    start_to_close_ms: int = 0
    heartbeat_ms: int = 0


class WorkflowTimeouts(_Struct, frozen=True, omit_defaults=True):
    """Milliseconds; zero means none. `execution_ms` spans retries and cron runs, `run_ms` one run.

    `task_ms` is how long a replaying worker may take for one workflow task; zero means the default.
    """

    execution_ms: int = 0
    run_ms: int = 0
    task_ms: int = 0


class Action(_Struct, frozen=True):
    """What a schedule starts."""

    type: str
    task_queue: str
    is_task: bool
    """True: a one-shot task; False: a workflow."""
    workflow_id: str = ""
    input: Payload | None = None
    retry_policy: RetryPolicy | None = None
    memo: Payload | None = None
    timeouts: WorkflowTimeouts = WorkflowTimeouts()
    """Of a workflow."""
    task_timeouts: ActivityTimeouts | None = None
    """Of a one-shot task."""
    search_attributes: dict[str, Any] | None = None
    """Of a workflow."""
    headers: Headers | None = None


class ScheduleSpec(_Struct, frozen=True):
    """When a schedule is due: the union of its cron expressions and its intervals."""

    cron: tuple[str, ...] = ()
    interval_ms: int = 0
    phase_ms: int | None = None
    """Given: the interval's slots are its multiples since the epoch plus this. None: it counts from the creation."""
    intervals: tuple[tuple[int, int | None], ...] = ()
    """More of them: each an interval and its phase."""
    start_ms: int | None = None
    end_ms: int | None = None
    jitter_ms: int = 0
    timezone: str = ""


# --- tasks and workflows --------------------------------------------------------------------------


class StartTask(Command[Started], frozen=True):
    """A one-shot task: an execution with a single activity of the same type."""

    type: str
    input: Payload | None = None
    task_queue: str = "default"
    workflow_id: str = ""
    request_id: str = ""
    retry_policy: RetryPolicy | None = None
    timeouts: ActivityTimeouts | None = None
    memo: Payload | None = None
    headers: Headers | None = None
    identity: str = ""
    id_reuse: IdReuse = IdReuse.ALLOW
    id_conflict: IdConflict = IdConflict.FAIL


class StartWorkflow(Command[Started], frozen=True):
    type: str
    task_queue: str = "default"
    workflow_id: str = ""
    run_id: str = ""
    input: Payload | None = None
    request_id: str = ""
    retry_policy: RetryPolicy | None = None
    timeouts: WorkflowTimeouts = WorkflowTimeouts()
    cron_schedule: str = ""
    memo: Payload | None = None
    search_attributes: dict[str, Any] | None = None
    headers: Headers | None = None
    identity: str = ""
    signal_name: str = ""
    """Given: signal-with-start. An open execution of this id is signaled instead, unless it is to be terminated."""
    signal_input: Payload | None = None
    eager_subscription: str = ""
    """Of the starter's own worker: the first workflow task goes to it if it serves the queue and has a slot free."""
    update: UpdateExecution | None = None
    """Given: update-with-start. The run that the start finds or makes is asked for it, in the same step."""
    id_reuse: IdReuse = IdReuse.ALLOW
    id_conflict: IdConflict = IdConflict.FAIL


class SignalExecution(Command[None], frozen=True):
    workflow_id: str
    signal_name: str
    run_id: str = ""
    input: Payload | None = None
    identity: str = ""
    request_id: str = ""
    """A second signal with the id of an earlier one is taken for the same."""


class CancelExecution(Command[None], frozen=True):
    workflow_id: str
    run_id: str = ""
    reason: str = ""
    identity: str = ""


class TerminateExecution(Command[None], frozen=True):
    workflow_id: str
    run_id: str = ""
    reason: str = ""
    identity: str = ""


class ResetExecution(Command[Started], frozen=True):
    workflow_id: str
    event_id: int
    run_id: str = ""
    reason: str = ""
    identity: str = ""


class QueryExecution(Command[Payload | None], frozen=True):
    """Answered at once (a built-in query) or later by an `Answered` effect for `waiter`."""

    workflow_id: str
    query_type: str
    waiter: Waiter
    run_id: str = ""
    args: Payload | None = None
    timeout_ms: int = 5_000


class UpdateExecution(Command[None], frozen=True):
    """Ask a workflow to change: it accepts or rejects, and perhaps answers later.

    An `UpdateAnswered`, `UpdateRejected` or `Answered` effect follows for `waiter`, at once for what is decided
    already. A second update with the id of an earlier one is taken for the same and gets the same answer.
    """

    workflow_id: str
    name: str
    waiter: Waiter
    peer: PeerKey
    run_id: str = ""
    update_id: str = ""
    """Empty: the server makes one."""
    args: Payload | None = None
    wait: UpdateStage = UpdateStage.COMPLETED


class AwaitExecution(Command[bool], frozen=True):
    """A `Closed` effect follows for `waiter`: with this step, and the answer is True, when it is closed already.

    A waiter, which names a call, waits for one thing at a time.
    """

    workflow_id: str
    waiter: Waiter
    peer: PeerKey
    run_id: str = ""
    follow: bool = False
    """Go on to the next run of a chain (retry, cron, continue-as-new) instead of answering with this one's end."""


class AwaitEvents(Command[bool], frozen=True):
    """A `HistoryGrew` effect follows for `waiter` once there is an event past `after`.

    The answer is True, and nothing follows, when there is one already, or when the run is closed.
    """

    workflow_id: str
    waiter: Waiter
    peer: PeerKey
    run_id: str = ""
    after: int = 0


class AbandonWait(Command[None], frozen=True):
    waiter: Waiter
    peer: PeerKey


class RequeueDeadLetter(Command[Started], frozen=True):
    """Run a dead letter again, as a new run of the same workflow id with the same input."""

    workflow_id: str
    run_id: str = ""
    identity: str = ""


# --- workers ------------------------------------------------------------------------------------


class Subscribe(Command[Subscribed], frozen=True):
    peer: PeerKey
    kind: QueueKind
    task_queue: str
    identity: str = ""
    slots: int | None = None
    """At most so many unfinished deliveries; None for a peer that does not say."""
    types: frozenset[str] | None = None
    """Deliver only these types; None for all."""
    build_id: str = ""
    """Which build of its code the worker runs, for people: nothing is routed by it."""
    replays: bool = False
    """A workflow worker that gets the history and answers with commands; else one of the Go kind, which holds its task
    for as long as the run lasts."""
    per_second: float = 0.0
    """So many activities and tasks a second to all subscriptions of this peer that state a rate, of which the latest
    counts; 0 for no bound."""
    queue_per_second: float = 0.0
    """So many a second to all workers of the task queue; of several the smallest counts, while its subscription is
    there."""


class Unsubscribe(Command[bool], frozen=True):
    peer: PeerKey
    subscription_id: str


class SetSlots(Command[None], frozen=True):
    peer: PeerKey
    subscription_id: str
    slots: int


class PeerLost(Command[None], frozen=True):
    """The connection of a worker or a waiting client ended."""

    peer: PeerKey
    reason: str


class ResumePeer(Command[None], frozen=True):
    """The peer that a `PeerFull` effect was about has taken what it got."""

    peer: PeerKey


class ScheduleActivity(Command[ActivityScheduled], frozen=True):
    peer: PeerKey
    workflow_id: str
    type: str
    run_id: str = ""
    task_queue: str = ""
    input: Payload | None = None
    timeouts: ActivityTimeouts = ActivityTimeouts()
    retry_policy: RetryPolicy | None = None


class WorkflowCommandKind(enum.IntEnum):
    COMPLETE = 0
    FAIL = 1
    SCHEDULE_ACTIVITY = 2
    CANCEL = 3


class WorkflowCommand(_Struct, frozen=True):
    kind: WorkflowCommandKind
    payload: Payload | None = None


class _TaskCommand(_Struct, frozen=True):
    """What a replaying worker wants done. `id` names the place in its task tree; events carry it as `commandId`."""

    id: str


class ScheduleActivityCommand(_TaskCommand, frozen=True):
    type: str
    task_queue: str = ""
    """Empty: the execution's own."""
    input: Payload | None = None
    timeouts: ActivityTimeouts = ActivityTimeouts()
    retry_policy: RetryPolicy | None = None


class CancelActivityCommand(_TaskCommand, frozen=True):
    """Ask the activity of this id to stop; nothing happens when it is closed."""


class StartTimerCommand(_TaskCommand, frozen=True):
    fire_after_ms: int


class CancelTimerCommand(_TaskCommand, frozen=True):
    """Stop the timer of this id; nothing happens when it has fired."""


class StartChildCommand(_TaskCommand, frozen=True):
    type: str
    workflow_id: str = ""
    task_queue: str = ""
    """Empty: the execution's own."""
    input: Payload | None = None
    timeouts: WorkflowTimeouts = WorkflowTimeouts()
    retry_policy: RetryPolicy | None = None
    parent_close_policy: ParentClosePolicy = ParentClosePolicy.TERMINATE
    memo: Payload | None = None
    search_attributes: dict[str, Any] | None = None
    cron_schedule: str = ""


class CancelExternalCommand(_TaskCommand, frozen=True):
    workflow_id: str
    run_id: str = ""
    reason: str = ""


class SignalExternalCommand(_TaskCommand, frozen=True):
    workflow_id: str
    name: str
    run_id: str = ""
    input: Payload | None = None


class RecordMarkerCommand(_TaskCommand, frozen=True):
    """Keep a value that replay is to find again: a side effect, a patch."""

    name: str
    details: Payload | None = None


class UpsertCommand(_TaskCommand, frozen=True):
    """Replace the memo where one is given, and the search attributes that are named; None takes one away."""

    memo: Payload | None = None
    search_attributes: dict[str, Any] | None = None


class AcceptUpdateCommand(_Struct, frozen=True):
    update_id: str


class RejectUpdateCommand(_Struct, frozen=True):
    update_id: str
    failure: bytes


class CompleteUpdateCommand(_Struct, frozen=True):
    """One of `result` and `failure` counts: the failure where it is given."""

    update_id: str
    result: Payload | None = None
    failure: bytes | None = None


class CompleteCommand(_Struct, frozen=True):
    result: Payload | None = None


class FailCommand(_Struct, frozen=True):
    failure: Payload | None = None


class CancelCommand(_Struct, frozen=True):
    """End the run as it was asked to; a failure says why, else the request's own reason stands."""

    failure: Payload | None = None


class ContinueAsNewCommand(_Struct, frozen=True):
    """End the run and begin another of the same id. What is empty or None stays as it was, but for the input."""

    type: str = ""
    task_queue: str = ""
    input: Payload | None = None
    timeouts: WorkflowTimeouts | None = None
    memo: Payload | None = None
    search_attributes: dict[str, Any] | None = None


TaskCommand: TypeAlias = (
    WorkflowCommand
    | ScheduleActivityCommand
    | CancelActivityCommand
    | StartTimerCommand
    | CancelTimerCommand
    | StartChildCommand
    | CancelExternalCommand
    | SignalExternalCommand
    | RecordMarkerCommand
    | UpsertCommand
    | AcceptUpdateCommand
    | RejectUpdateCommand
    | CompleteUpdateCommand
    | CompleteCommand
    | FailCommand
    | CancelCommand
    | ContinueAsNewCommand
)
"""Go's kinds end a run for either kind of worker; all others come from replaying workers only."""


class CompleteWorkflowTask(Command[None], frozen=True):
    token: str
    commands: tuple[TaskCommand, ...]


class FailWorkflowTask(Command[None], frozen=True):
    """A replaying worker cannot do its task: its replay went another way, or the workflow's code is broken."""

    token: str
    reason: str
    unknown_type: bool = False
    """It does not have this workflow type and is not asked for it again."""


class CompleteActivity(Command[None], frozen=True):
    token: str
    result: Payload | None


class FailActivity(Command[None], frozen=True):
    token: str
    failure: bytes


class HeartbeatActivity(Command[Heartbeaten], frozen=True):
    token: str
    details: Payload | None


class HandBackTask(Command[None], frozen=True):
    """A draining worker returns a task unharmed: it goes to another, no attempt is charged."""

    token: str
    reason: str = ""


class AnswerQuery(Command[None], frozen=True):
    peer: PeerKey
    token: str
    result: Payload | None = None
    error: str = ""


# --- schedules ----------------------------------------------------------------------------------


class PutSchedule(Command[None], frozen=True):
    """Create a schedule, or replace one of the same id; an equal one is left as it is."""

    schedule_id: str
    spec: ScheduleSpec
    action: Action
    paused: bool = False
    overlap: Overlap = Overlap.SKIP
    catchup_window_ms: int | None = None
    """How old a slot that was missed may be and still be acted on. None: a minute, and the latest one at any age."""
    pause_on_failure: bool = False
    """Pause after a run that failed or timed out, with the retries that it has."""
    remaining_actions: int | None = None
    """So many slots are acted on; None for no limit. What is started by hand does not count."""


class UpdateSchedule(Command[None], frozen=True):
    """Replace what is given and keep the rest."""

    schedule_id: str
    spec: ScheduleSpec | None = None
    action: Action | None = None
    paused: bool | None = None
    overlap: Overlap | None = None
    catchup_window_ms: int | None = None
    pause_on_failure: bool | None = None
    remaining_actions: int | None = None


class DeleteSchedule(Command[bool], frozen=True):
    schedule_id: str


class PauseSchedule(Command[None], frozen=True):
    schedule_id: str
    paused: bool
    note: str = ""


class TriggerSchedule(Command[Started | None], frozen=True):
    """Start the action now. None when the overlap policy says no."""

    schedule_id: str
    overlap: Overlap | None = None
    request_id: str = ""


class SweepClosed(Command[int], frozen=True):
    """Forget executions that closed before a moment, the earliest first; answers with how many these were."""

    closed_before_ms: int
    limit: int


class BackfillSchedule(Command[Backfilled], frozen=True):
    """Act on every slot from `start_ms` to `end_ms`, paused or not, under the policy given or the schedule's own."""

    schedule_id: str
    start_ms: int
    end_ms: int
    overlap: Overlap | None = None
    request_id: str = ""


class Tick(Command[None], frozen=True):
    """Nothing but the passing of time."""
