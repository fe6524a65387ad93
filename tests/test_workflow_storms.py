"""Whatever comes from outside, in whichever order and groups: it ends, and what it did replays."""

from __future__ import annotations

from random import Random

import pytest

from zaptasks import Status, TaskError, workflow
from zaptasks.testing import Cancel, CounterExample, Outcome, Signal, Update, explore
from zaptasks.testing.script import ScriptStep
from zaptasks.workflow import execution


@workflow.defn
async def leaf(seconds: float) -> float:
    await workflow.sleep(seconds)
    return seconds


@workflow.defn
class Harbor:
    """Something of everything that waits, is woken, is cancelled, and fails."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.lock = workflow.Lock()
        self.scopes: list[workflow.CancelScope] = []
        self.changed = workflow.Event()

    def note(self, *what: object) -> None:
        self.log.append([*what, workflow.current_time()])
        self.changed.set()
        self.changed = workflow.Event()

    @workflow.run
    async def run(self) -> list[object]:
        try:
            async with workflow.open_nursery() as nursery:
                nursery.start_soon(self.watch)
                nursery.start_soon(self.read)
                await workflow.wait_condition(lambda: len(self.log) > 40)
                nursery.cancel_scope.cancel("enough")
        except* workflow.Cancelled as group:
            with workflow.CancelScope(shield=True):
                await self.act("refund", len(group.exceptions))
            raise
        return self.log

    async def act(self, name: str, *args: object) -> None:
        try:
            self.note(name, await workflow.execute_activity(name, *args))
        except workflow.ActivityFailed as error:
            self.note(name, error.type)

    async def watch(self) -> None:
        while True:
            with workflow.move_on_after(3) as scope:
                await self.changed.wait()
            if scope.cancelled_caught:
                self.note("quiet", workflow.random().randint(0, 9), workflow.side_effect(lambda: 5))

    async def read(self) -> None:
        async for number in workflow.signals("number", int):
            with workflow.move_on_after(number):
                await self.act("slow", number)
            if number == 2:
                self.note("child", await workflow.execute_child_workflow(leaf, 1.5))

    @workflow.signal
    async def hold(self, seconds: float) -> None:
        async with self.lock:
            with workflow.CancelScope() as scope:
                self.scopes.append(scope)
                await workflow.sleep(seconds)
            self.note("held", seconds, scope.cancelled_caught)

    @workflow.signal
    def drop(self) -> None:
        if self.scopes:
            self.scopes.pop().cancel()

    @workflow.signal
    async def charge(self, n: int) -> None:
        await self.act("charge", n)
        self.note("local", await workflow.execute_local_activity(int, n))

    @workflow.update
    async def change(self, n: int) -> int:
        await workflow.sleep(n)
        if n == 3:
            raise ValueError("three")
        await self.act("fail")
        return n

    @change.validator
    def check(self, n: int) -> None:
        if n == 0:
            raise ValueError("zero")


async def charge(n: int) -> int:
    return n + 1


async def slow(n: int) -> str:
    return "done"


async def refund(tasks: int) -> int:
    return tasks


async def fail() -> None:
    raise TaskError("always", non_retryable=True)


def storm(seed: int) -> list[ScriptStep]:
    """What comes from outside, drawn like everything else from the seed."""
    random = Random(seed)
    steps: list[ScriptStep] = []
    for _ in range(random.randrange(25)):
        kind = random.choice(("number", "hold", "charge", "drop", "change"))
        if kind == "change":
            steps.append(Update(kind, random.randrange(4)))
        else:
            steps.append(Signal(kind, None if kind == "drop" else random.randrange(5)))
    if random.random() < 0.3:
        steps.append(Cancel("enough"))
    return steps


def play(seed: int) -> Outcome:
    [outcome] = explore(
        Harbor,
        activities=[charge, slow, refund, fail],
        workflows=[leaf],
        script=storm(seed),
        seeds=[seed],
        check=lambda outcome: outcome.status in (Status.COMPLETED, Status.CANCELED),
    )
    return outcome


def test_code_that_is_not_deterministic_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: numbers that are drawn anew in each replay."""
    monkeypatch.setattr(execution, "Random", lambda seed: Random())
    with pytest.raises(CounterExample, match="a replay of explored returns"):  # noqa: PT012  by one of them
        for seed in range(20):
            play(seed)


def test_every_storm_ends_and_its_history_replays() -> None:
    outcomes = [play(seed) for seed in range(60)]
    assert {outcome.status for outcome in outcomes} == {Status.COMPLETED, Status.CANCELED}
    assert {call.name for outcome in outcomes for call in outcome.calls} == {"charge", "slow", "refund", "fail"}
    assert sum(outcome.faults["worker lost"] for outcome in outcomes) > 10
