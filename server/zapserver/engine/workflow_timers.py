"""The timers of replayed workflows: started and stopped by command, fired by time, kept through restarts."""

from __future__ import annotations

from zapserver.engine import wakeups
from zapserver.engine.records import EventType, Execution, WorkflowTimer
from zapserver.engine.state import State


def start(s: State, execution: Execution, command_id: str, fire_after_ms: int, now_ms: int) -> None:
    event = s.record(execution, EventType.TIMER_STARTED, now_ms, commandId=command_id, fireAfterMs=fire_after_ms)
    arm(s, execution, command_id, event.event_id, now_ms, now_ms + fire_after_ms)


def arm(s: State, execution: Execution, command_id: str, started_event_id: int, started_ms: int, due_ms: int) -> None:
    timer = WorkflowTimer(execution.run_id, command_id, started_event_id, started_ms, due_ms)
    execution.timers[command_id] = timer
    s.touch(execution)
    s.timers.update(timer)


def cancel(s: State, execution: Execution, command_id: str, now_ms: int) -> None:
    """Stop a timer. One that has fired already stays fired: the workflow will hear of it."""
    timer = execution.timers.pop(command_id, None)
    if timer is not None:
        s.timers.remove(timer)
        s.record(
            execution, EventType.TIMER_CANCELED, now_ms, startedEventId=timer.started_event_id, commandId=command_id
        )


def fire(s: State, timer: WorkflowTimer, now_ms: int) -> None:
    execution = s.executions[timer.run_id]
    del execution.timers[timer.command_id]
    event = s.record(
        execution,
        EventType.TIMER_FIRED,
        now_ms,
        startedEventId=timer.started_event_id,
        commandId=timer.command_id,
    )
    wakeups.news(s, execution, event.event_id, now_ms)


def drop_all(s: State, execution: Execution) -> None:
    """The run is over."""
    for timer in execution.timers.values():
        s.timers.remove(timer)
    execution.timers.clear()
