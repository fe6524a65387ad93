"""A namespace from its records: everything open, in line again or waiting for its time, as if nothing had happened.

Connections do not survive. What a worker held when the server stopped is in line again at once, in its old place, and
nothing is charged for the attempt: it was not the worker that failed. A detached lease stays with whoever has its
token. When only the store failed, and the connections still stand, `adopt` gives them back what they held, and whom
they wait for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import msgspec

from zapserver.engine import activities, archive, executions, matching, registry, watching, workflow_tasks
from zapserver.engine.commands import PeerKey, Status, Waiter
from zapserver.engine.effects import Answered, PeerFull
from zapserver.engine.errors import Conflict, Lost, NotFound, NoWorker
from zapserver.engine.records import (
    Activity,
    ActivityCall,
    ActivityState,
    Event,
    EventType,
    Execution,
    Lease,
    PendingResult,
    QueuedTask,
    Subscription,
    WorkflowTask,
)
from zapserver.engine.saved import (
    ActivityRecord,
    decode_activity,
    decode_execution,
    decode_number,
    decode_schedule,
    restored_activity,
    restored_task,
    restored_timers,
)
from zapserver.engine.state import State
from zapserver.engine.tables import NEXT_NUMBER, Table
from zapserver.engine.workflow_tasks import RECORDED_RESULT_DELAY_MS
from zapserver.store.errors import Damaged
from zapserver.store.keys import Key, decode_key, encode_key

RESTARTED = "the server was restarted"

_CLOSING = {
    EventType.ACTIVITY_COMPLETED,
    EventType.ACTIVITY_FAILED,
    EventType.ACTIVITY_TIMED_OUT,
    EventType.ACTIVITY_CANCELED,
}


def load(s: State) -> list[Damaged]:
    """Fill a fresh state from its reader; what is damaged is left out, with the execution that needs it, and returned.

    Tasks that somebody holds, as far as the records know, stay held: `adopt` or `put_in_line` comes next.
    """
    damaged: list[Damaged] = []
    s.next_number = s.numbers_reserved = _next_number(s, damaged)
    for key, data in s.reader.scan(Table.SCHEDULES, damaged=damaged):
        with _noting(damaged, Table.SCHEDULES, key):
            schedule = decode_schedule(data)
            s.schedules[schedule.schedule_id] = schedule
            s.timers.update(schedule)
    by_number: dict[int, Execution] = {}
    for key, data in s.reader.scan(Table.OPEN, damaged=damaged):
        with _noting(damaged, Table.OPEN, key):
            execution = _restore_execution(s, data)
            by_number[execution.number] = execution
    broken: list[Damaged] = []
    for key, data in s.reader.scan(Table.ACTIVITIES, damaged=broken):
        of = by_number.get(_number(key))
        if of is not None:  # else it is damaged, and named already
            with _noting(broken, Table.ACTIVITIES, key):
                _restore_activity(s, of, decode_activity(data))
    for damage in broken:
        execution_lost = by_number.pop(_number(decode_key(damage.key)), None)
        if execution_lost is not None:
            _leave_out(s, execution_lost)
    for execution in by_number.values():
        s.timers.update(execution)
    if s.limits.closed_executions_max:
        s.closed_count = s.reader.count(Table.CLOSED)
    s.dead_count = s.reader.count(Table.DEAD)
    return damaged + broken


def _next_number(s: State, damaged: list[Damaged]) -> int:
    """Where that is damaged: past every execution that there is, for each of them has a history."""
    try:
        data = s.reader.get(Table.META, (NEXT_NUMBER,))
        return 1 if data is None else decode_number(data)
    except (Damaged, msgspec.MsgspecError) as error:
        if isinstance(error, Damaged) and not error.table:  # not a record: the file
            raise
        text = f"the next number of an execution is damaged, and is made again: {error}"
        damaged.append(Damaged(text, table=Table.META, key=encode_key((NEXT_NUMBER,))))
    unreadable: list[Damaged] = []
    keys = [key for key, _ in s.reader.scan(Table.HISTORY, reverse=True, limit=1, damaged=unreadable)]
    keys += [decode_key(each.key) for each in unreadable]
    return max((_number(key) for key in keys), default=0) + 1


@contextmanager
def _noting(damaged: list[Damaged], table: Table, key: Key) -> Iterator[None]:
    """Take note of a record that cannot be read, or whose history cannot be, and go on with the next."""
    try:
        yield
    except (Damaged, Lost, msgspec.MsgspecError, LookupError, ValueError) as error:
        text = f"the record {key} in {table.value!r} cannot be used, and is left out: {error}"
        damaged.append(Damaged(text, table=table.value, key=encode_key(key)))


def _number(key: Key) -> int:
    number = key[0]
    assert isinstance(number, int)
    return number


def _leave_out(s: State, execution: Execution) -> None:
    """An open execution of which a part is damaged is not served: without that part it would never end."""
    for activity in execution.open_activities.values():
        s.timers.remove(activity)
        del s.activities[activity.activity_id]
    for timer in execution.timers.values():
        s.timers.remove(timer)
    for request in execution.request_keys:
        del s.request_ids[request]
    if (schedule := s.schedules.get(execution.schedule_id)) is not None:
        schedule.open_runs.pop(execution.run_id, None)
    del s.executions[execution.run_id]
    del s.open_ids[execution.workflow_id]


def _restore_execution(s: State, data: bytes) -> Execution:
    """All that can fail comes first, and leaves nothing behind."""
    execution, record = decode_execution(data)
    archive.load_long_payloads(s.reader, execution, record.long_payloads)
    if record.has_calls:
        execution.calls = calls_of(archive.events(s.reader, execution.number))
    if record.task is not None:
        execution.task = restored_task(execution, record.task)
    activity = None if record.activity is None else restored_activity(execution, record.activity)
    registry.enter(s, execution)
    for request in execution.request_keys:
        s.request_ids[request] = execution.run_id
    execution.timers = restored_timers(execution, record.timers)
    for timer in execution.timers.values():
        s.timers.update(timer)
    if activity is not None:
        _enter_activity(s, activity)
    return execution


def _restore_activity(s: State, execution: Execution, record: ActivityRecord) -> None:
    activity = restored_activity(execution, record)
    if record.input_is_long:
        activity.input = archive.event(s.reader, execution.number, record.scheduled_event_id).attributes["input"]
    if record.call_position >= 0:
        activity.call = execution.calls[record.call_position]
        activity.call.activity_id = activity.activity_id
    _enter_activity(s, activity)


def _enter_activity(s: State, activity: Activity) -> None:
    s.activities[activity.activity_id] = activity
    activity.execution.open_activities[activity.activity_id] = activity
    s.timers.update(activity)


def calls_of(events: Iterable[Event]) -> list[ActivityCall]:
    """The activities that a worker of the Go kind asked for, with their outcomes, from the history."""
    calls: dict[int, ActivityCall] = {}
    for event in events:
        attributes = event.attributes
        if event.type is EventType.ACTIVITY_SCHEDULED:
            calls[event.event_id] = ActivityCall(
                len(calls), attributes["activityId"], attributes["activityType"], attributes["input"]
            )
        elif event.type in _CLOSING:
            call = calls[attributes["scheduledEventId"]]
            failure = attributes.get("failure")
            call.activity_id = attributes["activityId"]  # another one where a reset scheduled it again
            call.is_closed = True
            call.result = attributes.get("result")
            call.failure = None if failure is None else bytes(failure)
    return list(calls.values())


def latest_ms(s: State) -> int:
    """The latest moment that the records know of: time never runs back, whatever the clock says after a restart."""
    latest = max((execution.last_event_ms for execution in s.executions.values()), default=0)
    for table in (Table.CLOSED, Table.DEAD):
        for (close_ms, _), _ in s.reader.scan(table, reverse=True, limit=1, damaged=[]):
            assert isinstance(close_ms, int)
            latest = max(latest, close_ms)
    return latest


# --- who holds what --------------------------------------------------------------------------------------


def put_in_line(s: State, now_ms: int) -> None:
    """After `load`, and after `adopt`: whatever is ready and held by nobody gets its place in line again."""
    lost: list[QueuedTask] = []
    for task in sorted(_ready_tasks(s), key=lambda task: (task.ready_ms, task.execution.number)):
        task.order = s.next_order()
        if task.lease is None:
            s.queue(task.queue).put(task)
        elif not _is_held(s, task.lease):
            lost.append(task)
    for execution in s.executions.values():
        if execution.task is not None and not execution.task.order:
            execution.task.order = s.next_order()  # it waits for its time, and has its place when that comes
    for task in lost:
        if isinstance(task, WorkflowTask):
            returned = workflow_tasks.restarted(s, task, now_ms)
            if returned is not None:
                matching.put_back(s, [returned], now_ms)
        elif isinstance(task, Activity) and task.lease is not None:
            executions.apply(s, activities.hand_back(s, task.lease.token, RESTARTED, now_ms), now_ms)


def _is_held(s: State, lease: Lease) -> bool:
    """Whether its holder has it still: of a detached one always. The updates that came with a workflow task are not
    known any more, and an answer that names them would be refused as wrong: such a task goes out again."""
    if lease.is_detached:
        return True
    return not lease.has_updates and lease.peer in s.peers and lease.token in s.peers[lease.peer].leases


def _ready_tasks(s: State) -> Iterator[QueuedTask]:
    """In line or held. A task that came to nothing waits for its time; and a canceled run of a holder that nobody holds
    goes to nobody any more: it waits for its activities to end."""
    for execution in s.executions.values():
        task = execution.task
        if task is not None and (
            task.lease is not None
            or (execution.task_retry_ms is None and (execution.status is Status.RUNNING or execution.is_replayed))
        ):
            yield task
        for activity in execution.open_activities.values():
            if activity.state is not ActivityState.BACKOFF:
                yield activity


def adopt(s: State, old: State, live: Iterable[PeerKey], now_ms: int) -> None:
    """Take over the connections that still stand from the state that `s` replaces."""
    by_token: dict[str, QueuedTask] = {}
    for execution in s.executions.values():
        for task in (execution.task, *execution.open_activities.values()):
            if task is not None and task.lease is not None and not task.lease.is_detached:
                by_token[task.lease.token] = task
    for key in live:
        old_peer = old.peers.get(key)
        if old_peer is None:
            continue
        peer = s.peer(key)
        peer.burst_bytes, peer.is_full = old_peer.burst_bytes, old_peer.is_full
        if peer.is_full:  # it is to be told when the peer has read, once more
            s.effects.append(PeerFull(peer=key))
        for known in old_peer.subscriptions.values():
            subscription = Subscription(
                subscription_id=known.subscription_id,
                peer=key,
                queue=known.queue,
                identity=known.identity,
                slots=known.slots,
                types=known.types,
                build_id=known.build_id,
                unknown_types=known.unknown_types,
                replays=known.replays,
                is_full=peer.is_full,
                queue_per_second=known.queue_per_second,
            )
            peer.subscriptions[subscription.subscription_id] = subscription
            s.queue(subscription.queue).add(subscription)
            matching.state_rates(s, subscription, known.rate.per_second if known.rate is not None else 0.0, now_ms)
    for token, held in by_token.items():
        lease = held.lease
        assert lease is not None
        holder = s.peers.get(lease.peer)
        if holder is not None:
            holder.leases[token] = held
            # It may have tried to be heard while the store took nothing.
            lease.heartbeat_ms = now_ms
            s.touch_task(held)
            if (held_by := holder.subscriptions.get(lease.subscription_id)) is not None:
                held_by.held += 1
            _repeat_results(s, held, lease, now_ms)
    for key in live:
        if (old_peer := old.peers.get(key)) is not None:
            for waiter, execution in old_peer.waiting.items():
                if (run := _kept(s, execution, waiter)) is not None:
                    executions.wait_for_close(s, run, waiter, key, follow=waiter in execution.followers)
            for waiter, execution in old_peer.watching.items():
                if (run := _kept(s, execution, waiter)) is not None:
                    watching.go_on(s, run, waiter, key, execution.watchers[waiter].after)
            for waiter, update in old_peer.updating.items():
                text = f"the store failed before update {update.update_id!r} was answered: ask again with the same id"
                s.effects.append(Answered(waiter=waiter, error=Conflict(text)))
    for query in old.queries.values():
        error = NoWorker(f"the store failed while the worker was asked {query.query_type!r}: ask again")
        s.effects.append(Answered(waiter=query.waiter, error=error))


def _kept(s: State, execution: Execution, waiter: Waiter) -> Execution | None:
    """The execution that a call waits for, as it was kept; None, and the call is told, if it was not."""
    try:
        return s.execution(execution.workflow_id, execution.run_id)
    except NotFound:
        text = f"workflow {execution.workflow_id!r} was not kept: the store failed as it was started"
        s.effects.append(Answered(waiter=waiter, error=NotFound(text)))
    except Lost as lost:
        s.effects.append(Answered(waiter=waiter, error=lost))
    return None


def _repeat_results(s: State, task: QueuedTask, lease: Lease, now_ms: int) -> None:
    """Results that were on their way to the holder of a run may not have left: they go out again, and do no harm."""
    for call in task.execution.calls:
        if task is task.execution.task and call.is_closed and call.position < task.execution.task.calls_made:
            pending = PendingResult(task.execution, lease.token, call, now_ms + RECORDED_RESULT_DELAY_MS)
            s.timers.update(pending)


def serve_everybody(s: State, now_ms: int) -> None:
    """After `put_in_line`, for adopted subscriptions: fill their free slots."""
    for peer in list(s.peers.values()):
        for subscription in list(peer.subscriptions.values()):
            matching.serve(s, subscription, now_ms)
