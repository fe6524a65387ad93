"""Rates of deliveries: so many a second to a worker or a queue, without a lease that runs while something waits."""

from __future__ import annotations

import pytest
from tests.helpers.engine_driver import START_MS, Driver

from zapserver.engine import commands as c
from zapserver.engine.commands import QueueKind
from zapserver.engine.effects import DeliverActivityTask
from zapserver.engine.errors import Invalid
from zapserver.engine.rate import DeliveryRate, TokenBucket, burst_of


def sent_ms(d: Driver, peer: int | None = None) -> list[int]:
    """When each task went out, in milliseconds since the start."""
    return [_started_ms(d, task) - START_MS for task in d.tasks(peer)]


def _started_ms(d: Driver, task: DeliverActivityTask) -> int:
    events = d.engine._state.events(d.views.execution(task.workflow_id, task.run_id))
    return next(event.time_ms for event in events if event.type.value == "ACTIVITY_TASK_STARTED")


def reason(d: Driver, started: c.Started) -> str:
    (waiting,) = d.views.explain(started.workflow_id)
    return waiting.reason


# --- the bucket ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_second", [0.001, 0.5, 1, 3, 7.5, 99.9, 1_000, 12_345])
def test_no_stretch_of_time_has_more_than_its_rate_and_one_burst(per_second: float) -> None:
    bucket, now_ms, taken = TokenBucket(per_second, burst_of(per_second)), START_MS, []
    for _ in range(500):
        now_ms += bucket.wait_ms(now_ms)
        assert bucket.wait_ms(now_ms) == 0, "it is no longer than it says"
        bucket.take(now_ms)
        taken.append(now_ms)
    for first in range(0, 500, 17):
        span_ms = taken[-1] - taken[first]
        assert 500 - first <= per_second * span_ms / 1_000 + burst_of(per_second) + 1e-6
    assert taken[-1] - taken[0] <= 500 / per_second * 1_000 + 500, "and no slower, but for whole milliseconds"


def test_a_burst_is_a_tenth_of_a_second_and_at_least_one() -> None:
    assert [burst_of(per_second) for per_second in (0.01, 1, 19, 20, 1_000)] == [1, 1, 1, 2, 100]


def test_what_was_used_up_stays_so_when_the_rate_changes() -> None:
    rate = DeliveryRate(1.0)
    rate.take(START_MS)
    assert rate.next_ms == START_MS + 1_000
    rate.change(2.0, START_MS + 500)
    assert rate.next_ms == START_MS + 750, "half of it was earned at the old rate"
    rate.change(0.001, START_MS + 500)
    assert rate.next_ms == START_MS + 500_500


# --- a worker -----------------------------------------------------------------------------------------


def test_a_worker_gets_so_many_a_second_by_the_engines_own_deadlines() -> None:
    d = Driver()
    d.subscribe(1, per_second=2)
    for _ in range(4):
        d.submit()
    assert sent_ms(d) == [0]
    assert d.engine.next_deadline_ms() == START_MS + 500, "nothing polls"
    d.advance(1_600)
    assert sent_ms(d) == [0, 500, 1_000, 1_500]
    d.advance(10_000)
    for _ in range(3):
        d.submit()
    assert sent_ms(d)[4:] == [11_600], "a long rest saves up one burst and no more"


def test_the_backlog_that_a_worker_finds_comes_at_its_rate_and_in_order() -> None:
    d = Driver()
    runs = [d.submit().run_id for _ in range(30)]
    d.subscribe(1, per_second=20)
    assert sent_ms(d) == [0, 0]
    d.advance(1_400)
    assert [task.run_id for task in d.tasks(1)] == runs
    assert sent_ms(d) == [0, 0, *range(50, 1_450, 50)]


def test_another_worker_gets_at_once_what_a_limited_one_may_not_have() -> None:
    d = Driver()
    d.subscribe(1, per_second=1)
    for _ in range(3):
        d.submit()
    d.subscribe(2)
    assert len(d.tasks(2)) == 2
    d.submit()
    d.submit()
    assert sent_ms(d, 2) == [0, 0, 0, 0]
    d.advance(1_000)
    d.submit()
    d.submit()
    assert sent_ms(d, 1) == [0, 1_000], "it takes turns again"


def test_the_subscriptions_of_a_worker_share_its_rate_in_turns() -> None:
    d = Driver()
    d.subscribe(1, types=["a"], per_second=1)
    d.subscribe(1, types=["b"], per_second=1)
    d.subscribe(1, types=["c"], queue="own")
    for name in "aaabbb":
        d.submit(name)
    d.submit("c", queue="own")
    d.submit("c", queue="own")
    d.advance(5_000)
    limited = [task for task in d.tasks(1) if task.activity_type != "c"]
    assert [_started_ms(d, task) - START_MS for task in limited] == [0, 1_000, 2_000, 3_000, 4_000, 5_000]
    assert sorted(task.activity_type for task in limited[1:5]) == ["a", "a", "b", "b"]
    assert len(d.tasks(1)) == 8, "one that states no rate is not under it"


def test_slots_still_count_and_no_timeout_runs_while_a_task_waits() -> None:
    d = Driver()
    d.subscribe(1, slots=1, per_second=10)
    first, second = d.submit(timeouts=c.ActivityTimeouts(start_to_close_ms=50)), d.submit()
    d.advance(49)
    assert len(d.tasks()) == 1
    d.complete(d.tasks()[0])
    assert len(d.tasks()) == 1, "the slot is free, the rate is not"
    d.advance(51)
    assert [task.run_id for task in d.tasks()] == [first.run_id, second.run_id]


def test_the_latest_rate_of_a_worker_counts() -> None:
    d = Driver()
    d.subscribe(1, types=["a"], per_second=0.01)
    for _ in range(3):
        d.submit("a")
    d.subscribe(1, types=["b"], per_second=1)
    d.advance(2_000)
    assert len(d.tasks(1)) == 3
    d.lose(1)
    assert len(d.engine._state.timers) == 0, "nothing is left of it"


def test_explain_names_the_rate_and_when_the_next_one_may_go() -> None:
    d = Driver()
    d.subscribe(1, per_second=0.5)
    d.submit()
    waits = d.submit()
    moment = "2026-01-01T00:00:02.000+00:00"
    assert (
        reason(d, waits)
        == f"the rate limit of worker 'worker 1' holds it back: 0.5 a second, and the next one may go out at {moment}"
    )


# --- a queue ------------------------------------------------------------------------------------------


def test_a_queue_has_one_rate_for_all_its_workers() -> None:
    d = Driver()
    d.subscribe(1, queue_per_second=2)
    d.subscribe(2)
    for _ in range(6):
        d.submit()
    d.advance(2_500)
    assert sent_ms(d) == [0, 500, 1_000, 1_500, 2_000, 2_500]
    assert {task.peer for task in d.tasks()} == {1, 2}, "they take turns"
    waits = d.submit()
    assert reason(d, waits).startswith(
        "the rate limit of task queue 'default' holds it back: 2 a second, and the next one may go out at "
    )


def test_a_type_that_nobody_serves_does_not_hold_up_a_limited_queue() -> None:
    d = Driver()
    d.subscribe(1, types=["b"], queue_per_second=1)
    d.submit("a")
    for _ in range(3):
        d.submit("b")
    d.advance(2_000)
    assert sent_ms(d) == [0, 1_000, 2_000]


def test_the_smallest_rate_of_a_queue_counts_while_its_worker_is_there() -> None:
    d = Driver()
    d.subscribe(1, slots=0, queue_per_second=0.01)
    d.subscribe(2, queue_per_second=1)
    for _ in range(6):
        d.submit()
    d.advance(2_000)
    assert sent_ms(d) == [0]
    d.lose(1)
    d.advance(1_000)
    assert sent_ms(d) == [0, 2_980], "a fiftieth of the next one was earned before"
    d.subscribe(3)
    d.lose(2)
    assert len(d.tasks(3)) == 6, "with nobody left who states one there is none"
    assert d.engine._state.queues[QueueKind.ACTIVITY, "default"].rate is None


def test_a_worker_and_its_queue_may_both_have_a_rate() -> None:
    d = Driver()
    d.subscribe(1, per_second=1, queue_per_second=2)
    d.subscribe(2)
    for _ in range(7):
        d.submit()
    d.advance(3_000)
    assert sent_ms(d) == [0, 500, 1_000, 1_500, 2_000, 2_500, 3_000]
    assert len(d.tasks(1)) <= 4


def test_rates_outlast_a_failure_of_the_store() -> None:
    d = Driver()
    d.subscribe(1, per_second=1)
    d.restart([1])
    for _ in range(2):
        d.submit()
    assert len(d.tasks(1)) == 1
    d.advance(1_000)
    assert len(d.tasks(1)) == 2


# --- bad rates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [-1.0, 0.0001, 2e6, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["per_second", "queue_per_second"])
def test_a_rate_that_is_none_is_refused(name: str, rate: float) -> None:
    d = Driver()
    with pytest.raises(Invalid, match=f"^{name} is .*; it must be 0.001 to 1e"):
        d.step(c.Subscribe(peer=1, kind=QueueKind.ACTIVITY, task_queue="q", **{name: rate}))  # type: ignore[arg-type]
    assert d.engine._state.queues == {}


def test_workflow_tasks_have_no_rate() -> None:
    d = Driver()
    with pytest.raises(Invalid, match="per_second is for activities and tasks"):
        d.subscribe(1, kind=QueueKind.WORKFLOW, per_second=1)
