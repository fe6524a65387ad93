"""A server that is there and takes nothing now: no finished work is lost, and callers are told what it is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise

import pytest
import trio
import trio.testing
from tests.helpers.sdk_servers import Call, FakeServer, open_fake_server
from tests.helpers.workers import NO_RETRY, QUICK, at_fake

from zapserver.limits import parse_limits
from zapserver.server import open_server
from zapserver.settings import Address, Settings
from zaptasks import (
    CallFailed,
    OutcomeUnknown,
    ServerBusy,
    TaskFailed,
    WorkflowContext,
    current_task,
    open_client,
    open_worker,
)
from zaptasks.worker import HAND_BACK_SECONDS_MAX
from zapwire.envelope import encode_submit_reply
from zapwire.opcodes import Op

DONE = Op.RESPOND_ACTIVITY_TASK_COMPLETED
BEAT = Op.RECORD_ACTIVITY_TASK_HEARTBEAT
BUSY = [429, 503, 507]


def sick(times: int, status: int = 507, then: Callable[[Call], None] = Call.answer) -> Callable[[Call], None]:
    """Refuse the first calls, and then get well."""
    left = [times]

    def answer(call: Call) -> None:
        if left[0]:
            left[0] -= 1
            call.answer(status=status, error="the disk is full")
        else:
            then(call)

    return answer


def texts(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the worker logged, but for the line that says what it serves."""
    said = [record.getMessage() for record in caplog.records if record.name == "zaptasks.worker"]
    return [text for text in said if " is served: " not in text]


# --- outcomes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", BUSY)
async def test_an_outcome_is_sent_again_until_the_server_takes_it(
    status: int, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "zaptasks.worker")
    ran: list[int] = []
    times: list[float] = []

    async def work() -> str:
        ran.append(1)
        return "done"

    answer = sick(9, status)

    def note(call: Call) -> None:
        times.append(trio.current_time())
        answer(call)

    async with open_fake_server({DONE: note}) as fake, at_fake(fake, tasks=[work]) as worker:
        fake.deliver("work")
        await fake.call_of(DONE, 10)
        await worker.drain()
        assert [call.payload for call in fake.calls_of(DONE)] == ["done"] * 10
    assert ran == [1]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5], abs=0.05)
    assert texts(caplog) == [
        f"the server takes nothing now, outcomes are kept and sent again: {status} the disk is full",
        "the server takes outcomes again",
    ]


async def test_many_outcomes_wait_and_one_line_says_so(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(number: int) -> int:
        return number

    is_sick = True

    def answer(call: Call) -> None:
        call.answer(status=503 if is_sick else 200, error="read-only" if is_sick else "")

    async with open_fake_server({DONE: answer}) as fake, at_fake(fake, tasks=[work]) as worker:
        for number in range(20):
            fake.deliver("work", number, token=f"t-{number}")
        await fake.call_of(DONE, 60)
        assert worker.running == 20
        is_sick = False
        await worker.drain()
        last = {call.token: call.payload for call in fake.calls_of(DONE)}
    assert last == {f"t-{number}": number for number in range(20)}
    assert len([text for text in texts(caplog) if "takes nothing now" in text]) == 1


@pytest.mark.parametrize("status", [404, 409])
async def test_the_end_of_the_lease_ends_it(status: int, autojump_clock: trio.testing.MockClock) -> None:
    async def work() -> str:
        return "done"

    too_late = sick(3, then=lambda call: call.answer(status=status, error="attempt 2 runs"))
    async with open_fake_server({DONE: too_late}) as fake, at_fake(fake, tasks=[work]) as worker:
        fake.deliver("work")
        await fake.call_of(DONE, 4)
        await worker.drain()
        await trio.sleep(60)
        assert len(fake.calls_of(DONE)) == 4


async def test_the_end_of_the_connection_ends_it_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async def work() -> str:
        return "done"

    async with open_fake_server({DONE: sick(1_000)}) as fake, at_fake(fake, tasks=[work]) as worker:
        fake.deliver("work")
        await fake.call_of(DONE, 8)
        cut = trio.current_time()
        fake.drop_connections()
        await worker._idle.wait()
        assert not worker.running
        assert trio.current_time() - cut < 1
        await fake.until(lambda: len(fake.calls_of(Op.SUBSCRIBE_ACTIVITY_TASKS)) == 2)
        count = len(fake.calls_of(DONE))
        await trio.sleep(60)
        assert len(fake.calls_of(DONE)) == count


async def test_a_worker_that_leaves_waits_for_the_server_to_get_well(autojump_clock: trio.testing.MockClock) -> None:
    async def work() -> str:
        return "done"

    async with open_fake_server({DONE: sick(8)}) as fake:
        async with at_fake(fake, tasks=[work]):
            fake.deliver("work")
            await fake.call_of(DONE)
        assert len(fake.calls_of(DONE)) == 9
        assert fake.calls_of(Op.HAND_BACK_TASK) == []


async def test_a_worker_that_is_canceled_still_tries_and_ends_in_time(autojump_clock: trio.testing.MockClock) -> None:
    async def work() -> str:
        return "done"

    async with open_fake_server({DONE: sick(1_000)}) as fake:
        with trio.CancelScope() as scope:
            async with at_fake(fake, tasks=[work]):
                fake.deliver("work")
                await fake.call_of(DONE)
                canceled = trio.current_time()
                scope.cancel()
                await trio.sleep_forever()
        assert trio.current_time() - canceled < HAND_BACK_SECONDS_MAX + 1
        assert len(fake.calls_of(DONE)) > 3


async def test_failures_and_the_ends_of_workflows_are_kept_as_well(autojump_clock: trio.testing.MockClock) -> None:
    async def work() -> None:
        raise OSError("broke")

    async def order(ctx: WorkflowContext) -> int:
        return 17

    failed, ended = Op.RESPOND_ACTIVITY_TASK_FAILED, Op.RESPOND_WORKFLOW_TASK_COMPLETED
    answers = {failed: sick(3), ended: sick(3)}
    async with open_fake_server(answers) as fake, at_fake(fake, tasks=[work], workflows=[order]) as worker:
        fake.deliver("work")
        _deliver_run(fake, "order")
        await fake.call_of(failed, 4)
        await fake.call_of(ended, 4)
        await worker.drain()


def _deliver_run(fake: FakeServer, type: str) -> None:
    fake.push(
        Op.DELIVER_WORKFLOW_TASK,
        {
            "task_token": "wf-1",
            "workflow_id": "w-1",
            "run_id": "r-1",
            "workflow_type_name": type,
            "attempt": 1,
            "input": "[]",
        },
    )


# --- heartbeats ----------------------------------------------------------------------------------------


async def test_a_heartbeat_that_is_refused_is_said_again_and_harms_nothing(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> str:
        current_task().heartbeat("page", 3)
        await trio.sleep(10)
        return "done"

    beat = sick(4, 507, then=lambda call: call.answer(status=0))
    async with open_fake_server({BEAT: beat}) as fake, at_fake(fake, tasks=[work]):
        fake.deliver("work", heartbeat_timeout_ms=3_000)
        done = await fake.call_of(DONE)
        assert done.payload == "done"
        assert [call.payload for call in fake.calls_of(BEAT)] == [["page", 3]] * 5
    assert len([text for text in texts(caplog) if "takes nothing now" in text]) == 1


# --- what else a worker asks for -----------------------------------------------------------------------


@pytest.mark.parametrize("status", [503, 507])
async def test_a_worker_comes_to_a_sick_server_and_serves_when_it_is_well(
    status: int, autojump_clock: trio.testing.MockClock
) -> None:
    async def work() -> str:
        return "done"

    subscribe = sick(3, status, then=lambda call: call.answer({"subscription_id": "s1"}))
    async with open_fake_server({Op.SUBSCRIBE_ACTIVITY_TASKS: subscribe}) as fake, at_fake(fake, tasks=[work]):
        fake.deliver("work")
        await fake.call_of(DONE)


async def test_a_workflow_waits_for_a_sick_server_to_take_its_activity(autojump_clock: trio.testing.MockClock) -> None:
    async def order(ctx: WorkflowContext) -> object:
        return await ctx.execute_activity("charge", 17)

    schedule = sick(3, then=lambda call: call.answer({"activity_task_id": "a-1"}))
    async with open_fake_server({Op.SCHEDULE_ACTIVITY: schedule}) as fake, at_fake(fake, workflows=[order]):
        _deliver_run(fake, "order")
        await fake.call_of(Op.SCHEDULE_ACTIVITY, 4)
        fake.push(Op.DELIVER_ACTIVITY_RESULT, {"activity_id": "a-1", "result": "17"})
        ended = await fake.call_of(Op.RESPOND_WORKFLOW_TASK_COMPLETED)
        [command] = ended.payload["cmds"]
        assert command == {"kind": 0, "result": "MTc="}


async def test_a_limit_is_no_sickness_and_a_workflow_is_told(autojump_clock: trio.testing.MockClock) -> None:
    seen: list[CallFailed] = []

    async def order(ctx: WorkflowContext) -> None:
        try:
            await ctx.execute_activity("charge", 17)
        except CallFailed as error:
            seen.append(error)

    full = {Op.SCHEDULE_ACTIVITY: lambda call: call.answer(status=429, error="the history is full")}
    async with open_fake_server(full) as fake, at_fake(fake, workflows=[order]):
        _deliver_run(fake, "order")
        await fake.call_of(Op.RESPOND_WORKFLOW_TASK_COMPLETED)
    assert [error.status for error in seen] == [429]


async def test_a_result_that_this_server_finds_too_large_is_a_failure_that_says_so() -> None:
    async def work() -> str:
        return "x" * 1_000

    async def order(ctx: WorkflowContext) -> str:
        return "x" * 1_000

    limits, _ = parse_limits(["payload-bytes=500"])
    settings = Settings(zap=Address("127.0.0.1", 0), http=Address("127.0.0.1", 0), limits=limits)
    async with (
        open_server(settings) as server,
        open_client(str(server.zap_address), backoff=QUICK) as client,
        open_worker(client, tasks=[work], workflows=[order]),
    ):
        with trio.fail_after(5):
            with pytest.raises(TaskFailed, match="'work' is larger than this server takes") as failed:
                await (await client.now("work", retry_policy=NO_RETRY)).result()
            assert failed.value.non_retryable
            with pytest.raises(TaskFailed, match="'order' is larger than this server takes"):
                await (await client.start_workflow("order")).result()


# --- clients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "advice"), [(429, "do less at a time"), (503, "try again later"), (507, "somebody has freed space")]
)
async def test_a_caller_is_told_that_the_server_takes_nothing_now(status: int, advice: str) -> None:
    answers = {
        Op.TASK_SUBMIT: lambda call: call.answer_raw(encode_submit_reply(status, b'{"error":"no room"}')),
        Op.START_WORKFLOW: lambda call: call.answer(status=status, error="no room"),
    }
    async with open_fake_server(answers) as fake, open_client(fake.zap) as client:
        for start in (client.now, client.start_workflow):
            with pytest.raises(ServerBusy, match=advice) as caught:
                await start("mail")
            assert (caught.value.status, caught.value.code, caught.value.detail) == (status, "server_busy", "no room")
            assert f"status {status}: no room; " in str(caught.value)
        assert len(fake.calls) == 3  # and the first health; a refusal is not repeated by itself


async def test_a_call_that_may_have_arrived_is_asked_again_until_the_server_is_well(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def answer(call: Call) -> None:
        number = len(fake.calls_of(Op.TASK_SUBMIT))
        if number == 1:
            call.link.close("the test cut it")
        elif number < 5:
            call.answer_raw(encode_submit_reply(507, b'{"error":"disk full"}'))
        else:
            call.started("w-17")

    async with open_fake_server({Op.TASK_SUBMIT: answer}) as fake, open_client(fake.zap, backoff=QUICK) as client:
        assert (await client.now("mail")).workflow_id == "w-17"
        assert len({call.options["request_id"] for call in fake.calls_of(Op.TASK_SUBMIT)}) == 1


async def test_a_call_that_may_have_arrived_stays_unknown_while_the_server_is_sick(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def answer(call: Call) -> None:
        if len(fake.calls_of(Op.START_WORKFLOW)) == 1:
            call.link.close("the test cut it")
        else:
            call.answer(status=503, error="read-only")

    async with (
        open_fake_server({Op.START_WORKFLOW: answer}) as fake,
        open_client(fake.zap, backoff=QUICK, timeout=3) as client,
    ):
        with pytest.raises(OutcomeUnknown):
            await client.start_workflow("order")
