"""`testing.explore`: what a seed decides, and what is found by it."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import trio

import zaptasks
from zaptasks import RetryPolicy, TaskError, TaskFailed, activity, testing, workflow
from zaptasks.records import Status
from zaptasks.testing import Cancel, CounterExample, Signal, Update, explore, play


async def charge(item: str) -> int:
    return len(item)


def ship(item: str) -> str:
    return f"shipped {item}"


@workflow.defn
class Order:
    """Correct: whatever comes when."""

    def __init__(self) -> None:
        self.approved_by = ""
        self.total = 0

    @workflow.run
    async def run(self, *items: str) -> str:
        with workflow.move_on_after(10):
            await workflow.wait_condition(lambda: bool(self.approved_by))
        if not self.approved_by:
            return "too late"
        async with workflow.open_nursery() as nursery:
            for item in items:
                nursery.start_soon(self.buy, item)
        return f"{self.total} by {self.approved_by}"

    async def buy(self, item: str) -> None:
        price = await workflow.execute_activity(charge, item, start_to_close=30)
        self.total += price
        await workflow.execute_activity(ship, item, start_to_close=30)

    @workflow.signal
    def approve(self, who: str) -> None:
        self.approved_by = who


@workflow.defn
class RacyOrder:
    """The planted fault: what another task added in the meantime is lost."""

    def __init__(self) -> None:
        self.total = 0

    @workflow.run
    async def run(self) -> int:
        async with workflow.open_nursery() as nursery:
            for item in ("tea", "cup"):
                nursery.start_soon(self.buy, item)
        return self.total

    async def buy(self, item: str) -> None:
        total = self.total
        price = await workflow.execute_activity(charge, item, start_to_close=30)
        self.total = total + price


# --- what happens ----------------------------------------------------------------------------------------------


def test_a_correct_workflow_holds_under_every_order_and_every_fault() -> None:
    outcomes = explore(
        Order,
        "tea",
        "cup",
        activities=[charge, ship],
        script=[Signal("approve", "ada")],
        check=lambda outcome: outcome.result in ("6 by ada", "too late"),
    )
    assert len(outcomes) == 100
    assert {outcome.result for outcome in outcomes} == {"6 by ada", "too late"}, "the signal comes early and late"
    faults = sum((outcome.faults for outcome in outcomes), Counter())
    assert faults.keys() == {"activity failed", "worker lost"}
    assert any(not outcome.faults for outcome in outcomes)
    assert max(len(outcome.calls) for outcome in outcomes) > 4, "work is done twice where an answer is lost"
    orders = {tuple(call.args[0] for call in outcome.calls) for outcome in outcomes if len(outcome.calls) == 4}
    assert len(orders) > 2
    assert len({outcome.seconds for outcome in outcomes}) > 2
    assert any("replayed from its history" in line for outcome in outcomes for line in outcome.trace)


def test_the_same_seed_does_the_same() -> None:
    def once(seed: int) -> list[str]:
        [outcome] = explore(Order, "tea", activities=[charge, ship], script=[Signal("approve", "a")], seeds=[seed])
        return outcome.trace

    assert once(7) == once(7)
    assert once(7) != once(8)


def test_a_race_is_found_and_its_seed_shows_it_alone() -> None:
    with pytest.raises(CounterExample) as found:
        explore(RacyOrder, activities=[charge], check=_adds_up)
    seed, text = found.value.seed, str(found.value)
    assert f"seed {seed}: AssertionError: lost an item" in text
    assert f"seeds=[{seed}]" in text
    assert 'charge("tea"), attempt' in text
    with pytest.raises(CounterExample) as again:
        explore(RacyOrder, activities=[charge], check=_adds_up, seeds=[seed])
    assert str(again.value) == text
    assert isinstance(again.value.__cause__, AssertionError)


def _adds_up(outcome: testing.Outcome) -> None:
    assert outcome.result == 6, "lost an item"


def test_an_activity_that_must_not_be_done_twice_is_found() -> None:
    """At least once: what is not idempotent shows it, with a new ledger for each seed."""
    ledgers: list[list[str]] = []

    def activities() -> list[Any]:
        ledger: list[str] = []
        ledgers.append(ledger)

        async def book(item: str) -> int:
            ledger.append(item)
            return len(ledger)

        return [testing.mock(charge, side_effect=book)]

    @workflow.defn
    async def once() -> int:
        return await workflow.execute_activity(charge, "tea", start_to_close=30)

    with pytest.raises(CounterExample, match="the check says no to 2"):
        explore(once, activities=activities, check=lambda outcome: outcome.result == 1)
    assert ledgers[-1] == ["tea", "tea"]
    explore(once, activities=activities, check=lambda outcome: outcome.result <= 9, seeds=range(50))
    assert ["tea"] in ledgers


def test_what_may_be_tried_once_only_meets_no_fault() -> None:
    @workflow.defn
    async def careful() -> int:
        once = RetryPolicy(maximum_attempts=1)
        return await workflow.execute_activity(charge, "tea", start_to_close=30, retry_policy=once)

    outcomes = explore(careful, activities=[charge])
    assert {len(outcome.calls) for outcome in outcomes} == {1}


def test_a_worker_is_never_so_slow_that_timeouts_pass() -> None:
    @workflow.defn
    async def beside() -> int:
        async with workflow.open_nursery() as nursery:
            nursery.start_soon(workflow.sleep, 100)
            once = RetryPolicy(maximum_attempts=1)
            price = await workflow.execute_activity(charge, "tea", start_to_close=3, retry_policy=once)
        return price  # noqa: RET504  a block of a nursery may be left early

    explore(beside, activities=[charge])


# --- everything that a workflow may do -------------------------------------------------------------------------


@workflow.defn
async def child(item: str) -> int:
    await workflow.sleep(workflow.random().random())
    return await workflow.execute_activity(charge, item, start_to_close=30, task_queue="big")


@workflow.defn
class Everything:
    def __init__(self) -> None:
        self.names: list[str] = []

    @workflow.run
    async def run(self, rounds: int) -> list[object]:
        local = await workflow.execute_local_activity(len, "four")
        grown = await workflow.execute_child_workflow(child, "tea")
        if rounds:
            workflow.continue_as_new(rounds - 1)
        await workflow.wait_condition(lambda: len(self.names) == 2, timeout=60)
        return [local, grown, workflow.patched("x")]

    @workflow.update
    async def rename(self, name: str) -> str:
        await workflow.sleep(1)
        self.names.append(name)
        return name

    @rename.validator
    def _check(self, name: str) -> None:
        if not name:
            raise ValueError("nobody")


def test_children_local_activities_updates_and_runs_that_continue() -> None:
    script = [Update("rename", "a"), Update("rename", ""), Update("rename", "b"), Signal("unknown")]
    outcomes = explore(
        Everything, 1, activities=[charge], workflows=[child], script=script, check=lambda outcome: outcome.status.value
    )
    completed = [outcome for outcome in outcomes if outcome.status is Status.COMPLETED]
    assert completed
    assert all(outcome.result == [4, 3, True] for outcome in completed)
    assert any("a" in outcome.updates for outcome in outcomes)
    assert any(isinstance(update, zaptasks.Failure) for outcome in outcomes for update in outcome.updates)


def test_a_cancel_at_any_time() -> None:
    @workflow.defn
    async def tidy() -> str:
        try:
            await workflow.execute_activity(ship, "tea", start_to_close=30)
            await workflow.sleep(10)
        finally:
            with workflow.CancelScope(shield=True):
                await workflow.execute_activity(charge, "tidy", start_to_close=30)
        return "done"

    def tidied(outcome: testing.Outcome) -> bool:
        began = any(call.name == "ship" for call in outcome.calls)
        return not began or any(call.name == "charge" for call in outcome.calls)

    outcomes = explore(tidy, activities=[charge, ship], script=[Cancel("enough")], check=tidied)
    assert {outcome.status for outcome in outcomes} == {Status.COMPLETED, Status.CANCELED}
    assert any("stops" in line for outcome in outcomes for line in outcome.trace)


def test_heartbeats_reach_the_next_attempt() -> None:
    def rows() -> int:
        task = zaptasks.current_task()
        done: int = task.heartbeat_details[0] if task.heartbeat_details else 0
        task.heartbeat(done + 1)
        return done

    @workflow.defn
    async def load() -> int:
        return await workflow.execute_activity(rows, start_to_close=30, heartbeat_timeout=5)

    assert len({outcome.result for outcome in explore(load, activities=[rows])}) > 1


def test_an_activity_that_fails_by_itself_is_retried_or_fails_the_workflow() -> None:
    @workflow.defn
    async def buy() -> int:
        return await workflow.execute_activity(charge, "tea", start_to_close=30)

    explore(buy, activities=lambda: [testing.mock(charge, side_effect=[OSError(), OSError(), *[3] * 20])])
    refused = testing.mock(charge, raises=TaskError("no funds", non_retryable=True))
    with pytest.raises(CounterExample, match=r"it did not complete: TaskFailed: .*no funds"):
        explore(buy, activities=[refused])
    outcomes = explore(buy, activities=[refused], check=lambda outcome: isinstance(outcome.error, TaskFailed))
    assert {outcome.status for outcome in outcomes} == {Status.FAILED}


def test_a_local_activity_is_tried_as_often_as_its_policy_says() -> None:
    calls: list[int] = []

    def flaky() -> int:
        calls.append(len(calls))
        if calls[-1] < 2:
            raise OSError("away")
        return calls[-1]

    @workflow.defn
    async def patient(attempts: int) -> int:
        retry = RetryPolicy(maximum_attempts=attempts)
        return await workflow.execute_local_activity(flaky, retry_policy=retry)

    [outcome] = explore(patient, 3, seeds=[0])
    assert outcome.result == 2
    calls.clear()
    [outcome] = explore(patient, 2, seeds=[0], check=lambda outcome: isinstance(outcome.error, TaskFailed))
    assert "away" in str(outcome.error)


def test_a_workflow_is_named_by_its_run_method_as_well() -> None:
    @workflow.defn
    class Nap:
        @workflow.run
        async def run(self, seconds: float) -> float:
            await workflow.sleep(seconds)
            return seconds

    [outcome] = explore(Nap.run, 3.0, seeds=[0])
    assert outcome.result == 3.0


# --- what is found ---------------------------------------------------------------------------------------------

_count = itertools.count()


@workflow.defn
async def forgetful() -> None:
    if next(_count) % 2:
        await workflow.sleep(1)
    await workflow.execute_activity(charge, "tea", start_to_close=30)


@workflow.defn
async def draws_anew() -> float:
    await workflow.sleep(1)
    return float(next(_count))


@workflow.defn
async def waits() -> None:
    await workflow.wait_signal("never")


@workflow.defn
async def repeats() -> None:
    while True:
        await workflow.sleep(1)


@workflow.defn
async def foreign() -> None:
    await trio.sleep(1)


@workflow.defn
async def unserved() -> None:
    await workflow.execute_activity("nobody.does.this", start_to_close=30)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (forgetful, "does not do what its history says"),
        (draws_anew, "a replay of explored returns"),
        (waits, r"never ends[\s\S]*waits for a signal[\s\S]*in waits"),
        (repeats, "not ended after 300 steps"),
        (foreign, "cannot await something of trio"),
        (unserved, "never ends[\\s\\S]*'nobody.does.this'"),
    ],
)
def test_a_broken_workflow_is_found(monkeypatch: pytest.MonkeyPatch, broken: Any, reason: str) -> None:
    monkeypatch.setattr(play, "STEPS_MAX", 300)
    with pytest.raises(CounterExample, match=reason):
        explore(broken, activities=[charge])


def test_a_long_report_has_the_end_of_the_story() -> None:
    @workflow.defn
    async def long() -> None:
        for _ in range(100):
            await workflow.sleep(1)
        raise TaskError("at last")

    with pytest.raises(CounterExample) as found:
        explore(long)
    assert len(str(found.value).splitlines()) < 80
    assert "lines before" in str(found.value)
    assert "100.000 s  it ends: FAILED" in str(found.value)


def test_mistakes_are_told() -> None:
    async def slow(item: str) -> int:
        await trio.sleep(1)
        return 1

    async def slower(item: str) -> int:
        await trio.lowlevel.checkpoint()
        return 1

    @workflow.defn
    async def local() -> int:
        return await workflow.execute_local_activity(slow, "tea")

    def later(item: str) -> int:
        activity.complete_later()

    for broken in (slow, slower, later):
        with pytest.raises(TypeError, match=rf"{broken.__name__}[\s\S]*testing.mock"):
            explore(Order, "tea", activities={"charge": broken}, script=[Signal("approve", "a")])
    with pytest.raises(TypeError, match=r"testing.mock"):
        explore(local)
    with pytest.raises(ValueError, match="no seeds"):
        explore(Order, seeds=[])
    with pytest.raises(TypeError, match="defn"):
        explore(charge)
