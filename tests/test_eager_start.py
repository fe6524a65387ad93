"""The first task of a workflow goes to a worker of whoever started it, if that has a slot free."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from tests.helpers.engine_driver import Driver
from tests.helpers.sdk_servers import RealServer, open_real_server
from tests.helpers.workers import QUICK

from zapserver.engine import commands as c
from zaptasks import AsyncClient, WithStart, WorkflowContext, open_client, open_worker, workflow


def start(d: Driver, eager: str, queue: str = "default") -> c.Started:
    return d.step(c.StartWorkflow(type="Order", task_queue=queue, eager_subscription=eager))


# --- the engine ---------------------------------------------------------------------------------------


def test_the_first_task_goes_to_the_subscription_that_the_start_names_in_the_same_step() -> None:
    d = Driver()
    d.subscribe_replaying(1)
    mine = d.subscribe_replaying(2)
    d.subscribe_replaying(3)
    for _ in range(4):
        start(d, mine)
    assert [len(d.runs(peer)) for peer in (1, 2, 3)] == [0, 4, 0]


def test_without_a_free_slot_it_goes_its_usual_way() -> None:
    d = Driver()
    d.subscribe_replaying(1, slots=1)
    mine = d.subscribe_replaying(2, slots=1)
    start(d, mine)
    start(d, mine)
    assert [len(d.runs(peer)) for peer in (1, 2)] == [1, 1]
    start(d, mine)
    d.answer(d.runs(1)[0], c.CompleteCommand())
    assert [len(d.runs(peer)) for peer in (1, 2)] == [2, 1], "whoever is free first"


@pytest.mark.parametrize("what", ["lost", "gone", "of another queue", "of other types", "of activities", "made up"])
def test_a_name_that_means_nothing_does_nothing(what: str) -> None:
    d = Driver()
    d.subscribe_replaying(1)
    match what:
        case "lost":
            name = d.subscribe_replaying(2)
            d.lose(2)
        case "gone":
            name = d.subscribe_replaying(2)
            d.step(c.Unsubscribe(peer=2, subscription_id=name))
        case "of another queue":
            name = d.subscribe_replaying(2, queue="other")
        case "of other types":
            name = d.subscribe_replaying(2, types=["Cart"])
        case "of activities":
            name = d.subscribe(2)
        case _:
            name = "x" * 1_000_000
    started = start(d, name)
    assert [len(d.runs(peer)) for peer in (1, 2)] == [1, 0]
    task = d.views.execution(started.workflow_id).task
    assert task is not None
    assert len(task.starter_subscription) < 100


def test_a_repeated_start_is_delivered_once() -> None:
    d = Driver()
    mine = d.subscribe_replaying(1)
    for _ in range(2):
        d.step(c.StartWorkflow(type="Order", workflow_id="o", request_id="r", eager_subscription=mine))
    assert len(d.runs()) == 1


# --- client and worker ----------------------------------------------------------------------------------


@workflow.defn
class Where:
    @workflow.run
    async def run(self) -> None: ...

    @workflow.signal
    def ignored(self) -> None: ...


@workflow.defn
class Waits:
    @workflow.run
    async def run(self) -> None:
        await workflow.sleep_forever()

    @workflow.update
    def ask(self) -> int:
        return 1


@asynccontextmanager
async def two_processes() -> AsyncIterator[tuple[RealServer, AsyncClient, AsyncClient]]:
    """Two clients, each with a worker for the same workflows, as two processes have them."""
    async with (
        open_real_server() as server,
        open_client(server.zap, identity="first", backoff=QUICK) as first,
        open_client(server.zap, identity="second", backoff=QUICK) as second,
        open_worker(first, "q", workflows=[Where, Waits], identity="first"),
        open_worker(second, "q", workflows=[Where, Waits], identity="second"),
    ):
        yield server, first, second


async def served_by(client: AsyncClient, run_id: str) -> str:
    """Who had its first workflow task."""
    events = [event async for event in client.get_handle("", run_id).history()]
    identities = [event.attributes["identity"] for event in events if event.event_type == "WORKFLOW_TASK_COMPLETED"]
    return str(identities[0])


async def test_what_a_client_starts_its_own_worker_gets() -> None:
    async with two_processes() as (_, first, second):
        for client in (first, second, second, first, first):
            handle = await client.start_workflow(Where, task_queue="q")
            await handle.result()
            assert await served_by(client, handle.run_id) == client.identity
            by_signal = await client.signal_with_start(
                Where.ignored, start=WithStart(Where, id=f"s-{handle.run_id}", task_queue="q")
            )
            await by_signal.result()
            assert await served_by(client, by_signal.run_id) == client.identity
            by_update, one = await client.update_with_start(
                Waits.ask, start=WithStart(Waits, id=f"u-{handle.run_id}", task_queue="q")
            )
            assert one == 1
            assert await served_by(client, by_update.run_id) == client.identity


async def test_after_a_lost_connection_it_is_so_again_and_no_start_fails_in_between() -> None:
    async with two_processes() as (server, first, _):
        with trio.fail_after(10):
            for _ in range(3):
                server.drop_connections()
                await (await first.start_workflow(Where, task_queue="q")).result()
            while True:
                handle = await first.start_workflow(Where, task_queue="q")
                await handle.result()
                if await served_by(first, handle.run_id) == "first":
                    break


async def test_only_workers_that_serve_it_now_are_named() -> None:
    async def held(ctx: WorkflowContext) -> None: ...

    async with open_real_server() as server, open_client(server.zap) as client:
        assert client.workers == []
        async with open_worker(client, "q", workflows=[Where, held]) as worker:
            assert worker.subscription_for("q", "Where")
            for queue, type in (("q", "Cart"), ("other", "Where"), ("q", "held")):
                assert worker.subscription_for(queue, type) == ""
            assert client.workers == [worker]
            await worker.drain()
            assert worker.subscription_for("q", "Where") == ""
        assert client.workers == []
