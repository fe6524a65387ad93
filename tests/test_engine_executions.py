"""What happens to a whole execution: signals, cancel, timeouts, retries, cron, reset."""

from __future__ import annotations

import pytest
from tests.helpers.engine_driver import DAY_MS, HOUR_MS, Driver, failure, payload, value, with_a_holder

from zapserver.engine import Limits
from zapserver.engine import commands as c
from zapserver.engine.commands import Status, WorkflowCommand, WorkflowCommandKind, WorkflowTimeouts
from zapserver.engine.effects import Closed
from zapserver.engine.errors import Conflict, Invalid, LimitReached, NotFound
from zapserver.engine.records import EventType
from zapserver.engine.retry import RetryPolicy
from zapserver.engine.specs import TIME_MS_MAX

CANCELED = WorkflowCommand(kind=WorkflowCommandKind.CANCEL)


# --- signals -------------------------------------------------------------------------------------------


def _signal(started: c.Started, name: str = "go") -> c.SignalExecution:
    return c.SignalExecution(workflow_id=started.workflow_id, signal_name=name, input=payload(1), identity="me")


def test_a_signal_is_recorded_and_refused_after_the_end() -> None:
    d, started = with_a_holder()
    d.step(_signal(started))
    event = d.events(started)[-1]
    assert event.type is EventType.EXECUTION_SIGNALED
    assert (event.attributes["signalName"], value(event.attributes["input"])) == ("go", 1)
    d.refused(_signal(started, ""), Invalid)
    d.refused(_signal(c.Started(workflow_id="ghost", run_id="")), NotFound)
    d.finish(d.run())
    text = d.refused(_signal(started), Conflict)
    assert text == "workflow not running: status=WORKFLOW_EXECUTION_STATUS_COMPLETED"


def test_a_full_history_takes_no_more_signals_and_activities() -> None:
    d = Driver(limits=Limits(history_events_max=3))
    d.subscribe_workflows(1)
    started = d.start()
    d.step(_signal(started))
    d.step(_signal(started))
    d.refused(_signal(started), LimitReached)
    d.refused(c.ScheduleActivity(peer=1, workflow_id=started.workflow_id, type="charge"), LimitReached)
    d.finish(d.run())


def _signal_with_start(request_id: str = "", workflow_id: str = "cart") -> c.StartWorkflow:
    return c.StartWorkflow(
        type="Cart", workflow_id=workflow_id, signal_name="add", signal_input=payload(1), request_id=request_id
    )


def test_signal_with_start_starts_once_and_signals_each_time() -> None:
    d = Driver()
    first = d.step(_signal_with_start())
    assert first.is_new
    assert d.history(first) == ["STARTED", "SIGNALED"]
    second = d.step(_signal_with_start())
    assert (second.run_id, second.is_new) == (first.run_id, False)
    assert d.history(first) == ["STARTED", "SIGNALED", "SIGNALED"]
    d.terminate(first)
    third = d.step(_signal_with_start())
    assert third.run_id != first.run_id


def test_a_repeated_signal_with_start_signals_once_and_is_forgotten_with_its_run() -> None:
    d = Driver(limits=Limits(closed_executions_max=1))
    first = d.step(_signal_with_start("r1"))
    for _ in range(2):
        assert d.step(_signal_with_start("r2")).run_id == first.run_id
    assert d.step(_signal_with_start("r1")).run_id == first.run_id
    assert d.history(first) == ["STARTED", "SIGNALED", "SIGNALED"]
    d.terminate(first)
    d.terminate(d.start())
    assert d.step(_signal_with_start("r2")).is_new


def test_signal_with_start_on_a_full_history_is_refused() -> None:
    d = Driver(limits=Limits(history_events_max=2))
    d.step(_signal_with_start())
    d.refused(_signal_with_start(), LimitReached)


# --- cancel --------------------------------------------------------------------------------------------


def test_cancel_with_nobody_is_done_at_once_with_three_events() -> None:
    d = Driver()
    started = d.start()
    d.cancel(started)
    assert d.status(started) is Status.CANCELED
    assert d.history(started) == ["STARTED", "CANCEL_REQUESTED", "CANCELED"]
    d.subscribe_workflows(1)
    assert d.runs() == []


def test_cancel_with_a_holder_asks_it_again_each_time_and_waits_for_its_word() -> None:
    d, started = with_a_holder()
    d.cancel(started, "enough")
    assert d.status(started) is Status.CANCELING
    (request,) = d.cancels(1)
    assert (request.run_id, request.reason, request.identity) == (started.run_id, "enough", "me")
    length = len(d.events(started))
    d.cancel(started, "really")
    assert len(d.events(started)) == length
    assert [request.reason for request in d.cancels(1)] == ["enough", "enough"]
    d.answer(d.run(), CANCELED)
    assert d.status(started) is Status.CANCELED
    assert d.events(started)[-1].attributes["reason"] == "enough"


def test_a_canceled_workflow_may_still_work_and_complete() -> None:
    d, started = with_a_holder()
    d.cancel(started)
    d.call(d.run(), "undo")
    d.complete(d.task(5), "undone")
    assert len(d.results(1)) == 1
    d.finish(d.run())
    assert d.status(started) is Status.COMPLETED


def test_a_worker_that_does_not_hear_is_overruled_after_a_minute() -> None:
    d, started = with_a_holder()
    d.call(d.run())
    d.cancel(started)
    d.advance(30_000)
    d.cancel(started)
    d.advance(29_999)
    assert d.status(started) is Status.CANCELING
    d.advance(1)
    assert d.status(started) is Status.CANCELED
    assert len(d.stops(5)) == 1, "its activity is stopped too"
    d.refused(c.CompleteWorkflowTask(token=d.run().task_token, commands=(CANCELED,)), NotFound)


def test_a_cancel_whose_holder_is_lost_is_done() -> None:
    d, started = with_a_holder()
    d.cancel(started)
    d.lose(1)
    assert d.status(started) is Status.CANCELED


@pytest.mark.parametrize("waiting", [2, 2_000])
def test_cancel_after_the_holder_was_lost_ends_all_its_activities(waiting: int) -> None:
    d = Driver(watch=waiting < 100)
    d.subscribe_workflows(1)
    started = d.start()
    for number in range(waiting):
        d.call(d.run(), "a", number)
    d.lose(1)
    d.cancel(started)
    assert d.status(started) is Status.CANCELED
    assert d.views.counts()["waiting_activity_tasks"] == 0


def test_cancel_waits_for_activities_that_run_and_begins_nothing_new() -> None:
    d, started = with_a_holder(1)
    d.call(d.run())
    d.call(d.run(), "second")
    d.lose(1)
    d.cancel(started)
    assert d.status(started) is Status.CANCELING
    assert len(d.stops(5)) == 2
    d.subscribe_workflows(2)
    assert d.runs(2) == [], "a canceled run is not begun again"
    reasons = [waiting.reason for waiting in d.views.explain(started.workflow_id)]
    assert reasons == ["the worker 'worker 5' runs attempt 1 and was asked to stop"] * 2
    d.fail(d.tasks(5)[0], failure(code="CanceledError"))
    assert d.status(started) is Status.CANCELING
    d.complete(d.tasks(5)[1])
    assert d.status(started) is Status.CANCELED


def test_a_worker_that_holds_the_run_and_its_activities_may_be_lost_while_canceling() -> None:
    d = Driver()
    d.subscribe_workflows(1)
    d.subscribe(1)
    started = d.start()
    for name in ("a", "b", "c"):
        d.call(d.run(), name, retry=RetryPolicy(maximum_attempts=5))
    d.cancel(started)
    d.lose(1)
    assert d.status(started) is Status.CANCELED


def test_the_worker_may_give_its_own_reason_for_canceling() -> None:
    d, started = with_a_holder()
    given = c.Payload(failure("out of stock", "CanceledError"))
    d.answer(d.run(), WorkflowCommand(kind=WorkflowCommandKind.CANCEL, payload=given))
    assert d.status(started) is Status.CANCELED
    assert d.events(started)[-1].attributes["reason"] == "out of stock"


# --- timeouts, retries, cron ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeouts", "due_ms", "text"),
    [
        (WorkflowTimeouts(run_ms=500), 500, "run timeout of 500 ms passed"),
        (WorkflowTimeouts(execution_ms=700), 700, "execution timeout of 700 ms passed"),
        (WorkflowTimeouts(run_ms=500, execution_ms=700), 500, "run timeout of 500 ms passed"),
        (WorkflowTimeouts(run_ms=900, execution_ms=700), 700, "execution timeout of 700 ms passed"),
    ],
)
@pytest.mark.parametrize("is_held", [True, False])
def test_a_workflow_that_takes_too_long_times_out_to_the_millisecond(
    timeouts: WorkflowTimeouts, due_ms: int, text: str, is_held: bool
) -> None:
    d = Driver()
    if is_held:
        d.subscribe_workflows(1)
    started = d.start(timeouts=timeouts)
    d.advance(due_ms - 1)
    assert d.status(started) is Status.RUNNING
    d.advance(1)
    assert d.status(started) is Status.TIMED_OUT
    assert (d.failure(started)["message"], d.failure(started)["code"]) == (text, "TimeoutError")
    assert [request.reason for request in d.cancels()] == ["the execution is TIMED_OUT"] * is_held


def test_a_retry_policy_starts_new_runs_after_the_backoff() -> None:
    d = Driver()
    d.subscribe_workflows(1)
    policy = RetryPolicy(initial_interval_ms=1_000, maximum_attempts=3)
    first = d.start(workflow_id="w", retry=policy)
    assert "attempt" not in d.events(first)[0].attributes
    waits = []
    for attempt in (1, 2):
        d.fail_run(d.run())
        following = d.views.execution("w")
        assert following.attempt == d.engine._state.events(following)[0].attributes["attempt"] == attempt + 1
        (waiting,) = d.views.explain("w")
        assert waiting.reason == f"attempt {attempt + 1} backs off"
        failed_ms = d.now_ms
        d.advance((waiting.until_ms or 0) - d.now_ms - 1)
        assert len(d.runs()) == attempt
        d.advance(1)
        waits.append(d.now_ms - failed_ms)
        assert d.run().run_id == following.run_id
    assert waits == [1_000, 2_000]
    d.fail_run(d.run())
    assert d.views.execution("w").status is Status.FAILED
    assert len(d.runs()) == 3
    assert d.status(first) is Status.FAILED


def test_a_workflow_failure_that_says_so_is_not_retried() -> None:
    d = Driver()
    d.subscribe_workflows(1)
    policy = RetryPolicy(non_retryable_error_types=("Fraud",))
    for number, data in enumerate([failure(non_retryable=True), failure(code="Fraud"), b"garbage"]):
        started = d.start(workflow_id=f"w{number}", retry=policy)
        d.fail_run(d.run(), data)
        assert d.views.execution(f"w{number}").run_id == started.run_id


def test_the_execution_timeout_spans_all_runs() -> None:
    d = Driver()
    d.subscribe_workflows(1)
    policy = RetryPolicy(initial_interval_ms=600, backoff_coefficient=1.0)
    timeouts = WorkflowTimeouts(execution_ms=1_000)
    d.start(workflow_id="w", retry=policy, timeouts=timeouts)
    d.fail_run(d.run())
    d.advance(999)
    assert d.views.execution("w").status is Status.RUNNING
    d.fail_run(d.run())
    assert d.views.execution("w").attempt == 2, "a third run would begin too late"
    d.start(workflow_id="v", retry=policy, timeouts=timeouts)
    d.fail_run(d.run())
    d.advance(1_000)
    assert d.views.execution("v").status is Status.TIMED_OUT


def test_a_run_that_backs_off_can_be_canceled_and_takes_its_id() -> None:
    d = Driver()
    d.subscribe_workflows(1)
    d.start(workflow_id="w", retry=RetryPolicy())
    d.fail_run(d.run())
    d.refused(c.StartWorkflow(type="Order", workflow_id="w"), Conflict)
    d.step(c.CancelExecution(workflow_id="w"))
    assert d.views.execution("w").status is Status.CANCELED
    d.advance(HOUR_MS)
    assert len(d.runs()) == 1


def test_a_cron_workflow_runs_at_each_time_and_once_at_a_time() -> None:
    d = Driver()
    d.subscribe_workflows(1)
    d.advance(60_000)
    d.start(workflow_id="report", cron="0 * * * *")
    assert d.runs() == [], "the first run waits for its time as well"
    d.advance(HOUR_MS - 60_000 - 1)
    assert d.runs() == []
    d.advance(1)
    assert len(d.runs()) == 1
    d.advance(2 * HOUR_MS + 5)
    assert len(d.runs()) == 1, "a run that is open is not overtaken"
    d.finish(d.run())
    d.advance(HOUR_MS)
    assert len(d.runs()) == 2
    d.fail_run(d.run())
    d.advance(HOUR_MS)
    assert len(d.runs()) == 3, "a failed run does not end the series"
    d.step(c.TerminateExecution(workflow_id="report"))
    d.advance(DAY_MS)
    assert len(d.runs()) == 3


def test_a_cron_workflow_that_begins_at_the_end_of_the_calendar_is_refused() -> None:
    d = Driver()
    d.now_ms = TIME_MS_MAX - 1_000
    text = d.refused(c.StartWorkflow(type="Report", cron_schedule="0 0 1 1 *"), Invalid)
    assert text == "cron_schedule '0 0 1 1 *' can never fire again"


def test_a_cron_series_ends_with_its_execution_timeout_and_goes_on_after_a_run_timeout() -> None:
    d = Driver()
    d.subscribe_workflows(1)
    timeouts = WorkflowTimeouts(run_ms=60_000, execution_ms=3 * HOUR_MS)
    d.start(workflow_id="report", cron="0 * * * *", timeouts=timeouts)
    d.advance(DAY_MS)
    assert len(d.runs()) == 2, "a third would begin when the whole time is over"
    assert not d.views.execution("report").status.is_open


# --- reset ---------------------------------------------------------------------------------------------


def test_reset_ends_the_run_and_starts_again_from_its_input_with_its_history_so_far() -> None:
    d, started = with_a_holder()
    d.step(_signal(started))
    d.call(d.run())
    again = d.step(
        c.ResetExecution(workflow_id=started.workflow_id, event_id=2, reason="bad deploy", identity="operator")
    )
    assert d.status(started) is Status.TERMINATED
    assert again.workflow_id == started.workflow_id
    assert d.history(again) == ["STARTED", "SIGNALED", "RESET"]
    assert d.events(again)[-1].attributes["baseRunId"] == started.run_id
    assert (d.run().run_id, value(d.run().input)) == (again.run_id, ["in"])
    d.call(d.run())
    assert len(d.tasks(5)) == 2, "the new run asks for itself"
    d.finish(d.run())
    assert d.status(again) is Status.COMPLETED


def test_reset_of_a_closed_run_ends_the_newest_and_works_for_tasks() -> None:
    d = Driver()
    d.subscribe(1)
    first = d.submit(workflow_id="w")
    d.complete(d.task())
    second = d.submit(workflow_id="w")
    third = d.step(c.ResetExecution(workflow_id="w", run_id=first.run_id, event_id=1))
    assert d.status(first) is Status.COMPLETED
    assert d.status(second) is Status.TERMINATED
    assert d.task().run_id == third.run_id
    d.complete(d.task())
    assert d.status(third) is Status.COMPLETED


@pytest.mark.parametrize("event_id", [0, -1, 4, 999])
def test_reset_to_an_event_that_is_not_there_is_refused(event_id: int) -> None:
    d, started = with_a_holder()
    d.step(_signal(started))
    command = c.ResetExecution(workflow_id=started.workflow_id, event_id=event_id)
    assert "1..2" in d.refused(command, Invalid)
    d.refused(c.ResetExecution(workflow_id="ghost", event_id=1), NotFound)


def test_reset_keeps_the_bound_of_open_executions() -> None:
    d = Driver(limits=Limits(open_executions_max=1))
    closed = d.start()
    d.terminate(closed)
    started = d.start()
    d.refused(c.ResetExecution(workflow_id=closed.workflow_id, event_id=1), LimitReached)
    d.step(c.ResetExecution(workflow_id=started.workflow_id, event_id=1))


def test_who_waits_is_told_why_a_run_was_canceled_or_terminated() -> None:
    d, started = with_a_holder()
    d.wait(started, "a")
    d.answer(d.run(), WorkflowCommand(kind=WorkflowCommandKind.CANCEL, payload=c.Payload(failure("out of stock"))))
    started = d.start()
    d.wait(started, "b")
    d.terminate(started)
    told = [effect for waiter in "ab" for effect in d.told(waiter) if isinstance(effect, Closed)]
    assert [(effect.status, effect.reason) for effect in told] == [
        (Status.CANCELED, "out of stock"),
        (Status.TERMINATED, "now"),
    ]


def test_who_waits_for_a_workflow_is_told_its_end() -> None:
    d, started = with_a_holder()
    d.wait(started)
    d.finish(d.run(), {"ok": True})
    (told,) = d.told("waiter")
    assert isinstance(told, Closed)
    assert (told.status, value(told.result)) == (Status.COMPLETED, {"ok": True})
