"""Which executions there are: by id and run, by request, and after their end; and whether there is room for more."""

from __future__ import annotations

from zapserver.engine import archive
from zapserver.engine.commands import IdConflict, IdReuse, PeerKey, QueueKind, Started, Status, Waiter
from zapserver.engine.errors import Conflict, Invalid, LimitReached, NotFound
from zapserver.engine.records import Execution, RequestKey
from zapserver.engine.state import State
from zapserver.engine.tables import Table
from zapserver.engine.validation import check_name

END_OF_TIME_MS = 1 << 60


def request_key(kind: str, name: str, schedule_id: str, request_id: str) -> RequestKey | None:
    """Request ids of different things never meet; those of a schedule belong to the schedule."""
    if not request_id:
        return None
    return ("schedule", schedule_id, request_id) if schedule_id else (kind, name, request_id)


def seen(s: State, request: RequestKey | None) -> Started | None:
    """What the request started when it came for the first time."""
    if request is None:
        return None
    run_id = s.request_ids.get(request)
    if run_id is not None:
        return Started(workflow_id=s.executions[run_id].workflow_id, run_id=run_id, is_new=False)
    for closed in s.just_closed.values():
        if request in closed.request_keys:
            return Started(workflow_id=closed.workflow_id, run_id=closed.run_id, is_new=False)
    answered = archive.answered_request(s.reader, request)
    return None if answered is None else Started(workflow_id=answered[0], run_id=answered[1], is_new=False)


def remember(s: State, execution: Execution, request: RequestKey | None) -> None:
    """Take note that `request` started or found this execution. All of them are written with each of its changes."""
    if request is None:
        return
    s.request_ids[request] = execution.run_id
    execution.request_keys += (request,)
    if len(execution.request_keys) > s.limits.signal_ids_max + 1:
        first, oldest, *others = execution.request_keys  # the first is that of its start
        del s.request_ids[oldest]
        execution.request_keys = (first, *others)
    s.touch(execution)


def check_run_id(s: State, run_id: str) -> None:
    check_name("run id", run_id, s.limits)
    if "|" in run_id:  # it separates the parts of a task token
        raise Invalid(f"run id {run_id[:80]!r} has a '|' in it; leave it out and the server makes one")
    if s.run(run_id) is not None:
        raise Conflict(f"run id {run_id!r} exists already; leave it out and the server makes one")


def claim(s: State, workflow_id: str, reuse: IdReuse, conflict: IdConflict) -> Execution | None:
    """Refuse an id that may not be taken; else the open execution that has it, to be joined or ended first."""
    check_name("workflow id", workflow_id, s.limits)
    running = s.open_ids.get(workflow_id)
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
    running = s.open_ids.get(workflow_id)
    if running is not None:
        raise Conflict(
            f"workflow {workflow_id!r} is open already (run {running.run_id}); cancel or terminate it,"
            " signal it, or choose another id"
        )
    check_room(s, workflow_id)


def check_room(s: State, workflow_id: str) -> None:
    """An open run of the same id gives its place to the new one."""
    if workflow_id not in s.open_ids:
        check_room_besides(s, 0)


def check_room_besides(s: State, closing: int) -> None:
    """Refuse one execution more than there may be once `closing` of the open ones have closed."""
    if len(s.executions) - closing >= s.limits.open_executions_max:
        raise LimitReached(
            f"this namespace has {len(s.executions)} open executions, as many as it may: let some end first",
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


def check_wait(s: State, peer_key: PeerKey, waiter: Waiter) -> None:
    """Refuse a call that waits for something already, and one more than a connection may have waiting."""
    peer = s.peers.get(peer_key)
    if peer is None:
        return
    if waiter in peer.waiting or waiter in peer.updating or waiter in peer.watching:
        raise Conflict(f"{waiter!r} waits for something already; a call waits for one thing")
    waiting = len(peer.waiting) + len(peer.updating) + len(peer.watching)
    if waiting >= s.limits.waits_per_peer_max:
        raise LimitReached(
            f"this connection waits for {waiting} answers already, as many as it may", limit="waits-per-peer"
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
    execution.number = s.next_number
    s.next_number += 1
    enter(s, execution)
    s.touch(execution)


def enter(s: State, execution: Execution) -> None:
    """Make an open execution findable."""
    s.executions[execution.run_id] = execution
    s.open_ids[execution.workflow_id] = execution
    if execution.schedule_id and (schedule := s.schedules.get(execution.schedule_id)) is not None:
        schedule.open_runs[execution.run_id] = execution.workflow_id


def leave_schedule(s: State, execution: Execution) -> None:
    """A run closed: its schedule is looked at when the step ends, and whether the run goes on in a new one is known."""
    schedule = s.schedules.get(execution.schedule_id)
    if schedule is None or schedule.open_runs.pop(execution.run_id, None) is None:
        return
    if schedule.buffered or schedule.backfills or schedule.pause_on_failure:
        s.freed_schedules.append((schedule, execution))


def keep_closed(s: State, execution: Execution) -> None:
    """An execution closed: it leaves memory with the end of the step, and the oldest are forgotten."""
    del s.executions[execution.run_id]
    if s.open_ids.get(execution.workflow_id) is execution:
        del s.open_ids[execution.workflow_id]
    for request in execution.request_keys:
        del s.request_ids[request]
    s.just_closed[execution.run_id] = execution
    s.touch(execution)
    if execution.is_dead_letter:
        s.dead_count += 1
    else:
        s.closed_count += 1


def calm(s: State, execution: Execution) -> None:
    """Somebody has taken care of a dead letter: from now on it is a closed execution like any other."""
    execution.is_dead_letter = False
    s.calmed.append(execution)
    s.dead_count -= 1
    s.closed_count += 1


def sweep(s: State, closed_before_ms: int, limit: int) -> int:
    """Forget up to `limit` executions that closed before a moment; how many these were."""
    found = [
        execution
        for table in (Table.CLOSED, Table.DEAD)
        for execution in archive.closed_until(s.reader, table, closed_before_ms, limit)
    ][:limit]
    for execution in found:
        forget(s, execution)
    return len(found)


def forget_excess(s: State) -> None:
    """Forget the oldest closed executions, and the oldest dead letters, beyond their bounds."""
    closed_max = s.limits.closed_executions_max
    if closed_max and s.closed_count > closed_max:
        _forget_oldest(s, Table.CLOSED, s.closed_count - closed_max)
    if s.dead_count > s.limits.dead_letters_max:
        _forget_oldest(s, Table.DEAD, s.dead_count - s.limits.dead_letters_max)


def _forget_oldest(s: State, table: Table, count: int) -> None:
    """In the order of their ends: those in the store, then those that closed in this step."""
    gone = {execution.number for execution in (*s.removed, *s.calmed)}
    stored = archive.closed_until(s.reader, table, END_OF_TIME_MS, count + len(gone))
    oldest = [execution for execution in stored if execution.number not in gone]
    oldest += (each for each in s.just_closed.values() if each.is_dead_letter is (table is Table.DEAD))
    for execution in oldest[:count]:
        forget(s, execution)


def forget(s: State, execution: Execution) -> None:
    """Forget a closed execution, with its history and the requests that it answers."""
    s.removed.append(execution)
    if execution.is_dead_letter:
        s.dead_count -= 1
    else:
        s.closed_count -= 1
