"""What workers do with workflow tasks: answer, fail, return or lose them; and what those of the Go kind do.

A worker of the Go kind does not replay. It holds its task for as long as the run lasts, asks for activities
one by one, and gets each result pushed. When it is lost the run goes to another worker from its
input, and the activities that this one asks for again are answered from the recorded outcomes, in
the same order: what was done is not done twice. What replaying workers answer is in `decisions`.
"""

from __future__ import annotations

from zapserver.engine import activities, decisions, executions, matching, registry, updates, wakeups
from zapserver.engine.commands import (
    ActivityScheduled,
    FailWorkflowTask,
    ScheduleActivity,
    Status,
    TaskCommand,
    WorkflowCommand,
    WorkflowCommandKind,
)
from zapserver.engine.errors import Conflict, Invalid, NotFound, StaleToken
from zapserver.engine.records import (
    ActivityCall,
    EventType,
    Execution,
    PendingResult,
    QueuedTask,
    WorkflowTask,
    same_payload,
)
from zapserver.engine.retry import NO_RETRY
from zapserver.engine.state import State
from zapserver.engine.validation import check_name, check_timeouts

REASON_CHARS_MAX = 2_000
"""Of what a worker says about a workflow task that it could not do."""

RECORDED_RESULT_DELAY_MS = 20
"""Go's SDK starts to listen for a result only after it has read the reply to its call, on another
goroutine; a result that comes right behind the reply is lost there."""


def held(s: State, token: str) -> WorkflowTask:
    """The workflow task that `token` proves a present lease of."""
    parts = token.rsplit("|", 3)
    execution = s.executions.get(parts[1]) if len(parts) == 4 and parts[0].startswith("wf|") else None
    if execution is None or not execution.status.is_open or not (execution.is_replayed or execution.task):
        raise NotFound("task token not found: what it was for is closed, or it never was given out")
    task = execution.task
    if task is None or task.lease is None or task.lease.token != token:
        raise StaleToken(
            f"the lease of workflow task {parts[2]} of {execution.workflow_id!r} ended: this answer is refused"
        )
    return task


def complete_workflow_task(s: State, token: str, commands: tuple[TaskCommand, ...], now_ms: int) -> None:
    task = held(s, token)
    assert task.lease is not None
    if task.lease.replays:
        decisions.complete(s, task, commands, now_ms)
        return
    ending: WorkflowCommand | None = None
    for command in commands:
        if not isinstance(command, WorkflowCommand):
            raise Invalid(
                f"{type(command).__name__} is a command of workers that replay; this one subscribed without `replays`"
            )
        # Go reserves one kind and schedules activities by their own call.
        if ending is None and command.kind is not WorkflowCommandKind.SCHEDULE_ACTIVITY:
            ending = command
    if ending is not None:
        executions.end(s, task.execution, ending, now_ms)
    else:
        _does_not_know(s, task)  # no command: that is how a Go worker says so
        hand_back(s, task, now_ms)


def fail_workflow_task(s: State, command: FailWorkflowTask, now_ms: int) -> None:
    """A worker cannot do its task: another tries, at once or after a while."""
    task = held(s, command.token)
    if task.lease is None or not task.lease.replays:
        raise Invalid(
            "only a worker that replays can fail a workflow task; one that holds its task answers with commands"
        )
    if command.unknown_type:
        _does_not_know(s, task)
        hand_back(s, task, now_ms)
    else:
        _failed(s, task, command.reason[:REASON_CHARS_MAX] or "no reason given", now_ms)


def task_is_due(s: State, execution: Execution, now_ms: int) -> None:
    """Time passed for the workflow task of a run: its start, the end of its lease, or of its wait."""
    task = execution.task
    if task is None:
        wakeups.begin(s, execution, now_ms)
    elif task.lease is not None:
        limit_ms = now_ms - task.lease.started_ms
        text = f"{task.lease} gave no answer within {limit_ms} ms"
        _failed(s, task, text, now_ms, event_type=EventType.WORKFLOW_TASK_TIMED_OUT)
    else:
        wakeups.try_again(s, task, now_ms)
    s.timers.update(execution)


def _failed(
    s: State,
    task: WorkflowTask,
    reason: str,
    now_ms: int,
    *,
    event_type: EventType = EventType.WORKFLOW_TASK_FAILED,
) -> None:
    execution = task.execution
    updates.take_back(execution)
    if execution.status is Status.CANCELING and not execution.is_replayed:
        matching.finish(s, task, now_ms)
        _nobody_runs(s, execution, now_ms)
    elif wakeups.came_to_nothing(s, task, reason, now_ms, event_type=event_type) is not None:
        matching.pass_on(s, task, now_ms)
    else:
        matching.finish(s, task, now_ms)
        s.timers.update(execution)


def _does_not_know(s: State, task: WorkflowTask) -> None:
    """The worker does not have this workflow type: ask another, and not this one again."""
    lease = task.lease
    assert lease is not None
    peer = s.peers.get(lease.peer)
    subscription = None if peer is None else peer.subscriptions.get(lease.subscription_id)
    if subscription is not None:
        subscription.unknown_types.add(task.type)


def hand_back(s: State, task: WorkflowTask, now_ms: int) -> None:
    """The holder does not run the workflow after all: another begins with it, unless it was to end anyway."""
    execution = task.execution
    updates.take_back(execution)
    execution.cached_by = None
    if execution.status is Status.CANCELING and not execution.is_replayed:
        matching.finish(s, task, now_ms)
        _nobody_runs(s, execution, now_ms)
    else:
        matching.pass_on(s, task, now_ms)
    s.timers.update(execution)


def schedule_activity(s: State, command: ScheduleActivity, now_ms: int) -> ActivityScheduled:
    """A worker asks for an activity in a run that it holds."""
    if not command.type:
        raise Invalid("activity_type required")
    check_name("activity type", command.type, s.limits)
    if command.task_queue:
        check_name("task queue", command.task_queue, s.limits)
    check_timeouts(command.timeouts)
    execution = s.execution(command.workflow_id, command.run_id)
    executions.check_open(execution)
    task = execution.task
    if task is None or task.lease is None or task.lease.peer != command.peer or task.lease.replays:
        raise Conflict(
            f"run {execution.run_id} of {execution.workflow_id!r} is not held by this connection; only the worker that"
            " has its workflow task may schedule activities, and one that replays does so by command"
        )
    position = task.calls_made
    if position < len(execution.calls):
        call = execution.calls[position]
        if call.type != command.type or not same_payload(call.input, command.input):
            raise Conflict(
                f"activity {position + 1} of run {execution.run_id} was {call.type!r} when another worker asked for"
                f" it; now it is {command.type!r}{'' if call.type != command.type else ' with another input'}:"
                " the workflow is not deterministic"
            )
        task.calls_made += 1
        s.touch(execution)
        if call.is_closed:
            due_ms = now_ms + RECORDED_RESULT_DELAY_MS
            s.timers.update(PendingResult(execution, task.lease.token, call, due_ms))
    else:
        registry.check_another_activity(s, execution, command.task_queue or execution.task_queue)
        call = ActivityCall(position, f"act-{s.new_id()[:24]}", command.type, command.input)
        execution.calls.append(call)
        task.calls_made += 1
        wakeups.succeeded(execution)
        activities.schedule(
            s,
            execution,
            activity_id=call.activity_id,
            activity_type=command.type,
            task_queue=command.task_queue or execution.task_queue,
            input=command.input,
            timeouts=command.timeouts,
            retry_policy=NO_RETRY if command.retry_policy is None else command.retry_policy.normalized(),
            now_ms=now_ms,
            call=call,
        )
    activity = s.activities.get(call.activity_id)
    token = activity.lease.token if activity is not None and activity.lease is not None else ""
    return ActivityScheduled(activity_id=call.activity_id, task_token=token)


def deliver_recorded_result(s: State, pending: PendingResult) -> None:
    task = pending.execution.task
    if task is not None and task.lease is not None and task.lease.token == pending.task_token:
        executions.push_result(s, pending.execution, pending.call)


def worker_lost(s: State, task: WorkflowTask, reason: str, now_ms: int) -> QueuedTask | None:
    """The worker of a run is gone: the task to put back in line now, if the run wants it so."""
    assert task.lease is not None
    execution = task.execution
    text = f"{task.lease} was lost: {reason}"
    s.release(task)
    updates.take_back(execution)
    if execution.status is Status.CANCELING and not execution.is_replayed:
        _nobody_runs(s, execution, now_ms)
        return None
    return wakeups.came_to_nothing(s, task, text, now_ms)


def restarted(s: State, task: WorkflowTask, now_ms: int) -> QueuedTask | None:
    """The server went down with the lease, and nobody is to blame: the task to put back in line, if it is wanted."""
    s.release(task)
    if task.execution.status is Status.CANCELING and not task.execution.is_replayed:
        _nobody_runs(s, task.execution, now_ms)
        return None
    return task


def _nobody_runs(s: State, execution: Execution, now_ms: int) -> None:
    """The worker that was to end a canceled run is gone: end it here."""
    executions.cancel(s, execution, execution.cancel_reason, execution.cancel_identity, now_ms)
