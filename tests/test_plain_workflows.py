"""Workflows as Go's worker runs them."""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing
from tests.helpers.sdk_servers import Call, FakeServer, open_fake_server, open_real_server
from tests.helpers.workers import AT_ONCE, at_fake, in_virtual_time

from zaptasks import (
    ActivityFailed,
    TaskError,
    TaskFailed,
    WorkflowContext,
    open_client,
    open_worker,
)
from zapwire.failure import decode_failure
from zapwire.opcodes import Op


async def test_a_workflow_runs_activities_here_and_elsewhere() -> None:
    async def greet(name: str, times: int = 1) -> str:
        return f"hello {name} " * times

    def elsewhere() -> int:
        return 7

    async def order(ctx: WorkflowContext, name: str) -> object:
        greeting = await ctx.execute_activity(greet, name, 2, start_to_close=5)
        number = await ctx.execute_activity("elsewhere", task_queue="other", retry_policy=AT_ONCE)
        return [greeting, number, ctx.type, ctx.attempt]

    async with (
        in_virtual_time(activities=[greet], workflows=[order]) as (client, _),
        open_worker(client, "other", activities=[elsewhere]),
    ):
        handle = await client.start_workflow("order", "ada")
        assert await handle.result() == ["hello ada hello ada ", 7, "order", 1]


async def test_a_failed_activity_is_raised_in_the_workflow_with_its_cause() -> None:
    async def charge() -> None:
        raise TaskError("no funds", code="Payment", details=[7])

    async def order(ctx: WorkflowContext) -> object:
        with pytest.raises(ActivityFailed) as caught:
            await ctx.execute_activity(charge)
        return [caught.value.activity_type, caught.value.type, caught.value.message, caught.value.details]

    async def naive(ctx: WorkflowContext) -> None:
        await ctx.execute_activity(charge)

    async with in_virtual_time(activities=[charge], workflows=[order, naive]) as (client, _):
        handle = await client.start_workflow("order")
        assert await handle.result() == ["charge", "Payment", "no funds", [7]]
        with pytest.raises(TaskFailed) as caught:
            await (await client.start_workflow("naive")).result()
        assert caught.value.type == "Payment"


async def test_a_result_that_overtakes_the_answer_to_its_call_is_not_lost() -> None:
    async def order(ctx: WorkflowContext) -> object:
        return await ctx.execute_activity("act")

    async with open_fake_server() as fake, at_fake(fake, workflows=[order]):

        def result_first(call: Call) -> None:
            fake.push(Op.DELIVER_ACTIVITY_RESULT, {"activity_id": "a-9", "result": "[1]"})
            call.answer({"activity_task_id": "a-9", "task_token": ""})

        fake.answers[Op.SCHEDULE_ACTIVITY] = result_first
        deliver_workflow(fake, "order")
        assert commands(await fake.call_of(Op.RESPOND_WORKFLOW_TASK_COMPLETED)) == [{"kind": 0, "result": [1]}]


async def test_a_call_for_an_activity_without_an_answer_starts_the_run_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def order(ctx: WorkflowContext) -> object:
        return await ctx.execute_activity("act")

    silent = {Op.SCHEDULE_ACTIVITY: lambda call: None}
    async with open_fake_server(silent) as fake, at_fake(fake, workflows=[order]):
        deliver_workflow(fake, "order")
        # The end of the connection releases the run; asking again could run the activity twice.
        await fake.call_of(Op.SUBSCRIBE_WORKFLOW_TASKS, 2)
        assert len(fake.calls_of(Op.SCHEDULE_ACTIVITY)) == 1
        assert fake.calls_of(Op.RESPOND_WORKFLOW_TASK_COMPLETED) == []


def deliver_workflow(fake: FakeServer, type: str, input: object = ()) -> None:
    body = {"task_token": uuid.uuid4().hex, "workflow_id": "w", "run_id": "r", "workflow_type_name": type, "attempt": 1}
    fake.push(Op.DELIVER_WORKFLOW_TASK, body | {"input": json.dumps(input)})


def commands(call: Call) -> list[dict[str, Any]]:
    """The commands of an answered workflow task, their payloads decoded."""
    body = call.payload
    assert body["v"] == 1
    return [
        {
            name: json.loads(base64.b64decode(value)) if name in ("result", "failure") else value
            for name, value in command.items()
        }
        for command in body["cmds"]
    ]


async def test_a_workflow_task_is_answered_as_go_workers_do() -> None:
    async def fine(ctx: WorkflowContext, number: int) -> int:
        return number + 1

    async def boom(ctx: WorkflowContext) -> None:
        raise TaskError("x", code="Mine")

    async def odd(ctx: WorkflowContext) -> object:
        return object()

    async def wait(ctx: WorkflowContext) -> None:
        await trio.sleep_forever()

    async with open_fake_server() as fake, at_fake(fake, workflows=[fine, boom, odd, wait]):
        answers = Op.RESPOND_WORKFLOW_TASK_COMPLETED
        deliver_workflow(fake, "fine", [1])
        assert commands(await fake.call_of(answers, 1)) == [{"kind": 0, "result": 2}]
        deliver_workflow(fake, "fine", ["one"])
        [command] = commands(await fake.call_of(answers, 2))
        assert (command["kind"], command["failure"]["p"]["code"]) == (1, "DecodeError")
        deliver_workflow(fake, "boom")
        [command] = commands(await fake.call_of(answers, 3))
        assert (command["kind"], command["failure"]["p"]["code"]) == (1, "Mine")
        deliver_workflow(fake, "odd")
        [command] = commands(await fake.call_of(answers, 4))
        assert (command["kind"], command["failure"]["p"]["code"]) == (1, "PayloadError")
        deliver_workflow(fake, "nobody")
        assert commands(await fake.call_of(answers, 5)) == []
        deliver_workflow(fake, "wait")
        fake.push(Op.DELIVER_CANCEL_REQUEST, {"workflow_id": "w", "run_id": "r", "reason": "enough"})
        [command] = commands(await fake.call_of(answers, 6))
        failure = decode_failure(json.dumps(command["failure"]).encode())
        assert (command["kind"], failure.code, failure.message) == (3, "CanceledError", "enough")


async def test_a_query_is_answered_with_base64_so_that_no_text_can_be_misread() -> None:
    async def wait(ctx: WorkflowContext) -> None:
        ctx.on_query("code", lambda: "MTIz")  # base64 of 123, and a text all the same
        await trio.sleep_forever()

    async with (
        open_fake_server({Op.RESPOND_QUERY: lambda call: call.answer()}) as fake,
        at_fake(fake, workflows=[wait], shutdown_timeout=0),
    ):
        deliver_workflow(fake, "wait")
        query = {"token": "q", "run_id": "r", "workflow_id": "w", "query_type": "code"}
        await trio.testing.wait_all_tasks_blocked()
        fake.push(Op.DELIVER_QUERY, query)
        answer = await fake.call_of(Op.RESPOND_QUERY)
        assert json.loads(base64.b64decode(answer.body["result"])) == "MTIz"
        fake.push(Op.DELIVER_QUERY, query | {"run_id": "gone"})
        assert "does not run on this worker" in (await fake.call_of(Op.RESPOND_QUERY, 2)).body["error"]
        fake.push(Op.DELIVER_QUERY, query | {"args": "not base64!"})
        assert "not base64" in (await fake.call_of(Op.RESPOND_QUERY, 3)).body["error"]


async def test_a_workflow_whose_worker_leaves_goes_on_elsewhere_from_recorded_results() -> None:
    charged: list[str] = []
    charged_once = trio.Event()

    async def charge(order: str) -> str:
        charged.append(order)
        return f"receipt {order}"

    async def order(ctx: WorkflowContext, name: str) -> str:
        receipt = await ctx.execute_activity(charge, name)
        if not charged_once.is_set():
            charged_once.set()
            await trio.sleep_forever()
        return str(receipt)

    async with (
        open_real_server() as server,
        open_client(server.zap) as client,
        open_worker(client, activities=[charge]),
    ):
        async with open_worker(client, workflows=[order], shutdown_timeout=0):
            handle = await client.start_workflow("order", "tea")
            await charged_once.wait()
        async with open_worker(client, workflows=[order]):
            assert await handle.result() == "receipt tea"
    assert charged == ["tea"]
