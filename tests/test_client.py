"""The trio client at a real server: what each call does."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
import trio
import trio.testing
from tests.helpers.sdk_servers import FakeServer, RealServer, open_real_server

import zaptasks
from zaptasks import (
    AsyncClient,
    CallFailed,
    Every,
    RetryPolicy,
    ScheduleSpec,
    StartTask,
    StartWorkflow,
    Status,
    TaskCanceled,
    TaskFailed,
    TaskTerminated,
    TaskTimedOut,
    WithStart,
    WorkflowContext,
    open_client,
    open_worker,
)
from zapwire.client_link import Backoff

QUICK = Backoff(seconds_min=0.01, seconds_max=0.02)
NO_RETRY = RetryPolicy(maximum_attempts=1)


@asynccontextmanager
async def client_of_real_server() -> AsyncIterator[tuple[AsyncClient, RealServer]]:
    async with open_real_server() as server, open_client(server.zap) as client:
        yield client, server


@asynccontextmanager
async def client_of(fake: FakeServer, timeout: float = 10.0) -> AsyncIterator[AsyncClient]:
    async with open_client(fake.zap, timeout=timeout, backoff=QUICK) as client:
        yield client


# --- tasks --------------------------------------------------------------------------------------------


@dataclass
class Mail:
    to: str
    size: int


async def test_a_task_comes_back_with_its_result_in_the_type_asked_for() -> None:
    async def measure(mail: Mail) -> Mail:
        return Mail(mail.to, len(mail.to))

    async with client_of_real_server() as (client, _), open_worker(client, tasks={"measure": measure}):
        handle = await client.now("measure", Mail("ada", 0))
        assert await handle.result(Mail) == Mail("ada", 3)
        assert await handle.result() == {"to": "ada", "size": 3}


async def test_the_same_request_id_starts_one_task() -> None:
    async with client_of_real_server() as (client, _):
        first = await client.now("report", request_id="monthly-2026-11")
        again = await client.now("report", request_id="monthly-2026-11")
        other = await client.now("report")
        assert (again.workflow_id, again.run_id) == (first.workflow_id, first.run_id)
        assert other.run_id != first.run_id


async def test_a_failure_arrives_with_type_message_details_cause_and_stack() -> None:
    async def charge() -> None:
        try:
            raise KeyError("card")
        except KeyError as error:
            raise zaptasks.TaskError(
                "no funds", code="Payment", non_retryable=True, details=[{"missing": 7}]
            ) from error

    async with client_of_real_server() as (client, _), open_worker(client, tasks=[charge]):
        with pytest.raises(TaskFailed, match=r"no funds \(Payment\)") as caught:
            await (await client.now("charge")).result()
    error = caught.value
    assert (error.type, error.message, error.details, error.non_retryable) == (
        "Payment",
        "no funds",
        [{"missing": 7}],
        True,
    )
    assert "in charge" in error.stack
    cause = error.__cause__
    assert isinstance(cause, zaptasks.RemoteError)
    assert (cause.type, cause.message) == ("KeyError", "'card'")


async def test_a_canceled_a_terminated_and_a_timed_out_task_raise_their_own_errors() -> None:
    async with client_of_real_server() as (client, _):
        canceled = await client.now("nobody")
        await canceled.cancel("changed my mind")
        with pytest.raises(TaskCanceled, match="changed my mind"):
            await canceled.result()
        assert (await canceled.describe()).cancel_reason == "changed my mind"

        terminated = await client.now("nobody")
        await terminated.terminate("no more")
        with pytest.raises(TaskTerminated, match="no more") as caught:
            await terminated.result()
        error = (await terminated.describe()).error
        assert str(error) == str(caught.value)
        await terminated.terminate("again")  # no error: it is over

        late = await client.now("nobody", schedule_to_start=0.02)
        with pytest.raises(TaskTimedOut, match="schedule-to-start"):
            await late.result()


async def test_a_waiting_task_can_be_described_explained_and_read() -> None:
    async with client_of_real_server() as (client, _):
        handle = await client.now("resize", {"w": 3}, task_queue="images", memo={"who": "ada"})
        info = await handle.describe()
        assert (info.type, info.kind, info.task_queue) == ("resize", "task", "images")
        assert (info.status, info.input, info.memo) == (Status.RUNNING, {"w": 3}, {"who": "ada"})
        assert info.error is None
        assert info.start_time is not None
        assert abs(info.start_time - datetime.now(UTC)) < timedelta(minutes=1)
        [waiting] = await handle.explain()
        assert "no worker is subscribed to task queue 'images'" in waiting.reason
        events = [event async for event in handle.history()]
        assert [event.event_id for event in events] == [1, 2]
        assert events[0].event_type == "WORKFLOW_EXECUTION_STARTED"


async def test_a_history_of_several_pages_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zaptasks.handles.HISTORY_PAGE_EVENTS", 2)
    async with client_of_real_server() as (client, _):
        handle = await client.start_workflow("order", id="o-1")
        for number in range(4):
            await handle.signal("note", number)
        assert [event.event_id async for event in handle.history()] == [1, 2, 3, 4, 5]


async def test_a_list_is_paged_and_asked_by_query() -> None:
    async with client_of_real_server() as (client, _):
        for number in range(5):
            await client.now("a" if number % 2 else "b", number)
        everything = [info.type async for info in client.list(page_size=2)]
        assert everything == ["b", "a", "b", "a", "b"]
        assert [info.type async for info in client.list("WorkflowType = 'a'")] == ["a", "a"]
        with pytest.raises(CallFailed) as caught:
            [info async for info in client.list("WorkflowType = ")]
        assert caught.value.status == 400


async def test_a_dead_letter_is_listed_and_runs_again() -> None:
    attempts: list[int] = []

    async def flaky(payload: str) -> str:
        attempts.append(len(attempts))
        if len(attempts) == 1:
            raise ValueError("not yet")
        return payload

    async with client_of_real_server() as (client, _), open_worker(client, tasks=[flaky]):
        handle = await client.now("flaky", "x", retry_policy=NO_RETRY)
        with pytest.raises(TaskFailed):
            await handle.result()
        [letter] = await client.dead_letters()
        assert (letter.workflow_id, letter.is_dead_letter) == (handle.workflow_id, True)
        assert isinstance(letter.error, TaskFailed)
        assert (await client.get_handle(letter.workflow_id).describe()).input == "x"
        again = await client.requeue_dead_letter(letter.workflow_id, letter.run_id)
        assert await again.result() == "x"
        assert await client.dead_letters() == []


async def test_waiting_for_an_execution_that_nobody_knows_is_a_404() -> None:
    async with client_of_real_server() as (client, _):
        with pytest.raises(CallFailed) as caught:
            await client.get_handle("never-was").result()
        assert caught.value.status == 404
        assert str(caught.value).startswith("call 0x91 AwaitExecution: status 404: workflow not found: ")


# --- workflows ----------------------------------------------------------------------------------------


async def test_a_workflow_is_started_queried_signaled_and_canceled() -> None:
    running = trio.Event()

    async def order(ctx: WorkflowContext, item: str) -> None:
        ctx.on_query("item", lambda times: item * times)
        running.set()
        await trio.sleep_forever()

    async with client_of_real_server() as (client, _), open_worker(client, workflows=[order]):
        handle = await client.signal_with_start("hurry", 1, start=WithStart("order", "tea", id="o-7"))
        await running.wait()
        same = await client.signal_with_start("hurry", 2, start=WithStart("order", "tea", id="o-7"))
        assert same.run_id == handle.run_id
        await handle.signal("address", {"street": "x"})
        events = [event.event_type async for event in handle.history()]
        assert events.count("WORKFLOW_EXECUTION_SIGNALED") == 3
        assert await handle.query("item", 2) == "teatea"
        with pytest.raises(CallFailed, match="answers no query 'nothing'"):
            await handle.query("nothing")
        with pytest.raises(CallFailed) as conflict:
            await client.start_workflow("order", "tea", id="o-7")
        assert conflict.value.status == 409
        await handle.cancel("enough")
        with pytest.raises(TaskCanceled):
            await handle.result()


async def test_a_workflow_that_is_reset_runs_again_from_its_input() -> None:
    async def double(ctx: WorkflowContext, number: int) -> int:
        return number * 2

    async with client_of_real_server() as (client, _), open_worker(client, workflows=[double]):
        first = await client.start_workflow("double", 21, id="d")
        assert await first.result(int) == 42
        second = await first.reset(1, "once more")
        assert second.run_id != first.run_id
        assert await second.result(int) == 42


# --- schedules, namespaces, health --------------------------------------------------------------------


async def test_the_life_of_a_schedule() -> None:
    async with client_of_real_server() as (client, _):
        made = await client.create_schedule("nightly", "0 3 * * *", StartTask("audit", {"full": True}, "batch"))
        assert (made.spec.cron, made.action.is_task, made.action.task_queue) == (["0 3 * * *"], True, "batch")
        spec = ScheduleSpec(interval=timedelta(minutes=5), jitter=2, end_time=datetime(2100, 1, 1, tzinfo=UTC))
        await client.create_schedule("often", spec, StartWorkflow("sweep", ["a", 1]), paused=True, overlap="allow")
        assert [schedule.id for schedule in await client.list_schedules()] == ["nightly", "often"]
        often = await client.describe_schedule("often")
        assert (often.spec.interval_ms, often.spec.jitter_ms, often.paused) == (300_000, 2_000, True)
        assert (often.action.input, often.overlap_policy) == (["a", 1], "allow")
        assert often.info.next_action_times == []
        await client.unpause_schedule("often", "ready")
        assert len((await client.describe_schedule("often")).info.next_action_times) > 1
        await client.pause_schedule("often", "stop")
        assert (await client.describe_schedule("often")).info.note == "stop"
        await client.update_schedule("often", spec="30s", paused=False)
        often = await client.describe_schedule("often")
        assert (often.spec.interval_ms, often.paused, often.action.type) == (30_000, False, "sweep")
        handle = await client.trigger_schedule("nightly")
        assert handle is not None
        info = await handle.describe()
        assert (info.type, info.input, info.schedule_id) == ("audit", {"full": True}, "nightly")
        assert await client.trigger_schedule("nightly") is None  # the run before is still open
        assert await client.trigger_schedule("nightly", overlap="allow") is not None
        await client.delete_schedule("often")
        await client.delete_schedule("often")
        with pytest.raises(CallFailed) as caught:
            await client.describe_schedule("often")
        assert caught.value.status == 404


async def test_everything_that_a_schedule_can_be_told() -> None:
    async with client_of_real_server() as (client, _):
        spec = ScheduleSpec(interval=3600, phase=timedelta(minutes=15), intervals=[Every(7200, 0), Every(5400)])
        action = StartWorkflow(
            "sweep", run_timeout=60, execution_timeout=90, memo={"team": "a"}, search_attributes={"Customer": "ada"}
        )
        made = await client.create_schedule(
            "full", spec, action, overlap="BufferAll", catchup_window=600, pause_on_failure=True, remaining_actions=3
        )
        assert (made.spec.phase_ms, [item.phase_ms for item in made.spec.intervals]) == (900_000, [0, None])
        assert (made.overlap_policy, made.catchup_window_ms, made.pause_on_failure) == ("buffer-all", 600_000, True)
        assert (made.action.memo, made.action.search_attributes) == ({"team": "a"}, {"Customer": "ada"})
        changed = await client.update_schedule("full", overlap="terminate-other", remaining_actions=2)
        assert (changed.overlap_policy, changed.remaining_actions, changed.pause_on_failure) == (
            "terminate-other",
            2,
            True,
        )
        info = (await client.describe_schedule("full")).info
        assert (info.state, info.remaining_actions, len(info.next_action_times)) == ("active", 2, 2)
        first = await client.trigger_schedule("full")
        assert first is not None
        assert await client.trigger_schedule("full") is not None
        info = (await client.describe_schedule("full")).info
        assert info.recent_actions[0].workflow_id == first.workflow_id
        assert (info.running_count, info.action_count) == (1, 2)
        for number in (0, -1):
            with pytest.raises(ValueError, match="remaining_actions"):
                await client.update_schedule("full", remaining_actions=number)


async def test_a_backfill_and_the_times_of_a_range() -> None:
    async with client_of_real_server() as (client, _):
        task = StartTask("audit", start_to_close=5, memo={"why": "late"})
        await client.create_schedule("nightly", "0 3 * * *", task, paused=True)
        start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 3, 12, tzinfo=UTC)
        times = [datetime(2026, 1, day, 3, tzinfo=UTC) for day in (1, 2, 3)]
        assert await client.schedule_times("nightly", start, end) == times
        assert await client.schedule_times(ScheduleSpec(cron=["0 3 * * *"]), start, end) == times
        assert await client.backfill_schedule("nightly", start, end, overlap="allow", request_id="r") == 3
        assert await client.backfill_schedule("nightly", start, end, overlap="allow", request_id="r") == 3
        info = (await client.describe_schedule("nightly")).info
        assert [run.schedule_time for run in info.recent_actions] == times
        assert (info.state, info.action_count) == ("paused", 3)
        with pytest.raises(ValueError, match="time zone"):
            await client.backfill_schedule("nightly", datetime(2026, 1, 1), end)
        with pytest.raises(CallFailed, match="before its start"):
            await client.schedule_times("nightly", end, start)


async def test_namespaces_are_apart() -> None:
    async with client_of_real_server() as (client, server):
        made = await client.register_namespace("billing", description="money", retention=timedelta(days=2))
        assert (made.name, made.description, made.retention) == ("billing", "money", 172_800)
        assert (await client.describe_namespace("billing")).description == "money"
        assert {namespace.name for namespace in await client.list_namespaces()} == {"default", "billing"}
        async with open_client(server.zap, namespace="billing") as other:
            await other.now("invoice")
            assert [info.type async for info in other.list()] == ["invoice"]
        assert [info async for info in client.list()] == []
        async with open_client(server.zap, namespace="nowhere") as stranger:
            with pytest.raises(CallFailed, match="not registered") as caught:
                await stranger.now("invoice")
            assert caught.value.status == 404


async def test_health_says_who_is_there() -> None:
    async with client_of_real_server() as (client, _):
        health = await client.health()
        assert (health.service, health.status, health.namespace) == ("tasks", "ok", "default")


async def test_a_list_that_is_left_early_leaves_nothing_behind() -> None:
    async with client_of_real_server() as (client, _):
        for _ in range(3):
            await client.now("a")
        async for info in client.list(page_size=1):
            assert info.type == "a"
            break
        gc.collect()  # a generator that is dropped half way must not complain
