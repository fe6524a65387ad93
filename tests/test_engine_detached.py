"""Activities whose code is done and which whoever holds their token completes."""

from __future__ import annotations

import pytest
from tests.helpers.engine_driver import HOUR_MS, MINUTE_MS, Driver, failure, value

from zapserver.engine import commands as c
from zapserver.engine.commands import ActivityTimeouts, Status
from zapserver.engine.effects import DeliverActivityTask
from zapserver.engine.errors import NotFound, StaleToken


def detached(
    *, timeouts: ActivityTimeouts | None = None, slots: int = 1
) -> tuple[Driver, c.Started, DeliverActivityTask]:
    d = Driver()
    d.subscribe(1, slots=slots)
    started = d.submit(timeouts=timeouts)
    task = d.task()
    d.detach(task)
    return d, started, task


def test_the_slot_is_free_and_the_next_task_comes() -> None:
    d = Driver()
    d.subscribe(1, slots=1)
    first, second = d.submit(), d.submit()
    task = d.task()
    d.detach(task)
    assert [each.run_id for each in d.tasks()] == [first.run_id, second.run_id]
    d.detach(task)  # a worker that did not hear the answer
    d.complete(task, "later")
    assert (d.status(first), value(d.execution(first).result)) == (Status.COMPLETED, "later")
    d.complete(d.task())
    assert d.status(second) is Status.COMPLETED


def test_the_end_of_its_worker_means_nothing_to_it() -> None:
    d, started, task = detached()
    d.lose(1)
    d.subscribe(2)
    assert len(d.tasks()) == 1
    assert not d.heartbeat(task, 7)
    d.fail(task)
    d.advance(MINUTE_MS)
    again = d.task(2)
    assert (again.attempt, value(again.heartbeat_details)) == (2, 7)
    assert "attempt 1" in d.refused(c.CompleteActivity(token=task.task_token, result=None), StaleToken)
    d.complete(again)
    assert d.status(started) is Status.COMPLETED


def test_it_survives_a_restart_and_is_not_put_in_line_again() -> None:
    d, started, task = detached()
    d.restart()
    d.subscribe(2)
    assert d.tasks(2) == []
    assert "ACTIVITY_HANDED_BACK" not in d.history(started)
    d.complete(task, "later")
    assert value(d.execution(started).result) == "later"


def test_it_survives_a_failure_of_the_store() -> None:
    d, started, task = detached()
    d.restart(live=[1])
    assert len(d.tasks()) == 1
    d.submit("other")  # the slot is free
    assert len(d.tasks()) == 2
    d.complete(task)
    assert d.status(started) is Status.COMPLETED


def test_its_timeouts_end_it_and_no_worker_is_told() -> None:
    d, _, task = detached(timeouts=ActivityTimeouts(start_to_close_ms=HOUR_MS, heartbeat_ms=MINUTE_MS))
    for _ in range(3):
        d.advance(MINUTE_MS - 1)
        d.heartbeat(task)
    assert len(d.tasks()) == 1
    d.advance(MINUTE_MS + 1_000)
    assert d.task().attempt == 2
    assert d.stops() == []
    d.refused(c.HeartbeatActivity(token=task.task_token, details=None), StaleToken)


def test_its_holder_learns_of_a_cancel_by_heartbeat_and_says_when_it_is_done() -> None:
    d, started, task = detached()
    d.cancel(started)
    assert d.stops() == []
    assert d.status(started) is Status.CANCELING or d.status(started) is Status.RUNNING
    assert d.heartbeat(task)
    d.fail(task, failure("enough", "CanceledError", non_retryable=True))
    assert d.status(started) is Status.CANCELED


def test_no_worker_is_told_to_stop_when_its_execution_ends() -> None:
    d, started, task = detached()
    d.terminate(started)
    assert d.stops() == []
    d.refused(c.HeartbeatActivity(token=task.task_token, details=None), NotFound)


def test_a_cancel_may_come_too_late_for_it() -> None:
    d, started, task = detached()
    d.cancel(started)
    d.complete(task)
    assert d.status(started) is Status.COMPLETED


def test_explain_says_what_it_waits_for() -> None:
    d, started, _ = detached()
    [waiting] = d.views.explain(started.workflow_id)
    assert waiting.reason == "attempt 1 waits for whoever holds its token"
    d.cancel(started)
    [waiting] = d.views.explain(started.workflow_id)
    assert waiting.reason == "attempt 1 waits for whoever holds its token and was asked to stop"


@pytest.mark.parametrize("token", ["", "act", "act|none|1|x", "wf|a|b|1|x"])
def test_a_token_of_nothing_is_refused(token: str) -> None:
    Driver().refused(c.DetachTask(token=token), NotFound)


def test_a_token_that_is_over_is_refused() -> None:
    d = Driver()
    d.subscribe(1)
    d.submit()
    task = d.task()
    d.fail(task)
    d.refused(c.DetachTask(token=task.task_token), StaleToken)
    d.advance(HOUR_MS)
    d.complete(d.task())
    d.refused(c.DetachTask(token=task.task_token), NotFound)


def test_an_activity_of_a_workflow_tells_its_workflow() -> None:
    d = Driver()
    d.subscribe_workflows(1)
    d.subscribe(2)
    d.start()
    d.call(d.run(), "charge")
    task = d.task()
    d.detach(task)
    d.lose(2)
    d.complete(task, "paid")
    [result] = d.results(1)
    assert value(result.result) == "paid"
