"""Calls of `zaptasks.testing` that type checkers accept, and calls that they must refuse, each marked as refused.

Not run: `test_typing` gives it to the checkers, and compares the lines.
"""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from zaptasks import testing, workflow
from zaptasks.testing import Cancel, Signal, Update


@workflow.defn
class Order:
    @workflow.run
    async def run(self, item: str, cents: int) -> float:
        return 0.0

    @workflow.signal
    def approve(self, who: str) -> None: ...


async def charge(item: str, cents: int) -> float:
    return 0.0


def ship(item: str) -> str:
    return item


def check(outcome: testing.Outcome) -> bool:
    return bool(outcome.result == 0.0)


async def activities() -> None:
    env = testing.ActivityEnvironment(heartbeat_details=[1], start_to_close=timedelta(seconds=3))
    assert_type(await env.run(charge, "tea", 450), float)
    assert_type(await env.run(ship, "tea"), str)
    await env.run(charge, "tea")  # refused
    await env.run(ship, 1)  # refused


async def mocks() -> None:
    mocked = testing.mock(charge, returns=1.0)
    await mocked("tea", 450)
    await mocked("tea")  # refused
    mocked.calls[0].upper()  # refused
    by_name = testing.mock("charge", side_effect=[1.0, OSError()])
    await by_name("anything", 1, 2)
    testing.mock(1)  # refused
    testing.mock(charge, raises="no")  # refused


async def environments() -> None:
    async with testing.WorkflowEnvironment(workflows=[Order], activities=[charge, testing.mock(ship)]) as env:
        order = await env.client.start_workflow(Order, "tea", 450)
        assert_type(await order.result(), float)
        await env.sleep(timedelta(days=1))
        await env.sleep(days=1, hours=2)
        await env.sleep("a day")  # refused
        await env.client.start_workflow(Order, "tea")  # refused
    testing.WorkflowEnvironment(workflow=[Order])  # refused


def blocking() -> None:
    with testing.WorkflowEnvironment(workflows=[Order]) as env:
        order = env.client.start_workflow(Order, "tea", 450)
        assert_type(order.result(), float)
        order.signal(Order.approve, "ada")
        order.signal(Order.approve, 1)  # refused
        env.sleep(days=1)


def explorations() -> None:
    script = [Signal("approve", "ada"), Update("rename", "bob"), Cancel("enough")]
    outcomes = testing.explore(Order, "tea", 450, activities=[charge], script=script, check=check)
    assert_type(outcomes, list[testing.Outcome])
    testing.explore(Order, activities=lambda: [charge, testing.mock(ship)], seeds=[17])
    testing.explore(Order, script=["approve"])  # refused
    testing.explore(Order, seeds="17")  # refused
