"""Rates that workers state, over the wire. What they mean is tested on the engine, in virtual time."""

from __future__ import annotations

import pytest
import trio
from tests.helpers.sdk_servers import open_fake_server
from tests.helpers.workers import at_fake, served

from zapserver.engine import rate
from zaptasks import TaskHandle, open_worker, options
from zapwire.opcodes import Op


def test_the_worker_knows_the_servers_bounds() -> None:
    assert (options.PER_SECOND_MIN, options.PER_SECOND_MAX) == (rate.PER_SECOND_MIN, rate.PER_SECOND_MAX)


async def reason(handle: TaskHandle) -> str:
    (waiting,) = await handle.explain()
    return waiting.reason


async def work() -> str:
    return "done"


def in_thread() -> str:
    return "done"


async def test_every_subscription_to_activities_states_the_rates() -> None:
    async with (
        open_fake_server() as fake,
        at_fake(
            fake, tasks=[work, in_thread], tasks_per_second=2, queue_tasks_per_second=0.5, sessions=3, identity="w"
        ) as worker,
    ):
        await worker.add_task("later", work)
        stated = [
            (call.body["task_queue"].partition("/")[0], call.body.get("per_second"), call.body.get("queue_per_second"))
            for call in fake.calls_of(Op.SUBSCRIBE_ACTIVITY_TASKS)
        ]
        assert sorted(stated, key=str) == sorted(
            [("default", 2, 0.5)] * 3 + [("w", 2, None)] * 2 + [("default", None, None)], key=str
        ), "all but the places for sessions; the queue of the sessions is this worker's alone"


async def test_a_limited_worker_is_explained_and_another_one_gets_the_work_at_once() -> None:
    async with served(tasks=[work], tasks_per_second=0.01, identity="slow") as (client, _):
        assert await (await client.now("work")).result() == "done"
        waits = await client.now("work")
        assert (await reason(waits)).startswith(
            "the rate limit of worker 'slow' holds it back: 0.01 a second, and the next one may go out"
        )
        with trio.fail_after(5):
            async with open_worker(client, tasks=[work]):
                assert await waits.result() == "done"


async def test_a_rate_of_a_queue_holds_for_all_workers_and_goes_with_the_one_that_states_it() -> None:
    async with served(tasks=[work]) as (client, _):
        async with open_worker(client, tasks={"nothing": work}, queue_tasks_per_second=0.01):
            assert await (await client.now("work")).result() == "done"
            waits = await client.now("work")
            assert (await reason(waits)).startswith(
                "the rate limit of task queue 'default' holds it back: 0.01 a second, and the next one"
            )
        with trio.fail_after(5):
            assert await waits.result() == "done"


@pytest.mark.parametrize("rate", [0, -1, float("nan"), 2_000_000])
@pytest.mark.parametrize("name", ["tasks_per_second", "queue_tasks_per_second"])
async def test_a_rate_that_is_none_is_refused_before_anything_is_sent(name: str, rate: float) -> None:
    async with open_fake_server() as fake:
        with pytest.raises(ValueError, match=f"{name} is .*: it must be 0.001 to 1,000,000, or None"):
            async with at_fake(fake, tasks=[work], **{name: rate}):
                pass
        assert not fake.calls_of(Op.SUBSCRIBE_ACTIVITY_TASKS)
