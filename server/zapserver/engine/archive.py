"""What has left memory: closed executions, the requests that they answer, and every history.

Reads through the namespace's `Reader`, which knows each step that was decided, kept or not. Within a step, what closed
in it is not there yet: `State` has that in hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from zapserver.engine.errors import Lost
from zapserver.engine.records import Event, Execution
from zapserver.engine.saved import decode_events, decode_execution, decode_ids, decode_place
from zapserver.engine.tables import Table
from zapserver.store.errors import Damaged
from zapserver.store.interface import Reader

Place = tuple[int, int]
"""The time of closing and the number: the key of a closed execution, and a place in the list of them."""


def closed_run(reader: Reader, run_id: str) -> Execution | None:
    """The closed execution with this run id. Raises `Lost`."""
    with _reading():
        data = reader.get(Table.RUNS, (run_id,))
        return None if data is None else _closed_at(reader, decode_place(data))


def latest_closed(reader: Reader, workflow_id: str) -> Execution | None:
    """The closed execution of this workflow id that started last. Raises `Lost`."""
    with _reading():
        for _, data in reader.scan(Table.IDS, prefix=(workflow_id,), reverse=True, limit=1):
            return _closed_at(reader, decode_place(data))
    return None


@contextmanager
def _reading() -> Iterator[None]:
    """What is damaged is a refusal like any other: whoever looks at somebody else's execution goes on without it."""
    try:
        yield
    except Damaged as error:
        raise Lost(str(error)) from error


def answered_request(reader: Reader, request: tuple[str, str, str]) -> tuple[str, str] | None:
    """Workflow id and run id of the closed execution that answers this request."""
    data = reader.get(Table.REQUESTS, request)
    return None if data is None else decode_ids(data)


def closed_before(reader: Reader, place: Place | None) -> Iterator[tuple[Place, Execution]]:
    """Closed executions, dead letters among them, the latest end first, from the one that comes after `place`."""
    ends = [_scan_back(reader, table, place) for table in (Table.CLOSED, Table.DEAD)]
    heads = [next(each, None) for each in ends]
    while any(head is not None for head in heads):
        which = max((at for at in (0, 1) if heads[at] is not None), key=lambda at: heads[at] or ())
        head = heads[which]
        assert head is not None
        yield head[0], _complete(reader, head[1])
        heads[which] = next(ends[which], None)


def _scan_back(reader: Reader, table: Table, place: Place | None) -> Iterator[tuple[Place, bytes]]:
    for key, data in reader.scan(table, end=place, reverse=True, damaged=[]):
        close_ms, number = key
        assert isinstance(close_ms, int)
        assert isinstance(number, int)
        yield (close_ms, number), data


def dead_letters(reader: Reader, place: Place | None) -> Iterator[tuple[Place, Execution]]:
    """Dead letters, the oldest first, from the one that comes after `place`."""
    start = None if place is None else (place[0], place[1] + 1)
    for key, data in reader.scan(Table.DEAD, start=start, damaged=[]):
        close_ms, number = key
        assert isinstance(close_ms, int)
        assert isinstance(number, int)
        yield (close_ms, number), _complete(reader, data)


def closed_until(reader: Reader, table: Table, close_ms: int, limit: int) -> list[Execution]:
    """Up to `limit` executions that closed before a moment, the earliest first; their payloads may be missing."""
    found = reader.scan(table, end=(close_ms,), limit=limit, damaged=[])
    return [decode_execution(data)[0] for _, data in found]


def _closed_at(reader: Reader, place: Place) -> Execution | None:
    data = reader.get(Table.CLOSED, place) or reader.get(Table.DEAD, place)
    return None if data is None else _complete(reader, data)


def _complete(reader: Reader, data: bytes) -> Execution:
    try:
        execution, record = decode_execution(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise Lost(f"a closed execution cannot be read: {error}: restore it from a backup") from error
    load_long_payloads(reader, execution, record.long_payloads)
    return execution


def load_long_payloads(reader: Reader, execution: Execution, names: tuple[str, ...]) -> None:
    """Fill in what stands only in the history: the input in its first event, the outcome in its last."""
    for name in names:
        event_id = 1 if name == "input" else execution.history_length
        setattr(execution, name, event(reader, execution.number, event_id).attributes[name])


# --- histories -----------------------------------------------------------------------------------------


def event(reader: Reader, number: int, event_id: int) -> Event:
    """One event. Raises `Lost` when its record is not there."""
    for found in events(reader, number, event_id - 1):
        if found.event_id == event_id:
            return found
        break
    raise Lost(f"event {event_id} of execution number {number} is not in the store: verify it, or restore a backup")


def events(reader: Reader, number: int, after: int = 0) -> Iterator[Event]:
    """The events of an execution with ids past `after`."""
    start = 1
    if after:
        before = reader.scan(Table.HISTORY, prefix=(number,), end=(number, after + 2), reverse=True, limit=1)
        for key, _ in before:
            start = _first_id(key)
    for key, data in reader.scan(Table.HISTORY, prefix=(number,), start=(number, start)):
        first = _first_id(key)
        try:
            decoded = decode_events(first, data)
        except (msgspec.MsgspecError, ValueError) as error:
            raise Lost(f"the events from {first} of execution number {number} cannot be read: {error}") from error
        for found in decoded:
            if found.event_id > after:
                yield found


def _first_id(key: tuple[str | int, ...]) -> int:
    first = key[1]
    assert isinstance(first, int)
    return first
