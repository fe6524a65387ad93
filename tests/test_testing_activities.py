"""`testing.ActivityEnvironment` and `testing.mock`."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import pytest
import trio
import trio.lowlevel

import zaptasks
from zaptasks import CancelRequested, PayloadError, TaskFailed, activity, testing, workflow
from zaptasks.handlers import Handler, name_of


@dataclass
class Mail:
    to: str


@activity.defn(name="mail.send")
async def send(mail: Mail, copies: int = 1) -> str:
    return f"sent to {mail.to}, {copies}"


async def import_rows(path: str) -> int:
    task = zaptasks.current_task()
    done: int = task.heartbeat_details[0] if task.heartbeat_details else 0
    while done < 3:
        done += 1
        task.heartbeat(done)
        await trio.lowlevel.checkpoint()
    task.progress(1.0, path)
    return task.attempt


def crunch() -> int:
    """In a thread, until somebody cancels it."""
    task = zaptasks.current_task()
    while True:
        task.heartbeat()
        task.raise_if_canceled()
        time.sleep(0.001)


# --- the activity environment ----------------------------------------------------------------------------------


async def test_heartbeats_and_progress_are_written_down() -> None:
    env = testing.ActivityEnvironment()
    assert await env.run(import_rows, "a.csv") == 1
    assert env.heartbeats == [(1,), (2,), (3,), (3,)]
    assert env.progress == [(1.0, "a.csv")]


async def test_an_attempt_reads_what_the_last_one_said_as_json() -> None:
    env = testing.ActivityEnvironment(attempt=2, heartbeat_details=[2])
    assert await env.run(import_rows, "a.csv") == 2
    assert env.heartbeats == [(3,), (3,)]

    async def read() -> Any:
        return zaptasks.current_task().heartbeat_details

    assert await testing.ActivityEnvironment(heartbeat_details=[(1, 2)]).run(read) == ([1, 2],)


async def test_a_def_function_runs_in_a_thread() -> None:
    def where(x: int) -> tuple[int, str]:
        assert threading.current_thread() is not threading.main_thread()
        return x, zaptasks.current_task().workflow_id

    assert await testing.ActivityEnvironment(workflow_id="order-1").run(where, 3) == (3, "order-1")


async def test_a_cancel_reaches_async_functions_and_threads() -> None:
    env = testing.ActivityEnvironment(on_heartbeat=lambda: env.cancel("enough"))
    with pytest.raises(CancelRequested, match="enough"):
        await env.run(import_rows, "a.csv")
    assert env.heartbeats == [(1,)]

    threaded = testing.ActivityEnvironment(on_heartbeat=lambda: threaded.cancel("enough"))
    with pytest.raises(CancelRequested, match="enough"):
        await threaded.run(crunch)

    before = testing.ActivityEnvironment()
    before.cancel("never mind")
    with pytest.raises(CancelRequested, match="never mind"):
        await before.run(import_rows, "a.csv")


async def test_what_a_canceled_activity_returns_counts() -> None:
    async def stubborn() -> str:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            return f"cleaned up: {zaptasks.current_task().cancel_reason}"

    env = testing.ActivityEnvironment()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_soon, env)
        assert await env.run(stubborn) == "cleaned up: enough"


async def _cancel_soon(env: testing.ActivityEnvironment) -> None:
    await trio.testing.wait_all_tasks_blocked()
    env.cancel("enough")


async def test_what_it_raises_comes_out_and_so_do_mistakes() -> None:
    async def broken() -> None:
        raise OSError("away")

    async def unfit() -> None:
        zaptasks.current_task().heartbeat(object())

    env = testing.ActivityEnvironment()
    with pytest.raises(OSError, match="away"):
        await env.run(broken)
    with pytest.raises(RuntimeError, match="make one for each run"):
        await env.run(broken)
    with pytest.raises(PayloadError):
        await testing.ActivityEnvironment().run(unfit)
    with pytest.raises(RuntimeError, match="no current task"):
        zaptasks.current_task()
    with pytest.raises(ValueError, match="attempt is 0"):
        testing.ActivityEnvironment(attempt=0)


async def test_what_it_emits_is_written_down_and_that_others_complete_it() -> None:
    async def ask(question: str) -> str:
        activity.emit({"token": activity.info().task_token})
        activity.emit(question)
        activity.complete_later()

    env = testing.ActivityEnvironment()
    assert await env.run(ask, "why?") is None
    assert env.emitted == [{"token": "test-token"}, "why?"]
    assert env.completes_later


# --- mocks -----------------------------------------------------------------------------------------------------


def test_a_mock_keeps_name_and_parameters() -> None:
    mocked = testing.mock(send)
    assert name_of(mocked) == "mail.send"
    assert mocked.__name__ == "send"
    assert Handler("x", mocked).parameters.from_array(b'[{"to": "ada"}]') == (Mail("ada"), 1)


def test_a_mock_of_a_method_or_of_what_runs_in_a_process_is_a_plain_activity() -> None:
    class Mailer:
        @activity.defn(name="mailer.post")
        async def post(self, mail: Mail) -> None: ...

        @activity.defn(process=True)
        def pack(self, mail: Mail) -> None: ...

    for method, name in ((Mailer.post, "mailer.post"), (Mailer().post, "mailer.post"), (Mailer.pack, "pack")):
        mocked = testing.mock(method)
        assert name_of(mocked) == name
        handler = Handler("x", mocked)
        assert (handler.is_async, handler.in_process) == (True, False)
        assert handler.parameters.from_array(b'[{"to": "ada"}]') == (Mail("ada"),)


async def test_a_mock_returns_raises_or_does_something_else() -> None:
    mail = Mail("ada")
    mocked = testing.mock(send, returns="ok")
    assert await mocked(mail) == "ok"
    assert await mocked(mail, 2) == "ok"
    assert mocked.calls == [(mail,), (mail, 2)]
    assert await testing.mock(send)(mail) is None
    assert await testing.mock(send, returns=None)(mail) is None
    with pytest.raises(OSError, match="away"):
        await testing.mock(send, raises=OSError("away"))(mail)
    with pytest.raises(ValueError, match=r"^$"):
        await testing.mock(send, raises=ValueError)(mail)
    assert await testing.mock(send, side_effect=lambda mail, copies=1: copies)(mail, 3) == 3
    assert await testing.mock(send, side_effect=send)(mail) == "sent to ada, 1"
    outcomes = testing.mock(send, side_effect=["one", OSError("two")])
    assert await outcomes(mail) == "one"
    with pytest.raises(OSError, match="two"):
        await outcomes(mail)
    with pytest.raises(zaptasks.TaskError, match="called 3 times, and its side_effect has 2"):
        await outcomes(mail)


async def test_mistakes_with_mocks_are_told() -> None:
    with pytest.raises(ValueError, match="one thing"):
        testing.mock(send, returns=1, raises=OSError)
    with pytest.raises(TypeError, match="too many"):
        await testing.mock(send)(Mail("ada"), 1, 2)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="activity name"):
        testing.mock("")


async def test_a_workflow_gets_what_mocks_say_as_the_types_of_the_real_ones() -> None:
    @workflow.defn
    async def two() -> list[str]:
        first = await workflow.execute_activity(send, Mail("ada"), start_to_close=30)
        return [first, await workflow.execute_activity("by.name", 1, start_to_close=30)]

    first, second = testing.mock(send, returns="mocked"), testing.mock("by.name", returns="too")
    async with testing.WorkflowEnvironment(workflows=[two], activities=[first, second]) as env:
        assert await (await env.client.start_workflow("two")).result() == ["mocked", "too"]
    assert first.calls == [(Mail("ada"), 1)]
    assert second.calls == [(1,)]


async def test_a_mock_without_an_outcome_left_ends_the_workflow() -> None:
    @workflow.defn
    async def twice() -> None:
        for _ in range(2):
            await workflow.execute_activity("step", start_to_close=30)

    activities = [testing.mock("step", side_effect=[1])]
    async with testing.WorkflowEnvironment(workflows=[twice], activities=activities) as env:
        with pytest.raises(TaskFailed, match="has 1 outcomes"):
            await (await env.client.start_workflow("twice")).result()
