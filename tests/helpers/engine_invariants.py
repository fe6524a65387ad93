"""What is true of an engine after every step, whatever happened in it.

This reads the engine's private state: it is the one place outside of the engine that may.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from zapserver.engine import Engine, children, wakeups
from zapserver.engine import commands as c
from zapserver.engine.commands import Status
from zapserver.engine.effects import (
    Answered,
    Closed,
    DeliverActivityTask,
    DeliverWorkflowTask,
    Effect,
    HistoryGrew,
    PeerFull,
    UpdateAnswered,
    UpdateRejected,
)
from zapserver.engine.queues import TaskQueue, _Line
from zapserver.engine.records import (
    Activity,
    ActivityState,
    Event,
    EventType,
    Execution,
    QueuedTask,
    Schedule,
    Subscription,
    WorkflowTask,
)
from zapserver.engine.saved import (
    ActivityRecord,
    ExecutionRecord,
    ScheduleRecord,
    decode_execution,
    encode_activity,
    encode_execution,
    encode_schedule,
)
from zapserver.engine.state import State
from zapserver.engine.tables import Table
from zapserver.store import MemoryStore

T = TypeVar("T")


class Watch:
    """Checks an engine, and remembers what must not change from step to step."""

    def __init__(self, engine: Engine, store: MemoryStore) -> None:
        self._engine = engine
        self._store = store
        self._told: set[Hashable] = set()
        self._full: set[int] = set()
        self._closed: dict[str, tuple[object, ...]] = {}
        self._last_slots: dict[int, tuple[int, Schedule]] = {}

    def restarted(self, engine: Engine) -> None:
        """Another engine goes on from the store."""
        self._engine = engine

    def check(self, command: c.Command[Any], effects: Iterable[Effect]) -> None:
        """To be called after every step, with the effects of that step."""
        s = self._engine._state
        assert s.effects == []
        assert s.freed_schedules == []
        assert not s.ended
        if isinstance(command, c.ResumePeer | c.PeerLost):
            self._full.discard(command.peer)
        for effect in effects:
            self._check_effect(s, effect)
        waiting = {id(task): key for key, queue in s.queues.items() for task in _check_queue(queue)}
        _check_subscriptions(s)
        _check_peers(s)
        for execution in s.executions.values():
            _check_execution(s, execution, waiting)
            if execution.parent is not None and (parent := s.executions.get(execution.parent.run_id)) is not None:
                assert execution.headers == parent.headers, "a child without its parent's headers"
        _check_kept(s, self._store)
        self._check_ends_are_final()
        _check_indexes(s)
        self._check_slots_are_acted_on_once(s)
        _check_timers(self._engine)

    def _check_effect(self, s: State, effect: Effect) -> None:
        match effect:
            case Closed() | Answered() | HistoryGrew() | UpdateAnswered() | UpdateRejected():
                assert effect.waiter not in self._told, f"{effect.waiter!r} was told twice"
                self._told.add(effect.waiter)
            case PeerFull():
                self._full.add(effect.peer)
            case DeliverActivityTask() | DeliverWorkflowTask():
                # What was delivered in this step may be over already, but slots only become free by that.
                task = s.peers[effect.peer].leases.get(effect.task_token) if effect.peer in s.peers else None
                if task is not None:
                    assert task.lease is not None
                    subscription = s.peers[effect.peer].subscriptions[task.lease.subscription_id]
                    assert subscription.held <= subscription.slots, "a delivery beyond the credits"
                    assert effect.peer not in self._full, "a delivery to a peer that has not taken what it got"
                    assert subscription.serves(task.type), "a delivery of a type that was not asked for"
                    if not isinstance(effect, DeliverWorkflowTask) or not effect.replays:
                        assert effect.headers == task.execution.headers
                if isinstance(effect, DeliverWorkflowTask) and effect.replays:
                    _check_delivered_history(effect)
                    if task is not None:
                        out = [pending for pending in task.execution.pending_updates.values() if pending.is_out]
                        ids = [update.update_id for update in effect.updates]
                        assert [pending.update_id for pending in out] == ids, "updates are out that nobody was given"

    def _check_ends_are_final(self) -> None:
        for table in (Table.CLOSED, Table.DEAD):
            for place, data in self._store.scan(table):
                closed = decode_execution(data)[0]
                end = (place, closed.status, closed.result, closed.failure, closed.history_length)
                assert self._closed.setdefault(closed.run_id, end) == end, "a closed execution changed"

    def _check_slots_are_acted_on_once(self, s: State) -> None:
        for schedule in s.schedules.values():
            last_ms = schedule.last_slot_ms
            if last_ms is not None:
                assert last_ms >= self._last_slots.get(id(schedule), (last_ms, schedule))[0], "slots out of order"
                self._last_slots[id(schedule)] = (last_ms, schedule)


def _check_delivered_history(effect: DeliverWorkflowTask) -> None:
    """What is delivered begins where the worker's knowledge ends, and has no gap."""
    first = effect.previous_event_id + 1
    ids = [event.event_id for event in effect.history]
    assert ids == list(range(first, first + len(ids)))
    rest = first + len(ids)
    assert effect.next_event_id == (rest if rest <= effect.last_event_id else 0)


def waiting_tasks(queue: TaskQueue) -> list[QueuedTask]:
    """Every task in line, in the order in which a worker that takes everything would get them."""
    tasks = [task for line in queue._whole.values() for task in _in_order(line)]
    assert all(queue._whole.values()), "an empty line is kept"
    return sorted(tasks, key=lambda task: task.order)


def _in_order(line: _Line) -> list[QueuedTask]:
    assert set(line._returned) <= set(line._orders), "a returned task is not in the heap"
    assert not line._row.keys() & line._returned.keys()
    assert list(line._row) == sorted(line._row), "the row is out of order"
    both = {**line._row, **line._returned}
    tasks = [both[order] for order in sorted(both)]
    assert all(order == task.order for order, task in both.items())
    if tasks:
        assert line.first() is tasks[0]
    assert len(line) == len(tasks)
    return tasks


def _check_queue(queue: TaskQueue) -> list[QueuedTask]:
    assert not queue.is_unused, "an unused queue is kept"
    tasks = waiting_tasks(queue)
    assert all(task.execution.status.is_open for task in tasks), "work of a closed execution waits in line"
    by_type = [task for line in queue._lines.values() for task in _in_order(line)]
    assert sorted(by_type, key=lambda task: task.order) == tasks, "the lines by type disagree with the whole line"
    assert all(queue._lines.values()), "an empty line is kept"
    idle = {
        s.subscription_id
        for s in queue.subscriptions.values()
        if s.held < s.slots and not s.is_full and (s.rate is None or s.rate.next_ms is None)
    }
    stated = {s.subscription_id: s.queue_per_second for s in queue.subscriptions.values() if s.queue_per_second}
    assert queue.rates == stated
    assert (None if queue.rate is None else queue.rate.per_second) == min(stated.values(), default=None)
    is_spent = queue.rate is not None and queue.rate.next_ms is not None
    _check_rows(queue._idle, [queue.subscriptions[key] for key in idle])
    _check_rows(queue._serving, queue.subscriptions.values())
    assert {s.subscription_id for s in queue.subscriptions.values() if s.is_idle} == idle
    for key in idle:
        sub = queue.subscriptions[key]
        stuck = [task.type for task in tasks if sub.serves(task.type) and task.for_kind in (None, sub.kind)]
        assert not stuck or is_spent, f"an idle subscription and a waiting {stuck[0]!r}"
    return tasks


def _check_rows(rows: dict[Any, Any], subscriptions: Iterable[Subscription]) -> None:
    wanted: dict[Any, set[str]] = {}
    for subscription in subscriptions:
        for name in [None] if subscription.types is None else subscription.types:
            wanted.setdefault((name, subscription.kind), set()).add(subscription.subscription_id)
    assert {key: set(row) for key, row in rows.items()} == wanted


def _check_subscriptions(s: State) -> None:
    of_peers = {key: sub for peer in s.peers.values() for key, sub in peer.subscriptions.items()}
    of_queues = {key: sub for queue in s.queues.values() for key, sub in queue.subscriptions.items()}
    assert of_peers == of_queues
    for subscription in of_peers.values():
        leases = s.peers[subscription.peer].leases.values()
        held = [task for task in leases if task.lease and task.lease.subscription_id == subscription.subscription_id]
        assert subscription.held == len(held), "held slots and leases disagree"


def _check_peers(s: State) -> None:
    for key, peer in s.peers.items():
        assert all(subscription.is_full is peer.is_full for subscription in peer.subscriptions.values())
        assert all(subscription.rate in (None, peer.rate) for subscription in peer.subscriptions.values())
        assert peer.is_full or peer.burst_bytes <= s.limits.burst_bytes_max
        for token, task in peer.leases.items():
            assert task.lease is not None
            assert (task.lease.token, task.lease.peer) == (token, key)
            assert task.execution.status.is_open, "a closed execution holds a slot"
        for waiter, execution in peer.waiting.items():
            assert execution.waiters[waiter] == key
        for waiter, pending in peer.updating.items():
            assert pending.waiters[waiter][0] == key
            assert pending.execution.pending_updates[pending.update_id] is pending
        for waiter, execution in peer.watching.items():
            assert execution.watchers[waiter].peer == key
        waits = [*peer.waiting, *peer.updating, *peer.watching]
        assert len(waits) == len(set(waits)), "a call waits for two things"
        for token, query in peer.queries.items():
            assert s.queries[token] is query
    for token, query in s.queries.items():
        assert s.peers[query.peer].queries[token] is query


def _check_execution(s: State, execution: Execution, waiting: dict[int, Any]) -> None:
    events = s.events(execution)
    assert [event.event_id for event in events] == list(range(1, execution.history_length + 1))
    times = [event.time_ms for event in events]
    assert times == sorted(times), "the history runs backwards"
    assert execution.history_bytes == sum(event.size for event in events)
    assert execution.signal_count == sum(event.type is EventType.EXECUTION_SIGNALED for event in events)
    task = execution.task
    assert execution.status.is_open
    assert execution.close_ms is None
    for waiter, peer in execution.waiters.items():
        assert s.peers[peer].waiting[waiter] is execution
    for waiter, watch in execution.watchers.items():
        assert s.peers[watch.peer].watching[waiter] is execution
        assert watch.after >= execution.history_length, "a watcher was not told of an event"
    for activity in execution.open_activities.values():
        _check_activity(s, activity, waiting)
    if execution.is_task:
        assert task is None
        assert len(execution.open_activities) == 1
    elif task is None:
        if execution.is_replayed:
            assert not wakeups.has_news(execution), "news that nobody will be told"
        else:
            assert execution.task_due_ms is not None, "a workflow that nobody will ever begin"
    else:
        _check_place(s, task, waiting)
        in_place = id(task) in waiting or task.lease is not None or execution.task_retry_ms is not None
        assert in_place or (execution.status is Status.CANCELING and execution.open_activities)
    _check_workflow(s, execution)


def _check_workflow(s: State, execution: Execution) -> None:
    task = execution.task
    lease = None if task is None else task.lease
    assert not (execution.is_replayed and execution.calls), "both kinds of workers went on with a run"
    if lease is not None and execution.worker_kind is not None:
        assert lease.replays is execution.is_replayed, "a run at a worker of the other kind"
    assert execution.seen_event_id <= execution.history_length
    assert execution.news_event_id <= execution.history_length
    if execution.task_retry_ms is not None:
        assert task is not None
        assert lease is None
    out = [pending for pending in execution.pending_updates.values() if pending.is_out]
    assert not out or (lease is not None and lease.replays), "updates are out with nobody"
    for update_id, pending in execution.pending_updates.items():
        assert pending.update_id == update_id
        assert pending.waiters or pending.is_out, "an update that nobody waits for"
        assert pending.is_accepted == (update_id in execution.updates)
        for waiter, (peer, _) in pending.waiters.items():
            assert s.peers[peer].updating[waiter] is pending
    for command_id, child in execution.children.items():
        run = s.open_ids.get(child.workflow_id)
        assert run is not None, "a parent was not told of the end of its child"
        assert run.parent is not None
        assert (run.parent.run_id, run.parent.command_id) == (execution.run_id, command_id)
    if execution.parent is not None:
        parent = s.run(execution.parent.run_id)
        if parent is not None and parent.status.is_open:
            assert execution.parent.command_id in parent.children, "an open child that its parent does not know"
        elif parent is not None:
            started = _child_events(s.events(parent), "CHILD_WORKFLOW_STARTED")[execution.parent.command_id]
            assert started.attributes["parentClosePolicy"] == "cancel", "a child was not reached by its parent's end"
    begun = _child_events(s.events(execution), "CHILD_WORKFLOW_STARTED")
    closed = _child_events(s.events(execution), *(event_type.value for event_type in children.CLOSING_EVENT.values()))
    assert begun.keys() - closed.keys() <= execution.children.keys(), "a parent was not told of an end"
    for command_id, timer in execution.timers.items():
        assert (timer.run_id, timer.command_id) == (execution.run_id, command_id)


def _child_events(events: list[Event], *types: str) -> dict[str, Event]:
    return {event.attributes["commandId"]: event for event in events if event.type.value in types}


def _check_activity(s: State, activity: Activity, waiting: dict[int, Any]) -> None:
    """Every open activity is in exactly one place."""
    assert s.activities[activity.activity_id] is activity
    _check_place(s, activity, waiting)
    expected = {
        ActivityState.SCHEDULED: (True, False),
        ActivityState.STARTED: (False, True),
        ActivityState.BACKOFF: (False, False),
    }
    assert (id(activity) in waiting, activity.lease is not None) == expected[activity.state]
    assert activity.charged <= activity.attempt


def _check_place(s: State, task: Activity | WorkflowTask, waiting: dict[int, Any]) -> None:
    assert not (id(task) in waiting and task.lease is not None), "a task is both leased and in line"
    if task.lease is not None:
        assert s.peers[task.lease.peer].leases[task.lease.token] is task
    elif id(task) in waiting:
        assert waiting[id(task)] == task.queue


def _check_indexes(s: State) -> None:
    """The indexes hold what is there and nothing that is gone: a leak would show here."""
    executions = list(s.executions.values())
    assert {id(e) for e in s.open_ids.values()} == {id(e) for e in executions}
    assert len(s.open_ids) == len(executions)
    numbers = [execution.number for execution in executions]
    assert numbers == sorted(set(numbers)), "executions are not in the order of their starts"
    assert sum(len(execution.open_activities) for execution in executions) == len(s.activities)
    keys = {request: execution.run_id for execution in executions for request in execution.request_keys}
    assert s.request_ids == keys
    leased = sum(len(peer.leases) for peer in s.peers.values())
    waiting = sum(len(queue) for queue in s.queues.values())
    tasks = [*s.activities.values(), *(execution.task for execution in executions if execution.task is not None)]
    assert leased == sum(task.lease is not None for task in tasks)
    assert waiting <= len(tasks) - leased
    for schedule in s.schedules.values():
        _check_schedule(s, schedule)


def _check_schedule(s: State, schedule: Schedule) -> None:
    for run_id, workflow_id in schedule.open_runs.items():
        execution = s.executions[run_id]
        assert execution.status.is_open
        assert (execution.workflow_id, execution.schedule_id) == (workflow_id, schedule.schedule_id)
    assert len(schedule.buffered) <= s.limits.buffered_runs_max
    assert len({run.name for run in schedule.buffered}) == len(schedule.buffered), "a slot waits twice"
    assert len(schedule.backfills) <= s.limits.backfills_max
    assert all(backfill.slots for backfill in schedule.backfills)
    assert len(schedule.recent_actions) <= min(10, schedule.action_count)
    if schedule.remaining_actions is not None:
        assert 0 <= schedule.remaining_actions <= (schedule.actions_limit or 0)
    if schedule.next_ms is not None and schedule.last_slot_ms is not None:
        assert schedule.next_ms > schedule.last_slot_ms, "a slot would be acted on again"
    startable = [run for run in schedule.buffered if run.is_manual or not schedule.paused]
    if not schedule.open_runs and (startable or schedule.backfills):
        assert schedule.work_ms is not None, "nothing starts what waits"


def _check_timers(engine: Engine) -> None:
    """Whatever has a deadline is woken by it."""
    s = engine._state
    heap = s.timers._heap
    entries = {(entry_ms, id(target)) for entry_ms, _, target in heap}
    live = {id(target) for _, _, target in heap if target.timer_ms is not None}
    assert len(s.timers) == len(live)
    assert len(heap) <= 2 * len(s.timers) + 2_048, "stale timers pile up"
    deadlines = []
    for target in _targets(s):
        due_ms = target.deadline_ms()
        if due_ms is not None:
            deadlines.append(due_ms)
            assert target.timer_ms is not None, f"nothing wakes {target!r}"
            assert target.timer_ms <= due_ms, f"{target!r} is woken too late"
        if target.timer_ms is not None:
            assert (target.timer_ms, id(target)) in entries
    if deadlines:
        next_ms = engine.next_deadline_ms()
        assert next_ms is not None
        assert next_ms <= min(deadlines)


def _targets(s: State) -> Iterator[Any]:
    yield from s.activities.values()
    for execution in s.executions.values():
        yield from execution.timers.values()
    yield from s.executions.values()
    yield from s.schedules.values()
    yield from s.queries.values()
    yield from (peer.rate for peer in s.peers.values() if peer.rate is not None)
    yield from (queue.rate for queue in s.queues.values() if queue.rate is not None)


def _read(records: Mapping[Any, bytes], record: type[T]) -> dict[Any, T]:
    """What records say: the same thing can be written with a default or without."""
    return {key: msgspec.json.decode(data, type=record) for key, data in records.items()}


def _check_kept(s: State, store: MemoryStore) -> None:
    """The store has exactly what the engine has: whatever a step touched was written, and nothing is left over."""
    kept = {number: data for (number,), data in store.scan(Table.OPEN)}
    live = {execution.number: encode_execution(execution) for execution in s.executions.values()}
    assert _read(kept, ExecutionRecord) == _read(live, ExecutionRecord)
    activities = dict(store.scan(Table.ACTIVITIES))
    of_workflows = [activity for activity in s.activities.values() if not activity.execution.is_task]
    wanted = {(each.execution.number, each.activity_id): encode_activity(each) for each in of_workflows}
    assert _read(activities, ActivityRecord) == _read(wanted, ActivityRecord)
    schedules = {key: data for (key,), data in store.scan(Table.SCHEDULES)}
    listed = {key: encode_schedule(schedule) for key, schedule in s.schedules.items()}
    assert _read(schedules, ScheduleRecord) == _read(listed, ScheduleRecord)
    closed = [decode_execution(data)[0] for table in (Table.CLOSED, Table.DEAD) for _, data in store.scan(table)]
    assert s.dead_count == store.count(Table.DEAD) <= s.limits.dead_letters_max
    if s.limits.closed_executions_max:  # else only those are counted that closed since the start
        assert s.closed_count == store.count(Table.CLOSED)
    assert not s.limits.closed_executions_max or s.closed_count <= s.limits.closed_executions_max
    assert {run_id for (run_id,), _ in store.scan(Table.RUNS)} == {execution.run_id for execution in closed}
    assert {key for key, _ in store.scan(Table.IDS)} == {(each.workflow_id, each.number) for each in closed}
    requests = {request for execution in closed for request in execution.request_keys}
    assert {key for key, _ in store.scan(Table.REQUESTS)} == requests
    histories = {key[0] for key, _ in store.scan(Table.HISTORY)}
    assert histories == kept.keys() | {execution.number for execution in closed}
    assert (s.changed, s.changed_activities, s.changed_schedules, s.just_closed) == ({}, {}, {}, {})
    assert not any(execution.unsaved for execution in s.executions.values())
