"""Schedules: when the next slot is, and what happens when it comes.

A slot is a moment that the spec names; jitter delays the action, never the slot. An interval counts
from the creation of the schedule, so its first slot is one period later. A slot whose time has passed
unnoticed (the machine slept, the clock jumped) is acted on once, for the latest of them; the others
are counted as missed.
"""

from __future__ import annotations

from zapserver.engine import executions, registry
from zapserver.engine.commands import (
    Action,
    Overlap,
    PutSchedule,
    ScheduleSpec,
    Started,
    StartTask,
    StartWorkflow,
    TriggerSchedule,
    UpdateSchedule,
)
from zapserver.engine.errors import EngineError, Invalid, LimitReached, NotFound
from zapserver.engine.records import Schedule, ScheduledRun
from zapserver.engine.specs import TIME_MS_MAX, next_due_ms, read_spec
from zapserver.engine.state import State
from zapserver.engine.validation import check_name, check_request_id
from zaptasks.spec import Interval

INTERVAL_MS_MIN = 1
"""The engine's unit of time. `zaptasks.parse_spec` has the same floor."""
INTERVAL_MS_MAX = 100 * 365 * 24 * 3_600_000
CRON_EXPRESSIONS_MAX = 100
MISSED_COUNTED_MAX = 100
"""A look at the calendar takes croniter 0.2 to 1 ms, and a clock that jumped a day ahead meets many schedules."""


def put(s: State, command: PutSchedule, now_ms: int) -> None:
    """Create, or replace what is there. The same definition again changes nothing, so that every
    process that adds a schedule shares the firings of the first. `paused` can pause one that is
    there and never resumes it: a worker that starts again must not undo what an operator did."""
    check_name("schedule_id", command.schedule_id, s.limits)
    _check_action(s, command.schedule_id, command.action)
    known = s.schedules.get(command.schedule_id)
    if known is None:
        _check_spec(command.spec, now_ms)
        if len(s.schedules) >= s.limits.schedules_max:
            raise LimitReached(
                f"this namespace has {len(s.schedules)} schedules, as many as it may: delete some first",
                limit="schedules",
            )
        known = Schedule(
            schedule_id=command.schedule_id,
            spec=command.spec,
            action=command.action,
            overlap=command.overlap,
            created_ms=now_ms,
            updated_ms=now_ms,
            anchor_ms=now_ms,
            paused=command.paused,
        )
        s.schedules[command.schedule_id] = known
        s.touch_schedule(known)
        _plan(s, known, _slot_after(known.spec, known.anchor_ms, now_ms))
        return
    if known.spec != command.spec:
        _check_spec(command.spec, now_ms)
    paused = known.paused or command.paused
    definition = (known.spec, known.action, known.overlap, known.paused)
    if definition != (command.spec, command.action, command.overlap, paused):
        known.overlap = command.overlap
        _change(s, known, command.spec, command.action, paused, now_ms)


def update(s: State, command: UpdateSchedule, now_ms: int) -> None:
    schedule = find(s, command.schedule_id)
    if command.action is not None:
        _check_action(s, schedule.schedule_id, command.action)
    if command.spec is not None and command.spec != schedule.spec:
        _check_spec(command.spec, now_ms)
    _change(
        s,
        schedule,
        schedule.spec if command.spec is None else command.spec,
        schedule.action if command.action is None else command.action,
        schedule.paused if command.paused is None else command.paused,
        now_ms,
    )


def delete(s: State, schedule_id: str) -> bool:
    schedule = s.schedules.pop(schedule_id, None)
    if schedule is None:
        return False
    schedule.is_deleted = True
    s.touch_schedule(schedule)
    s.timers.remove(schedule)
    return True


def pause(s: State, schedule_id: str, paused: bool, note: str, now_ms: int) -> None:
    """Slots that pass while paused are not made up for."""
    schedule = find(s, schedule_id)
    schedule.note = note
    _change(s, schedule, schedule.spec, schedule.action, paused, now_ms)


def _change(s: State, schedule: Schedule, spec: ScheduleSpec, action: Action, paused: bool, now_ms: int) -> None:
    """Plan again only where another slot is next now: one that waits out its jitter is not to be lost."""
    is_new_spec = spec != schedule.spec
    is_resumed = schedule.paused and not paused
    schedule.spec, schedule.action, schedule.paused, schedule.updated_ms = spec, action, paused, now_ms
    s.touch_schedule(schedule)
    if is_new_spec:
        schedule.anchor_ms = now_ms
    if is_new_spec or is_resumed:
        _plan(s, schedule, _slot_after(spec, schedule.anchor_ms, now_ms))
    else:
        s.timers.update(schedule)


def trigger(s: State, command: TriggerSchedule, now_ms: int) -> Started | None:
    """Act now, paused or not. The overlap policy given, or the schedule's own, decides beside open runs."""
    schedule = find(s, command.schedule_id)
    check_request_id(command.request_id, s.limits)
    known = registry.seen(s, ("schedule", schedule.schedule_id, command.request_id))
    if known is not None:
        return known
    run = ScheduledRun(name=command.request_id or s.new_id()[:16], request_id=command.request_id)
    return _act(s, schedule, run, command.overlap or schedule.overlap, now_ms)


def fire(s: State, schedule: Schedule, now_ms: int) -> None:
    """The schedule is due: act on the latest slot that has passed, and plan the next."""
    due_ms = schedule.next_ms
    assert due_ms is not None
    slot_ms, missed, following_ms = _catch_up(schedule, due_ms, now_ms)
    schedule.missed += missed
    s.touch_schedule(schedule)
    _plan(s, schedule, following_ms)
    _act_if_possible(s, schedule, ScheduledRun(name=executions.rfc3339(slot_ms)), schedule.overlap, now_ms)


def run_buffered(s: State, schedule: Schedule, now_ms: int) -> None:
    """A run of a schedule closed while another is buffered: start that, unless the first goes on in a new run."""
    run = schedule.buffered_run
    if run is not None and not schedule.open_runs and not schedule.is_deleted:
        schedule.buffered_run = None
        s.touch_schedule(schedule)
        _act_if_possible(s, schedule, run, Overlap.ALLOW, now_ms)


def find(s: State, schedule_id: str) -> Schedule:
    schedule = s.schedules.get(schedule_id)
    if schedule is None:
        raise NotFound("schedule not found")
    return schedule


def _act_if_possible(s: State, schedule: Schedule, run: ScheduledRun, overlap: Overlap, now_ms: int) -> None:
    try:
        _act(s, schedule, run, overlap, now_ms)
    except EngineError as error:
        s.touch_schedule(schedule)
        schedule.note = f"the run {run.name} could not start: {error}"


def _act(s: State, schedule: Schedule, run: ScheduledRun, overlap: Overlap, now_ms: int) -> Started | None:
    s.touch_schedule(schedule)
    if schedule.open_runs and overlap is Overlap.SKIP:
        schedule.skipped_overlap += 1
        return None
    if schedule.open_runs and overlap is Overlap.BUFFER_ONE:
        if schedule.buffered_run is None:
            schedule.buffered_run = run
        elif schedule.buffered_run != run:
            schedule.skipped_overlap += 1
        return None
    action = schedule.action
    workflow_id = f"{_id_base(schedule.schedule_id, action)}-{run.name}"
    if action.is_task:
        started = executions.start_task(
            s,
            StartTask(
                type=action.type,
                input=action.input,
                task_queue=action.task_queue,
                workflow_id=workflow_id,
                request_id=run.request_id,
                retry_policy=action.retry_policy,
                memo=action.memo,
                identity="schedule",
            ),
            now_ms,
            schedule_id=schedule.schedule_id,
        )
    else:
        started = executions.start_workflow(
            s,
            StartWorkflow(
                type=action.type,
                input=action.input,
                task_queue=action.task_queue,
                workflow_id=workflow_id,
                request_id=run.request_id,
                retry_policy=action.retry_policy,
                memo=action.memo,
                identity="schedule",
            ),
            now_ms,
            schedule_id=schedule.schedule_id,
        )
    schedule.action_count += started.is_new
    return started


def _id_base(schedule_id: str, action: Action) -> str:
    return action.workflow_id or schedule_id


def _check_action(s: State, schedule_id: str, action: Action) -> None:
    check_name("the action's type", action.type, s.limits)
    check_name("the action's task queue", action.task_queue, s.limits)
    slot = executions.rfc3339(TIME_MS_MAX - 1)
    check_name("the workflow id of its runs", f"{_id_base(schedule_id, action)}-{slot}", s.limits)


# --- when ------------------------------------------------------------------------------------------


def slots_after(schedule: Schedule, after_ms: int, count: int) -> list[int]:
    """The next `count` slots after a moment, fewer when the schedule ends."""
    found: list[int] = []
    moment: int | None = after_ms
    while len(found) < count:
        assert moment is not None
        moment = _slot_after(schedule.spec, schedule.anchor_ms, moment)
        if moment is None:
            break
        found.append(moment)
    return found


def _plan(s: State, schedule: Schedule, next_ms: int | None) -> None:
    """Note the next slot, and when to act on it: up to its jitter later, yet before the slot that follows."""
    schedule.next_ms = schedule.next_due_ms = next_ms
    jitter_ms = schedule.spec.jitter_ms
    if next_ms is not None and jitter_ms:
        following_ms = _slot_after(schedule.spec, schedule.anchor_ms, next_ms)
        room_ms = jitter_ms if following_ms is None else min(jitter_ms, following_ms - next_ms)
        schedule.next_due_ms = next_ms + int(s.random() * room_ms)
    s.timers.update(schedule)


def _slot_after(spec: ScheduleSpec, anchor_ms: int, after_ms: int) -> int | None:
    if spec.start_ms is not None:
        after_ms = max(after_ms, spec.start_ms - 1)
    slots = [_text_slot_after(text, spec.timezone, anchor_ms, after_ms) for text in spec.cron]
    if spec.interval_ms:
        slots.append(_interval_slot_after(spec.interval_ms, anchor_ms, after_ms))
    end_ms = TIME_MS_MAX if spec.end_ms is None else min(spec.end_ms, TIME_MS_MAX)
    return min((slot for slot in slots if slot is not None and slot <= end_ms), default=None)


def _interval_slot_after(interval_ms: int, anchor_ms: int, after_ms: int) -> int:
    return anchor_ms + max(1, (after_ms - anchor_ms) // interval_ms + 1) * interval_ms


def _text_slot_after(text: str, timezone: str, anchor_ms: int, after_ms: int) -> int | None:
    """A cron expression, or "@every", which counts from the anchor as an interval does: beside another
    expression it would otherwise begin anew at each slot of that one, and never come."""
    spec = read_spec(text, timezone)
    if isinstance(spec, Interval):
        interval_ms = spec.next_after_ms(0)
        return _interval_slot_after(interval_ms, anchor_ms - anchor_ms % 1000 * spec.on_second, after_ms)
    return next_due_ms(text, after_ms, timezone)


def _catch_up(schedule: Schedule, slot_ms: int, now_ms: int) -> tuple[int, int, int | None]:
    """From a slot that has passed to the latest one: that, how many were passed over, and the slot that follows.

    Far behind, only the first `MISSED_COUNTED_MAX` of a cron expression are counted.
    """
    spec, anchor_ms = schedule.spec, schedule.anchor_ms
    if not spec.cron:
        until_ms = now_ms if spec.end_ms is None else min(now_ms, spec.end_ms)
        missed = max(0, until_ms - slot_ms) // spec.interval_ms
        slot_ms += missed * spec.interval_ms
        return slot_ms, missed, _slot_after(spec, anchor_ms, slot_ms)
    for missed in range(MISSED_COUNTED_MAX):
        following_ms = _slot_after(spec, anchor_ms, slot_ms)
        if following_ms is None or following_ms > now_ms:
            return slot_ms, missed, following_ms
        slot_ms = following_ms
    low_ms, high_ms, later_ms = slot_ms, now_ms, _slot_after(spec, anchor_ms, now_ms)
    while high_ms - low_ms > 1:  # a slot lies at `low_ms` or behind it up to now, none behind `high_ms`
        middle_ms = (low_ms + high_ms) // 2
        following_ms = _slot_after(spec, anchor_ms, middle_ms)
        if following_ms is not None and following_ms <= now_ms:
            low_ms = slot_ms = following_ms
        else:
            high_ms = middle_ms
    return slot_ms, MISSED_COUNTED_MAX, later_ms


def _check_spec(spec: ScheduleSpec, now_ms: int) -> None:
    """Refuse what can never fire."""
    if not spec.cron and not spec.interval_ms:
        raise Invalid("a schedule needs an interval or a cron expression; this one could never fire")
    if len(spec.cron) > CRON_EXPRESSIONS_MAX:
        raise Invalid(f"{len(spec.cron)} cron expressions; at most {CRON_EXPRESSIONS_MAX} are allowed")
    if spec.interval_ms and not INTERVAL_MS_MIN <= spec.interval_ms <= INTERVAL_MS_MAX:
        raise Invalid(f"an interval of {spec.interval_ms} ms; it must be {INTERVAL_MS_MIN} ms to 100 years")
    if spec.jitter_ms < 0:
        raise Invalid(f"a jitter of {spec.jitter_ms} ms; it must not be negative")
    for text in spec.cron:
        read_spec(text, spec.timezone)
    if _slot_after(spec, now_ms, now_ms) is None:
        raise Invalid("the schedule ends before it can fire")
