"""What a replaying worker decides: the commands with which it answers a workflow task.

An answer is checked as a whole before any of it is applied. Its commands become events, in their order, behind
a WORKFLOW_TASK_COMPLETED that says what the worker had seen; then the worker gets what came in the meantime.

    | command             | event                                           | later                                    |
    |---------------------|-------------------------------------------------|------------------------------------------|
    | schedule activity   | ACTIVITY_TASK_SCHEDULED                         | ACTIVITY_TASK_COMPLETED, _FAILED...      |
    | cancel activity     | ACTIVITY_TASK_CANCEL_REQUESTED, if it is open   | as above                                 |
    | start timer         | TIMER_STARTED                                   | TIMER_FIRED                              |
    | cancel timer        | TIMER_CANCELED, if it runs                      | -                                        |
    | start child         | CHILD_WORKFLOW_STARTED or _START_FAILED         | CHILD_WORKFLOW_COMPLETED, _FAILED...     |
    | cancel external     | EXTERNAL_WORKFLOW_CANCEL_REQUESTED or _FAILED   | -                                        |
    | signal external     | EXTERNAL_WORKFLOW_SIGNALED or _SIGNAL_FAILED    | -                                        |
    | record marker       | MARKER_RECORDED                                 | -                                        |
    | upsert              | WORKFLOW_EXECUTION_UPSERTED                     | -                                        |
    | accept update       | WORKFLOW_EXECUTION_UPDATE_ACCEPTED              | -                                        |
    | reject update       | none, and where there was nothing else, no      | -                                        |
    |                     | WORKFLOW_TASK_COMPLETED either                  |                                          |
    | complete update     | WORKFLOW_EXECUTION_UPDATE_COMPLETED             | -                                        |
    | complete, fail, cancel, continue as new | the event of that end       | only as the last command                 |
"""

from __future__ import annotations

from collections import Counter

from zapserver.engine import activities, children, executions, matching, updates, wakeups, workflow_timers
from zapserver.engine import commands as c
from zapserver.engine.commands import Status, WorkflowCommand, WorkflowCommandKind
from zapserver.engine.errors import EngineError, Invalid, LimitReached
from zapserver.engine.records import CachedRun, EventType, Execution, Lease, WorkflowTask
from zapserver.engine.retry import RetryPolicy
from zapserver.engine.state import State
from zapserver.engine.validation import (
    TIMEOUT_MS_MAX,
    check_name,
    check_search_attributes,
    check_timeouts,
    storable_failure,
)
from zapwire.failure import Failure, encode_failure

ACTIVITY_RETRY = RetryPolicy().normalized()
"""An activity that names no policy is tried until it succeeds or its timeouts end it."""

HISTORY_FULL_ERROR = activities.HISTORY_FULL_ERROR
EVENTS_PER_COMMAND = 2
"""An activity that a worker waits for is scheduled and started."""

COMMAND_EVENTS = frozenset(
    {
        EventType.ACTIVITY_SCHEDULED,
        EventType.ACTIVITY_CANCEL_REQUESTED,
        EventType.TIMER_STARTED,
        EventType.TIMER_CANCELED,
        EventType.CHILD_STARTED,
        EventType.CHILD_START_FAILED,
        EventType.EXTERNAL_CANCEL_REQUESTED,
        EventType.EXTERNAL_CANCEL_FAILED,
        EventType.EXTERNAL_SIGNALED,
        EventType.EXTERNAL_SIGNAL_FAILED,
        EventType.MARKER_RECORDED,
        EventType.UPSERTED,
        EventType.UPDATE_ACCEPTED,
        EventType.UPDATE_COMPLETED,
    }
)
"""The events that commands become."""


def complete(s: State, task: WorkflowTask, commands: tuple[c.TaskCommand, ...], now_ms: int) -> None:
    """Check and apply the answer to `task`, which its holder has a lease of."""
    execution, lease = task.execution, task.lease
    assert lease is not None
    check(s, execution, commands, now_ms)
    wakeups.succeeded(execution)
    if not _is_without_trace(task, commands):
        _record_answer(s, task, lease, now_ms)
        if _would_overflow(s, execution, commands):
            _close_as_full(s, execution, now_ms)
            return
    for command in commands:
        apply(s, execution, command, now_ms)
    if not execution.status.is_open:
        return
    updates.reject_unanswered(s, execution)
    execution.cached_by = CachedRun(lease.peer, lease.subscription_id, execution.seen_event_id)
    execution.task = None
    subscription = s.release(task)
    s.touch(execution)
    s.timers.update(execution)
    if subscription is not None:
        s.queues[subscription.queue].credit(subscription)
    wakeups.wake(s, execution, now_ms)  # before the line: this worker has the run at hand
    if subscription is not None:
        matching.serve(s, subscription, now_ms)


def _record_answer(s: State, task: WorkflowTask, lease: Lease, now_ms: int) -> None:
    execution = task.execution
    execution.is_replayed = True
    execution.seen_event_id = task.last_event_id
    s.record(
        execution,
        EventType.WORKFLOW_TASK_COMPLETED,
        now_ms,
        seenEventId=task.last_event_id,
        attempt=task.attempt,
        **lease.holder,
    )


def _close_as_full(s: State, execution: Execution, now_ms: int) -> None:
    text = (
        f"the history has {execution.history_length} events and {execution.history_bytes} bytes, and may grow no"
        " more: continue as new before that"
    )
    failure = encode_failure(Failure(message=text, code=HISTORY_FULL_ERROR, non_retryable=True))
    executions.close(s, execution, Status.FAILED, now_ms, failure=failure)


def _is_without_trace(task: WorkflowTask, commands: tuple[c.TaskCommand, ...]) -> bool:
    """Whether the answer only rejects updates, and the task had nothing else: the history tells of neither, and the run
    is where it was."""
    only_rejects = all(isinstance(command, c.RejectUpdateCommand) for command in commands)
    return bool(commands) and only_rejects and not task.has_news


def _would_overflow(s: State, execution: Execution, commands: tuple[c.TaskCommand, ...]) -> bool:
    """Whether the answer would fill the history without ending the run."""
    if commands and _is_end(commands[-1]):
        return False
    if execution.history_bytes > s.limits.history_bytes_max:
        return True
    return execution.history_length + EVENTS_PER_COMMAND * len(commands) > s.limits.history_events_max


# --- checks -----------------------------------------------------------------------------------------


def check(s: State, execution: Execution, commands: tuple[c.TaskCommand, ...], now_ms: int) -> None:
    """Raise `Invalid` or `LimitReached` for an answer of which any part cannot be done. Nothing is changed."""
    new_ids: set[str] = set()
    accepted: set[str] = set()
    completed: set[str] = set()
    decided: set[str] = set()
    merged = execution.search_attributes or {}
    for position, command in enumerate(commands):
        if _is_end(command) and position < len(commands) - 1:
            raise Invalid(f"command {position + 1} of {len(commands)} ends the run; nothing can follow it")
        match command:
            case WorkflowCommand() | c.CompleteCommand() | c.FailCommand() | c.CancelCommand():
                continue
            case c.ScheduleActivityCommand() | c.StartTimerCommand() | c.StartChildCommand():
                _check_new(s, execution, command, new_ids, now_ms)
            case c.AcceptUpdateCommand(update_id=update_id) | c.RejectUpdateCommand(update_id=update_id):
                pending = execution.pending_updates.get(update_id)
                if pending is None or not pending.is_out or update_id in decided:
                    raise Invalid(f"update {update_id!r} did not come with this task, or is decided already")
                decided.add(update_id)
                if isinstance(command, c.AcceptUpdateCommand):
                    accepted.add(update_id)
            case c.CompleteUpdateCommand(update_id=update_id):
                known = execution.updates.get(update_id)
                is_going_on = update_id in accepted or (known is not None and not known.completed_event_id)
                if not is_going_on or update_id in completed:
                    raise Invalid(f"update {update_id!r} is not one that was accepted and goes on")
                completed.add(update_id)
            case c.ContinueAsNewCommand():
                for what, name in (("workflow type", command.type), ("task queue", command.task_queue)):
                    if name:
                        check_name(what, name, s.limits)
                if command.timeouts is not None:
                    check_timeouts(command.timeouts)
                check_search_attributes(command.search_attributes)
                if execution.task is not None:
                    # What has to go along can be read: half an answer must not be applied when it cannot.
                    s.events(execution, execution.task.last_event_id)
            case c.UpsertCommand():
                _check_id(s, command.id)
                merged = merged | (command.search_attributes or {})
                check_search_attributes(merged)
            case c.CancelActivityCommand() | c.CancelTimerCommand():
                _check_id(s, command.id)
            case c.CancelExternalCommand():
                _check_id(s, command.id)
                check_name("workflow id", command.workflow_id, s.limits)
            case c.SignalExternalCommand():
                _check_id(s, command.id)
                check_name("workflow id", command.workflow_id, s.limits)
                check_name("signal name", command.name, s.limits)
            case c.RecordMarkerCommand():
                _check_id(s, command.id)
                check_name("marker name", command.name, s.limits)
    if new_ids and not _is_end(commands[-1]):
        _check_room(s, execution, commands)


def _check_room(s: State, execution: Execution, commands: tuple[c.TaskCommand, ...]) -> None:
    """Refuse an answer that leaves its run with more than it may have at a time."""
    started = Counter(type(command) for command in commands)
    stopped = {command.id for command in commands if isinstance(command, c.CancelTimerCommand)}
    running = {*execution.timers, *(command.id for command in commands if isinstance(command, c.StartTimerCommand))}
    for what, count, most, name in (
        ("timers that run", len(running - stopped), s.limits.timers_per_execution_max, "timers-per-execution"),
        (
            "activities that have not ended",
            len(execution.open_activities) + started[c.ScheduleActivityCommand],
            s.limits.pending_activities_max,
            "pending-activities",
        ),
        (
            "children that have not ended",
            len(execution.children) + started[c.StartChildCommand],
            s.limits.pending_children_max,
            "pending-children",
        ),
    ):
        if count > most:
            raise LimitReached(
                f"with this answer {execution.workflow_id!r} would have {count} {what}; at most {most} are allowed:"
                " wait for some of them first",
                limit=name,
            )


def _check_new(
    s: State,
    execution: Execution,
    command: c.ScheduleActivityCommand | c.StartTimerCommand | c.StartChildCommand,
    new_ids: set[str],
    now_ms: int,
) -> None:
    _check_id(s, command.id)
    if (
        command.id in new_ids
        or command.id in execution.timers
        or command.id in execution.children
        or activity_id(execution, command.id) in execution.open_activities
    ):
        raise Invalid(f"command id {command.id!r} is in use: a run names each of its commands once")
    new_ids.add(command.id)
    if isinstance(command, c.StartTimerCommand):
        if not 0 <= command.fire_after_ms <= TIMEOUT_MS_MAX:
            raise Invalid(f"fire_after_ms is {command.fire_after_ms}; it must be 0 to {TIMEOUT_MS_MAX} (100 years)")
        return
    what = "activity" if isinstance(command, c.ScheduleActivityCommand) else "workflow"
    check_name(f"{what} type", command.type, s.limits)
    if command.task_queue:
        check_name("task queue", command.task_queue, s.limits)
    check_timeouts(command.timeouts)
    if isinstance(command, c.StartChildCommand):
        check_search_attributes(command.search_attributes)
        if command.workflow_id:
            check_name("workflow id", command.workflow_id, s.limits)
        executions.first_due_ms(command.cron_schedule, now_ms)


def _check_id(s: State, command_id: str) -> None:
    check_name("command id", command_id, s.limits)
    if "|" in command_id:  # it separates the parts of a task token
        raise Invalid(f"command id {command_id[:80]!r} has a '|' in it")


def _is_end(command: c.TaskCommand) -> bool:
    if isinstance(command, WorkflowCommand):
        return command.kind is not WorkflowCommandKind.SCHEDULE_ACTIVITY
    return isinstance(command, c.CompleteCommand | c.FailCommand | c.CancelCommand | c.ContinueAsNewCommand)


# --- effects ----------------------------------------------------------------------------------------


def activity_id(execution: Execution, command_id: str) -> str:
    return f"act-{execution.run_id}-{command_id}"


def apply(s: State, execution: Execution, command: c.TaskCommand, now_ms: int) -> None:
    match command:
        case WorkflowCommand():
            executions.end(s, execution, command, now_ms)
        case c.ScheduleActivityCommand():
            activities.schedule(
                s,
                execution,
                activity_id=activity_id(execution, command.id),
                activity_type=command.type,
                task_queue=command.task_queue or execution.task_queue,
                input=command.input,
                timeouts=command.timeouts,
                retry_policy=ACTIVITY_RETRY if command.retry_policy is None else command.retry_policy.normalized(),
                now_ms=now_ms,
                command_id=command.id,
            )
        case c.CancelActivityCommand():
            _cancel_activity(s, execution, command.id, now_ms)
        case c.StartTimerCommand():
            workflow_timers.start(s, execution, command.id, command.fire_after_ms, now_ms)
        case c.CancelTimerCommand():
            workflow_timers.cancel(s, execution, command.id, now_ms)
        case c.StartChildCommand():
            children.start(s, execution, command, now_ms)
        case c.CancelExternalCommand():
            _cancel_external(s, execution, command, now_ms)
        case c.SignalExternalCommand():
            _signal_external(s, execution, command, now_ms)
        case c.RecordMarkerCommand():
            attributes = {"commandId": command.id, "name": command.name, "details": command.details}
            s.record(execution, EventType.MARKER_RECORDED, now_ms, **attributes)
        case c.UpsertCommand():
            _upsert(s, execution, command, now_ms)
        case c.AcceptUpdateCommand():
            updates.accept(s, execution, command.update_id, now_ms)
        case c.RejectUpdateCommand():
            updates.reject(s, execution, command.update_id, storable_failure(command.failure))
        case c.CompleteUpdateCommand():
            failure = None if command.failure is None else storable_failure(command.failure)
            updates.complete(s, execution, command.update_id, command.result, failure, now_ms)
        case c.CompleteCommand():
            executions.complete(s, execution, command.result, now_ms)
        case c.FailCommand():
            executions.fail(s, execution, command.failure, now_ms)
        case c.CancelCommand():
            executions.end_canceled(s, execution, command.failure, now_ms)
        case c.ContinueAsNewCommand():
            executions.continue_as_new(s, execution, command, now_ms)


def _cancel_activity(s: State, execution: Execution, command_id: str, now_ms: int) -> None:
    activity = execution.open_activities.get(activity_id(execution, command_id))
    if activity is None or activity.cancel_reason is not None:
        return
    s.record(
        execution,
        EventType.ACTIVITY_CANCEL_REQUESTED,
        now_ms,
        scheduledEventId=activity.scheduled_event_id,
        commandId=command_id,
    )
    reason = execution.cancel_reason or "the workflow canceled it"
    executions.apply(s, activities.request_cancel(s, activity, reason, now_ms), now_ms)


def _cancel_external(s: State, execution: Execution, command: c.CancelExternalCommand, now_ms: int) -> None:
    try:
        target = s.execution(command.workflow_id, command.run_id)
    except EngineError as error:
        _external(s, execution, EventType.EXTERNAL_CANCEL_FAILED, command, now_ms, failure=children.failure_of(error))
        return
    _external(s, execution, EventType.EXTERNAL_CANCEL_REQUESTED, command, now_ms)
    executions.cancel(s, target, command.reason, execution.workflow_id, now_ms)


def _signal_external(s: State, execution: Execution, command: c.SignalExternalCommand, now_ms: int) -> None:
    try:
        target = s.execution(command.workflow_id, command.run_id)
        executions.signal(s, target, command.name, command.input, execution.workflow_id, now_ms)
    except EngineError as error:
        _external(s, execution, EventType.EXTERNAL_SIGNAL_FAILED, command, now_ms, failure=children.failure_of(error))
        return
    _external(s, execution, EventType.EXTERNAL_SIGNALED, command, now_ms)


def _external(
    s: State,
    execution: Execution,
    event_type: EventType,
    command: c.CancelExternalCommand | c.SignalExternalCommand,
    now_ms: int,
    **attributes: object,
) -> None:
    event = s.record(
        execution,
        event_type,
        now_ms,
        commandId=command.id,
        workflowId=command.workflow_id,
        runId=command.run_id,
        **attributes,
    )
    wakeups.news(s, execution, event.event_id, now_ms)


def _upsert(s: State, execution: Execution, command: c.UpsertCommand, now_ms: int) -> None:
    attributes: dict[str, object] = {"commandId": command.id}
    if command.memo is not None:
        execution.memo = attributes["memo"] = command.memo
    if command.search_attributes is not None:
        attributes["searchAttributes"] = command.search_attributes
        merged = {**(execution.search_attributes or {}), **command.search_attributes}
        execution.search_attributes = {name: value for name, value in merged.items() if value is not None}
    s.record(execution, EventType.UPSERTED, now_ms, **attributes)
