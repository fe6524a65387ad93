"""Schedules: made, changed, triggered and filled in by commands, and woken when a slot comes.

Jitter delays the action, never the slot. Slots whose time has passed unnoticed (the machine slept, the server was
down, the clock jumped) are acted on in order, as far back as the catch-up window reaches; older ones are counted as
missed. One step acts on a bounded number of slots and leaves the rest to the next one.
"""

from __future__ import annotations

import msgspec

from zapserver.engine import executions, registry, schedule_runs
from zapserver.engine.commands import (
    Action,
    Backfilled,
    BackfillSchedule,
    PutSchedule,
    Started,
    TriggerSchedule,
    UpdateSchedule,
)
from zapserver.engine.errors import Invalid, LimitReached, NotFound
from zapserver.engine.records import Backfill, Schedule, ScheduledRun
from zapserver.engine.slots import (
    LOOKS_PER_RANGE_MAX,
    LOOKS_PER_STEP_MAX,
    check_spec,
    latest_slot,
    pass_over,
    slot_after,
    slots_after,
    slots_at_once,
    slots_between,
)
from zapserver.engine.specs import TIME_MS_MAX
from zapserver.engine.state import State
from zapserver.engine.validation import (
    TIMEOUT_MS_MAX,
    check_headers,
    check_name,
    check_request_id,
    check_search_attributes,
    check_timeouts,
)

CATCHUP_WINDOW_MS_DEFAULT = 60_000
"""A restart or a stall loses nothing; a night without a server does not become a morning of runs."""
CATCHUP_WINDOW_MS_MIN = 10_000
"""A busy server is late by a second or two, and that is no reason to drop a slot. Temporal has the same minimum."""
ACTIONS_MAX = 1_000_000_000
BACKFILL_REQUESTS_MAX = 100
"""The request ids of so many backfills are remembered: repeats of a call come soon or not at all."""


# --- made and changed ------------------------------------------------------------------------------------------


def put(s: State, command: PutSchedule, now_ms: int) -> None:
    """Create, or replace what is there. The same definition again changes nothing, so that every
    process that adds a schedule shares the firings of the first. `paused` can pause one that is
    there and never resumes it: a worker that starts again must not undo what an operator did."""
    check_name("schedule_id", command.schedule_id, s.limits)
    known = s.schedules.get(command.schedule_id)
    _check(s, command, known, now_ms)
    if known is not None:
        wanted = msgspec.structs.replace(command, paused=known.paused or command.paused)
        if wanted != _definition(known):
            _change(s, known, wanted, now_ms)
        return
    if len(s.schedules) >= s.limits.schedules_max:
        raise LimitReached(
            f"this namespace has {len(s.schedules)} schedules, as many as it may: delete some first", limit="schedules"
        )
    schedule = Schedule(
        schedule_id=command.schedule_id,
        spec=command.spec,
        action=command.action,
        overlap=command.overlap,
        created_ms=now_ms,
        updated_ms=now_ms,
        anchor_ms=now_ms,
        paused=command.paused,
        catchup_window_ms=command.catchup_window_ms,
        pause_on_failure=command.pause_on_failure,
        actions_limit=command.remaining_actions,
        remaining_actions=command.remaining_actions,
    )
    s.schedules[command.schedule_id] = schedule
    _plan(s, schedule, slot_after(schedule.spec, schedule.anchor_ms, now_ms), now_ms)


def update(s: State, command: UpdateSchedule, now_ms: int) -> None:
    schedule = find(s, command.schedule_id)
    given = {name: getattr(command, name) for name in command.__struct_fields__}
    changes = {name: value for name, value in given.items() if value is not None}
    wanted = msgspec.structs.replace(_definition(schedule), **changes)
    _check(s, wanted, schedule, now_ms)
    _change(s, schedule, wanted, now_ms, is_refilled=command.remaining_actions is not None)


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
    _change(s, schedule, msgspec.structs.replace(_definition(schedule), paused=paused), now_ms)


def find(s: State, schedule_id: str) -> Schedule:
    schedule = s.schedules.get(schedule_id)
    if schedule is None:
        raise NotFound("schedule not found")
    return schedule


def _definition(schedule: Schedule) -> PutSchedule:
    """The command that would make a schedule as it is now."""
    return PutSchedule(
        schedule_id=schedule.schedule_id,
        spec=schedule.spec,
        action=schedule.action,
        paused=schedule.paused,
        overlap=schedule.overlap,
        catchup_window_ms=schedule.catchup_window_ms,
        pause_on_failure=schedule.pause_on_failure,
        remaining_actions=schedule.actions_limit,
    )


def _change(s: State, schedule: Schedule, wanted: PutSchedule, now_ms: int, *, is_refilled: bool = False) -> None:
    """Plan again only where another slot is next now: one that waits out its jitter is not to be lost."""
    is_new_spec = wanted.spec != schedule.spec
    was_paused, was_active = schedule.paused, schedule.is_active
    if is_refilled or wanted.remaining_actions != schedule.actions_limit:
        schedule.actions_limit = schedule.remaining_actions = wanted.remaining_actions
    schedule.spec, schedule.action, schedule.paused = wanted.spec, wanted.action, wanted.paused
    schedule.overlap, schedule.catchup_window_ms = wanted.overlap, wanted.catchup_window_ms
    schedule.pause_on_failure = wanted.pause_on_failure
    schedule.updated_ms = now_ms
    s.touch_schedule(schedule)
    if is_new_spec:
        schedule.anchor_ms = now_ms
    if is_new_spec or (schedule.is_active and not was_active):
        after_ms = max(now_ms, schedule.last_slot_ms or 0)
        _plan(s, schedule, slot_after(schedule.spec, schedule.anchor_ms, after_ms), now_ms)
    else:
        s.timers.update(schedule)
    if was_paused and not schedule.paused:
        schedule_runs.work(s, schedule, now_ms)


def _check(s: State, command: PutSchedule, known: Schedule | None, now_ms: int) -> None:
    """Refuse what could never run. The spec that is there already may have ended in the meantime."""
    _check_action(s, command.schedule_id, command.action)
    window_ms, actions = command.catchup_window_ms, command.remaining_actions
    if window_ms is not None and not CATCHUP_WINDOW_MS_MIN <= window_ms <= TIMEOUT_MS_MAX:
        raise Invalid(f"a catch-up window of {window_ms} ms; it must be {CATCHUP_WINDOW_MS_MIN} ms to 100 years")
    if actions is not None and not 1 <= actions <= ACTIONS_MAX:
        raise Invalid(f"{actions} remaining actions; it must be 1 to {ACTIONS_MAX}, and to stop a schedule, pause it")
    if known is None or command.spec != known.spec:
        check_spec(command.spec, now_ms)


def _check_action(s: State, schedule_id: str, action: Action) -> None:
    check_name("the action's type", action.type, s.limits)
    check_name("the action's task queue", action.task_queue, s.limits)
    check_timeouts(action.timeouts)
    check_headers(action.headers, s.limits)
    check_search_attributes(action.search_attributes)
    if action.task_timeouts is not None:
        check_timeouts(action.task_timeouts)
    slot = executions.rfc3339(TIME_MS_MAX - 1)
    check_name("the workflow id of its runs", f"{action.workflow_id or schedule_id}-{slot}", s.limits)


# --- by hand -------------------------------------------------------------------------------------------------


def trigger(s: State, command: TriggerSchedule, now_ms: int) -> Started | None:
    """Act now, paused or not. The overlap policy given, or the schedule's own, decides beside open runs."""
    schedule = find(s, command.schedule_id)
    check_request_id(command.request_id, s.limits)
    known = registry.seen(s, ("schedule", schedule.schedule_id, command.request_id))
    if known is not None:
        return known
    name = command.request_id or s.new_id()[:16]
    run = ScheduledRun(name, now_ms, is_manual=True, request_id=command.request_id)
    return schedule_runs.act(s, schedule, run, command.overlap or schedule.overlap, now_ms)


def backfill(s: State, command: BackfillSchedule, now_ms: int) -> Backfilled:
    """Act on the slots of a range of the past, in steps. Those that the schedule still acts on by itself are left out.

    Raises `Invalid` for a range that is none, reaches into the future, or has too many slots.
    """
    schedule = find(s, command.schedule_id)
    check_request_id(command.request_id, s.limits)
    if (known := schedule.backfill_requests.get(command.request_id)) is not None:
        return Backfilled(slots=known)
    if command.end_ms > now_ms:
        raise Invalid(
            f"the range ends at {command.end_ms} ms, and now is {now_ms} ms; slots to come fire by themselves"
        )
    slots_max = slots_at_once(schedule.spec, s.limits.backfill_slots_max, LOOKS_PER_RANGE_MAX)
    slots = slots_between(schedule.spec, schedule.anchor_ms, command.start_ms, command.end_ms, slots_max + 1)
    if len(slots) > slots_max:
        raise Invalid(f"the range has more than {slots_max} slots, the most of one backfill; give a shorter range")
    if len(schedule.backfills) >= s.limits.backfills_max:
        raise LimitReached(
            f"{len(schedule.backfills)} backfills of this schedule are not finished, as many as may: wait for one",
            limit="backfills",
        )
    if schedule.is_active and schedule.next_ms is not None:
        slots = [slot_ms for slot_ms in slots if slot_ms < schedule.next_ms]
    if command.request_id:
        schedule.backfill_requests[command.request_id] = len(slots)
        if len(schedule.backfill_requests) > BACKFILL_REQUESTS_MAX:
            del schedule.backfill_requests[next(iter(schedule.backfill_requests))]
    answer = Backfilled(slots=len(slots))
    if slots:
        schedule.backfills.append(Backfill(slots, command.overlap or schedule.overlap))
    schedule_runs.work(s, schedule, now_ms)
    return answer


# --- by time -------------------------------------------------------------------------------------------------


def fire(s: State, schedule: Schedule, now_ms: int) -> None:
    """The schedule is due: go on with what waits, act on the slots that have passed, and plan the next."""
    if schedule.work_ms is not None and schedule.work_ms <= now_ms:
        schedule_runs.work(s, schedule, now_ms)
    due_ms = schedule.next_due_ms
    if schedule.is_active and due_ms is not None and max(due_ms, schedule.not_before_ms) <= now_ms:
        _act_on_slots(s, schedule, now_ms)
    s.timers.update(schedule)


def _act_on_slots(s: State, schedule: Schedule, now_ms: int) -> None:
    first_ms = _pass_over_missed(schedule, now_ms)
    s.touch_schedule(schedule)
    if first_ms is None:
        _plan(s, schedule, None, now_ms)
        return
    left = slots_at_once(schedule.spec, s.limits.schedule_slots_per_step_max, LOOKS_PER_STEP_MAX)
    for slot_ms in slots_after(schedule.spec, schedule.anchor_ms, first_ms - 1):
        if slot_ms > now_ms or not left or not schedule.is_active:
            _plan(s, schedule, slot_ms, now_ms)
            return
        run = ScheduledRun(executions.rfc3339(slot_ms), slot_ms)
        if not schedule_runs.act_if_possible(s, schedule, run, schedule.overlap, now_ms):
            schedule.next_ms = schedule.next_due_ms = slot_ms
            schedule.not_before_ms = now_ms + schedule_runs.ROOM_RETRY_MS
            return
        schedule.last_slot_ms = slot_ms
        left -= 1
    _plan(s, schedule, None, now_ms)


def _pass_over_missed(schedule: Schedule, now_ms: int) -> int | None:
    """Count the slots that are too old to be acted on; the first that is not."""
    spec, anchor_ms, slot_ms = schedule.spec, schedule.anchor_ms, schedule.next_ms
    assert slot_ms is not None
    assert schedule.next_due_ms is not None
    window_ms = schedule.catchup_window_ms
    oldest_ms = now_ms - (CATCHUP_WINDOW_MS_DEFAULT if window_ms is None else window_ms)
    if schedule.next_due_ms >= oldest_ms:
        return slot_ms
    if window_ms is None:
        within_ms = slot_after(spec, anchor_ms, oldest_ms - 1)
        if within_ms is None or within_ms > now_ms:
            oldest_ms = latest_slot(spec, anchor_ms, slot_ms, now_ms)
    missed, first_ms = pass_over(spec, anchor_ms, slot_ms, oldest_ms)
    schedule.missed += missed
    return first_ms


def _plan(s: State, schedule: Schedule, next_ms: int | None, now_ms: int) -> None:
    """Note the next slot, and when to act on it: up to its jitter later, yet before the slot that follows.

    One that has passed already comes in the next step.
    """
    schedule.next_ms = schedule.next_due_ms = next_ms
    schedule.not_before_ms = schedule_runs.rest_in_next_step_ms(now_ms)
    jitter_ms = schedule.spec.jitter_ms
    if next_ms is not None and next_ms > now_ms and jitter_ms:
        following_ms = slot_after(schedule.spec, schedule.anchor_ms, next_ms)
        room_ms = jitter_ms if following_ms is None else min(jitter_ms, following_ms - next_ms)
        schedule.next_due_ms = next_ms + int(s.random() * room_ms)
    s.touch_schedule(schedule)
    s.timers.update(schedule)
