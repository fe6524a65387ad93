"""When a schedule of the local engine fires, on clocks that can be set.

Periods ("30s") are counted on the monotonic clock, which nobody sets. Cron expressions and "@every"
follow the wall clock, and the wall clock is looked at again every `CLOCK_CHECK_SECONDS_MAX`:

- set forward, or the machine slept: a firing that was passed over happens once, late, and the next one
  is counted from now;
- set back by up to `CLOCK_BACK_SECONDS_MAX`: nothing fires twice, the schedule waits for the clock to
  come to its next firing again;
- set back by more: the clock had been wrong, and the next firing is computed anew.
"""

from __future__ import annotations

import math
import threading
import time
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final, Protocol

from .duration import SECOND
from .handlers import Handler
from .spec import Cron, Interval

CLOCK_CHECK_SECONDS_MAX: Final = 30.0
"""How long a wall clock that was set goes unnoticed."""

CLOCK_BACK_SECONDS_MAX: Final = 3 * 3600.0
"""A clock that goes back by less (a correction, a change of season done by hand) repeats no firing."""


class Clock(Protocol):
    """What the engine knows of time; a test passes one that it moves by hand."""

    def monotonic(self) -> float:
        """Seconds that only ever grow."""

    def time(self) -> float:
        """Seconds since the epoch, as the wall clock has it."""

    def wait(self, changed: threading.Condition, seconds: float | None) -> None:
        """Wait, with the lock of `changed` held, for a notification or so many monotonic seconds."""


class SystemClock:
    """The clocks of this machine."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()

    def wait(self, changed: threading.Condition, seconds: float | None) -> None:
        changed.wait(None if seconds is None else min(seconds, threading.TIMEOUT_MAX))


class LocalTime(tzinfo):
    """The time zone that this process runs in, changes of season included.

    The standard library knows its offset at any instant but has no tzinfo for it.
    """

    def utcoffset(self, when: datetime | None) -> timedelta | None:
        return None if when is None else when.replace(tzinfo=None).astimezone().utcoffset()

    def dst(self, when: datetime | None) -> timedelta | None:
        return None

    def tzname(self, when: datetime | None) -> str | None:
        return None if when is None else when.replace(tzinfo=None).astimezone().tzname()

    def fromutc(self, when: datetime) -> datetime:
        instant = when.replace(tzinfo=UTC)
        reading = instant.astimezone().replace(tzinfo=None)
        second_pass = reading.astimezone(UTC) != instant
        return reading.replace(tzinfo=self, fold=int(second_pass))

    def __repr__(self) -> str:
        return "LocalTime()"


class Schedule:
    """A function under its name, and the monotonic time at which the engine looks at it again."""

    def __init__(self, handler: Handler) -> None:
        self.name = handler.name
        self.handler = handler
        self.look_at = math.inf
        self.pending = False  # a run waits or goes on
        self.skipped = 0  # firings since that run was due
        self.removed = False

    def advance(self, clock: Clock) -> bool:
        """Set the next `look_at`; true when a firing has come. Raises ValueError if none will come any more."""
        raise NotImplementedError

    def end_run(self) -> int:
        """Be ready for the next firing; how many were skipped for this run."""
        self.pending = False
        skipped, self.skipped = self.skipped, 0
        return skipped


def schedule(handler: Handler, spec: Interval | Cron, clock: Clock, zone: tzinfo) -> Schedule:
    """The schedule for `spec`, counted from now."""
    if isinstance(spec, Interval) and not spec.on_second:
        return _Periodic(handler, spec, clock)
    return _AtTimes(handler, spec, clock, zone)


class _Periodic(Schedule):
    """Every so many seconds of the monotonic clock, on the grid that the first `look_at` begins."""

    def __init__(self, handler: Handler, interval: Interval, clock: Clock) -> None:
        super().__init__(handler)
        self.seconds = interval.ns / SECOND
        self.look_at = clock.monotonic() + self.seconds

    def advance(self, clock: Clock) -> bool:
        passed = (clock.monotonic() - self.look_at) // self.seconds
        self.look_at += self.seconds * (passed + 1)
        return True


class _AtTimes(Schedule):
    """At readings of the wall clock."""

    def __init__(self, handler: Handler, spec: Interval | Cron, clock: Clock, zone: tzinfo) -> None:
        super().__init__(handler)
        self.spec = spec
        self.zone = zone
        self.latest_ms = _wall_ms(clock)  # the latest that the clock has shown
        self.due_ms = spec.next_after_ms(self.latest_ms, zone=zone)
        self._plan(clock, self.latest_ms)

    def advance(self, clock: Clock) -> bool:
        now_ms = _wall_ms(clock)
        fired = now_ms >= self.due_ms
        set_right = self.latest_ms - now_ms > CLOCK_BACK_SECONDS_MAX * 1000
        if fired or set_right:
            self.due_ms = self.spec.next_after_ms(now_ms, zone=self.zone)
        self.latest_ms = now_ms if set_right else max(now_ms, self.latest_ms)
        self._plan(clock, now_ms)
        return fired

    def _plan(self, clock: Clock, now_ms: int) -> None:
        self.look_at = clock.monotonic() + min((self.due_ms - now_ms) / 1000, CLOCK_CHECK_SECONDS_MAX)


def _wall_ms(clock: Clock) -> int:
    return int(clock.time() * 1000)
