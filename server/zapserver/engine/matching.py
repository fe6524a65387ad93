"""From a task that is ready to a delivery on its way: the meeting of `queues` with leases and effects."""

from __future__ import annotations

import msgspec

from zapserver.engine import histories, updates
from zapserver.engine.commands import QueueKind
from zapserver.engine.effects import DeliverActivityTask, DeliverWorkflowTask, PeerFull
from zapserver.engine.queues import TaskQueue
from zapserver.engine.rate import DeliveryRate, PeerRate, QueueRate
from zapserver.engine.records import (
    Activity,
    ActivityState,
    EventType,
    Execution,
    Peer,
    QueuedTask,
    Subscription,
    WorkflowTask,
)
from zapserver.engine.state import State

DELIVERY_BYTES = 500
"""About what a delivery has beside its payloads."""


def enqueue(s: State, task: QueuedTask, now_ms: int) -> None:
    """A task is ready: hand it to a waiting worker, or put it at the end of its line."""
    task.order = s.next_order()
    task.ready_ms = now_ms
    s.touch_task(task)
    subscription = s.queue(task.queue).put(task)
    if subscription is not None:
        _deliver(s, task, subscription, now_ms)


def put_back(s: State, tasks: list[QueuedTask], now_ms: int) -> None:
    """Tasks whose holders are gone go to others at once, or to their old places in line."""
    for task in sorted(tasks, key=lambda task: task.order):
        task.ready_ms = now_ms
        s.touch_task(task)
        subscription = s.queue(task.queue).put_back(task)
        if subscription is not None:
            _deliver(s, task, subscription, now_ms)


def serve(s: State, subscription: Subscription, now_ms: int) -> None:
    """Fill the free slots of a subscription from the line."""
    queue = s.queues[subscription.queue]
    while (task := queue.next_for(subscription)) is not None:
        _deliver(s, task, subscription, now_ms)
    queue.credit(subscription)


def finish(s: State, task: QueuedTask, now_ms: int) -> None:
    """End the lease of `task`; the slot that it frees takes the next waiting task."""
    subscription = s.release(task)
    if subscription is not None:
        serve(s, subscription, now_ms)


def pass_on(s: State, task: QueuedTask, now_ms: int) -> None:
    """The holder returns `task`: to another if one is idle, else to its old place in line.

    The holder takes what else waits first, and gets this one again only when nobody else would.
    """
    subscription = s.release(task)
    if subscription is not None:
        serve(s, subscription, now_ms)
        s.queues[subscription.queue].pass_turn(subscription)
    put_back(s, [task], now_ms)


def withdraw(s: State, task: QueuedTask) -> None:
    """Take a waiting task out of its line."""
    queue = s.queues.get(task.queue)
    if queue is not None:
        queue.withdraw(task)
        s.drop_queue_if_unused(task.queue)


def resume(s: State, peer: Peer, now_ms: int) -> None:
    """The peer has taken what it got: go on with what waits for it."""
    peer.burst_bytes, peer.is_full = 0, False
    for subscription in peer.subscriptions.values():
        subscription.is_full = False
    _serve_in_turn(s, peer, now_ms)


def _serve_in_turn(s: State, peer: Peer, now_ms: int) -> None:
    """Serve the subscriptions of a peer until it has got as much as it may."""
    for key in list(peer.subscriptions):
        # Who is served now comes last when it goes on, so that one backlog does not keep the others waiting.
        subscription = peer.subscriptions[key] = peer.subscriptions.pop(key)
        serve(s, subscription, now_ms)
        if peer.is_full or (subscription.rate is not None and subscription.rate.is_spent):
            break


# --- rates of deliveries ---------------------------------------------------------------------------


def state_rates(s: State, subscription: Subscription, per_second: float, now_ms: int) -> None:
    """Take note of the rates that a new subscription states, before it is served."""
    if per_second:
        peer = s.peer(subscription.peer)
        rate = subscription.rate = peer.rate = peer.rate or PeerRate(per_second, peer=subscription.peer)
        if rate.per_second != per_second and _is_freed(s, rate, per_second, now_ms):
            _serve_in_turn(s, peer, now_ms)
    if subscription.queue_per_second:
        review_queue_rate(s, subscription.queue, now_ms)


def review_queue_rate(s: State, key: tuple[QueueKind, str], now_ms: int) -> None:
    """A subscription came or went: the smallest rate that is stated counts."""
    queue = s.queues.get(key)
    if queue is None or (queue.rate is None and not queue.rates):
        return
    per_second = min(queue.rates.values(), default=0.0)
    if queue.rate is None:
        queue.rate = QueueRate(per_second, queue=key)
    elif not per_second:
        s.timers.remove(queue.rate)
        queue.rate = None
        _serve_queue(s, queue, now_ms)
    elif queue.rate.per_second != per_second and _is_freed(s, queue.rate, per_second, now_ms):
        _serve_queue(s, queue, now_ms)


def _is_freed(s: State, rate: DeliveryRate, per_second: float, now_ms: int) -> bool:
    """Change a rate: whether what waits for it need not wait any more."""
    was_spent = rate.is_spent
    rate.change(per_second, now_ms)
    _rate_changed(s, rate)
    return was_spent and not rate.is_spent


def rate_recovered(s: State, rate: DeliveryRate, now_ms: int) -> None:
    """The next delivery under a rate that was spent may go out."""
    rate.open()
    match rate:
        case PeerRate():
            _serve_in_turn(s, s.peers[rate.peer], now_ms)
        case QueueRate():
            _serve_queue(s, s.queues[rate.queue], now_ms)


def _serve_queue(s: State, queue: TaskQueue, now_ms: int) -> None:
    while (pair := queue.next_pair()) is not None:
        task, subscription = pair
        _deliver(s, task, subscription, now_ms)


def _spend(s: State, subscription: Subscription, now_ms: int) -> None:
    """A delivery goes out under the rates of its worker and its queue."""
    for rate in (subscription.rate, s.queues[subscription.queue].rate):
        if rate is not None:
            rate.take(now_ms)
            if rate.is_spent:
                _rate_changed(s, rate)


def _rate_changed(s: State, rate: DeliveryRate) -> None:
    s.timers.update(rate)
    if isinstance(rate, PeerRate):
        for subscription in s.peers[rate.peer].subscriptions.values():
            if subscription.rate is rate:
                s.queues[subscription.queue].credit(subscription)


def _deliver(s: State, task: QueuedTask, subscription: Subscription, now_ms: int) -> None:
    task.attempt += 1
    execution = task.execution
    if not isinstance(task, Activity) or execution.is_task:
        execution.build_id = subscription.build_id
    if isinstance(task, Activity):
        _deliver_activity(s, task, subscription, now_ms)
        _spend(s, subscription, now_ms)
        payload_bytes = len(task.input or b"") + len(task.heartbeat_details or b"")
        _count(s, subscription, payload_bytes + _header_bytes(execution))
    else:
        assert isinstance(task, WorkflowTask)
        deliver = _deliver_to_replaying_worker if subscription.replays else _deliver_to_holder
        _count(s, subscription, deliver(s, task, subscription, now_ms))


def _header_bytes(execution: Execution) -> int:
    return len(msgspec.json.encode(execution.headers)) if execution.headers else 0


def _count(s: State, subscription: Subscription, payload_bytes: int) -> None:
    """A backlog of large payloads must not go out at once: the connection could not hold it, and would be
    closed as that of a peer that does not read."""
    peer = s.peer(subscription.peer)
    peer.burst_bytes += DELIVERY_BYTES + payload_bytes
    if peer.burst_bytes > s.limits.burst_bytes_max and not peer.is_full:
        peer.is_full = True
        for other in peer.subscriptions.values():
            other.is_full = True
            s.queues[other.queue].credit(other)
        s.effects.append(PeerFull(peer=subscription.peer))


def _deliver_activity(s: State, activity: Activity, subscription: Subscription, now_ms: int) -> None:
    execution = activity.execution
    lease = s.lease(activity, subscription, f"act|{activity.activity_id}|{activity.attempt}|{s.new_id()}", now_ms)
    activity.charged += 1
    activity.state = ActivityState.STARTED
    s.touch_activity(activity)
    s.timers.update(activity)
    s.record(
        execution,
        EventType.ACTIVITY_STARTED,
        now_ms,
        activityId=activity.activity_id,
        attempt=activity.attempt,
        **lease.holder,
    )
    s.effects.append(
        DeliverActivityTask(
            peer=subscription.peer,
            task_token=lease.token,
            workflow_id=execution.workflow_id,
            run_id=execution.run_id,
            activity_id=activity.activity_id,
            activity_type=activity.type,
            input=activity.input,
            scheduled_ms=activity.scheduled_ms,
            start_to_close_ms=activity.timeouts.start_to_close_ms,
            heartbeat_ms=activity.timeouts.heartbeat_ms,
            attempt=activity.attempt,
            maximum_attempts=activity.retry_policy.maximum_attempts,
            is_task=execution.is_task,
            heartbeat_details=activity.heartbeat_details,
            headers=execution.headers,
        )
    )


def _lease_workflow_task(s: State, task: WorkflowTask, subscription: Subscription, now_ms: int) -> str:
    execution = task.execution
    token = f"wf|{execution.workflow_id}|{execution.run_id}|{task.attempt}|{s.new_id()}"
    s.lease(task, subscription, token, now_ms)
    s.touch(execution)
    return token


def _deliver_to_holder(s: State, task: WorkflowTask, subscription: Subscription, now_ms: int) -> int:
    """Deliver a run to a worker of the Go kind; about how many bytes that are."""
    execution = task.execution
    token = _lease_workflow_task(s, task, subscription, now_ms)
    updates.taken_by_holder(s, execution)
    task.calls_made = 0
    s.effects.append(
        DeliverWorkflowTask(
            peer=subscription.peer,
            task_token=token,
            workflow_id=execution.workflow_id,
            run_id=execution.run_id,
            workflow_type=execution.type,
            input=execution.input,
            attempt=task.attempt,
            headers=execution.headers,
        )
    )
    return len(execution.input or b"") + _header_bytes(execution)


def _deliver_to_replaying_worker(s: State, task: WorkflowTask, subscription: Subscription, now_ms: int) -> int:
    """Deliver what the worker lacks of the history; about how many bytes that are."""
    execution = task.execution
    token = _lease_workflow_task(s, task, subscription, now_ms)
    cache = execution.cached_by
    has_it = cache is not None and cache.subscription_id == subscription.subscription_id
    previous_event_id = cache.last_event_id if cache is not None and has_it else 0
    events, size = histories.chunk(s, execution, previous_event_id)
    requests = updates.hand_out(execution)
    assert task.lease is not None
    task.lease.has_updates = bool(requests)
    task.last_event_id = execution.history_length
    task.has_news = execution.news_event_id > execution.seen_event_id
    told_event_id = events[-1].event_id if events else previous_event_id
    s.timers.update(execution)
    s.effects.append(
        DeliverWorkflowTask(
            peer=subscription.peer,
            task_token=token,
            workflow_id=execution.workflow_id,
            run_id=execution.run_id,
            workflow_type=execution.type,
            input=execution.input,
            attempt=task.attempt,
            replays=True,
            history=tuple(events),
            previous_event_id=previous_event_id,
            last_event_id=task.last_event_id,
            next_event_id=told_event_id + 1 if told_event_id < task.last_event_id else 0,
            task_timeout_ms=execution.task_timeout_ms,
            updates=requests,
        )
    )
    return size + sum(len(request.args or b"") for request in requests)
