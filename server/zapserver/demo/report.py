"""From the workers' journals to tables: what ran where, how long it waited, how long it took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from rich.table import Table

from zapserver.demo.journal import Entry

ENDS = ("completed", "canceled", "failed")


@dataclass(slots=True)
class Attempt:
    """One run of one handler. Times are seconds since the epoch; `ended` is 0 while it runs."""

    id: str
    type: str
    number: int
    worker: str
    due: float
    """When it could have started: it was submitted, its slot came, or the attempt before it ended."""
    started: float
    ended: float = 0.0
    end: str = ""

    @property
    def waited(self) -> float:
        # The slot of a schedule is a whole millisecond, so that a handler may seem to start before it.
        return max(self.started - self.due, 0.0)

    @property
    def ran(self) -> float:
        return self.ended - self.started


def read_attempts(entries: Iterable[Entry], submitted: Mapping[str, Sequence[float]]) -> list[Attempt]:
    """The attempts that the entries tell of, in the order of their starts.

    `submitted` has the times at which the client asked for each id: a dead letter that was put back has two.
    """
    attempts: list[Attempt] = []
    last: dict[tuple[str, str], Attempt] = {}
    times_asked: Counter[str] = Counter()
    for entry in sorted(entries, key=lambda entry: entry.at):
        key = (entry.id, entry.type)
        if entry.event == "started":
            due = entry.due
            if entry.attempt > 1 and key in last:
                due = last[key].ended
            elif entry.id in submitted:
                asked = submitted[entry.id]
                due = asked[min(times_asked[entry.id], len(asked) - 1)]
                times_asked[entry.id] += 1
            last[key] = Attempt(entry.id, entry.type, entry.attempt, entry.worker, due, entry.at)
            attempts.append(last[key])
        elif entry.event in ENDS and key in last:
            last[key].ended, last[key].end = entry.at, entry.event
    return attempts


def summary_table(attempts: Sequence[Attempt]) -> Table:
    """One row for each type of work, with medians and maxima."""
    table = _table("WORK", "RUNS", "TRIES", "WAITED", "MAX", "RAN", "MAX", "ON")
    for type_ in dict.fromkeys(attempt.type for attempt in attempts):
        of_type = [attempt for attempt in attempts if attempt.type == type_]
        # What waited for the end of a back-off says nothing about the server.
        waits = [attempt.waited for attempt in of_type if attempt.number == 1]
        runs = [attempt.ran for attempt in of_type]
        workers = Counter(attempt.worker for attempt in of_type)
        table.add_row(
            type_,
            str(len(waits)),
            str(len(of_type)),
            span(median(waits)),
            span(max(waits)),
            span(median(runs)),
            span(max(runs)),
            ", ".join(f"{worker} {count}" for worker, count in sorted(workers.items())),
        )
    return table


def detail_table(attempts: Sequence[Attempt], is_shown: Callable[[Attempt], bool]) -> Table:
    """One row for each attempt that is shown, those of one execution together."""
    table = _table("ID", "WORK", "TRY", "WAITED", "RAN", "ON", "END")
    ids = dict.fromkeys(attempt.id for attempt in attempts if is_shown(attempt))
    for id in ids:
        for attempt in attempts:
            if attempt.id == id:
                times = span(attempt.waited), span(attempt.ran)
                table.add_row(id, attempt.type, str(attempt.number), *times, attempt.worker, attempt.end)
    return table


def span(seconds: float) -> str:
    """A time that people can compare at a glance, in six characters."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"


def _table(*headings: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for heading in headings:
        is_text = heading in ("ID", "WORK", "ON", "END")
        justify: Literal["left", "right"] = "left" if is_text else "right"
        table.add_column(heading, justify=justify, no_wrap=heading != "ID", overflow="fold")
    return table
