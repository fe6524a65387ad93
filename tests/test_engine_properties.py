"""The engine under everything: the whole table of an activity, and random lives of a whole namespace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.helpers.engine_driver import HOUR_MS, Driver, failure, with_a_replayed_run
from tests.helpers.engine_machine import EngineMachine, Machine
from tests.helpers.replay_machine import ReplayMachine

from zapserver.engine import (
    activities,
    children,
    decisions,
    registry,
    schedule_runs,
    schedules,
    updates,
    wakeups,
    workflow_tasks,
    workflow_timers,
)
from zapserver.engine import commands as c
from zapserver.engine.commands import ActivityTimeouts
from zapserver.engine.errors import EngineError
from zapserver.engine.queues import TaskQueue
from zapserver.engine.records import ActivityState, Execution, QueuedTask, Schedule, Subscription
from zapserver.engine.retry import RetryPolicy
from zapserver.engine.state import State
from zapserver.engine.timers import Timers

# --- every state meets every input -------------------------------------------------------------------------


def _table() -> dict[tuple[str, str], str]:
    """The table in the docstring of `activities`: from state and input to the state after it."""
    lines = [line.strip() for line in (activities.__doc__ or "").splitlines() if line.strip().startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    header, body = rows[0], rows[2:]
    return {(state, row[0]): cell for row in body for state, cell in zip(header[1:], row[1:], strict=True)}


class Sweep:
    """One task in a given state, and everything that can happen to it."""

    def __init__(self, state: str, attempts: int, timeouts: ActivityTimeouts) -> None:
        self.d = d = Driver()
        policy = RetryPolicy(
            initial_interval_ms=HOUR_MS, maximum_attempts=attempts, non_retryable_error_types=("Fatal",)
        )
        subscription = "" if state == "SCHEDULED" else d.subscribe(1)
        self.started = d.submit(retry=policy, timeouts=timeouts)
        self.activity = next(iter(d.execution(self.started).open_activities.values()))
        match state:
            case "BACKOFF":
                d.fail(d.task())
            case "STARTED, canceled":
                d.cancel(self.started)
            case "CLOSED":
                d.complete(d.task())
        if subscription:
            d.step(c.SetSlots(peer=1, subscription_id=subscription, slots=0))
        lease = self.activity.lease
        self.token = f"act|{self.activity.activity_id}|1|none" if lease is None else lease.token
        if lease is None and d.tasks():
            self.token = d.task().task_token

    def outcome(self) -> str:
        execution = self.d.execution(self.started)
        if execution.status.is_open:
            return self.activity.state.name
        assert self.activity.state is ActivityState.CLOSED
        return "CLOSED" if execution.status.name == "TERMINATED" else execution.status.name

    def fail(self, data: bytes | None = None) -> None:
        self.d.step(c.FailActivity(token=self.token, failure=failure() if data is None else data))


def _fail_with(code: str) -> Callable[[Sweep], object]:
    return lambda sweep: sweep.fail(failure(code=code))


def _advance(sweep: Sweep) -> None:
    sweep.d.advance(1_000)


INPUTS: dict[str, tuple[Callable[[Sweep], object], int, ActivityTimeouts]] = {
    "a slot is free": (lambda sweep: sweep.d.subscribe(2), 5, ActivityTimeouts()),
    "the worker completes it": (
        lambda sweep: sweep.d.step(c.CompleteActivity(token=sweep.token, result=None)),
        5,
        ActivityTimeouts(),
    ),
    "it fails, attempts left": (lambda sweep: sweep.fail(), 5, ActivityTimeouts()),
    "it fails, no attempt left": (lambda sweep: sweep.fail(), 1, ActivityTimeouts()),
    "it fails, not to be retried": (_fail_with("Fatal"), 5, ActivityTimeouts()),
    "it fails with CanceledError": (_fail_with("CanceledError"), 5, ActivityTimeouts()),
    "heartbeat": (
        lambda sweep: sweep.d.step(c.HeartbeatActivity(token=sweep.token, details=None)),
        5,
        ActivityTimeouts(),
    ),
    "handed back": (lambda sweep: sweep.d.step(c.HandBackTask(token=sweep.token)), 5, ActivityTimeouts()),
    "detached": (lambda sweep: sweep.d.step(c.DetachTask(token=sweep.token)), 5, ActivityTimeouts()),
    "worker lost, attempts left": (lambda sweep: sweep.d.lose(1), 5, ActivityTimeouts()),
    "worker lost, no attempt left": (lambda sweep: sweep.d.lose(1), 1, ActivityTimeouts()),
    "cancel": (lambda sweep: sweep.d.cancel(sweep.started), 5, ActivityTimeouts()),
    "the retry is due": (lambda sweep: sweep.d.advance(HOUR_MS), 5, ActivityTimeouts()),
    "schedule-to-start timeout": (_advance, 5, ActivityTimeouts(schedule_to_start_ms=1_000)),
    "schedule-to-close timeout": (_advance, 5, ActivityTimeouts(schedule_to_close_ms=1_000)),
    "start-to-close, attempts left": (_advance, 5, ActivityTimeouts(start_to_close_ms=1_000)),
    "start-to-close, no attempt left": (_advance, 1, ActivityTimeouts(start_to_close_ms=1_000)),
    "heartbeat timeout, attempts left": (_advance, 5, ActivityTimeouts(heartbeat_ms=1_000)),
    "the execution ends": (lambda sweep: sweep.d.terminate(sweep.started), 5, ActivityTimeouts()),
}

TABLE = _table()


def test_the_table_is_whole() -> None:
    assert {what for _, what in TABLE} == set(INPUTS)
    assert {state for state, _ in TABLE} == {"SCHEDULED", "BACKOFF", "STARTED", "STARTED, canceled", "CLOSED"}
    assert len(TABLE) == 5 * len(INPUTS)


@pytest.mark.parametrize(("state", "what"), TABLE, ids=lambda item: item)
def test_a_state_and_an_input_end_as_the_table_says(state: str, what: str) -> None:
    act, attempts, timeouts = INPUTS[what]
    if state == "BACKOFF":
        attempts = 5  # with one attempt there is no backoff to be in
        if timeouts.schedule_to_close_ms:
            timeouts = ActivityTimeouts(schedule_to_close_ms=HOUR_MS + 1_000)
    sweep = Sweep(state, attempts, timeouts)
    before = (sweep.outcome(), sweep.d.history(sweep.started))
    expected = TABLE[state, what]
    if expected == "refused":
        with pytest.raises(EngineError):
            act(sweep)
        assert (sweep.outcome(), sweep.d.history(sweep.started)) == before
        return
    if state == "BACKOFF" and timeouts.schedule_to_close_ms:
        sweep.d.jump(HOUR_MS)
    act(sweep)
    if expected == "-":
        assert (sweep.outcome(), sweep.d.history(sweep.started)) == before
    else:
        assert sweep.outcome() == expected


# --- random lives -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_random_lives_keep_every_invariant() -> None:
    run_state_machine_as_test(EngineMachine, settings=settings(max_examples=40, stateful_step_count=50, deadline=None))


@pytest.mark.slow
def test_random_lives_of_workflows_that_replay_keep_every_invariant() -> None:
    run_state_machine_as_test(ReplayMachine, settings=settings(max_examples=80, stateful_step_count=50, deadline=None))


def _forget_the_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    release = State.release

    def forgetful(s: State, task: QueuedTask) -> Subscription | None:
        subscription = release(s, task)
        if subscription is not None:
            subscription.held += 1
        return subscription

    monkeypatch.setattr(State, "release", forgetful)


def _deliver_beyond_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    def generous(queue: TaskQueue, subscription: Subscription) -> None:
        subscription.is_idle = subscription.subscription_id in queue.subscriptions

    monkeypatch.setattr(TaskQueue, "credit", generous)


def _never_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Timers, "update", lambda timers, target: None)


def _leave_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    check = registry.check_free

    def untidy(s: State, workflow_id: str) -> None:
        s.queue((c.QueueKind.ACTIVITY, "trace"))
        check(s, workflow_id)
        s.drop_queue_if_unused((c.QueueKind.ACTIVITY, "trace"))

    monkeypatch.setattr(registry, "check_free", untidy)


def _forget_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow_tasks, "worker_lost", lambda s, task, reason, now_ms: s.release(task))


def _lose_the_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wakeups, "wake", lambda s, execution, now_ms: None)


def _tell_no_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "report", lambda *anything: None)


def _forget_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "open_run", lambda *anything: None)


def _keep_updates_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "take_back", lambda execution: None)


def _leave_timers_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow_timers, "drop_all", lambda s, execution: None)


def _apply_before_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(s: State, execution: Execution, commands: tuple[c.TaskCommand, ...], now_ms: int) -> None:
        wakeups.succeeded(execution)
        execution.seen_event_id = execution.history_length
        check(s, execution, commands, now_ms)

    check = decisions.check
    monkeypatch.setattr(decisions, "check", hasty)


GENERAL_FAULTS = [_forget_the_slot, _deliver_beyond_the_slots, _never_wake, _leave_a_trace, _forget_who_waits]
REPLAY_FAULTS = [_lose_the_news, _forget_children, _apply_before_the_check]


def _forget_what_waits_for_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_runs, "_start_buffered", lambda s, schedule, now_ms: True)


def _act_on_a_slot_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = schedules._plan

    def repeat(s: State, schedule: Schedule, next_ms: int | None, now_ms: int) -> None:
        plan(s, schedule, schedule.last_slot_ms or next_ms, now_ms)

    monkeypatch.setattr(schedules, "_plan", repeat)


@pytest.mark.parametrize(
    ("machine", "plant"),
    [
        *((EngineMachine, plant) for plant in GENERAL_FAULTS),
        *((ReplayMachine, plant) for plant in REPLAY_FAULTS),
    ],
    ids=lambda thing: thing.__name__.strip("_"),
)
def test_a_machine_catches_a_planted_fault(
    machine: type[Machine], plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    hunt = settings(
        max_examples=1_000,
        stateful_step_count=50,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
    )
    with pytest.raises((AssertionError, LookupError, TypeError)):
        run_state_machine_as_test(machine, settings=hunt)


TIMER = c.StartTimerCommand(id="t", fire_after_ms=HOUR_MS)
KID = c.StartChildCommand(id="k", type="Kid", workflow_id="kid")


def _an_update_goes_out(d: Driver, started: c.Started) -> None:
    d.answer(d.run())
    d.update(started)
    d.lose(1)


def _a_child_ends(d: Driver, started: c.Started) -> None:
    d.step(c.TerminateExecution(workflow_id="kid"))


def _a_run_with_a_timer_ends(d: Driver, started: c.Started) -> None:
    d.terminate(started)
    d.advance(HOUR_MS)


@pytest.mark.parametrize(
    ("plant", "happens"),
    [
        (_keep_updates_out, _an_update_goes_out),
        (_tell_no_parent, _a_child_ends),
        (_leave_timers_behind, _a_run_with_a_timer_ends),
    ],
)
def test_the_invariants_catch_a_planted_fault(
    plant: Callable[[pytest.MonkeyPatch], None],
    happens: Callable[[Driver, c.Started], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Faults that the machine takes half a minute to come upon."""
    for is_planted in (False, True):
        d, started = with_a_replayed_run(1, TIMER, KID)
        if is_planted:
            plant(monkeypatch)
            with pytest.raises((AssertionError, LookupError)):
                happens(d, started)
        else:
            happens(d, started)
