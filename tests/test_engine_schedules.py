"""When schedules fire: each slot once or a word about it, no drift; what is refused; pause, change, delete."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from tests.helpers.engine_driver import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    REPORT,
    START_MS,
    Driver,
    every,
    payload,
    value,
)

from zapserver.engine import Limits
from zapserver.engine import commands as c
from zapserver.engine.commands import Action, Overlap, ScheduleSpec
from zapserver.engine.errors import Invalid, LimitReached, NotFound
from zapserver.engine.executions import rfc3339
from zapserver.engine.slots import MATCHING_TIMES_MAX, MISSED_COUNTED_MAX


def _ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def _fired(d: Driver) -> list[int]:
    """When the runs were started, in ms after the beginning."""
    return [task.scheduled_ms - START_MS for task in d.tasks(1) if task.attempt == 1]


def _with_worker(randoms: Sequence[float] = (0.5,)) -> Driver:
    d = Driver(randoms=randoms)
    d.subscribe(1)
    return d


# --- when ----------------------------------------------------------------------------------------------


def test_the_first_slot_of_an_interval_is_one_period_after_the_creation_and_none_drifts() -> None:
    d = _with_worker()
    d.advance(123)
    d.schedule(every(1_000))
    d.advance(999)
    assert _fired(d) == []
    d.advance(1)
    assert _fired(d) == [1_123]
    for _ in range(100):
        d.jump(1_007)  # a shell that is always late
    latest = d.views.schedule("report")
    assert latest.next_ms is not None
    assert (latest.next_ms - START_MS) % 1_000 == 123
    assert [task.workflow_id for task in d.tasks(1)][:2] == [
        f"report-{rfc3339(START_MS + 1_123)}",
        f"report-{rfc3339(START_MS + 2_123)}",
    ]


def test_the_run_is_the_action_with_its_input_and_says_which_schedule_it_is_of() -> None:
    d = _with_worker()
    d.schedule(every(1_000))
    d.advance(1_000)
    task = d.task()
    assert (task.activity_type, value(task.input), task.is_task) == ("report", {"n": 1}, True)
    execution = d.views.execution(task.workflow_id)
    assert (execution.schedule_id, execution.identity) == ("report", "schedule")


def test_a_schedule_can_start_workflows() -> None:
    d = Driver()
    d.subscribe_workflows(1)
    action = Action(type="Report", task_queue="default", is_task=False, workflow_id="nightly", input=payload([7]))
    d.schedule(every(1_000), action=action)
    d.advance(1_000)
    assert (d.run().workflow_type, value(d.run().input)) == ("Report", [7])
    assert d.run().workflow_id == "nightly-2026-01-01T00:00:01Z"


def test_cron_fires_at_its_times_in_its_zone() -> None:
    d = _with_worker()
    d.schedule(ScheduleSpec(cron=("30 9 * * *",), timezone="Europe/Berlin"))
    d.advance(DAY_MS)
    assert _fired(d) == [8 * HOUR_MS + 30 * MINUTE_MS]


def test_an_expression_may_name_a_zone_of_its_own() -> None:
    d = _with_worker()
    d.schedule(ScheduleSpec(cron=("TZ=Asia/Tokyo 30 9 * * *",), timezone="Europe/Berlin"))
    d.advance(DAY_MS)
    assert _fired(d) == [30 * MINUTE_MS]


def test_several_expressions_and_an_interval_fire_at_the_union_of_their_times() -> None:
    d = _with_worker()
    d.schedule(ScheduleSpec(cron=("10 * * * *", "20 * * * *", "20 0 * * *"), interval_ms=25 * MINUTE_MS))
    d.advance(HOUR_MS + 15 * MINUTE_MS)
    assert [ms // MINUTE_MS for ms in _fired(d)] == [10, 20, 25, 50, 70, 75]


def test_every_in_an_expression_counts_from_the_creation_also_beside_others() -> None:
    d = _with_worker()
    d.schedule(ScheduleSpec(cron=("@every 1h", "30 * * * *")))
    d.advance(3 * HOUR_MS)
    assert [ms // MINUTE_MS for ms in _fired(d)] == [30, 60, 90, 120, 150, 180]


def test_a_duration_among_the_expressions_counts_from_the_creation_too() -> None:
    d = _with_worker()
    d.advance(500)
    d.schedule(ScheduleSpec(cron=("90s", "@every 90s")))
    d.advance(3 * MINUTE_MS)
    assert _fired(d) == [90_000, 90_500, 180_000, 180_500]


def test_missed_cron_slots_are_counted_and_the_latest_is_acted_on() -> None:
    d = _with_worker()
    schedule = d.schedule(ScheduleSpec(cron=("* * * * *",)))
    d.jump(10 * MINUTE_MS + 30_000)
    assert [task.workflow_id for task in d.tasks()] == ["report-2026-01-01T00:10:00Z"]
    assert schedule.missed == 9
    assert schedule.next_ms == START_MS + 11 * MINUTE_MS
    d.jump(2 * MINUTE_MS - 30_000)
    assert schedule.missed == 9
    assert d.task().workflow_id == "report-2026-01-01T00:12:00Z", "a slot that is due this very millisecond counts"


def test_a_clock_that_jumps_a_year_costs_little_and_finds_the_latest_slot() -> None:
    d = _with_worker()
    schedule = d.schedule(ScheduleSpec(cron=("* 5 * * *",)))
    d.jump(365 * DAY_MS + 30_000)
    assert [task.workflow_id for task in d.tasks()] == ["report-2026-12-31T05:59:00Z"]
    assert schedule.missed == MISSED_COUNTED_MAX
    assert schedule.next_ms == _ms("2027-01-01T05:00:00")
    d.jump(_ms("2027-12-31T05:30:00") - d.now_ms)
    assert d.task().workflow_id == "report-2027-12-31T05:30:00Z", "a slot that is due this very millisecond counts"


def test_a_schedule_has_a_start_and_an_end() -> None:
    d = _with_worker()
    spec = ScheduleSpec(interval_ms=1_000, start_ms=START_MS + 3_000, end_ms=START_MS + 5_000)
    d.schedule(spec)
    d.advance(DAY_MS)
    assert _fired(d) == [3_000, 4_000, 5_000]
    assert d.views.schedule("report").next_ms is None
    assert d.engine.next_deadline_ms() is None or d.engine.next_deadline_ms() != START_MS + 6_000


def test_a_jump_over_the_end_acts_on_the_last_slot_before_it() -> None:
    for spec in (
        ScheduleSpec(interval_ms=1_000, end_ms=START_MS + 5_500),
        ScheduleSpec(cron=("@every 1s",), end_ms=START_MS + 5_500),
    ):
        d = _with_worker()
        schedule = d.schedule(spec)
        d.jump(DAY_MS)
        assert [task.workflow_id for task in d.tasks()] == ["report-2026-01-01T00:00:05Z"]
        assert (schedule.missed, schedule.next_ms) == (4, None)


@pytest.mark.parametrize("random", [0.0, 0.5, 0.999])
def test_jitter_delays_the_action_within_its_bound_and_never_the_slot(random: float) -> None:
    d = _with_worker([random])
    d.schedule(ScheduleSpec(interval_ms=1_000, jitter_ms=100))
    d.advance(3_500)
    delay = int(random * 100)
    assert _fired(d) == [1_000 + delay, 2_000 + delay, 3_000 + delay]
    assert [task.workflow_id for task in d.tasks()] == [
        f"report-{rfc3339(START_MS + slot)}" for slot in (1_000, 2_000, 3_000)
    ]


def test_jitter_longer_than_the_period_loses_no_slot() -> None:
    d = _with_worker([0.99, 0.0, 0.5])
    schedule = d.schedule(ScheduleSpec(interval_ms=1_000, jitter_ms=HOUR_MS))
    d.advance(10_000)
    assert (schedule.action_count, schedule.missed) in ((9, 0), (10, 0))


def test_the_next_slots_can_be_seen() -> None:
    d = Driver()
    schedule = d.schedule(ScheduleSpec(interval_ms=HOUR_MS, end_ms=START_MS + 3 * HOUR_MS))
    assert d.views.next_slots(schedule, START_MS, 2) == [START_MS + HOUR_MS, START_MS + 2 * HOUR_MS]
    assert len(d.views.next_slots(schedule, START_MS, 10)) == 3
    assert d.views.next_slots(schedule, START_MS, 0) == []


def test_an_interval_with_a_phase_fires_at_its_multiples_since_the_epoch_and_the_phase() -> None:
    d = _with_worker()
    d.advance(123)
    d.schedule(ScheduleSpec(interval_ms=HOUR_MS, phase_ms=15 * MINUTE_MS), id="quarter past")
    d.schedule(ScheduleSpec(interval_ms=40 * MINUTE_MS, phase_ms=0), id="on the grid")
    d.advance(2 * HOUR_MS)
    assert [ms / MINUTE_MS for ms in _fired(d)] == [15, 40, 75, 80, 120], "the year began at a multiple of 40 minutes"


def test_several_intervals_each_count_in_their_own_way() -> None:
    d = _with_worker()
    d.advance(100)
    d.schedule(ScheduleSpec(interval_ms=1_000, intervals=((1_000, 300), (1_500, None))))
    d.advance(3_000)
    assert _fired(d) == [300, 1_100, 1_300, 1_600, 2_100, 2_300, 3_100], "3_100 is of two of them, and fires once"


def test_the_times_of_a_range_include_its_ends_and_are_bounded() -> None:
    d = Driver()
    d.schedule(every(1_000))
    assert d.views.matching_times("report", START_MS + 1_000, START_MS + 3_000) == [
        START_MS + 1_000,
        START_MS + 2_000,
        START_MS + 3_000,
    ]
    assert d.views.matching_times("report", START_MS + 1_001, START_MS + 1_002) == []
    assert len(d.views.matching_times("report", START_MS, START_MS + DAY_MS)) == MATCHING_TIMES_MAX
    with pytest.raises(Invalid, match="before its start"):
        d.views.matching_times("report", START_MS, START_MS - 1)
    for start_ms, end_ms in ((-1, 5), (5, 10**18)):
        with pytest.raises(Invalid, match="since the epoch"):
            d.views.matching_times("report", start_ms, end_ms)
    with pytest.raises(NotFound):
        d.views.matching_times("ghost", 0, 1)


def test_a_hundred_expressions_that_agree_are_shown_for_a_shorter_time() -> None:
    d = Driver()
    cron = tuple(f"{minute} 3 * * *" for minute in ["0", "00", "000"] * 33)
    shown = d.views.matching_times_of(ScheduleSpec(cron=cron), START_MS, START_MS, START_MS + 1_000 * DAY_MS)
    assert shown == [START_MS + 3 * HOUR_MS + day * DAY_MS for day in range(101)]


def test_the_times_of_a_spec_that_is_not_saved_are_those_that_it_would_have() -> None:
    d = Driver()
    spec = ScheduleSpec(interval_ms=HOUR_MS)
    found = d.views.matching_times_of(spec, START_MS + 5, START_MS, START_MS + 3 * HOUR_MS)
    assert found == [START_MS + HOUR_MS + 5, START_MS + 2 * HOUR_MS + 5]
    with pytest.raises(Invalid, match="could never fire"):
        d.views.matching_times_of(ScheduleSpec(), START_MS, START_MS, START_MS)
    assert d.views.schedules() == []


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (ScheduleSpec(), "could never fire"),
        (ScheduleSpec(interval_ms=-9), "interval of -9 ms"),
        (ScheduleSpec(interval_ms=-1_000), "interval of -1000 ms"),
        (ScheduleSpec(interval_ms=10**14), "100 years"),
        (ScheduleSpec(cron=("* * * *",)), "4 fields"),
        (ScheduleSpec(cron=("0 0 30 2 *",)), "never fire"),
        (ScheduleSpec(cron=("* * * * *", "nonsense")), "nonsense"),
        (ScheduleSpec(cron=("* * * * *",), timezone="Mars/Olympus"), "Mars/Olympus"),
        (ScheduleSpec(cron=("* * * * *",) * 101), "101 cron expressions"),
        (ScheduleSpec(interval_ms=1_000, jitter_ms=-1), "jitter of -1 ms"),
        (ScheduleSpec(interval_ms=1_000, phase_ms=1_000), "phase of 1000 ms in an interval of 1000 ms"),
        (ScheduleSpec(interval_ms=1_000, phase_ms=-1), "phase of -1 ms"),
        (ScheduleSpec(cron=("* * * * *",), phase_ms=5), "without an interval"),
        (ScheduleSpec(intervals=((1_000, None), (0, None))), "interval of 0 ms"),
        (ScheduleSpec(interval_ms=1_000, intervals=((1_000, 2_000),)), "phase of 2000 ms"),
        (ScheduleSpec(intervals=((1_000, None),) * 101), "101 intervals"),
        (ScheduleSpec(interval_ms=1_000, end_ms=START_MS - 1), "ends before it can fire"),
        (ScheduleSpec(interval_ms=1_000, end_ms=START_MS + 999), "ends before it can fire"),
        (ScheduleSpec(interval_ms=1_000, start_ms=START_MS + 9_000, end_ms=START_MS + 8_000), "ends before"),
        (ScheduleSpec(cron=("0 5 * * *",), end_ms=START_MS + HOUR_MS), "ends before it can fire"),
        (ScheduleSpec(cron=("0 5 * * *",), start_ms=10**15), "ends before it can fire"),
        (ScheduleSpec(cron=("0 5 * * *",), start_ms=10**30), "ends before it can fire"),
        (ScheduleSpec(interval_ms=1_000, start_ms=10**30), "ends before it can fire"),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_a_spec_that_can_never_fire_is_refused(spec: ScheduleSpec, text: str) -> None:
    d = Driver()
    assert text in d.refused(c.PutSchedule(schedule_id="s", spec=spec, action=REPORT), Invalid)
    d.schedule(every(1_000), id="s")
    if spec != ScheduleSpec():
        assert text in d.refused(c.UpdateSchedule(schedule_id="s", spec=spec), Invalid)


@pytest.mark.parametrize(
    ("id", "action"),
    [
        ("", REPORT),
        ("a\nb", REPORT),
        ("s" * 980, REPORT),
        ("s", Action(type="", task_queue="q", is_task=True)),
        ("s", Action(type="t", task_queue="", is_task=True)),
        ("s", Action(type="t", task_queue="q", is_task=False, workflow_id="\0")),
        ("s", Action(type="t", task_queue="q", is_task=False, workflow_id="w" * 990)),
    ],
)
def test_a_schedule_whose_runs_could_never_start_is_refused(id: str, action: Action) -> None:
    d = Driver()
    d.refused(c.PutSchedule(schedule_id=id, spec=every(1_000), action=action), Invalid)
    d.schedule(every(1_000), id="known")
    if action is not REPORT:
        d.refused(c.UpdateSchedule(schedule_id="known", action=action), Invalid)


def test_schedules_are_bounded_and_unknown_ones_not_found() -> None:
    d = Driver(limits=Limits(schedules_max=1))
    d.schedule(every(1_000))
    d.refused(c.PutSchedule(schedule_id="second", spec=every(1_000), action=REPORT), LimitReached)
    d.schedule(every(2_000))
    for command in (
        c.UpdateSchedule(schedule_id="ghost"),
        c.PauseSchedule(schedule_id="ghost", paused=True),
        c.TriggerSchedule(schedule_id="ghost"),
    ):
        assert d.refused(command, NotFound) == "schedule not found"
    with pytest.raises(NotFound):
        d.views.schedule("ghost")


# --- put, pause, change, delete ------------------------------------------------------------------------


def test_the_same_definition_again_keeps_the_next_slot() -> None:
    d = _with_worker()
    schedule = d.schedule(every(1_000))
    d.advance(700)
    before = schedule.updated_ms
    assert d.schedule(every(1_000)) is schedule
    assert (schedule.next_ms, schedule.updated_ms) == (START_MS + 1_000, before)
    d.advance(300)
    assert len(d.tasks()) == 1


def test_another_spec_counts_from_its_own_beginning_and_another_action_keeps_the_slot() -> None:
    d = _with_worker()
    schedule = d.schedule(every(1_000))
    d.advance(700)
    d.schedule(every(1_000), action=Action(type="other", task_queue="default", is_task=True))
    assert schedule.next_ms == START_MS + 1_000
    d.schedule(every(500))
    assert schedule.next_ms == START_MS + 1_200
    assert schedule.created_ms == START_MS
    d.advance(500)
    assert d.task().activity_type == "report"


def test_another_overlap_policy_is_taken_over() -> None:
    d = Driver()
    schedule = d.schedule(every(1_000), overlap=Overlap.SKIP)
    d.schedule(every(1_000), overlap=Overlap.BUFFER_ONE)
    assert schedule.overlap is Overlap.BUFFER_ONE


def test_putting_again_after_the_end_is_no_error() -> None:
    d = _with_worker()
    spec = ScheduleSpec(interval_ms=1_000, end_ms=START_MS + 1_500)
    d.schedule(spec)
    d.advance(10_000)
    d.schedule(spec)
    assert len(d.tasks()) == 1


def test_a_worker_that_puts_its_schedule_again_does_not_undo_an_operators_pause() -> None:
    d = _with_worker()
    schedule = d.schedule(every(1_000))
    d.step(c.PauseSchedule(schedule_id="report", paused=True, note="incident"))
    d.schedule(every(1_000))
    d.schedule(every(700))
    assert (schedule.paused, schedule.note) == (True, "incident")
    d.advance(10_000)
    assert d.tasks() == []


def test_a_schedule_can_be_put_paused() -> None:
    d = _with_worker()
    d.schedule(every(1_000), paused=True)
    d.advance(5_000)
    assert d.tasks() == []
    assert d.engine.next_deadline_ms() is None
    d.schedule(every(1_000), id="second")
    d.schedule(every(1_000), id="second", paused=True)
    d.advance(5_000)
    assert d.tasks() == []


def test_slots_that_pass_while_paused_are_not_made_up_for() -> None:
    d = _with_worker()
    schedule = d.schedule(every(1_000))
    d.advance(1_000)
    d.step(c.PauseSchedule(schedule_id="report", paused=True, note="night"))
    d.advance(5_500)
    d.step(c.PauseSchedule(schedule_id="report", paused=False, note="day"))
    assert schedule.note == "day"
    d.advance(500)
    assert _fired(d) == [1_000, 7_000]
    assert schedule.missed == 0
    d.step(c.UpdateSchedule(schedule_id="report", paused=True))
    d.jump(5_500)
    d.step(c.UpdateSchedule(schedule_id="report", paused=False))
    d.advance(500)
    assert _fired(d) == [1_000, 7_000, 13_000]


def test_a_slot_that_waits_out_its_jitter_survives_a_change_of_other_things() -> None:
    d = _with_worker()
    d.schedule(ScheduleSpec(interval_ms=1_000, jitter_ms=200))
    d.advance(1_050)
    d.step(c.PauseSchedule(schedule_id="report", paused=False, note="still on"))
    d.step(c.UpdateSchedule(schedule_id="report", action=REPORT, spec=ScheduleSpec(interval_ms=1_000, jitter_ms=200)))
    d.advance(50)
    assert _fired(d) == [1_100]


def test_update_replaces_what_is_given_and_keeps_the_rest() -> None:
    d = _with_worker()
    schedule = d.schedule(every(1_000), overlap=Overlap.SKIP)
    d.advance(1_000)
    other = Action(type="other", task_queue="default", is_task=True)
    d.step(c.UpdateSchedule(schedule_id="report", action=other))
    assert (schedule.spec, schedule.action, schedule.overlap) == (every(1_000), other, Overlap.SKIP)
    d.step(c.UpdateSchedule(schedule_id="report", spec=every(600)))
    assert (schedule.spec, schedule.action, schedule.action_count) == (every(600), other, 1)
    assert schedule.next_ms == START_MS + 1_600


def test_a_deleted_schedule_fires_no_more_and_its_run_goes_on() -> None:
    d = _with_worker()
    d.schedule(every(1_000), overlap=Overlap.BUFFER_ONE)
    d.advance(2_000)
    assert d.step(c.DeleteSchedule(schedule_id="report")) is True
    assert d.step(c.DeleteSchedule(schedule_id="report")) is False
    d.advance(10_000)
    d.complete(d.task())
    assert len(d.tasks()) == 1, "the buffered run went with the schedule"
    assert d.views.schedules() == []
    d.schedule(every(1_000))
    d.advance(1_000)
    assert len(d.tasks()) == 2
