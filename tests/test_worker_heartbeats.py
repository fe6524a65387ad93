"""Heartbeats, progress and cancel: what passes between a running handler and the server."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing
from tests.helpers.sdk_servers import open_fake_server
from tests.helpers.workers import AT_ONCE, NO_RETRY, at_fake, in_virtual_time

import zaptasks
from zaptasks import (
    TaskCanceled,
    TaskTimedOut,
    current_task,
)
from zaptasks.testing import WorkflowEnvironment
from zapwire.opcodes import Op


@pytest.mark.parametrize("in_thread", [False, True])
async def test_the_next_attempt_reads_what_the_last_one_said(in_thread: bool) -> None:
    seen: list[tuple[Any, ...]] = []

    def work() -> int:
        task = current_task()
        seen.append(task.heartbeat_details)
        if task.attempt == 1:
            task.heartbeat("page", 3)
            task.progress(0.25, "a quarter")
            raise OSError("broke")
        if task.attempt == 2:
            task.heartbeat()  # says nothing new: what was said stands
            raise OSError("broke again")
        return len(seen)

    async def work_async() -> int:
        return work()

    async with in_virtual_time(tasks={"x": work if in_thread else work_async}) as (client, _):
        handle = await client.now("x", retry_policy=AT_ONCE)
        assert await handle.result() == 3
    assert seen == [(), ("page", 3), ("page", 3)]


async def test_heartbeats_are_gathered_to_what_the_timeout_needs(autojump_clock: trio.testing.MockClock) -> None:
    async def work() -> None:
        for number in range(30):
            current_task().progress(number / 30, f"step {number}")
            await trio.sleep(0.1)

    async with open_fake_server() as fake, at_fake(fake, tasks=[work]):
        fake.deliver("work", heartbeat_timeout_ms=1_500)
        await fake.call_of(Op.RESPOND_ACTIVITY_TASK_COMPLETED)
        beats = fake.calls_of(Op.RECORD_ACTIVITY_TASK_HEARTBEAT)
        assert 6 <= len(beats) <= 8  # three seconds, one every half second
        assert beats[0].payload == [{"progress": 0.0, "text": "step 0"}]
        assert beats[0].token == "t-1"


async def test_a_progress_out_of_range_is_cut_off_and_nan_is_refused() -> None:
    async def work() -> None:
        current_task().progress(1.5, "done")
        with pytest.raises(ValueError, match="NaN"):
            current_task().progress(float("nan"))
        with pytest.raises(zaptasks.PayloadError, match="the heartbeat of 'work'"):
            current_task().heartbeat(object())
        await trio.sleep_forever()

    async with open_fake_server() as fake, at_fake(fake, tasks=[work], shutdown_timeout=0):
        fake.deliver("work")
        beat = await fake.call_of(Op.RECORD_ACTIVITY_TASK_HEARTBEAT)
        assert beat.payload == [{"progress": 1.0, "text": "done"}]


async def test_a_cancel_reaches_an_async_handler_as_a_trio_cancel() -> None:
    started = trio.Event()
    reasons: list[str] = []

    async def work() -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            reasons.append(current_task().cancel_reason)

    async with in_virtual_time(tasks=[work]) as (client, _):
        handle = await client.now("work")
        await started.wait()
        await handle.cancel("too late")
        with pytest.raises(TaskCanceled):
            await handle.result()
    assert reasons == ["too late"]


async def test_a_cancel_reaches_a_handler_in_a_thread_that_asks() -> None:
    started = threading.Event()

    def work() -> None:
        started.set()
        while not current_task().cancel_requested:
            time.sleep(0.001)
        current_task().raise_if_canceled()

    async with in_virtual_time(tasks=[work]) as (client, _):
        handle = await client.now("work")
        await trio.to_thread.run_sync(started.wait)
        await handle.cancel()
        with pytest.raises(TaskCanceled):
            await handle.result()


async def test_a_handler_that_finishes_in_spite_of_a_cancel_has_finished() -> None:
    started = trio.Event()

    async def work() -> str:
        started.set()
        with trio.CancelScope(shield=True):
            while not current_task().cancel_requested:  # noqa: ASYNC110
                await trio.sleep(0.001)
        return "done all the same"

    async with in_virtual_time(tasks=[work]) as (client, _):
        handle = await client.now("work")
        await started.wait()
        await handle.cancel()
        assert await handle.result() == "done all the same"


async def test_a_cancel_in_the_answer_to_a_heartbeat_counts_from_our_server_and_not_from_go() -> None:
    from zapwire.handshake import Capability

    async def work() -> str:
        current_task().heartbeat()
        with trio.move_on_after(0.2):
            await trio.sleep_forever()
        return "went on"

    say_cancel = {Op.RECORD_ACTIVITY_TASK_HEARTBEAT: lambda call: call.answer(status=200)}
    async with open_fake_server(say_cancel) as ours, at_fake(ours, tasks=[work]):
        ours.deliver("work")
        failed = await ours.call_of(Op.RESPOND_ACTIVITY_TASK_FAILED)
        assert failed.payload["p"]["code"] == "CanceledError"
    async with open_fake_server(say_cancel, capabilities=Capability(0)) as go, at_fake(go, tasks=[work]):
        go.deliver("work")
        assert (await go.call_of(Op.RESPOND_ACTIVITY_TASK_COMPLETED)).payload == "went on"


async def test_a_handler_that_hangs_is_found_by_its_heartbeat_timeout_and_stopped() -> None:
    stopped = trio.Event()

    async def hang() -> None:
        try:
            await trio.sleep_forever()
        finally:
            stopped.set()

    async with WorkflowEnvironment(tasks=[hang]) as env:
        handle = await env.client.now("hang", heartbeat_timeout=60, retry_policy=NO_RETRY)
        await env.advance(59)
        assert not stopped.is_set()
        await env.advance(1)
        assert stopped.is_set()
        with pytest.raises(TaskTimedOut, match="heartbeat timeout"):
            await handle.result()


async def test_a_handler_whose_lease_is_over_is_stopped_and_its_outcome_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "zaptasks.worker")
    ended = trio.Event()

    async def work() -> None:
        current_task().heartbeat()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    too_late = {Op.RECORD_ACTIVITY_TASK_HEARTBEAT: lambda call: call.answer(status=409, error="attempt 2 runs")}
    async with open_fake_server(too_late) as fake, at_fake(fake, tasks=[work]) as worker:
        fake.deliver("work")
        await ended.wait()
        while worker.running:
            await trio.lowlevel.checkpoint()
        assert fake.calls_of(Op.RESPOND_ACTIVITY_TASK_FAILED) == []
    assert "its outcome is dropped" in caplog.text


@pytest.mark.parametrize("status", [404, 409])
async def test_an_outcome_that_came_too_late_is_one_line_and_no_error(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "zaptasks.worker")

    async def work() -> str:
        return "x"

    too_late = {
        Op.RESPOND_ACTIVITY_TASK_COMPLETED: lambda call: call.answer(status=status, error="task token not found")
    }
    async with open_fake_server(too_late) as fake, at_fake(fake, tasks=[work]):
        fake.deliver("work")
        await fake.call_of(Op.RESPOND_ACTIVITY_TASK_COMPLETED)
    served, record = [record for record in caplog.records if record.name == "zaptasks.worker"]
    assert served.getMessage().endswith(" is served: work")
    assert record.levelno == logging.INFO
    assert "came too late" in record.getMessage()
