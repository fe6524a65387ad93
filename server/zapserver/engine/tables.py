"""What a namespace keeps: the tables, their keys, and who reads them.

| table      | key                     | holds                                                                |
|------------|-------------------------|----------------------------------------------------------------------|
| open       | number                  | an open execution, with its activity if it is a one-shot task        |
| activities | number, activity id     | an open activity of a workflow                                       |
| history    | number, event id        | the events of one step, under the id of the first                    |
| closed     | close time, number      | a closed execution                                                   |
| dead       | close time, number      | a closed execution that is a dead letter                             |
| runs       | run id                  | where that closed execution is                                       |
| ids        | workflow id, number     | where that closed execution of this id is                            |
| requests   | kind, name, request id  | which closed execution answers a request that is repeated            |
| schedules  | schedule id             | a schedule                                                           |
| meta       | name                    | the next number; what the namespace is called and may do             |

A number is an execution's place in the order of starts: it only grows, so what is written at the same time lies
together. Open executions are all in memory, so indexes are kept for closed ones only; both are read again by
`recovery`. Records are JSON: a payload stands in them as it came, digit for digit.
"""

from __future__ import annotations

import enum


class Table(enum.StrEnum):
    OPEN = "open"
    ACTIVITIES = "activities"
    HISTORY = "history"
    CLOSED = "closed"
    DEAD = "dead"
    RUNS = "runs"
    IDS = "ids"
    REQUESTS = "requests"
    SCHEDULES = "schedules"
    META = "meta"


NEXT_NUMBER = "next number"
"""In `meta`: executions that start later have at least this number."""

NUMBERS_RESERVED = 1_000
"""The next number is written once for so many executions; a restart skips what is left of them."""
