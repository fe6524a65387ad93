"""Everything that one namespace is at this moment, and the few operations that all its machines share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

from zapserver.engine import archive
from zapserver.engine.commands import PeerKey, QueueKind
from zapserver.engine.effects import Effect, HistoryGrew
from zapserver.engine.errors import NotFound
from zapserver.engine.limits import Limits
from zapserver.engine.queues import TaskQueue
from zapserver.engine.records import (
    Activity,
    Event,
    EventType,
    Execution,
    Lease,
    Peer,
    PendingQuery,
    QueuedTask,
    RequestKey,
    Schedule,
    Subscription,
)
from zapserver.engine.timers import Timers
from zapserver.store.interface import Reader


class State:
    """The records of a namespace, indexed. Only the engine's own modules touch it."""

    def __init__(
        self, *, new_id: Callable[[], str], random: Callable[[], float], limits: Limits, reader: Reader
    ) -> None:
        self.reader = reader
        """What was decided in earlier steps and has left memory."""
        self.new_id = new_id
        self.random = random
        self.limits = limits
        self.effects: list[Effect] = []
        self.timers = Timers()
        self.executions: dict[str, Execution] = {}
        """The open ones, by run id, in the order of their starts."""
        self.open_ids: dict[str, Execution] = {}
        """The same by workflow id, of which one is open at a time."""
        self.just_closed: dict[str, Execution] = {}
        """By run id, those that closed in this step."""
        self.closed_count = 0
        """Not counting dead letters; only what closed since the start where nothing bounds it."""
        self.dead_count = 0
        self.activities: dict[str, Activity] = {}
        self.queues: dict[tuple[QueueKind, str], TaskQueue] = {}
        self.peers: dict[PeerKey, Peer] = {}
        self.schedules: dict[str, Schedule] = {}
        self.queries: dict[str, PendingQuery] = {}
        self.request_ids: dict[RequestKey, str] = {}
        """Run ids of the open executions that answer them."""
        self.freed_schedules: list[tuple[Schedule, Execution]] = []
        """Schedules of which a run closed in this step, and that run; looked at when the step ends."""
        self.ended: deque[Execution] = deque()
        """Executions with a parent or children that closed in this step; their relatives are told when it ends."""
        self._order = 0
        self.next_number = 1
        self.numbers_reserved = 1
        """Up to here, not included, the store knows numbers as taken."""
        self.changed: dict[int, Execution] = {}
        self.changed_activities: dict[str, Activity] = {}
        self.changed_schedules: dict[str, Schedule] = {}
        self.removed: list[Execution] = []
        """Closed executions to forget altogether."""
        self.calmed: list[Execution] = []
        """Dead letters that are none any more."""

    # --- finding ---------------------------------------------------------------------------------

    def execution(self, workflow_id: str, run_id: str = "") -> Execution:
        """The run that is named, or the latest of the workflow id."""
        found = self.run(run_id) if run_id else self.latest(workflow_id)
        if found is not None and (not run_id or not workflow_id or found.workflow_id == workflow_id):
            return found
        # Go's peers look for these three words.
        raise NotFound("workflow not found")

    def run(self, run_id: str) -> Execution | None:
        """The run with this id, open or closed."""
        return self.executions.get(run_id) or self.just_closed.get(run_id) or archive.closed_run(self.reader, run_id)

    def latest(self, workflow_id: str) -> Execution | None:
        """The run of this workflow id that started last, open or closed."""
        found = self.open_ids.get(workflow_id)
        if found is None:
            for closed in self.just_closed.values():
                if closed.workflow_id == workflow_id and (found is None or closed.number > found.number):
                    found = closed
        return found or archive.latest_closed(self.reader, workflow_id)

    def peer(self, key: PeerKey) -> Peer:
        peer = self.peers.get(key)
        if peer is None:
            peer = self.peers[key] = Peer()
        return peer

    def queue(self, key: tuple[QueueKind, str]) -> TaskQueue:
        queue = self.queues.get(key)
        if queue is None:
            queue = self.queues[key] = TaskQueue()
        return queue

    def drop_queue_if_unused(self, key: tuple[QueueKind, str]) -> None:
        queue = self.queues.get(key)
        if queue is not None and queue.is_unused:
            del self.queues[key]
            if queue.rate is not None:
                self.timers.remove(queue.rate)

    # --- changes -----------------------------------------------------------------------------------

    def record(self, execution: Execution, event_type: EventType, now_ms: int, **attributes: Any) -> Event:
        """Append an event to the history of an execution."""
        execution.history_length += 1
        event = Event(execution.history_length, now_ms, event_type, attributes)
        execution.last_event_ms = now_ms
        execution.unsaved.append(event)
        execution.history_bytes += event.size
        self.changed[execution.number] = execution
        if execution.watchers:
            self._tell_watchers(execution)
        return event

    def _tell_watchers(self, execution: Execution) -> None:
        for waiter, watch in execution.watchers.items():
            del self.peers[watch.peer].watching[waiter]
            self.effects.append(
                HistoryGrew(
                    waiter=waiter, workflow_id=execution.workflow_id, run_id=execution.run_id, after=watch.after
                )
            )
        execution.watchers.clear()

    def events(self, execution: Execution, after: int = 0, limit: int | None = None) -> list[Event]:
        """The events with ids past `after`, in order."""
        stored = execution.history_length - len(execution.unsaved)
        found: list[Event] = []
        if after < stored:
            found += islice(archive.events(self.reader, execution.number, after), limit)
        unsaved = execution.unsaved[max(after - stored, 0) :]
        return found + (unsaved if limit is None else unsaved[: limit - len(found)])

    def touch(self, execution: Execution) -> None:
        """Something of `execution` changed that has to be kept."""
        self.changed[execution.number] = execution

    def touch_activity(self, activity: Activity) -> None:
        """Something of `activity` changed that has to be kept; also said when it begins and when it closes."""
        if activity.execution.is_task:
            self.changed[activity.execution.number] = activity.execution
        else:
            self.changed_activities[activity.activity_id] = activity

    def touch_task(self, task: QueuedTask) -> None:
        """Something of an activity or of a workflow task changed."""
        if isinstance(task, Activity):
            self.touch_activity(task)
        else:
            self.changed[task.execution.number] = task.execution

    def touch_schedule(self, schedule: Schedule) -> None:
        """Something of `schedule` changed that has to be kept; also said when it is made and when it is deleted."""
        self.changed_schedules[schedule.schedule_id] = schedule

    # --- leases ----------------------------------------------------------------------------------

    def next_order(self) -> int:
        self._order += 1
        return self._order

    def lease(self, task: QueuedTask, subscription: Subscription, token: str, now_ms: int) -> Lease:
        """Make `subscription` the holder of `task`. Its slot is taken by the queue already."""
        lease = Lease(
            token,
            subscription.peer,
            subscription.subscription_id,
            subscription.identity,
            now_ms,
            now_ms,
            subscription.replays,
            build_id=subscription.build_id,
        )
        task.lease = lease
        self.touch_task(task)
        self.peer(subscription.peer).leases[token] = task
        return lease

    def release(self, task: QueuedTask) -> Subscription | None:
        """End the lease of `task`; the subscription with a slot free now, if it still exists, to be served next."""
        lease = task.lease
        if lease is None:
            return None
        task.lease = None
        self.touch_task(task)
        peer = self.peers.get(lease.peer)
        if peer is None:
            return None
        peer.leases.pop(lease.token, None)
        subscription = peer.subscriptions.get(lease.subscription_id)
        if subscription is not None:
            subscription.held -= 1
        return subscription
