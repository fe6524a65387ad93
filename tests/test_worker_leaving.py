"""How a worker leaves, and how it loses its connection, without losing anything else."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from contextlib import suppress

import pytest
import trio
import trio.lowlevel
import trio.testing
from tests.helpers.running_server import running_server
from tests.helpers.sdk_servers import Call, FakeServer, open_fake_server, open_real_server
from tests.helpers.workers import NO_RETRY, QUICK, at_fake

from zaptasks import (
    AsyncClient,
    Status,
    current_task,
    open_client,
    open_worker,
)
from zapwire.opcodes import Op

# --- leaving ------------------------------------------------------------------------------------------


async def test_a_worker_that_leaves_lets_what_runs_finish() -> None:
    started, finish = trio.Event(), trio.Event()

    async def work() -> str:
        started.set()
        await finish.wait()
        return "finished"

    async def finish_when_it_leaves(client: AsyncClient) -> None:
        await _until_nobody_serves(client, "work")
        finish.set()

    async with open_real_server() as server, open_client(server.zap) as client, trio.open_nursery() as nursery:
        async with open_worker(client, tasks=[work]):
            handle = await client.now("work")
            await started.wait()
            nursery.start_soon(finish_when_it_leaves, client)
        assert (await handle.describe()).result == "finished"


async def _until_nobody_serves(client: AsyncClient, type: str) -> None:
    """Wait until the server has nobody to deliver tasks of this type to."""
    while True:
        probe = await client.now(type, 0)
        waiting = await probe.explain()
        await probe.terminate()
        if waiting and "no worker is subscribed" in waiting[0].reason:
            return
        await trio.sleep(0.01)


async def test_a_worker_that_leaves_takes_no_more_work() -> None:
    started, finish = trio.Event(), trio.Event()

    async def work() -> str:
        started.set()
        await finish.wait()
        return "finished"

    async with open_fake_server() as fake, trio.open_nursery() as nursery:

        async def crossing(call: Call) -> None:
            fake.deliver("work", token="t-2")  # it crosses our leaving
            call.answer({"ok": True})
            finish.set()

        def unsubscribed(call: Call) -> None:
            nursery.start_soon(crossing, call)

        fake.answers[Op.UNSUBSCRIBE_TASKS] = unsubscribed
        async with at_fake(fake, tasks=[work]):
            fake.deliver("work", token="t-1")
            await started.wait()
        assert [call.token for call in fake.calls_of(Op.RESPOND_ACTIVITY_TASK_COMPLETED)] == ["t-1"]
        assert [call.token for call in fake.calls_of(Op.HAND_BACK_TASK)] == ["t-2"]


@pytest.mark.parametrize("in_thread", [False, True])
async def test_what_does_not_finish_in_time_is_handed_back_unharmed_to_the_next_worker(in_thread: bool) -> None:
    started = threading.Event()
    release = threading.Event()

    def hang_thread() -> None:
        started.set()
        release.wait(20)

    async def hang() -> None:
        started.set()
        current_task().heartbeat("half")
        await trio.sleep_forever()

    async def take_over() -> list[object]:
        return [current_task().attempt, list(current_task().heartbeat_details)]

    async with open_real_server() as server, open_client(server.zap) as client:
        async with open_worker(client, tasks={"x": hang_thread if in_thread else hang}, shutdown_timeout=0.01):
            handle = await client.now("x", retry_policy=NO_RETRY)
            await trio.to_thread.run_sync(started.wait)
        release.set()
        async with open_worker(client, tasks={"x": take_over}):
            # The only attempt of the policy was not charged; the number of the attempt still grows, as a fence.
            assert await handle.result() == [2, [] if in_thread else ["half"]]


@pytest.mark.parametrize("end", ["cancel", "error"])
async def test_a_canceled_worker_unsubscribes_before_it_hands_back_and_tells_its_handlers_why(end: str) -> None:
    """Else the server gives the task back to the same worker, and charges the attempt when its connection ends."""
    started = trio.Event()
    reasons: list[str] = []

    async def hang() -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            reasons.append(current_task().cancel_reason)

    async def canceled(fake: FakeServer) -> None:
        with trio.CancelScope() as scope:
            async with at_fake(fake, tasks=[hang]) as worker:
                fake.deliver("hang")
                await started.wait()
                reasons.append(f"the worker {worker.identity} shuts down")
                if end == "error":
                    raise LookupError
                scope.cancel()
                await trio.sleep_forever()

    async with open_fake_server() as fake:
        with suppress(LookupError):
            await canceled(fake)
        leaving = (Op.UNSUBSCRIBE_TASKS, Op.HAND_BACK_TASK)
        assert tuple(call.opcode for call in fake.calls if call.opcode in leaving) == leaving
        assert reasons[1:] == reasons[:1]


async def test_a_block_that_raises_hands_back_at_once() -> None:
    started = trio.Event()

    async def hang() -> None:
        started.set()
        await trio.sleep_forever()

    async def fail_while_it_runs(fake: FakeServer) -> None:
        async with at_fake(fake, tasks=[hang], shutdown_timeout=3600):
            fake.deliver("hang")
            await started.wait()
            raise LookupError("mine")

    async with open_fake_server() as fake:
        with pytest.raises(LookupError, match="mine"):
            await fail_while_it_runs(fake)
        [handed] = fake.calls_of(Op.HAND_BACK_TASK)
        assert handed.token == "t-1"


async def test_a_canceled_block_hands_back_at_once() -> None:
    started = trio.Event()

    async def hang() -> None:
        started.set()
        await trio.sleep_forever()

    async with open_fake_server() as fake:
        with trio.CancelScope() as scope:
            async with at_fake(fake, tasks=[hang], shutdown_timeout=3600):
                fake.deliver("hang")
                await started.wait()
                scope.cancel()
                await trio.sleep_forever()
        assert len(fake.calls_of(Op.HAND_BACK_TASK)) == 1


async def test_a_server_that_does_not_answer_holds_no_worker_back(autojump_clock: trio.testing.MockClock) -> None:
    async def hang() -> None:
        await trio.sleep_forever()

    silent = {Op.HAND_BACK_TASK: lambda call: None, Op.UNSUBSCRIBE_TASKS: lambda call: None}
    async with open_fake_server(silent) as fake:
        start = trio.current_time()
        async with at_fake(fake, tasks=[hang], shutdown_timeout=2):
            fake.deliver("hang")
            await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() - start < 10


# --- losing the connection ----------------------------------------------------------------------------


async def test_a_lost_connection_cancels_what_ran_and_subscribes_again(caplog: pytest.LogCaptureFixture) -> None:
    started, ended = trio.Event(), trio.Event()

    async def hang() -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with open_fake_server() as fake, at_fake(fake, tasks=[hang]):
        fake.deliver("hang", token="old")
        await started.wait()
        fake.drop_connections()
        await ended.wait()
        await fake.call_of(Op.SUBSCRIBE_ACTIVITY_TASKS, 2)
        assert fake.calls_of(Op.RESPOND_ACTIVITY_TASK_FAILED) == []
        assert fake.calls_of(Op.HAND_BACK_TASK) == []
    assert "lost the connection with 1 tasks running" in caplog.text


async def test_a_task_whose_worker_lost_the_connection_is_done_by_the_next_attempt() -> None:
    started = trio.Event()

    async def work() -> int:
        if current_task().attempt == 1:
            started.set()
            await trio.sleep_forever()
        return current_task().attempt

    async with (
        open_real_server() as server,
        open_client(server.zap, backoff=QUICK) as client,
        open_worker(client, tasks=[work]),
    ):
        handle = await client.now("work")
        await started.wait()
        server.drop_connections()
        assert await handle.result() == 2


async def test_a_thread_that_outlives_its_connection_drops_its_result(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "zaptasks.worker")
    started, release = threading.Event(), threading.Event()

    def slow() -> str:
        started.set()
        release.wait(20)
        current_task().heartbeat("still here")
        return "late"

    async with open_fake_server() as fake, at_fake(fake, tasks=[slow]):
        fake.deliver("slow")
        await trio.to_thread.run_sync(started.wait)
        fake.drop_connections()
        await fake.call_of(Op.SUBSCRIBE_ACTIVITY_TASKS, 2)
        release.set()
    assert fake.calls_of(Op.RESPOND_ACTIVITY_TASK_COMPLETED) == []
    assert [message for message in caplog.messages if "its outcome is dropped" in message]


async def test_a_subscription_without_an_answer_leaves_no_worker_deaf(autojump_clock: trio.testing.MockClock) -> None:
    def ignore_the_first(call: Call) -> None:
        if len(fake.calls_of(Op.SUBSCRIBE_ACTIVITY_TASKS)) > 1:
            call.answer({"subscription_id": "s"})

    answers = {Op.SUBSCRIBE_ACTIVITY_TASKS: ignore_the_first}
    async with open_fake_server(answers) as fake, at_fake(fake, tasks={"x": lambda: 1}):
        # On a new connection: on the old one it might hold two subscriptions, and twice the slots.
        first, second = fake.calls_of(Op.SUBSCRIBE_ACTIVITY_TASKS)
        assert first.link is not second.link


async def test_an_outcome_without_an_acknowledgement_is_sent_again(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> str:
        return "done"

    def ignore_the_first(call: Call) -> None:
        if len(fake.calls_of(Op.RESPOND_ACTIVITY_TASK_COMPLETED)) > 1:
            call.answer(status=404, error="task token not found")

    answers = {Op.RESPOND_ACTIVITY_TASK_COMPLETED: ignore_the_first}
    async with open_fake_server(answers) as fake, at_fake(fake, tasks=[work]):
        fake.deliver("work")
        await fake.call_of(Op.RESPOND_ACTIVITY_TASK_COMPLETED, 2)
    assert [call.payload for call in fake.calls_of(Op.RESPOND_ACTIVITY_TASK_COMPLETED)] == ["done", "done"]
    assert "sending it again" in caplog.text


async def test_a_handler_that_fails_to_clean_up_is_handed_back_all_the_same() -> None:
    started = trio.Event()

    async def hang() -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("the socket is gone too")

    async with open_fake_server() as fake:
        async with at_fake(fake, tasks=[hang], shutdown_timeout=0):
            fake.deliver("hang")
            await started.wait()
        assert len(fake.calls_of(Op.HAND_BACK_TASK)) == 1
        assert fake.calls_of(Op.RESPOND_ACTIVITY_TASK_FAILED) == []


async def test_a_namespace_that_comes_late_is_subscribed_to_in_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def refuse_twice(call: Call) -> None:
        if 1 < len(fake.calls_of(Op.SUBSCRIBE_ACTIVITY_TASKS)) < 4:
            call.answer(status=404, error="not registered")
        else:
            call.answer({"subscription_id": "s"})

    async with open_fake_server({Op.SUBSCRIBE_ACTIVITY_TASKS: refuse_twice}) as fake, at_fake(fake, tasks={"x": print}):
        fake.drop_connections()
        await fake.call_of(Op.SUBSCRIBE_ACTIVITY_TASKS, 4)


async def test_a_delivery_that_cannot_be_read_is_logged_and_the_next_one_is_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_fake_server() as fake, at_fake(fake, tasks={"x": lambda: 1}):
        fake.push(Op.DELIVER_ACTIVITY_TASK, {"task_token": 7})
        fake.push(0xBF, {"what": "is this"})
        fake.deliver("x")
        assert (await fake.call_of(Op.RESPOND_ACTIVITY_TASK_COMPLETED)).payload == 1
    assert "cannot be read" in caplog.text


# --- a worker process ---------------------------------------------------------------------------------

WORKER_PROGRAM = """
import sys, trio, zaptasks

async def work(payload):
    print("started", flush=True)
    await trio.sleep(payload)
    return "finished"

async def main():
    async with zaptasks.open_client(sys.argv[1]) as client:
        await zaptasks.run_worker(client, tasks=[work], shutdown_timeout=float(sys.argv[2]))
    print("left", flush=True)

trio.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "work_seconds", "shutdown_timeout", "status"),
    [
        ([signal.SIGTERM], 0.3, 20.0, Status.COMPLETED),
        ([signal.SIGINT], 60.0, 0.05, Status.RUNNING),
        ([signal.SIGTERM, signal.SIGTERM], 60.0, 60.0, Status.RUNNING),
    ],
    ids=["finishes", "hands back after the timeout", "hands back at the second signal"],
)
async def test_sigterm_drains_a_worker_process(
    signals: list[signal.Signals], work_seconds: float, shutdown_timeout: float, status: Status
) -> None:
    with running_server() as server:
        async with open_client(server.zap) as client:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-c", WORKER_PROGRAM, server.zap, str(shutdown_timeout)], stdout=-1
            )
            assert process.stdout is not None
            try:
                handle = await client.now("work", work_seconds, retry_policy=NO_RETRY)
                said = b""
                while not said.endswith(b"started\n"):
                    said += await process.stdout.receive_some()
                for number in signals:
                    process.send_signal(number)
                    await _until_nobody_serves(client, "work")
                assert await process.wait() == 0
            finally:
                process.kill()
                await process.stdout.aclose()
            info = await handle.describe()
            assert info.status is status
            if status is Status.RUNNING:
                [waiting] = await handle.explain()
                assert "no worker is subscribed" in waiting.reason


async def test_a_server_that_restarts_gets_its_worker_back() -> None:
    async def work() -> str:
        return "done"

    async with open_real_server() as server:
        address = server.zap
    async with open_client(address, wait=False, backoff=QUICK) as client, trio.open_nursery() as nursery:

        async def serve() -> None:
            async with open_worker(client, tasks=[work]):
                await trio.sleep_forever()

        nursery.start_soon(serve)
        for _ in range(2):
            async with open_real_server(port=int(address.rpartition(":")[2])):
                assert await (await client.now("work")).result() == "done"
        nursery.cancel_scope.cancel()
