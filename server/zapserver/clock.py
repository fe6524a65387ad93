"""The time of day as a server needs it: it never runs back, and it never stands still."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

CATCH_UP_RATE: Final = 0.5
"""How fast time goes on while it is ahead of the machine's clock: one that was an hour ahead by mistake is met again
after two hours, in which timers take up to twice as long. Holding it still instead would stop every timer."""


class SteadyClock:
    """Milliseconds since the epoch, by the machine's clock, except when that was set back.

    The engine's time cannot go back: histories would, and what was due would be due again. So after a jump back it goes
    on from where it was, at half speed until the machine's clock has caught up. `wall_ns` and `monotonic_ns` are the
    machine's clocks, in nanoseconds.
    """

    def __init__(
        self,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._latest_ns = 0
        self._read_ns = monotonic_ns()

    def __call__(self) -> int:
        elapsed_ns = self._monotonic_ns() - self._read_ns
        self._read_ns += elapsed_ns
        self._latest_ns = max(self._wall_ns(), self._latest_ns + int(elapsed_ns * CATCH_UP_RATE))
        return self._latest_ns // 1_000_000

    def not_before(self, ms: int) -> None:
        """Go on from this moment if it is later: a store knows how far time had come when its server ended."""
        self._latest_ns = max(self._latest_ns, ms * 1_000_000)
