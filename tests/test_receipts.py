"""How durable what was acknowledged is: asked for, answered, and visible from outside, also when the disk is full."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx2
import pytest
import trio
from tests.helpers.processes import zaptasks
from tests.helpers.sdk_servers import Call, RealServer, open_fake_server, open_real_server
from tests.helpers.store_faults import Disk

from zapserver import stores
from zapserver.store import Batch, SqliteStore
from zapserver.store import Durability as StoreDurability
from zaptasks import (
    Acknowledged,
    AsyncClient,
    Durability,
    RetryPolicy,
    ScheduleInfo,
    ServerBusy,
    StartTask,
    TaskFailed,
    WithStart,
    open_client,
    open_worker,
)
from zaptasks.blocking.http_fallback import open_http_fallback
from zaptasks.records import Started, with_receipt
from zaptasks.task_request import TaskRequest
from zapwire import Capability, Op, Receipt

LEVELS: tuple[Durability, ...] = ("memory", "written", "synced")
HOUR = "1h"


@asynccontextmanager
async def served(data: Path | None) -> AsyncIterator[tuple[AsyncClient, RealServer]]:
    async with (
        open_real_server(data=":memory:" if data is None else str(data)) as server,
        open_client(server.zap) as client,
    ):
        yield client, server


Ask = Callable[[AsyncClient, Durability | None], Awaitable[object]]


async def _signal(client: AsyncClient, level: Durability | None) -> Acknowledged:
    return await (await client.start_workflow("Order")).signal("paid", 17, durability=level)


async def _cancel(client: AsyncClient, level: Durability | None) -> Acknowledged:
    return await (await client.now("mail")).cancel("no", durability=level)


async def _terminate(client: AsyncClient, level: Durability | None) -> Acknowledged:
    return await (await client.now("mail")).terminate("no", durability=level)


async def _create(client: AsyncClient, level: Durability | None) -> ScheduleInfo:
    return await client.create_schedule("s", HOUR, StartTask("mail"), durability=level)


async def _update(client: AsyncClient, level: Durability | None) -> ScheduleInfo:
    await _create(client, None)
    return await client.update_schedule("s", spec="2h", durability=level)


async def _pause(client: AsyncClient, level: Durability | None) -> Acknowledged:
    await _create(client, None)
    return await client.pause_schedule("s", durability=level)


async def _unpause(client: AsyncClient, level: Durability | None) -> Acknowledged:
    await _create(client, None)
    await client.pause_schedule("s")
    return await client.unpause_schedule("s", durability=level)


async def _trigger(client: AsyncClient, level: Durability | None) -> object:
    await _create(client, None)
    return await client.trigger_schedule("s", durability=level)


async def _delete(client: AsyncClient, level: Durability | None) -> Acknowledged:
    await _create(client, None)
    return await client.delete_schedule("s", durability=level)


CALLS: dict[str, Ask] = {
    "now": lambda client, level: client.now("mail", durability=level),
    "start_workflow": lambda client, level: client.start_workflow("Order", durability=level),
    "signal_with_start": lambda client, level: client.signal_with_start(
        "paid", start=WithStart("Order", id="o", durability=level)
    ),
    "put_task_schedule": lambda client, level: client.put_task_schedule("s", HOUR, durability=level),
    "signal": _signal,
    "cancel": _cancel,
    "terminate": _terminate,
    "create_schedule": _create,
    "update_schedule": _update,
    "pause_schedule": _pause,
    "unpause_schedule": _unpause,
    "trigger_schedule": _trigger,
    "delete_schedule": _delete,
}


def level_of(answer: object) -> object:
    return answer.durability  # type: ignore[attr-defined]


@pytest.mark.parametrize("ask", CALLS.values(), ids=CALLS)
async def test_a_server_with_a_disk_reaches_what_was_asked_for(tmp_path: Path, ask: Ask) -> None:
    async with served(tmp_path) as (client, _):
        assert level_of(await ask(client, None)) == "synced"
    for level in LEVELS:
        async with served(tmp_path / level) as (client, _):
            assert level_of(await ask(client, level)) == level


@pytest.mark.parametrize("ask", CALLS.values(), ids=CALLS)
async def test_a_server_that_keeps_nothing_says_so_whatever_was_asked_for(ask: Ask) -> None:
    async with served(None) as (client, _):
        assert level_of(await ask(client, "synced")) == "memory"


@pytest.mark.parametrize("ask", CALLS.values(), ids=CALLS)
async def test_a_level_that_is_none_is_refused_before_it_is_sent(ask: Ask) -> None:
    async with served(None) as (client, _):
        with pytest.raises(ValueError, match="durability is 'fsync': it must be"):
            await ask(client, "fsync")  # type: ignore[arg-type]


async def test_a_reset_and_a_requeue_say_how_durable_they_are(tmp_path: Path) -> None:
    async def refuse() -> None:
        raise ValueError("no")

    async with served(tmp_path) as (client, _), open_worker(client, tasks=[refuse]):
        failed = await client.now("refuse", retry_policy=RetryPolicy(maximum_attempts=1))
        with pytest.raises(TaskFailed):
            await failed.result()
        assert (await client.requeue_dead_letter(failed.workflow_id, durability="memory")).durability == "memory"
        workflow = await client.start_workflow("Order")
        assert (await workflow.reset(1, durability="written")).durability == "written"


async def test_a_handle_that_started_nothing_knows_no_level() -> None:
    async with served(None) as (client, _):
        assert client.get_handle("mail-1").durability is None
        assert (await client.create_schedule("s", HOUR, StartTask("mail"))).durability == "memory"
        assert (await client.describe_schedule("s")).durability is None


async def test_a_server_without_receipts_leaves_the_level_open() -> None:
    answers = {
        Op.TASK_SUBMIT: Call.started,
        Op.START_WORKFLOW: lambda call: call.answer({"workflow_id": "w", "run_id": "r"}),
    }
    for capabilities in (Capability(0), Capability.CBOR_BODIES):
        async with open_fake_server(answers, capabilities=capabilities) as fake, open_client(fake.zap) as client:
            assert (await client.now("mail", durability="synced")).durability is None
            assert (await client.start_workflow("Order")).durability is None
            assert fake.calls_of(Op.TASK_SUBMIT)[0].options["durability"] == "synced"
            assert "durability" not in fake.calls_of(Op.START_WORKFLOW)[0].body


async def test_clients_workers_and_the_server_announce_receipts() -> None:
    async with served(None) as (client, server), open_worker(client, tasks={"mail": print}):
        links = list(server.server.dispatcher._peers)
        assert len(links) == 2
        assert all(Capability.RECEIPTS in link.capabilities for link in links)


@pytest.mark.parametrize(("receipt", "level"), [(0, None), (1, "memory"), (2, "written"), (3, "synced"), (4, None)])
def test_receipts_are_levels_and_an_unknown_one_is_none(receipt: int, level: Durability | None) -> None:
    assert with_receipt(Started(workflow_id="w"), receipt).durability == level
    assert with_receipt("no acknowledgement", receipt) == "no acknowledgement"
    assert receipt in (0, 4) or Receipt(receipt).name.lower() == level


def test_a_level_of_a_later_version_is_none_and_no_error() -> None:
    assert Started(level="replicated").durability is None


@pytest.mark.parametrize("asked", [*LEVELS, None])
async def test_over_http_the_level_is_in_the_body(tmp_path: Path, asked: Durability | None) -> None:
    for data, most in ((tmp_path, "synced"), (None, "memory")):
        async with (
            served(data) as (_, server),
            open_http_fallback(server.url, namespace="default", timeout=5) as http,
        ):
            request = TaskRequest.make("mail", identity="me", durability=asked)
            expected = "memory" if most == "memory" else asked or most
            assert (await http.submit(request)).durability == expected
            kept = await http.put_task_schedule("s", HOUR, task_queue="default", durability=asked)
            assert kept.durability == expected


async def test_over_http_an_unknown_level_is_a_400_and_starts_nothing() -> None:
    async with served(None) as (client, server), httpx2.AsyncClient(base_url=server.url) as http:
        for path, body in (
            ("workflows", {"workflow_type": "mail", "durability": "forever"}),
            ("schedules/s", {"schedule": {"spec": {"interval": [{"every": HOUR}]}}, "durability": "forever"}),
        ):
            answer = await http.post(f"/api/v1/namespaces/default/{path}", json=body)
            assert (answer.status_code, "forever" in answer.json()["error"]) == (400, True)
        assert [info async for info in client.list()] == []
        assert await client.list_schedules() == []


async def test_what_was_acknowledged_as_synced_is_there_after_a_restart(tmp_path: Path) -> None:
    async with served(tmp_path) as (client, _):
        handle = await client.now("mail", {"to": "ada"}, durability="synced")
        await client.put_task_schedule("s", HOUR)
    async with served(tmp_path) as (client, _):
        assert (await client.get_handle(handle.workflow_id, handle.run_id).describe()).input == {"to": "ada"}
        assert [schedule.id for schedule in await client.list_schedules()] == ["s"]


# --- health -------------------------------------------------------------------------------------------


async def test_health_says_how_durable_the_server_is(tmp_path: Path) -> None:
    for data, level in ((tmp_path, "synced"), (None, "memory")):
        async with served(data) as (client, server), httpx2.AsyncClient(base_url=server.url) as http:
            await client.now("mail")  # what the server wrote when it started is kept by now
            health = await client.health()
            assert (health.status, health.durability, health.store, health.queued_bytes) == ("ok", level, "ok", 0)
            answer = await http.get("/v1/tasks/health")
            assert answer.status_code == 200
            said = answer.json()
            assert (said["durability"], said["store"], said["queued_bytes"]) == (level, "ok", 0)
            assert (await http.get("/healthz")).json() == {"service": "tasks", "status": "ok", "namespace": "default"}


async def until_taken(client: AsyncClient) -> None:
    while True:
        try:
            await client.now("mail")
            return
        except ServerBusy:
            await trio.sleep(0.02)


async def test_health_shows_a_full_disk_and_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    monkeypatch.setattr(stores, "SqliteStore", partial(SqliteStore, connect=disk.connect))
    async with served(tmp_path) as (client, server), httpx2.AsyncClient(base_url=server.url) as http:
        before = await client.now("mail")
        disk.fails_at = "BEGIN IMMEDIATE"
        with pytest.raises(ServerBusy, match="disk is full") as caught:
            await client.now("mail")
        assert caught.value.status == 507
        health = await client.health()
        assert (health.status, health.durability) == ("failing", "synced")
        assert isinstance(health.store, dict)
        assert "disk is full" in health.store["default"]
        answer = await http.get("/v1/tasks/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "failing")
        assert answer.json()["store"] == health.store
        assert (await http.get("/healthz")).status_code == 200
        shown = await trio.to_thread.run_sync(zaptasks, "health", "--zap", server.zap, "--json")
        assert (shown.status, json.loads(shown.stdout)["store"]) == (1, health.store)
        disk.fails_at = None
        with trio.fail_after(10):
            await until_taken(client)
        assert (await client.health()).store == "ok"
        assert (await http.get("/v1/tasks/health")).status_code == 200
        assert (await before.describe()).workflow_id == before.workflow_id


async def test_another_namespace_that_fails_is_named_and_the_server_stays_ok(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk()
    async with open_real_server(data=str(tmp_path)) as server, open_client(server.zap, namespace="shop") as client:
        monkeypatch.setattr(stores, "SqliteStore", partial(SqliteStore, connect=disk.connect))
        await client.register_namespace("shop")
        await client.now("mail")
        disk.fails_at = "BEGIN IMMEDIATE"
        with pytest.raises(ServerBusy):
            await client.now("mail")
        health = await client.health()
        assert (health.status, isinstance(health.store, dict) and list(health.store)) == ("ok", ["shop"])
        async with httpx2.AsyncClient(base_url=server.url) as http:
            assert (await http.get("/v1/tasks/health")).status_code == 200
        disk.fails_at = None
        with trio.fail_after(10):
            await until_taken(client)


# --- repeats ------------------------------------------------------------------------------------------


async def test_a_repeat_that_asks_for_more_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The repeat starts nothing, so there is nothing new to keep; yet what it acknowledges must be on the disk."""
    commits: list[StoreDurability] = []

    class Recording(SqliteStore):
        def commit(self, batch: Batch, durability: StoreDurability = StoreDurability.SYNCED) -> None:
            super().commit(batch, durability)
            commits.append(durability)

    monkeypatch.setattr(stores, "SqliteStore", Recording)
    async with served(tmp_path) as (client, _):
        await client.now("mail")  # what the server wrote when it started is kept by now
        first = await client.now("mail", request_id="r-1", durability="written")
        assert (first.durability, commits[-1]) == ("written", StoreDurability.WRITTEN)
        settled = len(commits)
        again = await client.now("mail", request_id="r-1", durability="written")
        assert (again.run_id, again.durability, commits[settled:]) == (first.run_id, "written", [])
        again = await client.now("mail", request_id="r-1")
        assert (again.run_id, again.durability, commits[settled:]) == (
            first.run_id,
            "synced",
            [StoreDurability.SYNCED],
        )
        again = await client.now("mail", request_id="r-1")
        assert (again.durability, len(commits)) == ("synced", settled + 1)
