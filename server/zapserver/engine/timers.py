"""One heap of deadlines for everything that waits.

A target (an activity, an execution, a schedule) has at most one live entry and says through
`deadline_ms()` when it wants to be woken. Moving a deadline later costs nothing: the entry stays
where it is and is put back when it comes up early, so a heartbeat never touches the heap. Entries of
targets that no longer wait are dropped when they come up, or all at once when they outnumber the
live ones: ten thousand tasks a second with a ten-minute timeout each must not keep six million
entries alive.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Protocol

STALE_ENTRIES_MIN = 1_024
"""Below this many entries a sweep is not worth its time."""


class Target(Protocol):
    timer_ms: int | None
    """When the live heap entry of this target comes up; owned by `Timers`."""

    def deadline_ms(self) -> int | None:
        """When this target wants to be woken, or None for never. Pure, and cheap."""


class Timers:
    __slots__ = ("_heap", "_live", "_sequence")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Target]] = []
        self._live = 0
        self._sequence = 0

    def __len__(self) -> int:
        return self._live

    def update(self, target: Target) -> None:
        """Take note that the deadline of `target` may have changed."""
        due = target.deadline_ms()
        if due is None:
            self.remove(target)
        elif target.timer_ms is None or due < target.timer_ms:
            if target.timer_ms is None:
                self._live += 1
            self._push(due, target)

    def remove(self, target: Target) -> None:
        """Forget `target`; harmless when it is not waiting."""
        if target.timer_ms is not None:
            target.timer_ms = None
            self._live -= 1
            if len(self._heap) > 2 * self._live + STALE_ENTRIES_MIN:
                self._sweep()

    def next_ms(self) -> int | None:
        """When to call `due` next. May be early (a deadline that moved), never late."""
        heap = self._heap
        while heap and heap[0][2].timer_ms != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now_ms: int) -> Iterator[Target]:
        """The targets whose deadline has passed, earliest first. Firing one may arm others."""
        heap = self._heap
        while heap and heap[0][0] <= now_ms:
            entry_ms, _, target = heapq.heappop(heap)
            if target.timer_ms != entry_ms:
                continue
            wanted = target.deadline_ms()
            if wanted is not None and wanted > now_ms:
                self._push(wanted, target)
                continue
            target.timer_ms = None
            self._live -= 1
            if wanted is not None:
                yield target

    def _push(self, due_ms: int, target: Target) -> None:
        target.timer_ms = due_ms
        self._sequence += 1
        heapq.heappush(self._heap, (due_ms, self._sequence, target))

    def _sweep(self) -> None:
        self._heap[:] = [entry for entry in self._heap if entry[2].timer_ms == entry[0]]
        heapq.heapify(self._heap)
