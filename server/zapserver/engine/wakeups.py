"""When a workflow goes to a worker, and what follows when the worker makes nothing of it.

    | workflow task of       | is made                                  | ends                                 |
    |------------------------|------------------------------------------|--------------------------------------|
    | a fresh run            | when the run is due                      | as that of the worker which takes it |
    | a holder (Go's kind)   | the same one, for as long as the run is  | with the run                         |
    | a replaying worker     | when there is news that no worker saw    | with the answer to it                |

News is every event that a workflow's code can notice, and an update that waits to be accepted. What comes
while a task is out is recorded at once; the answer leads to the next task when there was any.

A task that comes to nothing (the worker is lost, too late, or says that it cannot) goes to another worker
at once for the first times, and then after a wait that grows. A broken workflow so waits for its repair
without keeping its workers busy.
"""

from __future__ import annotations

from zapserver.engine import matching
from zapserver.engine.commands import QueueKind
from zapserver.engine.records import EventType, Execution, QueuedTask, WorkflowTask
from zapserver.engine.state import State

IMMEDIATE_RETRIES = 3
"""After so many failures in a row a workflow task waits before it goes out again."""

RETRY_MS_MIN = 1_000
RETRY_MS_MAX = 60_000


def begin(s: State, execution: Execution, now_ms: int, *, starter: str = "") -> None:
    """Put the run in line for a worker; `starter` names a subscription that may have it first."""
    key = (QueueKind.WORKFLOW, execution.task_queue)
    queue = s.queues.get(key)
    if queue is None or starter not in queue.subscriptions:  # a name that means nothing is not kept
        starter = ""
    execution.task = WorkflowTask(execution=execution, type=execution.type, queue=key, starter_subscription=starter)
    matching.enqueue(s, execution.task, now_ms)


def news(s: State, execution: Execution, event_id: int, now_ms: int) -> None:
    """There is an event that the workflow's code has to see, up to this id. Holders are told in other ways."""
    execution.news_event_id = event_id
    s.touch(execution)
    wake(s, execution, now_ms)


def wake(s: State, execution: Execution, now_ms: int) -> None:
    """Send a replayed run to a worker if there is anything that no worker saw, and none has it already."""
    if execution.is_replayed and execution.status.is_open and execution.task is None and has_news(execution):
        begin(s, execution, now_ms)


def has_news(execution: Execution) -> bool:
    if execution.news_event_id > execution.seen_event_id:
        return True
    return any(not update.is_accepted and not update.is_out for update in execution.pending_updates.values())


def succeeded(execution: Execution) -> None:
    """A worker got on with the run: what failed before does not count any more."""
    execution.task_failures = 0
    execution.task_failure = ""


def came_to_nothing(
    s: State, task: WorkflowTask, reason: str, now_ms: int, *, event_type: EventType = EventType.WORKFLOW_TASK_FAILED
) -> QueuedTask | None:
    """The lease of `task` ended and nothing was done: the task, to be put back in line now, or None and it waits."""
    execution = task.execution
    execution.cached_by = None
    execution.task_failures += 1
    execution.task_failure = reason
    if execution.task_failures == 1 and execution.history_length < s.limits.history_events_max:
        # The first of a row only: a workflow that fails for a week must not fill its history.
        holder = {} if task.lease is None else task.lease.holder
        s.record(execution, event_type, now_ms, attempt=task.attempt, reason=reason, **holder)
    s.touch(execution)
    if execution.task_failures <= IMMEDIATE_RETRIES:
        s.timers.update(execution)
        return task
    doublings = min(execution.task_failures - IMMEDIATE_RETRIES - 1, 10)
    execution.task_retry_ms = now_ms + min(RETRY_MS_MIN * 2**doublings, RETRY_MS_MAX)
    s.timers.update(execution)
    return None


def try_again(s: State, task: WorkflowTask, now_ms: int) -> None:
    """The wait of a task that came to nothing is over."""
    task.execution.task_retry_ms = None
    s.touch(task.execution)
    matching.put_back(s, [task], now_ms)
