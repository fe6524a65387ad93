"""The runs of a schedule: started, or kept waiting, or instead of others, as the overlap policy says.

| policy | while a run is open |
|---|---|
| skip | the new one is left out |
| buffer-one | one waits until the open ones have closed, the others are left out |
| buffer-all | all wait, up to `Limits.buffered_runs_max`; they run one after the other |
| cancel-other | the open ones are asked to stop, and only the latest waits for that |
| terminate-other | the open ones are ended, and it starts at once |
| allow | it starts beside them |
"""

from __future__ import annotations

from zapserver.engine import executions, registry
from zapserver.engine.commands import Overlap, Started, StartTask, StartWorkflow, Status
from zapserver.engine.errors import EngineError, LimitReached
from zapserver.engine.records import Execution, RecentAction, Schedule, ScheduledRun
from zapserver.engine.state import State
from zapserver.engine.validation import check_name

RECENT_ACTIONS_MAX = 10

ROOM_RETRY_MS = 1_000
"""How soon a run is tried again for which the namespace has no room."""

_IDENTITY = "schedule"


def rest_in_next_step_ms(now_ms: int) -> int:
    """When a step that did as much as it may leaves the rest: as soon as others have had their turn."""
    return now_ms + 1


def act(s: State, schedule: Schedule, run: ScheduledRun, overlap: Overlap, now_ms: int) -> Started | None:
    """Start `run` as `overlap` says; None when it was left out or waits. Raises `EngineError` before any change."""
    if schedule.open_runs:
        match overlap:
            case Overlap.SKIP:
                schedule.skipped_overlap += 1
                s.touch_schedule(schedule)
                return None
            case Overlap.BUFFER_ONE | Overlap.BUFFER_ALL:
                _let_wait(s, schedule, run, overlap)
                return None
            case Overlap.CANCEL_OTHER:
                _check_it_could_start(s, schedule, run)
                if _cancel_open_runs(s, schedule, run, now_ms):
                    return None
            case Overlap.TERMINATE_OTHER:
                _check_it_could_start(s, schedule, run)
                _terminate_open_runs(s, schedule, run, now_ms)
            case Overlap.ALLOW:
                pass
    return _start(s, schedule, run, now_ms)


def act_if_possible(s: State, schedule: Schedule, run: ScheduledRun, overlap: Overlap, now_ms: int) -> bool:
    """The same, with a note instead of an error. False when the namespace is full: worth another try soon."""
    try:
        act(s, schedule, run, overlap, now_ms)
    except EngineError as error:
        schedule.note = f"the run {run.name} could not start: {error}"
        s.touch_schedule(schedule)
        return not isinstance(error, LimitReached)
    return True


def work(s: State, schedule: Schedule, now_ms: int) -> None:
    """Start what waits and can start now, then act on slots of the backfills: as many as one step may."""
    schedule.work_ms = None
    if not _start_buffered(s, schedule, now_ms) or not _work_off_backfills(s, schedule, now_ms):
        schedule.work_ms = now_ms + ROOM_RETRY_MS
    s.touch_schedule(schedule)
    s.timers.update(schedule)


def run_closed(s: State, schedule: Schedule, execution: Execution, now_ms: int) -> None:
    """A run closed in this step. It may go on in a new run, which is open then."""
    if schedule.is_deleted:
        return
    has_failed = execution.status in (Status.FAILED, Status.TIMED_OUT)
    if has_failed and schedule.pause_on_failure and execution.workflow_id not in s.open_ids:
        schedule.paused = True
        schedule.note = f"paused because the run {execution.workflow_id} is {execution.status.name}"
        schedule.updated_ms = now_ms
    work(s, schedule, now_ms)


def workflow_id_of(schedule: Schedule, run: ScheduledRun) -> str:
    return f"{schedule.action.workflow_id or schedule.schedule_id}-{run.name}"


# --- beside open runs ------------------------------------------------------------------------------------


def _let_wait(s: State, schedule: Schedule, run: ScheduledRun, overlap: Overlap) -> None:
    if any(waiting.name == run.name for waiting in schedule.buffered):
        return
    if overlap is Overlap.BUFFER_ONE and schedule.buffered:
        schedule.skipped_overlap += 1
    elif len(schedule.buffered) >= s.limits.buffered_runs_max:
        schedule.buffer_dropped += 1
    else:
        schedule.buffered.append(run)
    s.touch_schedule(schedule)


def _cancel_open_runs(s: State, schedule: Schedule, run: ScheduledRun, now_ms: int) -> bool:
    """Ask the open runs to stop; True when one has yet to, and `run` waits for it in the place of all who did."""
    for run_id, workflow_id in list(schedule.open_runs.items()):
        execution = s.execution(workflow_id, run_id)
        if execution.status is Status.RUNNING:
            executions.cancel(s, execution, f"the run {run.name} takes its place", _IDENTITY, now_ms)
    if not schedule.open_runs:
        return False
    schedule.skipped_overlap += sum(waiting.name != run.name for waiting in schedule.buffered)
    schedule.buffered = [run]
    s.touch_schedule(schedule)
    return True


def _terminate_open_runs(s: State, schedule: Schedule, run: ScheduledRun, now_ms: int) -> None:
    for run_id, workflow_id in list(schedule.open_runs.items()):
        reason = f"the run {run.name} takes its place"
        executions.terminate(s, s.execution(workflow_id, run_id), reason, _IDENTITY, now_ms)


def _check_it_could_start(s: State, schedule: Schedule, run: ScheduledRun) -> None:
    """Refuse what could not start once the open runs are gone, before any of them is touched."""
    workflow_id = workflow_id_of(schedule, run)
    check_name("workflow id", workflow_id, s.limits)
    known = s.open_ids.get(workflow_id)
    if known is not None and known.run_id not in schedule.open_runs:
        registry.check_free(s, workflow_id)
    registry.check_room_besides(s, len(schedule.open_runs))


# --- later ---------------------------------------------------------------------------------------------------


def _start_buffered(s: State, schedule: Schedule, now_ms: int) -> bool:
    """Start what waits as long as no run is open. False: there is no room for it."""
    while not schedule.open_runs and (run := _next_buffered(schedule)) is not None:
        if not act_if_possible(s, schedule, run, Overlap.ALLOW, now_ms):
            return False
        if run in schedule.buffered:  # unless it was dropped with the last action that was left
            schedule.buffered.remove(run)
        s.touch_schedule(schedule)
    return True


def _next_buffered(schedule: Schedule) -> ScheduledRun | None:
    """The first that may start: slots wait while the schedule is paused, what was asked for by hand does not."""
    return next((run for run in schedule.buffered if run.is_manual or not schedule.paused), None)


def _work_off_backfills(s: State, schedule: Schedule, now_ms: int) -> bool:
    """Act on the next slots of the backfills. False: there is no room for one."""
    for _ in range(s.limits.schedule_slots_per_step_max):
        if not schedule.backfills:
            return True
        backfill = schedule.backfills[0]
        is_full = len(schedule.buffered) >= s.limits.buffered_runs_max
        if is_full and schedule.open_runs and backfill.overlap is Overlap.BUFFER_ALL:
            return True  # it goes on when a run closes: what was asked for by hand is not dropped
        run = ScheduledRun(executions.rfc3339(backfill.slots[0]), backfill.slots[0], is_manual=True)
        if not act_if_possible(s, schedule, run, backfill.overlap, now_ms):
            return False
        backfill.slots.pop(0)
        if not backfill.slots:
            schedule.backfills.pop(0)
        s.touch_schedule(schedule)
    if schedule.backfills:
        schedule.work_ms = rest_in_next_step_ms(now_ms)
    return True


# --- start ---------------------------------------------------------------------------------------------------


def _start(s: State, schedule: Schedule, run: ScheduledRun, now_ms: int) -> Started:
    action = schedule.action
    workflow_id = workflow_id_of(schedule, run)
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
                timeouts=action.task_timeouts,
                memo=action.memo,
                headers=action.headers,
                identity=_IDENTITY,
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
                timeouts=action.timeouts,
                memo=action.memo,
                headers=action.headers,
                search_attributes=action.search_attributes,
                identity=_IDENTITY,
            ),
            now_ms,
            schedule_id=schedule.schedule_id,
        )
    if started.is_new:
        _count(s, schedule, run, started, now_ms)
    return started


def _count(s: State, schedule: Schedule, run: ScheduledRun, started: Started, now_ms: int) -> None:
    schedule.action_count += 1
    schedule.recent_actions.append(RecentAction(run.slot_ms, now_ms, started.workflow_id, started.run_id))
    del schedule.recent_actions[:-RECENT_ACTIONS_MAX]
    if schedule.remaining_actions and not run.is_manual:
        schedule.remaining_actions -= 1
        if not schedule.remaining_actions:
            manual = [waiting for waiting in schedule.buffered if waiting.is_manual]
            schedule.buffer_dropped += len(schedule.buffered) - len(manual) - (run in schedule.buffered)
            schedule.buffered = manual
    s.touch_schedule(schedule)
