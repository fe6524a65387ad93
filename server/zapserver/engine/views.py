"""Looking at a namespace without changing it: executions, histories, dead letters, schedules, queues."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from zapserver.engine import activities, archive, explaining, schedules, slots
from zapserver.engine.commands import QueueKind, ScheduleSpec
from zapserver.engine.errors import Invalid
from zapserver.engine.explaining import Waiting
from zapserver.engine.records import Activity, ActivityState, Event, Execution, Schedule
from zapserver.engine.state import State

PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000
LOOKED_AT_MAX = 2_000
"""Executions that one page looks at: some 20 ms. A filter that matches little must not hold everybody else."""

_PLACE = re.compile(r"(?:(open):([0-9]{1,18})|(closed):([0-9]{1,18}):([0-9]{1,18}))", re.ASCII)


def _read_place(text: str) -> tuple[str, tuple[int, ...]]:
    """Where a page ended: among the open executions, by number, or among the closed ones, by end and number."""
    if not text:
        return "", ()
    match = _PLACE.fullmatch(text)
    if match is None:
        raise Invalid(f"{text[:40]!r} is not where a page ends; pass `next_page_token` as it came, or leave it out")
    if match[1]:
        return "open", (int(match[2]),)
    return "closed", (int(match[4]), int(match[5]))


class Views:
    def __init__(self, state: State) -> None:
        self._s = state

    def execution(self, workflow_id: str, run_id: str = "") -> Execution:
        """The run, or the latest run of the workflow id. Raises `NotFound`."""
        return self._s.execution(workflow_id, run_id)

    def executions(
        self, matches: Callable[[Execution], bool], *, after: str = "", limit: int = PAGE_SIZE_DEFAULT
    ) -> tuple[list[Execution], str]:
        """A page of executions, and where the next page begins ("" at the end).

        The open ones come first, the newest start first, then the closed ones, the latest end first. No more than
        `LOOKED_AT_MAX` are looked at, so a page can be short, even empty, and others still follow. Raises `Invalid`
        for an `after` that no page gave out.
        """
        page: list[Execution] = []
        last = ""
        for looked_at, (place, execution) in enumerate(self._from(after)):
            if looked_at == LOOKED_AT_MAX:
                return page, last
            if matches(execution):
                if len(page) == limit:
                    return page, last
                page.append(execution)
            last = place
        return page, ""

    def _from(self, after: str) -> Iterator[tuple[str, Execution]]:
        kind, numbers = _read_place(after)
        if kind != "closed":
            below = numbers[0] if numbers else None
            for execution in reversed(self._s.executions.values()):
                if below is None or execution.number < below:
                    yield f"open:{execution.number}", execution
        place = (numbers[0], numbers[1]) if kind == "closed" else None
        for (close_ms, number), execution in archive.closed_before(self._s.reader, place):
            yield f"closed:{close_ms}:{number}", execution

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
        execution = self._s.execution(workflow_id, run_id)
        if reverse:
            end = min(after - 1, execution.history_length) if after > 0 else execution.history_length
            first = max(end - limit, 0)
            page = self._s.events(execution, first, max(end - first, 0))[::-1]
        else:
            page = self._s.events(execution, max(after, 0), limit)
        return page, page[-1].event_id if page and len(page) == limit else 0

    def dead_letters(self, *, after: str = "", limit: int = PAGE_SIZE_DEFAULT) -> tuple[list[Execution], str]:
        """A page of dead letters, the oldest first, and where the next page begins ("" at the end)."""
        kind, numbers = _read_place(after)
        if kind == "open":
            raise Invalid(f"{after[:40]!r} is not where a page of dead letters ends")
        page: list[Execution] = []
        last = ""
        for place, execution in archive.dead_letters(self._s.reader, (numbers[0], numbers[1]) if numbers else None):
            if len(page) == limit:
                return page, last
            page.append(execution)
            last = "closed:{}:{}".format(*place)
        return page, ""

    def schedule(self, schedule_id: str) -> Schedule:
        return schedules.find(self._s, schedule_id)

    def schedules(self) -> list[Schedule]:
        return sorted(self._s.schedules.values(), key=lambda schedule: schedule.schedule_id)

    def next_slots(self, schedule: Schedule, after_ms: int, count: int) -> list[int]:
        """The next `count` slots after a moment, fewer when the schedule ends."""
        return list(islice(slots.slots_after(schedule.spec, schedule.anchor_ms, after_ms), count))

    def matching_times(self, schedule_id: str, start_ms: int, end_ms: int) -> list[int]:
        """The first `slots.MATCHING_TIMES_MAX` slots of a range, both ends included; fewer past ten cron expressions.

        Raises `NotFound`, and `Invalid` for a range that ends before it starts.
        """
        schedule = self.schedule(schedule_id)
        return _matching_times(schedule.spec, schedule.anchor_ms, start_ms, end_ms)

    def matching_times_of(self, spec: ScheduleSpec, now_ms: int, start_ms: int, end_ms: int) -> list[int]:
        """The same for a spec that is not saved: what it would do as a schedule made at `now_ms`.

        Raises `Invalid` also for a spec that no schedule may have.
        """
        slots.check_spec(spec, now_ms)
        return _matching_times(spec, now_ms, start_ms, end_ms)

    def is_open(self, run_id: str) -> bool:
        """Whether this run is there and not over."""
        return run_id in self._s.executions

    def held_activity(self, token: str) -> Activity:
        """The activity that `token` proves a present lease of. Raises `StaleToken` and `NotFound`."""
        return activities.held(self._s, token)

    def explain(self, workflow_id: str, run_id: str = "") -> list[Waiting]:
        """What an open execution waits for; empty when it is closed."""
        execution = self._s.execution(workflow_id, run_id)
        if not execution.status.is_open:
            return []
        waiting = explaining.workflow_task(self._s, execution)
        waiting += [self._explain_activity(activity) for activity in execution.open_activities.values()]
        waiting += explaining.timers(execution)
        waiting += explaining.children(execution)
        waiting += explaining.updates(execution)
        return waiting or [explaining.nothing_pending(execution)]

    def _explain_activity(self, activity: Activity) -> Waiting:
        identity = build_id = ""
        match activity.state:
            case ActivityState.STARTED:
                assert activity.lease is not None
                identity, build_id = activity.lease.identity, activity.lease.build_id
                since_ms = activity.lease.started_ms
                reason = f"{activity.lease} runs attempt {activity.attempt}"
                if activity.lease.is_detached:
                    reason = f"attempt {activity.attempt} waits for whoever holds its token"
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
            build_id=build_id,
            attempt=activity.attempt,
        )

    def counts(self) -> dict[str, Any]:
        """How many of everything there are, for metrics and health."""
        s = self._s
        return {
            "open_executions": len(s.executions),
            "closed_executions": s.closed_count,
            "dead_letters": s.dead_count,
            "schedules": len(s.schedules),
            "timers": len(s.timers),
            "waiting_workflow_tasks": sum(len(q) for (kind, _), q in s.queues.items() if kind is QueueKind.WORKFLOW),
            "waiting_activity_tasks": sum(len(q) for (kind, _), q in s.queues.items() if kind is QueueKind.ACTIVITY),
            "peers": len(s.peers),
        }


def _matching_times(spec: ScheduleSpec, anchor_ms: int, start_ms: int, end_ms: int) -> list[int]:
    limit = slots.slots_at_once(spec, slots.MATCHING_TIMES_MAX, slots.LOOKS_PER_RANGE_MAX)
    return slots.slots_between(spec, anchor_ms, start_ms, end_ms, limit)
