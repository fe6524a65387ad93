"""Workflows of workers that replay: which tasks they get, with which history, and what their commands do."""

from __future__ import annotations

import pytest
from tests.helpers.engine_driver import (
    DAY_MS,
    MINUTE_MS,
    START_MS,
    Driver,
    failure,
    payload,
    value,
    with_a_holder,
    with_a_replayed_run,
)

from zapserver.engine import Limits, decisions, histories, wakeups
from zapserver.engine import commands as c
from zapserver.engine.commands import QueueKind, Status
from zapserver.engine.effects import DeliverWorkflowTask
from zapserver.engine.errors import Conflict, Invalid, NotFound, StaleToken
from zapserver.engine.retry import RetryPolicy

DONE = c.CompleteCommand(result=payload("done"))
TIMER = c.StartTimerCommand(id="0.1", fire_after_ms=60_000)
ACTIVITY = c.ScheduleActivityCommand(id="0.2", type="charge", input=payload([7]))


def ids(run: DeliverWorkflowTask) -> list[int]:
    return [event.event_id for event in run.history]


def words(run: DeliverWorkflowTask) -> list[str]:
    return [event.type.value for event in run.history]


# --- tasks and histories -------------------------------------------------------------------------------


def test_a_stranger_gets_the_whole_history_and_ends_the_run_with_its_answer() -> None:
    d = Driver()
    d.subscribe_replaying(1)
    started = d.start()
    run = d.run(1)
    assert (run.replays, run.previous_event_id, run.last_event_id, run.next_event_id) == (True, 0, 1, 0)
    assert words(run) == ["WORKFLOW_EXECUTION_STARTED"]
    assert value(run.history[0].attributes["input"]) == ["in"]
    d.answer(run, DONE)
    assert d.history(started) == ["STARTED", "WORKFLOW_TASK_COMPLETED", "COMPLETED"]
    assert value(d.execution(started).result) == "done"


def test_a_worker_that_has_the_run_gets_only_what_is_new() -> None:
    d, started = with_a_replayed_run(1, TIMER)
    assert len(d.runs()) == 1, "nothing is new: the worker saw everything, and its own commands"
    d.signal(started, input=3)
    run = d.run()
    assert run.previous_event_id == 1
    assert words(run) == ["WORKFLOW_TASK_COMPLETED", "TIMER_STARTED", "WORKFLOW_EXECUTION_SIGNALED"]
    assert run.history[0].attributes["seenEventId"] == 1
    assert (ids(run), run.last_event_id) == ([2, 3, 4], 4)


def test_what_comes_while_a_task_is_out_is_recorded_at_once_and_leads_to_the_next_task() -> None:
    d = Driver()
    d.subscribe_replaying(1)
    started = d.start()
    d.signal(started)
    d.signal(started)
    assert d.history(started) == ["STARTED", "SIGNALED", "SIGNALED"]
    assert len(d.runs()) == 1
    d.answer(d.run())
    assert (d.run().previous_event_id, ids(d.run())) == (1, [2, 3, 4])
    assert d.events(started)[3].attributes["seenEventId"] == 1
    d.answer(d.run())
    assert len(d.runs()) == 2


def test_the_worker_that_has_the_run_is_preferred_and_anybody_else_replays_it() -> None:
    d, started = with_a_replayed_run(1)
    d.subscribe_replaying(2)
    d.signal(started)
    assert d.run().peer == 1
    d.answer(d.run())
    d.lose(1)
    d.signal(started)
    assert (d.run().peer, d.run().previous_event_id) == (2, 0)
    assert ids(d.run()) == list(range(1, d.run().last_event_id + 1))


def test_a_busy_worker_is_not_waited_for() -> None:
    d = Driver()
    d.subscribe_replaying(1, slots=1)
    started = d.start()
    d.answer(d.run())
    d.start(workflow_id="keeps it busy")
    d.subscribe_replaying(2)
    d.signal(started)
    assert (d.run().peer, d.run().previous_event_id) == (2, 0)


def test_the_same_worker_goes_on_before_the_line() -> None:
    d = Driver()
    d.subscribe_replaying(1, slots=1)
    started = d.start()
    d.start(workflow_id="waits")
    d.signal(started)
    d.answer(d.run())
    assert (d.run().run_id, d.run().previous_event_id) == (started.run_id, 1)
    d.answer(d.run())
    assert d.run().workflow_id == "waits"


def test_a_long_history_comes_in_part_and_says_where_to_read_on() -> None:
    d, started = with_a_replayed_run(1)
    d.lose(1)
    text = "x" * (histories.CHUNK_BYTES_MAX // 4)
    for _ in range(6):
        d.signal(started, input=text)
    d.subscribe_replaying(2)
    run = d.run(2)
    assert 1 < len(run.history) < run.last_event_id
    assert run.next_event_id == run.history[-1].event_id + 1
    rest, _ = d.views.history(started.workflow_id, after=run.next_event_id - 1)
    assert [*ids(run), *(event.event_id for event in rest)] == list(range(1, run.last_event_id + 1))


def test_one_event_that_is_larger_than_a_delivery_goes_alone() -> None:
    d = Driver()
    d.subscribe_replaying(1)
    big = payload("x" * histories.CHUNK_BYTES_MAX)
    started = d.step(c.StartWorkflow(type="Order", input=big))
    d.signal(started)
    assert ids(d.run()) == [1]
    d.answer(d.run())
    assert ids(d.run()) == [2, 3]


def test_an_old_token_is_refused() -> None:
    d, started = with_a_replayed_run(1)
    first = d.run()
    assert "ended" in d.refused(c.CompleteWorkflowTask(token=first.task_token, commands=()), StaleToken)
    d.signal(started)
    d.refused(c.CompleteWorkflowTask(token=first.task_token, commands=()), StaleToken)
    d.answer(d.run(), DONE)
    d.refused(c.CompleteWorkflowTask(token=first.task_token, commands=()), NotFound)


# --- two kinds of workers --------------------------------------------------------------------------------


def test_a_fresh_run_goes_to_either_kind_and_stays_with_it() -> None:
    d, started = with_a_replayed_run(1)
    d.lose(1)
    d.subscribe_workflows(2)
    d.signal(started)
    assert d.runs(2) == []
    (waits,) = d.views.explain(started.workflow_id)
    assert "replaying worker only" in waits.reason
    d.subscribe_replaying(3)
    assert d.run().peer == 3


def test_a_run_with_calls_of_a_holder_never_goes_to_a_worker_that_replays() -> None:
    d, _ = with_a_holder(1)
    d.call(d.run())
    d.subscribe_replaying(2)
    d.lose(1)
    assert d.runs(2) == []
    d.subscribe_workflows(3)
    assert d.run().peer == 3
    assert not d.run().replays


def test_a_run_of_which_a_lost_holder_did_nothing_may_go_to_one_that_replays() -> None:
    d, _ = with_a_holder(1)
    d.subscribe_replaying(2)
    d.lose(1)
    assert (d.run().peer, d.run().replays) == (2, True)


def test_each_kind_has_its_own_words() -> None:
    d, _ = with_a_holder(1)
    answer = c.CompleteWorkflowTask(token=d.run().task_token, commands=(TIMER,))
    assert "replays" in d.refused(answer, Invalid)
    d.refused(c.CompleteWorkflowTask(token=d.run().task_token, commands=(c.CompleteCommand(),)), Invalid)
    refused = c.FailWorkflowTask(token=d.run().task_token, reason="no")
    d.refused(refused, Invalid)
    e = Driver()
    e.subscribe_replaying(1)
    started = e.start()
    call = c.ScheduleActivity(peer=1, workflow_id=started.workflow_id, type="charge")
    assert "by command" in e.refused(call, Conflict)
    subscribe = c.Subscribe(peer=1, kind=QueueKind.ACTIVITY, task_queue="q", replays=True)
    e.refused(subscribe, Invalid)


# --- commands ----------------------------------------------------------------------------------------------


def test_a_timer_fires_and_wakes_the_workflow() -> None:
    d, started = with_a_replayed_run(1, TIMER)
    d.advance(59_999)
    assert len(d.runs()) == 1
    d.advance(1)
    assert words(d.run())[-1] == "TIMER_FIRED"
    fired = d.run().history[-1].attributes
    assert fired == {"startedEventId": 3, "commandId": "0.1"}
    assert d.events(started)[2].attributes == {"commandId": "0.1", "fireAfterMs": 60_000}


def test_a_stopped_timer_does_not_fire_and_one_that_fired_cannot_be_stopped() -> None:
    d, started = with_a_replayed_run(1, TIMER)
    d.signal(started)
    d.answer(d.run(), c.CancelTimerCommand(id="0.1"), c.CancelTimerCommand(id="0.1"))
    d.advance(DAY_MS)
    assert len(d.runs()) == 2
    assert d.history(started)[-1] == "TIMER_CANCELED"
    assert d.engine.next_deadline_ms() is None


def test_an_activity_is_scheduled_and_its_end_wakes_the_workflow() -> None:
    d, started = with_a_replayed_run(1, ACTIVITY)
    task = d.task(5)
    assert (task.activity_type, value(task.input)) == ("charge", [7])
    scheduled = d.events(started)[2].attributes
    assert (scheduled["commandId"], scheduled["activityId"]) == ("0.2", task.activity_id)
    d.complete(task, "paid")
    assert words(d.run())[-1] == "ACTIVITY_TASK_COMPLETED"
    closed = d.run().history[-1].attributes
    assert (closed["commandId"], closed["scheduledEventId"], value(closed["result"])) == ("0.2", 3, "paid")


def test_an_activity_that_names_no_policy_is_tried_again() -> None:
    d, _ = with_a_replayed_run(1, ACTIVITY)
    d.fail(d.task(5))
    assert len(d.runs()) == 1, "the workflow hears of the end only"
    d.advance(1_000)
    assert d.task(5).attempt == 2


def test_a_failure_may_say_when_the_next_attempt_begins() -> None:
    d = Driver()
    d.subscribe(5)
    d.submit(retry=RetryPolicy(maximum_attempts=5, initial_interval_ms=1_000))
    d.fail(d.task(), failure()[:-1] + b',"nextRetryDelayMs":7}')
    d.advance(7)
    assert d.task().attempt == 2
    d.fail(d.task(), failure()[:-1] + b',"nextRetryDelayMs":-7}')
    d.advance(0)
    assert d.task().attempt == 3
    d.fail(d.task(), failure())
    d.advance(3_999)
    assert d.task().attempt == 3
    d.advance(1)
    assert d.task().attempt == 4


def test_an_activity_is_asked_to_stop() -> None:
    d, started = with_a_replayed_run(1, ACTIVITY)
    d.signal(started)
    d.answer(d.run(), c.CancelActivityCommand(id="0.2"), c.CancelActivityCommand(id="unknown"))
    assert d.stops(5)[-1].task_token == d.task(5).task_token
    assert d.history(started)[-1] == "ACTIVITY_CANCEL_REQUESTED"
    d.fail(d.task(5), failure(code="CanceledError"))
    assert words(d.run())[-1] == "ACTIVITY_TASK_CANCELED"


def test_an_activity_that_waits_is_canceled_at_once() -> None:
    d, started = with_a_replayed_run(1, c.ScheduleActivityCommand(id="a", type="charge", task_queue="nobody"))
    d.signal(started)
    d.answer(d.run(), c.CancelActivityCommand(id="a"))
    assert words(d.run())[-2:] == ["ACTIVITY_TASK_CANCEL_REQUESTED", "ACTIVITY_TASK_CANCELED"]


def test_markers_and_attributes_are_kept() -> None:
    upsert = c.UpsertCommand(id="2", memo=payload("m"), search_attributes={"stage": "two", "old": None})
    d = Driver()
    d.subscribe_replaying(1)
    started = d.step(c.StartWorkflow(type="Order", search_attributes={"old": 1, "kept": 2}))
    d.answer(d.run(), c.RecordMarkerCommand(id="1", name="side-effect", details=payload(4)), upsert)
    execution = d.execution(started)
    assert execution.search_attributes == {"kept": 2, "stage": "two"}
    assert value(execution.memo) == "m"
    marker, upserted = d.events(started)[-2:]
    assert (marker.attributes["commandId"], value(marker.attributes["details"])) == ("1", 4)
    assert upserted.attributes["searchAttributes"] == {"stage": "two", "old": None}
    assert len(d.runs()) == 1, "neither is news to the worker that said so"


def test_other_workflows_are_signaled_and_canceled_and_the_workflow_hears_of_it() -> None:
    d = Driver()
    d.subscribe_replaying(1, types=["Order"])
    other = d.start("Other", workflow_id="other")
    d.start()
    d.answer(
        d.run(),
        c.SignalExternalCommand(id="1", workflow_id="other", name="go", input=payload(1)),
        c.SignalExternalCommand(id="2", workflow_id="nobody", name="go"),
        c.CancelExternalCommand(id="3", workflow_id="other", reason="enough"),
        c.CancelExternalCommand(id="4", workflow_id="nobody"),
    )
    assert words(d.run())[-4:] == [
        "EXTERNAL_WORKFLOW_SIGNALED",
        "EXTERNAL_WORKFLOW_SIGNAL_FAILED",
        "EXTERNAL_WORKFLOW_CANCEL_REQUESTED",
        "EXTERNAL_WORKFLOW_CANCEL_FAILED",
    ]
    assert d.history(other) == ["STARTED", "SIGNALED", "CANCEL_REQUESTED", "CANCELED"]
    assert b"not found" in bytes(d.run().history[-1].attributes["failure"])


@pytest.mark.parametrize(
    ("commands", "text"),
    [
        ((c.StartTimerCommand(id="", fire_after_ms=1),), "command id required"),
        ((c.StartTimerCommand(id="a|b", fire_after_ms=1),), "'|'"),
        ((c.StartTimerCommand(id="a", fire_after_ms=-1),), "fire_after_ms is -1"),
        ((TIMER, TIMER), "in use"),
        ((TIMER, c.ScheduleActivityCommand(id="0.1", type="x")), "in use"),
        ((c.StartTimerCommand(id="open", fire_after_ms=1),), "in use"),
        ((c.ScheduleActivityCommand(id="a", type=""),), "activity type required"),
        ((c.StartChildCommand(id="a", type="K", cron_schedule="never"),), "never"),
        ((c.StartChildCommand(id="a", type="K", timeouts=c.WorkflowTimeouts(task_ms=600_001)),), "task_ms"),
        ((c.SignalExternalCommand(id="a", workflow_id="w", name=""),), "signal name required"),
        ((c.CancelExternalCommand(id="a", workflow_id=""),), "workflow id required"),
        ((c.RecordMarkerCommand(id="a", name=""),), "marker name required"),
        ((c.UpsertCommand(id="a", search_attributes={"x": "x" * 5_000, "y": "y" * 5_000}),), "search attributes"),
        (tuple(c.UpsertCommand(id=n, search_attributes={n: "x" * 5_000}) for n in "ab"), "search attributes"),
        ((DONE, TIMER), "ends the run"),
        ((c.ContinueAsNewCommand(), DONE), "ends the run"),
        ((c.ContinueAsNewCommand(task_queue="\0"),), "unprintable"),
        ((c.AcceptUpdateCommand(update_id="u"),), "did not come with this task"),
        ((c.CompleteUpdateCommand(update_id="u"),), "accepted"),
    ],
)
def test_an_answer_with_a_bad_command_is_refused_as_a_whole(commands: tuple[c.TaskCommand, ...], text: str) -> None:
    d, started = with_a_replayed_run(1, c.StartTimerCommand(id="open", fire_after_ms=DAY_MS))
    d.signal(started)
    good = c.StartTimerCommand(id="good", fire_after_ms=1)
    answer = c.CompleteWorkflowTask(token=d.run().task_token, commands=(good, *commands))
    assert text in d.refused(answer, Invalid)
    d.answer(d.run(), DONE)


def test_a_full_history_ends_the_run_unless_the_answer_does() -> None:
    d = Driver(limits=Limits(history_events_max=6))
    d.subscribe_replaying(1)
    first, second = d.start(), d.start(workflow_id="b")
    markers = [c.RecordMarkerCommand(id=str(n), name="m") for n in range(4)]
    d.answer(d.runs()[0], *markers)
    assert d.status(first) is Status.FAILED
    assert d.failure(first)["code"] == decisions.HISTORY_FULL_ERROR
    d.answer(d.runs()[1], *markers, c.ContinueAsNewCommand())
    assert d.status(second) is Status.CONTINUED_AS_NEW


# --- a task comes to nothing -------------------------------------------------------------------------------


def test_a_failed_task_goes_to_another_worker_at_once_and_later_after_a_wait() -> None:
    d = Driver()
    d.subscribe_replaying(1)
    d.subscribe_replaying(2)
    started = d.start()
    peers = []
    for _ in range(4):
        peers.append(d.run().peer)
        d.step(c.FailWorkflowTask(token=d.run().task_token, reason="not deterministic"))
    assert peers == [1, 2, 1, 2]
    assert len(d.runs()) == 4
    (waits,) = d.views.explain(started.workflow_id)
    assert "failed 4 times in a row" in waits.reason
    assert "not deterministic" in waits.reason
    assert waits.until_ms == d.now_ms + wakeups.RETRY_MS_MIN
    delays = []
    for _ in range(8):
        before_ms, count = d.now_ms, len(d.runs())
        while len(d.runs()) == count:
            d.advance(500)
        delays.append(d.now_ms - before_ms)
        d.step(c.FailWorkflowTask(token=d.run().task_token, reason="not deterministic"))
    assert delays == [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]
    assert d.history(started) == ["STARTED", "WORKFLOW_TASK_FAILED"], "a row of failures is one event"
    d.advance(60_000)
    d.answer(d.run(), TIMER)
    assert d.execution(started).task_failures == 0
    d.advance(60_000)
    d.step(c.FailWorkflowTask(token=d.run().task_token, reason="again"))
    assert d.run().previous_event_id == 0, "a worker that failed is not taken to have the run"
    assert d.history(started)[-1] == "WORKFLOW_TASK_FAILED"


def test_a_worker_that_is_too_late_loses_its_task() -> None:
    d = Driver()
    d.subscribe_replaying(1)
    d.subscribe_replaying(2)
    started = d.start()
    d.advance(9_999)
    assert len(d.runs()) == 1
    d.advance(1)
    assert d.run().peer == 2
    assert d.history(started) == ["STARTED", "WORKFLOW_TASK_TIMED_OUT"]
    d.refused(c.CompleteWorkflowTask(token=d.runs()[0].task_token, commands=(DONE,)), StaleToken)
    d.answer(d.run(), DONE)
    assert d.status(started) is Status.COMPLETED


def test_a_workflow_says_how_long_a_task_may_take() -> None:
    d = Driver()
    d.subscribe_replaying(1)
    started = d.start(timeouts=c.WorkflowTimeouts(task_ms=30_000))
    (waits,) = d.views.explain(started.workflow_id)
    assert waits.until_ms == START_MS + 30_000
    d.advance(29_999)
    assert d.history(started) == ["STARTED"]
    d.refused(c.StartWorkflow(type="X", timeouts=c.WorkflowTimeouts(task_ms=600_001)), Invalid)


def test_workers_that_are_lost_again_and_again_do_not_get_a_run_without_end() -> None:
    for subscribe in (Driver.subscribe_workflows, Driver.subscribe_replaying):
        d = Driver()
        started = d.start()
        for peer in range(1, 10):
            subscribe(d, peer)
            if len(d.runs()) < peer:
                break
            d.lose(peer)
        assert len(d.runs()) == wakeups.IMMEDIATE_RETRIES + 1
        (waits,) = d.views.explain(started.workflow_id)
        assert "the line went dead" in waits.reason
        d.advance(1_000)
        assert len(d.runs()) == wakeups.IMMEDIATE_RETRIES + 2


def test_a_holder_that_gets_on_is_not_counted_with_those_that_did_not() -> None:
    d, started = with_a_holder(1)
    for peer in range(1, 7):
        for _ in range(peer):  # one more than the worker before
            d.call(d.run())
        d.lose(peer)
        d.subscribe_workflows(peer + 1)
    assert d.execution(started).task_failures == 1
    assert d.run().peer == 7


def test_a_worker_that_does_not_know_the_type_is_not_asked_again() -> None:
    d = Driver()
    d.subscribe_replaying(1)
    d.subscribe_replaying(2)
    started = d.start()
    for _ in range(2):
        d.step(c.FailWorkflowTask(token=d.run().task_token, reason="", unknown_type=True))
    assert [run.peer for run in d.runs()] == [1, 2]
    (waits,) = d.views.explain(started.workflow_id)
    assert "does not know" in waits.reason
    d.subscribe_replaying(3)
    assert d.run().peer == 3


def test_a_task_that_is_handed_back_counts_as_nothing() -> None:
    d, started = with_a_replayed_run(1)
    d.subscribe_replaying(2)
    d.signal(started)
    d.hand_back(d.run())
    assert (d.run().peer, d.run().previous_event_id) == (2, 0)
    assert d.execution(started).task_failures == 0


# --- cancel, signals, ends -----------------------------------------------------------------------------------


def test_a_cancel_is_an_event_and_the_worker_has_the_time_that_it_needs() -> None:
    d, started = with_a_replayed_run(1)
    d.cancel(started)
    d.cancel(started, "again")
    assert d.status(started) is Status.CANCELING
    assert words(d.run())[-1] == "WORKFLOW_EXECUTION_CANCEL_REQUESTED"
    d.answer(d.run(), ACTIVITY)
    d.advance(5 * MINUTE_MS)
    assert d.status(started) is Status.CANCELING
    d.complete(d.task(5))
    d.answer(d.run(), c.CancelCommand())
    assert d.status(started) is Status.CANCELED
    assert d.execution(started).close_reason == "enough"
    assert d.history(started).count("CANCEL_REQUESTED") == 1
    assert d.cancels() == []


def test_a_run_that_no_worker_ever_ran_is_canceled_at_once() -> None:
    d = Driver()
    started = d.start()
    d.cancel(started)
    assert d.status(started) is Status.CANCELED


@pytest.mark.parametrize("how", ["lost", "failed", "late", "returned"])
def test_a_first_task_that_comes_to_nothing_after_a_cancel_ends_the_run(how: str) -> None:
    d = Driver()
    d.subscribe_replaying(1)
    started = d.start()
    d.cancel(started)
    assert d.status(started) is Status.CANCELING
    if how == "lost":
        d.lose(1)
    elif how == "failed":
        d.step(c.FailWorkflowTask(token=d.run().task_token, reason="no"))
    elif how == "late":
        d.advance(10_000)
    else:
        d.hand_back(d.run())
    assert d.status(started) is Status.CANCELED


def test_a_signal_with_a_known_request_id_is_the_same_signal() -> None:
    d = Driver(limits=Limits(signal_ids_max=2))
    started = d.start()
    for request in ("a", "a", "b", "a", "c", "a"):
        d.signal(started, request_id=request)
    assert d.history(started) == ["STARTED"] + ["SIGNALED"] * 4, "a, b, c, and a again: it was forgotten"
    d.terminate(started)
    d.signal(started, request_id="a")
    d.refused(c.SignalExecution(workflow_id=started.workflow_id, signal_name="go", request_id="new"), Conflict)


def test_a_failed_run_is_retried_as_a_fresh_one() -> None:
    d = Driver()
    d.subscribe_replaying(1)
    first = d.start(retry=RetryPolicy(initial_interval_ms=100, maximum_attempts=2))
    d.answer(d.run(), TIMER, c.FailCommand(failure=c.Payload(failure())))
    assert d.status(first) is Status.FAILED
    d.advance(100)
    assert (d.run().run_id, d.run().previous_event_id) == (d.execution(first).new_run_id, 0)
    d.advance(2 * MINUTE_MS)
    assert "TIMER_FIRED" not in d.history(first)


def test_a_query_goes_to_the_worker_that_has_the_run_and_else_to_one_that_replays() -> None:
    d, started = with_a_replayed_run(1)
    d.subscribe_workflows(2)
    d.subscribe_replaying(3)
    d.ask(started, "first")
    assert d.questions()[-1].peer == 1
    d.lose(1)
    d.ask(started, "second")
    assert d.questions()[-1].peer == 3


def test_explain_names_everything_that_a_run_waits_for() -> None:
    d, started = with_a_replayed_run(1, TIMER, ACTIVITY, c.StartChildCommand(id="kid", type="Kid", task_queue="kids"))
    reasons = {waits.what: waits for waits in d.views.explain(started.workflow_id)}
    assert reasons["timer 0.1"].until_ms == START_MS + 60_000
    assert "runs attempt 1" in reasons["charge"].reason
    assert "child workflow 'kid-" in reasons["Kid"].reason
    assert "has its workflow task" in reasons["Order"].reason
    d.answer(d.run())
    d.update(started)
    assert any(waits.what == "update set" for waits in d.views.explain(started.workflow_id))


def test_explain_says_when_only_somebody_else_can_go_on() -> None:
    d, started = with_a_replayed_run(1)
    (waits,) = d.views.explain(started.workflow_id)
    assert waits.reason == "it waits for a signal or an update"
    d.cancel(started)
    d.answer(d.run())
    (waits,) = d.views.explain(started.workflow_id)
    assert "asked to cancel" in waits.reason


# --- continue as new, and who waits --------------------------------------------------------------------------


def test_continue_as_new_closes_the_run_and_begins_the_next_in_the_same_step() -> None:
    d = Driver()
    d.subscribe_replaying(1)
    first = d.start(timeouts=c.WorkflowTimeouts(execution_ms=DAY_MS))
    d.advance(1_000)
    d.answer(d.run(), c.ContinueAsNewCommand(input=payload("next"), memo=payload("m")))
    old = d.execution(first)
    assert d.status(first) is Status.CONTINUED_AS_NEW
    assert d.events(first)[-1].attributes == {"newRunId": old.new_run_id}
    new = d.views.execution(first.workflow_id)
    assert (new.run_id, new.first_start_ms, new.attempt) == (old.new_run_id, START_MS, 1)
    assert (value(new.input), value(new.memo), new.type) == ("next", "m", "Order")
    assert (d.run().run_id, value(d.run().history[0].attributes["input"])) == (new.run_id, "next")
    assert d.run().history[0].attributes["continuedRunId"] == first.run_id
    d.advance(DAY_MS)
    assert d.views.execution(first.workflow_id).status is Status.TIMED_OUT, "the execution timeout spans the chain"


def test_what_comes_in_unseen_goes_along_to_the_next_run() -> None:
    d = Driver()
    d.subscribe_replaying(1)
    started = d.start()
    d.signal(started, "late", request_id="r")
    d.cancel(started)
    d.answer(d.run(), c.ContinueAsNewCommand())
    assert words(d.run())[1:] == ["WORKFLOW_EXECUTION_SIGNALED", "WORKFLOW_EXECUTION_CANCEL_REQUESTED"]
    latest = d.views.execution(started.workflow_id)
    assert latest.status is Status.CANCELING
    length = latest.history_length
    d.step(c.SignalExecution(workflow_id=started.workflow_id, signal_name="late", request_id="r"))
    assert latest.history_length == length


def test_those_who_wait_hear_of_the_next_run_and_those_who_follow_wait_for_the_last() -> None:
    d = Driver()
    d.subscribe_replaying(1)
    first = d.start(retry=RetryPolicy(initial_interval_ms=100, maximum_attempts=2))
    d.wait(first, "one")
    d.step(c.AwaitExecution(workflow_id=first.workflow_id, waiter="all", peer=9, follow=True))
    d.answer(d.run(), c.ContinueAsNewCommand())
    (told,) = d.told("one")
    second = d.views.execution(first.workflow_id)
    assert getattr(told, "new_run_id", "") == second.run_id
    d.fail_run(d.run())
    d.advance(100)
    d.step(c.AwaitExecution(workflow_id=first.workflow_id, run_id=first.run_id, waiter="late", peer=9, follow=True))
    assert d.told("all") == d.told("late") == []
    d.finish(d.run())
    for waiter in ("all", "late"):
        (told,) = d.told(waiter)
        assert getattr(told, "status", None) is Status.COMPLETED


# --- ids -----------------------------------------------------------------------------------------------------


def test_what_a_start_does_with_an_id_that_is_open() -> None:
    d = Driver()
    first = d.start(workflow_id="w")
    d.refused(c.StartWorkflow(type="Order", workflow_id="w"), Conflict)
    joined = d.step(c.StartWorkflow(type="Order", workflow_id="w", id_conflict=c.IdConflict.USE_EXISTING))
    assert (joined.run_id, joined.is_new) == (first.run_id, False)
    ended = d.step(c.StartTask(type="t", workflow_id="w", id_conflict=c.IdConflict.TERMINATE_EXISTING))
    assert d.status(first) is Status.TERMINATED
    assert (ended.is_new, d.status(ended)) == (True, Status.RUNNING)
    joined = d.step(c.StartTask(type="t", workflow_id="w", id_conflict=c.IdConflict.USE_EXISTING, request_id="r"))
    again = d.step(c.StartTask(type="t", workflow_id="w", request_id="r"))
    assert joined.run_id == again.run_id == ended.run_id


def test_what_a_start_does_with_an_id_that_was_used_before() -> None:
    d = Driver()
    d.subscribe_workflows(1)
    reject, failed_only = c.IdReuse.REJECT, c.IdReuse.ALLOW_FAILED_ONLY
    d.step(c.StartWorkflow(type="Order", workflow_id="w", id_reuse=reject))
    d.fail_run(d.run())
    assert "reject-duplicate" in d.refused(c.StartWorkflow(type="Order", workflow_id="w", id_reuse=reject), Conflict)
    d.step(c.StartWorkflow(type="Order", workflow_id="w", id_reuse=failed_only))
    d.finish(d.run())
    d.refused(c.StartTask(type="Order", workflow_id="w", id_reuse=failed_only), Conflict)
    assert d.start(workflow_id="w").is_new
