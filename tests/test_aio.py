"""The client and the worker for asyncio: the hop to trio and back, cancels both ways, loops that come and go."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.helpers import process_handlers
from tests.helpers.running_server import RunningServer, running_server
from tests.helpers.workers import AT_ONCE, NO_RETRY, QUICK

import zaptasks
from zaptasks import CallFailed, ClientClosed, NotSent, TaskCanceled, TaskFailed, activity, aio, asyncio_bridge
from zaptasks.groups import unwrapped

PATIENCE = 20.0
"""Seconds that a test waits for what must happen; it never takes nearly as long."""

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server() as running:
        yield running


@pytest.fixture(autouse=True)
def _no_thread_is_left_over() -> Iterator[None]:
    yield
    gc.collect()
    deadline = time.monotonic() + PATIENCE
    while trio_threads():
        assert time.monotonic() < deadline, "the trio thread has outlived its users"
        time.sleep(0.01)


def trio_threads() -> int:
    return sum(thread.name == "zaptasks-trio" for thread in threading.enumerate())


def run(main: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(PATIENCE):
            return await main

    return asyncio.run(bounded())


@asynccontextmanager
async def served(server: RunningServer, queue: str, **options: Any) -> AsyncIterator[tuple[aio.Client, aio.Worker]]:
    async with (
        aio.open_client(server.zap, backoff=QUICK) as client,
        aio.open_worker(client, queue, **options) as worker,
    ):
        yield client, worker


async def until(ready: Callable[[], object]) -> None:
    while not ready():  # noqa: ASYNC110 (what it looks at is on other threads)
        await asyncio.sleep(0.005)


# --- calls --------------------------------------------------------------------------------------------


def test_tasks_are_started_run_and_awaited(server: RunningServer) -> None:
    def plain(n: int) -> list[Any]:
        return [n, threading.current_thread() is threading.main_thread()]

    async def on_loop(n: int) -> list[Any]:
        await asyncio.sleep(0)
        return [n, threading.current_thread() is threading.main_thread()]

    async def main() -> None:
        async with served(server, "basic", tasks=[plain, on_loop]) as (client, worker):
            handle = await client.now("on_loop", 1, task_queue="basic")
            assert await handle.result() == [1, True]
            assert await (await client.now("plain", 2, task_queue="basic")).result(tuple[int, bool]) == (2, False)
            assert [event.event_type async for event in handle.history()][-1] == "WORKFLOW_EXECUTION_COMPLETED"
            assert (await handle.describe()).status is zaptasks.Status.COMPLETED
            assert handle.workflow_id in {info.workflow_id async for info in client.list()}
            assert (worker.task_queue, worker.is_connected, worker.running) == ("basic", True, 0)
            assert client.is_connected
        assert trio_threads() == 0, "the last one who leaves waits for the thread"

    run(main())


def test_a_hundred_calls_at_once(server: RunningServer) -> None:
    async def double(n: int) -> int:
        return 2 * n

    async def main() -> None:
        async with served(server, "hundred", tasks=[double]) as (client, _):

            async def one(n: int) -> int:
                return await (await client.now("double", n, task_queue="hundred")).result(int)

            assert await asyncio.gather(*map(one, range(100))) == [2 * n for n in range(100)]

    run(main())


def test_what_the_server_refuses_is_raised_with_the_callers_lines(server: RunningServer) -> None:
    async def main() -> None:
        async with aio.open_client(server.zap) as client:
            with pytest.raises(CallFailed) as caught:
                await client.get_handle("nobody-knows").describe()  # this line
            assert caught.value.status == 404
            lines = "".join(traceback.format_exception(caught.value))
            assert "# this line" in lines
            assert "caller.py" in lines

    run(main())


def test_a_canceled_wait_is_canceled_on_the_other_side_and_the_client_goes_on(server: RunningServer) -> None:
    async def main() -> None:
        async with aio.open_client(server.zap) as client:
            handle = await client.now("nobody", schedule_to_close=60, task_queue="canceled-wait")
            waiting = asyncio.create_task(handle.result())
            calls = client._block._calls
            assert calls is not None
            await until(lambda: calls.child_tasks)
            waiting.cancel("enough")
            with pytest.raises(asyncio.CancelledError, match="enough"):
                await waiting
            await until(lambda: not calls.child_tasks)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await handle.result()
            assert (await client.health()).status == "ok"

    run(main())


def test_an_answer_that_crosses_a_cancel_is_dropped(server: RunningServer) -> None:
    async def main() -> None:
        async with aio.open_client(server.zap) as client:
            for number in range(50):
                asking = asyncio.create_task(client.health())
                await asyncio.sleep(number / 100_000)
                asking.cancel()
                await asyncio.wait([asking])
                assert asking.cancelled() or asking.result().status == "ok"
            assert (await client.health()).status == "ok"

    run(main())


def test_a_closed_client_says_so_also_to_calls_that_wait(server: RunningServer) -> None:
    async def main() -> None:
        async with aio.open_client(server.zap) as client:
            handle = await client.now("nobody", schedule_to_close=60, task_queue="closed")
            waiting = asyncio.create_task(handle.result())
            await asyncio.sleep(0)
        with pytest.raises(ClientClosed):
            await waiting
        with pytest.raises(ClientClosed):
            await client.health()

    run(main())


def test_nobody_there_is_an_error_of_the_opening() -> None:
    async def main() -> None:
        with pytest.raises(NotSent):
            async with aio.open_client("127.0.0.1:1", timeout=0.05):
                raise AssertionError("the block must not be entered")
        with pytest.raises(ValueError, match="no address"):
            async with aio.open_client("host:0"):
                raise AssertionError("the block must not be entered")
        async with aio.open_client("127.0.0.1:1", timeout=0.05, wait=False) as client:
            await client.wait_first_attempt()
            with pytest.raises(NotSent):
                await client.health()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), aio.open_worker(client, tasks={"x": print}):
                    raise AssertionError("the block must not be entered")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await client.wait_connection(after=0)

    run(main())


def test_the_wrong_loop_is_named_with_the_right_door(server: RunningServer) -> None:
    async def trio_client() -> None:
        async with zaptasks.open_client(server.zap):
            raise AssertionError("the block must not be entered")

    async def asyncio_client() -> None:
        async with aio.open_client(server.zap):
            raise AssertionError("the block must not be entered")

    async def trio_worker() -> None:
        async with aio.open_client(server.zap) as client, zaptasks.open_worker(client, tasks={"x": print}):
            raise AssertionError("the block must not be entered")

    with pytest.raises(RuntimeError, match=r"under asyncio use zaptasks\.aio\.open_client"):
        run(trio_client())
    with pytest.raises(RuntimeError, match=r"under asyncio use zaptasks\.aio\.open_worker"):
        run(trio_worker())
    with pytest.raises(RuntimeError, match=r"under trio use zaptasks\.open_client"):
        trio.run(asyncio_client)


# --- handlers -----------------------------------------------------------------------------------------


def test_a_cancel_by_the_server_reaches_the_asyncio_task_with_its_reason(server: RunningServer) -> None:
    heard: list[str] = []

    async def sleeper(payload: str) -> str:
        heard.append("started")
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError as error:
            heard.append(str(error))
            heard.append(zaptasks.current_task().cancel_reason)
            if payload == "clean up and return":
                await asyncio.sleep(0.01)
                return "cleaned up"
            raise
        return "not canceled"

    async def main() -> None:
        async with served(server, "cancels", tasks=[sleeper]) as (client, _):
            handle = await client.now("sleeper", "raise", task_queue="cancels")
            await until(lambda: heard == ["started"])
            await handle.cancel("no longer needed")
            with pytest.raises(TaskCanceled, match="no longer needed"):
                await handle.result()
            assert heard[1:] == ["no longer needed"] * 2
            heard.clear()
            handle = await client.now("sleeper", "clean up and return", task_queue="cancels")
            await until(lambda: heard == ["started"])
            await handle.cancel("no longer needed")
            await until(lambda: len(heard) == 3)
            assert (await client.health()).status == "ok"

    run(main())


def test_what_a_handler_raises_is_the_failure_with_its_own_lines(server: RunningServer) -> None:
    async def breaks() -> None:
        raise zaptasks.TaskError("no funds", code="Payment", non_retryable=True, details=[5])

    async def exits() -> None:
        raise SystemExit(3)

    async def stops_itself() -> None:
        raise asyncio.CancelledError

    async def main() -> None:
        async with served(server, "raises", tasks=[breaks, exits, stops_itself]) as (client, _):

            async def failure(type: str) -> TaskFailed:
                handle = await client.now(type, task_queue="raises", retry_policy=NO_RETRY)
                with pytest.raises(TaskFailed) as caught:
                    await handle.result()
                return caught.value

            failed = await failure("breaks")
            assert (failed.type, failed.message, failed.details) == ("Payment", "no funds", [5])
            assert "in breaks" in failed.stack
            assert (await failure("exits")).type == "SystemExit"
            assert (await failure("stops_itself")).type == "CancelledError"

    run(main())


def test_heartbeats_and_the_current_task_work_in_asyncio_handlers(server: RunningServer) -> None:
    async def rows() -> list[Any]:
        task = zaptasks.current_task()
        task.heartbeat(5)
        await asyncio.sleep(0)
        if task.attempt == 1:
            raise OSError("the disk is away")
        return [task.type, task.attempt, *task.heartbeat_details]

    async def main() -> None:
        async with served(server, "rows", tasks=[rows]) as (client, _):
            handle = await client.now("rows", task_queue="rows", heartbeat_timeout=5, retry_policy=AT_ONCE)
            assert await handle.result() == ["rows", 2, 5]

    run(main())


def test_handlers_see_the_context_variables_of_the_workers_place_and_not_each_others(server: RunningServer) -> None:
    async def on_loop() -> str:
        seen = tenant.get()
        tenant.set("changed")
        return seen

    def plain() -> str:
        return tenant.get()

    async def main() -> None:
        tenant.set("shop-7")
        async with served(server, "context", tasks=[on_loop, plain]) as (client, _):
            tenant.set("later")
            for type in ("on_loop", "on_loop", "plain"):
                assert await (await client.now(type, task_queue="context")).result() == "shop-7"

    run(main())


def test_activities_stream_output_and_are_completed_by_token_from_asyncio(server: RunningServer) -> None:
    class Desk:
        @activity.defn
        async def ask(self, question: str) -> bool:
            await asyncio.sleep(0)
            activity.emit(question)
            await asyncio.sleep(0)
            activity.emit(activity.info().task_token)
            activity.complete_later()

    async def main() -> None:
        async with served(server, "desk", activities=[Desk()]) as (client, _):
            handle = await client.now("ask", "six by nine?", task_queue="desk")
            seen = []
            async for item in handle.output():
                seen.append(item.value)
                if item.number == 2:
                    await client.get_activity_handle(item.value).complete(42)
            assert seen[0] == "six by nine?"
            assert await handle.result() == 42

    run(main())


def test_a_process_serves_an_asyncio_worker(server: RunningServer) -> None:
    async def main() -> None:
        async with served(server, "apart", tasks=[process_handlers.speak, process_handlers.die], max_processes=1) as (
            client,
            _,
        ):
            options: Any = {"task_queue": "apart", "retry_policy": AT_ONCE}
            handle = await client.now("speak", "to be", **options)
            assert (await handle.result())[:2] == [7, "to be"]
            assert [item.value async for item in handle.output()] == ["to", "be"]
            assert await (await client.now("die", "kill", **options)).result() == "alive in attempt 2"

    run(main())


def test_decorated_functions_methods_and_activities_keep_their_names_and_parameters(server: RunningServer) -> None:
    class Mailer:
        async def __call__(self, to: str, copies: int = 2) -> str:
            return f"{to} x {copies}"

    @activity.defn(name="shop.charge")
    async def charge(total: int) -> str:
        await asyncio.sleep(0)
        return f"receipt for {total}"

    async def order(ctx: zaptasks.WorkflowContext, total: int) -> Any:
        return await ctx.execute_activity(charge, total, start_to_close=30)

    async def main() -> None:
        async with served(
            server, "names", tasks={"mail": Mailer()}, activities=[charge, charge], workflows=[order]
        ) as (client, worker):
            assert await (await client.now("mail", "ada", task_queue="names")).result() == "ada x 2"
            handle = await client.start_workflow("order", 17, task_queue="names")
            assert await handle.result() == "receipt for 17"

            async def late(n: int) -> int:
                await asyncio.sleep(0)
                return n + 1

            await worker.add_task("late", late)
            assert await (await client.now("late", 1, task_queue="names")).result() == 2
            with pytest.raises(TypeError, match="needs 2 arguments"):
                await worker.add_task("two", lambda a, b: None)

    run(main())


# --- leaving ------------------------------------------------------------------------------------------


def test_the_end_of_the_block_lets_asyncio_handlers_finish(server: RunningServer) -> None:
    heard: list[str] = []

    async def slow() -> None:
        heard.append("started")
        await asyncio.sleep(0.05)
        heard.append("finished")

    async def main() -> None:
        async with aio.open_client(server.zap) as client:
            async with aio.open_worker(client, "finish", tasks=[slow]) as worker:
                handle = await client.now("slow", task_queue="finish")
                await until(lambda: heard)
                assert worker.running == 1
            assert heard == ["started", "finished"]
            assert await handle.result() is None

    run(main())


@pytest.mark.parametrize("end", ["error", "cancel", "drain time is over", "program"])
def test_a_worker_that_is_ended_hands_back_what_runs(server: RunningServer, end: str) -> None:
    queue = f"hand-back-{end.split()[0]}"
    reasons: list[str] = []
    started: list[int] = []

    async def long() -> str:
        started.append(zaptasks.current_task().attempt)
        if len(started) == 2:
            return "done by another"
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            reasons.append(zaptasks.current_task().cancel_reason)
            raise
        raise AssertionError("it was to be canceled")

    async def first() -> str:
        async with (
            aio.open_client(server.zap, identity="first") as client,
            aio.open_worker(client, queue, tasks=[long], shutdown_timeout=0.02),
        ):
            handle = await client.now("long", task_queue=queue, retry_policy=NO_RETRY)
            await until(lambda: started)
            if end == "error":
                raise LookupError(handle.workflow_id)
            if end in ("cancel", "program"):
                begun[0].set_result(handle.workflow_id)
                await asyncio.sleep(PATIENCE)
            return handle.workflow_id

    async def main() -> str:
        begun.append(asyncio.get_running_loop().create_future())
        owner = asyncio.create_task(first())
        await asyncio.wait([owner, begun[0]], return_when=asyncio.FIRST_COMPLETED)
        if end == "program":
            background.append(owner)
            return str(begun[0].result())  # asyncio.run cancels the owner and the handler, in any order
        if end == "cancel":
            owner.cancel()
            with pytest.raises(asyncio.CancelledError):
                await owner
            return str(begun[0].result())
        if end == "error":
            with pytest.raises(LookupError) as caught:
                await owner
            return str(caught.value.args[0])
        return await owner

    begun: list[asyncio.Future[str]] = []
    background: list[asyncio.Task[str]] = []
    workflow_id = run(main())
    assert len(started) == 1

    async def second() -> None:
        async with served(server, queue, tasks=[long]) as (client, _):
            assert await client.get_handle(workflow_id).result() == "done by another"

    run(second())
    if end != "program":
        assert reasons == ["the worker first shuts down"]


def test_a_handler_that_swallows_its_cancel_holds_nothing_up_for_ever(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(asyncio_bridge, "CLEANUP_SECONDS_MAX", 0.05)
    started: list[str] = []

    async def stubborn() -> None:
        started.append("")
        for _ in range(2):
            try:
                await asyncio.sleep(PATIENCE)
            except asyncio.CancelledError:
                continue

    async def main() -> None:
        async with served(server, "stubborn", tasks=[stubborn], shutdown_timeout=0) as (client, _):
            await client.now("stubborn", task_queue="stubborn")
            await until(lambda: started)

    run(main())
    assert "left behind" in caplog.text


def test_a_block_that_breaks_on_the_trio_side_cancels_the_asyncio_block_and_says_why() -> None:
    @asynccontextmanager
    async def breaking() -> AsyncIterator[trio.Event]:
        event = trio.Event()

        async def break_() -> None:
            await event.wait()
            raise LookupError("broken")

        with unwrapped():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(break_)
                yield event

    async def hold_it() -> None:
        async with asyncio_bridge.hold(breaking()) as (block, event):
            block._post(event.set)
            await asyncio.sleep(PATIENCE)

    async def main() -> None:
        with pytest.raises(LookupError, match="broken"):
            await hold_it()
        current = asyncio.current_task()
        assert current is not None
        assert current.cancelling() == 0
        await asyncio.sleep(0)

    run(main())


# --- servers, loops, threads and processes that come and go -------------------------------------------


def test_a_server_that_dies_and_returns(tmp_path: Path) -> None:
    async def echo(n: int) -> int:
        await asyncio.sleep(0)
        return n

    async def main() -> None:
        with running_server(data=tmp_path) as first:
            async with served(first, "returns", tasks=[echo]) as (client, worker):
                waiting = asyncio.create_task((await client.now("late", task_queue="returns")).result())
                assert await (await client.now("echo", 1, task_queue="returns")).result() == 1
                await asyncio.to_thread(first.kill)
                await until(lambda: not worker.is_connected)
                with running_server(zap=first.zap, data=tmp_path):
                    assert await (await client.now("echo", 2, task_queue="returns")).result() == 2
                    await worker.add_task("late", lambda: "late")
                    assert await waiting == "late"

    run(main())


def test_loops_in_several_threads_share_one_trio_thread(server: RunningServer) -> None:
    meet = threading.Barrier(2, timeout=PATIENCE)
    results: list[list[int]] = []
    counts: list[int] = []

    async def main(queue: str) -> None:
        async def mine(n: int) -> list[Any]:
            await asyncio.sleep(0)
            return [n, threading.get_ident()]

        async with served(server, queue, tasks=[mine]) as (client, _):
            await asyncio.to_thread(meet.wait)
            counts.append(trio_threads())
            handles = [await client.now("mine", n, task_queue=queue) for n in range(20)]
            answers = await asyncio.gather(*(handle.result() for handle in handles))
            assert {ident for _, ident in answers} == {threading.get_ident()}
            results.append([n for n, _ in answers])
            await asyncio.to_thread(meet.wait)

    threads = [threading.Thread(target=run, args=[main(f"loop-{n}")]) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert results == [list(range(20))] * 2
    assert counts == [1, 1]


def test_many_loops_come_and_go_at_once(server: RunningServer) -> None:
    async def ask() -> str:
        async with aio.open_client(server.zap) as client:
            return (await client.health()).status

    def again_and_again() -> None:
        for _ in range(10):
            answers.append(run(ask()))

    answers: list[str] = []
    threads = [threading.Thread(target=again_and_again) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert answers == ["ok"] * 60


def test_one_client_serves_loops_in_other_threads(server: RunningServer) -> None:
    async def main() -> None:
        async with aio.open_client(server.zap) as client:

            def elsewhere() -> str:
                return asyncio.run(client.health()).status

            assert await asyncio.gather(*(asyncio.to_thread(elsewhere) for _ in range(4))) == ["ok"] * 4

    run(main())


def test_a_loop_that_is_closed_without_leaving_leaves_nothing(server: RunningServer) -> None:
    loop = asyncio.new_event_loop()
    opener = aio.open_client(server.zap)
    client = loop.run_until_complete(opener.__aenter__())
    assert loop.run_until_complete(client.health()).status == "ok"
    loop.close()
    assert trio_threads() == 1
    del opener, client  # the fixture waits for the thread's end


def test_a_worker_whose_loop_is_closed_does_not_hold_its_tasks(server: RunningServer) -> None:
    async def never() -> None:
        raise AssertionError("its loop is closed")

    async def work() -> str:
        await asyncio.sleep(0)
        return "done elsewhere"

    loop = asyncio.new_event_loop()

    async def enter() -> Any:
        client_opener = aio.open_client(server.zap)
        worker_opener = aio.open_worker(await client_opener.__aenter__(), "gone", tasks={"work": never})
        await worker_opener.__aenter__()
        return client_opener, worker_opener

    openers = loop.run_until_complete(enter())
    loop.close()

    async def main() -> None:
        nonlocal openers
        async with aio.open_client(server.zap) as client:
            again = zaptasks.RetryPolicy(initial_interval=0.05, maximum_attempts=100)
            handle = await client.now("work", task_queue="gone", retry_policy=again)
            openers = None
            gc.collect()
            async with aio.open_worker(client, "gone", tasks=[work]):
                assert await handle.result() == "done elsewhere"

    run(main())


def run_program(source: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source), *args], capture_output=True, text=True, timeout=40, check=False
    )


@pytest.mark.parametrize("end", ["loop.close()", "pass", "raise SystemExit(0)"])
def test_a_process_that_ends_in_the_middle_does_not_hang(server: RunningServer, end: str) -> None:
    done = run_program(
        f"""
        import asyncio, sys
        from zaptasks import aio
        async def work(): await asyncio.sleep(60)
        async def main():
            opener = aio.open_client(sys.argv[1])
            client = await opener.__aenter__()
            worker = aio.open_worker(client, "ends", tasks=[work])
            await worker.__aenter__()
            print((await client.health()).status, flush=True)
            return opener, worker
        loop = asyncio.new_event_loop()
        kept = loop.run_until_complete(main())
        {end}
        """,
        server.zap,
    )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
    assert "Traceback" not in done.stderr


def test_a_forked_child_gets_a_thread_of_its_own(server: RunningServer) -> None:
    done = run_program(
        """
        import asyncio, os, sys
        from zaptasks import aio
        async def ask():
            async with aio.open_client(sys.argv[1]) as client:
                return (await client.health()).status
        async def main():
            async with aio.open_client(sys.argv[1]) as client:
                pid = os.fork()
                if pid == 0:
                    asyncio._set_running_loop(None)
                    print(asyncio.run(ask()), flush=True)
                    os._exit(7)
                print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), (await client.health()).status, flush=True)
        asyncio.run(main())
        """,
        server.zap,
    )
    assert done.stdout.split() == ["ok", "7", "ok"], done.stderr


def test_run_worker_drains_at_the_first_signal_and_hands_back_at_the_second(server: RunningServer) -> None:
    program = """
        import asyncio, sys
        from zaptasks import aio
        async def work(seconds):
            print("started", flush=True)
            await asyncio.sleep(seconds)
            print("finished", flush=True)
        async def main():
            async with aio.open_client(sys.argv[1]) as client:
                await client.now("work", float(sys.argv[3]), task_queue=sys.argv[2])
                await aio.run_worker(client, sys.argv[2], tasks=[work])
                print("left", flush=True)
        asyncio.run(main())
        """
    for queue, seconds, signals, said in (
        ("signal-1", "0.3", 1, ["started", "finished", "left"]),
        ("signal-2", "60", 2, ["started", "left"]),
    ):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), server.zap, queue, seconds],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline()]
            for number in range(signals):
                process.send_signal((signal.SIGTERM, signal.SIGINT)[number])
                time.sleep(0.1)
            lines += process.stdout.read().splitlines(keepends=True)
            assert process.wait(PATIENCE) == 0
            assert [line.strip() for line in lines] == said
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def test_a_server_that_accepts_and_says_nothing_can_be_left() -> None:
    async def main(zap: str) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), aio.open_client(zap):
                raise AssertionError("the block must not be entered")

    with socket.create_server(("127.0.0.1", 0)) as silent:
        run(main(f"127.0.0.1:{silent.getsockname()[1]}"))
