"""Workflows that replay, and a server that starts again from what was kept."""

from __future__ import annotations

import pytest
from tests.helpers.engine_driver import MINUTE_MS, START_MS, Driver, payload, value

from zapserver.engine import Limits, wakeups
from zapserver.engine import commands as c
from zapserver.engine.commands import Status

TIMER = c.StartTimerCommand(id="t", fire_after_ms=MINUTE_MS)
ACTIVITY = c.ScheduleActivityCommand(id="a", type="charge", input=payload([7]))
CHILD = c.StartChildCommand(id="k", type="Kid", workflow_id="kid")


def a_run(*commands: c.TaskCommand) -> tuple[Driver, c.Started]:
    d = Driver(limits=Limits(closed_executions_max=100))
    d.subscribe_replaying(1, types=["Order"])
    d.subscribe(5)
    started = d.start()
    d.answer(d.run(), *commands)
    return d, started


def test_what_a_run_waits_for_outlives_the_server() -> None:
    d, started = a_run(TIMER, ACTIVITY, CHILD)
    d.answer(d.run())
    d.advance(MINUTE_MS // 2)
    d.restart()
    assert len(d.views.explain(started.workflow_id)) == 3
    d.subscribe_replaying(2)
    d.subscribe(6)
    d.complete(d.task(6), "paid")
    run = d.runs(2)[-1]
    assert (run.run_id, run.previous_event_id) == (started.run_id, 0), "the new worker is a stranger"
    closed = run.history[-1].attributes
    assert (closed["commandId"], closed["scheduledEventId"], value(closed["result"])) == ("a", 4, "paid")
    d.answer(run)
    kid = next(run for run in d.runs(2) if run.workflow_id == "kid")
    d.finish(kid, "grown")
    assert d.run().history[-1].attributes["commandId"] == "k"
    d.answer(d.run())
    d.advance(MINUTE_MS // 2)
    assert d.run().history[-1].type.value == "TIMER_FIRED"
    assert d.now_ms == START_MS + MINUTE_MS


def test_news_that_nobody_saw_are_delivered_after_a_restart() -> None:
    d, started = a_run(TIMER)
    d.lose(1)
    d.signal(started)
    d.restart()
    d.subscribe_replaying(2)
    assert d.run(2).history[-1].type.value == "WORKFLOW_EXECUTION_SIGNALED"
    d.finish(d.run(2))
    assert d.status(started) is Status.COMPLETED


def test_a_task_that_was_out_goes_to_another_and_nobody_is_blamed() -> None:
    d, started = a_run()
    d.signal(started)
    d.restart()
    d.subscribe_replaying(2)
    assert d.run().peer == 2
    assert d.execution(started).task_failures == 0


def test_a_worker_that_still_stands_answers_under_its_old_token() -> None:
    d, started = a_run()
    d.signal(started)
    run = d.run()
    d.restart([1, 5])
    d.answer(run, TIMER)
    assert list(d.execution(started).timers) == ["t"]
    d.signal(started)
    assert d.run().peer == 1


def test_a_wait_after_failures_goes_on_where_it_was() -> None:
    d, started = a_run()
    d.signal(started)
    for _ in range(wakeups.IMMEDIATE_RETRIES + 1):
        d.step(c.FailWorkflowTask(token=d.run().task_token, reason="broken"))
    d.restart()
    (waits,) = d.views.explain(started.workflow_id)
    assert "broken" in waits.reason
    d.subscribe_replaying(2)
    assert d.runs(2) == []
    d.advance(wakeups.RETRY_MS_MIN)
    assert d.run().peer == 2


def test_recorded_updates_and_signal_ids_are_known_after_a_restart() -> None:
    d, started = a_run()
    d.update(started, "first", id="u")
    d.answer(d.run(), c.AcceptUpdateCommand(update_id="u"))
    d.signal(started, request_id="r")
    d.restart()
    length = d.execution(started).history_length
    d.signal(started, request_id="r")
    assert d.execution(started).history_length == length
    d.subscribe_replaying(2)
    d.answer(d.run(), c.CompleteUpdateCommand(update_id="u", result=payload(7)))
    d.update(started, "again", id="u")
    (told,) = d.told("again")
    assert value(getattr(told, "result", None)) == 7


@pytest.mark.parametrize("live", [(), (1,)])
def test_an_end_after_a_restart_reaches_the_children(live: tuple[int, ...]) -> None:
    d, started = a_run(CHILD)
    d.restart(live)
    d.terminate(started)
    kid = d.views.execution("kid")
    assert kid.status is Status.TERMINATED
    assert kid.parent is not None
