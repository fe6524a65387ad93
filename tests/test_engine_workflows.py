"""Workflows as Go's workers run them: one holder, activities by calls, results by push; and lost holders."""

from __future__ import annotations

import pytest
from tests.helpers.engine_driver import Driver, failure, payload, value, with_a_holder

from zapserver.engine import commands as c
from zapserver.engine.commands import Status, WorkflowCommand, WorkflowCommandKind, WorkflowTimeouts
from zapserver.engine.errors import Conflict, Invalid, NotFound, StaleToken
from zapserver.engine.retry import RetryPolicy

# --- life ----------------------------------------------------------------------------------------------


def test_a_workflow_starts_asks_for_an_activity_gets_its_result_and_completes() -> None:
    d, started = with_a_holder()
    run = d.run(1)
    assert (run.workflow_type, value(run.input), run.attempt) == ("Order", ["in"], 1)
    assert (run.workflow_id, run.run_id) == (started.workflow_id, started.run_id)
    scheduled = d.call(run, "charge", {"cents": 5})
    task = d.task(5)
    assert (task.activity_id, task.activity_type, value(task.input)) == (
        scheduled.activity_id,
        "charge",
        {"cents": 5},
    )
    assert scheduled.task_token == task.task_token
    assert not task.is_task
    d.complete(task, "paid")
    (result,) = d.results(1)
    assert (result.activity_id, value(result.result), result.failure) == (scheduled.activity_id, "paid", None)
    d.finish(run, "shipped")
    assert d.status(started) is Status.COMPLETED
    assert value(d.execution(started).result) == "shipped"
    assert d.history(started) == [
        "STARTED",
        "ACTIVITY_SCHEDULED",
        "ACTIVITY_STARTED",
        "ACTIVITY_COMPLETED",
        "COMPLETED",
    ]


def test_a_workflow_waits_for_a_worker_and_the_ids_are_made_when_none_is_given() -> None:
    d = Driver()
    first, second = d.start("Order"), d.start("Order")
    assert first.workflow_id.startswith("order-")
    assert first.workflow_id != second.workflow_id
    d.subscribe_workflows(1)
    assert [run.run_id for run in d.runs(1)] == [first.run_id, second.run_id]


def test_a_made_id_that_is_taken_by_chance_gets_longer() -> None:
    d = Driver()
    run_id = "abcdefghijklmnopqrstuvwx"
    first = d.step(c.StartWorkflow(type="Order", run_id=f"{run_id}-1"))
    second = d.step(c.StartWorkflow(type="Order", run_id=f"{run_id}-2"))
    assert (first.workflow_id, second.workflow_id) == (f"order-{run_id}", f"order-{run_id}-2")


def test_an_activity_waits_for_its_worker_and_the_failure_is_pushed_too() -> None:
    d = Driver()
    d.subscribe_workflows(1)
    d.start()
    scheduled = d.call(d.run())
    assert scheduled.task_token == ""
    d.subscribe(5)
    d.fail(d.task(5), failure("no funds", "Payment"))
    (result,) = d.results(1)
    assert result.result is None
    assert b"no funds" in (result.failure or b"")


def test_an_activity_that_names_no_policy_has_one_attempt_and_one_that_does_has_more() -> None:
    d, _ = with_a_holder()
    d.call(d.run())
    d.fail(d.task(5))
    assert len(d.results()) == 1
    d.call(d.run(), "other", retry=RetryPolicy(maximum_attempts=2))
    d.fail(d.task(5))
    assert len(d.results()) == 1
    d.advance(1_000)
    d.fail(d.task(5))
    assert len(d.results()) == 2


def test_an_activity_may_name_another_queue() -> None:
    d, started = with_a_holder()
    d.subscribe(6, queue="gpu")
    command = c.ScheduleActivity(peer=1, workflow_id=started.workflow_id, type="render", task_queue="gpu")
    d.step(command)
    assert d.tasks(5) == []
    assert d.task(6).activity_type == "render"


def test_a_workflow_that_fails_says_how() -> None:
    d, started = with_a_holder()
    d.fail_run(d.run(), failure("no funds", "Payment"))
    assert d.status(started) is Status.FAILED
    assert d.failure(started)["code"] == "Payment"
    assert not d.execution(started).is_dead_letter, "dead letters are one-shot tasks"


def test_a_workflow_that_fails_with_garbage_or_nothing_has_a_readable_failure() -> None:
    d, started = with_a_holder()
    d.fail_run(d.run(), b"\xff{")
    assert d.failure(started)["code"] == "DecodeError"
    started = d.start()
    d.answer(d.run(), WorkflowCommand(kind=WorkflowCommandKind.FAIL))
    assert d.failure(started)["code"] == "ApplicationError"


def test_the_first_end_wins_and_the_second_answer_is_refused() -> None:
    d, started = with_a_holder()
    complete = WorkflowCommand(kind=WorkflowCommandKind.COMPLETE, payload=payload(1))
    fail = WorkflowCommand(kind=WorkflowCommandKind.FAIL, payload=c.Payload(failure()))
    d.answer(d.run(), complete, fail)
    assert d.status(started) is Status.COMPLETED
    d.refused(c.CompleteWorkflowTask(token=d.run().task_token, commands=(fail,)), NotFound)


def test_a_reserved_command_before_the_end_is_passed_over() -> None:
    d, started = with_a_holder()
    d.answer(
        d.run(),
        WorkflowCommand(kind=WorkflowCommandKind.SCHEDULE_ACTIVITY),
        WorkflowCommand(kind=WorkflowCommandKind.COMPLETE),
    )
    assert d.status(started) is Status.COMPLETED
    assert d.execution(started).result is None


@pytest.mark.parametrize("ending", ["complete", "fail", "terminate"])
def test_the_end_of_a_workflow_stops_its_activities_and_none_of_them_begins_any_more(ending: str) -> None:
    d = Driver()
    d.subscribe_workflows(1)
    d.subscribe(5, slots=1)
    started = d.start()
    for name in ("runs", "waits", "waits too"):
        d.call(d.run(), name)
    other = d.submit("other")
    match ending:
        case "complete":
            d.finish(d.run())
        case "fail":
            d.fail_run(d.run())
        case "terminate":
            d.terminate(started)
    assert [task.activity_type for task in d.tasks(5)] == ["runs", "other"]
    assert d.task(5).run_id == other.run_id
    assert [stop.task_token for stop in d.stops(5)] == [d.tasks(5)[0].task_token]
    assert d.history(started)[-1] in ("COMPLETED", "FAILED", "TERMINATED")
    d.refused(c.CompleteActivity(token=d.tasks(5)[0].task_token, result=None), NotFound)


def test_a_terminated_workflow_frees_the_slot_of_its_holder_and_tells_it() -> None:
    d = Driver()
    d.subscribe_workflows(1, slots=1)
    started, following = d.start(), d.start()
    d.terminate(started)
    (told,) = d.cancels(1)
    assert (told.run_id, told.reason) == (started.run_id, "the execution is TERMINATED")
    assert d.run(1).run_id == following.run_id


# --- who may do what -----------------------------------------------------------------------------------


def test_only_the_holder_may_ask_for_activities() -> None:
    d, started = with_a_holder()
    command = c.ScheduleActivity(peer=2, workflow_id=started.workflow_id, type="charge")
    assert "not held by this connection" in d.refused(command, Conflict)
    task = d.submit()
    d.refused(c.ScheduleActivity(peer=5, workflow_id=task.workflow_id, type="charge"), Conflict)
    d.finish(d.run())
    command = c.ScheduleActivity(peer=1, workflow_id=started.workflow_id, type="charge")
    assert "COMPLETED" in d.refused(command, Conflict)
    d.refused(c.ScheduleActivity(peer=1, workflow_id="ghost", type="charge"), NotFound)


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": ""},
        {"type": "a\0"},
        {"task_queue": "\n"},
        {"task_queue": "q" * 1_001},
        {"timeouts": c.ActivityTimeouts(schedule_to_close_ms=-1)},
    ],
    ids=str,
)
def test_an_activity_that_makes_no_sense_is_refused_and_counts_as_no_call(wrong: dict[str, object]) -> None:
    d, started = with_a_holder()
    given = {"peer": 1, "workflow_id": started.workflow_id, "type": "charge", **wrong}
    d.refused(c.ScheduleActivity(**given), Invalid)  # type: ignore[arg-type]
    d.call(d.run())
    assert d.task(5).activity_type == "charge"


@pytest.mark.parametrize(
    "command",
    [
        c.StartWorkflow(type=""),
        c.StartWorkflow(type="\0"),
        c.StartWorkflow(type="\0", workflow_id="w"),
        c.StartWorkflow(type="Order", task_queue=""),
        c.StartWorkflow(type="Order", workflow_id="w" * 1_001),
        c.StartWorkflow(type="Order", run_id="a|b"),
        c.StartWorkflow(type="Order", run_id="\0"),
        c.StartWorkflow(type="Order", run_id="r" * 1_001),
        c.StartWorkflow(type="Order", request_id="\0"),
        c.StartWorkflow(type="Order", cron_schedule="never"),
        c.StartWorkflow(type="Order", cron_schedule="0 0 30 2 *"),
        c.StartWorkflow(type="Order", signal_name="\0"),
        c.StartWorkflow(type="Order", signal_name="s" * 1_001),
        c.StartWorkflow(type="Order", timeouts=WorkflowTimeouts(run_ms=-1)),
        c.StartWorkflow(type="Order", timeouts=WorkflowTimeouts(execution_ms=10**16)),
    ],
)
def test_a_workflow_that_makes_no_sense_is_refused(command: c.StartWorkflow) -> None:
    d = Driver()
    d.refused(command, Invalid)


def test_two_refusals_have_the_words_that_gos_peers_look_for() -> None:
    d, started = with_a_holder()
    assert d.refused(c.StartWorkflow(type=""), Invalid) == "workflow type required"
    nameless = c.ScheduleActivity(peer=1, workflow_id=started.workflow_id, type="")
    assert d.refused(nameless, Invalid) == "activity_type required"


def test_an_open_id_is_a_conflict_and_so_is_a_run_id_that_was_used_before() -> None:
    d, _ = with_a_holder()
    d.step(c.StartWorkflow(type="Order", workflow_id="one", run_id="run"))
    assert "open already" in d.refused(c.StartWorkflow(type="Order", workflow_id="one"), Conflict)
    assert "exists already" in d.refused(c.StartWorkflow(type="Order", workflow_id="two", run_id="run"), Conflict)
    d.finish(d.run())
    d.refused(c.StartWorkflow(type="Order", workflow_id="one", run_id="run"), Conflict)
    d.step(c.StartWorkflow(type="Order", workflow_id="one"))


def test_request_ids_make_a_repeated_start_harmless_with_and_without_a_workflow_id() -> None:
    d = Driver()
    for workflow_id in ("mine", ""):
        first = d.start(workflow_id=workflow_id, request_id="r")
        again = d.start(workflow_id=workflow_id, request_id="r")
        assert (again.run_id, again.is_new) == (first.run_id, False)


# --- a holder is lost ----------------------------------------------------------------------------------


def test_another_worker_takes_over_and_what_was_done_is_not_done_twice() -> None:
    d, started = with_a_holder(1)
    done = d.call(d.run(), "charge", 1)
    d.complete(d.task(5), "paid")
    d.call(d.run(), "pack", 2)
    d.subscribe_workflows(2)
    d.lose(1)
    run = d.run(2)
    assert (run.run_id, run.attempt, value(run.input)) == (started.run_id, 2, ["in"])

    again = d.call(run, "charge", 1)
    assert (again.activity_id, again.task_token) == (done.activity_id, "")
    assert d.results(2) == [], "a Go worker listens only after it has read the reply"
    d.advance(19)
    assert d.results(2) == []
    d.advance(1)
    (result,) = d.results(2)
    assert (result.activity_id, value(result.result)) == (done.activity_id, "paid")

    pending = d.call(run, "pack", 2)
    assert pending.task_token == d.task(5).task_token, "it still runs, under the same lease"
    d.complete(d.task(5), "packed")
    assert [value(result.result) for result in d.results(2)] == ["paid", "packed"]
    d.call(run, "ship", 3)
    assert [task.activity_type for task in d.tasks(5)] == ["charge", "pack", "ship"]
    d.finish(run)
    assert d.status(started) is Status.COMPLETED


def test_a_recorded_failure_is_answered_as_one() -> None:
    d, _ = with_a_holder(1)
    d.call(d.run())
    d.fail(d.task(5), failure("no funds"))
    d.lose(1)
    d.subscribe_workflows(2)
    d.call(d.run(2))
    d.advance(20)
    assert b"no funds" in (d.results(2)[0].failure or b"")


def test_a_result_comes_to_a_new_holder_only_after_it_asked() -> None:
    d, _ = with_a_holder(1)
    d.call(d.run())
    d.lose(1)
    d.subscribe_workflows(2)
    d.complete(d.task(5))
    assert d.results(2) == []
    d.call(d.run(2))
    d.advance(20)
    assert len(d.results(2)) == 1


def test_a_result_on_its_way_is_dropped_with_the_end_of_the_run() -> None:
    d, _ = with_a_holder(1)
    d.call(d.run())
    d.complete(d.task(5))
    d.lose(1)
    d.subscribe_workflows(2)
    d.call(d.run(2))
    d.finish(d.run(2))
    d.advance(1_000)
    assert d.results(2) == []
    assert d.engine.next_deadline_ms() is None


def test_a_result_on_its_way_does_not_go_to_the_next_holder() -> None:
    d, _ = with_a_holder(1)
    d.call(d.run())
    d.complete(d.task(5))
    d.lose(1)
    d.subscribe_workflows(2)
    d.call(d.run(2))
    d.lose(2)
    d.subscribe_workflows(3)
    d.advance(20)
    assert d.results(3) == []
    d.call(d.run(3))
    d.advance(20)
    assert len(d.results(3)) == 1


@pytest.mark.parametrize(("type", "input"), [("refund", 1), ("charge", 2)])
def test_another_call_than_the_recorded_one_is_refused(type: str, input: object) -> None:
    d, started = with_a_holder(1)
    d.call(d.run(), "charge", 1)
    d.lose(1)
    d.subscribe_workflows(2)
    wrong = c.ScheduleActivity(peer=2, workflow_id=started.workflow_id, type=type, input=payload(input))
    text = d.refused(wrong, Conflict)
    assert "activity 1" in text
    assert "not deterministic" in text
    d.call(d.run(2), "charge", 1)


def test_the_old_holder_has_no_say_any_more() -> None:
    d, started = with_a_holder(1)
    old = d.run(1)
    d.subscribe_workflows(2)
    d.hand_back(old)
    assert d.run(2).run_id == started.run_id
    done = WorkflowCommand(kind=WorkflowCommandKind.COMPLETE)
    assert "task 1" in d.refused(c.CompleteWorkflowTask(token=old.task_token, commands=(done,)), StaleToken)
    d.refused(c.HandBackTask(token=old.task_token), StaleToken)
    d.refused(c.ScheduleActivity(peer=1, workflow_id=started.workflow_id, type="charge"), Conflict)


def test_runs_of_a_lost_worker_keep_their_order_ahead_of_newer_ones() -> None:
    d = Driver()
    d.subscribe_workflows(1)
    runs = [d.start().run_id for _ in range(3)]
    d.lose(1)
    runs.append(d.start().run_id)
    d.subscribe_workflows(2)
    assert [run.run_id for run in d.runs(2)] == runs


# --- workers that do not know a type -------------------------------------------------------------------


def test_an_unknown_type_goes_to_another_worker_and_never_back() -> None:
    d = Driver()
    d.subscribe_workflows(1)
    d.subscribe_workflows(2)
    started = d.start("Rare")
    first = d.run()
    d.answer(first)
    assert d.run().peer == 3 - first.peer
    d.answer(d.run())
    assert len(d.runs()) == 2, "nobody is asked twice"
    (waiting,) = d.views.explain(started.workflow_id)
    assert "does not know" in waiting.reason
    d.start("Common")
    assert d.run().workflow_type == "Common"
    d.subscribe_workflows(3, types=["Rare"])
    assert d.run(3).run_id == started.run_id
    d.finish(d.run(3))
    assert d.status(started) is Status.COMPLETED


def test_a_worker_that_refused_a_type_takes_what_waits_behind_it() -> None:
    d = Driver()
    d.subscribe_workflows(1, slots=1)
    d.start("Rare")
    common = [d.start("Common").run_id for _ in range(2)]
    d.answer(d.run())
    d.finish(d.run())
    d.finish(d.run())
    assert [run.run_id for run in d.runs()][1:] == common, "the rare one waits for a worker that knows it"


def test_a_worker_that_unsubscribed_may_still_refuse() -> None:
    d = Driver()
    subscription = d.subscribe_workflows(1)
    started = d.start("Rare")
    d.step(c.Unsubscribe(peer=1, subscription_id=subscription))
    d.answer(d.run())
    d.subscribe_workflows(2)
    assert d.run(2).run_id == started.run_id


def test_a_refused_run_that_was_to_be_canceled_is_canceled() -> None:
    d, started = with_a_holder()
    d.cancel(started)
    d.answer(d.run())
    assert d.status(started) is Status.CANCELED


def test_a_canceled_run_that_is_handed_back_is_canceled_and_the_slot_goes_on() -> None:
    d = Driver()
    d.subscribe_workflows(1, slots=1)
    started, following = d.start(), d.start()
    d.cancel(started)
    d.hand_back(d.run())
    assert d.status(started) is Status.CANCELED
    assert d.run().run_id == following.run_id


def test_a_run_with_calls_that_times_out_in_line_leaves_the_line() -> None:
    """It waits for workers of the kind that made the calls, and has to be found there when it ends."""
    d, started = with_a_holder()
    d.terminate(started)
    started = d.start(timeouts=c.WorkflowTimeouts(run_ms=5_000))
    d.call(d.run(1))
    d.lose(1)
    assert d.views.counts()["waiting_workflow_tasks"] == 1
    d.advance(5_000)
    assert d.status(started) is Status.TIMED_OUT
    assert d.views.counts()["waiting_workflow_tasks"] == 0
    d.subscribe_workflows(2)
    assert d.runs(2) == []


def test_runs_that_wait_for_another_try_when_the_server_restarts_all_go_on() -> None:
    """Found by the simulation: they had one place in line between them, and all but one were lost."""
    d = Driver()
    runs = [d.start("Order"), d.start("Order"), d.start("Order")]
    for _ in range(4):
        d.subscribe_workflows(1)
        d.lose(1)
    d.restart()
    d.advance(60_000)
    d.subscribe_workflows(2)
    assert {run.run_id for run in d.runs(2)} == {started.run_id for started in runs}
