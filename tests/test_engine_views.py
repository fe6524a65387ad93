"""What the engine tells those who wait for an end, and those who look."""

from __future__ import annotations

import pytest
from tests.helpers.engine_driver import HOUR_MS, START_MS, Driver, failure, value

from zapserver.engine import Limits
from zapserver.engine import commands as c
from zapserver.engine.commands import Status
from zapserver.engine.effects import Closed
from zapserver.engine.errors import Conflict, Invalid, LimitReached, NotFound
from zapserver.engine.retry import RetryPolicy
from zapserver.engine.views import LOOKED_AT_MAX

FEW = RetryPolicy(initial_interval_ms=1_000, maximum_interval_ms=4_000, maximum_attempts=3)
ENDLESS = RetryPolicy(initial_interval_ms=1, maximum_interval_ms=1, maximum_attempts=0)


# --- who is told ---------------------------------------------------------------------------------------


def test_everyone_who_waits_is_told_once() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit()
    assert d.wait(started, "a", peer=8) is False
    assert d.wait(started, "b", peer=9) is False
    d.complete(d.task(), 42)
    for waiter in ("a", "b"):
        (told,) = d.told(waiter)
        assert isinstance(told, Closed)
        assert (told.status, value(told.result), told.run_id) == (Status.COMPLETED, 42, started.run_id)


def test_who_asks_too_late_is_told_at_once() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit(retry=RetryPolicy(maximum_attempts=1))
    d.fail(d.task(), failure("no funds", "Payment"))
    assert d.wait(started) is True
    (told,) = d.told("waiter")
    assert isinstance(told, Closed)
    assert told.status is Status.FAILED
    assert b"no funds" in bytes(told.failure or b"")


def test_who_gave_up_or_went_away_is_not_told() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit()
    d.wait(started, "gave up", peer=8)
    d.wait(started, "stays", peer=8)
    d.wait(started, "went away", peer=9)
    d.step(c.AbandonWait(waiter="gave up", peer=8))
    d.step(c.AbandonWait(waiter="unknown", peer=8))
    d.lose(9)
    d.complete(d.task())
    assert [len(d.told(waiter)) for waiter in ("gave up", "stays", "went away")] == [0, 1, 0]


def test_an_abandon_of_another_peer_changes_nothing() -> None:
    d = Driver()
    started = d.submit()
    d.wait(started, "mine", peer=8)
    d.step(c.AbandonWait(waiter="mine", peer=9))
    d.cancel(started)
    assert len(d.told("mine")) == 1


def test_a_waiter_waits_for_one_thing_at_a_time() -> None:
    """A peer may reuse the number of a call that is not answered yet; it gets a refusal, not a second answer."""
    d = Driver()
    d.subscribe(1)
    first, second = d.submit(), d.submit()
    d.wait(first, "w")
    for started in (first, second):
        d.refused(c.AwaitExecution(workflow_id=started.workflow_id, waiter="w", peer=9), Conflict)
    d.complete(d.tasks()[1])
    d.complete(d.tasks()[0])
    assert len(d.told("w")) == 1


def test_waits_of_one_connection_are_bounded() -> None:
    d = Driver(limits=Limits(waits_per_peer_max=1))
    started = d.submit()
    d.wait(started, "a")
    command = c.AwaitExecution(workflow_id=started.workflow_id, waiter="b", peer=9)
    assert "waits for 1 answers already" in d.refused(command, LimitReached)
    d.refused(c.AwaitExecution(workflow_id="ghost", waiter="b", peer=7), NotFound)
    d.wait(started, "b", peer=8)


# --- looking -------------------------------------------------------------------------------------------


def test_executions_are_listed_newest_first_in_pages() -> None:
    d = Driver()
    runs = [d.submit("a" if number % 2 else "b").run_id for number in range(10)]
    seen: list[str] = []
    after = ""
    while True:
        page, after = d.views.executions(lambda execution: execution.type == "b", after=after, limit=2)
        assert len(page) <= 2
        seen += [execution.run_id for execution in page]
        if not after:
            break
    assert seen == runs[::2][::-1]
    for after in ("gone", "open:", "closed:1", "open:1:2", "open:٣"):
        with pytest.raises(Invalid, match="is not where a page ends"):
            d.views.executions(lambda _: True, after=after)


def test_closed_executions_are_listed_behind_the_open_ones_the_latest_end_first() -> None:
    d = Driver()
    d.subscribe(1)
    runs = [d.submit(retry=RetryPolicy(maximum_attempts=1)) for _ in range(6)]
    first, second, third = d.tasks(1)[:3]
    for ms, task in ((5, second), (10, first)):
        d.jump(ms)
        d.complete(task)
    d.jump(1)
    d.fail(third)
    listed: list[str] = []
    after = ""
    while True:
        page, after = d.views.executions(lambda _: True, after=after, limit=1)
        listed += [execution.run_id for execution in page]
        if not after:
            break
    assert listed == [runs[at].run_id for at in (5, 4, 3, 2, 0, 1)]


def test_a_page_looks_at_a_bounded_number_and_goes_on_behind_them() -> None:
    d = Driver(watch=False)
    wanted = d.submit("needle")
    for _ in range(LOOKED_AT_MAX):
        d.submit("hay")
    page, after = d.views.executions(lambda execution: execution.type == "needle")
    assert (page, bool(after)) == ([], True)
    page, after = d.views.executions(lambda execution: execution.type == "needle", after=after)
    assert ([execution.run_id for execution in page], after) == ([wanted.run_id], "")


def test_history_is_paged_forwards_and_backwards_with_ids_from_one() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit()
    d.complete(d.task())
    length = len(d.events(started))
    assert length == 5
    page, cursor = d.views.history(started.workflow_id, limit=2)
    assert ([event.event_id for event in page], cursor) == ([1, 2], 2)
    page, cursor = d.views.history(started.workflow_id, after=cursor, limit=3)
    assert ([event.event_id for event in page], cursor) == ([3, 4, 5], 5)
    page, cursor = d.views.history(started.workflow_id, after=cursor, limit=3)
    assert (page, cursor) == ([], 0)
    page, cursor = d.views.history(started.workflow_id, limit=3, reverse=True)
    assert ([event.event_id for event in page], cursor) == ([5, 4, 3], 3)
    page, cursor = d.views.history(started.workflow_id, after=cursor, limit=3, reverse=True)
    assert ([event.event_id for event in page], cursor) == ([2, 1], 0)
    assert d.views.history(started.workflow_id, after=1, limit=3, reverse=True) == ([], 0)
    for odd in (-5, 99):
        assert isinstance(d.views.history(started.workflow_id, after=odd), tuple)
    assert d.views.history(started.workflow_id, limit=0) == ([], 0)
    with pytest.raises(NotFound):
        d.views.history("ghost")


def test_explain_says_what_an_open_task_waits_for() -> None:
    d = Driver()
    started = d.submit(retry=FEW)

    def reason() -> str:
        (waiting,) = d.views.explain(started.workflow_id)
        return waiting.reason

    assert reason() == "no worker is subscribed to task queue 'default' for activities and tasks"
    d.subscribe(1, types=["other"])
    assert reason() == "none of the 1 worker(s) on task queue 'default' serves 'email'"
    d.subscribe(2, slots=0)
    assert reason() == "all 0 slot(s) of the 1 worker(s) on task queue 'default' that serve it are taken"
    d.subscribe(3)
    assert reason() == "the worker 'worker 3' runs attempt 1"
    d.cancel(started)
    assert reason() == "the worker 'worker 3' runs attempt 1 and was asked to stop"
    d.complete(d.task())
    assert d.views.explain(started.workflow_id) == []
    waits = d.submit(retry=FEW)
    d.fail(d.task())
    (waiting,) = d.views.explain(waits.workflow_id)
    assert (waiting.reason, waiting.until_ms) == ("attempt 1 failed and the next one backs off", d.now_ms + 1_000)


def test_explain_says_what_a_workflow_waits_for() -> None:
    d = Driver()
    started = d.start(timeouts=c.WorkflowTimeouts(run_ms=1_000))

    def reasons() -> list[str]:
        return [waiting.reason for waiting in d.views.explain(started.workflow_id)]

    assert reasons() == ["no worker is subscribed to task queue 'default' for workflows"]
    d.subscribe_workflows(1)
    assert reasons() == ["the worker 'worker 1' runs the workflow"]
    d.call(d.run())
    assert reasons() == [
        "the worker 'worker 1' runs the workflow",
        "no worker is subscribed to task queue 'default' for activities and tasks",
    ]
    d.start(workflow_id="later", cron="0 * * * *")
    (waiting,) = d.views.explain("later")
    assert (waiting.reason, waiting.until_ms) == ("its start is due later", START_MS + HOUR_MS)


def test_counts_count() -> None:
    d = Driver()
    assert set(d.views.counts().values()) == {0}
    d.submit()
    d.submit()
    d.start()
    assert d.views.counts() == {
        "open_executions": 3,
        "closed_executions": 0,
        "dead_letters": 0,
        "schedules": 0,
        "timers": 0,
        "waiting_workflow_tasks": 1,
        "waiting_activity_tasks": 2,
        "peers": 0,
    }
