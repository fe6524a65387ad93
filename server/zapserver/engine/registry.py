"""Which executions there are: by id and run, by request, and after their end; and whether there is room for more."""

from __future__ import annotations

from zapserver.engine.commands import QueueKind, Started
from zapserver.engine.errors import Conflict, Invalid, LimitReached
from zapserver.engine.records import Execution, RequestKey
from zapserver.engine.state import State
from zapserver.engine.validation import check_name


def request_key(kind: str, name: str, schedule_id: str, request_id: str) -> RequestKey | None:
    """Request ids of different things never meet; those of a schedule belong to the schedule."""
    if not request_id:
        return None
    return ("schedule", schedule_id, request_id) if schedule_id else (kind, name, request_id)


def seen(s: State, request: RequestKey | None) -> Started | None:
    """What the request started when it came for the first time."""
    run_id = s.request_ids.get(request) if request is not None else None
    if run_id is None:
        return None
    return Started(workflow_id=s.executions[run_id].workflow_id, run_id=run_id, is_new=False)


def remember(s: State, execution: Execution, request: RequestKey | None) -> None:
    if request is not None:
        s.request_ids[request] = execution.run_id
        execution.request_keys += (request,)


def check_run_id(s: State, run_id: str) -> None:
    check_name("run id", run_id, s.limits)
    if "|" in run_id:  # it separates the parts of a task token
        raise Invalid(f"run id {run_id[:80]!r} has a '|' in it; leave it out and the server makes one")
    if run_id in s.executions:
        raise Conflict(f"run id {run_id!r} exists already; leave it out and the server makes one")


def latest_open(s: State, workflow_id: str) -> Execution | None:
    runs = s.runs.get(workflow_id)
    return runs[-1] if runs and runs[-1].status.is_open else None


def check_free(s: State, workflow_id: str) -> None:
    """Refuse an id that is in use, and one execution more than there may be."""
    check_name("workflow id", workflow_id, s.limits)
    running = latest_open(s, workflow_id)
    if running is not None:
        raise Conflict(
            f"workflow {workflow_id!r} is open already (run {running.run_id}); cancel or terminate it,"
            " signal it, or choose another id"
        )
    check_room(s, workflow_id)


def check_room(s: State, workflow_id: str) -> None:
    """An open run of the same id gives its place to the new one."""
    if latest_open(s, workflow_id) is None and s.open_count >= s.limits.open_executions_max:
        raise LimitReached(
            f"this namespace has {s.open_count} open executions, as many as it may: let some end first",
            limit="open-executions",
        )


def check_backlog(s: State, key: tuple[QueueKind, str]) -> None:
    """Refuse one task more in a queue whose workers are too far behind."""
    queue = s.queues.get(key)
    if queue is not None and len(queue) >= s.limits.queue_backlog_max:
        raise LimitReached(
            f"{len(queue)} tasks wait in task queue {key[1]!r}, as many as may: add workers, and try again later",
            limit="queue-backlog",
        )


def history_has_room(s: State, execution: Execution) -> bool:
    limits = s.limits
    return execution.history_length < limits.history_events_max and execution.history_bytes < limits.history_bytes_max


def check_history(s: State, execution: Execution) -> None:
    """Refuse another event that somebody asks for, once the history is full."""
    if history_has_room(s, execution):
        return
    if execution.history_length >= s.limits.history_events_max:
        size, limit = f"{execution.history_length} events", "history-events"
    else:
        size, limit = f"{execution.history_bytes} bytes", "history-bytes"
    raise LimitReached(
        f"the history of {execution.workflow_id!r} is full with {size}: let it end and go on in a new run", limit=limit
    )


def check_another_activity(s: State, execution: Execution, task_queue: str) -> None:
    """Refuse an activity more than an open workflow may have."""
    check_history(s, execution)
    pending = len(execution.open_activities)
    if pending >= s.limits.pending_activities_max:
        raise LimitReached(
            f"{execution.workflow_id!r} has {pending} activities that have not ended, as many as it may:"
            " wait for some of them first",
            limit="pending-activities",
        )
    check_backlog(s, (QueueKind.ACTIVITY, task_queue))


def index(s: State, execution: Execution) -> None:
    """Enter a new execution, which is the latest run of its id from now on."""
    s.executions[execution.run_id] = execution
    s.runs.setdefault(execution.workflow_id, []).append(execution)
    s.open_count += 1
    if execution.schedule_id and (schedule := s.schedules.get(execution.schedule_id)) is not None:
        schedule.open_runs[execution.run_id] = execution


def keep_closed(s: State, execution: Execution) -> None:
    """Remember a closed execution for those who look, and forget the oldest."""
    if execution.is_dead_letter:
        s.dead_letters[execution.run_id] = execution
        if len(s.dead_letters) > s.limits.dead_letters_max:
            _forget(s, next(iter(s.dead_letters.values())))
    else:
        s.closed.append(execution)
        if len(s.closed) > s.limits.closed_executions_max:
            _forget(s, s.closed.popleft())


def _forget(s: State, execution: Execution) -> None:
    del s.executions[execution.run_id]
    runs = s.runs[execution.workflow_id]
    runs.remove(execution)
    if not runs:
        del s.runs[execution.workflow_id]
    s.dead_letters.pop(execution.run_id, None)
    for request in execution.request_keys:
        del s.request_ids[request]
