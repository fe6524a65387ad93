"""Handlers in a worker: how they are called, registered and bounded, and what becomes of what they raise."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing
from tests.helpers.sdk_servers import open_fake_server, open_real_server
from tests.helpers.workers import AT_ONCE, NO_RETRY, at_fake, failure_of, in_virtual_time

import zaptasks
from zaptasks import (
    CallFailed,
    TaskError,
    TaskFailed,
    WorkflowContext,
    activity,
    current_task,
    open_client,
    open_worker,
    sort_handlers,
)
from zaptasks.handlers import Kind, table
from zapwire.opcodes import Op

# --- calling handlers ---------------------------------------------------------------------------------


async def test_handlers_are_async_functions_plain_functions_objects_and_partials() -> None:
    import functools

    @zaptasks.task(name="by.decorator")
    async def decorated(payload: int) -> int:
        return payload + 1

    def plain(payload: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        return payload + 2

    class Callable3:
        async def __call__(self, payload: int) -> int:
            return payload + 3

    async def add(number: int, payload: int) -> int:
        return payload + number

    handlers = {
        "by.decorator": decorated,
        "plain": plain,
        "object": Callable3(),
        "partial": functools.partial(add, 4),
    }
    async with in_virtual_time(tasks=handlers) as (client, _):
        results = [await (await client.now(name, 0)).result() for name in handlers]
    assert results == [1, 2, 3, 4]


async def test_a_task_handler_that_takes_nothing_is_called_with_nothing() -> None:
    async def nothing() -> str:
        return "called"

    async def optional(payload: str = "default") -> str:
        return payload

    async def needed(payload: object) -> object:
        return [payload]

    async with in_virtual_time(tasks=[nothing, optional, needed]) as (client, _):
        assert await (await client.now("nothing", {"ignored": 1})).result() == "called"
        assert await (await client.now("optional")).result() == "default"
        assert await (await client.now("needed")).result() == [None]


@pytest.mark.parametrize(
    ("input", "result"),
    [
        ([1, 2], [1, 2, "c", []]),
        ([1], [1, None, "c", []]),
        ([1, 2, 3, 4, 5], [1, 2, 3, [4, 5]]),
    ],
)
async def test_an_activity_gets_its_arguments_by_the_rules_of_go(input: object, result: object) -> None:
    async def act(a: object, b: object, c: object = "c", *rest: object) -> object:
        return [a, b, c, list(rest)]

    async with open_fake_server() as fake, at_fake(fake, activities=[act]):
        fake.deliver("act", input, kind="")
        answer = await fake.call_of(Op.RESPOND_ACTIVITY_TASK_COMPLETED)
        assert answer.payload == result


async def test_input_that_is_no_array_is_the_only_argument_of_a_function_that_takes_one() -> None:
    async def one(value: object) -> object:
        return value

    async def two(a: object, b: object) -> object:
        return [a, b]

    async with open_fake_server() as fake, at_fake(fake, activities=[one, two]):
        fake.deliver("one", {"k": 1}, kind="", token="t-1")
        fake.deliver("two", {"k": 1}, kind="", token="t-2")
        assert (await fake.call_of(Op.RESPOND_ACTIVITY_TASK_COMPLETED)).payload == {"k": 1}
        failed = (await fake.call_of(Op.RESPOND_ACTIVITY_TASK_FAILED)).payload["p"]
        assert (failed["code"], failed["nonRetryable"]) == ("DecodeError", True)
        assert "not a JSON array" in failed["message"]


async def test_a_payload_of_the_wrong_shape_is_a_decode_error_that_is_not_retried() -> None:
    async def count(payload: dict[str, int]) -> int:
        return len(payload)

    async with in_virtual_time(tasks=[count]) as (client, _):
        handle = await client.now("count", {"a": "b"})
        with pytest.raises(TaskFailed, match=r"Expected `int`, got `str` - at `\$\[\.\.\.\]`") as caught:
            await handle.result()
    assert caught.value.type == "DecodeError"
    assert caught.value.non_retryable


async def test_the_context_says_what_runs() -> None:
    seen: list[zaptasks.TaskContext] = []

    async def look() -> None:
        seen.append(current_task())

    async with in_virtual_time(tasks=[look]) as (client, _):
        handle = await client.now("look", start_to_close=30, heartbeat_timeout=2, retry_policy=AT_ONCE)
        await handle.result()
    [task] = seen
    assert (task.type, task.attempt, task.maximum_attempts) == ("look", 1, 5)
    assert (task.workflow_id, task.run_id) == (handle.workflow_id, handle.run_id)
    assert (task.namespace, task.task_queue) == ("default", "default")
    assert (task.start_to_close, task.heartbeat_timeout) == (30.0, 2.0)
    assert task.id.startswith("act-")
    assert task.scheduled_time is not None
    assert (task.cancel_requested, task.cancel_reason) == (False, "")
    with pytest.raises(RuntimeError, match="no current task"):
        current_task()


async def test_the_logger_of_a_task_says_which_task_speaks(caplog: pytest.LogCaptureFixture) -> None:
    async def speak() -> None:
        current_task().logger.warning("half of %d", 10)

    async with in_virtual_time(tasks=[speak]) as (client, _):
        handle = await client.now("speak")
        await handle.result()
    assert f"[speak {handle.workflow_id} attempt 1] half of 10" in caplog.messages


# --- registration -------------------------------------------------------------------------------------


def test_what_cannot_be_a_handler_is_refused_when_it_is_registered() -> None:
    async def two(a: object, b: object) -> None: ...

    async def keyword(payload: object, *, to: str) -> None: ...

    def sync_workflow(ctx: WorkflowContext) -> None: ...

    async def same() -> None: ...

    first = same

    async def same() -> None: ...  # type: ignore[no-redef]

    with pytest.raises(TypeError, match="needs 2 arguments"):
        table([two], Kind.TASK)
    with pytest.raises(TypeError, match="keyword-only argument 'to'"):
        table([keyword], Kind.ACTIVITY)
    with pytest.raises(TypeError, match="async def"):
        table([sync_workflow], Kind.WORKFLOW)
    with pytest.raises(TypeError, match="no name of its own"):
        table([lambda: None], Kind.TASK)
    with pytest.raises(TypeError, match="is one function"):
        table(two, Kind.TASK)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cannot be called"):
        table({"x": 1}, Kind.TASK)
    with pytest.raises(ValueError, match="registered twice"):
        table([first, same], Kind.TASK)
    with pytest.raises(ValueError, match="task name ''"):
        table({"": two}, Kind.TASK)


def test_handlers_are_sorted_by_what_they_were_decorated_as() -> None:
    @activity.defn
    async def greet() -> None: ...

    @zaptasks.task(name="email.send")
    async def send() -> None: ...

    async def plain() -> None: ...

    @zaptasks.workflow.defn(name="Order")
    class Sale:
        @zaptasks.workflow.run
        async def run(self) -> None: ...

    found = sort_handlers([greet, send, plain, Sale])
    assert [set(each) for each in found] == [{"email.send", "plain"}, {"greet"}, {"Order"}]
    assert sort_handlers({"a": plain, "b": Sale}) == ({"a": plain}, {}, {"b": Sale})
    assert sort_handlers(greet) == ({}, {"greet": greet}, {})
    assert sort_handlers(Sale) == ({}, {}, {"Order": Sale})
    module = type(sys)("some_module")
    module.send, module.plain, module.number, module.Sale = send, plain, 1, Sale  # type: ignore[attr-defined]
    assert sort_handlers(module) == ({"email.send": send}, {}, {"Order": Sale})
    with pytest.raises(TypeError, match="holds no handlers"):
        sort_handlers(42)


# --- how handlers fail --------------------------------------------------------------------------------


async def test_an_exception_becomes_a_failure_with_its_class_as_type() -> None:
    async def boom() -> None:
        raise LookupError("nothing there")

    error = await failure_of(boom)
    assert (error.type, error.message, error.non_retryable) == ("LookupError", "nothing there", False)
    assert "in boom" in error.stack


async def test_a_group_of_one_exception_is_that_exception() -> None:
    async def crash() -> None:
        raise OSError("disk")

    async def nursery() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crash)

    assert (await failure_of(nursery)).type == "OSError"


@pytest.mark.parametrize("in_thread", [False, True])
async def test_an_exception_that_would_end_a_program_ends_only_the_task(in_thread: bool) -> None:
    def leave() -> None:
        sys.exit("bye")

    async def leave_async() -> None:
        leave()

    error = await failure_of(leave if in_thread else leave_async)
    assert (error.type, error.message) == ("SystemExit", "bye")


async def test_an_exception_whose_text_cannot_be_made_is_still_a_failure() -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    async def boom() -> None:
        raise Unspeakable

    error = await failure_of(boom)
    assert error.type == "Unspeakable"
    assert "str() of it raised RuntimeError" in error.message


async def test_a_result_that_cannot_be_encoded_is_a_final_failure_that_names_the_part() -> None:
    async def odd() -> object:
        return {"rows": [1, object()]}

    error = await failure_of(odd)
    assert (error.type, error.non_retryable) == ("PayloadError", True)
    assert "the result of 'x' cannot be sent as JSON: $.rows[1] is of type object" in error.message


async def test_details_that_cannot_be_encoded_arrive_as_text() -> None:
    async def boom() -> None:
        raise TaskError("no", details=[1, print])

    assert (await failure_of(boom)).details == [1, "<built-in function print>"]


async def test_a_failed_task_is_retried_and_the_failure_of_another_task_keeps_its_type() -> None:
    attempts: list[int] = []

    async def flaky() -> int:
        attempts.append(current_task().attempt)
        if len(attempts) < 3:
            raise OSError("not yet")
        return len(attempts)

    async with in_virtual_time(tasks=[flaky]) as (client, _):

        async def outer() -> None:
            await (await client.now("broken", retry_policy=NO_RETRY)).result()

        async def broken() -> None:
            raise TaskError("x", code="Inner")

        handle = await client.now("flaky", retry_policy=AT_ONCE)
        assert await handle.result() == 3
        assert attempts == [1, 2, 3]
        async with open_worker(client, tasks=[outer, broken]):
            with pytest.raises(TaskFailed) as caught:
                await (await client.now("outer", retry_policy=NO_RETRY)).result()
        assert caught.value.type == "Inner"


async def test_a_type_that_nobody_here_knows_is_answered_as_go_does() -> None:
    async with open_fake_server() as fake, at_fake(fake, tasks={"known": print}):
        fake.deliver("unknown")
        failed = (await fake.call_of(Op.RESPOND_ACTIVITY_TASK_FAILED)).payload["p"]
        assert (failed["code"], failed["nonRetryable"]) == ("NotFoundError", True)


async def test_a_type_that_nobody_here_serves_is_not_delivered_at_all() -> None:
    async with in_virtual_time(tasks={"known": print}) as (client, _):
        handle = await client.now("unknown")
        [waiting] = await handle.explain()
        assert "none of the" in waiting.reason


# --- slots --------------------------------------------------------------------------------------------


async def test_the_server_delivers_no_more_than_the_slots() -> None:
    most = 0
    running = 0

    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(0.002)
        running -= 1

    async with in_virtual_time(tasks=[work], slots=3) as (client, _):
        handles = [await client.now("work") for _ in range(20)]
        for handle in handles:
            await handle.result()
    assert most == 3


async def test_threads_have_slots_of_their_own_so_that_nothing_waits_for_one() -> None:
    def in_thread() -> None: ...

    async def in_loop() -> None: ...

    async with open_fake_server() as fake, at_fake(fake, tasks=[in_thread, in_loop], slots=50, max_threads=4):
        asked = [(call.body["types"], call.body["slots"]) for call in fake.calls_of(Op.SUBSCRIBE_ACTIVITY_TASKS)]
        assert sorted(asked) == [(["in_loop"], 50), (["in_thread"], 4)]


@pytest.mark.parametrize("bad", [{"slots": 0}, {"max_threads": 0}, {"shutdown_timeout": -1}, {"task_queue": ""}])
async def test_a_worker_that_could_do_nothing_is_refused(bad: dict[str, Any]) -> None:
    async with open_fake_server() as fake, open_client(fake.zap) as client:
        with pytest.raises(ValueError, match=r"slots is 0|max_threads is 0|shutdown_timeout|task name"):
            async with open_worker(client, **{"tasks": {"x": print}, **bad}):
                raise AssertionError("the worker must not open")


async def test_a_refused_subscription_is_told_when_the_worker_opens() -> None:
    async with open_real_server() as server, open_client(server.zap, namespace="nowhere") as client:
        with pytest.raises(CallFailed, match="not registered"):
            async with open_worker(client, tasks={"x": print}):
                raise AssertionError("the worker must not open")


async def test_a_type_that_is_added_later_is_served_and_can_be_replaced() -> None:
    async with in_virtual_time() as (client, worker):
        handle = await client.now("late")
        await worker.add_task("late", lambda: "first")
        assert await handle.result() == "first"
        await worker.add_task("late", lambda: "second")
        assert await (await client.now("late")).result() == "second"


async def test_a_task_that_is_delivered_twice_runs_once(caplog: pytest.LogCaptureFixture) -> None:
    go_on = trio.Event()

    async def work() -> str:
        await go_on.wait()
        return "once"

    async with open_fake_server() as fake, at_fake(fake, tasks=[work]) as worker:
        fake.deliver("work", token="same")
        fake.deliver("work", token="same")
        fake.deliver("work", token="other")
        await _until(lambda: worker.running == 2)
        go_on.set()
    assert sorted(call.token for call in fake.calls_of(Op.RESPOND_ACTIVITY_TASK_COMPLETED)) == ["other", "same"]
    assert "delivered task 'same' twice" in caplog.text


async def _until(ready: Callable[[], bool]) -> None:
    while not ready():
        await trio.lowlevel.checkpoint()
