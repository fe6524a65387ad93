"""Activities that are completed by whoever has their token, after their code has ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from tests.helpers.sdk_servers import open_fake_server, open_real_server
from tests.helpers.workers import AT_ONCE, NO_RETRY, QUICK, at_fake, served

from zaptasks import (
    ActivityFailed,
    ActivityTokenHandle,
    CallFailed,
    ExecutionHandle,
    LocalEngine,
    TaskCanceled,
    TaskError,
    TaskFailed,
    activity,
    open_client,
    open_worker,
    workflow,
)
from zapwire.handshake import Capability
from zapwire.opcodes import Op

tokens: list[str] = []


@pytest.fixture(autouse=True)
def no_tokens() -> None:
    tokens.clear()


@activity.defn
async def approve(item: str) -> str:
    activity.heartbeat(item)
    tokens.append(activity.info().task_token)
    activity.complete_later()


@activity.defn
def approve_in_thread(item: str) -> str:
    tokens.append(activity.info().task_token)
    try:
        activity.complete_later()
    except Exception:  # what a handler has around its own work
        return "swallowed"


@activity.defn
async def approve_in_nursery(item: str) -> str:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(approve, item)
    return "swallowed"


@workflow.defn
class Purchase:
    @workflow.run
    async def run(self, item: str) -> str:
        try:
            return await workflow.execute_activity(approve, item, start_to_close=60, retry_policy=NO_RETRY)
        except ActivityFailed as error:
            return f"{error.type}: {error.message}"


async def left_open(handle: ExecutionHandle) -> None:
    """Wait until it waits for whoever holds its token."""
    for _ in range(1_000):
        waiting = await handle.explain()
        assert waiting, "it is over"
        if any("whoever holds its token" in each.reason for each in waiting):
            return
        await trio.sleep(0.005)
    raise AssertionError(f"it waits for {waiting}")


@pytest.mark.parametrize("handler", [approve, approve_in_thread, approve_in_nursery])
async def test_it_is_completed_from_elsewhere_when_its_worker_is_gone(handler: Callable[..., object]) -> None:
    async with open_real_server() as server, open_client(server.zap, backoff=QUICK) as client:
        async with open_worker(client, tasks={"approve": handler}, slots=1):
            task = await client.now("approve", "tea", retry_policy=NO_RETRY)
            await left_open(task)
        async with open_client(server.zap) as other:
            await other.get_activity_handle(tokens[0]).complete({"by": "ada"})
        assert await task.result() == {"by": "ada"}


async def test_its_slot_is_free_meanwhile() -> None:
    async with served(tasks=[approve], slots=1) as (client, worker):
        tasks = [await client.now("approve", str(n)) for n in range(3)]
        for task in tasks:
            await left_open(task)
        assert worker.running == 0
        for token in tokens:
            await client.get_activity_handle(token).complete(token[:3])
        assert [await task.result() for task in tasks] == ["act"] * 3


async def test_it_survives_a_restart_of_the_server(tmp_path: Path) -> None:
    async with (
        open_real_server(data=str(tmp_path)) as server,
        open_client(server.zap) as client,
        open_worker(client, activities=[approve], workflows=[Purchase]),
    ):
        await left_open(await client.start_workflow("Purchase", "tea", id="p-1"))
    async with (
        open_real_server(data=str(tmp_path)) as server,
        open_client(server.zap) as client,
        open_worker(client, activities=[approve], workflows=[Purchase]),
    ):
        assert not await client.get_activity_handle(tokens[0]).heartbeat("still there")
        await client.get_activity_handle(tokens[0]).complete("yes")
        assert await client.get_handle("p-1").result() == "yes"
    assert len(tokens) == 1, "it was given to a worker again"


async def test_it_fails_as_if_its_handler_had_raised() -> None:
    async with served(tasks=[approve]) as (client, _):
        task = await client.now("approve", "tea", retry_policy=NO_RETRY)
        await left_open(task)
        try:
            raise ValueError("too dear") from KeyError("budget")
        except ValueError as error:
            await client.get_activity_handle(tokens[0]).fail(error)
        with pytest.raises(TaskFailed) as caught:
            await task.result()
    assert (caught.value.type, caught.value.message) == ("ValueError", "too dear")
    assert str(caught.value.__cause__) == "'budget' (KeyError)"


async def test_a_failure_is_retried_and_the_next_attempt_has_what_was_said() -> None:
    async def work(item: str) -> object:
        if activity.info().attempt == 1:
            tokens.append(activity.info().task_token)
            activity.complete_later()
        return activity.heartbeat_details()

    async with served(tasks=[work]) as (client, _):
        task = await client.now("work", "tea", retry_policy=AT_ONCE)
        await left_open(task)
        held = client.get_activity_handle(tokens[0])
        assert not await held.heartbeat(7, "of", 10)
        assert not await held.heartbeat()
        await held.fail(TaskError("not now"))
        assert await task.result() == [7, "of", 10]
        with pytest.raises(CallFailed, match="task token not found: what it was for is closed") as late:
            await held.complete("late")
        assert late.value.status == 404


async def test_a_cancel_reaches_whoever_has_the_token() -> None:
    async with served(tasks=[approve]) as (client, _):
        task = await client.now("approve", "tea")
        await left_open(task)
        held = client.get_activity_handle(tokens[0])
        await task.cancel("the order was withdrawn")
        assert await held.heartbeat()
        await held.report_canceled("withdrawn")
        with pytest.raises(TaskCanceled, match="withdrawn"):
            await task.result()


async def test_its_timeout_ends_it_and_the_token_is_refused_with_why() -> None:
    second = trio.Event()

    async def twice(item: str) -> str:
        if activity.info().attempt == 2:
            second.set()
        await approve(item)
        return "swallowed"

    async with served(tasks={"approve": twice}) as (client, _):
        task = await client.now("approve", "tea", start_to_close=0.2, retry_policy=AT_ONCE)
        await second.wait()
        await left_open(task)
        with pytest.raises(CallFailed, match="the lease of attempt 1 of 'approve'") as late:
            await client.get_activity_handle(tokens[0]).complete("late")
        assert late.value.status == 409
        await client.get_activity_handle(tokens[1]).complete("in time")
        assert await task.result() == "in time"


@pytest.mark.parametrize("token", ["nonsense", "act|x|1|y|default", "act|x|1|y|no-such-namespace"])
async def test_a_token_that_never_was_is_refused(token: str) -> None:
    async with open_real_server() as server, open_client(server.zap) as client:
        for call in (client.get_activity_handle(token).complete, client.get_activity_handle(token).heartbeat):
            with pytest.raises(CallFailed, match="task token not found") as refused:
                await call()
            assert refused.value.status == 404


async def test_an_empty_token_is_a_mistake_of_the_caller() -> None:
    async with open_fake_server() as fake, open_client(fake.zap) as client:
        with pytest.raises(ValueError, match="the token is empty"):
            client.get_activity_handle("")
        assert repr(client.get_activity_handle("t")) == "<ActivityTokenHandle t>"
        assert isinstance(client.get_activity_handle("t"), ActivityTokenHandle)


async def test_the_last_heartbeat_arrives_before_the_worker_lets_go() -> None:
    async with open_fake_server() as fake, at_fake(fake, tasks=[approve]):
        fake.deliver("approve", "tea")
        detached = await fake.call_of(Op.DETACH_TASK)
        assert detached.token == "t-1"
        opcodes = [call.opcode for call in fake.calls]
        assert opcodes.index(Op.RECORD_ACTIVITY_TASK_HEARTBEAT) < opcodes.index(Op.DETACH_TASK)


async def test_a_go_server_cannot_keep_it_open_and_the_task_says_so() -> None:
    async with open_fake_server(capabilities=Capability(0)) as go, at_fake(go, tasks=[approve]):
        go.deliver("approve", "tea")
        failed = (await go.call_of(Op.RESPOND_ACTIVITY_TASK_FAILED)).payload["p"]
    assert (failed["code"], failed["nonRetryable"]) == ("NotSupported", True)
    assert "complete_later() needs a server of ours" in failed["message"]


def test_a_task_in_the_process_has_nobody_to_leave_it_to() -> None:
    said: list[str] = []

    def work(payload: object) -> None:
        try:
            activity.complete_later()
        except RuntimeError as error:
            said.append(str(error))

    engine = LocalEngine(lambda type, payload: work(payload))
    engine.now("work", 1)
    engine.stop()
    assert said == ["complete_later() needs a server that keeps the task, and no server knows this one"]
