"""Which executions there are: by id and run, by request, and after their end; and whether there is room for more."""

from __future__ import annotations

from zapserver.engine.commands import IdConflict, IdReuse, Started, Status
from zapserver.engine.errors import Conflict, Invalid, LimitReached, NotFound
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


def claim(s: State, workflow_id: str, reuse: IdReuse, conflict: IdConflict) -> Execution | None:
    """Refuse an id that may not be taken; else the open execution that has it, to be joined or ended first."""
    check_name("workflow id", workflow_id, s.limits)
    running = latest_open(s, workflow_id)
    if running is None:
        if reuse is not IdReuse.ALLOW:
            _check_reuse(s, workflow_id, reuse)
        check_room(s, workflow_id)
        return None
    if conflict is IdConflict.FAIL:
        check_free(s, workflow_id)
    return running


def _check_reuse(s: State, workflow_id: str, reuse: IdReuse) -> None:
    try:
        latest = s.execution(workflow_id)
    except NotFound:
        return
    if reuse is IdReuse.REJECT or latest.status is Status.COMPLETED:
        raise Conflict(
            f"workflow {workflow_id!r} was used before (run {latest.run_id}, {latest.status.name}), and the start"
            f" asked for id_reuse_policy {reuse.value!r}; choose another id or policy"
        )


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
        raise LimitReached(f"this namespace has {s.open_count} open executions, its limit; let some end first")


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
