"""`task_timeout`: how long a worker may take for one workflow task, from whatever starts the workflow."""

from __future__ import annotations

from datetime import timedelta

import pytest
import trio
from tests.helpers.workers import served
from tests.helpers.workflow_world import World

from zaptasks import StartWorkflow, TaskFailed, workflow


async def never() -> None:
    await trio.sleep_forever()


@workflow.defn
async def patient() -> None:
    await workflow.execute_local_activity(never)


@workflow.defn
async def again(number: int) -> None:
    if number == 1:
        workflow.continue_as_new(2, task_timeout=7)
    await workflow.sleep_forever()


@workflow.defn
async def parent() -> None:
    await workflow.execute_child_workflow(again, 2, id="child", task_timeout=timedelta(seconds=5))


async def test_a_start_says_how_long_a_local_activity_may_take() -> None:
    async with served(workflows=[patient]) as (client, _):
        with trio.fail_after(5), pytest.raises(TaskFailed, match=r"it did not end within the 0\.16 s"):
            await (await client.start_workflow(patient, task_timeout=0.2)).result()


def test_a_child_and_the_run_that_follows_have_it_too() -> None:
    world = World(parent, again)
    world.start()
    world.start(1, type="again", workflow_id="next")
    assert world.d.views.execution("child").timeouts.task_ms == 5_000
    assert world.d.views.execution("next").timeouts.task_ms == 7_000


def test_a_schedule_starts_its_workflows_with_it() -> None:
    assert StartWorkflow("again", task_timeout=3).to_wire()["timeouts"] == {"workflow_task_ms": 3_000}
