"""Sessions with workers of a real server: places, and what becomes of them when a worker goes."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.helpers.running_server import running_server
from tests.helpers.sdk_servers import open_fake_server, open_real_server
from tests.helpers.workers import QUICK, at_fake

from zaptasks import (
    AsyncClient,
    Call,
    CallFailed,
    Proceed,
    TaskCanceled,
    TaskFailed,
    Worker,
    WorkflowHandle,
    current_task,
    open_client,
    open_worker,
    workflow,
)
from zaptasks.workflow.sessions import SESSION
from zapwire.handshake import Capability


@workflow.defn
class Film:
    """Opens a session and works in it; when it is lost, in another one."""

    def __init__(self) -> None:
        self.lost: list[str] = []
        self.may_end = False

    @workflow.run
    async def run(self, timeout: float = 5) -> list[str]:
        while True:
            try:
                async with workflow.open_session(task_queue="gpu", creation_timeout=timeout) as session:
                    first = await session.execute_activity(where, start_to_close=60)
                    await workflow.wait_condition(lambda: self.may_end)
                    second = await session.execute_activity(where, start_to_close=60)
                return [first, second, *self.lost]
            except workflow.SessionLost as error:
                self.lost.append(str(error))

    @workflow.signal
    def end(self) -> None:
        self.may_end = True


@workflow.defn
async def stuck() -> str:
    async with workflow.open_session(task_queue="gpu", creation_timeout=5) as session:
        await session.execute_activity(forever, start_to_close=600)
    return "never"


async def where() -> str:
    raise AssertionError("each worker has its own")


async def forever() -> None:
    raise AssertionError("each worker has its own")


class Machine:
    """A worker with activities that know where they run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.began = trio.Event()
        self.ended = trio.Event()
        self.reason = ""
        self.is_here = trio.Event()
        self.worker: Worker

    async def where(self) -> str:
        self.is_here.set()
        return self.name

    async def forever(self) -> None:
        self.began.set()
        try:
            await trio.sleep_forever()
        finally:
            self.reason = current_task().cancel_reason
            self.ended.set()

    @asynccontextmanager
    async def serving(self, client: AsyncClient, sessions: int = 1) -> AsyncIterator[Worker]:
        activities = {"where": self.where, "forever": self.forever}
        async with open_worker(
            client, "gpu", activities=activities, identity=self.name, sessions=sessions, shutdown_timeout=5
        ) as self.worker:
            yield self.worker

    def cut(self) -> None:
        """End its connection, as a crash does."""
        line = self.worker._line
        assert line is not None
        line.close("the test cut it")


@asynccontextmanager
async def at_server() -> AsyncIterator[AsyncClient]:
    """A server with a worker for the workflows."""
    async with (
        open_real_server() as server,
        open_client(server.zap, backoff=QUICK) as client,
        open_worker(client, workflows=[Film, stuck]),
    ):
        yield client


async def started(client: AsyncClient, *args: object) -> WorkflowHandle:
    return await client.start_workflow("Film", *args)


# --- places -------------------------------------------------------------------------------------------


async def test_all_activities_of_a_session_run_on_its_worker() -> None:
    one, two = Machine("one"), Machine("two")
    async with at_server() as client, one.serving(client, 4), two.serving(client, 4):
        handles = [await started(client) for _ in range(8)]
        for handle in handles:
            await handle.signal("end")
        results = [await handle.result() for handle in handles]
        assert sorted(results) == [["one", "one"]] * 4 + [["two", "two"]] * 4


async def test_interceptors_see_the_activities_and_not_the_place() -> None:
    seen: list[str] = []

    async def noted(call: Call, proceed: Proceed) -> Any:
        seen.append(call.name)
        return await proceed(*call.args)

    one = Machine("one")
    async with (
        at_server() as client,
        open_worker(client, "gpu", activities={"where": one.where}, sessions=1, interceptors=[noted]),
    ):
        handle = await started(client)
        await handle.signal("end")
        assert await handle.result() == ["one", "one"]
    assert seen == ["where", "where"]


async def test_two_sessions_share_a_worker_and_a_third_waits_for_a_place() -> None:
    one = Machine("one")
    async with at_server() as client, one.serving(client, 2):
        handles = [await started(client) for _ in range(3)]
        with trio.fail_after(10):
            while not (waiting := [each for each in handles if await waits_for_a_place(each)]):  # noqa: ASYNC110
                await trio.sleep(0.01)
        [third] = waiting
        held = [attempt for attempt in one.worker._attempts.values() if attempt.context.type == SESSION]
        assert len(held) == 2
        first = next(handle for handle in handles if handle is not third)
        await first.signal("end")
        assert await first.result() == ["one", "one"]
        await third.signal("end")
        assert await third.result() == ["one", "one"]


async def waits_for_a_place(handle: WorkflowHandle) -> bool:
    reasons = [(one.what, one.reason) for one in await handle.explain()]
    return any(what == SESSION and "all 2 slot(s)" in reason for what, reason in reasons)


async def test_no_place_in_time_fails_with_the_reason() -> None:
    async with at_server() as client:
        with pytest.raises(TaskFailed, match="no worker is subscribed to task queue 'gpu'") as caught:
            await (await started(client, 0.05)).result()
        assert caught.value.type == "SessionNotOpened"
        async with open_worker(client, "gpu", activities={"where": where}):
            with pytest.raises(TaskFailed, match=r"none of the 1 worker\(s\) .* open_worker\(sessions=\.\.\.\)"):
                await (await started(client, 0.05)).result()


@pytest.mark.parametrize("sessions", [-1, 1_001])
async def test_a_worker_has_a_bounded_number_of_places(sessions: int) -> None:
    async with open_real_server() as server, open_client(server.zap) as client:
        with pytest.raises(ValueError, match=f"sessions is {sessions}: it must be 0"):
            async with open_worker(client, "gpu", activities={"where": where}, sessions=sessions):
                pass


async def test_a_server_of_the_go_kind_has_no_sessions_and_no_rates() -> None:
    for options, text in (({"sessions": 1}, "has no sessions"), ({"tasks_per_second": 5}, "knows no rates")):
        async with open_fake_server(capabilities=Capability(0)) as fake:
            with pytest.raises(CallFailed, match=text) as caught:
                async with at_fake(fake, activities={"where": where}, **options):
                    pass
            assert caught.value.status == 501


# --- ends ---------------------------------------------------------------------------------------------


async def test_a_worker_whose_connection_ends_loses_its_sessions_at_once() -> None:
    one, two = Machine("one"), Machine("two")
    async with at_server() as client, one.serving(client):
        handle = await started(client)
        await one.is_here.wait()
        async with two.serving(client):
            one.cut()
            await handle.signal("end")
            with trio.fail_after(5):
                first, second, lost = await handle.result()
        assert first == second
        assert lost.startswith("the session on 'one/")
        assert "was lost: the worker 'one' was lost during attempt 1" in lost


async def test_what_runs_in_a_session_is_cancelled_with_it() -> None:
    one = Machine("one")
    async with at_server() as client, one.serving(client):
        handle = await client.start_workflow("stuck")
        await one.began.wait()
        one.cut()
        with trio.fail_after(5), pytest.raises(TaskFailed, match="was lost: the worker 'one'") as caught:
            await handle.result()
        assert caught.value.type == "SessionLost"


async def test_a_worker_that_leaves_ends_its_sessions_and_what_runs_in_them() -> None:
    one = Machine("one")
    async with at_server() as client:
        with trio.fail_after(4):  # far less than it gives what runs
            async with one.serving(client):
                handle = await client.start_workflow("stuck")
                await one.began.wait()
        assert one.reason == "the workflow canceled it"
        with pytest.raises(TaskFailed, match="was lost: the worker 'one' leaves") as caught:
            await handle.result()
        assert caught.value.type == "SessionLost"


async def test_a_worker_whose_block_raises_ends_its_sessions_too() -> None:
    one = Machine("one")
    async with at_server() as client:
        handle = await started(client)

        async def fails() -> None:
            async with one.serving(client):
                await one.is_here.wait()
                raise ValueError("enough")

        with pytest.raises(ValueError, match="enough"):
            await fails()
        two = Machine("two")
        async with two.serving(client):
            await handle.signal("end")
            first, second, lost = await handle.result()
        assert (first, second) == ("two", "two")
        assert "was lost: the worker 'one' leaves" in lost


async def test_a_cancel_in_a_session_reaches_what_runs_and_frees_the_place() -> None:
    one = Machine("one")
    async with at_server() as client, one.serving(client):
        handle = await client.start_workflow("stuck")
        await one.began.wait()
        await handle.cancel("too dear")
        with pytest.raises(TaskCanceled):
            await handle.result()
        assert one.reason == "too dear"
        with trio.fail_after(5):
            other = await started(client)
            await other.signal("end")
            assert await other.result() == ["one", "one"]


async def test_the_end_of_a_workflow_frees_its_place() -> None:
    one = Machine("one")
    async with at_server() as client, one.serving(client):
        handle = await started(client)
        await one.is_here.wait()
        await handle.terminate()
        with trio.fail_after(5):
            other = await started(client)
            await other.signal("end")
            assert await other.result() == ["one", "one"]


async def test_a_server_that_restarts_leaves_a_session_to_the_worker_that_comes_back(tmp_path: Path) -> None:
    one = Machine("one")
    async with open_real_server(data=str(tmp_path)) as server:
        address = server.zap
    async with open_client(address, wait=False, backoff=QUICK) as client, trio.open_nursery() as nursery:

        async def serve(open_it: Callable[[], AbstractAsyncContextManager[Worker]]) -> None:
            async with open_it():
                await trio.sleep_forever()

        nursery.start_soon(serve, lambda: open_worker(client, workflows=[Film]))
        nursery.start_soon(serve, lambda: one.serving(client))
        port = int(address.rpartition(":")[2])
        async with open_real_server(port=port, data=str(tmp_path)):
            handle = await started(client)
            await one.is_here.wait()
        async with open_real_server(port=port, data=str(tmp_path)):
            await handle.signal("end")
            assert await handle.result() == ["one", "one"], "the same session: nothing was lost"
            nursery.cancel_scope.cancel()


WORKER_PROGRAM = """
import sys, trio, zaptasks

async def where():
    return "the process"

async def forever():
    print("began", flush=True)
    await trio.sleep_forever()

async def main():
    async with zaptasks.open_client(sys.argv[1]) as client:
        await zaptasks.run_worker(client, "gpu", activities=[where, forever], identity="the process", sessions=1)

trio.run(main)
"""


@pytest.mark.slow
async def test_a_worker_process_that_is_killed_loses_its_session_at_once() -> None:
    with running_server() as server:
        async with open_client(server.zap) as client, open_worker(client, workflows=[Film, stuck]):
            process = await trio.lowlevel.open_process([sys.executable, "-c", WORKER_PROGRAM, server.zap], stdout=-1)
            assert process.stdout is not None
            try:
                handle = await client.start_workflow("stuck")
                assert (await process.stdout.receive_some()).startswith(b"began")
                process.send_signal(signal.SIGKILL)
                with trio.fail_after(5), pytest.raises(TaskFailed, match="was lost: the worker 'the process' was lost"):
                    await handle.result()
            finally:
                process.kill()
                await process.stdout.aclose()
                await process.wait()
