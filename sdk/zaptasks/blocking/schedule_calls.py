"""The blocking client's calls about schedules."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from zaptasks.options import Durability, Seconds
from zaptasks.records import Acknowledged, ScheduleInfo, ScheduleSpec, StartTask, StartWorkflow
from zaptasks.schedule_calls import ScheduleCalls

from .handles import BlockingExecutionHandle, documented_by
from .stepping import Loop


@documented_by(ScheduleCalls)
class BlockingScheduleCalls:
    """Create, look at, steer and delete schedules."""

    _loop: Loop

    def create_schedule(
        self,
        id: str,
        spec: ScheduleSpec | str,
        action: StartTask | StartWorkflow,
        *,
        paused: bool = False,
        overlap: str = "",
        catchup_window: Seconds | None = None,
        pause_on_failure: bool = False,
        remaining_actions: int | None = None,
        durability: Durability | None = None,
    ) -> ScheduleInfo:
        created = self._loop.server.create_schedule(
            id,
            spec,
            action,
            paused=paused,
            overlap=overlap,
            catchup_window=catchup_window,
            pause_on_failure=pause_on_failure,
            remaining_actions=remaining_actions,
            durability=durability,
        )
        return self._loop.run(created)

    def list_schedules(self) -> list[ScheduleInfo]:
        return self._loop.run(self._loop.server.list_schedules())

    def describe_schedule(self, id: str) -> ScheduleInfo:
        return self._loop.run(self._loop.server.describe_schedule(id))

    def update_schedule(
        self,
        id: str,
        *,
        spec: ScheduleSpec | str | None = None,
        action: StartTask | StartWorkflow | None = None,
        paused: bool | None = None,
        overlap: str = "",
        catchup_window: Seconds | None = None,
        pause_on_failure: bool | None = None,
        remaining_actions: int | None = None,
        durability: Durability | None = None,
    ) -> ScheduleInfo:
        updated = self._loop.server.update_schedule(
            id,
            spec=spec,
            action=action,
            paused=paused,
            overlap=overlap,
            catchup_window=catchup_window,
            pause_on_failure=pause_on_failure,
            remaining_actions=remaining_actions,
            durability=durability,
        )
        return self._loop.run(updated)

    def pause_schedule(self, id: str, note: str = "", *, durability: Durability | None = None) -> Acknowledged:
        return self._loop.run(self._loop.server.pause_schedule(id, note, durability=durability))

    def unpause_schedule(self, id: str, note: str = "", *, durability: Durability | None = None) -> Acknowledged:
        return self._loop.run(self._loop.server.unpause_schedule(id, note, durability=durability))

    def trigger_schedule(
        self, id: str, *, overlap: str = "", request_id: str = "", durability: Durability | None = None
    ) -> BlockingExecutionHandle[Any] | None:
        triggered = self._loop.server.trigger_schedule(
            id, overlap=overlap, request_id=request_id, durability=durability
        )
        handle = self._loop.run(triggered)
        return None if handle is None else BlockingExecutionHandle(self._loop, handle)

    def backfill_schedule(
        self, id: str, start: datetime, end: datetime, *, overlap: str = "buffer-all", request_id: str = ""
    ) -> int:
        filled = self._loop.server.backfill_schedule(id, start, end, overlap=overlap, request_id=request_id)
        return self._loop.run(filled)

    def schedule_times(self, schedule: str | ScheduleSpec, start: datetime, end: datetime) -> list[datetime]:
        return self._loop.run(self._loop.server.schedule_times(schedule, start, end))

    def delete_schedule(self, id: str, *, durability: Durability | None = None) -> Acknowledged:
        return self._loop.run(self._loop.server.delete_schedule(id, durability=durability))
