"""Calls about schedules. Go's SDK and Go's server number some of them differently; the fields decide."""

from __future__ import annotations

from zapserver import shapes
from zapserver.calls.context import Call, Handler
from zapserver.engine.commands import (
    DeleteSchedule,
    Overlap,
    PauseSchedule,
    PutSchedule,
    TriggerSchedule,
    UpdateSchedule,
)
from zapserver.engine.errors import Invalid
from zapserver.requests import ScheduleRequest
from zapwire.opcodes import Op

NEXT_SLOTS_SHOWN = 5


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
            )
        )
    schedule = call.namespace.engine.views.schedule(request.id)
    return {"status": "paused" if schedule.paused else "running", **shapes.schedule(schedule)}


def _trigger(call: Call, request: ScheduleRequest) -> object:
    started = call.step(
        TriggerSchedule(schedule_id=request.id, overlap=_overlap(request.overlap_policy), request_id=request.request_id)
    )
    if started is None:
        return {"status": "skipped", "reason": "a run of this schedule is still open"}
    return {"status": "triggered", "workflow_id": started.workflow_id, "run_id": started.run_id}


def _describe(call: Call, request: ScheduleRequest) -> object:
    views = call.namespace.engine.views
    schedule = views.schedule(request.id)
    slots = [] if schedule.paused else views.next_slots(schedule, call.now_ms, NEXT_SLOTS_SHOWN)
    return shapes.described_schedule(schedule, slots)


def _overlap(name: str) -> Overlap | None:
    if not name:
        return None
    try:
        return Overlap(name)
    except ValueError:
        known = ", ".join(repr(policy.value) for policy in Overlap)
        raise Invalid(f"overlap policy {name[:40]!r} is not one of {known}") from None


CALLS: dict[int, Handler] = {
    Op.CREATE_SCHEDULE: Handler(ScheduleRequest, _create),
    Op.DELETE_SCHEDULE: Handler(ScheduleRequest, _list_or_delete),
    Op.LIST_SCHEDULES: Handler(ScheduleRequest, _list_or_delete),
    Op.PAUSE_SCHEDULE: Handler(ScheduleRequest, _pause),
    Op.UNPAUSE_SCHEDULE: Handler(ScheduleRequest, _update_or_unpause),
    Op.TRIGGER_SCHEDULE: Handler(ScheduleRequest, _trigger),
    Op.DESCRIBE_SCHEDULE: Handler(ScheduleRequest, _describe),
}
