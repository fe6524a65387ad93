"""Schedule texts, read once: a cron expression is parsed in some 30 us and looked at for every slot."""

from __future__ import annotations

from datetime import MAXYEAR, UTC, datetime
from functools import lru_cache

from zapserver.engine.errors import Invalid
from zaptasks.spec import Cron, Interval, load_zone, parse_spec

TIME_MS_MAX = int(datetime(MAXYEAR, 12, 31, tzinfo=UTC).timestamp()) * 1000
"""Later moments have no date, so nothing can be due then."""


@lru_cache(maxsize=4_096)
def read_spec(text: str, timezone: str = "") -> Interval | Cron:
    """The spec. Seconds may lead, as Go's server allows. `timezone` is read by `next_due_ms` and checked here.

    Raises `Invalid` for what can never fire and for a time zone that nobody knows.
    """
    try:
        load_zone(timezone)
        return parse_spec(text, seconds=True)
    except ValueError as error:
        raise Invalid(str(error)) from None


def next_due_ms(text: str, after_ms: int, timezone: str = "") -> int | None:
    """When the spec is due next after a moment, in `timezone` unless it names one; None when it never is again."""
    try:
        due_ms = read_spec(text, timezone).next_after_ms(after_ms, zone=load_zone(timezone))
    except (ValueError, OverflowError):  # no reading of the clock matches any more, or the calendar ends
        return None
    return due_ms if due_ms <= TIME_MS_MAX else None
