"""Calls about schedules. Go's SDK and Go's server number some of them differently; the fields decide."""

from __future__ import annotations

from zapserver import shapes
from zapserver.calls.context import Call, Handler
from zapserver.engine.commands import (
    BackfillSchedule,
    DeleteSchedule,
    Overlap,
    PauseSchedule,
    PutSchedule,
    TriggerSchedule,
    UpdateSchedule,
)
from zapserver.engine.errors import Invalid
from zapserver.engine.executions import rfc3339
from zapserver.requests import ScheduleRequest
from zapwire.opcodes import Op

NEXT_SLOTS_SHOWN = 10
DAY_MS = 24 * 3_600_000


def _create(call: Call, request: ScheduleRequest) -> object:
    body = request.schedule
    if not request.id:
        raise Invalid("schedule_id required")
    if body is None:
        raise Invalid("schedule required: its spec and its action")
    call.step(
        PutSchedule(
            schedule_id=request.id,
            spec=body.spec.spec(),
            action=body.action.action(),
            paused=bool(body.paused),
            overlap=_overlap(body.overlap_policy) or Overlap.SKIP,
            catchup_window_ms=body.catchup_window_ms or None,
            pause_on_failure=bool(body.pause_on_failure),
            remaining_actions=body.remaining_actions or None,
        )
    )
    return shapes.schedule(call.namespace.engine.views.schedule(request.id))


def _list(call: Call, request: ScheduleRequest) -> object:
    return {
        "schedules": [shapes.schedule(item) for item in call.namespace.engine.views.schedules()],
        "next_page_token": "",
    }


def _delete(call: Call, request: ScheduleRequest) -> object:
    """Deleting what is not there is a success too, as a repeat after a lost answer must be."""
    existed = call.step(DeleteSchedule(schedule_id=request.id))
    return {"status": "deleted", "existed": existed}


def _list_or_delete(call: Call, request: ScheduleRequest) -> object:
    return _delete(call, request) if request.id else _list(call, request)


def _pause(call: Call, request: ScheduleRequest) -> object:
    call.step(PauseSchedule(schedule_id=request.id, paused=request.paused, note=request.note))
    return {"status": "paused" if request.paused else "running"}


def _update_or_unpause(call: Call, request: ScheduleRequest) -> object:
    body = request.schedule
    if body is None:
        call.step(PauseSchedule(schedule_id=request.id, paused=False, note=request.note))
    else:
        call.step(
            UpdateSchedule(
                schedule_id=request.id,
                spec=None if body.spec.is_empty else body.spec.spec(),
                action=body.action.action() if body.action.workflow_type else None,
                paused=body.paused,
                overlap=_overlap(body.overlap_policy),
                catchup_window_ms=body.catchup_window_ms or None,
                pause_on_failure=body.pause_on_failure,
                remaining_actions=body.remaining_actions or None,
            )
        )
    schedule = call.namespace.engine.views.schedule(request.id)
    return {"status": "paused" if schedule.paused else "running", **shapes.schedule(schedule)}


def _trigger(call: Call, request: ScheduleRequest) -> object:
    waited = _waiting(call, request)
    started = call.step(
        TriggerSchedule(schedule_id=request.id, overlap=_overlap(request.overlap_policy), request_id=request.request_id)
    )
    if started is not None:
        return {"status": "triggered", "workflow_id": started.workflow_id, "run_id": started.run_id}
    waits = _waiting(call, request)
    if waits != waited or any(request.request_id == name for name in waits):
        return {"status": "buffered", "reason": "it starts when the open run of this schedule has closed"}
    return {"status": "skipped", "reason": "a run of this schedule is still open"}


def _waiting(call: Call, request: ScheduleRequest) -> list[str]:
    return [run.name for run in call.namespace.engine.views.schedule(request.id).buffered]


def _backfill(call: Call, request: ScheduleRequest) -> object:
    if request.start_time_ms is None or request.end_time_ms is None:
        raise Invalid("start_time_ms and end_time_ms required: the range whose slots are to be acted on")
    answer = call.step(
        BackfillSchedule(
            schedule_id=request.id,
            start_ms=request.start_time_ms,
            end_ms=request.end_time_ms,
            overlap=_overlap(request.overlap_policy),
            request_id=request.request_id,
        )
    )
    return {"status": "backfilling", "slots": answer.slots}


def _matching_times(call: Call, request: ScheduleRequest) -> object:
    """Of a schedule, or of a spec that is not saved. A day from now on, unless the call says otherwise."""
    views, body = call.namespace.engine.views, request.schedule
    start_ms = call.now_ms if request.start_time_ms is None else request.start_time_ms
    end_ms = start_ms + DAY_MS if request.end_time_ms is None else request.end_time_ms
    if body is None:
        slots = views.matching_times(request.id, start_ms, end_ms)
    else:
        slots = views.matching_times_of(body.spec.spec(), call.now_ms, start_ms, end_ms)
    return {"matching_times": [rfc3339(slot) for slot in slots]}


def _describe(call: Call, request: ScheduleRequest) -> object:
    views = call.namespace.engine.views
    schedule = views.schedule(request.id)
    slots = views.next_slots(schedule, call.now_ms, NEXT_SLOTS_SHOWN) if schedule.is_active else []
    if schedule.remaining_actions is not None:
        slots = slots[: schedule.remaining_actions]
    return shapes.described_schedule(schedule, slots)


_OVERLAPS = {policy.value.replace("-", ""): policy for policy in Overlap} | {"allowall": Overlap.ALLOW}


def _overlap(name: str) -> Overlap | None:
    """The policy of a name in any of its spellings: `buffer-one`, `buffer_one`, `BufferOne`. None for no name."""
    if not name:
        return None
    found = _OVERLAPS.get(name[:40].replace("-", "").replace("_", "").lower())
    if found is None:
        known = ", ".join(repr(policy.value) for policy in Overlap)
        raise Invalid(f"overlap policy {name[:40]!r} is not one of {known}")
    return found


CALLS: dict[int, Handler] = {
    Op.CREATE_SCHEDULE: Handler(ScheduleRequest, _create),
    Op.DELETE_SCHEDULE: Handler(ScheduleRequest, _list_or_delete),
    Op.LIST_SCHEDULES: Handler(ScheduleRequest, _list_or_delete),
    Op.PAUSE_SCHEDULE: Handler(ScheduleRequest, _pause),
    Op.UNPAUSE_SCHEDULE: Handler(ScheduleRequest, _update_or_unpause),
    Op.TRIGGER_SCHEDULE: Handler(ScheduleRequest, _trigger),
    Op.DESCRIBE_SCHEDULE: Handler(ScheduleRequest, _describe),
    Op.BACKFILL_SCHEDULE: Handler(ScheduleRequest, _backfill),
    Op.MATCHING_TIMES: Handler(ScheduleRequest, _matching_times),
}
