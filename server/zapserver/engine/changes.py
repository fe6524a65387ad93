"""From what a step touched to the batch of records that keeps it."""

from __future__ import annotations

from zapserver.engine import registry
from zapserver.engine.records import ActivityState, Event, Execution
from zapserver.engine.saved import (
    encode_activity,
    encode_events,
    encode_execution,
    encode_ids,
    encode_number,
    encode_place,
    encode_schedule,
)
from zapserver.engine.state import State
from zapserver.engine.tables import NEXT_NUMBER, NUMBERS_RESERVED, Table
from zapserver.store.interface import Batch

EVENTS_WITHOUT_MEASURE = 8
"""What most steps make at most: 4 MiB each is far from what a record holds."""
RECORD_BYTES_MAX = 8 * 2**20


def take(s: State) -> Batch | None:
    """Everything that changed since the last call, or None."""
    if not (s.changed or s.changed_activities or s.changed_schedules or s.removed or s.calmed):
        return None
    batch = Batch()
    registry.forget_excess(s)
    if s.next_number > s.numbers_reserved:
        s.numbers_reserved = s.next_number + NUMBERS_RESERVED
        batch.put(Table.META, (NEXT_NUMBER,), encode_number(s.numbers_reserved))
    gone = {execution.number for execution in s.removed}
    for execution in s.changed.values():
        if execution.number not in gone:
            _put_execution(batch, execution)
        elif execution.is_saved:
            batch.delete(Table.OPEN, (execution.number,))
    for activity in s.changed_activities.values():
        key = (activity.execution.number, activity.activity_id)
        if activity.state is ActivityState.CLOSED:
            batch.delete(Table.ACTIVITIES, key)
        else:
            batch.put(Table.ACTIVITIES, key, encode_activity(activity))
    for schedule in s.changed_schedules.values():
        if s.schedules.get(schedule.schedule_id) is schedule:
            batch.put(Table.SCHEDULES, (schedule.schedule_id,), encode_schedule(schedule))
        else:
            batch.delete(Table.SCHEDULES, (schedule.schedule_id,))
    for execution in s.calmed:
        batch.delete(Table.DEAD, _place(execution))
        batch.put(Table.CLOSED, _place(execution), encode_execution(execution))
    for execution in s.removed:
        _remove(s, batch, execution)
    for touched in (s.changed, s.changed_activities, s.changed_schedules, s.removed, s.calmed, s.just_closed):
        touched.clear()
    return batch


def _put_execution(batch: Batch, execution: Execution) -> None:
    number = execution.number
    if execution.unsaved:
        for events in _in_records(execution.unsaved):
            batch.put(Table.HISTORY, (number, events[0].event_id), encode_events(events))
        execution.unsaved = []
    data = encode_execution(execution)
    if execution.status.is_open:
        batch.put(Table.OPEN, (number,), data)
        execution.is_saved = True
        return
    if execution.is_saved:
        batch.delete(Table.OPEN, (number,))
        execution.is_saved = False
    place = _place(execution)
    batch.put(Table.DEAD if execution.is_dead_letter else Table.CLOSED, place, data)
    where = encode_place(*place)
    batch.put(Table.RUNS, (execution.run_id,), where)
    batch.put(Table.IDS, (execution.workflow_id, number), where)
    for request in execution.request_keys:
        batch.put(Table.REQUESTS, request, encode_ids(execution.workflow_id, execution.run_id))


def _in_records(events: list[Event]) -> list[list[Event]]:
    """One record for the events of a step, but for those of a reset: a copied history can be longer than a record."""
    if len(events) <= EVENTS_WITHOUT_MEASURE:
        return [events]
    records: list[list[Event]] = []
    size = RECORD_BYTES_MAX
    for event in events:
        size += event.size
        if size > RECORD_BYTES_MAX:
            records.append([])
            size = event.size
        records[-1].append(event)
    return records


def _remove(s: State, batch: Batch, execution: Execution) -> None:
    batch.delete(Table.DEAD if execution.is_dead_letter else Table.CLOSED, _place(execution))
    batch.delete(Table.RUNS, (execution.run_id,))
    batch.delete(Table.IDS, (execution.workflow_id, execution.number))
    for request in execution.request_keys:
        batch.delete(Table.REQUESTS, request)
    for key, _ in s.reader.scan(Table.HISTORY, prefix=(execution.number,), damaged=[]):
        batch.delete(Table.HISTORY, key)


def _place(execution: Execution) -> tuple[int, int]:
    assert execution.close_ms is not None
    return execution.close_ms, execution.number
