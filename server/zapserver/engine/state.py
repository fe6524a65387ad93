"""Everything that one namespace is at this moment, and the few operations that all its machines share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from zapserver.engine.commands import PeerKey, QueueKind
from zapserver.engine.effects import Effect
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


class State:
    """The records of a namespace, indexed. Only the engine's own modules touch it."""

    def __init__(self, *, new_id: Callable[[], str], random: Callable[[], float], limits: Limits) -> None:
        self.new_id = new_id
        self.random = random
        self.limits = limits
        self.effects: list[Effect] = []
        self.timers = Timers()
        self.executions: dict[str, Execution] = {}
        self.runs: dict[str, list[Execution]] = {}
        self.closed: deque[Execution] = deque()
        self.open_count = 0
        self.activities: dict[str, Activity] = {}
        self.queues: dict[tuple[QueueKind, str], TaskQueue] = {}
        self.peers: dict[PeerKey, Peer] = {}
        self.schedules: dict[str, Schedule] = {}
        self.queries: dict[str, PendingQuery] = {}
        self.request_ids: dict[RequestKey, str] = {}
        self.dead_letters: dict[str, Execution] = {}
        self.ended: deque[Execution] = deque()
        """Executions with a parent or children that closed in this step; their relatives are told when it ends."""
        self.freed_schedules: list[Schedule] = []
        """Schedules with a buffered run of which another run closed in this step; looked at when it ends."""
        self._order = 0

    # --- finding ---------------------------------------------------------------------------------

    def execution(self, workflow_id: str, run_id: str = "") -> Execution:
        """The run that is named, or the latest of the workflow id."""
        if run_id:
            found = self.executions.get(run_id)
            if found is not None and (not workflow_id or found.workflow_id == workflow_id):
                return found
        elif runs := self.runs.get(workflow_id):
            return runs[-1]
        # Go's peers look for these three words.
        raise NotFound("workflow not found")

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

    # --- changes -----------------------------------------------------------------------------------

    def record(self, execution: Execution, event_type: EventType, now_ms: int, **attributes: Any) -> Event:
        """Append an event to the history of an execution."""
        event = Event(execution.history_length + 1, now_ms, event_type, attributes)
        execution.history.append(event)
        self.touch(execution)
        return event

    def events(self, execution: Execution, after: int = 0, limit: int | None = None) -> list[Event]:
        """The events with ids past `after`, in order."""
        return execution.history[after : None if limit is None else after + limit]

    def touch(self, execution: Execution) -> None:
        """Something of `execution` changed that has to be kept."""

    def touch_activity(self, activity: Activity) -> None:
        """Something of `activity` changed that has to be kept; also said when it begins and when it closes."""

    def touch_schedule(self, schedule: Schedule) -> None:
        """Something of `schedule` changed that has to be kept; also said when it is made and when it is deleted."""

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
        )
        task.lease = lease
        self.peer(subscription.peer).leases[token] = task
        return lease

    def release(self, task: QueuedTask) -> Subscription | None:
        """End the lease of `task`; the subscription with a slot free now, if it still exists, to be served next."""
        lease = task.lease
        if lease is None:
            return None
        task.lease = None
        peer = self.peers.get(lease.peer)
        if peer is None:
            return None
        peer.leases.pop(lease.token, None)
        subscription = peer.subscriptions.get(lease.subscription_id)
        if subscription is not None:
            subscription.held -= 1
        return subscription
