"""The client's calls about schedules."""

from __future__ import annotations

import uuid
from datetime import datetime

from zapwire.body import encode_json
from zapwire.envelope import encode_task_schedule
from zapwire.opcodes import Op

from .caller import Caller
from .handles import ExecutionHandle
from .options import Durability, RetryPolicy, Seconds, asked, present, to_ms
from .records import (
    Acknowledged,
    Backfilled,
    MatchingTimes,
    ScheduleInfo,
    ScheduleList,
    ScheduleSpec,
    StartTask,
    StartWorkflow,
    Triggered,
    moment_ms,
)
from .spec import Interval, parse_spec


class ScheduleCalls(Caller):
    """Create, look at, steer and delete schedules."""

    async def put_task_schedule(
        self,
        name: str,
        spec: str,
        *,
        task_queue: str = "default",
        retry_policy: RetryPolicy | None = None,
        durability: Durability | None = None,
    ) -> Acknowledged:
        """Create or replace the durable schedule `name`, which starts the task `name` at every time of `spec`.

        `spec` is a Go duration or a cron expression; anything else is a `ValueError` before any call. The same
        definition again changes nothing, so that every process may do this when it starts.
        """
        parsed = parse_spec(spec)
        is_interval = isinstance(parsed, Interval) and not parsed.on_second
        policy = None if retry_policy is None else retry_policy.to_wire()
        options = encode_json(
            present(namespace=self.namespace, identity=self.identity, task_queue=task_queue, retry_policy=policy)
            | asked(durability)
        )
        text = spec.strip()
        message = encode_task_schedule(
            name, interval=text if is_interval else "", cron="" if is_interval else text, options=options
        )
        return await self._call_raw(message, Op.TASK_SCHEDULE, Acknowledged)

    async def create_schedule(
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
        """Create the schedule `id`, or replace it. `spec` may be a Go duration or a cron expression.

        `overlap` says what happens while the run before is still open: "skip" (the default), "allow", "buffer-one",
        "buffer-all", "cancel-other" or "terminate-other". A time that was missed is made up for as far back as
        `catchup_window` (10 seconds or more) reaches; without one that is a minute, and the latest time at any age.
        `pause_on_failure` pauses it after a run that failed for good, and it acts `remaining_actions` times if given.
        """
        schedule = present(
            id=id,
            spec=_spec_body(spec),
            action=action.to_wire(self.converter),
            overlap_policy=overlap,
            catchup_window_ms=to_ms(catchup_window, "catchup_window"),
            pause_on_failure=pause_on_failure,
        )
        if remaining_actions is not None:
            schedule["remaining_actions"] = _actions(remaining_actions)
        request = {"schedule_id": id, "schedule": schedule | {"paused": paused}} | asked(durability)
        return await self.call(Op.CREATE_SCHEDULE, request, ScheduleInfo)

    async def list_schedules(self) -> list[ScheduleInfo]:
        """Every schedule of the namespace, by id."""
        return (await self.call(Op.LIST_SCHEDULES, {}, ScheduleList)).schedules

    async def describe_schedule(self, id: str) -> ScheduleInfo:
        """A schedule, with what it has done and the times to come in `info`."""
        return await self.call(Op.DESCRIBE_SCHEDULE, {"schedule_id": id}, ScheduleInfo)

    async def update_schedule(
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
        """Replace what is given, and keep the rest. To take a limit of actions away, create it again."""
        schedule: dict[str, object] = {"id": id}
        if spec is not None:
            schedule["spec"] = _spec_body(spec)
        if action is not None:
            schedule["action"] = action.to_wire(self.converter)
        if paused is not None:
            schedule["paused"] = paused
        if pause_on_failure is not None:
            schedule["pause_on_failure"] = pause_on_failure
        if remaining_actions is not None:
            schedule["remaining_actions"] = _actions(remaining_actions)
        schedule |= present(overlap_policy=overlap, catchup_window_ms=to_ms(catchup_window, "catchup_window"))
        request = {"schedule_id": id, "schedule": schedule} | asked(durability)
        return await self.call(Op.UNPAUSE_SCHEDULE, request, ScheduleInfo)

    async def pause_schedule(self, id: str, note: str = "", *, durability: Durability | None = None) -> Acknowledged:
        """Fire no more until it is unpaused; the times that pass are not made up for."""
        request = {"schedule_id": id, "paused": True, "note": note} | asked(durability)
        return await self.call(Op.PAUSE_SCHEDULE, request, Acknowledged)

    async def unpause_schedule(self, id: str, note: str = "", *, durability: Durability | None = None) -> Acknowledged:
        """Fire again, from the next time on."""
        request = {"schedule_id": id, "paused": False, "note": note} | asked(durability)
        return await self.call(Op.PAUSE_SCHEDULE, request, Acknowledged)

    async def trigger_schedule(
        self, id: str, *, overlap: str = "", request_id: str = "", durability: Durability | None = None
    ) -> ExecutionHandle | None:
        """Do its action now, paused or not. None if `overlap`, or else its own policy, skips it or puts it off."""
        request = {"schedule_id": id, "overlap_policy": overlap, "request_id": request_id or uuid.uuid4().hex}
        triggered = await self.call(Op.TRIGGER_SCHEDULE, request | asked(durability), Triggered)
        if not triggered.workflow_id:
            return None
        return ExecutionHandle(self, triggered.workflow_id, triggered.run_id, triggered.durability)

    async def backfill_schedule(
        self, id: str, start: datetime, end: datetime, *, overlap: str = "buffer-all", request_id: str = ""
    ) -> int:
        """Act on every time of the schedule from `start` to `end`, which is past; how many there are.

        By default one run after the other; `overlap` names another policy. At most 1,000 times a call. Whether the
        schedule is paused, and how many actions it has left, does not matter.
        """
        request = {
            "schedule_id": id,
            "start_time_ms": moment_ms(start, "start"),
            "end_time_ms": moment_ms(end, "end"),
            "overlap_policy": overlap,
            "request_id": request_id or uuid.uuid4().hex,
        }
        return (await self.call(Op.BACKFILL_SCHEDULE, request, Backfilled)).slots

    async def schedule_times(self, schedule: str | ScheduleSpec, start: datetime, end: datetime) -> list[datetime]:
        """The times of a schedule, or of a spec that is not saved, from `start` to `end`: the first 1,000."""
        request: dict[str, object] = {"start_time_ms": moment_ms(start, "start"), "end_time_ms": moment_ms(end, "end")}
        if isinstance(schedule, str):
            request["schedule_id"] = schedule
        else:
            request["schedule"] = {"spec": schedule.to_wire()}
        return (await self.call(Op.MATCHING_TIMES, request, MatchingTimes)).matching_times

    async def delete_schedule(self, id: str, *, durability: Durability | None = None) -> Acknowledged:
        """Delete it. Not an error if it is not there."""
        return await self.call(Op.LIST_SCHEDULES, {"schedule_id": id} | asked(durability), Acknowledged)


def _actions(remaining: int) -> int:
    if remaining < 1:
        raise ValueError(f"remaining_actions is {remaining}: it must be 1 or more; to stop a schedule, pause it")
    return remaining


def _spec_body(spec: ScheduleSpec | str) -> dict[str, object]:
    return (ScheduleSpec.parse(spec) if isinstance(spec, str) else spec).to_wire()
