"""The bounds of a namespace: what is past one is refused, by name, and leaves no trace; what is within goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.helpers.engine_driver import REPORT, Driver, every, failure, payload

from zapserver.engine import Limits
from zapserver.engine import commands as c
from zapserver.engine.errors import LimitReached, TooLarge


def refused(d: Driver, command: c.Command[Any], limit: str) -> LimitReached:
    """The refusal of a command, after proving that it left no trace and names the limit."""
    assert f"(limit {limit})" in d.refused(command, LimitReached)
    with pytest.raises(LimitReached) as refusal:
        d.engine.step(command, d.now_ms)
    assert refusal.value.limit == limit
    return refusal.value


def _signal(started: c.Started, input: object = 1) -> c.SignalExecution:
    return c.SignalExecution(workflow_id=started.workflow_id, signal_name="go", input=payload(input))


# --- backlog ------------------------------------------------------------------------------------------


def test_a_start_behind_a_full_backlog_is_refused_and_other_queues_go_on() -> None:
    d = Driver(limits=Limits(queue_backlog_max=2))
    d.submit()
    d.submit()
    refused(d, c.StartTask(type="email"), "queue-backlog")
    d.submit(queue="other")
    d.start()
    d.start()  # workflow tasks wait in a queue of their own
    refused(d, c.StartWorkflow(type="Order"), "queue-backlog")
    d.subscribe(1, slots=1)  # takes one of the two
    d.submit()


def test_a_repeat_of_a_start_is_answered_however_long_the_backlog_is() -> None:
    d = Driver(limits=Limits(queue_backlog_max=1))
    first = d.submit(request_id="order-17")
    again = d.submit(request_id="order-17")
    assert (again.run_id, again.is_new) == (first.run_id, False)


def test_resets_and_requeued_dead_letters_are_starts_too() -> None:
    d = Driver(limits=Limits(queue_backlog_max=1))
    d.subscribe(1)
    dead = d.submit()
    d.fail(d.task(), failure(non_retryable=True))
    workflow = d.start()
    d.lose(1)
    d.submit()
    refused(d, c.RequeueDeadLetter(workflow_id=dead.workflow_id), "queue-backlog")
    refused(d, c.ResetExecution(workflow_id=workflow.workflow_id, event_id=1), "queue-backlog")


def test_a_schedule_whose_queue_is_full_says_so_and_goes_on() -> None:
    d = Driver(limits=Limits(queue_backlog_max=1))
    d.submit()
    schedule = d.schedule(every(1_000))
    d.advance(1_000)
    assert "(limit queue-backlog)" in schedule.note
    d.subscribe(1)
    d.advance(1_000)
    assert d.task().activity_type == "report"


def test_retries_and_lost_workers_are_not_refused_by_a_backlog() -> None:
    d = Driver(limits=Limits(queue_backlog_max=1))
    d.subscribe(1)
    first, second = d.submit(), d.submit()
    d.lose(1)
    d.subscribe(2)
    assert len(d.tasks(2)) == 2
    assert d.status(first).is_open
    assert d.status(second).is_open


# --- what one execution may hold -----------------------------------------------------------------------


def test_a_workflow_has_so_many_pending_activities_and_more_once_some_have_ended() -> None:
    d = Driver(limits=Limits(pending_activities_max=2))
    d.subscribe_workflows(1)
    d.subscribe(2)
    started = d.start()
    d.call(d.run(), input=1)
    d.call(d.run(), input=2)
    third = c.ScheduleActivity(peer=1, workflow_id=started.workflow_id, type="charge", input=payload(3))
    refused(d, third, "pending-activities")
    d.complete(d.task())
    d.step(third)


@pytest.mark.parametrize(
    ("limits", "limit", "command", "room"),
    [
        (
            Limits(timers_per_execution_max=2),
            "timers-per-execution",
            lambda id: c.StartTimerCommand(id=id, fire_after_ms=60_000),
            c.CancelTimerCommand(id="1"),
        ),
        (
            Limits(pending_activities_max=2),
            "pending-activities",
            lambda id: c.ScheduleActivityCommand(id=id, type="charge"),
            None,
        ),
        (Limits(pending_children_max=2), "pending-children", lambda id: c.StartChildCommand(id=id, type="Kid"), None),
    ],
    ids=["timers", "activities", "children"],
)
def test_an_answer_leaves_a_run_with_no_more_than_it_may_have(
    limits: Limits, limit: str, command: Callable[[str], c.TaskCommand], room: c.TaskCommand | None
) -> None:
    d = Driver(limits=limits)
    d.subscribe_replaying(1)
    started = d.start()
    d.answer(d.run(1), command("1"), command("2"))
    d.signal(started)
    token = d.run(1).task_token

    def answer(*commands: c.TaskCommand) -> c.CompleteWorkflowTask:
        return c.CompleteWorkflowTask(token=token, commands=commands)

    assert "would have 3" in str(refused(d, answer(command("3")), limit))
    if room is not None:
        d.step(answer(room, command("3")))
    else:
        d.step(answer(command("3"), c.CompleteCommand(result=payload("done"))))  # what ends the run ends these too
        assert d.status(started) is c.Status.COMPLETED


def test_a_workflow_takes_so_many_signals() -> None:
    d = Driver(limits=Limits(signals_per_execution_max=2))
    started = d.start()
    d.step(_signal(started))
    d.step(_signal(started))
    assert "2 signals" in str(refused(d, _signal(started), "signals-per-execution"))
    again = d.step(c.ResetExecution(workflow_id=started.workflow_id, event_id=2))
    refused(d, _signal(again), "signals-per-execution")  # the first came with the history, the other was given again


def test_an_execution_knows_the_request_of_its_start_and_the_latest_that_found_it_open() -> None:
    d = Driver(limits=Limits(signal_ids_max=2))

    def start(request_id: str, signal: str = "") -> c.Started:
        return d.step(
            c.StartWorkflow(
                type="Cart",
                workflow_id="cart",
                request_id=request_id,
                signal_name=signal,
                id_conflict=c.IdConflict.USE_EXISTING,
            )
        )

    first = start("r0")
    for number in range(1, 6):
        start(f"r{number}", "add")
    assert [key[2] for key in d.execution(first).request_keys] == ["r0", "r4", "r5"]
    d.restart()
    for known in ("r0", "r4", "r5"):
        assert start(known, "add").run_id == first.run_id
    assert d.execution(first).signal_count == 5


def test_a_history_is_bounded_in_bytes_and_what_runs_can_end() -> None:
    d = Driver(limits=Limits(history_bytes_max=3_000))
    d.subscribe_workflows(1)
    d.subscribe(2)
    started = d.start()
    d.step(_signal(started, "x" * 1_500))
    d.call(d.run())
    d.step(_signal(started, "x" * 1_500))
    execution = d.execution(started)
    assert execution.history_bytes > 3_000
    refused(d, _signal(started), "history-bytes")
    refused(d, c.ScheduleActivity(peer=1, workflow_id=started.workflow_id, type="charge"), "history-bytes")
    d.complete(d.task(), "y" * 5_000)
    d.finish(d.run())
    assert d.status(started) is c.Status.COMPLETED


def test_a_failed_attempt_is_the_last_one_when_the_history_is_full_of_bytes() -> None:
    d = Driver(limits=Limits(history_bytes_max=1_000))
    d.subscribe(1)
    started = d.submit(input="x" * 1_000)
    d.fail(d.task())
    assert d.status(started) is c.Status.FAILED


def test_a_start_with_a_signal_is_whole_or_not_at_all() -> None:
    """The signal of a new run is part of its start, so no bound of histories comes between them."""
    d = Driver(limits=Limits(history_bytes_max=1, history_events_max=1))
    command = c.StartWorkflow(type="Cart", workflow_id="cart", signal_name="add", signal_input=payload(1))
    d.step(command)
    refused(d, command, "history-events")
    assert d.history(c.Started(workflow_id="cart", run_id="")) == ["STARTED", "SIGNALED"]


# --- payloads ------------------------------------------------------------------------------------------

LONG = payload("x" * 99)


@pytest.mark.parametrize(
    "command",
    [
        c.StartTask(type="t", input=LONG),
        c.StartWorkflow(type="W", input=LONG),
        c.StartWorkflow(type="W", workflow_id="w", signal_name="go", signal_input=LONG),
        c.SignalExecution(workflow_id="open", signal_name="go", input=LONG),
        c.QueryExecution(workflow_id="open", query_type="state", waiter="w", args=LONG),
        c.ScheduleActivity(peer=1, workflow_id="open", type="t", input=LONG),
        c.CompleteActivity(token="token", result=LONG),
        c.AnswerQuery(peer=1, token="token", result=LONG),
        c.CompleteWorkflowTask(
            token="token", commands=(c.WorkflowCommand(kind=c.WorkflowCommandKind.COMPLETE, payload=LONG),)
        ),
        c.PutSchedule(
            schedule_id="s", spec=every(1_000), action=c.Action(type="t", task_queue="q", is_task=True, input=LONG)
        ),
        c.UpdateSchedule(schedule_id="s", action=c.Action(type="t", task_queue="q", is_task=True, input=LONG)),
    ],
    ids=lambda command: type(command).__name__,
)
def test_every_payload_is_bounded(command: c.Command[Any]) -> None:
    d = Driver(limits=Limits(payload_bytes_max=100))
    d.start(workflow_id="open")
    text = d.refused(command, TooLarge)
    assert "101 bytes; at most 100" in text
    assert "(limit payload-bytes)" in text


@pytest.mark.parametrize(
    "command",
    [
        c.StartTask(type="t", memo=LONG),
        c.StartWorkflow(type="W", memo=LONG),
        c.HeartbeatActivity(token="token", details=LONG),
        c.PutSchedule(
            schedule_id="s", spec=every(1_000), action=c.Action(type="t", task_queue="q", is_task=True, memo=LONG)
        ),
    ],
    ids=lambda command: type(command).__name__,
)
def test_memos_and_details_have_a_bound_of_their_own(command: c.Command[Any]) -> None:
    d = Driver(limits=Limits(small_payload_bytes_max=100))
    assert "(limit small-payload-bytes)" in d.refused(command, TooLarge)


def test_a_payload_at_its_bound_is_taken_and_arrives() -> None:
    d = Driver(limits=Limits(payload_bytes_max=101, small_payload_bytes_max=101))
    d.subscribe(1)
    d.step(c.StartTask(type="t", input=LONG, memo=LONG))
    assert d.task().input == LONG
    d.complete(d.task(), "x" * 99)


# --- actions a second ----------------------------------------------------------------------------------


def test_a_namespace_takes_a_seconds_worth_at_once_and_then_its_rate() -> None:
    d = Driver(limits=Limits(actions_per_second=4))
    for _ in range(4):
        d.submit()
    refusal = refused(d, c.StartTask(type="email"), "actions-per-second")
    assert (refusal.status, refusal.retry_after_ms) == (429, 250)
    assert "try again in 250 ms" in str(refusal)
    d.jump(249)
    assert refused(d, c.StartTask(type="email"), "actions-per-second").retry_after_ms == 1
    d.jump(1)
    d.submit()
    refused(d, c.StartWorkflow(type="Order"), "actions-per-second")
    d.advance(3_600_000)  # an hour of rest saves up one second's worth, no more
    for _ in range(4):
        d.submit()
    refused(d, c.StartTask(type="email"), "actions-per-second")


def test_a_refused_action_costs_nothing() -> None:
    d = Driver(limits=Limits(actions_per_second=1))
    with pytest.raises(Exception, match="not found"):
        d.step(c.SignalExecution(workflow_id="ghost", signal_name="go"))
    d.submit()
    refused(d, c.StartTask(type="email"), "actions-per-second")


def test_work_and_schedules_go_on_past_the_rate() -> None:
    d = Driver(limits=Limits(actions_per_second=1))
    d.subscribe_workflows(1)
    d.subscribe(2)
    d.schedule(every(100))
    started = d.start()
    refused(d, _signal(started), "actions-per-second")
    d.call(d.run())
    d.complete(d.task())
    d.cancel(started)
    d.finish(d.run())
    before = len(d.tasks())
    d.advance(500)
    assert len(d.tasks()) == before + 5


def test_the_rate_holds_exactly_over_a_long_time() -> None:
    d = Driver(limits=Limits(actions_per_second=7), watch=False)
    taken = 0
    for _ in range(1_000):
        d.jump(13)
        try:
            d.step(c.StartTask(type="email"))
            taken += 1
        except LimitReached:
            pass
    assert taken == 7 + (13_000 - 13) * 7 // 1_000


# --- the others say their names ------------------------------------------------------------------------


def test_older_bounds_are_named_too() -> None:
    d = Driver(
        limits=Limits(
            open_executions_max=1,
            schedules_max=1,
            waits_per_peer_max=1,
            subscriptions_per_peer_max=1,
            types_per_subscription_max=1,
            pending_queries_max=1,
        )
    )
    d.subscribe_workflows(1)
    started = d.start()
    d.schedule(every(3_600_000))
    d.wait(started, "a")
    d.ask(started, "b")
    subscribe = c.Subscribe(peer=1, kind=c.QueueKind.ACTIVITY, task_queue="q")
    many = c.Subscribe(peer=3, kind=c.QueueKind.ACTIVITY, task_queue="q", types=frozenset({"a", "b"}))
    query = c.QueryExecution(workflow_id=started.workflow_id, query_type="q", waiter="d")
    refused(d, c.StartTask(type="email"), "open-executions")
    refused(d, c.PutSchedule(schedule_id="b", spec=every(1_000), action=REPORT), "schedules")
    refused(d, c.AwaitExecution(workflow_id=started.workflow_id, waiter="c", peer=9), "waits-per-peer")
    refused(d, subscribe, "subscriptions-per-peer")
    refused(d, many, "types-per-subscription")
    refused(d, query, "pending-queries")
