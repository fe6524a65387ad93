"""Task queues: who waits for work, what work waits, and which goes to whom.

A queue never has both an idle subscription and a task that it would take: whoever comes second
is matched at once, but for a rate that is spent: then both wait until `next_pair` is asked. Nothing
polls, and no other operation walks over all subscriptions, tasks or types: a process that adds a
hundred schedules subscribes a hundred times, and a namespace has many of them.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from typing import TypeAlias, TypeVar

from zapserver.engine.commands import QueueKind
from zapserver.engine.rate import DeliveryRate, QueueRate
from zapserver.engine.records import QueuedTask, Subscription, WorkerKind

SubscriptionKey: TypeAlias = tuple[str | None, WorkerKind]
"""A type that it names, or None for all, and its kind."""

TaskKey: TypeAlias = tuple[str, WorkerKind | None]
"""A task's type, and the kind of worker that it is for."""

STALE_ORDERS_MIN = 64
"""Below this many a sweep is not worth its time."""


class _Line:
    """Waiting tasks, in the order of `QueuedTask.order`.

    New tasks come in that order and stand in a row. A task that comes back from a worker belongs
    before them, and a whole worker's tasks come back at once: those stand apart, ordered by a heap.
    """

    __slots__ = ("_orders", "_returned", "_row")

    def __init__(self) -> None:
        self._row: OrderedDict[int, QueuedTask] = OrderedDict()
        self._returned: dict[int, QueuedTask] = {}
        self._orders: list[int] = []
        """A heap of the orders in `_returned`, and of some that left it."""

    def __len__(self) -> int:
        return len(self._row) + len(self._returned)

    def append(self, task: QueuedTask) -> None:
        self._row[task.order] = task

    def put_back(self, task: QueuedTask) -> None:
        self._returned[task.order] = task
        if len(self._orders) > 2 * len(self._returned) + STALE_ORDERS_MIN:
            self._orders = list(self._returned)
            heapq.heapify(self._orders)
        else:
            heapq.heappush(self._orders, task.order)

    def remove(self, task: QueuedTask) -> bool:
        return (self._row.pop(task.order, None) or self._returned.pop(task.order, None)) is not None

    def first(self) -> QueuedTask:
        """The task that waits at the head; the line is not empty."""
        orders = self._orders
        while orders and orders[0] not in self._returned:
            heapq.heappop(orders)
        if not orders or (self._row and next(iter(self._row)) < orders[0]):
            return next(iter(self._row.values()))
        return self._returned[orders[0]]


class TaskQueue:
    """One queue of one kind. Tasks leave in the order of `QueuedTask.order`, subscriptions take turns."""

    __slots__ = ("_idle", "_lines", "_serving", "_turns", "_whole", "rate", "rates", "subscriptions")

    def __init__(self) -> None:
        self.subscriptions: dict[str, Subscription] = {}
        self._serving: dict[SubscriptionKey, OrderedDict[str, Subscription]] = {}
        """The same under each type that they name, or under None for those that take any."""
        self._lines: dict[TaskKey, _Line] = {}
        """By task type, for subscriptions that name their types."""
        self._whole: dict[WorkerKind | None, _Line] = {}
        """The same tasks without their types, for subscriptions that take any type."""
        self._idle: dict[SubscriptionKey, OrderedDict[str, Subscription]] = {}
        """Those of them with a slot free. A delivery moves its receiver to the end of that type's row."""
        self._turns = 0
        self.rates: dict[str, float] = {}
        """What subscriptions state of the queue's rate, by subscription."""
        self.rate: QueueRate | None = None
        """The smallest of them."""

    def __len__(self) -> int:
        """How many tasks wait."""
        waiting = 0
        for line in self._whole.values():  # one or two: a sum over a generator took three times as long
            waiting += len(line)
        return waiting

    @property
    def is_unused(self) -> bool:
        return not self.subscriptions and not self._whole

    @property
    def is_spent(self) -> bool:
        """Whether nothing goes out now, whoever is idle."""
        return self.rate is not None and self.rate.is_spent

    # --- work ------------------------------------------------------------------------------------

    def put(self, task: QueuedTask) -> Subscription | None:
        """A new task is ready: the subscription that gets it, or None and it waits at the end of its line."""
        subscription = self._take_turn(task)
        if subscription is None:
            _line(self._lines, (task.type, task.for_kind)).append(task)
            _line(self._whole, task.for_kind).append(task)
        return subscription

    def put_back(self, task: QueuedTask) -> Subscription | None:
        """A task that was out is ready again: the same, but it waits in its old place."""
        subscription = self._take_turn(task)
        if subscription is None:
            _line(self._lines, (task.type, task.for_kind)).put_back(task)
            _line(self._whole, task.for_kind).put_back(task)
        return subscription

    def withdraw(self, task: QueuedTask) -> None:
        """A waiting task is no longer wanted; harmless when it does not wait."""
        _remove(self._lines, (task.type, task.for_kind), task)
        _remove(self._whole, task.for_kind, task)

    def _take_turn(self, task: QueuedTask) -> Subscription | None:
        """Take a slot of the idle subscription that the task prefers, or else of the one among those that serve it
        whose last turn was the longest ago."""
        if not self._idle or self.is_spent:
            return None
        chosen = self._preferred(task)
        if chosen is None:
            for key in _keys_for(task.type, task.for_kind):
                for subscription in self._idle.get(key, _NOBODY).values():
                    if subscription.serves(task.type):
                        if chosen is None or subscription.turn < chosen.turn:
                            chosen = subscription
                        break
        if chosen is not None:
            self._turns += 1
            chosen.turn = self._turns
            chosen.held += 1
            self.credit(chosen)
            if chosen.is_idle:
                type_named = None if chosen.types is None else task.type
                self._idle[type_named, chosen.kind].move_to_end(chosen.subscription_id)
        return chosen

    def next_pair(self) -> tuple[QueuedTask, Subscription] | None:
        """Take the first waiting task that an idle subscription serves, and its slot. For a rate that was spent: only
        then do both wait. What nobody serves at the head of the line costs a look at each type that waits."""
        if not self._idle or self.is_spent:
            return None
        for task in self._heads():
            subscription = self._take_turn(task)
            if subscription is not None:
                self.withdraw(task)
                return task, subscription
        return None

    def _heads(self) -> Iterator[QueuedTask]:
        """The first task in line, and then the first of each type, in order."""
        yield from (line.first() for line in list(self._whole.values()))
        yield from sorted((line.first() for line in self._lines.values()), key=lambda task: task.order)

    def _preferred(self, task: QueuedTask) -> Subscription | None:
        name = task.preferred_subscription
        found = self.subscriptions.get(name) if name else None
        return found if found is not None and found.is_idle and found.serves(task.type) else None

    # --- subscriptions -----------------------------------------------------------------------------

    def add(self, subscription: Subscription) -> None:
        """It does not count as idle before `credit`: what waits already comes first, by `next_for`."""
        self.subscriptions[subscription.subscription_id] = subscription
        if subscription.queue_per_second:
            self.rates[subscription.subscription_id] = subscription.queue_per_second
        _enter(self._serving, subscription)

    def remove(self, subscription: Subscription) -> None:
        del self.subscriptions[subscription.subscription_id]
        self.rates.pop(subscription.subscription_id, None)
        _leave(self._serving, subscription)
        self.credit(subscription)

    def able(self, task_type: str, kind: WorkerKind | None = None) -> list[Subscription]:
        """Who takes this type, busy or not."""
        return [
            subscription
            for key in _keys_for(task_type, kind)
            for subscription in self._serving.get(key, _NOBODY).values()
            if subscription.serves(task_type)
        ]

    def next_for(self, subscription: Subscription) -> QueuedTask | None:
        """Take the first waiting task that `subscription` serves and has a slot for. Call `credit` when done."""
        if not subscription.has_room or not self._whole or self.is_spent:
            return None
        task = self._first_for(subscription)
        if task is not None:
            self.withdraw(task)
            self._turns += 1
            subscription.turn = self._turns
            subscription.held += 1
        return task

    def _first_for(self, subscription: Subscription) -> QueuedTask | None:
        types, unknown, kinds = subscription.types, subscription.unknown_types, (None, subscription.kind)
        if types is None and not unknown:
            heads = [self._whole[kind].first() for kind in kinds if kind in self._whole]
        elif types is None or len(self._lines) < len(types):
            heads = [
                line.first()
                for (name, kind), line in self._lines.items()
                if kind in kinds and subscription.serves(name)
            ]
        else:
            keys = [(name, kind) for name in types for kind in kinds]
            heads = [self._lines[key].first() for key in keys if key in self._lines and subscription.serves(key[0])]
        return min(heads, key=lambda task: task.order, default=None)

    def credit(self, subscription: Subscription) -> None:
        """Take note of whether `subscription` has a slot free now."""
        is_idle = subscription.has_room and subscription.subscription_id in self.subscriptions
        if is_idle is not subscription.is_idle:
            subscription.is_idle = is_idle
            (_enter if is_idle else _leave)(self._idle, subscription)

    def pass_turn(self, subscription: Subscription) -> None:
        """Let every other idle subscription go before this one."""
        self._turns += 1
        subscription.turn = self._turns
        if subscription.is_idle:
            for key in _keys(subscription):
                self._idle[key].move_to_end(subscription.subscription_id)

    # --- for `explain` -------------------------------------------------------------------------------

    def why_waiting(self, task: QueuedTask) -> str:
        """What a task in line waits for, in words."""
        kind, name = task.queue
        if not self.subscriptions:
            what = "workflows" if kind is QueueKind.WORKFLOW else "activities and tasks"
            return f"no worker is subscribed to task queue {name!r} for {what}"
        willing = self.able(task.type, task.for_kind)
        if not willing and task.for_kind is not None and self.able(task.type):
            return (
                f"it goes on with a {task.for_kind.name.lower()} worker only, and none on task queue {name!r} serves it"
            )
        if willing and all(subscription.is_full for subscription in willing):
            return f"the {len(willing)} worker(s) on task queue {name!r} that serve it have yet to read earlier tasks"
        if willing and self.rate is not None and self.rate.is_spent:
            return f"the rate limit of task queue {name!r} holds it back: {_until(self.rate)}"
        for subscription in willing:
            rate = subscription.rate
            if rate is not None and rate.is_spent and subscription.held < subscription.slots:
                return f"the rate limit of worker {subscription.identity!r} holds it back: {_until(rate)}"
        if willing:
            slots = sum(subscription.slots for subscription in willing)
            return f"all {slots} slot(s) of the {len(willing)} worker(s) on task queue {name!r} that serve it are taken"
        if any(key in self._serving for key in _keys_for(task.type, None)):
            return f"every worker on task queue {name!r} that could serve {task.type!r} said that it does not know it"
        return f"none of the {len(self.subscriptions)} worker(s) on task queue {name!r} serves {task.type!r}"


def _until(rate: DeliveryRate) -> str:
    moment = datetime.fromtimestamp((rate.next_ms or 0) / 1000, UTC).isoformat(timespec="milliseconds")
    return f"{rate.per_second:g} a second, and the next one may go out at {moment}"


_NOBODY: OrderedDict[str, Subscription] = OrderedDict()


_Key = TypeVar("_Key")

_ANY_KIND = (WorkerKind.HOLDING, WorkerKind.REPLAYING)


def _keys(subscription: Subscription) -> Collection[SubscriptionKey]:
    types = (None,) if subscription.types is None else subscription.types
    return [(name, subscription.kind) for name in types]


def _keys_for(task_type: str, kind: WorkerKind | None) -> Collection[SubscriptionKey]:
    """Where the subscriptions are that may serve a task."""
    kinds = _ANY_KIND if kind is None else (kind,)
    return [(name, kind) for name in (task_type, None) for kind in kinds]


def _line(lines: dict[_Key, _Line], key: _Key) -> _Line:
    line = lines.get(key)
    if line is None:
        line = lines[key] = _Line()
    return line


def _remove(lines: dict[_Key, _Line], key: _Key, task: QueuedTask) -> None:
    line = lines.get(key)
    if line is not None and line.remove(task) and not line:
        del lines[key]


def _enter(rows: dict[SubscriptionKey, OrderedDict[str, Subscription]], subscription: Subscription) -> None:
    for key in _keys(subscription):
        rows.setdefault(key, OrderedDict())[subscription.subscription_id] = subscription


def _leave(rows: dict[SubscriptionKey, OrderedDict[str, Subscription]], subscription: Subscription) -> None:
    for key in _keys(subscription):
        row = rows[key]
        del row[subscription.subscription_id]
        if not row:
            del rows[key]
