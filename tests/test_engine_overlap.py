"""Runs of a schedule beside each other: the overlap policies, and triggers by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.helpers.engine_driver import (
    HOUR_MS,
    START_MS,
    Driver,
    every,
    failure,
)

from zapserver.engine import Limits
from zapserver.engine import commands as c
from zapserver.engine.commands import Action, Overlap, Status
from zapserver.engine.errors import Conflict, Invalid, LimitReached
from zapserver.engine.executions import rfc3339
from zapserver.engine.retry import RetryPolicy


def _with_worker(randoms: Sequence[float] = (0.5,)) -> Driver:
    d = Driver(randoms=randoms)
    d.subscribe(1)
    return d


# --- overlap -------------------------------------------------------------------------------------------


def test_skip_leaves_slots_out_while_a_run_is_open() -> None:
    d = _with_worker()
    schedule = d.schedule(every(1_000), overlap=Overlap.SKIP)
    d.advance(3_500)
    assert len(d.tasks()) == 1
    assert schedule.skipped_overlap == 2
    d.complete(d.task())
    d.advance(500)
    assert len(d.tasks()) == 2


def test_allow_runs_them_side_by_side() -> None:
    d = _with_worker()
    schedule = d.schedule(every(1_000), overlap=Overlap.ALLOW)
    d.advance(3_000)
    assert len(d.tasks()) == 3
    assert list(schedule.open_runs.values()) == [task.workflow_id for task in d.tasks()]


def test_buffer_one_starts_a_single_run_as_soon_as_the_open_one_ends() -> None:
    d = _with_worker()
    schedule = d.schedule(every(1_000), overlap=Overlap.BUFFER_ONE)
    d.advance(4_500)
    assert (len(d.tasks()), len(schedule.buffered), schedule.skipped_overlap) == (1, 1, 2)
    d.complete(d.task())
    assert [task.workflow_id for task in d.tasks()] == [f"report-{rfc3339(START_MS + slot)}" for slot in (1_000, 2_000)]
    assert len(schedule.buffered) == 0
    d.complete(d.task())
    assert len(d.tasks()) == 2


def test_buffer_all_runs_every_slot_one_after_the_other_and_drops_what_is_too_much() -> None:
    d = Driver(limits=Limits(buffered_runs_max=3))
    d.subscribe(1)
    schedule = d.schedule(every(1_000), overlap=Overlap.BUFFER_ALL)
    d.advance(6_500)
    assert (len(d.tasks()), len(schedule.buffered), schedule.buffer_dropped) == (1, 3, 2)
    d.step(c.PauseSchedule(schedule_id="report", paused=True))
    d.step(c.TriggerSchedule(schedule_id="report", request_id="full"))
    assert schedule.buffer_dropped == 3
    d.step(c.PauseSchedule(schedule_id="report", paused=False))
    for _ in range(3):
        d.complete(d.task())
    assert [task.workflow_id for task in d.tasks()] == [
        f"report-{rfc3339(START_MS + slot)}" for slot in (1_000, 2_000, 3_000, 4_000)
    ]


def test_cancel_other_asks_the_open_run_to_stop_and_only_the_latest_waits_for_it() -> None:
    d = _with_worker()
    schedule = d.schedule(every(1_000), overlap=Overlap.CANCEL_OTHER)
    d.advance(3_500)
    assert (len(d.tasks()), len(schedule.buffered), schedule.skipped_overlap) == (1, 1, 1)
    assert [stop.reason for stop in d.stops()] == ["the run 2026-01-01T00:00:02Z takes its place"], "asked once"
    d.fail(d.task(), failure(code="CanceledError"))
    assert d.views.execution(d.tasks()[0].workflow_id).status is Status.CANCELED
    assert [task.workflow_id for task in d.tasks()][1:] == [f"report-{rfc3339(START_MS + 3_000)}"]
    assert schedule.buffered == []


def test_cancel_other_starts_at_once_when_nobody_held_the_open_run() -> None:
    d = Driver()
    schedule = d.schedule(every(1_000), overlap=Overlap.CANCEL_OTHER)
    d.advance(3_000)
    statuses = [action.workflow_id for action in schedule.recent_actions]
    assert [d.views.execution(id).status for id in statuses] == [Status.CANCELED, Status.CANCELED, Status.RUNNING]


def test_terminate_other_ends_the_open_runs_and_starts_at_once() -> None:
    d = _with_worker()
    schedule = d.schedule(every(1_000), overlap=Overlap.TERMINATE_OTHER)
    d.advance(3_000)
    assert len(d.tasks()) == 3
    assert [d.views.execution(task.workflow_id).status for task in d.tasks()] == [
        Status.TERMINATED,
        Status.TERMINATED,
        Status.RUNNING,
    ]
    assert list(schedule.open_runs) == [d.task().run_id]
    assert (schedule.skipped_overlap, schedule.buffered) == (0, [])


@pytest.mark.parametrize("policy", [Overlap.CANCEL_OTHER, Overlap.TERMINATE_OTHER])
def test_a_trigger_that_could_not_start_ends_nobody_else(policy: Overlap) -> None:
    d = _with_worker()
    d.schedule(every(HOUR_MS))
    _trigger(d)
    d.submit("other", workflow_id="report-taken")
    d.refused(c.TriggerSchedule(schedule_id="report", request_id="taken", overlap=policy), Conflict)
    d.refused(c.TriggerSchedule(schedule_id="report", request_id="r" * 1_000, overlap=policy), Invalid)
    d.refused(c.TriggerSchedule(schedule_id="report", request_id="\0", overlap=policy), Invalid)


def test_the_room_that_an_ended_run_leaves_is_enough_for_the_next() -> None:
    d = Driver(limits=Limits(open_executions_max=1))
    d.schedule(every(1_000), overlap=Overlap.TERMINATE_OTHER)
    d.advance(3_000)
    assert d.views.schedule("report").action_count == 3


def test_slots_wait_out_a_pause_and_what_was_asked_for_by_hand_does_not() -> None:
    d = _with_worker()
    schedule = d.schedule(every(1_000), overlap=Overlap.BUFFER_ALL)
    d.advance(2_000)
    d.step(c.TriggerSchedule(schedule_id="report", request_id="by hand"))
    d.step(c.PauseSchedule(schedule_id="report", paused=True))
    d.complete(d.task())
    assert d.task().workflow_id == "report-by hand"
    d.complete(d.task())
    assert (len(d.tasks()), len(schedule.buffered)) == (2, 1)
    d.step(c.PauseSchedule(schedule_id="report", paused=False))
    assert d.task().workflow_id == f"report-{rfc3339(START_MS + 2_000)}"


def test_a_buffered_run_waits_for_room_in_the_namespace() -> None:
    d = Driver(limits=Limits(open_executions_max=1))
    d.subscribe(1)
    schedule = d.schedule(every(HOUR_MS), overlap=Overlap.BUFFER_ONE)
    d.subscribe_workflows(2)
    schedule.action = Action(
        type="Report", task_queue="default", is_task=False, retry_policy=RetryPolicy(initial_interval_ms=1)
    )
    _trigger(d)
    _trigger(d)
    other = d.engine._state
    other.limits = Limits(open_executions_max=0)
    d.finish(d.run())
    assert (len(schedule.buffered), schedule.open_runs) == (1, {})
    assert "as many as it may" in schedule.note
    other.limits = Limits(open_executions_max=1)
    d.advance(1_000)
    assert (schedule.buffered, len(schedule.open_runs)) == ([], 1)


def test_the_latest_actions_are_remembered() -> None:
    d = Driver(randoms=[0.5])
    schedule = d.schedule(c.ScheduleSpec(interval_ms=1_000, jitter_ms=100))
    d.advance(12_500)
    assert [action.slot_ms - START_MS for action in schedule.recent_actions] == list(range(3_000, 13_000, 1_000))
    latest = schedule.recent_actions[-1]
    assert latest.started_ms == START_MS + 12_050
    assert d.views.execution(latest.workflow_id, latest.run_id).schedule_id == "report"


def test_the_run_has_the_actions_timeouts_memo_and_search_attributes() -> None:
    d = Driver()
    memo = c.Payload(b"{}")
    timeouts, task_timeouts = c.WorkflowTimeouts(run_ms=5_000), c.ActivityTimeouts(start_to_close_ms=7_000)
    workflow = Action(
        type="A", task_queue="q", is_task=False, timeouts=timeouts, memo=memo, search_attributes={"Customer": "ada"}
    )
    d.schedule(every(1_000), id="workflow", action=workflow)
    d.schedule(
        every(1_000), id="task", action=Action(type="a", task_queue="q", is_task=True, task_timeouts=task_timeouts)
    )
    d.advance(1_000)
    run = d.views.execution("workflow-2026-01-01T00:00:01Z")
    assert (run.timeouts, run.memo, run.search_attributes) == (timeouts, memo, {"Customer": "ada"})
    assert d.views.execution("task-2026-01-01T00:00:01Z").activity_timeouts == task_timeouts
    bad = Action(type="a", task_queue="q", is_task=True, task_timeouts=c.ActivityTimeouts(heartbeat_ms=-1))
    d.refused(c.PutSchedule(schedule_id="s", spec=every(1), action=bad), Invalid)


def test_a_run_that_ends_by_its_timeout_in_the_step_of_the_next_slot_is_no_overlap() -> None:
    d = Driver()
    action = Action(type="report", task_queue="default", is_task=True, retry_policy=RetryPolicy(maximum_attempts=1))
    d.subscribe(1)
    schedule = d.schedule(every(700_000), action=action, overlap=Overlap.SKIP)
    d.advance(700_000)
    d.jump(700_000)  # ten minutes are over before the second slot
    assert (len(d.tasks()), schedule.skipped_overlap) == (2, 0)


def test_a_buffered_run_that_cannot_start_leaves_a_note_and_spares_the_command_that_made_room() -> None:
    d = Driver(limits=Limits(open_executions_max=2))
    d.subscribe(1)
    schedule = d.schedule(every(1_000), overlap=Overlap.BUFFER_ONE)
    d.advance(2_000)
    blocked = f"report-{rfc3339(START_MS + 2_000)}"
    d.submit(workflow_id=blocked)
    d.complete(d.tasks()[0])
    assert "open already" in schedule.note
    assert d.views.execution(d.tasks()[0].workflow_id).status is Status.COMPLETED


def test_a_slot_that_cannot_start_leaves_a_note_and_the_schedule_goes_on() -> None:
    d = Driver(limits=Limits(open_executions_max=1))
    d.subscribe(1)
    other = d.submit("other")
    schedule = d.schedule(every(1_000))
    d.advance(1_000)
    assert "1 open executions, as many as it may" in schedule.note
    assert "2026-01-01T00:00:01Z" in schedule.note
    d.cancel(other)
    d.complete(d.task())
    d.advance(1_000)
    assert d.task().activity_type == "report"


@pytest.mark.parametrize("next_run", ["retry", "reset"])
def test_a_run_that_goes_on_in_a_new_run_still_counts_as_open(next_run: str) -> None:
    d = Driver()
    d.subscribe_workflows(1)
    policy = RetryPolicy(initial_interval_ms=10_000)
    action = Action(type="Report", task_queue="default", is_task=False, retry_policy=policy)
    schedule = d.schedule(every(1_000), action=action, overlap=Overlap.BUFFER_ONE)
    d.advance(2_000)
    if next_run == "retry":
        d.fail_run(d.run())
    else:
        d.step(c.ResetExecution(workflow_id=d.run().workflow_id, event_id=1))
    assert len(schedule.buffered) == 1
    d.advance(10_000)
    assert {run.workflow_id for run in d.runs()} == {d.runs()[0].workflow_id}
    d.finish(d.run())
    assert len(schedule.buffered) == 0
    assert len({run.workflow_id for run in d.runs()}) == 2


def test_the_cost_of_a_slot_does_not_grow_with_the_runs_that_are_open() -> None:
    d = Driver(watch=False)
    schedule = d.schedule(every(10), overlap=Overlap.ALLOW)
    d.advance(20_000)
    assert len(schedule.open_runs) == 2_000
    d.terminate(c.Started(workflow_id=list(schedule.open_runs.values())[1_000], run_id=""))
    assert len(schedule.open_runs) == 1_999


# --- trigger -------------------------------------------------------------------------------------------


def _trigger(d: Driver, overlap: Overlap | None = None, request_id: str = "") -> c.Started | None:
    return d.step(c.TriggerSchedule(schedule_id="report", overlap=overlap, request_id=request_id))


def test_a_trigger_acts_at_once_also_when_paused() -> None:
    d = _with_worker()
    schedule = d.schedule(every(HOUR_MS), paused=True)
    started = _trigger(d)
    assert started is not None
    assert d.task().workflow_id == started.workflow_id
    assert (schedule.action_count, schedule.next_ms) == (1, START_MS + HOUR_MS)


def test_triggers_in_one_millisecond_and_at_a_slot_do_not_meet() -> None:
    d = _with_worker()
    d.schedule(every(1_000))
    d.advance(1_000)
    assert _trigger(d) != _trigger(d)
    assert len(d.tasks()) == 3


@pytest.mark.parametrize(
    ("own", "asked", "runs", "buffered", "skipped"),
    [
        (Overlap.SKIP, None, 1, 0, 1),
        (Overlap.ALLOW, None, 2, 0, 0),
        (Overlap.BUFFER_ONE, None, 1, 1, 0),
        (Overlap.SKIP, Overlap.ALLOW, 2, 0, 0),
        (Overlap.ALLOW, Overlap.SKIP, 1, 0, 1),
        (Overlap.SKIP, Overlap.BUFFER_ONE, 1, 1, 0),
        (Overlap.SKIP, Overlap.BUFFER_ALL, 1, 1, 0),
        (Overlap.SKIP, Overlap.CANCEL_OTHER, 1, 1, 0),
        (Overlap.SKIP, Overlap.TERMINATE_OTHER, 2, 0, 0),
    ],
)
def test_a_trigger_follows_the_overlap_policy(
    own: Overlap, asked: Overlap | None, runs: int, buffered: int, skipped: int
) -> None:
    d = _with_worker()
    schedule = d.schedule(every(HOUR_MS), overlap=own)
    assert _trigger(d) is not None
    assert (_trigger(d, asked) is None) is (runs == 1)
    assert (len(d.tasks()), len(schedule.buffered), schedule.skipped_overlap) == (runs, buffered, skipped)


def test_a_repeated_trigger_is_harmless_in_every_state() -> None:
    d = _with_worker()
    schedule = d.schedule(every(HOUR_MS), overlap=Overlap.SKIP)
    first = _trigger(d, request_id="r1")
    assert first is not None
    again = _trigger(d, request_id="r1")
    assert again is not None
    assert (again.run_id, again.is_new) == (first.run_id, False)
    d.complete(d.task())
    again = _trigger(d, request_id="r1")
    assert again is not None
    assert again.run_id == first.run_id
    assert (len(d.tasks()), schedule.action_count, schedule.skipped_overlap) == (1, 1, 0)
    assert _trigger(d, request_id="r2") is not None
    assert len(d.tasks()) == 2


def test_a_repeated_trigger_of_a_buffered_run_starts_it_once() -> None:
    d = _with_worker()
    schedule = d.schedule(every(HOUR_MS), overlap=Overlap.BUFFER_ONE)
    _trigger(d)
    for _ in range(3):
        assert _trigger(d, request_id="r1") is None
    assert (len(schedule.buffered), schedule.skipped_overlap) == (1, 0)
    d.complete(d.task())
    started = _trigger(d, request_id="r1")
    assert started is not None
    assert started.run_id == d.task().run_id
    d.complete(d.task())
    assert len(d.tasks()) == 2


def test_one_request_id_for_two_schedules_is_two_requests() -> None:
    d = _with_worker()
    d.schedule(every(HOUR_MS), id="a")
    d.schedule(every(HOUR_MS), id="b")
    runs = {
        (d.step(c.TriggerSchedule(schedule_id=id, request_id="r")) or c.Started(workflow_id="", run_id="")).run_id
        for id in ("a", "b")
    }
    assert runs == {task.run_id for task in d.tasks()}
    assert len(runs) == 2


def test_a_trigger_that_cannot_start_is_refused_and_leaves_no_trace() -> None:
    d = Driver(limits=Limits(open_executions_max=1))
    d.schedule(every(HOUR_MS))
    d.refused(c.TriggerSchedule(schedule_id="report", request_id="\0"), Invalid)
    d.submit("other", workflow_id="report-taken")
    d.refused(c.TriggerSchedule(schedule_id="report", request_id="taken"), Conflict)
    d.refused(c.TriggerSchedule(schedule_id="report"), LimitReached)


def test_a_request_id_that_makes_no_sense_is_not_buffered_either() -> None:
    d = _with_worker()
    d.schedule(every(HOUR_MS), overlap=Overlap.BUFFER_ONE)
    _trigger(d)
    d.refused(c.TriggerSchedule(schedule_id="report", request_id="\0"), Invalid)


def test_a_failed_run_of_a_schedule_is_a_dead_letter_that_can_run_again() -> None:
    d = _with_worker()
    schedule = d.schedule(every(HOUR_MS), overlap=Overlap.SKIP)
    _trigger(d)
    d.fail(d.task(), failure(non_retryable=True))
    (letter,) = d.views.dead_letters()[0]
    again = d.step(c.RequeueDeadLetter(workflow_id=letter.workflow_id))
    assert list(schedule.open_runs) == [again.run_id]
    assert _trigger(d) is None, "it counts as the open run"
