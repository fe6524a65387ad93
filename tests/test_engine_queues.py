"""Task queues: who gets which task, in which order, and never more than announced."""

from __future__ import annotations

import pytest
from tests.helpers.engine_driver import Driver, failure
from tests.helpers.engine_invariants import waiting_tasks

from zapserver.engine import Limits
from zapserver.engine import commands as c
from zapserver.engine.commands import QueueKind
from zapserver.engine.effects import PeerFull
from zapserver.engine.errors import Invalid, LimitReached, NotFound
from zapserver.engine.queues import TaskQueue
from zapserver.engine.records import Execution, QueuedTask, Subscription
from zapserver.engine.retry import RetryPolicy

ONCE = RetryPolicy(maximum_attempts=1)


def test_a_waiting_worker_gets_a_task_in_the_step_that_submits_it() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit()
    assert [task.run_id for task in d.tasks(1)] == [started.run_id]


def test_the_whole_backlog_goes_to_the_next_subscriber_in_order() -> None:
    d = Driver()
    runs = [d.submit().run_id for _ in range(50)]
    d.subscribe(1)
    assert [task.run_id for task in d.tasks(1)] == runs
    d.subscribe(2)
    assert d.tasks(2) == [], "nothing is delivered twice"


def test_a_backlog_beyond_the_slots_goes_on_with_every_completion_in_order() -> None:
    d = Driver()
    runs = [d.submit().run_id for _ in range(20)]
    d.subscribe(1, slots=3)
    done = 0
    while done < len(d.tasks(1)):
        assert len(d.tasks(1)) - done <= 3
        d.complete(d.tasks(1)[done])
        done += 1
    assert [task.run_id for task in d.tasks(1)] == runs


def test_several_workers_share_a_backlog_and_new_tasks_in_turn() -> None:
    d = Driver()
    runs = [d.submit().run_id for _ in range(6)]
    for peer in (1, 2, 3):
        d.subscribe(peer, slots=2)
    assert [task.run_id for peer in (1, 2, 3) for task in d.tasks(peer)] == runs
    for task in d.tasks():
        d.complete(task)
    for _ in range(6):
        d.submit()
    assert [task.peer for task in d.tasks()[6:]] == [1, 2, 3, 1, 2, 3]


def test_turns_are_fair_between_workers_of_one_type_and_workers_of_all() -> None:
    d = Driver()
    d.subscribe(1)
    d.subscribe(2, types=["email", "audit"])
    d.subscribe(3, types=["email"])
    for _ in range(9):
        d.submit("email")
    assert sorted(task.peer for task in d.tasks()) == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert len({task.peer for task in d.tasks()[:3]}) == 3


def test_a_worker_gets_only_the_types_that_it_names() -> None:
    d = Driver()
    d.submit("a")
    d.submit("b")
    d.subscribe(1, types=["b", "c"])
    assert [task.activity_type for task in d.tasks(1)] == ["b"]
    d.submit("c")
    d.submit("a")
    assert [task.activity_type for task in d.tasks(1)] == ["b", "c"]
    d.subscribe(2, types=[])
    assert d.tasks(2) == []
    d.subscribe(3)
    assert [task.activity_type for task in d.tasks(3)] == ["a", "a"]


def test_types_wait_in_one_order_together() -> None:
    d = Driver()
    types = ["a", "b", "a", "c", "b", "a"]
    for name in types:
        d.submit(name)
    d.subscribe(1, types=["a", "b", "c"])
    assert [task.activity_type for task in d.tasks(1)] == types


def test_queues_are_apart_by_name_and_by_kind() -> None:
    d = Driver()
    d.subscribe(1, queue="one")
    d.subscribe(2, kind=QueueKind.WORKFLOW)
    d.submit("t", queue="two")
    d.submit("t")
    assert d.tasks() == []
    d.start("t")
    assert [run.peer for run in d.runs()] == [2]
    d.subscribe(3, queue="two")
    assert len(d.tasks(3)) == 1


# --- credits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ending", ["completed", "failed for good", "failed, to be retried", "timed out", "handed back"]
)
def test_every_end_of_a_lease_gives_exactly_one_slot_back(ending: str) -> None:
    d = Driver()
    d.subscribe(1, slots=1)
    timeouts = c.ActivityTimeouts(start_to_close_ms=1_000)
    d.submit("first", retry=RetryPolicy(initial_interval_ms=90_000, maximum_attempts=2), timeouts=timeouts)
    d.submit("second", retry=ONCE)
    d.submit("third", retry=ONCE)
    assert [task.activity_type for task in d.tasks()] == ["first"]
    match ending:
        case "completed":
            d.complete(d.task())
        case "failed for good":
            d.fail(d.task(), failure(non_retryable=True))
        case "failed, to be retried":
            d.fail(d.task())
        case "timed out":
            d.advance(1_000)
        case "handed back":
            d.hand_back(d.task())
    assert [task.activity_type for task in d.tasks()] == ["first", "second"]


def test_a_lost_worker_takes_its_slots_along() -> None:
    d = Driver()
    d.subscribe(1, slots=2)
    d.subscribe(2, slots=1)
    for _ in range(5):
        d.submit()
    d.lose(1)
    assert len(d.tasks(2)) == 1
    d.subscribe(1, slots=2)
    assert len(d.tasks(1)) == 4


def test_fewer_slots_stop_deliveries_until_enough_is_done() -> None:
    d = Driver()
    subscription = d.subscribe(1, slots=3)
    for _ in range(6):
        d.submit()
    d.step(c.SetSlots(peer=1, subscription_id=subscription, slots=1))
    d.complete(d.tasks()[0])
    d.complete(d.tasks()[1])
    assert len(d.tasks()) == 3
    d.complete(d.tasks()[2])
    assert len(d.tasks()) == 4


def test_more_slots_take_from_the_line_at_once() -> None:
    d = Driver()
    subscription = d.subscribe(1, slots=0)
    for _ in range(6):
        d.submit()
    assert d.tasks() == []
    d.step(c.SetSlots(peer=1, subscription_id=subscription, slots=4))
    assert len(d.tasks()) == 4
    d.step(c.SetSlots(peer=1, subscription_id=subscription, slots=5))
    assert len(d.tasks()) == 5


def test_after_unsubscribing_what_is_held_stays_held_and_nothing_new_comes() -> None:
    d = Driver()
    subscription = d.subscribe(1, slots=1)
    started = d.submit()
    d.submit()
    assert d.step(c.Unsubscribe(peer=1, subscription_id=subscription)) is True
    d.complete(d.task())
    assert not d.status(started).is_open
    assert len(d.tasks()) == 1
    assert d.step(c.Unsubscribe(peer=1, subscription_id=subscription)) is False


def test_what_was_held_when_unsubscribing_comes_back_with_the_loss_of_the_connection() -> None:
    d = Driver()
    subscription = d.subscribe(1)
    started = d.submit()
    d.step(c.Unsubscribe(peer=1, subscription_id=subscription))
    d.lose(1)
    d.subscribe(2)
    assert (d.task(2).run_id, d.task(2).attempt) == (started.run_id, 2)


def test_subscriptions_of_one_peer_have_slots_of_their_own() -> None:
    d = Driver()
    first = d.subscribe(1, slots=1, types=["a"])
    second = d.subscribe(1, slots=2, types=["b"])
    assert first != second
    for name in "ababab":
        d.submit(name)
    assert sorted(task.activity_type for task in d.tasks()) == ["a", "b", "b"]
    d.step(c.Unsubscribe(peer=1, subscription_id=first))
    d.complete(d.tasks()[1])
    assert sorted(task.activity_type for task in d.tasks()) == ["a", "b", "b", "b"]


def test_a_peer_without_slots_of_its_own_gets_the_bound() -> None:
    d = Driver(limits=Limits(slots_max=3))
    d.subscribe(1)
    for _ in range(5):
        d.submit()
    assert len(d.tasks()) == 3


@pytest.mark.parametrize("slots", [-1, 10_001])
def test_slots_out_of_range_are_refused(slots: int) -> None:
    d = Driver()
    subscription = d.subscribe(1)
    text = d.refused(c.Subscribe(peer=2, kind=QueueKind.ACTIVITY, task_queue="q", slots=slots), Invalid)
    assert str(slots) in text
    d.refused(c.SetSlots(peer=1, subscription_id=subscription, slots=slots), Invalid)


def test_subscriptions_are_bounded_and_checked() -> None:
    d = Driver(limits=Limits(subscriptions_per_peer_max=1, types_per_subscription_max=2))
    subscription = d.subscribe(1, types=["a", "b"])
    many = c.Subscribe(peer=2, kind=QueueKind.ACTIVITY, task_queue="q", types=frozenset("abc"))
    assert "3 types; at most 2" in d.refused(many, LimitReached)
    d.refused(c.Subscribe(peer=1, kind=QueueKind.ACTIVITY, task_queue="q"), LimitReached)
    d.refused(c.Subscribe(peer=2, kind=QueueKind.ACTIVITY, task_queue=""), Invalid)
    d.refused(c.Subscribe(peer=2, kind=QueueKind.ACTIVITY, task_queue="\t"), Invalid)
    d.refused(c.SetSlots(peer=2, subscription_id=subscription, slots=1), NotFound)
    assert d.step(c.Unsubscribe(peer=2, subscription_id=subscription)) is False
    assert d.step(c.PeerLost(peer=77, reason="never seen")) is None


def test_a_queue_without_work_and_workers_is_forgotten() -> None:
    d = Driver()
    for number in range(5):
        d.subscribe(number, queue=f"q{number}")
        d.lose(number)
        started = d.submit(queue=f"q{number}")
        d.views.explain(started.workflow_id)
        d.cancel(started)
    assert d.engine._state.queues == {}


# --- a peer that has yet to read ---------------------------------------------------------------------------


def _large(d: Driver, count: int, queue: str = "default") -> list[str]:
    return [d.submit(queue=queue, input="x" * 500).run_id for _ in range(count)]


def test_a_backlog_goes_out_in_bursts_in_order_as_the_peer_takes_them() -> None:
    d = Driver(limits=Limits(burst_bytes_max=3_000))
    runs = _large(d, 10)
    d.subscribe(1)
    assert len(d.tasks(1)) == 3
    assert d.all(PeerFull, 1) == [PeerFull(peer=1)]
    (waiting,) = d.views.explain(d.views.execution(_workflow_id(d, runs[5])).workflow_id)
    assert "have yet to read earlier tasks" in waiting.reason
    for number in (6, 9, 10):
        d.step(c.ResumePeer(peer=1))
        assert [task.run_id for task in d.tasks(1)] == runs[:number]
    d.step(c.ResumePeer(peer=1))
    d.step(c.ResumePeer(peer=77))
    assert len(d.all(PeerFull, 1)) == 3


def _workflow_id(d: Driver, run_id: str) -> str:
    return d.views.execution("", run_id).workflow_id


def test_a_full_peer_keeps_its_slots_for_later_and_others_go_on() -> None:
    d = Driver(limits=Limits(burst_bytes_max=1_500))
    d.subscribe(1)
    _large(d, 2)
    d.subscribe(2)
    _large(d, 1)
    assert [len(d.tasks(peer)) for peer in (1, 2)] == [2, 1]
    d.complete(d.tasks(1)[0])
    d.subscribe(1, queue="other")
    _large(d, 1, "other")
    assert len(d.tasks(1)) == 2, "neither a free slot nor another subscription gets it more"
    d.step(c.ResumePeer(peer=1))
    assert len(d.tasks(1)) == 3


def test_heartbeat_details_count_as_well() -> None:
    d = Driver(limits=Limits(burst_bytes_max=5_000))
    d.subscribe(1)
    for _ in range(5):
        d.submit()
    for task in d.tasks(1):
        d.heartbeat(task, "x" * 2_000)
    d.lose(1)
    d.subscribe(2)
    assert len(d.tasks(2)) == 2


def test_a_lost_peer_is_no_longer_full() -> None:
    d = Driver(limits=Limits(burst_bytes_max=1_500))
    d.subscribe(1)
    _large(d, 4)
    d.lose(1)
    d.subscribe(1)
    assert len(d.tasks(1)) == 4


def test_a_long_backlog_does_not_keep_another_subscription_of_the_peer_waiting() -> None:
    d = Driver(limits=Limits(burst_bytes_max=1_500))
    _large(d, 20, "long")
    (short,) = _large(d, 1, "short")
    d.subscribe(1, queue="long")
    d.subscribe(1, queue="short")
    for _ in range(2):
        d.step(c.ResumePeer(peer=1))
    assert short in [task.run_id for task in d.tasks(1)]


# --- the queue by itself -------------------------------------------------------------------------------------


def _task(order: int, type: str = "t") -> QueuedTask:
    execution = Execution("w", f"r{order}", type, "q", True, None, 0)
    return QueuedTask(execution=execution, type=type, queue=(QueueKind.ACTIVITY, "q"), order=order)


def _worker(name: str = "s", slots: int = 1_000, types: frozenset[str] | None = None) -> Subscription:
    return Subscription(name, 1, (QueueKind.ACTIVITY, "q"), name, slots, types)


def _drain(queue: TaskQueue, subscription: Subscription) -> list[int]:
    queue.add(subscription)
    orders = []
    while (task := queue.next_for(subscription)) is not None:
        orders.append(task.order)
    queue.credit(subscription)
    return orders


def test_tasks_that_come_back_one_by_one_find_their_places_between_others() -> None:
    queue = TaskQueue()
    for order in range(100, 110):
        queue.put(_task(order))
    for order in (5, 3, 9, 1, 7):
        queue.put_back(_task(order))
    assert [task.order for task in waiting_tasks(queue)] == [1, 3, 5, 7, 9, *range(100, 110)]
    assert _drain(queue, _worker()) == [1, 3, 5, 7, 9, *range(100, 110)]
    assert len(queue) == 0


def test_a_task_of_one_type_may_come_back_behind_older_ones_of_another() -> None:
    queue = TaskQueue()
    for order in (1, 2, 8):
        queue.put(_task(order, "a"))
    queue.put_back(_task(5, "b"))
    assert _drain(queue, _worker()) == [1, 2, 5, 8]


def test_withdrawn_tasks_leave_from_anywhere() -> None:
    queue = TaskQueue()
    tasks = [_task(order, "ab"[order % 2]) for order in range(10, 20)]
    for task in tasks:
        queue.put(task)
    back = [_task(order, "a") for order in (2, 4)]
    for task in back:
        queue.put_back(task)
    for task in (back[0], tasks[0], tasks[5], tasks[9]):
        queue.withdraw(task)
        queue.withdraw(task)
    assert _drain(queue, _worker()) == [4, 11, 12, 13, 14, 16, 17, 18]


def test_tasks_that_come_and_go_for_ever_leave_nothing_behind() -> None:
    """A worker that takes by type and hands back again and again, while nobody reads the whole line."""
    queue = TaskQueue()
    queue.put_back(_task(0, "other"))
    worker = _worker(types=frozenset({"t"}))
    queue.add(worker)
    for order in range(1, 10_000):
        task = _task(order)
        queue.put_back(task)
        assert queue.next_for(worker) is task
        worker.held -= 1
        assert len(queue._whole[None]._orders) < 200
    for order in (30_000, 20_000):
        queue.put_back(_task(order, "other"))
    assert _drain(queue, _worker("anything")) == [0, 20_000, 30_000]


def test_ten_thousand_idle_subscriptions_of_other_types_cost_a_put_nothing() -> None:
    """The cost of a put is counted in looks at subscriptions, which no clock can blur."""

    class Counting(Subscription):
        looks = 0

        def serves(self, task_type: str) -> bool:
            Counting.looks += 1
            return super().serves(task_type)

    queue = TaskQueue()
    for number in range(10_000):
        subscription = Counting(
            f"s{number}", 1, (QueueKind.ACTIVITY, "q"), "", 1, frozenset({f"type {number}"}), unknown_types=set()
        )
        queue.add(subscription)
        queue.credit(subscription)
    chosen = queue.put(_task(1, "type 7"))
    assert chosen is not None
    assert chosen.subscription_id == "s7"
    assert queue.put(_task(2, "nobody's")) is None
    assert Counting.looks <= 2
