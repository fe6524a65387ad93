"""Tasks and those who hold them: heartbeats, stale tokens, lost and draining workers, cancel and terminate."""

from __future__ import annotations

import pytest
from tests.helpers.engine_driver import DAY_MS, Driver, failure, payload, value

from zapserver.engine import commands as c
from zapserver.engine.commands import Status
from zapserver.engine.errors import NotFound, StaleToken
from zapserver.engine.retry import RetryPolicy

FEW = RetryPolicy(initial_interval_ms=1_000, maximum_interval_ms=4_000, maximum_attempts=3)
ENDLESS = RetryPolicy(initial_interval_ms=1, maximum_interval_ms=1, maximum_attempts=0)


# --- heartbeats and tokens -----------------------------------------------------------------------------


def test_heartbeat_details_reach_the_next_attempt() -> None:
    d = Driver()
    d.subscribe(1)
    d.submit(retry=FEW)
    assert d.task().heartbeat_details is None
    d.heartbeat(d.task(), {"row": 10})
    d.heartbeat(d.task(), {"row": 20})
    d.heartbeat(d.task())
    d.fail(d.task())
    d.advance(1_000)
    assert d.task().attempt == 2
    assert value(d.task().heartbeat_details) == {"row": 20}


@pytest.mark.parametrize("ending", ["retry", "timeout", "lost", "handed back"])
def test_the_token_of_an_ended_lease_is_refused_for_everything(ending: str) -> None:
    d = Driver()
    d.subscribe(1)
    d.submit(retry=FEW, timeouts=c.ActivityTimeouts(start_to_close_ms=2_000))
    old = d.task()
    match ending:
        case "retry":
            d.fail(old)
            d.advance(1_000)
        case "timeout":
            d.advance(3_000)
        case "lost":
            d.lose(1)
        case "handed back":
            d.hand_back(old)
    d.subscribe(2)
    assert d.task().attempt == 2
    for command in (
        c.CompleteActivity(token=old.task_token, result=payload(1)),
        c.FailActivity(token=old.task_token, failure=failure()),
        c.HeartbeatActivity(token=old.task_token, details=payload(1)),
        c.HandBackTask(token=old.task_token),
    ):
        assert "attempt 1" in d.refused(command, StaleToken)
    d.complete(d.task(), "second")


def test_an_answer_during_the_backoff_is_refused_and_says_so() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit(retry=FEW)
    d.fail(d.task())
    assert "backs off" in d.refused(c.CompleteActivity(token=d.task().task_token, result=None), StaleToken)
    assert d.status(started) is Status.RUNNING


def test_a_second_answer_to_the_same_lease_is_refused() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit()
    d.complete(d.task(), 1)
    d.refused(c.CompleteActivity(token=d.task().task_token, result=payload(2)), NotFound)
    assert value(d.execution(started).result) == 1


@pytest.mark.parametrize("token", ["", "act", "act|x|1|y", "act|x|1", "wf|a|b|1|c", "||||", "act|" * 50, "wf|"])
def test_a_made_up_token_is_not_found(token: str) -> None:
    d = Driver()
    d.subscribe(1)
    d.submit()
    d.refused(c.CompleteActivity(token=token, result=None), NotFound)
    d.refused(c.HandBackTask(token=token), NotFound)
    d.refused(c.CompleteWorkflowTask(token=token, commands=()), NotFound)


def test_a_guessed_token_of_the_right_attempt_is_stale() -> None:
    d = Driver()
    d.subscribe(1)
    d.submit()
    start, _, _ = d.task().task_token.rpartition("|")
    d.refused(c.CompleteActivity(token=f"{start}|{'0' * 32}", result=None), StaleToken)


# --- workers that vanish, workers that drain -----------------------------------------------------------


def test_a_lost_workers_tasks_go_to_others_at_once_in_their_old_order_ahead_of_newer_ones() -> None:
    d = Driver()
    d.subscribe(1)
    first = [d.submit() for _ in range(4)]
    subscription = d.subscribe(3, slots=0)
    d.lose(1)
    later = [d.submit() for _ in range(2)]
    assert d.tasks(3) == []
    d.step(c.SetSlots(peer=3, subscription_id=subscription, slots=10))
    assert [task.run_id for task in d.tasks(3)] == [started.run_id for started in first + later]
    assert [task.attempt for task in d.tasks(3)] == [2, 2, 2, 2, 1, 1]


def test_a_lost_workers_task_goes_to_an_idle_worker_in_the_same_step() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit()
    d.subscribe(2)
    d.lose(1)
    assert (d.task(2).run_id, d.task(2).attempt) == (started.run_id, 2)
    d.complete(d.task(2))
    assert d.status(started) is Status.COMPLETED


def test_each_lost_worker_is_charged_and_the_last_makes_a_dead_letter() -> None:
    d = Driver()
    started = d.submit(retry=FEW)
    for peer in (1, 2, 3):
        d.subscribe(peer)
        assert d.task(peer).attempt == peer
        d.lose(peer)
    assert d.status(started) is Status.FAILED
    assert d.failure(started)["code"] == "WorkerLost"
    assert "worker 3" in str(d.failure(started)["message"])
    assert d.execution(started).is_dead_letter


def test_losses_of_tasks_that_came_back_twice_keep_the_order() -> None:
    d = Driver()
    d.subscribe(1, slots=3)
    d.subscribe(2, slots=3)
    runs = [d.submit().run_id for _ in range(10)]
    d.lose(2)
    d.lose(1)
    d.subscribe(3)
    assert [task.run_id for task in d.tasks(3)] == runs


def test_handing_back_charges_no_attempt_and_the_task_goes_to_another() -> None:
    d = Driver()
    d.subscribe(1)
    d.subscribe(2)
    started = d.submit(retry=RetryPolicy(maximum_attempts=1))
    d.hand_back(d.task(1))
    assert (d.task(2).run_id, d.task(2).attempt) == (started.run_id, 2)
    assert "ACTIVITY_HANDED_BACK" in d.history(started)
    d.hand_back(d.task(2))
    d.complete(d.task(1))
    assert d.status(started) is Status.COMPLETED


def test_a_draining_worker_gets_nothing_back_and_others_keep_the_order() -> None:
    d = Driver()
    subscription = d.subscribe(1)
    runs = [d.submit().run_id for _ in range(3)]
    d.step(c.SetSlots(peer=1, subscription_id=subscription, slots=0))
    for task in d.tasks(1):
        d.hand_back(task)
    runs.append(d.submit().run_id)
    assert len(d.tasks(1)) == 3
    d.subscribe(2)
    assert [task.run_id for task in d.tasks(2)] == runs


def test_who_unsubscribed_first_can_still_hand_back() -> None:
    d = Driver()
    subscription = d.subscribe(1)
    started = d.submit()
    d.step(c.Unsubscribe(peer=1, subscription_id=subscription))
    d.hand_back(d.task(1))
    d.subscribe(2)
    assert d.task(2).run_id == started.run_id


def test_who_hands_back_takes_the_next_task_and_this_one_only_if_nobody_else_will() -> None:
    d = Driver()
    d.subscribe(1, slots=1)
    first, second = d.submit(), d.submit()
    d.hand_back(d.task())
    assert d.task().run_id == second.run_id
    d.complete(d.task())
    assert d.task().run_id == first.run_id


def test_an_idle_neighbour_comes_before_the_one_that_handed_back() -> None:
    d = Driver()
    d.subscribe(1, slots=2)
    d.subscribe(2, slots=2)
    kept = d.submit()
    d.submit()
    d.complete(d.task(2))
    d.hand_back(d.task(1))
    assert d.task(2).run_id == kept.run_id


def test_an_idle_neighbour_that_names_its_types_comes_before_it_as_well() -> None:
    d = Driver()
    d.subscribe(1, slots=3)
    d.subscribe(2, slots=3, types=["email"])
    for _ in range(3):
        d.submit("email")
    assert [task.peer for task in d.tasks()] == [2, 1, 2], "the next turn is the first worker's"
    returned = d.task(1)
    d.hand_back(returned)
    assert d.task(2).run_id == returned.run_id


# --- cancel and terminate ------------------------------------------------------------------------------


def test_cancel_of_a_waiting_task_ends_it_at_once() -> None:
    d = Driver()
    started = d.submit()
    d.cancel(started, "not needed")
    assert d.status(started) is Status.CANCELED
    assert d.history(started)[-3:] == ["CANCEL_REQUESTED", "ACTIVITY_CANCELED", "CANCELED"]
    assert b'"not needed"' in bytes(d.events(started)[-2].attributes["failure"])
    d.subscribe(1)
    assert d.tasks() == []
    assert d.views.dead_letters()[0] == []


def test_cancel_during_the_backoff_ends_it_at_once() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit(retry=FEW)
    d.fail(d.task())
    d.cancel(started)
    assert d.status(started) is Status.CANCELED
    d.advance(DAY_MS)
    assert len(d.tasks()) == 1


def test_cancel_of_a_running_task_reaches_its_worker_which_may_acknowledge() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit(retry=FEW)
    d.cancel(started, "not needed")
    (stop,) = d.stops(1)
    assert (stop.task_token, stop.reason) == (d.task().task_token, "not needed")
    assert d.status(started) is Status.CANCELING
    assert d.heartbeat(d.task()) is True
    d.fail(d.task(), failure(code="CanceledError"))
    assert d.status(started) is Status.CANCELED
    assert not d.execution(started).is_dead_letter


def test_a_canceled_task_that_completes_anyway_is_completed() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit()
    d.cancel(started)
    d.complete(d.task(), "too late to stop")
    assert d.status(started) is Status.COMPLETED
    assert value(d.execution(started).result) == "too late to stop"


def test_a_canceled_task_that_fails_is_not_tried_again() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit(retry=FEW)
    d.cancel(started)
    d.fail(d.task())
    assert d.status(started) is Status.FAILED


def test_a_canceled_task_whose_worker_is_lost_or_drains_is_canceled() -> None:
    d = Driver()
    d.subscribe(1)
    lost = d.submit(retry=FEW)
    d.cancel(lost)
    d.lose(1)
    assert d.status(lost) is Status.CANCELED
    d.subscribe(2)
    drained = d.submit(retry=FEW)
    d.cancel(drained)
    d.hand_back(d.task())
    assert d.status(drained) is Status.CANCELED


def test_a_canceled_task_has_no_deadline_but_its_own() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit(timeouts=c.ActivityTimeouts(start_to_close_ms=10 * DAY_MS))
    d.cancel(started)
    d.advance(DAY_MS)
    assert d.status(started) is Status.CANCELING


def test_a_repeated_cancel_adds_nothing() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit()
    d.cancel(started, "first")
    length = len(d.events(started))
    d.cancel(started, "second")
    assert len(d.events(started)) == length
    assert len(d.stops()) == 1
    d.fail(d.task(), failure(code="CanceledError"))
    d.cancel(started, "third")
    assert d.status(started) is Status.CANCELED
    assert d.events(started)[-1].attributes["reason"] == "first"


def test_a_canceled_error_that_nobody_asked_for_is_a_failure_like_others() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit(retry=FEW)
    d.fail(d.task(), failure(code="CanceledError"))
    assert d.status(started) is Status.RUNNING
    d.advance(1_000)
    assert d.task().attempt == 2


def test_terminate_stops_the_worker_and_refuses_its_answer() -> None:
    d = Driver()
    d.subscribe(1, slots=1)
    started = d.submit()
    following = d.submit()
    d.terminate(started)
    assert d.status(started) is Status.TERMINATED
    assert "TERMINATED" in d.stops(1)[0].reason
    assert d.task(1).run_id == following.run_id, "the slot is free for the next"
    d.refused(c.CompleteActivity(token=d.tasks(1)[0].task_token, result=None), NotFound)
    d.terminate(started)
    assert d.history(started)[-1] == "TERMINATED"


@pytest.mark.parametrize("command", [c.CancelExecution, c.TerminateExecution])
def test_ending_what_does_not_exist_is_refused(command: type[c.CancelExecution]) -> None:
    d = Driver()
    started = d.submit()
    assert d.refused(command(workflow_id="ghost"), NotFound) == "workflow not found"
    d.refused(command(workflow_id=started.workflow_id, run_id="ghost"), NotFound)
    d.refused(command(workflow_id="ghost", run_id=started.run_id), NotFound)
