"""What workflows do wrong, in workers of a real server: each has a clear outcome, and nobody else notices.

What is not here has its test in test_worker_workflows.py: code that changed, a worker without the key, SystemExit.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.helpers.processes import serving, started, zaptasks
from tests.helpers.sdk_servers import open_real_server
from tests.helpers.workers import QUICK, served

from zaptasks import (
    AsyncClient,
    DataConverter,
    Encryption,
    TaskFailed,
    TaskTerminated,
    TaskTimedOut,
    UpdateRejected,
    Waiting,
    WorkflowHandle,
    open_client,
    open_worker,
    workflow,
)
from zaptasks.records import Started
from zapwire.opcodes import Op


async def echo(value: object) -> object:
    return value


@workflow.defn
async def neighbour(name: str) -> str:
    """Somebody else's workflow on the same worker."""
    await workflow.sleep(0.01)
    return f"hello {name}"


async def greets(client: AsyncClient) -> None:
    assert await (await client.start_workflow("neighbour", "ada")).result() == "hello ada"


async def events(handle: WorkflowHandle) -> list[str]:
    return [event.event_type async for event in handle.history()]


async def explained(handle: WorkflowHandle, text: str) -> Waiting:
    """Wait until a line of what the run waits for has the text, and return it."""
    waits: list[Waiting] = []
    with trio.move_on_after(10):
        while True:
            waits = await handle.explain()
            for waiting in waits:
                if text in waiting.reason:
                    return waiting
            await trio.sleep(0.01)
    raise AssertionError(f"{text!r} is in none of {[waiting.reason for waiting in waits]}")


# --- how it ends ---------------------------------------------------------------------------------------------


async def test_a_workflow_that_raises_fails_with_what_it_raised() -> None:
    @workflow.defn
    async def raises(order: int) -> None:
        try:
            raise OSError("the shelf is empty")
        except OSError as error:
            raise ValueError(f"no order {order}") from error

    @workflow.defn
    async def raises_two() -> None:
        async def fail(text: str) -> None:
            raise ValueError(text)

        async with workflow.open_nursery() as nursery:
            nursery.start_soon(fail, "one")
            nursery.start_soon(fail, "two")

    async with served(workflows=[raises, raises_two, neighbour]) as (client, _):
        with pytest.raises(TaskFailed, match=r"no order 7 \(ValueError\)") as caught:
            await (await client.start_workflow("raises", 7)).result()
        assert "the shelf is empty (OSError)" in str(caught.value.__cause__)
        assert "test_workflow_bad_input.py" in caught.value.stack
        with pytest.raises(TaskFailed, match="ExceptionGroup"):
            await (await client.start_workflow("raises_two")).result()
        await greets(client)


async def test_a_result_that_cannot_be_encoded_fails_the_run_and_names_the_part() -> None:
    @workflow.defn
    async def returns() -> dict[str, object]:
        return {"items": [1, object()]}

    @workflow.defn
    async def returns_nan() -> float:
        return float("nan")

    @workflow.defn
    async def returns_much() -> str:
        return "x" * 5_000_000

    async with served(workflows=[returns, returns_nan, returns_much, neighbour]) as (client, _):
        with pytest.raises(TaskFailed, match=r"\$\.items\[1\] is of type object") as caught:
            await (await client.start_workflow("returns")).result()
        assert caught.value.type == "PayloadError"
        with pytest.raises(TaskFailed, match="NaN or an infinity"):
            await (await client.start_workflow("returns_nan")).result()
        with pytest.raises(TaskFailed, match="5000002 bytes of JSON; at most 4194304"):
            await (await client.start_workflow("returns_much")).result()
        await greets(client)


async def test_a_workflow_that_never_ends_says_what_it_waits_for_and_can_be_ended() -> None:
    @workflow.defn
    async def never() -> None:
        while True:
            await workflow.sleep(3600)

    async with served(workflows=[never]) as (client, _):
        handle = await client.start_workflow("never")
        waiting = await explained(handle, "sleeps until the timer fires")
        assert waiting.until is not None
        await handle.terminate("enough")
        with pytest.raises(TaskTerminated, match="enough"):
            await handle.result()
        with pytest.raises(TaskTimedOut):
            await (await client.start_workflow("never", run_timeout=0.2)).result()


# --- too much --------------------------------------------------------------------------------------------------


async def test_ten_thousand_activities_at_once_fail_the_task_and_none_is_started() -> None:
    @workflow.defn
    async def greedy() -> None:
        for number in range(10_000):
            workflow.start_activity(echo, number, start_to_close=5)  # the line

    async with served(workflows=[greedy, neighbour], activities=[echo]) as (client, _):
        handle = await client.start_workflow("greedy")
        waiting = await explained(handle, "more than 9,900 commands without waiting for anything")
        assert f"{__file__}:{line_of(greedy)} in " in waiting.reason
        assert "ACTIVITY_TASK_SCHEDULED" not in await events(handle)
        await greets(client)


async def test_more_activities_than_may_be_open_fail_the_task_and_say_so() -> None:
    @workflow.defn
    async def wide(count: int) -> None:
        async with workflow.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(ask, number)

    async def ask(number: int) -> None:
        await workflow.execute_activity(echo, number, start_to_close=5)

    async with served(workflows=[wide, neighbour], activities=[echo]) as (client, _):
        handle = await client.start_workflow("wide", 2_001)
        waiting = await explained(handle, "2001 activities that have not ended; at most 2000 are allowed")
        assert "its answer was refused" in waiting.reason
        await greets(client)


async def test_a_loop_of_local_activities_fails_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zaptasks.workflow.execution.COMMANDS_MAX", 50)

    def count() -> int:
        return 1

    @workflow.defn
    async def loops() -> None:
        while True:
            await workflow.execute_local_activity(count)

    async with served(workflows=[loops, neighbour]) as (client, _):
        await explained(await client.start_workflow("loops"), "more than 50 commands without waiting for anything")
        await greets(client)


# --- loops -----------------------------------------------------------------------------------------------------


@workflow.defn
async def swallows() -> str:
    while True:
        with contextlib.suppress(workflow.Cancelled):
            await workflow.sleep(3600)  # the line


@workflow.defn
async def spins() -> None:
    while True:
        await workflow.checkpoint()  # the line


@pytest.mark.parametrize("main", [swallows, spins], ids=["swallows a cancel", "spins"])
async def test_a_loop_that_awaits_and_never_waits_fails_the_task_with_its_line(
    main: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zaptasks.workflow.scheduler.STEPS_MAX", 10_000)
    async with served(workflows=[swallows, spins, neighbour]) as (client, _):
        handle = await client.start_workflow(main.__name__)
        if main is swallows:
            await explained(handle, "sleeps")
            await handle.cancel("enough")
        waiting = await explained(handle, "took 10,000 steps and waited for nothing")
        assert f"{__file__}:{line_of(main)} in {main.__name__}: " in waiting.reason
        await greets(client)
        await handle.terminate()
        with pytest.raises(TaskTerminated):
            await handle.result()


def line_of(main: Any) -> int:
    """The line of a workflow that is marked."""
    lines, first = inspect.getsourcelines(main)
    return next(first + number for number, line in enumerate(lines) if line.endswith("# the line\n"))


async def test_a_step_that_never_ends_is_warned_of_with_its_stack_and_others_go_on(tmp_path: Path) -> None:
    """Its worker is lost to it; the server gives the task to others, and says why it has to."""
    (tmp_path / "loops.py").write_text(LOOPS.format(body="while True: pass  # for ever"))
    (tmp_path / "mended.py").write_text(LOOPS.format(body='return "mended"'))
    with serving() as server:
        async with open_client(server.zap, backoff=QUICK) as client:
            with started("worker", "loops", "--zap", server.zap, "--identity", "stuck", cwd=tmp_path) as worker:
                request = {
                    "workflow_type": "Loops",
                    "workflow_id": "loops",
                    "task_queue": "default",
                    "timeouts": {"workflow_task_ms": 2_500},
                }
                await client.call(Op.START_WORKFLOW, request, Started)
                handle = client.get_handle("loops")
                waiting = await explained(handle, "the worker 'stuck' gave no answer within 25")
                assert "its workflow task failed " in waiting.reason
                worker.send_signal(signal.SIGKILL)
                _, log = worker.communicate(timeout=10)
                assert "workflow 'Loops' (loops, run" in log
                assert "has held its thread for" in log
                assert "while True: pass  # for ever" in log, "the stack"
            with started("worker", "mended", "--zap", server.zap, cwd=tmp_path):
                with trio.fail_after(10):
                    assert await handle.result() == "mended"


LOOPS = """
from zaptasks import workflow

@workflow.defn
class Loops:
    @workflow.run
    async def run(self):
        {body}
"""


# --- cancels that are not taken ----------------------------------------------------------------------------------


async def test_a_workflow_that_takes_its_cancel_for_something_else_ends_as_it_wants() -> None:
    @workflow.defn
    async def goes_on() -> str:
        try:
            await workflow.sleep_forever()
        except workflow.Cancelled as cancelled:
            return f"finished all the same, although {cancelled.reason}"

    async with served(workflows=[goes_on]) as (client, _):
        handle = await client.start_workflow("goes_on")
        await has(handle, "WORKFLOW_TASK_COMPLETED")
        await handle.cancel("enough")
        assert await handle.result() == "finished all the same, although enough"


async def test_a_workflow_that_is_shielded_for_ever_says_that_it_was_asked_and_can_be_terminated() -> None:
    @workflow.defn
    async def shielded(seconds: float) -> None:
        with workflow.CancelScope(shield=True):
            if seconds:
                await workflow.sleep(seconds)
            await workflow.wait_signal("never")

    async with served(workflows=[shielded, neighbour]) as (client, _):
        sleeps = await client.start_workflow("shielded", 3600)
        handle = await client.start_workflow("shielded", 0)
        for one in (sleeps, handle):
            await has(one, "WORKFLOW_TASK_COMPLETED")
            await one.cancel("enough")
            await has(one, "WORKFLOW_TASK_COMPLETED", 2)
        await explained(handle, "it was asked to cancel, and its worker has not ended it")
        await explained(sleeps, "the timer fires; the workflow was asked to cancel, and has not ended")
        await greets(client)
        await handle.terminate("at last")
        with pytest.raises(TaskTerminated, match="at last"):
            await handle.result()


# --- what is not there, and what is refused ----------------------------------------------------------------------


async def test_an_unknown_workflow_type_waits_for_a_worker_that_has_it() -> None:
    @workflow.defn
    async def rare() -> str:
        return "found"

    async with open_real_server() as server, open_client(server.zap, backoff=QUICK) as client:
        handle = await client.start_workflow("rare")
        await explained(handle, "no worker is subscribed to task queue 'default'")
        async with open_worker(client, workflows=[neighbour]):
            await explained(handle, "none of the 1 worker(s) on task queue 'default' serves 'rare'")
            await greets(client)
        async with open_worker(client, workflows=[rare]):
            assert await handle.result() == "found"


async def test_arguments_that_do_not_fit_fail_the_run() -> None:
    @workflow.defn
    async def counts(number: int) -> int:
        return number

    async with served(workflows=[counts]) as (client, _):
        with pytest.raises(TaskFailed, match=r"'counts' cannot be called: .*`int`") as caught:
            await (await client.start_workflow("counts", "seven")).result()
        assert caught.value.type == "DecodeError"


async def test_an_update_that_is_refused_leaves_no_event() -> None:
    @workflow.defn
    class Basket:
        def __init__(self) -> None:
            self.items: list[str] = []

        @workflow.run
        async def run(self) -> None:
            await workflow.sleep_forever()

        @workflow.update
        def add(self, item: str) -> int:
            self.items.append(item)
            return len(self.items)

        @add.validator
        def check(self, item: str) -> None:
            if item == "changes":
                self.items.append(item)
                workflow.uuid4()
            if len(item) > 10:
                raise ValueError("too long")

    async with served(workflows=[Basket]) as (client, _):
        handle = await client.start_workflow("Basket")
        assert await handle.update("add", "tea") == 1
        before = await events(handle)
        with pytest.raises(UpdateRejected, match="too long"):
            await handle.update("add", "x" * 11)
        with pytest.raises(UpdateRejected, match=r"takes no update 'remove'; it has: add"):
            await handle.update("remove", "tea")
        with pytest.raises(UpdateRejected, match="`str`"):
            await handle.update("add", 7)
        with pytest.raises(UpdateRejected, match="may only look"):
            await handle.update("add", "changes")
        assert await events(handle) == before


# --- what only works elsewhere -----------------------------------------------------------------------------------


@workflow.defn(name="sleeper")
async def on_trio() -> str:
    await trio.sleep(0.01)  # the line
    return "slept"


@workflow.defn(name="sleeper")
async def on_asyncio() -> str:
    await asyncio.sleep(0.01)  # the line
    return "slept"


@workflow.defn(name="sleeper")
async def mended() -> str:
    await workflow.sleep(0.01)
    return "slept"


@pytest.mark.parametrize("main", [on_trio, on_asyncio], ids=["trio", "asyncio"])
async def test_a_foreign_await_fails_the_task_until_the_code_is_mended(main: Any) -> None:
    async with open_real_server() as server, open_client(server.zap, backoff=QUICK) as client:
        async with open_worker(client, workflows=[main, neighbour]):
            handle = await client.start_workflow("sleeper")
            waiting = await explained(handle, "the next try is at 20")
            assert (
                f"{__file__}:{line_of(main)} in {main.__name__}: a workflow cannot await something of" in waiting.reason
            )
            assert "its workflow task failed 4 times in a row" in waiting.reason
            assert waiting.until is not None
            await greets(client)
        async with open_worker(client, workflows=[mended]):
            assert await handle.result() == "slept"
        assert await handle.explain() == []


async def test_clocks_and_chance_are_warned_of_when_a_worker_begins(caplog: pytest.LogCaptureFixture) -> None:
    @workflow.defn
    async def draws() -> float:
        await workflow.sleep(0.01)
        return time.time() + random.random()  # the line

    with caplog.at_level(logging.WARNING):
        async with served(workflows=[draws]) as (client, _):
            assert await (await client.start_workflow("draws")).result() > 0, "it is a warning, and no more"
    place = f"{__file__}:{line_of(draws)} in "
    texts = [record.getMessage() for record in caplog.records]
    assert any(
        place in text and "time.time() is not the same in a replay; use workflow.now()" in text for text in texts
    )
    assert any(place in text and "random.random() is not the same" in text for text in texts)


# --- telling a person ---------------------------------------------------------------------------------------------


async def test_the_command_explains_a_workflow_task_that_fails() -> None:
    async with (
        open_real_server() as server,
        open_client(server.zap, backoff=QUICK) as client,
        open_worker(client, workflows=[on_trio]),
    ):
        handle = await client.start_workflow("sleeper", id="sleeper-1")
        await explained(handle, "the next try is at")
        command = ("workflow", "explain", "sleeper-1", "--zap", server.zap)
        told = await trio.to_thread.run_sync(zaptasks, *command)
    words = "".join(told.stdout.split())
    assert re.search("itsworkflowtaskfailed[4-6]timesinarow,thelasttimewith:", words)
    assert f"{__file__}:{line_of(on_trio)}inon_trio:aworkflowcannotawaitsomethingoftrio" in words


async def test_an_error_that_is_encrypted_is_explained_to_those_who_have_the_key() -> None:
    converter = DataConverter(codecs=[Encryption({"k": b"k" * 32}, active="k")])
    async with (
        open_real_server() as server,
        open_client(server.zap, converter=converter, backoff=QUICK) as client,
        open_client(server.zap) as keyless,
        open_worker(client, workflows=[on_trio]),
    ):
        handle = await client.start_workflow("sleeper")
        await explained(handle, "in on_trio: a workflow cannot await something of trio")
        reasons = [event.attributes.get("reason", "") async for event in handle.history()]
        assert any("in on_trio" in reason for reason in reasons)
        waits = await keyless.get_handle(handle.workflow_id).explain()
    assert "on_trio" not in str(waits)
    assert "its workflow task failed" in str(waits)


async def has(handle: WorkflowHandle, event_type: str, count: int = 1) -> None:
    """Wait until the history has so many events of a type."""
    with trio.fail_after(10):
        while (await events(handle)).count(event_type) < count:  # noqa: ASYNC110 - it happens on the server
            await trio.sleep(0.01)
