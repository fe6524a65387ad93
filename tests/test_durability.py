"""What was acknowledged is there after the server was killed: real processes, real files, one promise a test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from tests.helpers.running_server import RunningServer, running_server

import zaptasks
from zaptasks import AsyncClient, open_client

pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@asynccontextmanager
async def client_of(server: RunningServer) -> AsyncIterator[AsyncClient]:
    with trio.fail_after(20):
        async with open_client(server.zap) as client:
            yield client


async def test_an_acknowledged_task_runs_after_a_kill_and_once_for_its_request_id(data: Path) -> None:
    with running_server(data=data) as server:
        async with client_of(server) as client:
            first = await client.now("email.send", {"to": "ada", "n": 2**60}, request_id="r1")
        server.kill()
    ran: list[object] = []

    async def send(mail: object) -> str:
        ran.append(mail)
        return "sent"

    with running_server(data=data) as server:
        async with client_of(server) as client, zaptasks.open_worker(client, tasks={"email.send": send}):
            again = await client.now("email.send", {"to": "ada", "n": 2**60}, request_id="r1")
            assert again.run_id == first.run_id
            assert await again.result() == "sent"
            assert (await again.describe()).status is zaptasks.Status.COMPLETED
    assert ran == [{"to": "ada", "n": 2**60}]


async def test_a_result_and_its_history_stay_what_they_were(data: Path) -> None:
    async def double(n: int) -> int:
        return 2 * n

    with running_server(data=data) as server:
        async with client_of(server) as client, zaptasks.open_worker(client, tasks={"double": double}):
            handle = await client.now("double", 21, request_id="r")
            assert await handle.result() == 42
            events = [event async for event in handle.history()]
        server.kill()
    with running_server(data=data) as server:
        async with client_of(server) as client:
            later = client.get_handle(handle.workflow_id, handle.run_id)
            assert await later.result() == 42
            assert [event async for event in later.history()] == events
            assert (await client.now("double", 21, request_id="r")).run_id == handle.run_id
            assert [listed.run_id async for listed in client.list("ExecutionStatus = Completed")] == [handle.run_id]


async def test_what_a_worker_held_goes_to_another_with_its_details_and_no_attempt_is_charged(data: Path) -> None:
    started = trio.Event()

    async def slow(payload: object) -> None:
        zaptasks.current_task().heartbeat({"page": 7})
        await trio.sleep(0.5)  # it is sent by the worker, in its own time
        started.set()
        await trio.sleep_forever()

    seen: list[tuple[int, object]] = []

    async def finish(payload: object) -> str:
        task = zaptasks.current_task()
        seen.append((task.attempt, task.heartbeat_details))
        return "done"

    once = zaptasks.RetryPolicy(maximum_attempts=1)
    with running_server(data=data) as server:
        async with client_of(server) as client, zaptasks.open_worker(client, tasks={"import": slow}):
            handle = await client.now("import", retry_policy=once)
            await started.wait()
            server.kill()
    with running_server(data=data) as server:
        async with client_of(server) as client, zaptasks.open_worker(client, tasks={"import": finish}):
            again = client.get_handle(handle.workflow_id, handle.run_id)
            assert await again.result() == "done"
    assert seen == [(2, ({"page": 7},))]


async def test_a_drained_server_charges_nothing_either(data: Path) -> None:
    started = trio.Event()

    async def slow(payload: object) -> None:
        started.set()
        await trio.sleep_forever()

    async def finish(payload: object) -> int:
        return zaptasks.current_task().attempt

    once = zaptasks.RetryPolicy(maximum_attempts=1)
    with running_server(data=data) as server:
        async with client_of(server) as client, zaptasks.open_worker(client, tasks={"import": slow}):
            handle = await client.now("import", retry_policy=once)
            await started.wait()
            await trio.to_thread.run_sync(server.stop)
            assert server.process.returncode == 0
    with running_server(data=data) as server:
        async with client_of(server) as client, zaptasks.open_worker(client, tasks={"import": finish}):
            assert await client.get_handle(handle.workflow_id, handle.run_id).result() == 2


async def test_signals_schedules_and_namespaces_are_there(data: Path) -> None:
    with running_server(data=data) as server:
        async with client_of(server) as client:
            await client.register_namespace("shop", description="the shop")
            workflow = await client.start_workflow("Order", id="order-1", task_queue="orders")
            await workflow.signal("paid", {"by": "card"})
            await client.put_task_schedule("audit.archive", "1h")
        server.kill()
    with running_server(data=data) as server:
        async with client_of(server) as client:
            names = [event.event_type async for event in client.get_handle("order-1").history()]
            assert names == ["WORKFLOW_EXECUTION_STARTED", "WORKFLOW_EXECUTION_SIGNALED"]
            assert [schedule.id for schedule in await client.list_schedules()] == ["audit.archive"]
            assert ("shop", "the shop") in [(each.name, each.description) for each in await client.list_namespaces()]
        async with open_client(server.zap, namespace="shop") as shop:
            assert (await shop.now("in.the.shop")).workflow_id


async def test_a_timer_that_came_due_while_nobody_was_there_fires(data: Path) -> None:
    with running_server(data=data) as server:
        async with client_of(server) as client:
            handle = await client.now("nobody.does.this", schedule_to_start=0.2)
        server.kill()
    await trio.sleep(0.3)
    with running_server(data=data) as server:
        async with client_of(server) as client:
            with pytest.raises(zaptasks.TaskTimedOut, match="schedule-to-start"):
                await client.get_handle(handle.workflow_id, handle.run_id).result()


async def test_a_second_server_on_the_same_data_is_refused_with_the_reason(data: Path) -> None:
    with running_server(data=data), pytest.raises(AssertionError, match="exit status 1"), running_server(data=data):
        pass


async def test_a_namespace_whose_file_cannot_be_read_is_refused_with_the_reason_and_the_others_are_served(
    data: Path,
) -> None:
    with running_server(data=data) as server:
        async with client_of(server) as client:
            await client.register_namespace("other")
            kept = await client.now("email.send", 1)
        server.kill()
    file = data / "_" / "other.db"
    file.write_bytes(b"no database" * 1_000)
    for suffix in ("-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)
    with running_server(data=data) as server:
        async with client_of(server) as client, open_client(server.zap, namespace="other") as other:
            assert await kept_by(client) == [kept.run_id]
            with pytest.raises(zaptasks.CallFailed, match=r"other\.db: file is not a database: stop") as caught:
                await other.now("email.send", 1)
            assert caught.value.status == 500
            health = await client.health()
            assert health.status == "ok"
            assert isinstance(health.store, dict)
            assert "restore a backup" in health.store["other"]


async def kept_by(client: AsyncClient) -> list[str]:
    return [listed.run_id async for listed in client.list()]
