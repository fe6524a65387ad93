"""Durable workflows: async functions with trio's structured concurrency that survive crashes.

    from zaptasks import workflow

    @workflow.defn
    class Order:
        @workflow.run
        async def run(self, item: str) -> str:
            with workflow.move_on_after(3600):
                return await workflow.execute_activity(charge, item, start_to_close=30)
            return "too late"

The code runs on a small runner of its own, without an event loop. What it does must follow from what it was given:
time, randomness and everything from outside come from this module and from activities. When a worker is lost,
another one runs the code again against the recorded history until it is where it was.
"""

from zaptasks.errors import ActivityFailed

from .activities import (
    ActivityHandle,
    ActivityOptions,
    OnCancel,
    SessionActivityOptions,
    execute_activity,
    execute_activity_method,
    start_activity,
    start_activity_method,
)
from .channels import MemoryReceiveChannel, MemorySendChannel, open_memory_channel
from .children import (
    ChildHandle,
    ChildOptions,
    ExternalWorkflow,
    ParentClosePolicy,
    execute_child_workflow,
    external_workflow,
    start_child_workflow,
)
from .definition import Definition, definition_of, defn, query, run, signal, update
from .effects import (
    SignalChannel,
    all_handlers_finished,
    continue_as_new,
    deprecate_patch,
    info,
    is_replaying,
    logger,
    metrics,
    mutable_side_effect,
    now,
    on_query,
    on_signal,
    on_update,
    patched,
    random,
    side_effect,
    signals,
    upsert_memo,
    upsert_search_attributes,
    uuid4,
    wait_signal,
)
from .endings import ContinueAsNew
from .errors import (
    BrokenResourceError,
    Cancelled,
    ChildFailed,
    ChildStartFailed,
    ClosedResourceError,
    EndOfChannel,
    ExternalFailed,
    ForeignAwait,
    NondeterminismError,
    NotInWorkflow,
    ReadOnlyError,
    SessionLost,
    SessionNotOpened,
    TooSlowError,
    WorkflowTaskError,
    WouldBlock,
)
from .execution import Run, WorkflowInfo
from .local_activities import LocalActivityOptions, execute_local_activity
from .local_calls import LocalCall
from .places import Place
from .scheduler import checkpoint, checkpoint_if_cancelled
from .scopes import (
    TASK_STATUS_IGNORED,
    CancelScope,
    Nursery,
    TaskStatus,
    current_effective_deadline,
    fail_after,
    fail_at,
    move_on_after,
    move_on_at,
    open_nursery,
)
from .sessions import Session, open_session
from .steps import Step
from .sync import CapacityLimiter, Condition, Event, Lock, Semaphore
from .task_handler import WorkflowTask, WorkflowTaskHandler, answer_body
from .waits import current_time, sleep, sleep_forever, sleep_until, wait_condition

__all__ = [
    "TASK_STATUS_IGNORED",
    "ActivityFailed",
    "ActivityHandle",
    "ActivityOptions",
    "BrokenResourceError",
    "CancelScope",
    "Cancelled",
    "CapacityLimiter",
    "ChildFailed",
    "ChildHandle",
    "ChildOptions",
    "ChildStartFailed",
    "ClosedResourceError",
    "Condition",
    "ContinueAsNew",
    "Definition",
    "EndOfChannel",
    "Event",
    "ExternalFailed",
    "ExternalWorkflow",
    "ForeignAwait",
    "LocalActivityOptions",
    "LocalCall",
    "Lock",
    "MemoryReceiveChannel",
    "MemorySendChannel",
    "NondeterminismError",
    "NotInWorkflow",
    "Nursery",
    "OnCancel",
    "ParentClosePolicy",
    "Place",
    "ReadOnlyError",
    "Run",
    "Semaphore",
    "Session",
    "SessionActivityOptions",
    "SessionLost",
    "SessionNotOpened",
    "SignalChannel",
    "Step",
    "TaskStatus",
    "TooSlowError",
    "WorkflowInfo",
    "WorkflowTask",
    "WorkflowTaskError",
    "WorkflowTaskHandler",
    "WouldBlock",
    "all_handlers_finished",
    "answer_body",
    "checkpoint",
    "checkpoint_if_cancelled",
    "continue_as_new",
    "current_effective_deadline",
    "current_time",
    "definition_of",
    "defn",
    "deprecate_patch",
    "execute_activity",
    "execute_activity_method",
    "execute_child_workflow",
    "execute_local_activity",
    "external_workflow",
    "fail_after",
    "fail_at",
    "info",
    "is_replaying",
    "logger",
    "metrics",
    "move_on_after",
    "move_on_at",
    "mutable_side_effect",
    "now",
    "on_query",
    "on_signal",
    "on_update",
    "open_memory_channel",
    "open_nursery",
    "open_session",
    "patched",
    "query",
    "random",
    "run",
    "side_effect",
    "signal",
    "signals",
    "sleep",
    "sleep_forever",
    "sleep_until",
    "start_activity",
    "start_activity_method",
    "start_child_workflow",
    "update",
    "upsert_memo",
    "upsert_search_attributes",
    "uuid4",
    "wait_condition",
    "wait_signal",
]
