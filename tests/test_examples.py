"""The examples: each in virtual time, and each as a newcomer runs it, against a server process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from examples import agent, approval, fan_out, nightly_report, poller, saga
from tests.helpers.running_server import RunningServer, running_server

from zaptasks import StartWorkflow, TaskError, TaskFailed, UpdateRejected, testing
from zaptasks.testing import Cancel, Outcome, explore, mock

EXAMPLES = Path(__file__).parent.parent / "examples"
DAY = 86_400
SAGA: list[Callable[..., Any]] = [saga.charge, saga.refund, saga.pack, saga.unpack, saga.ship]

OUTPUT = {
    "saga.py": ["tea is on its way", "refunded", "no order: nobody carries a piano"],
    "approval.py": ["wait for you", "approved by ada", "rejected: nobody decided in time"],
    "fan_out.py": ["1000 words in"],
    "poller.py": ["a letter in the letterbox, after 50 looks"],
    "agent.py": ["Let me look at the weather. Take an umbrella", "=> Take an umbrella: it rains in Berlin."],
    "nightly_report.py": ["due: ", "mail: 17 sales by"],
}
"""Of each program, what it says among other things."""


# --- in virtual time -------------------------------------------------------------------------------------------


async def test_an_order_is_undone_where_it_fails() -> None:
    async with testing.WorkflowEnvironment(workflows=[saga.order], activities=SAGA) as env:
        order = await env.client.start_workflow(saga.order, "tea", 450)
        assert await order.result() == "tea is on its way"
        order = await env.client.start_workflow(saga.order, "piano", 900_000)
        with pytest.raises(TaskFailed, match="nobody carries a piano"):
            await order.result()


def test_an_order_is_shipped_or_undone_whatever_happens_and_whenever_it_is_canceled() -> None:
    def holds(outcome: Outcome) -> bool:
        done = {call.name for call in outcome.calls}
        return outcome.error is None or ("charge" in done) <= ("refund" in done)

    for item in ("tea", "piano"):
        outcomes = explore(saga.order, item, 450, activities=SAGA, script=[Cancel("changed my mind")], check=holds)
        assert len({outcome.status for outcome in outcomes}) > 1


async def test_an_expense_is_approved_before_its_deadline_or_not_at_all() -> None:
    reminded = mock(approval.remind)
    async with testing.WorkflowEnvironment(workflows=[approval.Expense], activities=[reminded]) as env:
        expense = await env.client.start_workflow(approval.Expense, "bob", 4_200, 7 * DAY, DAY)
        await env.sleep(days=2.5)
        assert reminded.calls == [("the boss", 4_200)] * 2
        assert await expense.query(approval.Expense.state) == "undecided"
        with pytest.raises(UpdateRejected, match="their own expense"):
            await expense.update(approval.Expense.decide, "bob", True)
        assert await expense.update(approval.Expense.decide, "ada", True) == "approved by ada"
        assert await expense.result() == "approved by ada"

        late = await env.client.start_workflow(approval.Expense, "bob", 99_900, 7 * DAY, DAY)
        assert await late.result() == "rejected: nobody decided in time"
        assert env.now() == testing.START + timedelta(days=9.5)


async def test_a_thousand_items_are_worked_on_fifty_at_a_time() -> None:
    measured = mock(fan_out.measure, side_effect=fan_out.measure)
    async with testing.WorkflowEnvironment(workflows=[fan_out.LongestWord], activities=[measured]) as env:
        words = await env.client.start_workflow(fan_out.LongestWord, fan_out.WORDS)
        assert await words.result() == max(fan_out.WORDS, key=len)
        assert len(measured.calls) == 1_000
        open_now = most_open = 0
        async for event in words.history():
            open_now += (event.event_type == "ACTIVITY_TASK_SCHEDULED") - (
                event.event_type == "ACTIVITY_TASK_COMPLETED"
            )
            most_open = max(most_open, open_now)
        assert most_open == fan_out.AT_A_TIME


async def test_a_poller_goes_on_in_new_runs_for_as_long_as_it_takes() -> None:
    async with testing.WorkflowEnvironment(workflows=[poller.poll], activities=[poller.look]) as env:
        first = await env.client.start_workflow(poller.poll, "the letterbox", DAY, 0)
        assert await first.result() == "a letter in the letterbox, after 50 looks"
        assert env.now() == testing.START + timedelta(days=49)
        assert (await env.client.get_handle(first.workflow_id).describe()).run_id != first.run_id


async def test_the_words_of_an_agent_are_seen_as_they_come() -> None:
    async with testing.WorkflowEnvironment(workflows=[agent.agent], activities=[agent.ask_model, agent.weather]) as env:
        handle = await env.client.start_workflow(agent.agent, "What shall I wear?")
        words = [item.value async for item in handle.output(str)]
        assert await handle.result() == "Take an umbrella: it rains in Berlin."
    assert " ".join(words) == "Let me look at the weather. Take an umbrella: it rains in Berlin."


async def test_an_agent_is_told_what_a_tool_cannot_do_and_does_not_ask_for_ever() -> None:
    model = mock(agent.ask_model, side_effect=[agent.Reply("", tool=name) for name in ("weather", "hammer") * 5])
    weather = mock(agent.weather, raises=TaskError("the sky is away", non_retryable=True))
    async with testing.WorkflowEnvironment(workflows=[agent.agent], activities=[model, weather]) as env:
        with pytest.raises(TaskFailed, match="no answer after 10 turns"):
            await env.client.execute_workflow(agent.agent, "What shall I wear?")
    told = [message.text for message in model.calls[-1][0] if message.role == "tool"]
    assert told[:2] == ["failed: the sky is away", "there is no tool 'hammer', only: weather"]


async def test_there_is_one_report_a_night_also_when_the_clocks_change() -> None:
    mailed = mock(nightly_report.mail)
    before = datetime(2026, 3, 28, tzinfo=UTC)  # on the 29th three o'clock is an hour earlier
    async with testing.WorkflowEnvironment(
        workflows=[nightly_report.nightly_report], activities=[nightly_report.count_sales, mailed], start=before
    ) as env:
        action = StartWorkflow("nightly_report")
        await env.client.create_schedule("nightly-report", nightly_report.EVERY_NIGHT, action)
        await env.sleep(days=3)
    assert mailed.calls == [(f"17 sales by 2026-03-{day}",) for day in (28, 29, 30)]


# --- as they are run -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(data=tmp_path_factory.mktemp("data")) as running:
        yield running


def test_every_example_is_run_and_stands_in_the_table() -> None:
    files = {path.name for path in EXAMPLES.glob("*.py")}
    assert files == OUTPUT.keys()
    table = (EXAMPLES / "README.md").read_text()
    assert all(f"[{name}]({name})" in table for name in files)


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTPUT)
def test_an_example_runs_by_one_command(server: RunningServer, name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        env={**os.environ, "TASKS_ZAP": server.zap},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line in OUTPUT[name]:
        assert line in done.stdout
