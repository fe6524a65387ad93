"""What of a history goes with a workflow task to a replaying worker."""

from __future__ import annotations

import msgspec

from zapserver.engine.records import Event, Execution
from zapserver.engine.state import State

CHUNK_BYTES_MAX = 1024 * 1024
"""A delivery has no more events than fit in this, but always one: the worker reads what is missing page by page."""

EVENT_BYTES = 100
"""About what an event has beside its attributes."""

_READ_MAX = 500
"""Events that are read at once."""

_encode = msgspec.json.Encoder().encode


def chunk(s: State, execution: Execution, after: int) -> tuple[list[Event], int]:
    """The events past `after` that fit one delivery, and about how many bytes they have."""
    taken: list[Event] = []
    size = 0
    while True:
        events = s.events(execution, after + len(taken), _READ_MAX)
        for event in events:
            bytes_more = EVENT_BYTES + len(_encode(event.attributes))
            if taken and size + bytes_more > CHUNK_BYTES_MAX:
                return taken, size
            taken.append(event)
            size += bytes_more
        if len(events) < _READ_MAX:
            return taken, size
