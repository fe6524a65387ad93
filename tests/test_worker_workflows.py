"""Workflows that replay, in workers of a real server."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.helpers.running_server import running_server
from tests.helpers.sdk_servers import open_fake_server, open_real_server
from tests.helpers.workers import NO_RETRY, QUICK, at_fake, served

import zaptasks.aio
from zaptasks import (
    AsyncClient,
    CallFailed,
    DataConverter,
    Encryption,
    TaskFailed,
    UpdateFailed,
    UpdateRejected,
    Worker,
    WorkflowContext,
    WorkflowHandle,
    open_client,
    open_worker,
    workflow,
)
from zapwire.handshake import Capability
from zapwire.opcodes import Op


async def charge(item: str) -> str:
    return f"paid {item}"


@workflow.defn
class Order:
    def __init__(self) -> None:
        self.names: list[str] = []
        self.is_approved = False

    @workflow.run
    async def run(self, item: str) -> list[str]:
        paid = await workflow.execute_activity(charge, item, start_to_close=30)
        await workflow.sleep(0.01)
        await workflow.wait_condition(lambda: self.is_approved)
        return [paid, *self.names]

    @workflow.signal
    def approve(self) -> None:
        self.is_approved = True

    @workflow.query
    def state(self, mark: str = "") -> str:
        return f"{mark}{len(self.names)} {'approved' if self.is_approved else 'waits'}"

    @workflow.update
    async def rename(self, name: str) -> int:
        if name == "nobody":
            raise ValueError("no such name")
        self.names.append(name)
        return len(self.names)

    @rename.validator
    def check(self, name: str) -> None:
        if not name:
            raise ValueError("no name")


async def state_is(handle: WorkflowHandle, count: int, type: str) -> None:
    """Wait until the history has that many events of a type."""

    async def is_so() -> bool:
        return [event.event_type async for event in handle.history()].count(type) >= count

    await until(is_so)


async def until(ready: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(10):
        while not await ready():  # noqa: ASYNC110 - what is waited for happens on the server
            await trio.sleep(0.01)


# --- the whole of it -----------------------------------------------------------------------------------


async def test_a_workflow_has_activities_timers_signals_queries_and_updates() -> None:
    async with served(activities=[charge], workflows=[Order]) as (client, worker):
        handle = await client.start_workflow("Order", "tea")
        assert await handle.query("state", "> ") == "> 0 waits"
        assert await handle.update("rename", "ada") == 1
        with pytest.raises(UpdateRejected, match=r"update rename was rejected: no name \(ValueError\)"):
            await handle.update("rename", "")
        with pytest.raises(UpdateFailed, match=r"update rename failed: no such name \(ValueError\)"):
            await handle.update("rename", "nobody", id="one")
        with pytest.raises(UpdateFailed, match="no such name"):
            await handle.update("rename", "somebody", id="one")
        await state_is(handle, 1, "TIMER_FIRED")
        assert worker._serving.has(handle.run_id), "an answer that was taken leaves the run at hand"
        await handle.signal("approve")
        assert await handle.result() == ["paid tea", "ada"]
        assert not worker._serving.has(handle.run_id)


async def test_a_workflow_has_children_and_functions_are_workflows_too() -> None:
    @workflow.defn
    async def child(number: int) -> int:
        return number + 1

    @workflow.defn(name="parent")
    async def parent_of_many(count: int) -> list[int]:
        return [await workflow.execute_child_workflow(child, number) for number in range(count)]

    async with served(workflows=[parent_of_many, child]) as (client, _):
        assert await (await client.start_workflow("parent", 3)).result() == [1, 2, 3]


async def test_a_failure_and_a_cancel_end_a_workflow() -> None:
    @workflow.defn
    async def fails() -> None:
        raise ValueError("no such item")

    @workflow.defn
    async def waits() -> None:
        await workflow.sleep_forever()

    async with served(workflows=[fails, waits]) as (client, _):
        with pytest.raises(TaskFailed, match="no such item") as caught:
            await (await client.start_workflow("fails")).result()
        assert caught.value.type == "ValueError"
        handle = await client.start_workflow("waits")
        await handle.cancel("enough")
        with pytest.raises(Exception, match="enough"):
            await handle.result()


async def test_both_kinds_of_workflows_are_served_by_one_worker() -> None:
    async def plain(ctx: WorkflowContext) -> None:
        ctx.on_query("state", lambda: "held")
        await trio.sleep_forever()

    async with served(activities=[charge], workflows={"plain": plain, "Order": Order}, shutdown_timeout=0) as (
        client,
        _,
    ):
        held = await client.start_workflow("plain")
        replayed = await client.start_workflow("Order", "tea")
        assert await held.query("state") == "held"
        assert await replayed.query("state") == "0 waits"


def test_what_cannot_be_served_is_refused_when_the_worker_is_made() -> None:
    async def order(ctx: WorkflowContext) -> None: ...

    @workflow.defn(name="order")
    async def other() -> None: ...

    async def main(workflows: Any) -> None:
        async with served(workflows=workflows):
            pass

    with pytest.raises(ValueError, match="registered twice"):
        trio.run(main, [order, other])
    with pytest.raises(TypeError, match="is one function or class"):
        trio.run(main, Order)


async def test_a_server_that_keeps_no_histories_is_not_asked() -> None:
    async with open_fake_server(capabilities=Capability(0)) as fake:
        with pytest.raises(CallFailed, match="keeps no histories"):
            async with at_fake(fake, workflows=[Order]):
                pass
        assert fake.calls_of(Op.SUBSCRIBE_WORKFLOW_TASKS) == []


# --- local activities -----------------------------------------------------------------------------------


async def test_local_activities_run_side_by_side_in_the_loop_and_in_threads() -> None:
    together = trio.Event()
    calls: list[str] = []

    async def first() -> str:
        calls.append("first")
        await together.wait()
        return "async"

    async def second() -> str:
        together.set()
        return "async too"

    def thread(number: int) -> bool:
        calls.append(f"thread {number}")
        return threading.current_thread() is not threading.main_thread()

    def fails() -> None:
        raise OSError("no route")

    @workflow.defn
    async def local() -> list[object]:
        found: list[object] = []

        async def keep(function: Callable[[], Any]) -> None:
            found.append(await workflow.execute_local_activity(function))

        async with workflow.open_nursery() as nursery:
            nursery.start_soon(keep, first)
            nursery.start_soon(keep, second)
        found.append(await workflow.execute_local_activity(thread, 1))
        try:
            await workflow.execute_local_activity(fails)
        except workflow.ActivityFailed as error:
            found.append(error.type)
        await workflow.sleep(0.05)
        return found

    async with open_real_server() as server, open_client(server.zap, backoff=QUICK) as client:
        async with open_worker(client, workflows=[local]):
            handle = await client.start_workflow("local")
            await state_is(handle, 4, "MARKER_RECORDED")
        async with open_worker(client, workflows=[local]):
            found = await handle.result()
    assert sorted(found[:2]) == ["async", "async too"]
    assert found[2:] == [True, "OSError"]
    assert calls == ["first", "thread 1"], "a replay takes the outcomes from the history"


def with_a_local_activity_that_hangs_once() -> tuple[Callable[[], Awaitable[int]], trio.Event]:
    """A workflow that returns how often its local activity was called, and when that hangs."""
    begun = trio.Event()
    calls: list[int] = []

    async def slow() -> int:
        calls.append(1)
        if len(calls) == 1:
            begun.set()
            await trio.sleep_forever()
        return len(calls)

    @workflow.defn
    async def local() -> int:
        return await workflow.execute_local_activity(slow)

    return local, begun


async def test_a_worker_that_leaves_in_a_local_activity_hands_the_task_back() -> None:
    local, begun = with_a_local_activity_that_hangs_once()
    async with open_real_server() as server, open_client(server.zap, backoff=QUICK) as client:
        async with open_worker(client, workflows=[local], shutdown_timeout=0):
            handle = await client.start_workflow("local")
            await begun.wait()
        async with open_worker(client, workflows=[local]):
            assert await handle.result() == 2


# --- what is lost and comes back ---------------------------------------------------------------------------


async def test_another_worker_goes_on_in_the_middle() -> None:
    charged: list[str] = []

    @asynccontextmanager
    async def worker(client: AsyncClient) -> AsyncIterator[Worker]:
        async def charge_once(item: str) -> str:
            charged.append(item)
            return f"paid {item}"

        activities = {"charge": charge_once}
        async with open_worker(client, activities=activities, workflows=[Order]) as opened:
            yield opened

    async with open_real_server() as server, open_client(server.zap, backoff=QUICK) as client:
        async with worker(client):
            handle = await client.start_workflow("Order", "tea")
            assert await handle.update("rename", "ada") == 1
            await state_is(handle, 1, "TIMER_FIRED")
        async with worker(client) as second:
            assert await handle.query("state") == "1 waits"
            assert not second._serving.has(handle.run_id), "a query alone keeps nothing"
            with pytest.raises(CallFailed, match="answers no query 'other'"):
                await handle.query("other")
            await handle.signal("approve")
            assert await handle.result() == ["paid tea", "ada"]
    assert charged == ["tea"]


async def test_a_lost_connection_in_the_middle_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten = trio.Event()
    async with (
        open_real_server() as server,
        open_client(server.zap, backoff=QUICK) as client,
        open_worker(client, activities=[charge], workflows=[Order]) as worker,
    ):
        handle = await client.start_workflow("Order", "tea")
        await state_is(handle, 1, "TIMER_FIRED")
        lose_all = worker._serving.lose_all

        def noted() -> None:
            lose_all()
            assert not worker._serving.has(handle.run_id)
            forgotten.set()

        monkeypatch.setattr(worker._serving, "lose_all", noted)
        server.drop_connections()
        with trio.fail_after(10):
            await forgotten.wait()
        await handle.signal("approve")
        assert await handle.result() == ["paid tea"]


async def test_a_connection_that_is_lost_in_a_local_activity_has_it_called_again() -> None:
    local, begun = with_a_local_activity_that_hangs_once()
    async with (
        open_real_server() as server,
        open_client(server.zap, backoff=QUICK) as client,
        open_worker(client, workflows=[local]),
    ):
        handle = await client.start_workflow("local")
        await begun.wait()
        server.drop_connections()
        assert await handle.result() == 2


async def test_a_server_that_restarts_in_the_middle_goes_on(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        async with open_real_server(data=str(tmp_path)) as first:
            port = int(first.zap.rpartition(":")[2])
            client: AsyncClient = await nursery.start(_hold_client, first.zap)
            worker: Worker = await nursery.start(_hold_worker, client)
            handle = await client.start_workflow("Order", "tea")
            assert await handle.update("rename", "ada") == 1
            await state_is(handle, 1, "TIMER_FIRED")
        async with open_real_server(port=port, data=str(tmp_path)):

            async def is_connected() -> bool:
                return worker.is_connected

            await until(is_connected)
            await handle.signal("approve")
            assert await handle.result() == ["paid tea", "ada"]
            nursery.cancel_scope.cancel()


async def _hold_client(zap: str, *, task_status: trio.TaskStatus[AsyncClient]) -> None:
    async with open_client(zap, backoff=QUICK) as client:
        task_status.started(client)
        await trio.sleep_forever()


async def _hold_worker(client: AsyncClient, *, task_status: trio.TaskStatus[Worker]) -> None:
    async with open_worker(client, activities=[charge], workflows=[Order]) as worker:
        task_status.started(worker)
        await trio.sleep_forever()


async def test_a_history_of_several_pages_is_read_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    @workflow.defn
    class Collect:
        def __init__(self) -> None:
            self.sizes: list[int] = []

        @workflow.run
        async def run(self, count: int) -> int:
            await workflow.wait_condition(lambda: len(self.sizes) >= count)
            return sum(self.sizes)

        @workflow.signal
        def put(self, text: str) -> None:
            self.sizes.append(len(text))

        @workflow.query
        def count(self) -> int:
            return len(self.sizes)

    monkeypatch.setattr("zaptasks.workflow_serving.PAGE_EVENTS", 7)
    text = "x" * 100_000
    async with open_real_server() as server, open_client(server.zap, backoff=QUICK) as client:
        async with open_worker(client, workflows=[Collect]):
            handle = await client.start_workflow("Collect", 41)
            for _ in range(20):
                await handle.signal("put", text)
        for _ in range(20):
            await handle.signal("put", text)
        async with open_worker(client, workflows=[Collect]) as worker:
            assert await handle.query("count") == 40
            await state_is(handle, 1, "WORKFLOW_TASK_COMPLETED")
            worker._serving._handler.evict_all()  # as for a run that had to make room for others
            await handle.signal("put", text)
            assert await handle.result() == 41 * len(text)


# --- what goes wrong ------------------------------------------------------------------------------------------


async def test_code_that_does_not_fit_the_history_fails_the_task_until_it_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @workflow.defn(name="order")
    async def old() -> str:
        await workflow.sleep(0.05)
        return "old"

    @workflow.defn(name="order")
    async def new() -> str:
        await workflow.execute_activity("charge", "tea", start_to_close=5)
        return "new"

    async with open_real_server() as server, open_client(server.zap, backoff=QUICK) as client:
        async with open_worker(client, workflows=[old]):
            handle = await client.start_workflow("order")
            await state_is(handle, 1, "TIMER_STARTED")
        with caplog.at_level(logging.WARNING, "zaptasks.worker"):
            async with open_worker(client, workflows=[new]):
                await state_is(handle, 1, "WORKFLOW_TASK_FAILED")
        assert "recorded: timer of 0.05 s" in caplog.text
        async with open_worker(client, workflows=[old]):
            assert await handle.result() == "old"


async def test_a_refused_answer_forgets_the_run_and_the_next_delivery_replays(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries: list[bool] = []

    @workflow.defn
    async def greedy() -> str:
        tries.append(workflow.is_replaying())
        await workflow.execute_activity("x" * 2_000 if len(tries) == 1 else "charge", "tea", start_to_close=5)
        return "done"

    async with served(activities=[charge], workflows=[greedy]) as (client, _):
        handle = await client.start_workflow("greedy")
        assert await handle.result() == "done"
    assert len(tries) == 2
    assert "refused the outcome" in caplog.text


async def test_a_task_that_comes_again_takes_the_place_of_the_one_before() -> None:
    calls: list[int] = []
    begun = trio.Event()

    async def slow() -> int:
        calls.append(1)
        if len(calls) == 1:
            begun.set()
            await trio.sleep_forever()
        return len(calls)

    @workflow.defn
    async def local() -> int:
        return await workflow.execute_local_activity(slow)

    started = {
        "eventId": 1,
        "eventTime": "2026-11-26T05:00:00Z",
        "eventType": "WORKFLOW_EXECUTION_STARTED",
        "attributes": {"workflowType": "local", "input": []},
    }
    task = {"workflow_id": "w", "run_id": "r", "workflow_type_name": "local", "history": [started], "last_event_id": 1}
    async with open_fake_server() as fake, at_fake(fake, workflows=[local]) as worker:
        fake.push(Op.DELIVER_WORKFLOW_TASK, task | {"task_token": "t-1"})
        await begun.wait()
        fake.push(Op.DELIVER_WORKFLOW_TASK, task | {"task_token": "t-2"})
        answer = await fake.call_of(Op.RESPOND_WORKFLOW_TASK_COMPLETED)
        assert [command["kind"] for command in answer.payload["cmds"]] == ["record-marker", "complete"]
        assert answer.payload["cmds"][-1]["result"] == 2
        await until_idle(worker)
        assert len(fake.calls_of(Op.RESPOND_WORKFLOW_TASK_COMPLETED)) == 1
        assert fake.calls_of(Op.HAND_BACK_TASK) == []


async def until_idle(worker: Worker) -> None:
    async def is_idle() -> bool:
        return not worker.running

    await until(is_idle)


async def test_a_task_whose_history_cannot_be_read_or_is_broken_fails_and_the_worker_goes_on() -> None:
    task = {"workflow_id": "w", "workflow_type_name": "Order"}
    async with open_fake_server() as fake, at_fake(fake, workflows=[Order]) as worker:
        fake.answers[Op.GET_WORKFLOW_HISTORY] = lambda call: call.answer(status=503, error="damaged")
        fake.push(
            Op.DELIVER_WORKFLOW_TASK,
            task | {"run_id": "r-1", "task_token": "t-1", "next_event_id": 1, "last_event_id": 9},
        )
        [command] = (await fake.call_of(Op.RESPOND_WORKFLOW_TASK_COMPLETED, 1)).payload["cmds"]
        assert command["kind"] == "fail-task"
        assert "damaged" in command["reason"]
        fake.push(Op.DELIVER_WORKFLOW_TASK, task | {"run_id": "r-2", "task_token": "t-2", "last_event_id": 2})
        [command] = (await fake.call_of(Op.RESPOND_WORKFLOW_TASK_COMPLETED, 2)).payload["cmds"]
        assert "needs the events 1 to 2, and has none" in command["reason"]
        await until_idle(worker)
        assert worker.is_connected


async def test_an_exception_that_would_end_a_program_ends_no_worker() -> None:
    @workflow.defn
    async def leaves() -> None:
        raise SystemExit(3)

    @workflow.defn
    async def local() -> None:
        await workflow.execute_local_activity(exits)

    def exits() -> None:
        raise SystemExit(4)

    @workflow.defn
    async def asked() -> None:
        workflow.on_query("leave", lambda: sys.exit(5))
        await workflow.sleep_forever()

    async with served(workflows=[leaves, local, asked]) as (client, worker):
        await state_is(await client.start_workflow("leaves"), 1, "WORKFLOW_TASK_FAILED")
        with pytest.raises(TaskFailed, match="SystemExit"):
            await (await client.start_workflow("local")).result()
        handle = await client.start_workflow("asked")
        with pytest.raises(CallFailed, match="SystemExit: 5"):
            await handle.query("leave")
        assert worker.is_connected


def test_a_worker_of_asyncio_serves_them_too() -> None:
    async def greet(name: str) -> str:
        await asyncio.sleep(0)
        return f"hello {name}"

    @workflow.defn
    async def hello(name: str) -> str:
        await workflow.sleep(0.01)
        return await workflow.execute_activity(greet, name, start_to_close=5)

    async def main(zap: str) -> object:
        async with (
            zaptasks.aio.open_client(zap) as client,
            zaptasks.aio.open_worker(client, workflows=[hello], activities=[greet]),
        ):
            return await (await client.start_workflow("hello", "ada")).result()

    with running_server() as server:
        assert asyncio.run(main(server.zap)) == "hello ada"


# --- encryption -------------------------------------------------------------------------------------------------


async def test_nothing_of_a_workflow_leaves_in_clear_under_an_encrypting_converter() -> None:
    secret = "4111-1111"
    converter = DataConverter(codecs=[Encryption({"k": b"k" * 32}, active="k")])

    def look() -> str:
        return secret

    async def decline(card: str) -> None:
        raise ValueError(f"{card} was refused")

    @workflow.defn
    async def check(card: str) -> str:
        await workflow.sleep(0.01)
        return card

    @workflow.defn
    class Pay:
        def __init__(self) -> None:
            self.cards: list[str] = []

        @workflow.run
        async def run(self, card: str) -> list[str]:
            found = [card, await workflow.execute_local_activity(look)]
            found.append(await workflow.execute_activity(charge, card, start_to_close=5))
            found.append(await workflow.execute_child_workflow(check, card))
            workflow.upsert_memo({"card": card})
            try:
                await workflow.execute_activity(decline, card, start_to_close=5, retry_policy=NO_RETRY)
            except workflow.ActivityFailed as error:
                found.append(error.message)
            await workflow.wait_condition(lambda: len(self.cards) >= 2)
            raise ValueError(json.dumps(found + self.cards))

        @workflow.signal
        def add(self, card: str) -> None:
            self.cards.append(card)

        @workflow.update
        def more(self, card: str) -> str:
            self.cards.append(card)
            return card

        @more.validator
        def check_more(self, card: str) -> None:
            if card == secret * 2:
                raise ValueError(card)

        @workflow.update
        def fail(self, card: str) -> None:
            raise ValueError(card)

        @workflow.query
        def seen(self, card: str) -> list[str]:
            return [card, *self.cards]

    async with open_real_server() as server, open_client(server.zap, converter=converter, backoff=QUICK) as client:
        async with open_worker(client, activities=[charge, decline], workflows=[Pay, check]):
            handle = await client.start_workflow("Pay", secret)
            assert await handle.update("more", secret) == secret
            with pytest.raises(UpdateRejected, match=secret * 2):
                await handle.update("more", secret * 2)
            with pytest.raises(UpdateFailed, match=secret):
                await handle.update("fail", secret)
            assert await handle.query("seen", secret) == [secret, secret]
            await state_is(handle, 2, "ACTIVITY_TASK_STARTED")
        async with open_worker(client, activities=[charge, decline], workflows=[Pay, check]):
            await handle.signal("add", secret)
            with pytest.raises(TaskFailed) as caught:
                await handle.result()
        assert json.loads(caught.value.message) == [
            secret,
            secret,
            f"paid {secret}",
            secret,
            f"{secret} was refused",
            secret,
            secret,
        ]
        async with open_client(server.zap) as stranger:
            events = [event async for event in stranger.get_handle(handle.workflow_id).history()]
            seen = repr(events) + repr(await stranger.get_handle(handle.workflow_id).describe())
    assert secret not in seen
    assert "aes-256-gcm" in seen


async def test_a_worker_without_the_key_fails_the_task_and_leaves_the_run_to_others() -> None:
    converter = DataConverter(codecs=[Encryption({"k": b"k" * 32}, active="k")])

    @workflow.defn
    async def echo(text: str) -> str:
        return text

    async with (
        open_real_server() as server,
        open_client(server.zap, converter=converter) as client,
        open_client(server.zap) as keyless,
    ):
        async with open_worker(keyless, workflows=[echo]):
            handle = await client.start_workflow("echo", "secret")
            await state_is(handle, 1, "WORKFLOW_TASK_FAILED")
        async with open_worker(client, workflows=[echo]):
            assert await handle.result() == "secret"


async def test_a_worker_keeps_as_many_runs_at_hand_as_it_is_told_and_replays_the_others() -> None:
    async with (
        open_real_server() as server,
        zaptasks.open_client(server.zap) as client,
        zaptasks.open_worker(client, "orders", workflows=[Order], activities=[charge], max_cached_runs=1) as worker,
    ):
        handles = [await client.start_workflow(Order.run, "tea", task_queue="orders") for _ in range(3)]
        for handle in handles:
            assert await handle.query(Order.state) == "0 waits"
        assert sum(worker._serving.has(handle.run_id) for handle in handles) <= 1
        for handle in handles:
            await handle.signal(Order.approve)
            with trio.fail_after(10):
                assert len(await handle.result()) == 1
