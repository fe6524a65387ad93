"""Slots that nobody was awake for, slots of the past, and how often a schedule acts."""

from __future__ import annotations

import msgspec
import pytest
from tests.helpers.engine_driver import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    REPORT,
    START_MS,
    Driver,
    every,
    failure,
)

from zapserver.engine import Limits
from zapserver.engine import commands as c
from zapserver.engine.commands import Action, Backfilled, Overlap, ScheduleSpec
from zapserver.engine.errors import Invalid, LimitReached, NotFound
from zapserver.engine.executions import rfc3339
from zapserver.engine.retry import RetryPolicy


def _slots(d: Driver) -> list[int]:
    """The slots of the runs that were started, in ms after the beginning, in the order of starting."""
    names = {rfc3339(START_MS + ms): ms for ms in range(-60_000, 200_000, 100)}
    return [names[task.workflow_id.removeprefix("report-")] for task in d.tasks(1)]


def _with_worker(limits: Limits | None = None) -> Driver:
    d = Driver(limits=limits)
    d.subscribe(1)
    return d


def _put(d: Driver, ms: int = 1_000, **fields: object) -> None:
    command = c.PutSchedule(schedule_id="report", spec=every(ms), action=REPORT, overlap=Overlap.ALLOW)
    d.step(msgspec.structs.replace(command, **fields))


# --- catch-up ------------------------------------------------------------------------------------------


def test_missed_slots_within_a_minute_are_acted_on_in_order_and_older_ones_counted() -> None:
    d = _with_worker()
    schedule = d.schedule(every(1_000))
    d.jump(5_500)
    assert _slots(d) == [1_000, 2_000, 3_000, 4_000, 5_000]
    assert (schedule.missed, schedule.action_count, schedule.last_slot_ms) == (0, 5, START_MS + 5_000)
    d.jump(100_000)
    assert _slots(d)[5:] == list(range(46_000, 106_000, 1_000))
    assert schedule.missed == 40


def test_the_latest_missed_slot_is_acted_on_at_any_age_unless_a_window_is_named() -> None:
    d = _with_worker()
    schedule = d.schedule(every(HOUR_MS))
    d.jump(10 * HOUR_MS + 30 * MINUTE_MS)
    assert [task.workflow_id for task in d.tasks()] == [f"report-{rfc3339(START_MS + 10 * HOUR_MS)}"]
    assert schedule.missed == 9
    d = _with_worker()
    _put(d, HOUR_MS, catchup_window_ms=10 * MINUTE_MS)
    d.jump(10 * HOUR_MS + 30 * MINUTE_MS)
    assert d.tasks() == []
    schedule = d.views.schedule("report")
    assert (schedule.missed, schedule.next_ms) == (10, START_MS + 11 * HOUR_MS)


def test_a_window_of_a_year_makes_up_for_everything() -> None:
    d = _with_worker()
    _put(d, HOUR_MS, catchup_window_ms=365 * DAY_MS)
    d.jump(2 * DAY_MS)
    assert d.views.schedule("report").action_count == 48
    assert d.views.schedule("report").missed == 0


def test_a_step_acts_on_a_bounded_number_of_slots_and_leaves_the_rest_to_the_next() -> None:
    d = _with_worker(Limits(schedule_slots_per_step_max=4))
    schedule = d.schedule(every(1_000))
    d.jump(10_000)
    assert _slots(d) == [1_000, 2_000, 3_000, 4_000]
    due_ms = d.engine.next_deadline_ms()
    assert due_ms is not None
    assert due_ms <= d.now_ms + 1
    d.advance(2)
    assert _slots(d)[:10] == list(range(1_000, 11_000, 1_000))
    assert (schedule.action_count, schedule.missed) == (10, 0)


def test_missed_slots_follow_the_overlap_policy() -> None:
    d = _with_worker()
    schedule = d.schedule(every(1_000), overlap=Overlap.SKIP)
    d.jump(5_500)
    assert _slots(d) == [1_000]
    assert schedule.skipped_overlap == 4


def test_a_slot_whose_jitter_is_longer_than_the_window_is_not_missed() -> None:
    d = Driver(randoms=[0.9])
    d.subscribe(1)
    _put(d, spec=ScheduleSpec(interval_ms=HOUR_MS, jitter_ms=HOUR_MS), catchup_window_ms=10_000)
    d.advance(HOUR_MS + 55 * MINUTE_MS)
    assert [task.workflow_id for task in d.tasks()] == [f"report-{rfc3339(START_MS + HOUR_MS)}"]
    assert d.views.schedule("report").missed == 0


def test_a_clock_that_jumps_back_repeats_no_slot() -> None:
    d = _with_worker()
    schedule = d.schedule(every(1_000))
    d.advance(5_000)
    d.jump(-4_000)
    d.schedule(every(1_000))
    d.step(c.UpdateSchedule(schedule_id="report", spec=every(1_000)))
    d.step(c.PauseSchedule(schedule_id="report", paused=True))
    d.step(c.PauseSchedule(schedule_id="report", paused=False))
    d.advance(6_000)
    assert _slots(d) == list(range(1_000, 8_000, 1_000))
    assert schedule.missed == 0


def test_a_schedule_that_comes_back_with_an_earlier_clock_goes_on_behind_its_last_slot() -> None:
    """As after a restart of a server whose clock was set back: a new engine knows no time."""
    d = _with_worker()
    schedule = d.schedule(ScheduleSpec(interval_ms=1_000, phase_ms=0))
    d.advance(5_000)
    d.engine._now_ms = d.now_ms = START_MS + 2_500
    d.step(c.PauseSchedule(schedule_id="report", paused=True))
    d.step(c.PauseSchedule(schedule_id="report", paused=False))
    assert schedule.next_ms == START_MS + 6_000
    d.step(c.UpdateSchedule(schedule_id="report", spec=ScheduleSpec(interval_ms=500, phase_ms=0)))
    assert schedule.next_ms == START_MS + 5_500


def test_a_slot_for_which_there_is_no_room_is_tried_again_until_there_is() -> None:
    d = _with_worker(Limits(open_executions_max=1))
    other = d.submit("other")
    schedule = d.schedule(every(10_000))
    d.advance(10_000)
    assert "as many as it may" in schedule.note
    assert schedule.action_count == 0
    d.terminate(other)
    d.advance(1_000)
    assert [run.workflow_id for run in d.tasks(1)][1:] == [f"report-{rfc3339(START_MS + 10_000)}"]
    assert (schedule.action_count, schedule.missed) == (1, 0)


@pytest.mark.parametrize(("field", "number"), [("catchup_window_ms", 9_999), ("catchup_window_ms", 10**15)])
def test_a_window_out_of_bounds_is_refused(field: str, number: int) -> None:
    d = Driver()
    command = c.PutSchedule(schedule_id="s", spec=every(1), action=REPORT)
    assert str(number) in d.refused(msgspec.structs.replace(command, **{field: number}), Invalid)
    d.step(command)
    assert str(number) in d.refused(c.UpdateSchedule(schedule_id="s", catchup_window_ms=number), Invalid)


# --- limited actions --------------------------------------------------------------------------------------


def test_a_schedule_acts_as_often_as_it_may_and_triggers_do_not_count() -> None:
    d = _with_worker()
    _put(d, remaining_actions=3)
    schedule = d.views.schedule("report")
    d.step(c.TriggerSchedule(schedule_id="report"))
    assert (schedule.remaining_actions, schedule.state) == (3, "active")
    d.jump(10_000)
    assert (schedule.action_count, schedule.remaining_actions, schedule.state) == (4, 0, "used up")
    assert d.engine.next_deadline_ms() is None or d.engine.next_deadline_ms() != schedule.next_due_ms
    d.advance(60_000)
    assert schedule.action_count == 4
    assert d.step(c.TriggerSchedule(schedule_id="report")) is not None


def test_the_same_limit_again_gives_no_more_and_an_update_does_from_now_on() -> None:
    d = _with_worker()
    _put(d, remaining_actions=1)
    d.advance(3_500)
    _put(d, remaining_actions=1)
    d.advance(1_000)
    assert _slots(d) == [1_000]
    d.step(c.UpdateSchedule(schedule_id="report", remaining_actions=1))
    d.advance(5_000)
    assert _slots(d) == [1_000, 5_000]
    _put(d)
    d.advance(1_000)
    assert _slots(d) == [1_000, 5_000, 10_000]
    assert d.views.schedule("report").remaining_actions is None


def test_a_slot_left_out_is_no_action_and_what_waits_goes_with_the_last_one() -> None:
    d = _with_worker()
    _put(d, overlap=Overlap.SKIP, remaining_actions=2)
    schedule = d.views.schedule("report")
    d.advance(5_000)
    assert (schedule.remaining_actions, schedule.skipped_overlap) == (1, 4)
    _put(d, overlap=Overlap.BUFFER_ALL, remaining_actions=2)
    d.advance(5_000)
    d.step(c.TriggerSchedule(schedule_id="report", request_id="by hand"))
    assert len(schedule.buffered) == 6
    d.complete(d.task())
    assert (len(schedule.buffered), schedule.buffer_dropped, schedule.remaining_actions) == (1, 4, 0)
    d.complete(d.task())
    assert d.task().workflow_id == "report-by hand"


@pytest.mark.parametrize("number", [0, -1, 10**12])
def test_a_limit_that_makes_no_sense_is_refused(number: int) -> None:
    d = Driver()
    command = c.PutSchedule(schedule_id="s", spec=every(1), action=REPORT, remaining_actions=number)
    assert f"{number} remaining actions" in d.refused(command, Invalid)


# --- pause on failure ---------------------------------------------------------------------------------------


def test_a_run_that_failed_for_good_pauses_the_schedule_that_asked_for_it() -> None:
    d = _with_worker()
    _put(d, pause_on_failure=True)
    schedule = d.views.schedule("report")
    d.advance(1_000)
    d.complete(d.task())
    d.advance(1_000)
    assert schedule.state == "active"
    d.fail(d.task(), failure(non_retryable=True))
    assert schedule.paused
    assert schedule.note == f"paused because the run {d.task().workflow_id} is FAILED"
    d.advance(10_000)
    assert _slots(d) == [1_000, 2_000]
    d.step(c.PauseSchedule(schedule_id="report", paused=False))
    d.advance(1_000)
    assert _slots(d)[2:] == [13_000]


def test_a_workflow_with_a_retry_left_has_not_failed_yet_and_one_that_timed_out_has() -> None:
    d = Driver()
    d.subscribe_workflows(1)
    action = Action(
        type="Report",
        task_queue="default",
        is_task=False,
        retry_policy=RetryPolicy(maximum_attempts=2),
        timeouts=c.WorkflowTimeouts(run_ms=20_000),
    )
    _put(d, HOUR_MS, action=action, pause_on_failure=True)
    schedule = d.views.schedule("report")
    d.advance(HOUR_MS)
    d.fail_run(d.run())
    assert schedule.state == "active"
    d.advance(30_000)
    assert schedule.paused
    assert "TIMED_OUT" in schedule.note


def test_without_the_wish_a_failure_pauses_nothing() -> None:
    d = _with_worker()
    schedule = d.schedule(every(1_000))
    d.advance(1_000)
    d.fail(d.task(), failure(non_retryable=True))
    assert (schedule.paused, schedule.note) == (False, "")


# --- backfill ---------------------------------------------------------------------------------------------


def _backfill(
    d: Driver, start_ms: int, end_ms: int, overlap: Overlap | None = None, request_id: str = ""
) -> Backfilled:
    return d.step(
        c.BackfillSchedule(
            schedule_id="report",
            start_ms=START_MS + start_ms,
            end_ms=START_MS + end_ms,
            overlap=overlap,
            request_id=request_id,
        )
    )


def _long_paused(limits: Limits | None = None, overlap: Overlap = Overlap.ALLOW) -> Driver:
    """A schedule with a slot a second that acted on none of the last 30."""
    d = _with_worker(limits)
    d.schedule(every(1_000), paused=True, overlap=overlap)
    d.advance(30_000)
    return d


def test_a_backfill_acts_on_every_slot_of_its_range_paused_or_not() -> None:
    d = _long_paused()
    schedule = d.views.schedule("report")
    assert _backfill(d, 2_000, 5_000) == Backfilled(slots=4)
    assert _slots(d) == [2_000, 3_000, 4_000, 5_000]
    assert (schedule.action_count, schedule.backfills, schedule.paused) == (4, [], True)
    assert _backfill(d, 2_100, 2_200) == Backfilled(slots=0)


def test_a_backfill_under_buffer_all_runs_one_after_the_other_and_drops_none() -> None:
    d = _long_paused(Limits(buffered_runs_max=2))
    schedule = d.views.schedule("report")
    _backfill(d, 1_000, 8_000, Overlap.BUFFER_ALL)
    assert (len(d.tasks(1)), len(schedule.buffered), len(schedule.backfills[0].slots)) == (1, 2, 5)
    for _ in range(8):
        d.complete(d.task())
    assert _slots(d) == list(range(1_000, 9_000, 1_000))
    assert (schedule.buffer_dropped, schedule.backfills, schedule.buffered) == (0, [], [])


def test_a_long_backfill_is_worked_off_in_steps() -> None:
    d = _long_paused(Limits(schedule_slots_per_step_max=4))
    _backfill(d, 1_000, 10_000)
    assert len(d.tasks(1)) == 4
    d.advance(1)
    assert len(d.tasks(1)) == 8
    d.advance(1)
    assert _slots(d) == list(range(1_000, 11_000, 1_000))
    d.advance(10_000)
    assert len(d.tasks(1)) == 10


def test_a_backfill_waits_for_room_and_goes_on() -> None:
    d = _long_paused(Limits(open_executions_max=2))
    _backfill(d, 1_000, 4_000)
    assert _slots(d) == [1_000, 2_000]
    for task in d.tasks(1):
        d.complete(task)
    d.advance(1_000)
    assert _slots(d) == [1_000, 2_000, 3_000, 4_000]


def test_a_repeated_backfill_is_harmless() -> None:
    d = _long_paused()
    assert _backfill(d, 1_000, 3_000, request_id="r") == _backfill(d, 1_000, 3_000, request_id="r")
    assert len(d.tasks(1)) == 3


def test_the_slots_that_come_by_themselves_are_left_to_the_schedule() -> None:
    d = Driver(randoms=[0.9])
    d.subscribe(1)
    d.schedule(ScheduleSpec(interval_ms=1_000, jitter_ms=1_000))
    d.advance(2_500)
    assert _slots(d) == [1_000]
    assert _backfill(d, 2_000, 2_500) == Backfilled(slots=0)
    d.advance(500)
    assert _slots(d) == [1_000, 2_000]


def test_a_backfill_takes_nothing_from_the_limit_of_actions() -> None:
    d = _with_worker()
    _put(d, remaining_actions=1)
    d.advance(30_000)
    assert _backfill(d, 2_000, 3_000).slots == 2
    assert _slots(d) == [1_000, 2_000, 3_000]


def test_a_backfill_that_is_too_much_or_means_nothing_is_refused() -> None:
    d = _long_paused(Limits(backfill_slots_max=10, backfills_max=1))

    def refused(start_ms: int, end_ms: int, id: str = "report", request_id: str = "") -> str:
        command = c.BackfillSchedule(
            schedule_id=id, start_ms=START_MS + start_ms, end_ms=START_MS + end_ms, request_id=request_id
        )
        return d.refused(command, NotFound if id == "ghost" else Invalid)

    assert "more than 10 slots" in refused(1_000, 11_000)
    assert "before its start" in refused(2_000, 1_000)
    assert "slots to come fire by themselves" in refused(1_000, 30_001)
    assert "since the epoch" in refused(-START_MS - 1, 0)
    assert "request id" in refused(1_000, 2_000, request_id="\0")
    refused(1_000, 2_000, id="ghost")
    assert d.tasks() == []


def test_backfills_that_are_not_finished_are_bounded() -> None:
    d = _long_paused(Limits(schedule_slots_per_step_max=1, backfills_max=1))
    _backfill(d, 1_000, 3_000)
    command = c.BackfillSchedule(schedule_id="report", start_ms=START_MS, end_ms=START_MS + 2_000)
    assert "1 backfills of this schedule are not finished" in d.refused(command, LimitReached)
    d.advance(2)
    assert _backfill(d, 4_000, 4_000).slots == 1
