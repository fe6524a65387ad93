"""Workflows against the real engine: what they ask for happens, and what happens reaches them."""

from __future__ import annotations

import pytest
from tests.helpers.workflow_world import World

from zaptasks import workflow


def charge(item: str, n: int = 1) -> str:
    return f"paid {item} {n}"


@workflow.defn
async def buy(item: str) -> str:
    paid = await workflow.execute_activity(charge, item, 2)
    await workflow.sleep(60)
    return paid + " and sent"


@pytest.mark.parametrize("forgetful", [False, True])
def test_a_workflow_with_an_activity_and_a_timer(forgetful: bool) -> None:
    world = World(buy, forgetful=forgetful, charge=charge)
    started = world.start("book")
    assert world.status(started) == "RUNNING"
    world.advance(60)
    assert world.result(started) == "paid book 2 and sent"
    assert not world.reasons
