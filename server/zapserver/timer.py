"""The one timer of a server: it sleeps until the engine's next deadline, and no longer."""

from __future__ import annotations

from math import inf
from typing import Final

import trio

from zapserver.dispatch import Dispatcher

CLOCK_CHECK_SECONDS_MAX: Final = 10.0
"""Deadlines are times of day, and a sleep is elapsed time. A machine that was suspended, or whose clock was set,
notices after this long while something waits for a deadline."""


class Timer:
    """Calls `dispatcher.tick` when it is due. `run` is its task; it hears of earlier deadlines by itself."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._sleep = trio.CancelScope()
        dispatcher.on_deadline_moved = self._moved

    async def run(self) -> None:
        """For ever."""
        while True:
            self._sleep = trio.CancelScope(deadline=self._wake_at())
            with self._sleep:
                await trio.sleep_forever()
            self._dispatcher.tick()

    def _moved(self) -> None:
        self._sleep.deadline = min(self._sleep.deadline, self._wake_at())

    def _wake_at(self) -> float:
        """In trio's clock. The engine's milliseconds are whole ones, so this is never early."""
        deadline_ms = self._dispatcher.next_deadline_ms()
        if deadline_ms is None:
            return inf
        wait = max(deadline_ms - self._dispatcher.clock(), 0) / 1000
        return trio.current_time() + min(wait, CLOCK_CHECK_SECONDS_MAX)
