"""What an open execution waits for, in words: one line for each thing that has to happen."""

from __future__ import annotations

import msgspec

from zapserver.engine.commands import Status
from zapserver.engine.executions import rfc3339
from zapserver.engine.records import Execution, WorkflowTask
from zapserver.engine.state import State


class Waiting(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that an open execution waits for, in words that a person understands."""

    what: str
    """The activity's or workflow's type."""
    reason: str
    since_ms: int
    until_ms: int | None = None
    activity_id: str = ""
    identity: str = ""
    build_id: str = ""
    attempt: int = 0


def timers(execution: Execution) -> list[Waiting]:
    return [
        Waiting(
            what=f"timer {timer.command_id}",
            reason="the workflow sleeps until the timer fires" + _all_the_same(execution),
            since_ms=timer.started_ms,
            until_ms=timer.due_ms,
        )
        for timer in execution.timers.values()
    ]


def children(execution: Execution) -> list[Waiting]:
    return [
        Waiting(
            what=child.type,
            reason=f"the child workflow {child.workflow_id!r} is open" + _all_the_same(execution),
            since_ms=child.started_ms,
        )
        for child in execution.children.values()
    ]


def _all_the_same(execution: Execution) -> str:
    return "; the workflow was asked to cancel, and has not ended" if execution.status is Status.CANCELING else ""


def updates(execution: Execution) -> list[Waiting]:
    return [
        Waiting(
            what=f"update {pending.name}",
            reason="the workflow accepted it and works on it" if pending.is_accepted else "it waits to be accepted",
            since_ms=pending.since_ms,
        )
        for pending in execution.pending_updates.values()
    ]


def workflow_task(s: State, execution: Execution) -> list[Waiting]:
    """Where its workflow task is, if there is one."""
    task = execution.task
    if task is None:
        if execution.task_due_ms is None or execution.is_replayed or execution.is_task:
            return []
        reason = "its start is due later" if execution.attempt == 1 else f"attempt {execution.attempt} backs off"
        start_ms, due_ms = execution.start_ms, execution.task_due_ms
        return [Waiting(what=execution.type, reason=reason, since_ms=start_ms, until_ms=due_ms)]
    if task.lease is not None:
        return [_out(execution, task)]
    if execution.task_retry_ms is not None:
        reason = f"the next try is at {rfc3339(execution.task_retry_ms)}" + _failures(execution)
        since_ms, until_ms = task.ready_ms, execution.task_retry_ms
        return [Waiting(what=execution.type, reason=reason, since_ms=since_ms, until_ms=until_ms, attempt=task.attempt)]
    if execution.status is Status.CANCELING and not execution.is_replayed:
        return []  # nobody begins with it; its activities are told to stop
    reason = s.queues[task.queue].why_waiting(task) + _failures(execution)
    return [Waiting(what=execution.type, reason=reason, since_ms=task.ready_ms, attempt=task.attempt)]


def _out(execution: Execution, task: WorkflowTask) -> Waiting:
    lease = task.lease
    assert lease is not None
    reason = f"{lease} runs the workflow"
    until_ms = execution.times_out_ms()
    if lease.replays:
        reason = f"{lease} has its workflow task"
        until_ms = execution.task_due_by_ms()
    if execution.status is Status.CANCELING:
        reason += " and was asked to end it"
    reason += _failures(execution)
    return Waiting(
        what=execution.type,
        reason=reason,
        since_ms=lease.started_ms,
        until_ms=until_ms,
        identity=lease.identity,
        build_id=lease.build_id,
        attempt=task.attempt,
    )


def _failures(execution: Execution) -> str:
    """How often its workflow task failed, and with what. The error stands last: a client may have to decrypt it."""
    if not execution.task_failures:
        return ""
    times = "once" if execution.task_failures == 1 else f"{execution.task_failures} times in a row"
    return f"; its workflow task failed {times}, the last time with: {execution.task_failure}"


def nothing_pending(execution: Execution) -> Waiting:
    reason = "it waits for a signal or an update"
    if execution.status is Status.CANCELING:
        reason = "it was asked to cancel, and its worker has not ended it; it waits for a signal or an update"
    return Waiting(what=execution.type, reason=reason, since_ms=execution.start_ms, until_ms=execution.times_out_ms())
