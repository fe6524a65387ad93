"""One seed, one virtual clock, one queue of events: what everything in a simulation shares."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

START_MS = 1_767_225_600_000
"""2026-01-01T00:00:00Z: what the clock on the wall shows at first."""


@dataclass(slots=True)
class Violation:
    """A promise that was not kept."""

    promise: str
    text: str
    at_ms: int


class Timer:
    """An event to come."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None] | None) -> None:
        self.action = action

    def cancel(self) -> None:
        self.action = None


class World:
    """Milliseconds since the beginning, and what happens when. `random` decides everything that is not decided."""

    def __init__(self, seed: int, *, is_traced: bool = False) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.now_ms = 0
        self.clock_offset_ms = 0
        """How far the clock on the wall has jumped."""
        self.jumped_ms = 0
        """How far it has jumped ahead, all jumps together."""
        self.counts: Counter[str] = Counter()
        """How often everything was done, and every fault happened."""
        self.violation: Violation | None = None
        """The first one; the run ends with it."""
        self._is_traced = is_traced
        self._digest = hashlib.blake2b(digest_size=8)
        self._queue: list[tuple[int, int, Timer]] = []
        self._sequence = 0
        self._numbers = 0

    # --- time ----------------------------------------------------------------------------------------

    def clock(self) -> int:
        """The clock on the wall, in milliseconds since the epoch."""
        return START_MS + self.now_ms + self.clock_offset_ms

    def after(self, ms: int, action: Callable[[], None]) -> Timer:
        """Do `action` in `ms`; what is due at the same moment happens in the order in which it was asked for."""
        timer = Timer(action)
        self._sequence += 1
        heapq.heappush(self._queue, (self.now_ms + max(ms, 0), self._sequence, timer))
        return timer

    def step(self) -> bool:
        """Do what comes next. False: nothing does."""
        while self._queue:
            at_ms, _, timer = heapq.heappop(self._queue)
            if timer.action is not None:
                self.now_ms = at_ms
                action, timer.action = timer.action, None
                action()
                return True
        return False

    # --- what is drawn -------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def between(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return low + int(self.random.random() * (high - low + 1))

    def number(self) -> int:
        """Counts: every payload of a simulation has one of its own."""
        self._numbers += 1
        return self._numbers

    def new_id(self) -> str:
        """As the server's: the time and a random part."""
        return f"{self.clock():012x}{self.random.getrandbits(80):020x}"

    # --- what is told --------------------------------------------------------------------------------

    def note(self, what: str, *details: object) -> None:
        """Part of the trace, which a seed repeats word for word."""
        line = " ".join([str(self.now_ms), what, *map(str, details)])
        self._digest.update(line.encode())
        if self._is_traced:
            print(line)

    def count(self, what: str) -> None:
        self.counts[what] += 1

    def fail(self, promise: str, text: str) -> None:
        """A promise is broken. Not raised: it may be noticed deep inside the server, which would answer 500."""
        if self.violation is None:
            self.violation = Violation(promise, text, self.now_ms)
            self.note("VIOLATION", promise, text)

    @property
    def trace_hash(self) -> str:
        return self._digest.hexdigest()
