"""The life of an execution: a one-shot task or a workflow, from start to one of its ends.

    RUNNING --cancel, while a worker runs it--> CANCELING
    RUNNING, CANCELING --> COMPLETED | FAILED | CANCELED | TERMINATED | TIMED_OUT

The first end wins and never changes. A workflow that fails with attempts left in its retry policy,
or that has a cron schedule, ends and a new run of the same id starts when it is due.
"""

from __future__ import annotations

from datetime import UTC, datetime

from zapserver.engine import activities, matching, registry
from zapserver.engine.activities import Outcome
from zapserver.engine.commands import (
    ActivityTimeouts,
    Payload,
    PeerKey,
    QueueKind,
    ResetExecution,
    Started,
    StartTask,
    StartWorkflow,
    Status,
    Waiter,
)
from zapserver.engine.effects import Closed, DeliverActivityResult, DeliverCancelRequest
from zapserver.engine.errors import Conflict, Invalid, LimitReached
from zapserver.engine.records import ActivityCall, EventType, Execution, RequestKey, WorkflowTask
from zapserver.engine.retry import TASK_RETRY
from zapserver.engine.specs import next_due_ms, read_spec
from zapserver.engine.state import State
from zapserver.engine.validation import check_name, check_request_id, check_timeouts, storable_failure
from zapwire.failure import TIMEOUT_ERROR, Failure, decode_failure, encode_failure

TASK_TIMEOUTS = ActivityTimeouts(start_to_close_ms=600_000)
"""A one-shot task that names no timeout may take ten minutes, so that a handler that hangs gives its
slot back some day."""

CANCEL_MS_MAX = 60_000
"""A workflow that has not ended this long after it was asked to is canceled over its head, as Go's
server does it: Go's workers have no handler for the request."""

_CLOSING_EVENT = {
    Status.COMPLETED: EventType.EXECUTION_COMPLETED,
    Status.FAILED: EventType.EXECUTION_FAILED,
    Status.CANCELED: EventType.EXECUTION_CANCELED,
    Status.TERMINATED: EventType.EXECUTION_TERMINATED,
    Status.TIMED_OUT: EventType.EXECUTION_TIMED_OUT,
}


# --- start ---------------------------------------------------------------------------------------


def start_task(s: State, command: StartTask, now_ms: int, *, schedule_id: str = "") -> Started:
    check_name("task type", command.type, s.limits)
    check_name("task queue", command.task_queue, s.limits)
    check_request_id(command.request_id, s.limits)
    if command.timeouts is not None:
        check_timeouts(command.timeouts)
    request = registry.request_key("task", command.type, schedule_id, command.request_id)
    if (known := registry.seen(s, request)) is not None:
        return known
    run_id = s.new_id()
    workflow_id = command.workflow_id or f"{command.type}-{run_id[:24]}"
    registry.check_free(s, workflow_id)
    registry.check_backlog(s, (QueueKind.ACTIVITY, command.task_queue))
    execution = Execution(
        workflow_id=workflow_id,
        run_id=run_id,
        type=command.type,
        task_queue=command.task_queue,
        is_task=True,
        input=command.input,
        start_ms=now_ms,
        first_start_ms=now_ms,
        memo=command.memo,
        identity=command.identity,
        retry_policy=TASK_RETRY if command.retry_policy is None else command.retry_policy.normalized(),
        activity_timeouts=command.timeouts or TASK_TIMEOUTS,
        schedule_id=schedule_id,
    )
    _admit(s, execution, now_ms, request)
    _schedule_the_task(s, execution, now_ms)
    return Started(workflow_id=workflow_id, run_id=run_id)


def start_workflow(s: State, command: StartWorkflow, now_ms: int, *, schedule_id: str = "") -> Started:
    if not command.type:
        raise Invalid("workflow type required")
    check_name("workflow type", command.type, s.limits)
    check_name("task queue", command.task_queue, s.limits)
    check_request_id(command.request_id, s.limits)
    check_timeouts(command.timeouts)
    if command.signal_name:
        check_name("signal name", command.signal_name, s.limits)
    first_due_ms = _first_due_ms(command.cron_schedule, now_ms)
    if command.workflow_id:
        request = registry.request_key("workflow", command.workflow_id, schedule_id, command.request_id)
    else:
        request = registry.request_key("workflow type", command.type, schedule_id, command.request_id)
    if (known := registry.seen(s, request)) is not None:
        return known
    if command.signal_name and (latest := s.open_ids.get(command.workflow_id)) is not None:
        signal(s, latest, command.signal_name, command.signal_input, command.identity, now_ms)
        registry.remember(s, latest, request)
        return Started(workflow_id=latest.workflow_id, run_id=latest.run_id, is_new=False)
    run_id = command.run_id or s.new_id()
    registry.check_run_id(s, run_id)
    workflow_id = command.workflow_id or f"{command.type.lower()}-{run_id[:24]}"
    if not command.workflow_id and s.latest(workflow_id) is not None:
        workflow_id = f"{command.type.lower()}-{run_id}"
    registry.check_free(s, workflow_id)
    registry.check_backlog(s, (QueueKind.WORKFLOW, command.task_queue))
    execution = Execution(
        workflow_id=workflow_id,
        run_id=run_id,
        type=command.type,
        task_queue=command.task_queue,
        is_task=False,
        input=command.input,
        start_ms=now_ms,
        first_start_ms=now_ms,
        memo=command.memo,
        search_attributes=command.search_attributes,
        identity=command.identity,
        retry_policy=None if command.retry_policy is None else command.retry_policy.normalized(),
        timeouts=command.timeouts,
        cron_schedule=command.cron_schedule,
        task_due_ms=first_due_ms,
        schedule_id=schedule_id,
    )
    _admit(s, execution, now_ms, request)
    if command.signal_name:
        _record_signal(s, execution, command.signal_name, command.signal_input, command.identity, now_ms)
    _set_off(s, execution, now_ms)
    return Started(workflow_id=workflow_id, run_id=run_id)


def _first_due_ms(cron_schedule: str, now_ms: int) -> int | None:
    """When the first run is due; None for at once."""
    if not cron_schedule:
        return None
    read_spec(cron_schedule)
    due_ms = next_due_ms(cron_schedule, now_ms)
    if due_ms is None:
        raise Invalid(f"cron_schedule {cron_schedule!r} can never fire again")
    return due_ms


def _admit(s: State, execution: Execution, now_ms: int, request: RequestKey | None = None) -> None:
    """Enter a new execution into the indexes and record that it started."""
    registry.index(s, execution)
    registry.remember(s, execution, request)
    attributes: dict[str, object] = {
        "workflowType": execution.type,
        "taskQueue": execution.task_queue,
        "input": execution.input,
    }
    if execution.identity:
        attributes["identity"] = execution.identity
    if execution.schedule_id:
        attributes["scheduleId"] = execution.schedule_id
    if execution.attempt > 1:
        attributes["attempt"] = execution.attempt
    s.record(execution, EventType.EXECUTION_STARTED, now_ms, **attributes)


def _schedule_the_task(s: State, execution: Execution, now_ms: int) -> None:
    assert execution.retry_policy is not None
    activities.schedule(
        s,
        execution,
        activity_id=f"act-{execution.run_id[:24]}",
        activity_type=execution.type,
        task_queue=execution.task_queue,
        input=execution.input,
        timeouts=execution.activity_timeouts,
        retry_policy=execution.retry_policy,
        now_ms=now_ms,
    )


def _enqueue_workflow_task(s: State, execution: Execution, now_ms: int) -> None:
    queue = (QueueKind.WORKFLOW, execution.task_queue)
    execution.task = WorkflowTask(execution=execution, type=execution.type, queue=queue)
    matching.enqueue(s, execution.task, now_ms)


# --- signals, cancel, terminate, reset ------------------------------------------------------------


def signal(s: State, execution: Execution, name: str, input: Payload | None, identity: str, now_ms: int) -> None:
    check_name("signal name", name, s.limits)
    check_open(execution)
    registry.check_history(s, execution)
    if execution.signal_count >= s.limits.signals_per_execution_max:
        raise LimitReached(
            f"{execution.workflow_id!r} got {execution.signal_count} signals, as many as it may:"
            " let it end and go on in a new run",
            limit="signals-per-execution",
        )
    _record_signal(s, execution, name, input, identity, now_ms)


def _record_signal(
    s: State, execution: Execution, name: str, input: Payload | None, identity: str, now_ms: int
) -> None:
    execution.signal_count += 1
    s.record(execution, EventType.EXECUTION_SIGNALED, now_ms, signalName=name, input=input, identity=identity)


def cancel(s: State, execution: Execution, reason: str, identity: str, now_ms: int) -> None:
    """Ask an execution to end. Nobody runs it: it is canceled at once. Closed already: nothing happens."""
    if not execution.status.is_open:
        return
    is_repeat = execution.status is Status.CANCELING
    if not is_repeat:
        s.record(execution, EventType.EXECUTION_CANCEL_REQUESTED, now_ms, reason=reason, identity=identity)
        execution.status = Status.CANCELING
        execution.cancel_reason = reason
        execution.cancel_identity = identity
        execution.cancel_due_ms = now_ms + CANCEL_MS_MAX
        s.timers.update(execution)
    task = execution.task
    if task is not None and task.lease is not None:
        s.effects.append(
            DeliverCancelRequest(
                peer=task.lease.peer,
                workflow_id=execution.workflow_id,
                run_id=execution.run_id,
                reason=execution.cancel_reason,
                identity=execution.cancel_identity,
            )
        )
        return
    if task is not None:
        matching.withdraw(s, task)  # nobody is to begin with it now
    for activity in list(execution.open_activities.values()):
        activities.request_cancel(s, activity, execution.cancel_reason, now_ms)
    close_if_canceled(s, execution, now_ms)


def close_if_canceled(s: State, execution: Execution, now_ms: int) -> None:
    """A cancel is complete once nobody runs the execution or any activity of it."""
    is_held = execution.task is not None and execution.task.lease is not None
    if execution.status is Status.CANCELING and not is_held and not execution.open_activities:
        close(s, execution, Status.CANCELED, now_ms, reason=execution.cancel_reason, identity=execution.cancel_identity)


def terminate(s: State, execution: Execution, reason: str, identity: str, now_ms: int) -> None:
    """End an execution without asking it. Closed already: nothing happens."""
    if execution.status.is_open:
        close(s, execution, Status.TERMINATED, now_ms, reason=reason, identity=identity)


def reset(s: State, source: Execution, command: ResetExecution, now_ms: int) -> Started:
    """End `source` and start a new run from its input, with its history up to the event named."""
    if not 1 <= command.event_id <= source.history_length:
        raise Invalid(f"event id {command.event_id} is not in 1..{source.history_length} of run {source.run_id}")
    registry.check_room(s, source.workflow_id)
    registry.check_backlog(s, _queue_of(source))
    newest = s.open_ids.get(source.workflow_id)
    kept = s.events(source, 0, command.event_id)
    for run in {id(run): run for run in (source, newest) if run is not None and run.status.is_open}.values():
        close(s, run, Status.TERMINATED, now_ms, reason=f"reset: {command.reason}", identity=command.identity)
    execution = _next_run(source, s.new_id(), now_ms)
    execution.signal_count = sum(event.type is EventType.EXECUTION_SIGNALED for event in kept)
    registry.index(s, execution)
    for event in kept:
        s.record(execution, event.type, event.time_ms, **event.attributes)
    s.record(
        execution,
        EventType.EXECUTION_RESET,
        now_ms,
        baseRunId=source.run_id,
        eventId=command.event_id,
        reason=command.reason,
        identity=command.identity,
    )
    _set_off(s, execution, now_ms)
    return Started(workflow_id=execution.workflow_id, run_id=execution.run_id)


def requeue_dead_letter(s: State, source: Execution, identity: str, now_ms: int) -> Started:
    if not source.is_dead_letter:
        raise Conflict(
            f"run {source.run_id} of {source.workflow_id!r} is not a dead letter: it is {source.status.name}"
        )
    registry.check_free(s, source.workflow_id)
    registry.check_backlog(s, _queue_of(source))
    registry.calm(s, source)
    execution = _next_run(source, s.new_id(), now_ms)
    execution.identity = identity
    _admit(s, execution, now_ms)
    _set_off(s, execution, now_ms)
    return Started(workflow_id=execution.workflow_id, run_id=execution.run_id)


def _queue_of(execution: Execution) -> tuple[QueueKind, str]:
    """Where its first work waits."""
    return (QueueKind.ACTIVITY if execution.is_task else QueueKind.WORKFLOW, execution.task_queue)


def _next_run(source: Execution, run_id: str, now_ms: int) -> Execution:
    """A fresh run of the same id, type, input and settings; in no index yet."""
    return Execution(
        workflow_id=source.workflow_id,
        run_id=run_id,
        type=source.type,
        task_queue=source.task_queue,
        is_task=source.is_task,
        input=source.input,
        start_ms=now_ms,
        first_start_ms=now_ms,
        memo=source.memo,
        search_attributes=source.search_attributes,
        retry_policy=source.retry_policy,
        timeouts=source.timeouts,
        activity_timeouts=source.activity_timeouts,
        cron_schedule=source.cron_schedule,
        schedule_id=source.schedule_id,
    )


def _set_off(s: State, execution: Execution, now_ms: int) -> None:
    """Send the first work of a run out: now, or when it is due."""
    if execution.is_task:
        _schedule_the_task(s, execution, now_ms)
    elif execution.task_due_ms is None:
        _enqueue_workflow_task(s, execution, now_ms)
    s.timers.update(execution)


def check_open(execution: Execution) -> None:
    if not execution.status.is_open:
        raise Conflict(f"workflow not running: status={execution.status.long_name}")


# --- ends ------------------------------------------------------------------------------------------


def push_result(s: State, execution: Execution, call: ActivityCall) -> None:
    task = execution.task
    if task is not None and task.lease is not None:
        s.effects.append(
            DeliverActivityResult(
                peer=task.lease.peer, activity_id=call.activity_id, result=call.result, failure=call.failure
            )
        )


def apply(s: State, outcome: Outcome | None, now_ms: int) -> None:
    """An activity closed: end the one-shot task that it was, or tell the workflow that asked for it."""
    if outcome is None:
        return
    execution = outcome.activity.execution
    if not execution.status.is_open:  # several of its activities closed at once, and the first one ended it
        return
    if not execution.is_task:
        call, task = outcome.activity.call, execution.task
        assert call is not None
        assert task is not None
        call.is_closed, call.result, call.failure = True, outcome.result, outcome.failure
        if call.position < task.calls_made:  # the present holder has asked for it
            push_result(s, execution, call)
        close_if_canceled(s, execution, now_ms)
    elif outcome.status is Status.COMPLETED:
        close(s, execution, Status.COMPLETED, now_ms, result=outcome.result)
    elif outcome.status is Status.CANCELED:
        close(s, execution, Status.CANCELED, now_ms, reason=execution.cancel_reason, identity=execution.cancel_identity)
    else:
        assert outcome.failure is not None
        execution.is_dead_letter = True
        close(s, execution, outcome.status, now_ms, failure=outcome.failure)


def close(
    s: State,
    execution: Execution,
    status: Status,
    now_ms: int,
    *,
    result: Payload | None = None,
    failure: bytes | None = None,
    reason: str = "",
    identity: str = "",
) -> None:
    """End an execution: record it, let go of everything it holds, and tell everybody who waits.

    `reason` and `identity` say why and by whom it was canceled or terminated.
    """
    assert execution.status.is_open
    execution.status = status
    execution.close_ms = now_ms
    attributes: dict[str, object] = {}
    if status is Status.COMPLETED:
        execution.result = attributes["result"] = result
    elif status in (Status.CANCELED, Status.TERMINATED):
        execution.close_reason = reason
        attributes.update(reason=reason, identity=identity)
    if failure is not None:
        execution.failure = Payload(failure)
        attributes["failure"] = execution.failure
    s.record(execution, _CLOSING_EVENT[status], now_ms, **attributes)
    s.timers.remove(execution)
    execution.calls.clear()
    # Those that wait go first, or a slot that another frees would be given to them.
    for activity in sorted(execution.open_activities.values(), key=lambda activity: activity.lease is not None):
        activities.abandon(s, activity, f"the execution is {status.name}", now_ms)
    task, execution.task = execution.task, None
    if task is not None:
        if task.lease is None:
            matching.withdraw(s, task)
        else:
            if status in (Status.TERMINATED, Status.TIMED_OUT):
                _tell_holder(s, execution, task, status)
            matching.finish(s, task, now_ms)
    for waiter, peer_key in execution.waiters.items():
        s.effects.append(closed_effect(execution, waiter))
        del s.peers[peer_key].waiting[waiter]
    execution.waiters.clear()
    if execution.schedule_id:
        registry.leave_schedule(s, execution)
    if status in (Status.COMPLETED, Status.FAILED, Status.TIMED_OUT) and execution.cron_schedule:
        _run_again(s, execution, next_due_ms(execution.cron_schedule, now_ms), attempt=1, now_ms=now_ms)
    registry.keep_closed(s, execution)


def closed_effect(execution: Execution, waiter: Waiter) -> Closed:
    return Closed(
        waiter=waiter,
        workflow_id=execution.workflow_id,
        run_id=execution.run_id,
        status=execution.status,
        result=execution.result,
        failure=execution.failure,
        reason=execution.close_reason,
    )


def _tell_holder(s: State, execution: Execution, task: WorkflowTask, status: Status) -> None:
    """The worker still runs a workflow that has just been ended over its head."""
    assert task.lease is not None
    s.effects.append(
        DeliverCancelRequest(
            peer=task.lease.peer,
            workflow_id=execution.workflow_id,
            run_id=execution.run_id,
            reason=f"the execution is {status.name}",
            identity="server",
        )
    )


def fail(s: State, execution: Execution, failure: bytes, now_ms: int) -> None:
    """A workflow failed: close it, and start another run when its retry policy says so."""
    policy = execution.retry_policy
    failure = storable_failure(failure)
    close(s, execution, Status.FAILED, now_ms, failure=failure)
    if policy is None or execution.cron_schedule:
        return
    read = decode_failure(failure)
    if read.non_retryable or read.code in policy.non_retryable_error_types:
        return
    if policy.allows_another(execution.attempt):
        due_ms = now_ms + policy.interval_ms(execution.attempt)
        _run_again(s, execution, due_ms, attempt=execution.attempt + 1, now_ms=now_ms)


def _run_again(s: State, source: Execution, due_ms: int | None, *, attempt: int, now_ms: int) -> None:
    """Start the next run of a chain at `due_ms`, unless the execution timeout of the whole chain comes first."""
    whole_ms = source.timeouts.execution_ms
    if due_ms is None or (whole_ms and due_ms >= source.first_start_ms + whole_ms):
        return
    execution = _next_run(source, s.new_id(), now_ms)
    execution.attempt = attempt
    execution.task_due_ms = due_ms
    execution.first_start_ms = source.first_start_ms
    _admit(s, execution, now_ms)
    _set_off(s, execution, now_ms)


# --- time and loss -----------------------------------------------------------------------------------


def fire(s: State, execution: Execution, now_ms: int) -> None:
    """An execution's deadline has come: it timed out, a cancel was not heard, or its first work is due."""
    if execution.cancel_is_overdue(now_ms):
        close(s, execution, Status.CANCELED, now_ms, reason="the worker did not end it in time", identity="server")
        return
    times_out_ms = execution.times_out_ms()
    if times_out_ms is not None and times_out_ms <= now_ms:
        run_ms, whole_ms = execution.timeouts.run_ms, execution.timeouts.execution_ms
        is_run = bool(run_ms) and (not whole_ms or times_out_ms < execution.first_start_ms + whole_ms)
        text = f"run timeout of {run_ms} ms passed" if is_run else f"execution timeout of {whole_ms} ms passed"
        failure = encode_failure(Failure(message=text, code=TIMEOUT_ERROR, non_retryable=True))
        close(s, execution, Status.TIMED_OUT, now_ms, failure=failure)
        return
    _enqueue_workflow_task(s, execution, now_ms)
    s.timers.update(execution)


def wait_for_close(s: State, execution: Execution, waiter: Waiter, peer_key: PeerKey) -> bool:
    """Tell `waiter` when it closes; True when it is closed already and the effect is out."""
    if not execution.status.is_open:
        s.effects.append(closed_effect(execution, waiter))
        return True
    peer = s.peers.get(peer_key)
    if peer is not None and waiter in peer.waiting:
        raise Conflict(f"{waiter!r} waits for {peer.waiting[waiter].workflow_id!r} already; a call waits for one thing")
    if peer is not None and len(peer.waiting) >= s.limits.waits_per_peer_max:
        raise LimitReached(
            f"this connection waits for {len(peer.waiting)} executions already, as many as it may",
            limit="waits-per-peer",
        )
    execution.waiters[waiter] = peer_key
    s.peer(peer_key).waiting[waiter] = execution
    return False


# --- words -------------------------------------------------------------------------------------------


def rfc3339(time_ms: int) -> str:
    """UTC with milliseconds only where there are some, as people write a slot's name."""
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + (f".{time_ms % 1000:03d}Z" if time_ms % 1000 else "Z")
