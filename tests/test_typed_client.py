"""Workflows that are started, signaled, asked and updated by their classes, methods and functions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

import pytest
import trio
from tests.helpers.sdk_servers import open_fake_server, open_real_server
from tests.helpers.workers import QUICK, served

from zaptasks import (
    AsyncClient,
    CallFailed,
    TaskTerminated,
    UpdateFailed,
    UpdateRejected,
    WithStart,
    WorkflowContext,
    WorkflowHandle,
    open_client,
    open_worker,
    workflow,
)
from zapwire.errors import BadBody
from zapwire.opcodes import Op


@dataclass
class Receipt:
    item: str
    due: date


@workflow.defn(name="order.v2")
class Order:
    def __init__(self) -> None:
        self.name = ""

    @workflow.run
    async def run(self, item: str, day: date = date(2026, 12, 1)) -> Receipt:
        await workflow.wait_condition(lambda: self.name == "done")
        return Receipt(item, day)

    @workflow.signal(name="call-it")
    def name_it(self, name: str) -> None:
        self.name = name

    @workflow.query(name="what")
    def state(self, day: int) -> Receipt:
        return Receipt(self.name, date(2026, 1, day))

    @workflow.update(name="again")
    async def rename(self, name: str) -> Receipt:
        if name == "broken":
            raise ValueError("no such name")
        self.name, before = name, self.name
        return Receipt(before, date(2026, 1, 1))

    @rename.validator
    def check(self, name: str) -> None:
        if not name:
            raise ValueError("no name")


class Elsewhere:
    """Nothing that JSON can be read as."""


@workflow.defn
async def strange() -> Elsewhere:
    return {"a": 1}  # type: ignore[return-value]


@workflow.defn
async def greet(name: str) -> str:
    return f"hello {name}"


async def held(ctx: WorkflowContext, day: date) -> Receipt:
    return Receipt("held", day)


async def test_everything_is_named_by_its_code_and_read_as_it_is_annotated() -> None:
    async with served(workflows=[Order]) as (client, _):
        handle = await client.start_workflow(Order.run, "tea", date(2026, 2, 3), id="o")
        assert (await handle.describe()).type == "order.v2"
        await handle.signal(Order.name_it, "first")
        assert await handle.update(Order.rename, "second", id="u") == Receipt("first", date(2026, 1, 1))
        assert await handle.update("again", "third", id="u") == {"item": "first", "due": "2026-01-01"}
        assert await handle.query(Order.state, 5) == Receipt("second", date(2026, 1, 5))
        assert await handle.query("what", 5) == {"item": "second", "due": "2026-01-05"}
        await handle.signal(Order.name_it, "done")
        expected = Receipt("tea", date(2026, 2, 3))
        assert await handle.result() == expected
        assert await client.get_handle_for(Order, "o").result() == expected
        assert await client.get_handle("o", result_type=Receipt).result() == expected
        assert await client.get_handle("o").result() == {"item": "tea", "due": "2026-02-03"}
        with pytest.raises(BadBody, match=r"cannot be read as int"):
            await client.get_handle("o", result_type=int).result()
        assert await handle.result(dict[str, str]) == {"item": "tea", "due": "2026-02-03"}


async def test_classes_and_functions_of_both_kinds_are_executed() -> None:
    async with served(workflows=[Order, greet, held, strange]) as (client, _):
        assert await client.execute_workflow(greet, "ada") == "hello ada"
        assert await client.execute_workflow("greet", "ada") == "hello ada"
        assert await client.execute_workflow(held, date(2026, 2, 3)) == Receipt("held", date(2026, 2, 3))
        plain: Any = await client.execute_workflow(strange)
        assert plain == {"a": 1}, "what cannot be read as a type is plain"
        handle = await client.start_workflow(Order, "tea", date(2026, 12, 1))
        await handle.signal(Order.name_it, "done")
        assert await handle.result() == Receipt("tea", date(2026, 12, 1))


async def test_what_is_no_workflow_signal_query_or_update_is_named_before_any_call() -> None:
    async with open_fake_server() as fake, open_client(fake.zap) as client:
        untyped: Any = client
        handle = untyped.get_handle("o")
        with pytest.raises(TypeError, match="is no workflow: decorate"):
            await untyped.start_workflow(Receipt)
        with pytest.raises(TypeError, match=r"is no signal: give a name, or a method under @workflow\.signal"):
            await handle.signal(Order.state, 1)
        with pytest.raises(TypeError, match="is no query"):
            await handle.query(Order.rename, "x")
        with pytest.raises(TypeError, match="is no update"):
            await handle.update(Order.state, 1)
        with pytest.raises(
            ValueError, match="id_conflict_policy is 'perhaps': it must be one of 'fail', 'use-existing"
        ):
            await untyped.start_workflow("order", id_conflict_policy="perhaps")
        with pytest.raises(ValueError, match="needs an id"):
            WithStart("order", id="")
        with pytest.raises(ValueError, match="exclude each other"):
            await client.signal_with_start("x", start=WithStart("order", id="o", id_conflict_policy="fail"))
        assert not [call for call in fake.calls if call.opcode != Op.HEALTH]


async def test_policies_say_what_an_id_means_that_was_used() -> None:
    async with served(workflows=[Order, greet]) as (client, _):
        first = await client.start_workflow(Order.run, "tea", id="o")
        with pytest.raises(CallFailed, match="409"):
            await client.start_workflow(Order.run, "milk", id="o", id_conflict_policy="fail")
        joined = await client.start_workflow(Order.run, "milk", id="o", id_conflict_policy="use-existing")
        assert joined.run_id == first.run_id
        second = await client.start_workflow(Order.run, "milk", id="o", id_conflict_policy="terminate-existing")
        assert second.run_id != first.run_id
        with pytest.raises(TaskTerminated, match="another start took its id"):
            await first.result()
        await client.execute_workflow(greet, "ada", id="g")
        for policy in ("reject-duplicate", "allow-duplicate-failed-only"):
            with pytest.raises(CallFailed, match="409"):
                await client.start_workflow(greet, "ada", id="g", id_reuse_policy=policy)
        assert await client.execute_workflow(greet, "ada", id="g", id_reuse_policy="allow-duplicate") == "hello ada"


async def test_policies_hold_for_tasks_too() -> None:
    async def mail() -> None: ...

    async with served(tasks=[mail]) as (client, _):
        first = await client.now("mail", id="m")
        await first.result()
        with pytest.raises(CallFailed, match="409"):
            await client.now("mail", id="m", id_reuse_policy="reject-duplicate")
        waits = await client.now("nobody serves it", id="w")
        assert (await client.now("nobody serves it", id="w", id_conflict_policy="use-existing")).run_id == waits.run_id


async def test_a_signal_starts_its_workflow_if_need_be_and_ends_another_if_told_to() -> None:
    async def signaled(client: AsyncClient, name: str, **options: Any) -> WorkflowHandle[Receipt]:
        return await client.signal_with_start(Order.name_it, name, start=WithStart(Order.run, name, id="o", **options))

    async with served(workflows=[Order]) as (client, _):
        first = await signaled(client, "first")
        assert (await signaled(client, "second")).run_id == first.run_id
        third = await signaled(client, "third", id_conflict_policy="terminate-existing")
        assert third.run_id != first.run_id
        with trio.fail_after(5):
            assert await third.query(Order.state, 1) == Receipt("third", date(2026, 1, 1))
        done = await signaled(client, "done", id_conflict_policy="use-existing")
        assert done.run_id == third.run_id
        assert (await done.result()).item == "third"


async def test_an_update_starts_its_workflow_if_need_be() -> None:
    async def renamed(client: AsyncClient, name: str, id: str = "o", **options: Any) -> tuple[str, Receipt]:
        start = WithStart(Order.run, "tea", id=id, **options)
        handle, before = await client.update_with_start(Order.rename, name, start=start)
        return handle.run_id, before

    async with served(workflows=[Order]) as (client, _):
        first, before = await renamed(client, "first")
        assert before == Receipt("", date(2026, 1, 1))
        assert await renamed(client, "second") == (first, Receipt("first", date(2026, 1, 1)))
        with pytest.raises(CallFailed, match="is open already"):
            await renamed(client, "third", id_conflict_policy="fail")
        other, before = await renamed(client, "third", id_conflict_policy="terminate-existing")
        assert (other != first, before.item) == (True, "")
        with pytest.raises(UpdateFailed, match="no such name"):
            await renamed(client, "broken")
        with pytest.raises(UpdateRejected, match="no name"):
            await renamed(client, "", id="p")
        assert (await client.get_handle("p").describe()).status.is_open, "it was started, and stays"
        handle, plain = await client.update_with_start("again", "done", start=WithStart("order.v2", "milk", id="q"))
        assert plain == {"item": "", "due": "2026-01-01"}
        assert await handle.result() == {"item": "milk", "due": "2026-12-01"}


async def test_an_update_with_start_is_repeated_over_a_lost_connection_and_starts_one_run() -> None:
    async with (
        open_real_server() as server,
        open_client(server.zap, backoff=QUICK) as client,
        trio.open_nursery() as nursery,
    ):
        outcomes: list[tuple[str, Receipt]] = []

        async def ask() -> None:
            handle, before = await client.update_with_start(
                Order.rename, "x", start=WithStart(Order.run, "tea", id="o")
            )
            outcomes.append((handle.run_id, before))

        nursery.start_soon(ask)
        while not [info async for info in client.list()]:  # noqa: ASYNC110 - it happens on the server
            await trio.sleep(0.01)
        server.drop_connections()
        async with open_worker(client, workflows=[Order]):
            with trio.fail_after(10):
                while not outcomes:  # noqa: ASYNC110 - it happens on the server
                    await trio.sleep(0.01)
        (run,) = [info async for info in client.list()]
        assert outcomes == [(run.run_id, Receipt("", date(2026, 1, 1)))]


async def test_a_server_names_what_an_update_with_start_lacks() -> None:
    async with served(workflows=[]) as (client, _):
        with pytest.raises(CallFailed, match="workflow_id required: without one there is nothing"):
            await client.wait_updated(Op.UPDATE_WITH_START, "x", {"workflow_type": "order", "update_name": "x"})
