"""The life of an execution: a one-shot task or a workflow, from start to one of its ends.

    RUNNING --cancel, while a worker runs it--> CANCELING
    RUNNING, CANCELING --> COMPLETED | FAILED | CANCELED | TERMINATED | TIMED_OUT | CONTINUED_AS_NEW

The first end wins and never changes. A workflow that fails with attempts left in its retry policy,
or that has a cron schedule, ends and a new run of the same id starts when it is due; one that continues
as new ends and the next run starts at once. A cancel ends a workflow

    | that no worker began       | at once                                                             |
    | that a holder has          | when its worker ends it, or over its head after a minute            |
    | that a replaying worker has| when its worker ends it, which may compensate first; or by a timeout |
"""

from __future__ import annotations

from datetime import UTC, datetime

from zapserver.engine import activities, matching, registry, updates, wakeups, workflow_timers
from zapserver.engine.activities import Outcome
from zapserver.engine.commands import (
    ContinueAsNewCommand,
    IdConflict,
    Payload,
    PeerKey,
    QueueKind,
    Started,
    StartTask,
    StartWorkflow,
    Status,
    UpdateExecution,
    Waiter,
    WorkflowCommand,
    WorkflowCommandKind,
)
from zapserver.engine.effects import Closed, DeliverActivityResult, DeliverCancelRequest
from zapserver.engine.errors import Conflict, Invalid, LimitReached, NotFound
from zapserver.engine.records import (
    TASK_TIMEOUTS,
    ActivityCall,
    EventType,
    Execution,
    RequestKey,
    WorkflowTask,
    task_activity_id,
)
from zapserver.engine.retry import INTERVAL_MS_MAX, TASK_RETRY
from zapserver.engine.specs import next_due_ms, read_spec
from zapserver.engine.state import State
from zapserver.engine.validation import (
    check_headers,
    check_name,
    check_request_id,
    check_search_attributes,
    check_timeouts,
    storable_failure,
)
from zapwire.failure import TIMEOUT_ERROR, Failure, decode_failure, encode_failure

CANCEL_MS_MAX = 60_000
"""A workflow that has not ended this long after it was asked to is canceled over its head, as Go's
server does it: Go's workers have no handler for the request."""

_CLOSING_EVENT = {
    Status.COMPLETED: EventType.EXECUTION_COMPLETED,
    Status.FAILED: EventType.EXECUTION_FAILED,
    Status.CANCELED: EventType.EXECUTION_CANCELED,
    Status.TERMINATED: EventType.EXECUTION_TERMINATED,
    Status.TIMED_OUT: EventType.EXECUTION_TIMED_OUT,
    Status.CONTINUED_AS_NEW: EventType.EXECUTION_CONTINUED_AS_NEW,
}

_CRON_GOES_ON = (Status.COMPLETED, Status.FAILED, Status.TIMED_OUT)


# --- start ---------------------------------------------------------------------------------------


def start_task(s: State, command: StartTask, now_ms: int, *, schedule_id: str = "") -> Started:
    check_name("task type", command.type, s.limits)
    check_name("task queue", command.task_queue, s.limits)
    check_request_id(command.request_id, s.limits)
    check_headers(command.headers, s.limits)
    if command.timeouts is not None:
        check_timeouts(command.timeouts)
    request = registry.request_key("task", command.type, schedule_id, command.request_id)
    if (known := registry.seen(s, request)) is not None:
        return known
    run_id = s.new_id()
    workflow_id = command.workflow_id or f"{command.type}-{run_id[:24]}"
    present = registry.claim(s, workflow_id, command.id_reuse, command.id_conflict)
    if present is not None and command.id_conflict is IdConflict.USE_EXISTING:
        return _join(s, present, request)
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
        headers=command.headers or None,
        identity=command.identity,
        retry_policy=TASK_RETRY if command.retry_policy is None else command.retry_policy.normalized(),
        activity_timeouts=command.timeouts or TASK_TIMEOUTS,
        schedule_id=schedule_id,
    )
    _replace(s, present, command.identity, now_ms)
    admit(s, execution, now_ms, request)
    _schedule_the_task(s, execution, now_ms)
    return Started(workflow_id=workflow_id, run_id=run_id)


def start_workflow(s: State, command: StartWorkflow, now_ms: int, *, schedule_id: str = "") -> Started:
    if not command.type:
        raise Invalid("workflow type required")
    check_name("workflow type", command.type, s.limits)
    check_name("task queue", command.task_queue, s.limits)
    check_request_id(command.request_id, s.limits)
    check_timeouts(command.timeouts)
    check_search_attributes(command.search_attributes)
    check_headers(command.headers, s.limits)
    if command.signal_name:
        check_name("signal name", command.signal_name, s.limits)
    if command.update is not None:
        updates.check(s, command.update)
    task_due_ms = first_due_ms(command.cron_schedule, now_ms)
    if command.workflow_id:
        request = registry.request_key("workflow", command.workflow_id, schedule_id, command.request_id)
    else:
        request = registry.request_key("workflow type", command.type, schedule_id, command.request_id)
    if (known := registry.seen(s, request)) is not None:
        if command.update is not None:
            _update(s, s.execution(known.workflow_id, known.run_id), command.update, now_ms)
        return known
    latest = s.open_ids.get(command.workflow_id) if command.signal_name else None
    if latest is not None and command.id_conflict is not IdConflict.TERMINATE_EXISTING:
        signal(s, latest, command.signal_name, command.signal_input, command.identity, now_ms)
        return _join(s, latest, request)
    run_id = command.run_id or s.new_id()
    registry.check_run_id(s, run_id)
    workflow_id = command.workflow_id or f"{command.type.lower()}-{run_id[:24]}"
    if command.run_id and not command.workflow_id and s.latest(workflow_id) is not None:
        workflow_id = f"{command.type.lower()}-{run_id}"
    present = registry.claim(s, workflow_id, command.id_reuse, command.id_conflict)
    if present is not None and command.id_conflict is IdConflict.USE_EXISTING:
        if command.update is not None:
            _update(s, present, command.update, now_ms)
        return _join(s, present, request)
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
        headers=command.headers or None,
        identity=command.identity,
        retry_policy=None if command.retry_policy is None else command.retry_policy.normalized(),
        timeouts=command.timeouts,
        cron_schedule=command.cron_schedule,
        task_due_ms=task_due_ms,
        schedule_id=schedule_id,
    )
    _replace(s, present, command.identity, now_ms)
    admit(s, execution, now_ms, request)
    if command.signal_name:
        record_signal(s, execution, command.signal_name, command.signal_input, command.identity, now_ms)
    if command.update is not None:
        updates.ask(s, execution, command.update, now_ms)
    set_off(s, execution, now_ms, starter=command.eager_subscription)
    return Started(workflow_id=workflow_id, run_id=run_id)


def _update(s: State, execution: Execution, update: UpdateExecution, now_ms: int) -> None:
    """An update whose start found what it wants."""
    updates.ask(s, execution, update, now_ms)
    wakeups.wake(s, execution, now_ms)


def _join(s: State, present: Execution, request: RequestKey | None) -> Started:
    """A start that found the execution that it wants."""
    registry.remember(s, present, request)
    s.touch(present)
    return Started(workflow_id=present.workflow_id, run_id=present.run_id, is_new=False)


def _replace(s: State, present: Execution | None, identity: str, now_ms: int) -> None:
    """A start that is to end what has its id."""
    if present is not None:
        close(s, present, Status.TERMINATED, now_ms, reason="another start took its id", identity=identity)


def first_due_ms(cron_schedule: str, now_ms: int) -> int | None:
    """When the first run is due; None for at once."""
    if not cron_schedule:
        return None
    read_spec(cron_schedule)
    due_ms = next_due_ms(cron_schedule, now_ms)
    if due_ms is None:
        raise Invalid(f"cron_schedule {cron_schedule!r} can never fire again")
    return due_ms


def admit(
    s: State, execution: Execution, now_ms: int, request: RequestKey | None = None, *, continued_run_id: str = ""
) -> None:
    """Enter a new execution into the indexes and record that it started."""
    registry.index(s, execution)
    registry.remember(s, execution, request)
    attributes: dict[str, object] = {
        "workflowType": execution.type,
        "taskQueue": execution.task_queue,
        "input": execution.input,
    }
    if execution.headers:
        attributes["headers"] = execution.headers
    if execution.identity:
        attributes["identity"] = execution.identity
    if execution.schedule_id:
        attributes["scheduleId"] = execution.schedule_id
    if execution.attempt > 1:
        attributes["attempt"] = execution.attempt
    if execution.parent is not None:
        attributes["parentWorkflowId"] = execution.parent.workflow_id
        attributes["parentRunId"] = execution.parent.run_id
    if continued_run_id:
        attributes["continuedRunId"] = continued_run_id
    event = s.record(execution, EventType.EXECUTION_STARTED, now_ms, **attributes)
    execution.news_event_id = event.event_id


def _schedule_the_task(s: State, execution: Execution, now_ms: int) -> None:
    assert execution.retry_policy is not None
    activities.schedule(
        s,
        execution,
        activity_id=task_activity_id(execution.run_id),
        activity_type=execution.type,
        task_queue=execution.task_queue,
        input=execution.input,
        timeouts=execution.activity_timeouts,
        retry_policy=execution.retry_policy,
        now_ms=now_ms,
    )


# --- signals, cancel, terminate -------------------------------------------------------------------


def signal(
    s: State,
    execution: Execution,
    name: str,
    input: Payload | None,
    identity: str,
    now_ms: int,
    *,
    request_id: str = "",
) -> None:
    """Record a signal. A replaying worker gets it with its next task; one of the Go kind has no way to."""
    check_name("signal name", name, s.limits)
    check_request_id(request_id, s.limits)
    if request_id and request_id in execution.signal_ids:
        return
    check_open(execution)
    registry.check_history(s, execution)
    if execution.signal_count >= s.limits.signals_per_execution_max:
        raise LimitReached(
            f"{execution.workflow_id!r} got {execution.signal_count} signals, as many as it may:"
            " let it end and go on in a new run",
            limit="signals-per-execution",
        )
    if request_id:
        execution.signal_ids[request_id] = None
        if len(execution.signal_ids) > s.limits.signal_ids_max:
            del execution.signal_ids[next(iter(execution.signal_ids))]
    record_signal(s, execution, name, input, identity, now_ms)


def record_signal(s: State, execution: Execution, name: str, input: Payload | None, identity: str, now_ms: int) -> None:
    """One that may be recorded: nothing is checked any more."""
    execution.signal_count += 1
    attributes = {"signalName": name, "input": input, "identity": identity}
    event = s.record(execution, EventType.EXECUTION_SIGNALED, now_ms, **attributes)
    wakeups.news(s, execution, event.event_id, now_ms)


def cancel(s: State, execution: Execution, reason: str, identity: str, now_ms: int) -> None:
    """Ask an execution to end. Nobody runs it: it is canceled at once. Closed already: nothing happens."""
    if not execution.status.is_open:
        return
    is_repeat = execution.status is Status.CANCELING
    is_replayed = execution.is_with_replaying_worker
    if not is_repeat:
        event = s.record(execution, EventType.EXECUTION_CANCEL_REQUESTED, now_ms, reason=reason, identity=identity)
        execution.status = Status.CANCELING
        execution.cancel_reason = reason
        execution.cancel_identity = identity
        if not is_replayed:
            execution.cancel_due_ms = now_ms + CANCEL_MS_MAX
        s.timers.update(execution)
        wakeups.news(s, execution, event.event_id, now_ms)
    if is_replayed:
        return
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
        execution.task_retry_ms = None
        s.timers.update(execution)
    for activity in list(execution.open_activities.values()):
        activities.request_cancel(s, activity, execution.cancel_reason, now_ms)
    close_if_canceled(s, execution, now_ms)


def close_if_canceled(s: State, execution: Execution, now_ms: int) -> None:
    """A cancel is complete once nobody runs the execution or any activity of it."""
    is_held = execution.task is not None and execution.task.lease is not None
    if execution.status is Status.CANCELING and not is_held and not execution.open_activities:
        assert not execution.is_replayed
        close(s, execution, Status.CANCELED, now_ms, reason=execution.cancel_reason, identity=execution.cancel_identity)


def terminate(s: State, execution: Execution, reason: str, identity: str, now_ms: int) -> None:
    """End an execution without asking it. Closed already: nothing happens."""
    if execution.status.is_open:
        close(s, execution, Status.TERMINATED, now_ms, reason=reason, identity=identity)


def requeue_dead_letter(s: State, source: Execution, identity: str, now_ms: int) -> Started:
    if not source.is_dead_letter:
        raise Conflict(
            f"run {source.run_id} of {source.workflow_id!r} is not a dead letter: it is {source.status.name}"
        )
    registry.check_free(s, source.workflow_id)
    registry.check_backlog(s, queue_of(source))
    registry.calm(s, source)
    execution = next_run(source, s.new_id(), now_ms)
    execution.identity = identity
    admit(s, execution, now_ms)
    set_off(s, execution, now_ms)
    return Started(workflow_id=execution.workflow_id, run_id=execution.run_id)


def queue_of(execution: Execution) -> tuple[QueueKind, str]:
    """Where its first work waits."""
    return (QueueKind.ACTIVITY if execution.is_task else QueueKind.WORKFLOW, execution.task_queue)


def next_run(source: Execution, run_id: str, now_ms: int) -> Execution:
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
        headers=source.headers,
        retry_policy=source.retry_policy,
        timeouts=source.timeouts,
        activity_timeouts=source.activity_timeouts,
        cron_schedule=source.cron_schedule,
        schedule_id=source.schedule_id,
        parent=source.parent,
        signal_ids=dict(source.signal_ids),
    )


def set_off(s: State, execution: Execution, now_ms: int, *, starter: str = "") -> None:
    """Send the first work of a run out: now, or when it is due. A workflow may go to the subscription `starter`."""
    if execution.is_task:
        _schedule_the_task(s, execution, now_ms)
    elif execution.task_due_ms is None:
        wakeups.begin(s, execution, now_ms, starter=starter)
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
    if outcome.activity.command_id:
        wakeups.news(s, execution, execution.history_length, now_ms)
    elif not execution.is_task:
        call, task = outcome.activity.call, execution.task
        assert call is not None
        assert task is not None
        call.is_closed, call.result, call.failure = True, outcome.result, outcome.failure
        s.touch(execution)
        if call.position < task.calls_made:  # the present holder has asked for it
            push_result(s, execution, call)
        close_if_canceled(s, execution, now_ms)
    elif outcome.status is Status.COMPLETED:
        close(s, execution, Status.COMPLETED, now_ms, result=outcome.result)
    elif outcome.status is Status.CANCELED:
        close(s, execution, Status.CANCELED, now_ms, reason=execution.cancel_reason, identity=execution.cancel_identity)
    else:
        assert outcome.failure is not None
        execution.is_dead_letter = execution.status is not Status.CANCELING  # nobody is to run it again then
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
    successor: Execution | None = None,
) -> None:
    """End an execution: record it, let go of everything it holds, and tell everybody who waits.

    `reason` and `identity` say why and by whom it was canceled or terminated. `successor` is the next run of its
    chain, in no index yet; for a cron schedule it is made here.
    """
    assert execution.status.is_open
    if successor is None and status in _CRON_GOES_ON and execution.cron_schedule:
        due_ms = next_due_ms(execution.cron_schedule, now_ms)
        successor = _later_run(s, execution, due_ms, attempt=1, now_ms=now_ms)
    if successor is not None:
        execution.new_run_id = successor.run_id
    execution.status = status
    execution.close_ms = now_ms
    attributes: dict[str, object] = {}
    if status is Status.COMPLETED:
        execution.result = attributes["result"] = result
    elif status in (Status.CANCELED, Status.TERMINATED):
        execution.close_reason = reason
        attributes.update(reason=reason, identity=identity)
    elif status is Status.CONTINUED_AS_NEW:
        attributes["newRunId"] = execution.new_run_id
    if failure is not None:
        execution.failure = Payload(failure)
        attributes["failure"] = execution.failure
    s.record(execution, _CLOSING_EVENT[status], now_ms, **attributes)
    s.timers.remove(execution)
    execution.task_retry_ms = execution.cached_by = None
    workflow_timers.drop_all(s, execution)
    updates.execution_closed(s, execution)
    if execution.children or (execution.parent is not None and not execution.new_run_id):
        s.ended.append(execution)
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
    execution.calls.clear()  # not before: they say in which line the task waits
    _tell_waiters(s, execution, successor)
    if execution.schedule_id:
        registry.leave_schedule(s, execution)
    if successor is not None:
        admit(s, successor, now_ms, continued_run_id=execution.run_id)
        if status is Status.CONTINUED_AS_NEW:
            _carry_over(s, execution, successor, now_ms)
        set_off(s, successor, now_ms)
    registry.keep_closed(s, execution)


def move_followers(s: State, execution: Execution, successor: Execution) -> None:
    """Those who wait for the end of a whole chain wait for its next run now."""
    for waiter in execution.followers:
        peer_key = successor.waiters[waiter] = execution.waiters.pop(waiter)
        s.peers[peer_key].waiting[waiter] = successor
    successor.followers, execution.followers = execution.followers, {}


def _tell_waiters(s: State, execution: Execution, successor: Execution | None) -> None:
    if successor is not None:
        move_followers(s, execution, successor)
    for waiter, peer_key in execution.waiters.items():
        s.effects.append(closed_effect(execution, waiter))
        del s.peers[peer_key].waiting[waiter]
    execution.waiters.clear()
    execution.followers.clear()


def _carry_over(s: State, source: Execution, successor: Execution, now_ms: int) -> None:
    """What came while the worker decided to continue as new: it was acknowledged, and the next run has to see it."""
    for event in s.events(source, source.seen_event_id):
        if event.type is EventType.EXECUTION_SIGNALED:
            successor.signal_count += 1
            s.record(successor, event.type, now_ms, **event.attributes)
        elif event.type is EventType.EXECUTION_CANCEL_REQUESTED:
            s.record(successor, event.type, now_ms, **event.attributes)
            successor.status = Status.CANCELING
            successor.cancel_reason, successor.cancel_identity = source.cancel_reason, source.cancel_identity
    successor.news_event_id = successor.history_length


def continue_as_new(s: State, execution: Execution, command: ContinueAsNewCommand, now_ms: int) -> None:
    """End the run and begin the next one with what the worker says. What came in unseen goes along."""
    successor = next_run(execution, s.new_id(), now_ms)
    successor.first_start_ms = execution.first_start_ms
    successor.input = command.input
    successor.type = command.type or execution.type
    successor.task_queue = command.task_queue or execution.task_queue
    if command.timeouts is not None:
        successor.timeouts = command.timeouts
    if command.memo is not None:
        successor.memo = command.memo
    if command.search_attributes is not None:
        successor.search_attributes = command.search_attributes
    successor.is_replayed = True  # only a replaying worker knows what to do with what was carried over
    close(s, execution, Status.CONTINUED_AS_NEW, now_ms, successor=successor)


def closed_effect(execution: Execution, waiter: Waiter) -> Closed:
    return Closed(
        waiter=waiter,
        workflow_id=execution.workflow_id,
        run_id=execution.run_id,
        status=execution.status,
        result=execution.result,
        failure=execution.failure,
        reason=execution.close_reason,
        new_run_id=execution.new_run_id,
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


def end(s: State, execution: Execution, command: WorkflowCommand, now_ms: int) -> None:
    """Close a workflow as a command of Go's kinds says."""
    match command.kind:
        case WorkflowCommandKind.COMPLETE:
            complete(s, execution, command.payload, now_ms)
        case WorkflowCommandKind.FAIL:
            fail(s, execution, command.payload, now_ms)
        case WorkflowCommandKind.CANCEL:
            end_canceled(s, execution, command.payload, now_ms)


def complete(s: State, execution: Execution, result: Payload | None, now_ms: int) -> None:
    close(s, execution, Status.COMPLETED, now_ms, result=result)


def end_canceled(s: State, execution: Execution, failure: Payload | None, now_ms: int) -> None:
    """A workflow ended because it was asked to, for the reason that its worker gives or else that of the request."""
    reason = (decode_failure(failure).message if failure is not None else "") or execution.cancel_reason
    close(s, execution, Status.CANCELED, now_ms, reason=reason, identity=execution.cancel_identity)


def fail(s: State, execution: Execution, failure: Payload | None, now_ms: int) -> None:
    """A workflow failed: close it, and start another run when its retry policy says so."""
    stored = encode_failure(Failure()) if failure is None else storable_failure(bytes(failure))
    successor = _retry(s, execution, stored, now_ms)
    close(s, execution, Status.FAILED, now_ms, failure=stored, successor=successor)


def _retry(s: State, execution: Execution, failure: bytes, now_ms: int) -> Execution | None:
    policy = execution.retry_policy
    if policy is None or execution.cron_schedule:
        return None
    read = decode_failure(failure)
    if read.non_retryable or read.code in policy.non_retryable_error_types:
        return None
    if not policy.allows_another(execution.attempt):
        return None
    wait_ms = policy.interval_ms(execution.attempt)
    if read.next_retry_ms is not None:
        wait_ms = max(0, min(read.next_retry_ms, INTERVAL_MS_MAX))
    return _later_run(s, execution, now_ms + wait_ms, attempt=execution.attempt + 1, now_ms=now_ms)


def _later_run(s: State, source: Execution, due_ms: int | None, *, attempt: int, now_ms: int) -> Execution | None:
    """The next run of a chain, due at `due_ms`, unless the execution timeout of the whole chain comes first."""
    whole_ms = source.timeouts.execution_ms
    if due_ms is None or (whole_ms and due_ms >= source.first_start_ms + whole_ms):
        return None
    execution = next_run(source, s.new_id(), now_ms)
    execution.attempt = attempt
    execution.task_due_ms = due_ms
    execution.first_start_ms = source.first_start_ms
    return execution


# --- time and loss -----------------------------------------------------------------------------------


def fire(s: State, execution: Execution, now_ms: int) -> bool:
    """An execution's deadline has come: whether that ended it. It timed out, or a cancel was not heard."""
    if execution.cancel_is_overdue(now_ms):
        close(s, execution, Status.CANCELED, now_ms, reason="the worker did not end it in time", identity="server")
        return True
    times_out_ms = execution.times_out_ms()
    if times_out_ms is not None and times_out_ms <= now_ms:
        run_ms, whole_ms = execution.timeouts.run_ms, execution.timeouts.execution_ms
        is_run = bool(run_ms) and (not whole_ms or times_out_ms < execution.first_start_ms + whole_ms)
        text = f"run timeout of {run_ms} ms passed" if is_run else f"execution timeout of {whole_ms} ms passed"
        failure = encode_failure(Failure(message=text, code=TIMEOUT_ERROR, non_retryable=True))
        close(s, execution, Status.TIMED_OUT, now_ms, failure=failure)
        return True
    return False


def wait_for_close(s: State, execution: Execution, waiter: Waiter, peer_key: PeerKey, *, follow: bool = False) -> bool:
    """Tell `waiter` when it closes, or the last run that follows it; True when that is closed and the effect is out."""
    while follow and not execution.status.is_open and execution.new_run_id:
        try:
            execution = s.execution(execution.workflow_id, execution.new_run_id)
        except NotFound:  # forgotten: the end of the last run that is known has the id of the next
            break
    if not execution.status.is_open:
        s.effects.append(closed_effect(execution, waiter))
        return True
    registry.check_wait(s, peer_key, waiter)
    execution.waiters[waiter] = peer_key
    if follow:
        execution.followers[waiter] = None
    s.peer(peer_key).waiting[waiter] = execution
    return False


# --- words -------------------------------------------------------------------------------------------


def rfc3339(time_ms: int) -> str:
    """UTC with milliseconds only where there are some, as people write a slot's name."""
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + (f".{time_ms % 1000:03d}Z" if time_ms % 1000 else "Z")
