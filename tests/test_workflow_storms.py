"""Whatever comes from outside, in whichever groups: a run at hand and one that is replayed all the time do the same."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.workflow_world import World

from zapserver.engine import commands as c
from zapserver.engine.errors import EngineError
from zaptasks import workflow
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
        except workflow.Cancelled as cancelled:
            with workflow.CancelScope(shield=True):
                await self.act("refund", cancelled.reason)
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


def fail() -> None:
    raise ValueError("always")


STEPS = st.one_of(
    st.tuples(st.just("signal"), st.sampled_from(["number", "hold", "charge"]), st.integers(0, 4)),
    st.tuples(st.just("signal"), st.just("drop"), st.none()),
    st.tuples(st.just("update"), st.integers(0, 3)),
    st.tuples(st.just("pass"), st.sampled_from([0.5, 1, 2, 5])),
    st.tuples(st.just("settle")),
    st.tuples(st.just("settle")),
    st.tuples(st.just("complete")),
    st.tuples(st.just("lose")),
    st.tuples(st.just("cancel")),
)


def play(steps: list[tuple[Any, ...]], *, forgetful: bool) -> list[tuple[object, ...]]:
    """The history after these steps, where only "settle" and the end let the worker answer."""
    ways: dict[str, Any] = {"charge": lambda n: n + 1, "refund": lambda reason: reason, "fail": fail}
    world = World(Harbor, leaf, forgetful=forgetful, watch=False, **ways)
    started = world.start()
    for number, step in enumerate(steps):
        try:
            match step:
                case ("signal", name, value):
                    world.d.signal(started, name, value)
                case ("update", n):
                    world.d.step(
                        c.UpdateExecution(
                            workflow_id="w", name="change", args=c.Payload(b"[%d]" % n), waiter=number, peer=9
                        )
                    )
                case ("pass", seconds):
                    world.d.advance(round(seconds * 1000))
                case ("settle",):
                    world.settle()
                case ("complete",) if world.held:
                    world.complete("done")
                case ("lose",):
                    world.lose_the_worker()
                case ("cancel",):
                    world.d.cancel(started)
        except EngineError:
            pass  # it is closed
    world.settle()
    world.advance(200)
    assert not world.reasons
    return [(event.event_type, sorted(event.attributes)) for event in world.history(started)] + [
        (event.command_id, event.payload("result"), event.payload("details")) for event in world.history(started)
    ]


def test_code_that_is_not_deterministic_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: numbers that are drawn anew in each replay."""
    monkeypatch.setattr(execution, "Random", lambda seed: Random())
    assert play([], forgetful=False) != play([], forgetful=True)


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(STEPS, max_size=25))
def test_a_run_at_hand_and_a_replayed_one_do_the_same(steps: list[tuple[Any, ...]]) -> None:
    assert play(steps, forgetful=False) == play(steps, forgetful=True)
