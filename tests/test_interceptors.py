"""Interceptors around attempts, the same on trio and on asyncio; what a cancel does to them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import pytest
import trio
from tests.helpers.running_server import RunningServer, running_server
from tests.helpers.sdk_servers import open_fake_server
from tests.helpers.workers import AT_ONCE, NO_RETRY, QUICK, at_fake, served

import zaptasks
from zaptasks import Call, Proceed, TaskCanceled, TaskError, TaskFailed, aio, current_task, open_worker, workflow
from zapwire.opcodes import Op

PATIENCE = 20.0
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server() as running:
        yield running


class Loop:
    """One of the two loops that a worker can have, with what a test needs of it."""

    def __init__(self, name: str, zap: str) -> None:
        self.name = name
        self.zap = zap
        self.door: ModuleType = aio if name == "asyncio" else zaptasks
        self.queue = f"{name}-{threading.get_native_id()}-{id(self)}"

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        async def on_trio() -> None:
            with trio.fail_after(PATIENCE):
                await main()

        async def on_asyncio() -> None:
            async with asyncio.timeout(PATIENCE):
                await main()

        if self.name == "asyncio":
            asyncio.run(on_asyncio())
        else:
            trio.run(on_trio)

    async def sleep(self, seconds: float) -> None:
        if self.name == "asyncio":
            await asyncio.sleep(seconds)
        else:
            await trio.sleep(seconds)

    @property
    def canceled(self) -> type[BaseException]:
        return asyncio.CancelledError if self.name == "asyncio" else trio.Cancelled

    async def until(self, ready: Callable[[], object]) -> None:
        while not ready():
            await self.sleep(0.005)

    @asynccontextmanager
    async def served(self, **options: Any) -> AsyncIterator[Any]:
        async with (
            self.door.open_client(self.zap, backoff=QUICK) as client,
            self.door.open_worker(client, self.queue, **options),
        ):
            yield client

    async def result(self, client: Any, type: str, payload: object = None, **options: Any) -> Any:
        return await (await client.now(type, payload, task_queue=self.queue, **options)).result()


@pytest.fixture(params=["trio", "asyncio"])
def loop(request: pytest.FixtureRequest, server: RunningServer) -> Loop:
    return Loop(request.param, server.zap)


# --- what they see and may do ----------------------------------------------------------------------------


def test_they_run_in_order_around_both_kinds_of_handlers_and_see_what_runs(loop: Loop) -> None:
    order: list[str] = []

    async def outer(call: Call, proceed: Proceed) -> Any:
        task = current_task()
        order.append(f"outer {call.name} {call.args} {task.type} {task.attempt} {dict(task.headers)}")
        try:
            return await proceed(*call.args)
        finally:
            order.append("outer ends")

    async def inner(call: Call, proceed: Proceed) -> Any:
        await loop.sleep(0)
        assert threading.current_thread() is threading.main_thread(), "on the loop, also around a thread"
        order.append("inner")
        return await proceed(*call.args)

    async def on_loop(payload: int) -> int:
        order.append(f"handler {payload}")
        return payload + 1

    def in_thread(payload: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        order.append(f"handler {payload}")
        return payload + 1

    async def main() -> None:
        async with loop.served(tasks=[on_loop, in_thread], interceptors=[outer, inner]) as client:
            for name in ("on_loop", "in_thread"):
                order.clear()
                assert await loop.result(client, name, 1, headers={"a": "b"}) == 2
                seen = f"outer {name} (1,) {name} 1 {{'a': 'b'}}"
                assert order == [seen, "inner", "handler 1", "outer ends"]

    loop.run(main)


def test_they_may_change_arguments_and_result_go_on_twice_or_not_at_all(loop: Loop) -> None:
    async def double(call: Call, proceed: Proceed) -> Any:
        if call.args[0] == 0:
            return "no need"
        return [await proceed(10 * call.args[0]), await proceed(20 * call.args[0])]

    async def on_loop(payload: int) -> int:
        return payload

    def in_thread(payload: int) -> int:
        return payload

    async def main() -> None:
        async with loop.served(tasks=[on_loop, in_thread], interceptors=[double]) as client:
            for name in ("on_loop", "in_thread"):
                assert await loop.result(client, name, 1) == [10, 20]
                assert await loop.result(client, name, 0) == "no need"

    loop.run(main)


def test_their_errors_are_the_attempts_errors(loop: Loop) -> None:
    attempts: list[int] = []

    async def check(call: Call, proceed: Proceed) -> Any:
        attempts.append(current_task().attempt)
        if len(attempts) < 3:
            raise OSError("the directory is away")
        if current_task().headers.get("role") != "admin":
            raise TaskError("not allowed", code="Forbidden", non_retryable=True)
        return await proceed(*call.args)

    async def delete() -> str:
        return "deleted"

    async def main() -> None:
        async with loop.served(tasks=[delete], interceptors=[check]) as client:
            assert await loop.result(client, "delete", headers={"role": "admin"}, retry_policy=AT_ONCE) == "deleted"
            assert attempts == [1, 2, 3]
            with pytest.raises(TaskFailed, match="not allowed") as caught:
                await loop.result(client, "delete", headers={"role": "guest"})
            assert (caught.value.type, "in check" in caught.value.stack) == ("Forbidden", True)

    loop.run(main)


def test_they_see_what_the_handler_raises_as_it_is_and_may_make_something_of_it(loop: Loop) -> None:
    seen: list[BaseException] = []

    async def note(call: Call, proceed: Proceed) -> Any:
        try:
            return await proceed(*call.args)
        except (KeyError, ExceptionGroup) as error:
            seen.append(error)
            if isinstance(error, KeyError):
                return "default"
            raise

    def lookup() -> None:
        raise KeyError("x")

    async def group() -> None:
        raise ExceptionGroup("several", [ValueError("one")])

    async def main() -> None:
        async with loop.served(tasks=[lookup, group], interceptors=[note]) as client:
            assert await loop.result(client, "lookup") == "default"
            with pytest.raises(TaskFailed, match="one"):
                await loop.result(client, "group", retry_policy=NO_RETRY)
        assert [type(error) for error in seen] == [KeyError, ExceptionGroup]

    loop.run(main)


def test_context_variables_that_they_set_reach_the_handler_and_no_other_attempt(loop: Loop) -> None:
    async def of_headers(call: Call, proceed: Proceed) -> Any:
        before = tenant.get()
        tenant.set(current_task().headers["tenant"])
        return [before, await proceed(*call.args)]

    async def on_loop() -> str:
        return tenant.get()

    def in_thread() -> str:
        return tenant.get()

    async def main() -> None:
        async with loop.served(tasks=[on_loop, in_thread], interceptors=[of_headers]) as client:
            for name in ("on_loop", "in_thread"):
                for who in ("a", "b"):
                    assert await loop.result(client, name, headers={"tenant": who}) == ["nobody", who]

    loop.run(main)


def test_they_may_bound_the_handlers_time(loop: Loop) -> None:
    cleaned: list[str] = []

    async def bounded(call: Call, proceed: Proceed) -> Any:
        try:
            if loop.name == "asyncio":
                async with asyncio.timeout(0.05):
                    return await proceed(*call.args)
            with trio.fail_after(0.05):
                return await proceed(*call.args)
        except (TimeoutError, trio.TooSlowError):
            assert cleaned == ["handler"], "the handler has ended before"
            return "too slow"

    async def slow() -> None:
        try:
            await loop.sleep(PATIENCE)
        finally:
            cleaned.append("handler")

    async def main() -> None:
        async with loop.served(tasks=[slow], interceptors=[bounded]) as client:
            assert await loop.result(client, "slow") == "too slow"

    loop.run(main)


# --- cancels -----------------------------------------------------------------------------------------------


def test_a_cancel_reaches_the_handler_first_and_then_the_interceptor(loop: Loop) -> None:
    heard: list[str] = []

    async def around(call: Call, proceed: Proceed) -> Any:
        try:
            return await proceed(*call.args)
        except loop.canceled:
            heard.append(f"interceptor: {current_task().cancel_reason}")
            raise

    async def sleeper() -> None:
        heard.append("started")
        try:
            await loop.sleep(PATIENCE)
        except loop.canceled:
            heard.append("handler")
            raise

    async def main() -> None:
        async with loop.served(tasks=[sleeper], interceptors=[around, around]) as client:
            handle = await client.now("sleeper", task_queue=loop.queue)
            await loop.until(lambda: heard)
            await handle.cancel("enough")
            with pytest.raises(TaskCanceled, match="enough"):
                await handle.result()
        assert heard == ["started", "handler", "interceptor: enough", "interceptor: enough"]

    loop.run(main)


@pytest.mark.parametrize("name", ["on_loop", "in_thread"])
@pytest.mark.parametrize("when", ["before", "behind"])
def test_a_cancel_reaches_an_interceptor_that_waits_itself(loop: Loop, name: str, when: str) -> None:
    """Also around a thread, which itself cannot be canceled."""
    heard: list[str] = []

    async def slow(call: Call, proceed: Proceed) -> Any:
        if when == "behind":
            await proceed(*call.args)
        heard.append("waits")
        await loop.sleep(PATIENCE)

    async def on_loop() -> None:
        heard.append("ran")

    def in_thread() -> None:
        heard.append("ran")

    async def main() -> None:
        async with loop.served(tasks=[on_loop, in_thread], interceptors=[slow]) as client:
            handle = await client.now(name, task_queue=loop.queue)
            await loop.until(lambda: "waits" in heard)
            await handle.cancel("enough")
            with pytest.raises(TaskCanceled, match="enough"):
                await handle.result()
        assert heard == (["waits"] if when == "before" else ["ran", "waits"])

    loop.run(main)


def test_a_handler_in_a_thread_that_finishes_in_spite_of_a_cancel_has_finished(loop: Loop) -> None:
    begun = threading.Event()

    async def around(call: Call, proceed: Proceed) -> Any:
        return [await proceed(*call.args)]

    def stubborn() -> str:
        begun.set()
        while not current_task().cancel_requested:
            pass
        return "done all the same"

    async def main() -> None:
        async with loop.served(tasks=[stubborn], interceptors=[around]) as client:
            handle = await client.now("stubborn", task_queue=loop.queue)
            await loop.until(begun.is_set)
            await handle.cancel("enough")
            assert await handle.result() == ["done all the same"]

    loop.run(main)


def test_a_worker_that_leaves_hands_back_what_interceptors_hold(loop: Loop) -> None:
    """And charges no attempt: another worker does it, with only one allowed."""
    heard: list[str] = []

    async def around(call: Call, proceed: Proceed) -> Any:
        heard.append("interceptor")
        return await proceed(*call.args)

    async def job() -> str:
        heard.append("handler")
        if len(heard) < 4:
            await loop.sleep(PATIENCE)
        return "done"

    async def main() -> None:
        async with loop.door.open_client(loop.zap, backoff=QUICK) as client:
            options: dict[str, Any] = {"tasks": [job], "interceptors": [around], "shutdown_timeout": 0.05}
            async with loop.door.open_worker(client, loop.queue, **options):
                handle = await client.now("job", task_queue=loop.queue, retry_policy=NO_RETRY)
                await loop.until(lambda: len(heard) == 2)
            async with loop.door.open_worker(client, loop.queue, **options):
                assert await handle.result() == "done"

    loop.run(main)


def test_an_asyncio_program_that_ends_in_an_interceptor_ends(server: RunningServer) -> None:
    loop = Loop("asyncio", server.zap)
    begun: list[str] = []

    async def around(call: Call, proceed: Proceed) -> Any:
        return await proceed(*call.args)

    async def sleeper() -> None:
        begun.append("started")
        await asyncio.sleep(PATIENCE)

    async def main() -> None:
        async with loop.served(tasks=[sleeper], interceptors=[around]) as client:
            await client.now("sleeper", task_queue=loop.queue)
            await loop.until(lambda: begun)
            raise LookupError("the program fails")

    with pytest.raises(LookupError, match="the program fails"):
        asyncio.run(main())


def test_going_on_with_an_attempt_that_is_over_is_an_error(server: RunningServer) -> None:
    loop = Loop("asyncio", server.zap)
    kept: list[Proceed] = []

    async def leak(call: Call, proceed: Proceed) -> Any:
        kept.append(proceed)
        return "over"

    async def main() -> None:
        async with loop.served(tasks={"x": print}, interceptors=[leak]) as client:
            assert await loop.result(client, "x") == "over"
            with pytest.raises(RuntimeError, match="'x' is over"):
                await kept[0]()
            assert await loop.result(client, "x") == "over", "the worker goes on"

    loop.run(main)


# --- around what -------------------------------------------------------------------------------------------


@workflow.defn
class Both:
    @workflow.run
    async def run(self) -> list[str]:
        remote = await workflow.execute_activity(greet, start_to_close=10)
        return [remote, await workflow.execute_local_activity(greet)]


async def greet() -> str:
    return "hello"


async def test_activities_of_workflows_have_them_and_local_ones_do_not() -> None:
    """A local activity is a part of its workflow's task, and has no attempt."""

    async def loud(call: Call, proceed: Proceed) -> Any:
        return f"{await proceed(*call.args)}!"

    async with served(workflows=[Both], activities=[greet], interceptors=[loud]) as (client, _):
        assert await (await client.start_workflow("Both")).result() == ["hello!", "hello"]


async def test_they_do_not_run_for_what_cannot_be_called() -> None:
    ran: list[str] = []

    async def note(call: Call, proceed: Proceed) -> Any:
        ran.append(call.name)
        return await proceed(*call.args)

    async def number(payload: int) -> int:
        return payload

    async with open_fake_server() as fake, at_fake(fake, tasks=[number], interceptors=[note]):
        fake.deliver("unknown", token="t-1")
        fake.deliver("number", "a text", token="t-2")
        await fake.call_of(Op.RESPOND_ACTIVITY_TASK_FAILED, 2)
        fake.deliver("number", 7, token="t-3")
        assert (await fake.call_of(Op.RESPOND_ACTIVITY_TASK_COMPLETED)).payload == 7
    assert ran == ["number"]


async def plain(call: Call, proceed: Proceed) -> Any:
    return await proceed(*call.args)


@pytest.mark.parametrize("interceptors", [plain, [lambda call, proceed: None], ["plain"], [None]])
@pytest.mark.parametrize("door", ["trio", "asyncio"])
def test_what_is_no_interceptor_is_refused_when_the_worker_opens(door: str, interceptors: Any) -> None:
    loop = Loop(door, "127.0.0.1:1")

    async def main() -> None:
        async with loop.door.open_client(loop.zap, wait=False) as client:
            with pytest.raises(TypeError, match="interceptor"):
                async with loop.door.open_worker(client, tasks={"x": print}, interceptors=interceptors):
                    raise AssertionError("it must not open")

    loop.run(main)


# --- build ids -----------------------------------------------------------------------------------------------


async def test_a_build_id_goes_with_the_subscription_and_stands_in_history_describe_and_explain() -> None:
    release = trio.Event()

    async def job() -> None:
        await release.wait()

    async with served(tasks=[job], build_id="2026-11-26.1") as (client, worker):
        assert worker.build_id == "2026-11-26.1"
        handle = await client.now("job")
        [waiting] = await handle.explain()
        assert waiting.build_id == "2026-11-26.1"
        assert "of build '2026-11-26.1'" in waiting.reason
        release.set()
        await handle.result()
        assert (await handle.describe()).build_id == "2026-11-26.1"
        named = [event.attributes.get("buildId") async for event in handle.history() if "identity" in event.attributes]
        assert named[-2:] == ["2026-11-26.1"] * 2


async def test_a_worker_that_names_no_build_sends_no_such_key() -> None:
    async with open_fake_server() as fake, at_fake(fake, tasks=[greet]):
        assert "build_id" not in fake.calls_of(Op.SUBSCRIBE_ACTIVITY_TASKS)[0].body


@pytest.mark.parametrize("build_id", ["a\nb", "x" * 1_001])
async def test_a_build_id_that_no_server_takes_is_refused_at_once(build_id: str) -> None:
    async with open_fake_server() as fake, zaptasks.open_client(fake.zap) as client:
        with pytest.raises(ValueError, match="build_id"):
            async with open_worker(client, tasks=[greet], build_id=build_id):
                raise AssertionError("it must not open")


def test_an_asyncio_worker_has_one_too(server: RunningServer) -> None:
    loop = Loop("asyncio", server.zap)

    async def main() -> None:
        async with (
            aio.open_client(loop.zap) as client,
            aio.open_worker(client, loop.queue, tasks=[greet], build_id="1.0") as worker,
        ):
            assert worker.build_id == "1.0"
            handle = await client.now("greet", task_queue=loop.queue)
            await handle.result()
            assert (await handle.describe()).build_id == "1.0"

    loop.run(main)
