"""What a worker of the Go kind does with a workflow task: hold it, ask for activities, end the run.

Such a worker does not replay. It holds its task for as long as the run lasts, asks for activities
one by one, and gets each result pushed. When it is lost the run goes to another worker from its
input, and the activities that this one asks for again are answered from the recorded outcomes, in
the same order: what was done is not done twice.
"""

from __future__ import annotations

from zapserver.engine import activities, executions, matching, registry
from zapserver.engine.commands import (
    ActivityScheduled,
    ScheduleActivity,
    Status,
    WorkflowCommand,
    WorkflowCommandKind,
)
from zapserver.engine.errors import Conflict, Invalid, NotFound, StaleToken
from zapserver.engine.records import ActivityCall, Execution, PendingResult, QueuedTask, WorkflowTask, same_payload
from zapserver.engine.retry import NO_RETRY
from zapserver.engine.state import State
from zapserver.engine.validation import check_name, check_timeouts
from zapwire.failure import Failure, decode_failure, encode_failure

RECORDED_RESULT_DELAY_MS = 20
"""Go's SDK starts to listen for a result only after it has read the reply to its call, on another
goroutine; a result that comes right behind the reply is lost there."""


def held(s: State, token: str) -> WorkflowTask:
    """The workflow task that `token` proves a present lease of."""
    parts = token.rsplit("|", 3)
    execution = s.executions.get(parts[1]) if len(parts) == 4 and parts[0].startswith("wf|") else None
    if execution is None or execution.task is None:
        raise NotFound("task token not found: what it was for is closed, or it never was given out")
    task = execution.task
    if task.lease is None or task.lease.token != token:
        raise StaleToken(
            f"the lease of workflow task {parts[2]} of {execution.workflow_id!r} ended: this answer is refused"
        )
    return task


def complete_workflow_task(s: State, token: str, commands: tuple[WorkflowCommand, ...], now_ms: int) -> None:
    task = held(s, token)
    execution = task.execution
    for command in commands:
        match command.kind:
            case WorkflowCommandKind.COMPLETE:
                executions.close(s, execution, Status.COMPLETED, now_ms, result=command.payload)
            case WorkflowCommandKind.FAIL:
                failure = bytes(command.payload) if command.payload is not None else encode_failure(Failure())
                executions.fail(s, execution, failure, now_ms)
            case WorkflowCommandKind.CANCEL:
                reason = execution.cancel_reason
                if command.payload is not None:
                    reason = decode_failure(command.payload).message or reason
                executions.close(
                    s, execution, Status.CANCELED, now_ms, reason=reason, identity=execution.cancel_identity
                )
            case WorkflowCommandKind.SCHEDULE_ACTIVITY:
                continue  # Go reserves the kind and schedules activities by their own call
        return
    _refused(s, task, now_ms)


def _refused(s: State, task: WorkflowTask, now_ms: int) -> None:
    """No command: that is how a Go worker says that it does not know the workflow type. Ask another."""
    lease = task.lease
    assert lease is not None
    peer = s.peers.get(lease.peer)
    subscription = None if peer is None else peer.subscriptions.get(lease.subscription_id)
    if subscription is not None:
        subscription.unknown_types.add(task.type)
    hand_back(s, task, now_ms)


def hand_back(s: State, task: WorkflowTask, now_ms: int) -> None:
    """The holder does not run the workflow after all: another begins with it, unless it was to end anyway."""
    if task.execution.status is Status.CANCELING:
        matching.finish(s, task, now_ms)
        _nobody_runs(s, task.execution, now_ms)
    else:
        matching.pass_on(s, task, now_ms)


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
    if task is None or task.lease is None or task.lease.peer != command.peer:
        raise Conflict(
            f"run {execution.run_id} of {execution.workflow_id!r} is not held by this connection;"
            " only the worker that has its workflow task may schedule activities"
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


def holder_lost(s: State, task: WorkflowTask, now_ms: int) -> QueuedTask | None:
    """The worker of a run is gone: the task to put back in line, if the run still wants one."""
    s.release(task)
    if task.execution.status is Status.CANCELING:
        _nobody_runs(s, task.execution, now_ms)
        return None
    return task


def _nobody_runs(s: State, execution: Execution, now_ms: int) -> None:
    """The worker that was to end a canceled run is gone: end it here."""
    executions.cancel(s, execution, execution.cancel_reason, execution.cancel_identity, now_ms)
