"""`testing.WorkflowEnvironment`: the real system in virtual time."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
import trio
from trio.testing import MockClock

from zaptasks import (
    Compression,
    DataConverter,
    RetryPolicy,
    ScheduleSpec,
    StartWorkflow,
    TaskError,
    TaskFailed,
    UpdateRejected,
    WorkflowContext,
    open_worker,
    testing,
    workflow,
)
from zaptasks.testing import skipping

DAY = 86_400


@dataclass
class Receipt:
    number: int


async def charge(item: str, cents: int) -> Receipt:
    return Receipt(cents)


def count_slowly(seconds: float) -> str:
    time.sleep(seconds)
    return "counted"


async def hang() -> str:
    await trio.Event().wait()
    return "never"


@workflow.defn
class Order:
    def __init__(self) -> None:
        self.approved_by = ""

    @workflow.run
    async def run(self, item: str, cents: int) -> str:
        try:
            await workflow.wait_condition(lambda: bool(self.approved_by), timeout=100 * DAY)
        except workflow.TooSlowError:
            return "nobody approved it"
        receipt = await workflow.execute_activity(charge, item, cents, start_to_close=30)
        return f"{item}, receipt {receipt.number}, approved by {self.approved_by}"

    @workflow.signal
    def approve(self, who: str) -> None:
        self.approved_by = who

    @workflow.query
    def state(self) -> str:
        return "approved" if self.approved_by else "waits"

    @workflow.update
    async def rename(self, who: str) -> str:
        await workflow.sleep(DAY)
        old, self.approved_by = self.approved_by, who
        return old

    @rename.validator
    def _check(self, who: str) -> None:
        if not who:
            raise ValueError("nobody")


@workflow.defn
async def nap(days: float) -> str:
    await workflow.sleep(days * DAY)
    return "rested"


@workflow.defn
async def parent(days: float) -> str:
    return await workflow.execute_child_workflow(nap, days)


@workflow.defn
async def count_slowly_first(seconds: float, start_to_close: float) -> str:
    return await workflow.execute_activity(count_slowly, seconds, start_to_close=start_to_close)


@workflow.defn
async def hang_first(attempts: int) -> str:
    retry = RetryPolicy(maximum_attempts=attempts)
    return await workflow.execute_activity(hang, start_to_close=60, retry_policy=retry)


@workflow.defn
async def waits_for_ever() -> None:
    async with workflow.open_nursery() as nursery:
        nursery.start_soon(workflow.sleep_forever)
        await workflow.wait_signal("go")


@workflow.defn
async def ticks_for_ever() -> None:
    while True:
        await workflow.sleep(60)


@workflow.defn
async def poll(left: int) -> str:
    await workflow.sleep(DAY)
    if left:
        workflow.continue_as_new(left - 1)
    return "polled"


# --- time ------------------------------------------------------------------------------------------------------


async def test_a_hundred_days_pass_in_no_time_and_to_the_millisecond() -> None:
    began = time.monotonic()
    async with testing.WorkflowEnvironment(workflows=[Order]) as env:
        handle = await env.client.start_workflow(Order, "tea", 450)
        assert await handle.result() == "nobody approved it"
        assert env.now() == testing.START + timedelta(days=100)
    assert time.monotonic() - began < 5


async def test_time_stands_still_while_the_test_makes_calls() -> None:
    async with testing.WorkflowEnvironment(workflows=[Order], activities=[charge]) as env:
        handle = await env.client.start_workflow(Order, "tea", 450)
        for _ in range(20):
            assert await handle.query("state") == "waits"
        await handle.signal("approve", "ada")
        assert await handle.result() == "tea, receipt 450, approved by ada"
        assert env.now() == testing.START


async def test_a_sleep_ends_after_what_is_due_in_it_and_before_what_is_due_later() -> None:
    called = testing.mock(charge, returns=Receipt(1))

    @workflow.defn
    async def daily() -> None:
        while True:
            await workflow.sleep(DAY)
            await workflow.execute_activity(charge, "tea", 1, start_to_close=30)

    async with testing.WorkflowEnvironment(workflows=[daily], activities=[called]) as env:
        await env.client.start_workflow(daily)
        await env.sleep(days=2, hours=23, minutes=59)
        assert called.calls == [("tea", 1)] * 2
        await env.sleep(timedelta(minutes=1))
        assert called.calls == [("tea", 1)] * 3, "an activity that the timer brings is over when the sleep is"
        assert env.now() == testing.START + timedelta(days=3)


async def test_an_activity_in_a_thread_holds_time() -> None:
    async with testing.WorkflowEnvironment(workflows=[count_slowly_first], activities=[count_slowly]) as env:
        handle = await env.client.start_workflow(count_slowly_first, 0.1, 30.0)
        await env.sleep(days=1)
        assert await handle.result() == "counted"
        history = [event async for event in handle.history()]
        assert "ACTIVITY_TASK_TIMED_OUT" not in {event.event_type for event in history}
        assert history[-1].event_time == testing.START


async def test_advance_passes_time_over_an_activity_that_hangs() -> None:
    async with testing.WorkflowEnvironment(workflows=[hang_first], activities=[hang]) as env:
        handle = await env.client.start_workflow(hang_first, 2)
        await env.advance(minutes=5)
        with pytest.raises(TaskFailed, match="start-to-close"):
            await handle.result()


async def test_time_that_is_held_for_long_is_told_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(skipping, "HELD_SECONDS", 0.05)
    async with testing.WorkflowEnvironment(workflows=[hang_first], activities=[hang]) as env:
        await env.client.start_workflow(hang_first, 1)
        with trio.move_on_after(1), caplog.at_level(logging.WARNING, "zaptasks.testing"):
            while not caplog.messages:  # noqa: ASYNC110  the log has no event
                await trio.sleep(0.02)
    assert "time has stood still" in caplog.text
    assert "'hang'" in caplog.text


async def test_an_activity_that_sleeps_takes_no_time_under_a_clock_that_jumps(autojump_clock: MockClock) -> None:
    async def slow() -> str:
        await trio.sleep(3_600)
        return "slept"

    @workflow.defn
    async def waits_for_it() -> str:
        return await workflow.execute_activity(slow, start_to_close=1)

    async with testing.WorkflowEnvironment(workflows=[waits_for_it], activities=[slow]) as env:
        assert await env.client.execute_workflow(waits_for_it) == "slept"
        assert env.now() == testing.START, "what is worked on holds virtual time, whatever trio's clock does"


async def test_without_skipping_only_sleep_passes_time() -> None:
    async with testing.WorkflowEnvironment(workflows=[nap], skip_time=False) as env:
        handle = await env.client.start_workflow(nap, 1)
        with trio.move_on_after(0.1) as scope:
            await handle.result()
        assert scope.cancelled_caught
        await env.sleep(days=1)
        assert await handle.result() == "rested"
        env.skips_time = True
        assert await (await env.client.start_workflow(nap, 1)).result() == "rested"


async def test_it_begins_when_it_is_told_to() -> None:
    start = datetime(2027, 3, 28, tzinfo=UTC)
    async with testing.WorkflowEnvironment(start=start) as env:
        assert env.now() == start
    with pytest.raises(ValueError, match="time zone"):
        testing.WorkflowEnvironment(start=datetime(2027, 3, 28))
    async with testing.WorkflowEnvironment() as env:
        for span in (-1, float("nan"), 1e300):
            with pytest.raises(ValueError, match="the time to pass"):
                await env.sleep(span)


async def test_a_repetition_gives_the_same_history_word_for_word() -> None:
    async def once() -> list[object]:
        async with testing.WorkflowEnvironment(workflows=[Order], activities=[charge]) as env:
            handle = await env.client.start_workflow(Order, "tea", 450, id="order-1")
            await env.sleep(hours=1)
            await handle.signal("approve", "ada")
            await handle.result()
            return [event async for event in handle.history()]

    assert await once() == await once()


# --- the real engine -------------------------------------------------------------------------------------------


async def test_retries_with_a_long_backoff() -> None:
    flaky = testing.mock(charge, side_effect=[OSError("away"), OSError("away"), Receipt(3)])

    @workflow.defn
    async def patient() -> int:
        retry = RetryPolicy(initial_interval=DAY, backoff_coefficient=10)
        return (await workflow.execute_activity(charge, "tea", 1, start_to_close=30, retry_policy=retry)).number

    async with testing.WorkflowEnvironment(workflows=[patient], activities=[flaky]) as env:
        assert await (await env.client.start_workflow(patient)).result() == 3
        assert flaky.calls == [("tea", 1)] * 3
        assert env.now() >= testing.START + timedelta(days=10)


async def test_children_updates_and_runs_that_continue() -> None:
    async with testing.WorkflowEnvironment(workflows=[parent, nap, Order, poll], activities=[charge]) as env:
        assert await (await env.client.start_workflow(parent, 30.0)).result() == "rested"
        assert await (await env.client.start_workflow(poll, 30)).result() == "polled"
        order = await env.client.start_workflow(Order, "tea", 450)
        with pytest.raises(UpdateRejected, match="nobody"):
            await order.update("rename", "")
        assert await order.update("rename", "bob") == ""
        assert await order.result() == "tea, receipt 450, approved by bob"


async def test_a_schedule_fires_at_its_times() -> None:
    called = testing.mock("report")

    @workflow.defn
    async def nightly() -> None:
        await workflow.execute_activity("report", workflow.now().isoformat(), start_to_close=30)

    async with testing.WorkflowEnvironment(workflows=[nightly], activities=[called]) as env:
        spec = ScheduleSpec.parse("0 3 * * *")
        await env.client.create_schedule("nightly", spec, StartWorkflow("nightly"))
        await env.sleep(days=3)
    assert [call[0] for call in called.calls] == [f"2030-01-0{day}T03:00:00+00:00" for day in (1, 2, 3)]


async def test_one_shot_tasks_and_workflows_of_the_plain_kind() -> None:
    async def order(ctx: WorkflowContext, total: int) -> object:
        return await ctx.execute_activity(charge, "tea", total, start_to_close=30)

    async with testing.WorkflowEnvironment(tasks=[count_slowly], activities=[charge], workflows=[order]) as env:
        assert await (await env.client.now("count_slowly", 0)).result() == "counted"
        assert await (await env.client.start_workflow(order, 5)).result(Receipt) == Receipt(5)


async def test_another_queue_has_a_worker_of_its_own_and_its_work_holds_time_too() -> None:
    @workflow.defn
    async def elsewhere() -> str:
        return await workflow.execute_activity(count_slowly, 0.05, start_to_close=1, task_queue="big")

    async with (
        testing.WorkflowEnvironment(workflows=[elsewhere]) as env,
        open_worker(env.client, "big", activities=[count_slowly]),
    ):
        handle = await env.client.start_workflow(elsewhere)
        await env.sleep(days=1)
        assert await handle.result() == "counted"


async def test_the_converter_is_used_throughout() -> None:
    converter = DataConverter(codecs=[Compression(bytes_min=1)])
    async with testing.WorkflowEnvironment(workflows=[nap], converter=converter) as env:
        assert await (await env.client.start_workflow(nap, 1)).result() == "rested"


# --- what never ends -------------------------------------------------------------------------------------------


async def test_a_wait_in_vain_says_what_it_hangs_on_and_where_the_code_waits() -> None:
    async with testing.WorkflowEnvironment(workflows=[waits_for_ever]) as env:
        handle = await env.client.start_workflow(waits_for_ever, id="w")
        with pytest.raises(testing.Stuck) as stuck:
            await handle.result()
        text = str(stuck.value)
        assert "w never ends: nothing is due" in text
        assert "it waits for a signal or an update" in text
        assert "in waits_for_ever" in text
        assert __file__ in text
        await handle.signal("go")  # it is as it was: the test may go on with it


async def test_work_that_nobody_serves_is_told() -> None:
    async with testing.WorkflowEnvironment() as env:
        handle = await env.client.now("nobody.does.this", schedule_to_close=None)
        with pytest.raises(testing.Stuck, match="no worker"):
            await handle.result()


async def test_an_update_that_never_ends_is_told() -> None:
    @workflow.defn
    class Stubborn:
        @workflow.run
        async def run(self) -> None:
            await workflow.sleep_forever()

        @workflow.update
        async def wait(self) -> None:
            await workflow.sleep_forever()

    async with testing.WorkflowEnvironment(workflows=[Stubborn]) as env:
        handle = await env.client.start_workflow(Stubborn)
        with pytest.raises(testing.Stuck, match="update 'wait'"):
            await handle.update("wait")


async def test_what_repeats_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skipping, "SKIPS_MAX", 50)
    async with testing.WorkflowEnvironment(workflows=[ticks_for_ever]) as env:
        handle = await env.client.start_workflow(ticks_for_ever)
        with pytest.raises(testing.Stuck, match="skipped 50 times"):
            await handle.result()


async def test_code_that_cannot_go_on_is_given_up() -> None:
    @workflow.defn
    async def sleeps_wrongly() -> None:
        await trio.sleep(1)

    async with testing.WorkflowEnvironment(workflows=[sleeps_wrongly]) as env:
        handle = await env.client.start_workflow(sleeps_wrongly)
        with pytest.raises(testing.Stuck, match=r"3 times in a row[\s\S]*cannot await something of trio"):
            await handle.result()


async def test_what_the_test_raises_comes_out_as_it_is() -> None:
    with pytest.raises(TaskError, match="mine"):  # noqa: PT012  the block is what is tested
        async with testing.WorkflowEnvironment(workflows=[hang_first], activities=[hang]) as env:
            await env.client.start_workflow(hang_first, 1)
            raise TaskError("mine")


# --- without trio ----------------------------------------------------------------------------------------------


def test_a_plain_test_has_it_with_with() -> None:
    with testing.WorkflowEnvironment(workflows=[Order], activities=[charge]) as env:
        order = env.client.start_workflow(Order, "tea", 450)
        time.sleep(0.05)
        assert env.now() == testing.START, "nothing passes between two calls"
        env.sleep(days=1)
        assert env.now() == testing.START + timedelta(days=1)
        order.signal(Order.approve, "ada")
        assert order.result() == "tea, receipt 450, approved by ada"
        order = env.client.start_workflow(Order, "tea", 450)
        assert order.update(Order.rename, "bob") == ""
        assert order.result() == "tea, receipt 450, approved by bob"
        assert env.client.execute_workflow(Order, "tea", 450) == "nobody approved it"
        assert len(list(env.client.list())) == 3
    assert "zaptasks-testing" not in {thread.name for thread in threading.enumerate()}


def test_a_plain_test_is_told_what_it_waits_for_in_vain() -> None:
    with testing.WorkflowEnvironment(workflows=[waits_for_ever, hang_first], activities=[hang]) as env:
        with pytest.raises(testing.Stuck, match="in waits_for_ever"):
            env.client.execute_workflow(waits_for_ever)
        handle = env.client.start_workflow(hang_first, 1)
        with pytest.raises(TimeoutError, match=r"within 0\.05 seconds"):
            handle.result(timeout=0.05)
        env.advance(minutes=2)
        with pytest.raises(TaskFailed, match="start-to-close"):
            handle.result()


def test_what_goes_wrong_in_a_plain_test_comes_out_as_it_is() -> None:
    with (  # noqa: PT012  the block is what is tested
        pytest.raises(TaskError, match="mine"),
        testing.WorkflowEnvironment(workflows=[hang_first], activities=[hang]) as env,
    ):
        env.client.start_workflow(hang_first, 1)
        raise TaskError("mine")
    with pytest.raises(TypeError, match="is one function or class"), testing.WorkflowEnvironment(workflows=hang_first):  # type: ignore[arg-type]
        pass


def test_under_asyncio_it_says_what_to_write() -> None:
    async def main() -> None:
        async with testing.WorkflowEnvironment():
            pass

    with pytest.raises(RuntimeError, match="in a plain test write `with`"):
        asyncio.run(main())


def test_importing_the_sdk_does_not_import_the_server() -> None:
    import subprocess
    import sys

    program = "import sys, zaptasks, zaptasks_pytest; print([m for m in sys.modules if m.startswith('zapserver')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
