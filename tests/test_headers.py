"""Headers over a real server: from each kind of client to whatever belongs to what it started."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.helpers.running_server import running_server
from tests.helpers.sdk_servers import open_fake_server, open_real_server
from tests.helpers.workers import AT_ONCE, QUICK, at_fake, served

import zaptasks
from zapserver.engine import limits
from zaptasks import (
    CallFailed,
    Client,
    ScheduleSpec,
    StartTask,
    StartWorkflow,
    WithStart,
    WorkflowContext,
    aio,
    current_task,
    open_client,
    open_worker,
    workflow,
)
from zaptasks.headers import HEADER_BYTES_MAX
from zapwire.opcodes import Op

trace: ContextVar[str] = ContextVar("trace", default="none")


def of_the_moment() -> dict[str, str]:
    return {"trace": trace.get()}


async def seen() -> dict[str, str]:
    return dict(current_task().headers)


def seen_in_a_thread() -> dict[str, str]:
    return dict(current_task().headers)


# --- where they go -----------------------------------------------------------------------------------


async def test_a_task_has_them_in_every_attempt_and_describe_shows_them() -> None:
    tried: list[Mapping[str, str]] = []

    async def flaky() -> None:
        tried.append(current_task().headers)
        if len(tried) < 3:
            raise OSError("again")

    async with served(tasks=[flaky, seen_in_a_thread]) as (client, _):
        handle = await client.now("flaky", headers={"tenant": "möve"}, retry_policy=AT_ONCE)
        await handle.result()
        assert tried == [{"tenant": "möve"}] * 3
        assert (await handle.describe()).headers == {"tenant": "möve"}
        assert await (await client.now("seen_in_a_thread", headers={"a": "1"})).result() == {"a": "1"}
        assert await (await client.now("seen_in_a_thread")).result() == {}


@workflow.defn
class Parent:
    @workflow.run
    async def run(self, is_again: bool = False) -> list[Any]:
        if not is_again:
            await workflow.wait_condition(lambda: self.is_told)
            workflow.continue_as_new(True)
        own = dict(workflow.info().headers)
        workflow.logger.warning("it runs")
        activity = await workflow.execute_activity(seen, start_to_close=10)
        return [own, activity, await workflow.execute_child_workflow(Child.run)]

    def __init__(self) -> None:
        self.is_told = False

    @workflow.signal
    def tell(self) -> None:
        self.is_told = True


@workflow.defn
class Child:
    @workflow.run
    async def run(self) -> dict[str, str]:
        return dict(workflow.info().headers)


async def test_a_workflow_its_activities_its_children_and_its_later_runs_have_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    headers = {"trace": "00-4bf9-01"}
    async with served(workflows=[Parent, Child], activities=[seen]) as (client, _):
        handle = await client.signal_with_start("tell", start=WithStart("Parent", id="p", headers=headers))
        assert await client.get_handle(handle.workflow_id).result() == [headers] * 3
    [record] = [record for record in caplog.records if "it runs" in record.getMessage()]
    assert record.__dict__["headers"] == headers


async def test_a_plain_workflow_function_has_them_too() -> None:
    async def held(ctx: WorkflowContext) -> list[Any]:
        return [dict(ctx.headers), await ctx.execute_activity(seen)]

    async with served(workflows=[held], activities=[seen]) as (client, _):
        handle = await client.start_workflow("held", headers={"a": "1"})
        assert await handle.result() == [{"a": "1"}] * 2


async def test_a_replay_finds_them_in_the_history() -> None:
    """Another worker, which has never seen the run."""
    async with open_real_server() as server, open_client(server.zap, backoff=QUICK) as client:
        async with open_worker(client, workflows=[Parent, Child], activities=[seen]):
            handle = await client.start_workflow("Parent", headers={"a": "1"})
            with trio.fail_after(10):
                while (await handle.describe()).history_length < 2:  # noqa: ASYNC110 - it happens on the server
                    await trio.sleep(0.01)
        async with open_worker(client, workflows=[Parent, Child], activities=[seen]):
            await handle.signal("tell")
            assert await client.get_handle(handle.workflow_id).result() == [{"a": "1"}] * 3


async def test_the_runs_of_a_schedule_have_those_of_its_action() -> None:
    async with served(tasks=[seen], workflows=[Child]) as (client, _):
        spec = ScheduleSpec(interval=3600)
        await client.create_schedule("t", spec, StartTask("seen", headers={"a": "1"}))
        await client.create_schedule("w", spec, StartWorkflow("Child", headers={"b": "2"}))
        assert (await client.describe_schedule("t")).action.headers == {"a": "1"}
        for schedule, headers in (("t", {"a": "1"}), ("w", {"b": "2"})):
            handle = await client.trigger_schedule(schedule)
            assert handle is not None
            assert await handle.result() == headers


async def test_log_records_of_a_task_have_them(caplog: pytest.LogCaptureFixture) -> None:
    async def logs() -> None:
        current_task().logger.warning("it runs", extra={"more": 1})

    async with served(tasks=[logs]) as (client, _):
        await (await client.now("logs", headers={"tenant": "a"})).result()
    [record] = [record for record in caplog.records if record.name == "zaptasks.task"]
    assert (record.__dict__["headers"], record.__dict__["more"]) == ({"tenant": "a"}, 1)
    assert record.getMessage().startswith("[logs ")


# --- the headers of the moment -------------------------------------------------------------------------


async def test_a_client_asks_for_the_headers_of_the_moment_at_each_start_and_a_call_may_add() -> None:
    async with (
        open_real_server() as server,
        open_client(server.zap, headers=of_the_moment) as client,
        open_worker(client, tasks=[seen], workflows=[Child]),
    ):
        trace.set("one")
        first = await client.now("seen")
        trace.set("two")
        second = await client.start_workflow("Child", headers={"tenant": "a"})
        third = await client.now("seen", headers={"trace": "given"})
        results = [await handle.result() for handle in (first, second, third)]
    assert results == [{"trace": "one"}, {"trace": "two", "tenant": "a"}, {"trace": "given"}]


def test_an_asyncio_client_asks_in_the_task_that_starts() -> None:
    async def start(client: aio.Client, name: str) -> Any:
        trace.set(name)
        await asyncio.sleep(0.01)
        return await (await client.now("seen", task_queue="aio-headers")).result()

    async def main(zap: str) -> None:
        async with (
            aio.open_client(zap, headers=of_the_moment) as client,
            aio.open_worker(client, "aio-headers", tasks=[seen]),
        ):
            names = ["a", "b", "c"]
            results = await asyncio.gather(*(start(client, name) for name in names))
        assert results == [{"trace": name} for name in names]

    with running_server() as server:
        asyncio.run(main(server.zap))


@pytest.mark.parametrize("place", ["zap", "url", "here"])
def test_a_blocking_client_asks_in_the_thread_that_starts(place: str) -> None:
    results: dict[str, Any] = {}
    done = threading.Event()

    @zaptasks.task(name="seen")
    async def tell() -> None:
        results.update(current_task().headers, thread=asked.pop())
        done.set()

    asked: list[str] = []

    def source() -> dict[str, str]:
        asked.append(threading.current_thread().name)
        return of_the_moment()

    def start(client: Client) -> None:
        trace.set("in a thread")
        client.now("seen", {}, headers={"tenant": "a"})

    def run(client: Client) -> None:
        thread = threading.Thread(target=start, args=[client], name="starter")
        thread.start()
        assert done.wait(10)
        thread.join()

    if place == "here":
        with Client(zap="", headers=source, handler=lambda type, payload: tell()) as client:
            run(client)
    else:
        with (
            running_server() as server,
            Client(**{place: getattr(server, place)}, headers=source) as client,
            Client(zap=server.zap) as worker,
        ):
            worker.add("seen", "1000h", tell)
            run(client)
    assert results == {"trace": "in a thread", "tenant": "a", "thread": "starter"}


async def test_what_the_source_raises_is_the_error_of_the_start() -> None:
    def broken() -> dict[str, str]:
        raise LookupError("no request here")

    async with open_fake_server() as fake, open_client(fake.zap, headers=broken) as client:
        with pytest.raises(LookupError, match="no request here"):
            await client.now("seen")
        with pytest.raises(LookupError):
            await client.start_workflow("Order")
        assert not fake.calls_of(Op.TASK_SUBMIT)


# --- bounds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"a": 1}, TypeError),
        ({1: "a"}, TypeError),
        ([("a", "b")], TypeError),
        ({"": "x"}, ValueError),
        ({"a": "line\nline"}, ValueError),
        ({"a": "x" * HEADER_BYTES_MAX}, ValueError),
    ],
)
async def test_what_is_no_header_is_refused_before_anything_is_sent(headers: Any, error: type[Exception]) -> None:
    async with open_fake_server() as fake, open_client(fake.zap) as client:
        with pytest.raises(error, match="header"):
            await client.now("seen", headers=headers)
        with pytest.raises(error, match="header"):
            await client.start_workflow("Order", headers=headers)
        with pytest.raises(error, match="header"):
            await client.create_schedule("s", "1h", StartTask("seen", headers=headers))
        assert {call.opcode for call in fake.calls} == {Op.HEALTH}


async def test_a_server_refuses_what_another_client_may_send() -> None:
    async with open_real_server() as server, open_client(server.zap) as client:
        for headers, status in (({"a": "x" * 5_000}, 413), ({"a": "\x07"}, 400), ({"a": 1}, 400), (["a"], 400)):
            request = {"workflow_type": "Order", "headers": headers}
            with pytest.raises(CallFailed) as refused:
                await client.call(Op.START_WORKFLOW, request, zaptasks.records.Started)
            assert refused.value.status == status


def test_client_and_server_have_the_same_bound() -> None:
    assert HEADER_BYTES_MAX == limits.HEADER_BYTES_MAX


# --- a Go peer sees none of it ---------------------------------------------------------------------------


async def test_requests_and_deliveries_without_headers_have_no_such_key() -> None:
    async with open_fake_server({Op.TASK_SUBMIT: lambda call: call.started()}) as fake, open_client(fake.zap) as client:
        await client.now("seen")
        assert "headers" not in fake.calls_of(Op.TASK_SUBMIT)[0].options
        await client.now("seen", headers={"a": "1"})
        assert fake.calls_of(Op.TASK_SUBMIT)[1].options["headers"] == {"a": "1"}


async def test_a_delivery_of_a_go_server_has_none() -> None:
    async with open_fake_server() as fake, at_fake(fake, tasks=[seen]):
        fake.answers[Op.RESPOND_ACTIVITY_TASK_COMPLETED] = lambda call: call.answer()
        fake.deliver("seen")
        answer = await fake.call_of(Op.RESPOND_ACTIVITY_TASK_COMPLETED)
        assert answer.payload == {}


# --- kept ------------------------------------------------------------------------------------------------


async def test_they_survive_a_restart_of_the_server(tmp_path: Path) -> None:
    async with open_real_server(data=str(tmp_path)) as server, open_client(server.zap) as client:
        task = await client.now("seen", headers={"a": "1"})
        run = await client.start_workflow("Parent", headers={"b": "2"})
    async with (
        open_real_server(data=str(tmp_path)) as server,
        open_client(server.zap) as client,
        open_worker(client, tasks=[seen], workflows=[Parent, Child]),
    ):
        assert await client.get_handle(task.workflow_id).result() == {"a": "1"}
        handle = client.get_handle(run.workflow_id)
        assert (await handle.describe()).headers == {"b": "2"}
        await handle.signal("tell")
        assert await handle.result() == [{"b": "2"}] * 3
