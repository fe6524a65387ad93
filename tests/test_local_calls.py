"""Local activities as a worker calls them: attempts, their time, pauses, and an allowance for all of them."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from tests.helpers.sdk_servers import open_fake_server
from tests.helpers.workers import at_fake, served

from zaptasks import RemoteError, RetryPolicy, TaskError, TaskFailed, WithStart, open_client, workflow
from zaptasks.local_activity_attempts import Allowance, call_locally, pause_after
from zaptasks.workflow import LocalCall
from zaptasks.workflow.places import UNKNOWN
from zapwire.failure import Failure
from zapwire.opcodes import Op

AT_ONCE = RetryPolicy(initial_interval=0.001)


def call_of(function: Callable[..., Any], *args: object, **options: Any) -> LocalCall:
    return LocalCall("0/1", "look", function, args, UNKNOWN, **options)


async def called(call: LocalCall, seconds: float = 8.0) -> object:
    limiter = trio.CapacityLimiter(2)
    return await call_locally(call, Allowance(seconds, trio.current_time() + seconds), limiter)


class Flaky:
    """Fails so many times, and then returns how often it was called."""

    def __init__(self, failures: int, error: Callable[[], BaseException] = lambda: OSError("no route")) -> None:
        self.failures = failures
        self.error = error
        self.times: list[float] = []

    async def __call__(self) -> int:
        self.times.append(trio.current_time())
        if len(self.times) <= self.failures:
            raise self.error()
        return len(self.times)


# --- attempts -------------------------------------------------------------------------------------------


async def test_without_a_policy_there_is_one_attempt() -> None:
    flaky = Flaky(1)
    with pytest.raises(OSError, match="no route"):
        await called(call_of(flaky))
    assert len(flaky.times) == 1


async def test_attempts_follow_each_other_with_growing_pauses(autojump_clock: trio.testing.MockClock) -> None:
    flaky = Flaky(3)
    began = trio.current_time()
    assert await called(call_of(flaky, retry_policy=RetryPolicy(initial_interval=0.5))) == 4
    assert [time - began for time in flaky.times] == pytest.approx([0, 0.5, 1.5, 3.5])


async def test_the_number_of_attempts_ends_them() -> None:
    flaky = Flaky(9)
    with pytest.raises(OSError, match="no route"):
        await called(call_of(flaky, retry_policy=RetryPolicy(initial_interval=0.001, maximum_attempts=3)))
    assert len(flaky.times) == 3


@pytest.mark.parametrize(
    ("error", "policy"),
    [
        (lambda: OSError("no route"), RetryPolicy(non_retryable_error_types=["OSError"])),
        (lambda: TaskError("no funds", non_retryable=True), AT_ONCE),
    ],
)
async def test_what_must_not_be_retried_is_not(error: Callable[[], BaseException], policy: RetryPolicy) -> None:
    flaky = Flaky(9, error)
    with pytest.raises(type(error())):
        await called(call_of(flaky, retry_policy=policy))
    assert len(flaky.times) == 1


async def test_an_exception_that_would_end_a_program_ends_an_attempt() -> None:
    assert await called(call_of(Flaky(1, lambda: SystemExit(3)), retry_policy=AT_ONCE)) == 2


def test_pauses_have_a_bound() -> None:
    failure = Failure(message="no route", code="OSError")
    assert pause_after(RetryPolicy(initial_interval=2), failure, 3) == 8
    assert pause_after(RetryPolicy(initial_interval=2, maximum_interval=5), failure, 3) == 5
    assert pause_after(RetryPolicy(initial_interval=2), failure, 10_000) == 200
    assert pause_after(RetryPolicy(maximum_attempts=3), failure, 3) is None
    assert pause_after(None, failure, 1) is None


# --- time -----------------------------------------------------------------------------------------------


async def test_an_attempt_that_takes_too_long_fails_and_is_retried(autojump_clock: trio.testing.MockClock) -> None:
    calls: list[int] = []

    async def slow() -> int:
        calls.append(1)
        if len(calls) == 1:
            await trio.sleep_forever()
        return len(calls)

    assert await called(call_of(slow, start_to_close=2.0, retry_policy=AT_ONCE)) == 2
    calls.clear()
    with pytest.raises(RemoteError, match=r"attempt 1 took longer than its start_to_close of 2 s") as caught:
        await called(call_of(slow, start_to_close=2.0))
    assert (caught.value.type, caught.value.non_retryable) == ("TimeoutError", False)


async def test_a_thread_that_takes_too_long_is_left_behind() -> None:
    go_on = threading.Event()
    with pytest.raises(RemoteError, match="took longer than its start_to_close"):
        await called(call_of(lambda: go_on.wait(20), start_to_close=0.02))
    go_on.set()


async def test_what_does_not_end_in_the_time_of_the_task_fails(autojump_clock: trio.testing.MockClock) -> None:
    call = call_of(trio.sleep_forever, start_to_close=60.0, retry_policy=AT_ONCE)
    with pytest.raises(
        RemoteError, match=r"did not end within the 8 s that .* one workflow task .*execute_activity"
    ) as caught:
        await called(call)
    assert (caught.value.type, caught.value.non_retryable) == ("TimeoutError", True)


async def test_what_comes_too_late_is_not_begun() -> None:
    flaky = Flaky(0)
    with pytest.raises(RemoteError, match=r"did not begin within the 0 s"):
        await called(call_of(flaky), seconds=0)
    assert flaky.times == []


async def test_a_pause_that_does_not_fit_is_not_waited_for() -> None:
    flaky = Flaky(9)
    with pytest.raises(RemoteError, match=r"no route \(attempt 1; another one, 30 s later, does not fit") as caught:
        await called(call_of(flaky, retry_policy=RetryPolicy(initial_interval=30)))
    assert caught.value.type == "OSError"
    assert isinstance(caught.value.__cause__, OSError)


async def test_a_cancel_of_the_worker_is_no_failure_of_the_call() -> None:
    with trio.move_on_after(0.01) as scope:
        await called(call_of(trio.sleep_forever, retry_policy=AT_ONCE))
    assert scope.cancelled_caught


# --- in workflows ---------------------------------------------------------------------------------------


async def test_a_workflow_sees_the_outcome_of_the_last_attempt() -> None:
    flaky, hopeless = Flaky(2), Flaky(9)

    async def look() -> int:
        return await flaky()

    async def try_in_vain() -> int:
        return await hopeless()

    @workflow.defn
    async def local() -> list[object]:
        policy = RetryPolicy(initial_interval=0.001, maximum_attempts=4)
        found: list[object] = [await workflow.execute_local_activity(look, retry_policy=policy, start_to_close=5)]
        try:
            await workflow.execute_local_activity(try_in_vain, retry_policy=policy)
        except workflow.ActivityFailed as error:
            found.append(error.type)
        try:
            await workflow.execute_local_activity(trio.sleep_forever, start_to_close=0.01)
        except workflow.ActivityFailed as error:
            found.append(error.type)
        return found

    async with served(workflows=[local]) as (client, _):
        handle = await client.start_workflow("local")
        assert await handle.result() == [3, "OSError", "TimeoutError"]
        markers = [event async for event in handle.history() if event.event_type == "MARKER_RECORDED"]
    assert len(markers) == 3, "one for each call, whatever its attempts"
    assert len(hopeless.times) == 4


async def test_the_server_says_how_long_a_task_may_take() -> None:
    @workflow.defn
    async def local() -> None:
        await workflow.execute_local_activity(trio.sleep_forever)

    started = {
        "eventId": 1,
        "eventTime": "2026-11-26T05:00:00Z",
        "eventType": "WORKFLOW_EXECUTION_STARTED",
        "attributes": {"workflowType": "local", "input": []},
    }
    task = {"workflow_id": "w", "run_id": "r", "workflow_type_name": "local", "history": [started], "last_event_id": 1}
    async with open_fake_server() as fake, at_fake(fake, workflows=[local]):
        fake.push(Op.DELIVER_WORKFLOW_TASK, task | {"task_token": "t-1", "task_timeout_ms": 50})
        answer = await fake.call_of(Op.RESPOND_WORKFLOW_TASK_COMPLETED)
    marker, failed = answer.payload["cmds"]
    assert (marker["kind"], failed["kind"]) == ("record-marker", "fail")
    assert "did not end within the 0.04 s" in failed["failure"]["p"]["message"]


# --- options that are not there --------------------------------------------------------------------------


async def nothing() -> None: ...


@workflow.defn(name="child")
async def child() -> None: ...


class Mailer:
    async def send(self) -> None: ...


MISSPELT: list[tuple[str, Callable[[], object], str]] = [
    ("execute_activity", lambda: workflow.execute_activity(nothing, start_to_closed=3), "start_to_close, "),  # type: ignore[call-overload]
    ("start_activity", lambda: workflow.start_activity(nothing, timeout=3), "start_to_close, "),  # type: ignore[call-overload]
    (
        "execute_activity_method",
        lambda: workflow.execute_activity_method(Mailer.send, retries=3),  # type: ignore[call-overload]
        "retry_policy, ",
    ),
    (
        "start_activity_method",
        lambda: workflow.start_activity_method(Mailer.send, queue="x"),  # type: ignore[call-overload]
        "task_queue",
    ),
    ("execute_local_activity", lambda: workflow.execute_local_activity(nothing, task_queue="x"), "start_to_close, "),  # type: ignore[call-overload]
    ("execute_child_workflow", lambda: workflow.execute_child_workflow(child, workflow_id="x"), "id, task_queue, "),  # type: ignore[call-overload]
    ("start_child_workflow", lambda: workflow.start_child_workflow(child, timeout=3), "run_timeout, "),  # type: ignore[call-overload]
]


@pytest.mark.parametrize(("function", "ask", "known"), MISSPELT, ids=[row[0] for row in MISSPELT])
async def test_an_option_that_is_not_there_is_named_with_those_that_are(
    function: str, ask: Callable[[], object], known: str
) -> None:
    @workflow.defn
    async def misspelt() -> None:
        asked = ask()
        if isinstance(asked, Awaitable):
            await asked

    async with served(workflows=[misspelt]) as (client, _):
        handle = await client.start_workflow("misspelt")
        with pytest.raises(TaskFailed) as caught:
            await handle.result()
    assert caught.value.type == "TypeError"
    assert caught.value.message.startswith(f"{function}() has no option ")
    assert known in caught.value.message


async def test_the_client_names_them_too() -> None:
    wrong: dict[str, Any] = {"queue": "x"}
    async with open_fake_server() as fake, open_client(fake.zap) as client:
        with pytest.raises(TypeError, match=r"^start_workflow\(\) has no option 'queue'; its options are: task"):
            await client.start_workflow(child, **wrong)
        with pytest.raises(TypeError, match=r"^execute_workflow\(\) has no option 'queue'"):
            await client.execute_workflow(child, **wrong)
        with pytest.raises(TypeError, match=r"^WithStart\(\) has no option 'queue'; its options are: .*cron_schedule"):
            WithStart(child, id="x", **wrong)
