"""The things that the engine keeps: executions and their history, activities, workflow tasks, schedules.

Plain mutable records with slots; what may happen to them stands in `activities`, `executions` and
`schedules`. All times are integers, milliseconds since the epoch.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from zapserver.engine.commands import (
    Action,
    ActivityTimeouts,
    Headers,
    Overlap,
    ParentClosePolicy,
    Payload,
    PeerKey,
    QueueKind,
    ScheduleSpec,
    Status,
    UpdateStage,
    Waiter,
    WorkflowTimeouts,
)
from zapserver.engine.rate import PeerRate
from zapserver.engine.retry import RetryPolicy

WORKFLOW_TASK_MS = 10_000
"""How long a replaying worker may take for a workflow task where the start does not say: it only runs the workflow's
own code, which waits for nothing."""

TASK_TIMEOUTS = ActivityTimeouts(start_to_close_ms=600_000)
"""A one-shot task that names no timeout may take ten minutes, so that a handler that hangs gives its
slot back some day."""

RequestKey: TypeAlias = tuple[str, str, str]
"""What kind of thing a request id belongs to, the name of that thing, and the request id itself."""


class EventType(enum.StrEnum):
    EXECUTION_STARTED = "WORKFLOW_EXECUTION_STARTED"
    EXECUTION_SIGNALED = "WORKFLOW_EXECUTION_SIGNALED"
    EXECUTION_CANCEL_REQUESTED = "WORKFLOW_EXECUTION_CANCEL_REQUESTED"
    EXECUTION_CANCELED = "WORKFLOW_EXECUTION_CANCELED"
    EXECUTION_TERMINATED = "WORKFLOW_EXECUTION_TERMINATED"
    EXECUTION_COMPLETED = "WORKFLOW_EXECUTION_COMPLETED"
    EXECUTION_FAILED = "WORKFLOW_EXECUTION_FAILED"
    EXECUTION_TIMED_OUT = "WORKFLOW_EXECUTION_TIMED_OUT"
    EXECUTION_RESET = "WORKFLOW_EXECUTION_RESET"
    ACTIVITY_SCHEDULED = "ACTIVITY_TASK_SCHEDULED"
    ACTIVITY_STARTED = "ACTIVITY_TASK_STARTED"
    ACTIVITY_RETRYING = "ACTIVITY_TASK_RETRYING"
    ACTIVITY_HANDED_BACK = "ACTIVITY_TASK_HANDED_BACK"
    ACTIVITY_COMPLETED = "ACTIVITY_TASK_COMPLETED"
    ACTIVITY_FAILED = "ACTIVITY_TASK_FAILED"
    ACTIVITY_TIMED_OUT = "ACTIVITY_TASK_TIMED_OUT"
    ACTIVITY_CANCELED = "ACTIVITY_TASK_CANCELED"
    ACTIVITY_CANCEL_REQUESTED = "ACTIVITY_TASK_CANCEL_REQUESTED"
    EXECUTION_CONTINUED_AS_NEW = "WORKFLOW_EXECUTION_CONTINUED_AS_NEW"
    WORKFLOW_TASK_COMPLETED = "WORKFLOW_TASK_COMPLETED"
    WORKFLOW_TASK_FAILED = "WORKFLOW_TASK_FAILED"
    WORKFLOW_TASK_TIMED_OUT = "WORKFLOW_TASK_TIMED_OUT"
    TIMER_STARTED = "TIMER_STARTED"
    TIMER_FIRED = "TIMER_FIRED"
    TIMER_CANCELED = "TIMER_CANCELED"
    CHILD_STARTED = "CHILD_WORKFLOW_STARTED"
    CHILD_START_FAILED = "CHILD_WORKFLOW_START_FAILED"
    CHILD_COMPLETED = "CHILD_WORKFLOW_COMPLETED"
    CHILD_FAILED = "CHILD_WORKFLOW_FAILED"
    CHILD_CANCELED = "CHILD_WORKFLOW_CANCELED"
    CHILD_TERMINATED = "CHILD_WORKFLOW_TERMINATED"
    CHILD_TIMED_OUT = "CHILD_WORKFLOW_TIMED_OUT"
    EXTERNAL_CANCEL_REQUESTED = "EXTERNAL_WORKFLOW_CANCEL_REQUESTED"
    EXTERNAL_CANCEL_FAILED = "EXTERNAL_WORKFLOW_CANCEL_FAILED"
    EXTERNAL_SIGNALED = "EXTERNAL_WORKFLOW_SIGNALED"
    EXTERNAL_SIGNAL_FAILED = "EXTERNAL_WORKFLOW_SIGNAL_FAILED"
    MARKER_RECORDED = "MARKER_RECORDED"
    UPSERTED = "WORKFLOW_EXECUTION_UPSERTED"
    UPDATE_ACCEPTED = "WORKFLOW_EXECUTION_UPDATE_ACCEPTED"
    UPDATE_COMPLETED = "WORKFLOW_EXECUTION_UPDATE_COMPLETED"


NULL = Payload(b"null")


ENCODED = b'{"$zap":'
"""How a payload begins that an SDK has compressed or encrypted."""


def same_payload(one: Payload | None, other: Payload | None) -> bool:
    """Whether two payloads may be the same to whoever reads them: none is a null.

    Encrypted, the same value looks different each time. So two encoded payloads count as the same.
    """
    first, second = bytes(NULL if one is None else one), bytes(NULL if other is None else other)
    return first == second or (first.startswith(ENCODED) and second.startswith(ENCODED))


EVENT_BYTES = 200
"""About what an event takes beside its payloads."""


class Event(msgspec.Struct, frozen=True):
    """One line of a history."""

    event_id: int
    time_ms: int
    type: EventType
    attributes: dict[str, Any]

    @property
    def size(self) -> int:
        """Its share of the bytes of the history."""
        size = EVENT_BYTES
        for value in self.attributes.values():
            if type(value) is Payload and value != NULL:  # read again, a null is None
                size += len(value)
        return size


class WorkerKind(enum.IntEnum):
    """How a worker runs workflows: by holding the task for the whole run, or by replaying the history."""

    HOLDING = 0
    REPLAYING = 1


@dataclass(slots=True)
class Lease:
    """Who holds a task, until when it is theirs, and the token that proves it.

    The token ends in a fresh random part, so an answer under an old lease can always be told from
    one under the present lease.
    """

    token: str
    peer: PeerKey
    subscription_id: str
    identity: str
    started_ms: int
    heartbeat_ms: int
    replays: bool = False
    has_updates: bool = False
    """Of a workflow task: updates went out with it."""
    build_id: str = ""
    is_detached: bool = False
    """Of an activity: whoever has the token holds it, over any connection or none, and takes no slot."""

    @property
    def holder(self) -> dict[str, str]:
        """Who holds it, as the attributes of an event say it."""
        return {"identity": self.identity, "buildId": self.build_id} if self.build_id else {"identity": self.identity}

    def __str__(self) -> str:
        """Who holds it, for people."""
        return f"the worker {self.identity!r}" + (f" of build {self.build_id!r}" if self.build_id else "")


@dataclass(slots=True, eq=False)
class QueuedTask:
    """What stands in a task queue: an activity or a workflow task."""

    execution: Execution
    type: str
    queue: tuple[QueueKind, str]
    order: int = 0
    """The place in the line; a task that comes back from a lost worker keeps it."""
    attempt: int = 0
    """Counts deliveries, and so fences them: it only grows."""
    lease: Lease | None = None
    ready_ms: int = 0
    """Since when it waits in line."""

    @property
    def for_kind(self) -> WorkerKind | None:
        """Only subscriptions of this kind may have it; None for any. The same for as long as it waits in line."""
        return None

    @property
    def preferred_subscription(self) -> str:
        """Who gets it if it has a slot free; empty for nobody in particular."""
        return ""


class ActivityState(enum.Enum):
    SCHEDULED = "scheduled"
    BACKOFF = "backoff"
    STARTED = "started"
    CLOSED = "closed"


def task_activity_id(run_id: str) -> str:
    """The id of the one activity of a one-shot task."""
    return f"act-{run_id[:24]}"


@dataclass(slots=True, eq=False)
class Activity(QueuedTask):
    activity_id: str = ""
    state: ActivityState = ActivityState.SCHEDULED
    input: Payload | None = None
    retry_policy: RetryPolicy = RetryPolicy()
    timeouts: ActivityTimeouts = ActivityTimeouts()
    scheduled_ms: int = 0
    scheduled_event_id: int = 0
    retry_ms: int = 0
    """When the next attempt is due, in BACKOFF."""
    charged: int = 0
    """Attempts that count against the retry policy: all but those handed back."""
    cancel_reason: str | None = None
    """Not None: somebody asked for a cancel."""
    heartbeat_details: Payload | None = None
    last_failure: bytes | None = None
    call: ActivityCall | None = None
    """The call of a holder that asked for it."""
    command_id: str = ""
    """The command of a replaying worker that asked for it."""
    timer_ms: int | None = None

    def deadline_ms(self) -> int | None:
        """The earliest of everything that may happen to it by itself."""
        timeouts = self.timeouts
        due: int | None = None
        if self.state is ActivityState.STARTED:
            lease = self.lease
            assert lease is not None
            if timeouts.start_to_close_ms:
                due = lease.started_ms + timeouts.start_to_close_ms
            if timeouts.heartbeat_ms:
                silent_ms = lease.heartbeat_ms + timeouts.heartbeat_ms
                due = silent_ms if due is None else min(due, silent_ms)
        elif self.state is ActivityState.BACKOFF:
            due = self.retry_ms
        elif self.state is ActivityState.SCHEDULED:
            if timeouts.schedule_to_start_ms:
                due = self.ready_ms + timeouts.schedule_to_start_ms
        else:
            return None
        if timeouts.schedule_to_close_ms:
            close_ms = self.scheduled_ms + timeouts.schedule_to_close_ms
            due = close_ms if due is None else min(due, close_ms)
        return due


@dataclass(slots=True, eq=False)
class WorkflowTask(QueuedTask):
    """The workflow itself as work: a worker of the Go kind holds it for as long as the run lasts; a replaying worker
    has one task after another, whenever there is something new for it."""

    calls_made: int = 0
    """How many activities the present holder asked for; after a redelivery it asks again from the first."""
    last_event_id: int = 0
    """Up to where the present, replaying worker was told the history."""
    has_news: bool = True
    """Whether it was told anything that the workflow's code has to see; else it has only updates to look at."""
    starter_subscription: str = ""
    """Of a worker of whoever started the run, which is preferred until another has the run at hand."""

    @property
    def for_kind(self) -> WorkerKind | None:
        return self.execution.worker_kind

    @property
    def preferred_subscription(self) -> str:
        cache = self.execution.cached_by
        return self.starter_subscription if cache is None else cache.subscription_id


@dataclass(slots=True, frozen=True)
class Watch:
    """A call that waits for an event past `after`."""

    peer: PeerKey
    after: int


@dataclass(slots=True, frozen=True)
class CachedRun:
    """A replaying worker that has the run at hand, up to an event. Forgotten when the server restarts."""

    peer: PeerKey
    subscription_id: str
    last_event_id: int


class ParentLink(msgspec.Struct, frozen=True):
    """Of a child: which run started it, by which command. Runs that follow it by retry or cron keep the link."""

    workflow_id: str
    run_id: str
    command_id: str


class Child(msgspec.Struct, frozen=True):
    """Of a parent: a child that is open."""

    workflow_id: str
    run_id: str
    """Its first run."""
    type: str
    started_event_id: int
    started_ms: int
    policy: ParentClosePolicy


class AcceptedUpdate(msgspec.Struct, frozen=True):
    """An update that a workflow accepted. The events hold what came in and what came out."""

    name: str
    accepted_event_id: int
    completed_event_id: int = 0
    """Zero while it goes on."""


@dataclass(slots=True, eq=False)
class PendingUpdate:
    """An update that somebody waits for, or that waits to be accepted. Nobody was told yet that it was taken, so it
    may be forgotten when the server restarts."""

    execution: Execution
    update_id: str
    name: str
    args: Payload | None
    since_ms: int
    is_out: bool = False
    """A worker has it and will accept or reject it."""
    is_accepted: bool = False
    waiters: dict[Waiter, tuple[PeerKey, UpdateStage]] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class WorkflowTimer:
    run_id: str
    command_id: str
    started_event_id: int
    started_ms: int
    due_ms: int
    timer_ms: int | None = None

    def deadline_ms(self) -> int | None:
        return self.due_ms


@dataclass(slots=True)
class ActivityCall:
    """An activity that a workflow asked for, in the order of asking, with its outcome once it has one."""

    position: int
    """Counted from 0: a worker that runs the workflow again asks in the same order."""
    activity_id: str
    type: str
    input: Payload | None
    is_closed: bool = False
    result: Payload | None = None
    failure: bytes | None = None


@dataclass(slots=True, eq=False)
class Execution:
    workflow_id: str
    run_id: str
    type: str
    task_queue: str
    is_task: bool
    input: Payload | None
    start_ms: int
    attempt: int = 1
    status: Status = Status.RUNNING
    close_ms: int | None = None
    result: Payload | None = None
    failure: Payload | None = None
    close_reason: str = ""
    """Why it was canceled or terminated."""
    memo: Payload | None = None
    search_attributes: dict[str, Any] | None = None
    headers: Headers | None = None
    """What its starter gave along for everything that belongs to it; those of a run go on to the next one."""
    build_id: str = ""
    """The build of the worker that had its task last; empty where that one names none."""
    request_keys: tuple[RequestKey, ...] = ()
    """The request ids that are answered with this execution."""
    identity: str = ""
    retry_policy: RetryPolicy | None = None
    timeouts: WorkflowTimeouts = WorkflowTimeouts()
    activity_timeouts: ActivityTimeouts = ActivityTimeouts()
    cron_schedule: str = ""
    first_start_ms: int = 0
    """Start of the first run in a chain of retries and cron runs."""
    task_due_ms: int | None = None
    """When the first workflow task may go out, for a run that starts later (retry, cron)."""
    schedule_id: str = ""
    new_run_id: str = ""
    """The run that followed this one in its chain."""
    parent: ParentLink | None = None
    cancel_reason: str = ""
    cancel_identity: str = ""
    cancel_due_ms: int | None = None
    """When a workflow that was asked to end is ended over its head."""
    number: int = 0
    """Its place in the order of starts."""
    history_length: int = 0
    last_event_ms: int = 0
    history_bytes: int = 0
    """About what its history takes in the store."""
    unsaved: list[Event] = field(default_factory=list)
    """The events of this step; all before them are in the store."""
    signal_count: int = 0
    is_saved: bool = False
    """Whether the store has it as an open execution."""
    open_activities: dict[str, Activity] = field(default_factory=dict)
    calls: list[ActivityCall] = field(default_factory=list)
    task: WorkflowTask | None = None
    is_replayed: bool = False
    """A replaying worker answered a task of it: from then on it goes only to such."""
    seen_event_id: int = 0
    """The last event that a replaying worker had before it when it answered."""
    news_event_id: int = 0
    """The last event that a replaying worker has to see."""
    timers: dict[str, WorkflowTimer] = field(default_factory=dict)
    """Those that run, by command id."""
    children: dict[str, Child] = field(default_factory=dict)
    """Those that are open, by command id."""
    updates: dict[str, AcceptedUpdate] = field(default_factory=dict)
    signal_ids: dict[str, None] = field(default_factory=dict)
    """Request ids of its signals, the oldest first."""
    task_failures: int = 0
    """How often in a row its workflow task came to nothing."""
    task_failure: str = ""
    """Why, the last time."""
    task_retry_ms: int | None = None
    """When its workflow task goes out again after so many failures."""
    cached_by: CachedRun | None = None
    pending_updates: dict[str, PendingUpdate] = field(default_factory=dict)
    waiters: dict[Waiter, PeerKey] = field(default_factory=dict)
    followers: dict[Waiter, None] = field(default_factory=dict)
    """Those waiters that go on to the next run of the chain."""
    watchers: dict[Waiter, Watch] = field(default_factory=dict)
    """Those that wait for its next event."""
    is_dead_letter: bool = False
    timer_ms: int | None = None

    @property
    def worker_kind(self) -> WorkerKind | None:
        """Which kind of worker can go on with it; None before either did anything."""
        if self.is_replayed:
            return WorkerKind.REPLAYING
        return WorkerKind.HOLDING if self.calls else None

    @property
    def is_with_replaying_worker(self) -> bool:
        """Whether what happens to it reaches its worker through the history."""
        lease = None if self.task is None else self.task.lease
        return self.is_replayed or (lease is not None and lease.replays)

    @property
    def task_timeout_ms(self) -> int:
        """How long a replaying worker has for a task of this run."""
        return self.timeouts.task_ms or WORKFLOW_TASK_MS

    def task_due_by_ms(self) -> int | None:
        """Until when a replaying worker may answer the task that it has."""
        lease = None if self.task is None else self.task.lease
        if lease is None or not lease.replays:
            return None
        return lease.started_ms + self.task_timeout_ms

    def times_out_ms(self) -> int | None:
        """When the run ends by a timeout of its own."""
        due: int | None = None
        if self.timeouts.run_ms:
            due = (self.task_due_ms or self.start_ms) + self.timeouts.run_ms
        if self.timeouts.execution_ms:
            whole_ms = self.first_start_ms + self.timeouts.execution_ms
            due = whole_ms if due is None else min(due, whole_ms)
        return due

    def cancel_is_overdue(self, now_ms: int) -> bool:
        return not self.is_task and self.cancel_due_ms is not None and self.cancel_due_ms <= now_ms

    def deadline_ms(self) -> int | None:
        if not self.status.is_open:
            return None
        due = self.times_out_ms()
        if self.is_task:
            return due
        if self.cancel_due_ms is not None:
            due = self.cancel_due_ms if due is None else min(due, self.cancel_due_ms)
        if self.task_due_ms is not None and self.task is None and not self.is_replayed:
            due = self.task_due_ms if due is None else min(due, self.task_due_ms)
        for other_ms in (self.task_due_by_ms(), self.task_retry_ms):
            if other_ms is not None:
                due = other_ms if due is None else min(due, other_ms)
        return due


@dataclass(slots=True, eq=False)
class PendingQuery:
    token: str
    waiter: Waiter
    peer: PeerKey
    """Who was asked; nobody else may answer."""
    expires_ms: int
    query_type: str
    timer_ms: int | None = None

    def deadline_ms(self) -> int | None:
        return self.expires_ms


@dataclass(slots=True, eq=False)
class PendingResult:
    """A recorded activity result on its way to a worker that asked for it again.

    It leaves a moment after the reply to the asking call: a Go worker starts to listen for a
    result only once it has read that reply.
    """

    execution: Execution
    task_token: str
    """Of the lease under which it was asked; another holder asks for itself."""
    call: ActivityCall
    due_ms: int
    timer_ms: int | None = None

    def deadline_ms(self) -> int | None:
        return self.due_ms if self.execution.status.is_open else None


class ScheduledRun(msgspec.Struct, frozen=True):
    """A run that a schedule starts: now, or as soon as the open one has closed."""

    name: str
    """The end of its workflow id: the slot or the request that it is for."""
    slot_ms: int
    """The slot, or when it was triggered."""
    is_manual: bool = False
    """Asked for by a trigger or a backfill: no pause and no limit of actions holds it up."""
    request_id: str = ""


class RecentAction(msgspec.Struct, frozen=True):
    """A run that a schedule started."""

    slot_ms: int
    started_ms: int
    workflow_id: str
    run_id: str


class Backfill(msgspec.Struct):
    """Slots of the past that are still to be acted on, in order."""

    slots: list[int]
    overlap: Overlap


@dataclass(slots=True, eq=False)
class Schedule:
    schedule_id: str
    spec: ScheduleSpec
    action: Action
    overlap: Overlap
    created_ms: int
    updated_ms: int
    anchor_ms: int
    """From when its intervals count: its creation, or the last change of its spec."""
    paused: bool = False
    note: str = ""
    catchup_window_ms: int | None = None
    pause_on_failure: bool = False
    actions_limit: int | None = None
    """How many slots it was made to act on."""
    remaining_actions: int | None = None
    """How many of them are left."""
    next_ms: int | None = None
    """The next slot, without its jitter."""
    next_due_ms: int | None = None
    """When that slot is acted on: with its jitter."""
    last_slot_ms: int | None = None
    """The last slot acted on. None up to it is acted on again, whatever becomes of the clock and the spec."""
    not_before_ms: int = 0
    """When it goes on after a step in which it did as much as it may."""
    work_ms: int | None = None
    """When to look at the backfills and the buffered runs again."""
    action_count: int = 0
    skipped_overlap: int = 0
    buffer_dropped: int = 0
    missed: int = 0
    buffered: list[ScheduledRun] = field(default_factory=list)
    """The runs that wait for the open ones to close, in order."""
    backfills: list[Backfill] = field(default_factory=list)
    backfill_requests: dict[str, int] = field(default_factory=dict)
    """The latest request ids of backfills, with the answer."""
    recent_actions: list[RecentAction] = field(default_factory=list)
    """The latest last."""
    open_runs: dict[str, str] = field(default_factory=dict)
    """The workflow ids by run id, with the runs that followed by retry, reset or requeue."""
    timer_ms: int | None = None
    is_deleted: bool = False

    @property
    def is_active(self) -> bool:
        """Whether it acts on slots by itself."""
        return not self.paused and not self.is_deleted and self.remaining_actions != 0

    @property
    def state(self) -> str:
        """In a word, for people: a schedule that fires no more says why."""
        if self.paused:
            return "paused"
        if self.remaining_actions == 0:
            return "used up"
        return "ended" if self.next_ms is None else "active"

    def deadline_ms(self) -> int | None:
        if self.is_deleted:
            return None
        due = self.work_ms
        if self.is_active and self.next_due_ms is not None:
            slot_due_ms = max(self.next_due_ms, self.not_before_ms)
            due = slot_due_ms if due is None else min(due, slot_due_ms)
        return due


@dataclass(slots=True)
class Subscription:
    subscription_id: str
    peer: PeerKey
    queue: tuple[QueueKind, str]
    identity: str
    slots: int
    types: frozenset[str] | None
    build_id: str = ""
    held: int = 0
    """Unfinished deliveries; never more than `slots` at the moment of a delivery."""
    is_idle: bool = False
    """Whether its queue lists it as having a slot free; owned by the queue, as `turn` is."""
    turn: int = 0
    """Grows over the deliveries of the queue: who has the smallest waits the longest."""
    unknown_types: set[str] = field(default_factory=set)
    """Types that its worker said it does not know; it is not asked again."""
    is_full: bool = False
    """Its connection has got as much as it may before it is known to have taken it."""
    replays: bool = False
    """Of a workflow queue: it gets histories and answers with commands."""
    queue_per_second: float = 0.0
    """What it states of its queue's rate; 0 for nothing."""
    rate: PeerRate | None = None
    """That of its peer, if it states one."""

    @property
    def kind(self) -> WorkerKind:
        return WorkerKind.REPLAYING if self.replays else WorkerKind.HOLDING

    @property
    def has_room(self) -> bool:
        return self.held < self.slots and not self.is_full and (self.rate is None or not self.rate.is_spent)

    def serves(self, task_type: str) -> bool:
        return (self.types is None or task_type in self.types) and task_type not in self.unknown_types


@dataclass(slots=True)
class Peer:
    """What a connection holds, so that its end releases it."""

    burst_bytes: int = 0
    """Delivered since the connection was last known to have taken everything."""
    is_full: bool = False
    rate: PeerRate | None = None

    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    leases: dict[str, QueuedTask] = field(default_factory=dict)
    waiting: dict[Waiter, Execution] = field(default_factory=dict)
    updating: dict[Waiter, PendingUpdate] = field(default_factory=dict)
    watching: dict[Waiter, Execution] = field(default_factory=dict)
    queries: dict[str, PendingQuery] = field(default_factory=dict)
