"""Reset: what a new run that begins with a part of another's history takes over, for both kinds of workers."""

from __future__ import annotations

import pytest
from tests.helpers.engine_driver import (
    MINUTE_MS,
    START_MS,
    Driver,
    failure,
    payload,
    value,
    with_a_holder,
    with_a_replayed_run,
)

from zapserver.engine import Limits
from zapserver.engine import commands as c
from zapserver.engine.commands import Status
from zapserver.engine.effects import DeliverWorkflowTask
from zapserver.engine.records import EventType
from zapserver.engine.retry import RetryPolicy

DONE = c.CompleteCommand()
CANCEL = c.CancelCommand()
TIMER = c.StartTimerCommand(id="t", fire_after_ms=MINUTE_MS)
ACTIVITY = c.ScheduleActivityCommand(
    id="a", type="charge", input=payload([7]), retry_policy=RetryPolicy(maximum_attempts=3)
)


def reset(d: Driver, started: c.Started, event_id: int) -> c.Started:
    return d.step(
        c.ResetExecution(workflow_id=started.workflow_id, run_id=started.run_id, event_id=event_id, reason="bad deploy")
    )


def words(run: DeliverWorkflowTask) -> list[str]:
    return [event.type.value.replace("WORKFLOW_EXECUTION_", "") for event in run.history]


# --- workers of the Go kind ----------------------------------------------------------------------------


def test_a_holder_gets_what_was_done_before_the_reset_from_the_record() -> None:
    d, started = with_a_holder(1)
    for number in (1, 2, 3):
        d.call(d.run(), input=number, retry=RetryPolicy(maximum_attempts=number))
    d.complete(d.tasks(5)[0], "one")
    d.fail(d.tasks(5)[1], failure(non_retryable=True))
    again = reset(d, started, d.execution(started).history_length)
    run = d.run()
    assert run.run_id == again.run_id
    count = len(d.tasks(5))
    assert count == 4, "the one that was open is scheduled again"
    assert (value(d.task(5).input), d.task(5).maximum_attempts, d.task(5).attempt) == (3, 3, 1)
    for number in (1, 2, 3):
        d.call(run, input=number)
    d.advance(100)
    assert len(d.tasks(5)) == count, "nothing is done twice"
    results = d.results(1)[-2:]
    assert (value(results[0].result), results[1].result) == ("one", None)
    assert results[1].failure
    d.complete(d.task(5), "three")
    assert value(d.results(1)[-1].result) == "three"
    d.call(run, input=4)
    assert len(d.tasks(5)) == count + 1


def test_the_end_of_a_run_that_no_worker_began_is_not_copied() -> None:
    d = Driver()
    started = d.start()
    d.cancel(started)
    assert d.history(started) == ["STARTED", "CANCEL_REQUESTED", "CANCELED"]
    again = reset(d, started, 3)
    assert d.history(again) == ["STARTED", "CANCEL_REQUESTED", "RESET"]


def test_a_second_reset_reads_what_the_first_one_wrote() -> None:
    d, started = with_a_holder(1)
    d.call(d.run())
    again = reset(d, started, 3)
    d.complete(d.task(5), "one")
    once_more = reset(d, again, d.execution(again).history_length)
    d.call(d.run())
    d.advance(100)
    assert d.run().run_id == once_more.run_id
    assert value(d.results(1)[-1].result) == "one"
    assert len(d.tasks(5)) == 2


@pytest.mark.parametrize("live", [(), (1, 5)])
def test_results_after_a_reset_keep_their_ids_through_a_restart(live: tuple[int, ...]) -> None:
    d = Driver(limits=Limits(closed_executions_max=100))
    d.subscribe_workflows(1)
    d.subscribe(5)
    started = d.start()
    d.call(d.run(), input=1)
    d.complete(d.task(5), "one")
    d.call(d.run(), input=2)
    reset(d, started, d.execution(started).history_length)
    asked = [d.call(d.run(), input=number).activity_id for number in (1, 2)]
    d.complete(d.task(5), "two")
    d.restart(live)
    if not live:
        d.subscribe_workflows(1)
        asked = [d.call(d.run(), input=number).activity_id for number in (1, 2)]
    d.advance(100)
    results = {result.activity_id: value(result.result) for result in d.results(1)[-2:]}
    assert results == dict(zip(asked, ("one", "two"), strict=True))


def test_every_reset_names_the_run_that_no_reset_made() -> None:
    d, started = with_a_replayed_run(1, TIMER)
    first = reset(d, started, 3)
    second = reset(d, first, 2)
    third = reset(d, second, d.execution(second).history_length)
    named = [
        [
            (event.attributes["baseRunId"], event.attributes["originalRunId"])
            for event in d.events(run)
            if event.type is EventType.EXECUTION_RESET
        ]
        for run in (first, second, third)
    ]
    assert named == [
        [(started.run_id, started.run_id)],
        [(first.run_id, started.run_id)],
        [(first.run_id, started.run_id), (second.run_id, started.run_id)],
    ]


# --- workers that replay -------------------------------------------------------------------------------


def test_an_activity_and_a_timer_that_were_open_are_open_again() -> None:
    d, started = with_a_replayed_run(1, ACTIVITY, TIMER)
    d.advance(MINUTE_MS // 2)
    first = d.task(5)
    again = reset(d, started, 5)
    assert d.status(started) is Status.TERMINATED
    assert d.stops(5)[-1].task_token == first.task_token
    run = d.run()
    assert (run.run_id, run.previous_event_id) == (again.run_id, 0)
    assert words(run)[:5] == [
        *("STARTED", "WORKFLOW_TASK_COMPLETED", "ACTIVITY_TASK_SCHEDULED", "ACTIVITY_TASK_STARTED"),
        "TIMER_STARTED",
    ]
    assert words(run)[5] == "RESET"
    assert (value(d.task(5).input), d.task(5).maximum_attempts) == ([7], 3)
    d.answer(run)
    d.complete(d.task(5), "paid")
    closed = d.run().history[-1].attributes
    assert (closed["scheduledEventId"], closed["commandId"]) == (3, "a")
    d.answer(d.run())
    d.advance(MINUTE_MS // 2 - 1)
    assert "TIMER_FIRED" not in words(d.run())
    d.advance(1)
    assert words(d.run())[-1] == "TIMER_FIRED"
    assert d.now_ms == START_MS + MINUTE_MS, "the original time"


def test_what_was_closed_stays_closed() -> None:
    d, started = with_a_replayed_run(1, ACTIVITY, TIMER)
    d.complete(d.task(5))
    d.answer(d.run(), c.CancelTimerCommand(id="t"))
    again = reset(d, started, d.execution(started).history_length)
    assert d.execution(again).open_activities == {}
    assert d.execution(again).timers == {}
    assert len(d.tasks(5)) == 1
    assert d.execution(again).seen_event_id == 6


def test_an_answer_is_copied_whole_or_not_at_all() -> None:
    d, started = with_a_replayed_run(1, TIMER, ACTIVITY)
    for torn in (2, 3):
        again = reset(d, started, torn)
        assert d.history(again) == ["STARTED", "RESET"]
        assert d.execution(again).timers == {}
        assert not d.execution(again).is_replayed
        assert d.run().run_id == again.run_id


@pytest.mark.parametrize("end", ["complete", "continue as new", "terminate"])
def test_a_closed_run_goes_on_before_its_end(end: str) -> None:
    d, started = with_a_replayed_run(1, TIMER)
    d.signal(started)
    if end == "terminate":
        d.terminate(started)
    else:
        d.answer(d.run(), DONE if end == "complete" else c.ContinueAsNewCommand())
    again = reset(d, started, d.execution(started).history_length)
    assert d.history(again) == ["STARTED", "WORKFLOW_TASK_COMPLETED", "TIMER_STARTED", "SIGNALED", "RESET"]
    assert list(d.execution(again).timers) == ["t"]
    d.finish(d.run())
    assert d.status(again) is Status.COMPLETED


def test_signals_that_came_after_the_point_are_recorded_again() -> None:
    for subscribe in (Driver.subscribe_replaying, Driver.subscribe_workflows):
        d = Driver()
        subscribe(d, 1)
        started = d.start()
        for number in (1, 2, 3):
            d.signal(started, input=number)
        again = reset(d, started, 2)
        assert d.history(again) == ["STARTED", "SIGNALED", "RESET", "SIGNALED", "SIGNALED"]
        signals = [event for event in d.events(again) if event.type.value.endswith("SIGNALED")]
        assert [value(event.attributes["input"]) for event in signals] == [1, 2, 3]


def test_a_cancel_request_stands_only_before_the_point() -> None:
    d, started = with_a_replayed_run(1, TIMER)
    d.cancel(started)
    without = reset(d, started, 3)
    assert d.status(without) is Status.RUNNING
    d.answer(d.run())
    d.cancel(without)
    again = reset(d, without, d.execution(without).history_length)
    assert d.status(again) is Status.CANCELING
    d.answer(d.run(), CANCEL)
    assert (d.status(again), d.execution(again).close_reason) == (Status.CANCELED, "enough")


def test_an_activity_that_was_asked_to_stop_is_not_begun_again() -> None:
    d, started = with_a_replayed_run(1, ACTIVITY)
    d.signal(started)
    d.answer(d.run(), c.CancelActivityCommand(id="a"))
    again = reset(d, started, d.execution(started).history_length)
    assert "ACTIVITY_CANCELED" in d.history(again)
    assert d.execution(again).open_activities == {}


def test_children_go_with_the_new_run() -> None:
    d = Driver()
    d.subscribe_replaying(1, types=["Order"])
    parent = d.start()
    kids = [c.StartChildCommand(id=name, type="Kid", workflow_id=name) for name in ("open", "closed")]
    d.answer(d.run(), *kids)
    later = c.StartChildCommand(id="later", type="Kid", workflow_id="later")
    d.answer(d.run(), later)
    point = next(event.event_id for event in d.events(parent) if event.attributes.get("seenEventId") == 4)
    d.terminate(c.Started(workflow_id="closed", run_id=""))
    again = reset(d, parent, point - 1)
    assert d.views.execution("open").status is Status.RUNNING
    link = d.views.execution("open").parent
    assert link is not None
    assert link.run_id == again.run_id
    assert d.views.execution("later").status is Status.TERMINATED, "it is not of the new run"
    assert [event.type.value for event in d.events(again)][-2:] == [
        "WORKFLOW_EXECUTION_RESET",
        "CHILD_WORKFLOW_TERMINATED",
    ]
    d.answer(d.run())
    d.terminate(c.Started(workflow_id="open", run_id=""))
    assert words(d.run())[-1] == "CHILD_WORKFLOW_TERMINATED"


def test_a_child_that_is_reset_stays_the_child_of_its_parent() -> None:
    d = Driver()
    d.subscribe_replaying(1)
    d.start(workflow_id="parent")
    d.answer(d.run(), c.StartChildCommand(id="kid", type="Kid", workflow_id="kid"))
    kid = d.views.execution("kid")
    again = reset(d, c.Started(workflow_id="kid", run_id=kid.run_id), 1)
    told = [event.type.value for event in d.events(c.Started(workflow_id="parent", run_id=""))]
    assert "CHILD_WORKFLOW_TERMINATED" not in told
    d.finish(d.run())
    closing = d.events(c.Started(workflow_id="parent", run_id=""))[-1]
    assert (closing.type.value, closing.attributes["runId"]) == ("CHILD_WORKFLOW_COMPLETED", again.run_id)


def test_a_child_that_was_forgotten_is_told_as_lost() -> None:
    d = Driver(limits=Limits(closed_executions_max=2))
    d.subscribe_replaying(1, types=["Order"])
    parent = d.start()
    d.answer(d.run(), c.StartChildCommand(id="kid", type="Kid", workflow_id="kid"))
    point = d.execution(parent).history_length
    d.terminate(c.Started(workflow_id="kid", run_id=""))
    for _ in range(2):
        d.terminate(d.start("Other"))
    again = reset(d, parent, point)
    event = d.events(again)[-1]
    assert event.type.value == "CHILD_WORKFLOW_TERMINATED"
    assert b"forgotten" in bytes(event.attributes["failure"])


def test_accepted_updates_go_on() -> None:
    d, started = with_a_replayed_run(1)
    d.update(started, "first", id="u")
    d.answer(d.run(), c.AcceptUpdateCommand(update_id="u"))
    again = reset(d, started, d.execution(started).history_length)
    assert len(d.told("first")) == 1, "the run that it was asked of is closed"
    d.update(again, "again", id="u")
    d.answer(d.run(), c.CompleteUpdateCommand(update_id="u", result=payload(7)))
    (told,) = d.told("again")
    assert value(getattr(told, "result", None)) == 7


def test_those_who_follow_wait_for_the_new_run() -> None:
    d, started = with_a_replayed_run(1)
    d.step(c.AwaitExecution(workflow_id=started.workflow_id, waiter="all", peer=9, follow=True))
    reset(d, started, 1)
    assert d.told("all") == []
    d.finish(d.run())
    assert len(d.told("all")) == 1
