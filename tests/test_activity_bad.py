"""Activities that do what they should not: each has a clear outcome, and its worker goes on."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import pytest
import trio
from tests.helpers.sdk_servers import open_real_server
from tests.helpers.workers import AT_ONCE, NO_RETRY, served

from zaptasks import (
    ActivityFailed,
    CallFailed,
    TaskFailed,
    TaskTimedOut,
    activity,
    open_client,
    open_worker,
    workflow,
)
from zapwire.opcodes import Op

enough = threading.Event()


@pytest.fixture(autouse=True)
def threads_end() -> Iterator[None]:
    enough.clear()
    yield
    enough.set()


@activity.defn
def stubborn(payload: object = None) -> str:
    """A thread that never looks whether somebody wants it to stop."""
    enough.wait(20)
    return "late"


@activity.defn
async def shielded(payload: object = None) -> str:
    with trio.CancelScope(shield=True, relative_deadline=20):
        while not enough.is_set():  # noqa: ASYNC110 - it is stubborn, and not clever
            await trio.sleep(0.01)
    return "late"


@activity.defn
async def good(payload: object = None) -> str:
    return "good"


@activity.defn
async def unencodable() -> object:
    return {"rows": [1, {"lock": threading.Lock()}]}


@activity.defn(name="suicidal")
async def dies_with_its_worker(payload: object = None) -> str:
    os._exit(9)


@activity.defn(name="suicidal")
async def careful(payload: object = None) -> str:
    return f"attempt {activity.info().attempt}"


@workflow.defn
class Impatient:
    """Gives its activity half a second, and reports what became of it."""

    @workflow.run
    async def run(self, type: str, seconds: float) -> str:
        try:
            with workflow.move_on_after(0.1):
                return str(await workflow.execute_activity(type, start_to_close=seconds, retry_policy=NO_RETRY))
        except ActivityFailed as error:
            return f"{error.type}: {error.message}"
        return "canceled"


@pytest.mark.parametrize("handler", [stubborn, shielded])
async def test_one_that_ignores_a_cancel_is_ended_by_its_timeout(handler: object) -> None:
    async with served(activities=[handler, good], workflows=[Impatient]) as (client, worker):
        name = "stubborn" if handler is stubborn else "shielded"
        handle = await client.start_workflow("Impatient", name, 0.5)
        assert "start-to-close timeout" in await handle.result()
        assert worker.running, "its code still runs"
        assert await (await client.now("good")).result() == "good"
        enough.set()


@pytest.mark.parametrize("handler", [stubborn, shielded])
async def test_what_it_says_after_its_timeout_changes_nothing(
    handler: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "zaptasks.worker")
    async with served(tasks={"slow": handler}) as (client, _):
        handle = await client.now("slow", start_to_close=0.2, retry_policy=NO_RETRY)
        with pytest.raises(TaskTimedOut):
            await handle.result()
        history = [event.event_type async for event in handle.history()]
        enough.set()
    assert any("came too late" in line for line in caplog.messages)
    assert history[-1] == "WORKFLOW_EXECUTION_TIMED_OUT"


async def test_one_that_completes_in_spite_of_a_cancel_has_completed() -> None:
    async with served(tasks={"slow": shielded}) as (client, worker):
        handle = await client.now("slow")
        for _ in range(1_000):
            if worker.running:
                break
            await trio.sleep(0.005)
        await handle.cancel("enough")
        enough.set()
        assert await handle.result() == "late"


async def test_one_whose_worker_is_canceled_with_it_is_handed_back_from_its_thread() -> None:
    async with open_real_server() as server, open_client(server.zap) as client:
        handle = await client.now("slow", retry_policy=NO_RETRY)
        with trio.CancelScope() as scope:
            async with open_worker(client, tasks={"slow": stubborn}) as worker:
                while not worker.running:  # noqa: ASYNC110
                    await trio.sleep(0.005)
                scope.cancel()
        async with open_worker(client, tasks={"slow": good}):
            assert await handle.result() == "good"


async def test_one_that_takes_its_worker_along_is_done_by_another() -> None:
    async with open_real_server() as server, open_client(server.zap) as client:
        target = "tests.test_activity_bad:dies_with_its_worker"
        command = [sys.executable, "-m", "zapserver.cli", "worker", target, "--zap", server.zap]
        first = await client.now("suicidal", retry_policy=NO_RETRY)
        with trio.fail_after(20):
            assert (await trio.run_process(command, check=False)).returncode == 9
        with pytest.raises(TaskFailed, match="was lost during attempt 1") as caught:
            await first.result()
        assert caught.value.type == "WorkerLost"
        second = await client.now("suicidal", retry_policy=AT_ONCE)
        with trio.fail_after(20):
            await trio.run_process(command, check=False)
        async with open_worker(client, tasks=[careful]):
            assert await second.result() == "attempt 2"


async def test_the_first_answer_stands_and_the_second_is_refused() -> None:
    tokens: list[str] = []

    async def work(payload: object) -> str:
        token = activity.info().task_token
        tokens.append(token)
        await client.get_activity_handle(token).complete("first")
        return "second"

    async with served(tasks=[work]) as (client, _):
        handle = await client.now("work", 1)
        assert await handle.result() == "first"
        for opcode, payload in (
            (Op.RESPOND_ACTIVITY_TASK_COMPLETED, b'"third"'),
            (Op.RESPOND_ACTIVITY_TASK_FAILED, b"{}"),
            (Op.RECORD_ACTIVITY_TASK_HEARTBEAT, b"[]"),
            (Op.HAND_BACK_TASK, b""),
            (Op.DETACH_TASK, b""),
        ):
            with pytest.raises(CallFailed, match="task token not found: what it was for is closed"):
                await client.respond(opcode, tokens[0], payload)
        assert (await handle.describe()).result == "first"


async def test_a_result_that_cannot_be_encoded_fails_the_activity_and_says_where() -> None:
    async with served(activities=[unencodable], workflows=[Impatient]) as (client, _):
        handle = await client.start_workflow("Impatient", "unencodable", 10)
        text = await handle.result()
    assert text.startswith("PayloadError: the result of 'unencodable' cannot be sent as JSON: $.rows[1].lock")
