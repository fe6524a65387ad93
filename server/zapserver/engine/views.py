"""Looking at a namespace without changing it: executions, histories, dead letters, schedules, queues."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from zapserver.engine import explaining, schedules
from zapserver.engine.commands import QueueKind
from zapserver.engine.explaining import Waiting
from zapserver.engine.records import Activity, ActivityState, Event, Execution, Schedule
from zapserver.engine.state import State

PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000


class Views:
    def __init__(self, state: State) -> None:
        self._s = state

    def execution(self, workflow_id: str, run_id: str = "") -> Execution:
        """The run, or the latest run of the workflow id. Raises `NotFound`."""
        return self._s.execution(workflow_id, run_id)

    def executions(
        self, matches: Callable[[Execution], bool], *, after: str = "", limit: int = PAGE_SIZE_DEFAULT
    ) -> tuple[list[Execution], str]:
        """A page of executions, newest start first, and where the next page begins ("" at the end).

        `after` is the run id that ended the page before; a run that is gone since ends the listing.
        """
        page: list[Execution] = []
        for execution in self._newest_first(after):
            if matches(execution):
                if len(page) == limit:
                    return page, page[-1].run_id
                page.append(execution)
        return page, ""

    def _newest_first(self, after: str) -> Iterator[Execution]:
        found = not after
        for execution in reversed(self._s.executions.values()):
            if found:
                yield execution
            elif execution.run_id == after:
                found = True

    def history(
        self,
        workflow_id: str,
        run_id: str = "",
        *,
        after: int = 0,
        limit: int = PAGE_SIZE_DEFAULT,
        reverse: bool = False,
    ) -> tuple[list[Event], int]:
        """Events with ids past `after` (before it, in reverse), and the cursor of the next page or 0.

        A full page gives a cursor even when nothing follows, as Go's server does.
        """
        history = self._s.execution(workflow_id, run_id).history
        if reverse:
            end = min(after - 1, len(history)) if after > 0 else len(history)
            page = history[max(end - limit, 0) : max(end, 0)][::-1]
        else:
            page = history[max(after, 0) : max(after, 0) + limit]
        return page, page[-1].event_id if page and len(page) == limit else 0

    def dead_letters(self, *, limit: int = PAGE_SIZE_DEFAULT) -> list[Execution]:
        """Oldest first."""
        return [run for run, _ in zip(self._s.dead_letters.values(), range(limit), strict=False)]

    def schedule(self, schedule_id: str) -> Schedule:
        return schedules.find(self._s, schedule_id)

    def schedules(self) -> list[Schedule]:
        return sorted(self._s.schedules.values(), key=lambda schedule: schedule.schedule_id)

    def next_slots(self, schedule: Schedule, after_ms: int, count: int) -> list[int]:
        return schedules.slots_after(schedule, after_ms, count)

    def explain(self, workflow_id: str, run_id: str = "") -> list[Waiting]:
        """What an open execution waits for; empty when it is closed."""
        execution = self._s.execution(workflow_id, run_id)
        if not execution.status.is_open:
            return []
        waiting = [self._explain_activity(activity) for activity in execution.open_activities.values()]
        waiting += explaining.timers(execution)
        waiting += explaining.children(execution)
        waiting += explaining.updates(execution)
        waiting += explaining.workflow_task(self._s, execution)
        return waiting or [explaining.nothing_pending(execution)]

    def _explain_activity(self, activity: Activity) -> Waiting:
        identity = ""
        match activity.state:
            case ActivityState.STARTED:
                assert activity.lease is not None
                identity = activity.lease.identity
                since_ms = activity.lease.started_ms
                reason = f"the worker {identity!r} runs attempt {activity.attempt}"
                if activity.cancel_reason is not None:
                    reason += " and was asked to stop"
            case ActivityState.BACKOFF:
                since_ms = activity.ready_ms
                reason = f"attempt {activity.attempt} failed and the next one backs off"
            case _:
                since_ms = activity.ready_ms
                reason = self._s.queues[activity.queue].why_waiting(activity)
        return Waiting(
            what=activity.type,
            reason=reason,
            since_ms=since_ms,
            until_ms=activity.deadline_ms(),
            activity_id=activity.activity_id,
            identity=identity,
            attempt=activity.attempt,
        )

    def counts(self) -> dict[str, Any]:
        """How many of everything there are, for metrics and health."""
        s = self._s
        return {
            "open_executions": s.open_count,
            "closed_executions": len(s.closed),
            "dead_letters": len(s.dead_letters),
            "schedules": len(s.schedules),
            "timers": len(s.timers),
            "waiting_workflow_tasks": sum(len(q) for (kind, _), q in s.queues.items() if kind is QueueKind.WORKFLOW),
            "waiting_activity_tasks": sum(len(q) for (kind, _), q in s.queues.items() if kind is QueueKind.ACTIVITY),
            "peers": len(s.peers),
        }
