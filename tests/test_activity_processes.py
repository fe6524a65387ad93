"""Handlers in processes of the worker's own: what works in there, and how they end."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.helpers import process_handlers as handlers
from tests.helpers.sdk_servers import open_fake_server, open_real_server
from tests.helpers.workers import AT_ONCE, NO_RETRY, QUICK, at_fake, served

from zaptasks import (
    Call,
    DataConverter,
    Encryption,
    ExecutionHandle,
    Proceed,
    RemoteError,
    TaskCanceled,
    TaskError,
    TaskFailed,
    TaskTimedOut,
    activity,
    open_client,
    open_worker,
    processes,
    task,
    workflow,
)
from zaptasks.handlers import Kind, table
from zaptasks.process_messages import MESSAGE_BYTES_MAX, Frames
from zapwire.opcodes import Op


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "CANCEL_SECONDS_MAX", 0.5)


@workflow.defn
class Gallery:
    @workflow.run
    async def run(self, width: int) -> dict[str, object]:
        return await workflow.execute_activity(handlers.resize, handlers.Image(width), 2, start_to_close=20)


async def outcome(client: Any, type: str, payload: object = None, **options: Any) -> Any:
    return await (await client.now(type, payload, **options)).result()


async def failed(client: Any, type: str, payload: object = None) -> TaskFailed:
    with pytest.raises(TaskFailed) as caught:
        await outcome(client, type, payload, retry_policy=NO_RETRY)
    return caught.value


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def first_item(handle: ExecutionHandle) -> Any:
    return (await anext(handle.output())).value


# --- what works in there -------------------------------------------------------------------------------


async def test_an_activity_of_a_workflow_runs_in_a_process_with_its_types() -> None:
    async with served(activities=[handlers.resize], workflows=[Gallery]) as (client, _):
        handle = await client.start_workflow("Gallery", 320)
        result = await handle.result()
    assert (result["width"], result["tint"]) == (640, "none")
    assert result["pid"] != os.getpid()
    assert not is_running(result["pid"]), "a process outlived its worker"


async def test_a_process_is_used_again_and_there_are_no_more_than_allowed() -> None:
    async with served(tasks=[handlers.who], max_processes=2) as (client, _):
        tasks = [await client.now("who") for _ in range(12)]
        pids = {await each.result() for each in tasks}
    assert 1 <= len(pids) <= 2


async def test_heartbeats_output_logs_and_metrics_come_out(caplog: pytest.LogCaptureFixture) -> None:
    kept: list[tuple[str, float, dict[str, str]]] = []

    class Kept:
        def counter(self, name: str, amount: float, tags: Mapping[str, str]) -> None:
            kept.append((name, amount, dict(tags)))

        gauge = timer = counter

    async with served(tasks=[handlers.speak], metrics=Kept()) as (client, _):
        handle = await client.now("speak", "to be", retry_policy=AT_ONCE)
        assert await handle.result() == [7, "to be", handle.workflow_id, ""]
        tags = {"namespace": "default", "task_queue": "default", "activity_type": "speak", "lang": "en"}
        assert kept == [("words", 2, tags)]
        assert [(item.value, item.attempt) async for item in handle.output()] == [("to", 1), ("be", 1)]
    assert f"[speak {handle.workflow_id} attempt 2] attempt 2 goes on" in caplog.messages
    assert ("shop.images", logging.ERROR, "from a library") in caplog.record_tuples


async def test_a_failure_arrives_whole() -> None:
    async with served(tasks=[handlers.fail]) as (client, _):
        error = await failed(client, "fail")
    assert (error.type, error.message, error.details, error.non_retryable) == ("Payment", "no funds", [3], True)
    assert "in fail" in error.stack
    assert str(error.__cause__) == "'vault' (KeyError)"


async def test_a_handler_that_exits_ends_its_task_and_not_its_process() -> None:
    async with served(tasks=[handlers.leave, handlers.who], max_processes=1) as (client, _):
        pid = await outcome(client, "who")
        error = await failed(client, "leave")
        assert (error.type, error.message) == ("SystemExit", "bye")
        assert await outcome(client, "who") == pid


async def test_it_may_be_completed_by_somebody_else() -> None:
    async with served(tasks=[handlers.later]) as (client, _):
        handle = await client.now("later")
        await client.get_activity_handle(await first_item(handle)).complete("by hand")
        assert await handle.result() == "by hand"


async def test_the_keys_stay_in_the_worker() -> None:
    converter = DataConverter(codecs=[Encryption({"k": os.urandom(32)}, active="k")])
    async with (
        open_real_server() as server,
        open_client(server.zap, converter=converter) as client,
        open_worker(client, tasks=[handlers.speak, handlers.big]),
    ):
        handle = await client.now("speak", "secret", retry_policy=AT_ONCE)
        assert (await handle.result())[:2] == [7, "secret"]
        assert await first_item(handle) == "secret"
        assert len(await outcome(client, "big")) == 3_000_000
        async with open_client(server.zap) as stranger:
            seen = await stranger.get_handle(handle.workflow_id).describe()
            assert "$zap" in seen.result


async def test_interceptors_see_arguments_results_and_failures_as_of_any_handler() -> None:
    seen: list[object] = []

    async def around(call: Call, proceed: Proceed) -> Any:
        seen.append(call.args)
        try:
            if call.name != "resize":
                return await proceed(*call.args)
            image, factor = call.args
            result = await proceed(handlers.Image(image.width + 1, "red"), factor)
            return {**result, "by": call.name}
        except RemoteError as error:
            seen.append(error.type)
            raise TaskError("wrapped", non_retryable=True) from error

    async with served(
        activities=[handlers.resize],
        tasks=[handlers.fail, handlers.later],
        workflows=[Gallery],
        interceptors=[around],
    ) as (client, _):
        result = await (await client.start_workflow("Gallery", 320)).result()
        assert (result["width"], result["tint"], result["by"]) == (642, "red", "resize")
        error = await failed(client, "fail")
        assert (error.message, str(error.__cause__)) == ("wrapped", "no funds (Payment)")
        handle = await client.now("later")
        await client.get_activity_handle(await first_item(handle)).complete("by hand")
        assert await handle.result() == "by hand"
    assert seen == [(handlers.Image(320), 2), (None,), "Payment", (None,)]


@pytest.mark.parametrize(
    ("type", "payload", "code", "text"),
    [
        ("unencodable", None, "PayloadError", "the result of 'unencodable' cannot be sent as JSON"),
        ("speak", {"not": "text"}, "DecodeError", "'speak' cannot be called: the payload does not fit"),
    ],
)
async def test_what_cannot_be_encoded_or_read_is_not_retried(type: str, payload: object, code: str, text: str) -> None:
    async with served(tasks=[handlers.unencodable, handlers.speak]) as (client, _):
        error = await failed(client, type, payload)
    assert (error.type, error.non_retryable) == (code, True)
    assert text in error.message


# --- how they end --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("exit", "ended with exit code 3"),
        ("kill", "ended by SIGKILL before it had answered: had the machine run out of memory?"),
        ("segfault", "ended by SIGSEGV"),
        ("fork", "ended with exit code 4"),
        ("close", "has closed its connection, and was killed"),
    ],
)
async def test_a_process_that_dies_fails_its_attempt_and_the_next_one_has_another(
    how: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "DEATH_SECONDS_MAX", 0.5)
    async with served(tasks=[handlers.die], max_processes=1) as (client, _):
        error = await failed(client, "die", how)
        assert (error.type, error.non_retryable) == ("ProcessDied", False)
        assert text in error.message
        assert await outcome(client, "die", how, retry_policy=AT_ONCE) == "alive in attempt 2"


async def test_a_function_that_forks_is_answered_for_once_and_its_copy_ends() -> None:
    async with served(tasks=[handlers.fork_and_return], max_processes=1) as (client, _):
        word, pid = (await outcome(client, "fork_and_return")).split()
        assert word == "forked"
        assert _is_ended(int(pid)), "the copy waits for calls that are not its own"
        assert (await outcome(client, "fork_and_return")).startswith("forked")


def _is_ended(pid: int) -> bool:
    """Gone, or not yet waited for by the process that forked it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


async def test_a_function_that_closes_what_it_did_not_open_fails_its_attempt_and_holds_up_nobody() -> None:
    async with served(tasks=[handlers.close_everything, handlers.log_badly], max_processes=1) as (client, _):
        with trio.fail_after(10):
            assert (await failed(client, "close_everything")).type == "ProcessDied"
            assert await outcome(client, "log_badly") == "logged"


async def test_lines_that_cannot_be_logged_fail_nobodys_work(caplog: pytest.LogCaptureFixture) -> None:
    async with served(tasks=[handlers.log_badly], max_processes=1) as (client, _):
        assert await outcome(client, "log_badly", retry_policy=NO_RETRY) == "logged"
    lines = [record.getMessage() for record in caplog.records if record.name == "gallery"]
    assert lines[0] == "the file caf\\udce9"
    assert [len(line) for line in lines[1:]] == [1_000_000]


async def test_a_cancel_is_heeded_and_the_process_goes_on() -> None:
    async with served(tasks=[handlers.heed, handlers.who], max_processes=1) as (client, _):
        handle = await client.now("heed")
        pid = await first_item(handle)
        await handle.cancel("the customer left")
        with pytest.raises(TaskCanceled, match="the customer left"):
            await handle.result()
        assert [item.value async for item in handle.output(after=1)] == ["cleaned up after: the customer left"]
        assert await outcome(client, "who") == pid


async def test_a_cancel_that_is_ignored_ends_by_force() -> None:
    async with served(tasks=[handlers.ignore, handlers.who], max_processes=1) as (client, _):
        handle = await client.now("ignore")
        pid = await first_item(handle)
        await handle.cancel("enough")
        with pytest.raises(TaskCanceled, match="enough"):
            await handle.result()
        assert await outcome(client, "who") != pid
        assert not is_running(pid)


async def test_a_timeout_ends_it_by_force() -> None:
    async with served(tasks=[handlers.ignore, handlers.who], max_processes=1) as (client, _):
        pid = await outcome(client, "who")
        handle = await client.now("ignore", start_to_close=0.1, retry_policy=NO_RETRY)
        with pytest.raises(TaskTimedOut, match="start-to-close"):
            await handle.result()
        assert await outcome(client, "who") != pid
        assert not is_running(pid)


async def test_a_cancel_may_come_while_the_process_starts() -> None:
    async with served(tasks=[handlers.ignore, handlers.who], max_processes=1) as (client, _):
        handle = await client.now("ignore")
        await handle.cancel("too early")
        with pytest.raises(TaskCanceled, match="too early"):
            await handle.result()
        assert await outcome(client, "who") != os.getpid()


async def test_a_lost_connection_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "CANCEL_SECONDS_MAX", 60)
    async with (
        open_real_server() as server,
        open_client(server.zap, backoff=QUICK) as client,
        open_worker(client, tasks=[handlers.ignore, handlers.who], max_processes=1, shutdown_timeout=0),
    ):
        handle = await client.now("ignore", retry_policy=NO_RETRY)
        pid = await first_item(handle)
        server.drop_connections()
        with trio.fail_after(5):
            await outcome(client, "who")
        assert not is_running(pid)


async def test_a_worker_that_leaves_kills_what_does_not_stop_and_hands_it_back() -> None:
    async with open_fake_server() as fake:
        async with at_fake(fake, tasks=[handlers.ignore], shutdown_timeout=0):
            fake.deliver("ignore")
            await fake.until(lambda: fake.pushes)
            pid = fake.pushes[0][1]["items"][0]
        assert [call.token for call in fake.calls_of(Op.HAND_BACK_TASK)] == ["t-1"]
    assert not is_running(pid)


async def test_a_worker_that_is_killed_takes_its_processes_along() -> None:
    async with open_real_server() as server, open_client(server.zap) as client:
        command = [
            sys.executable,
            "-m",
            "zapserver.cli",
            "worker",
            "tests.helpers.process_handlers",
            "--zap",
            server.zap,
        ]
        worker = await trio.lowlevel.open_process(command)
        try:
            pid = await first_item(await client.now("ignore"))
            assert is_running(pid)
        finally:
            worker.kill()
            await worker.wait()
        with trio.fail_after(10):
            while is_running(pid):  # noqa: ASYNC110 - nobody tells of the end of a process that is not ours
                await trio.sleep(0.01)


# --- mistakes when the worker opens ----------------------------------------------------------------------


def test_a_function_that_no_process_can_import_is_refused_with_why() -> None:
    @task(process=True)
    def inner() -> None: ...

    class Mailer:
        @activity.defn(process=True)
        def send(self) -> None: ...

    for mistaken in ([inner], [Mailer().send], [Mailer()]):
        with pytest.raises(TypeError, match="it must be a function at the top of a module"):
            table(mistaken, Kind.ACTIVITY)
    with pytest.raises(TypeError, match="with process=True it must be a `def` function"):

        @task(process=True)
        async def coroutine() -> None: ...


def test_a_function_of_the_main_script_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def script_function() -> None: ...

    script_function.__module__, script_function.__qualname__ = "__main__", "script_function"
    monkeypatch.setattr(sys.modules["__main__"], "script_function", script_function, raising=False)
    marked: Callable[[], None] = task(process=True)(script_function)
    with pytest.raises(TypeError, match=r"in the main script, .* move it to a module"):
        table([marked], Kind.TASK)


async def test_the_number_of_processes_is_announced_as_slots() -> None:
    async with open_fake_server() as fake:
        with pytest.raises(ValueError, match="max_processes is 0: it must be at least 1"):
            async with at_fake(fake, tasks=[handlers.who], max_processes=0):
                pass
        async with at_fake(fake, tasks=[handlers.who], max_processes=3, slots=2):
            [subscription] = fake.calls_of(Op.SUBSCRIBE_ACTIVITY_TASKS)
    assert (subscription.body["slots"], subscription.body["types"]) == (2, ["who"])


def test_a_stream_of_something_else_is_refused() -> None:
    frames = Frames()
    frames.feed(b"\x00\x00\x00")
    assert frames.next() is None
    frames.feed(b"\x02ab")
    assert (frames.next(), frames.next()) == (b"ab", None)
    frames.feed((MESSAGE_BYTES_MAX + 1).to_bytes(4, "big"))
    with pytest.raises(ValueError, match="at most 67108864"):
        frames.next()
