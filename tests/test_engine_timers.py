"""Deadlines: the heap of them, the four timeouts of an activity to the millisecond, and clocks that jump."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers.engine_driver import DAY_MS, START_MS, Driver, failure

from zapserver.engine import commands as c
from zapserver.engine.commands import ActivityTimeouts, Status
from zapserver.engine.errors import NotFound, StaleToken
from zapserver.engine.retry import RetryPolicy
from zapserver.engine.timers import STALE_ENTRIES_MIN, Timers

ONCE = RetryPolicy(maximum_attempts=1)
TWICE = RetryPolicy(maximum_attempts=2)


# --- the heap ----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Alarm:
    at_ms: int | None
    timer_ms: int | None = None

    def deadline_ms(self) -> int | None:
        return self.at_ms


def test_the_earliest_comes_first_and_equal_ones_in_the_order_of_arming() -> None:
    timers = Timers()
    alarms = [Alarm(at_ms) for at_ms in (30, 10, 20, 10)]
    for alarm in alarms:
        timers.update(alarm)
    assert timers.next_ms() == 10
    assert list(timers.due(20)) == [alarms[1], alarms[3], alarms[2]]
    assert timers.next_ms() == 30
    assert len(timers) == 1


def test_a_deadline_that_moved_later_wakes_once_and_then() -> None:
    timers = Timers()
    alarm = Alarm(10)
    timers.update(alarm)
    alarm.at_ms = 50
    timers.update(alarm)
    assert list(timers.due(49)) == []
    assert timers.next_ms() == 50
    assert list(timers.due(50)) == [alarm]
    assert timers.next_ms() is None


def test_a_deadline_that_moved_earlier_wakes_at_the_earlier_time_only() -> None:
    timers = Timers()
    alarm = Alarm(50)
    timers.update(alarm)
    alarm.at_ms = 10
    timers.update(alarm)
    assert timers.next_ms() == 10
    assert list(timers.due(10)) == [alarm]
    assert list(timers.due(50)) == []


def test_what_is_removed_or_lost_its_deadline_never_wakes() -> None:
    timers = Timers()
    removed, changed, unarmed = Alarm(10), Alarm(10), Alarm(None)
    for alarm in (removed, changed, unarmed):
        timers.update(alarm)
    timers.remove(removed)
    timers.remove(removed)
    changed.at_ms = None
    timers.update(changed)
    assert timers.next_ms() is None
    assert list(timers.due(100)) == []
    assert len(timers) == 0


def test_what_is_armed_while_others_fire_fires_too_when_it_is_due() -> None:
    timers = Timers()
    first, second = Alarm(10), Alarm(12)
    timers.update(first)
    fired = []
    for alarm in timers.due(20):
        fired.append(alarm)
        if alarm is first:
            timers.update(second)
    assert fired == [first, second]


def test_many_short_lives_leave_no_heap_behind() -> None:
    """Ten thousand tasks a second with a ten-minute timeout each, all of which end early."""
    timers = Timers()
    for number in range(50_000):
        alarm = Alarm(1_000_000 + number)
        timers.update(alarm)
        timers.remove(alarm)
    assert len(timers._heap) <= STALE_ENTRIES_MIN + 2


def test_what_waits_survives_the_sweep_of_what_does_not() -> None:
    timers = Timers()
    waiting = [Alarm(2_000_000 + number) for number in range(10)]
    for alarm in waiting:
        timers.update(alarm)
    for number in range(10 * STALE_ENTRIES_MIN):
        alarm = Alarm(1_000_000 + number)
        timers.update(alarm)
        timers.remove(alarm)
    assert list(timers.due(3_000_000)) == waiting


@given(
    st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(0, 60)), st.booleans()), max_size=60),
)
def test_against_a_model_nothing_wakes_late_early_or_twice(actions: list[tuple[int, int | None, bool]]) -> None:
    timers = Timers()
    alarms = [Alarm(None) for _ in range(6)]
    now_ms = 0
    for number, at_ms, passes in actions:
        alarms[number].at_ms = None if at_ms is None else now_ms + at_ms
        timers.update(alarms[number])
        if passes:
            now_ms += 20
            wanted = {id(alarm) for alarm in alarms if alarm.at_ms is not None and alarm.at_ms <= now_ms}
            fired = list(timers.due(now_ms))
            assert len(fired) == len(wanted)
            assert {id(alarm) for alarm in fired} == wanted
            for alarm in alarms:
                if id(alarm) in wanted:
                    alarm.at_ms = None
        waiting = [alarm.at_ms for alarm in alarms if alarm.at_ms is not None]
        next_ms = timers.next_ms()
        assert (next_ms is None) <= (not waiting)
        if waiting:
            assert next_ms is not None
            assert next_ms <= min(waiting)


# --- the four timeouts -------------------------------------------------------------------------------------


def test_schedule_to_start_ends_a_task_that_nobody_takes_to_the_millisecond() -> None:
    d = Driver()
    started = d.submit(timeouts=ActivityTimeouts(schedule_to_start_ms=500))
    d.advance(499)
    assert d.status(started) is Status.RUNNING
    d.advance(1)
    assert d.status(started) is Status.TIMED_OUT
    assert d.execution(started).close_ms == START_MS + 500
    text = str(d.failure(started)["message"])
    assert text == (
        "schedule-to-start timeout of 500 ms passed while no worker is subscribed to task queue 'default'"
        " for activities and tasks"
    )
    assert d.execution(started).is_dead_letter


def test_schedule_to_start_is_over_once_a_worker_has_it_and_counts_anew_for_a_retry() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit(timeouts=ActivityTimeouts(schedule_to_start_ms=500), retry=RetryPolicy(maximum_attempts=3))
    d.advance(10_000)
    assert d.status(started) is Status.RUNNING
    subscription = d.subscribe(2, slots=0)
    d.lose(1)
    d.advance(499)
    assert d.status(started) is Status.RUNNING
    d.step(c.SetSlots(peer=2, subscription_id=subscription, slots=1))
    d.fail(d.task(2))
    d.step(c.SetSlots(peer=2, subscription_id=subscription, slots=0))
    d.advance(2_000 + 499)
    assert d.status(started) is Status.RUNNING
    d.advance(1)
    assert d.status(started) is Status.TIMED_OUT


def test_schedule_to_start_counts_anew_for_a_task_that_was_handed_back() -> None:
    d = Driver()
    subscription = d.subscribe(1)
    started = d.submit(timeouts=ActivityTimeouts(schedule_to_start_ms=500))
    d.advance(10_000)
    d.step(c.SetSlots(peer=1, subscription_id=subscription, slots=0))
    d.hand_back(d.task())
    (waiting,) = d.views.explain(started.workflow_id)
    assert (waiting.since_ms, waiting.until_ms) == (d.now_ms, d.now_ms + 500)
    d.advance(499)
    assert d.status(started) is Status.RUNNING
    d.advance(1)
    assert d.status(started) is Status.TIMED_OUT


def test_start_to_close_ends_an_attempt_tells_the_worker_and_retries() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit(timeouts=ActivityTimeouts(start_to_close_ms=500), retry=TWICE)
    old = d.task()
    d.advance(499)
    assert d.stops() == []
    d.advance(1)
    assert d.stops(1)[0].task_token == old.task_token
    assert "start-to-close timeout: attempt 1" in d.stops(1)[0].reason
    d.advance(999)
    assert len(d.tasks()) == 1
    d.advance(1)
    assert d.task().attempt == 2
    d.advance(500)
    assert d.status(started) is Status.TIMED_OUT
    assert d.failure(started)["code"] == "TimeoutError"


def test_an_answer_in_the_last_millisecond_counts_and_one_at_the_deadline_does_not() -> None:
    timeouts = ActivityTimeouts(start_to_close_ms=500)
    for late_ms, status in ((-1, Status.COMPLETED), (0, Status.TIMED_OUT), (1, Status.TIMED_OUT)):
        d = Driver()
        d.subscribe(1)
        started = d.submit(timeouts=timeouts, retry=ONCE)
        d.now_ms += 500 + late_ms
        if status is Status.COMPLETED:
            d.complete(d.task())
        else:
            d.refused(c.CompleteActivity(token=d.task().task_token, result=None), NotFound)
        assert d.status(started) is status


def test_a_task_that_names_no_timeout_gives_its_slot_back_after_ten_minutes() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit(retry=ONCE)
    d.advance(599_999)
    assert d.status(started) is Status.RUNNING
    d.advance(1)
    assert d.status(started) is Status.TIMED_OUT


def test_heartbeats_keep_an_attempt_alive_and_silence_ends_it() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit(timeouts=ActivityTimeouts(heartbeat_ms=500), retry=ONCE)
    for _ in range(10):
        d.advance(499)
        d.heartbeat(d.task())
    assert d.status(started) is Status.RUNNING
    d.advance(499)
    assert d.status(started) is Status.RUNNING
    d.advance(1)
    assert d.status(started) is Status.TIMED_OUT
    assert d.failure(started)["message"] == "heartbeat timeout: attempt 1 was silent for 500 ms"


def test_heartbeats_do_not_extend_start_to_close() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit(timeouts=ActivityTimeouts(heartbeat_ms=500, start_to_close_ms=1_200), retry=ONCE)
    for _ in range(3):
        d.advance(400)
        if d.status(started).is_open:
            d.heartbeat(d.task())
    assert "start-to-close" in str(d.failure(started)["message"])


def test_a_late_heartbeat_is_refused() -> None:
    d = Driver()
    d.subscribe(1)
    d.submit(timeouts=ActivityTimeouts(heartbeat_ms=500), retry=TWICE)
    d.now_ms += 500
    d.refused(c.HeartbeatActivity(token=d.task().task_token, details=None), StaleToken)


@pytest.mark.parametrize("state", ["waiting", "backoff", "running"])
def test_schedule_to_close_ends_everything_in_every_state(state: str) -> None:
    d = Driver()
    timeouts = ActivityTimeouts(schedule_to_close_ms=5_000)
    policy = RetryPolicy(initial_interval_ms=4_000, maximum_attempts=9)
    if state != "waiting":
        d.subscribe(1)
    started = d.submit(timeouts=timeouts, retry=policy)
    if state == "backoff":
        d.fail(d.task(), failure("first", "Boom"))
        d.lose(1)
        d.advance(4_000)  # nobody takes the second attempt
    d.advance(START_MS + 4_999 - d.now_ms)
    assert d.status(started) is Status.RUNNING
    d.advance(1)
    assert d.status(started) is Status.TIMED_OUT
    assert str(d.failure(started)["message"]).startswith("schedule-to-close timeout of 5000 ms passed")
    assert ("cause" in d.failure(started)) is (state == "backoff"), "the failure before it is the cause"
    assert len(d.stops()) == (1 if state == "running" else 0)


def test_a_lost_worker_is_the_cause_of_a_timeout_that_follows() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit(timeouts=ActivityTimeouts(schedule_to_close_ms=500))
    d.lose(1)
    d.advance(500)
    cause = d.failure(started)["cause"]
    assert isinstance(cause, dict)
    assert cause["code"] == "WorkerLost"


def test_schedule_to_close_fires_in_the_backoff_itself() -> None:
    d = Driver()
    d.subscribe(1)
    timeouts = ActivityTimeouts(schedule_to_close_ms=5_000)
    started = d.submit(timeouts=timeouts, retry=RetryPolicy(initial_interval_ms=4_999, maximum_attempts=9))
    d.fail(d.task())
    d.jump(5_000)
    assert d.status(started) is Status.TIMED_OUT


@pytest.mark.parametrize(("wait_ms", "status"), [(4_999, Status.RUNNING), (5_000, Status.FAILED)])
def test_a_retry_that_would_come_too_late_is_not_waited_for(wait_ms: int, status: Status) -> None:
    d = Driver()
    d.subscribe(1)
    policy = RetryPolicy(initial_interval_ms=wait_ms, maximum_attempts=9)
    started = d.submit(timeouts=ActivityTimeouts(schedule_to_close_ms=5_000), retry=policy)
    d.fail(d.task())
    assert d.status(started) is status


def test_a_worker_lost_after_a_timeout_that_was_due_comes_second() -> None:
    """The line went dead and nobody noticed for a while: what was due before is done first."""
    d = Driver()
    d.subscribe(1)
    started = d.submit(timeouts=ActivityTimeouts(start_to_close_ms=100), retry=ONCE)
    d.now_ms += 100
    d.lose(1)
    assert d.status(started) is Status.TIMED_OUT


def test_everything_that_is_due_at_one_moment_happens_in_one_step() -> None:
    d = Driver()
    runs = [d.submit(timeouts=ActivityTimeouts(schedule_to_start_ms=100 + number)) for number in range(50)]
    d.jump(DAY_MS)
    assert {d.status(started) for started in runs} == {Status.TIMED_OUT}
    assert d.engine.next_deadline_ms() is None


# --- clocks that jump --------------------------------------------------------------------------------------


def test_time_never_runs_backwards_inside() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit(timeouts=ActivityTimeouts(start_to_close_ms=1_000), retry=ONCE)
    d.now_ms -= DAY_MS
    d.heartbeat(d.task())
    assert d.status(started) is Status.RUNNING
    d.complete(d.task())
    execution = d.execution(started)
    assert execution.close_ms == START_MS
    assert {event.time_ms for event in d.events(started)} == {START_MS}


def test_a_clock_that_jumped_back_delays_a_deadline_until_it_is_there_again() -> None:
    d = Driver()
    started = d.submit(timeouts=ActivityTimeouts(schedule_to_start_ms=1_000))
    d.now_ms -= 10_000
    d.step(c.Tick())
    d.now_ms += 10_999
    d.step(c.Tick())
    assert d.status(started) is Status.RUNNING
    d.now_ms += 1
    d.step(c.Tick())
    assert d.status(started) is Status.TIMED_OUT


def test_an_engine_that_waits_for_nothing_says_so() -> None:
    d = Driver()
    assert d.engine.next_deadline_ms() is None
    d.subscribe(1)
    d.submit(timeouts=ActivityTimeouts())
    assert d.engine.next_deadline_ms() is None
    d.submit(timeouts=ActivityTimeouts(start_to_close_ms=70))
    assert d.engine.next_deadline_ms() == START_MS + 70
    d.complete(d.task())
    assert d.engine.next_deadline_ms() is None
