"""When a schedule fires: `parse_spec` reads a Go duration or a cron expression.

Nothing here knows what time it is: `next_after` is given an instant and answers the next one. What Go
accepts (durations of its `time` package, expressions of robfig/cron v3) means the same here.

**One rule for time zones.** An expression describes readings of a clock on a wall. It fires at every
instant at which the clock in its zone shows such a reading: a reading that the clock skips in spring
does not fire, one that it shows twice in autumn fires twice. Go's library means the same rule and keeps
it where clocks change by a whole hour and not at midnight (Berlin, New York, Sydney). Elsewhere (Cairo,
Beirut, Havana, Santiago, the Azores, Lord Howe, Chatham) it loses a day's firing or fires on the wrong
day when the clocks change; there we keep the rule.

The search for the next reading is croniter's. It gets the values of each field spelled out, because it
reads a few texts otherwise than Go ("5-5" is the whole cycle to it, "FRI-MON" wraps around), and a clock
that is never changed, because it moves a skipped reading to the hour after it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from datetime import MAXYEAR, UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import CroniterBadDateError, croniter

from .duration import MICROSECOND, MILLISECOND, SECOND, format_duration, parse_duration

# A list of all sixty minutes takes 169 characters; this bounds the work on a text that a peer sent.
SPEC_CHARACTERS_MAX = 1024
# The engine counts milliseconds, so a shorter period could not be told from a busy loop.
INTERVAL_NS_MIN = MILLISECOND
# The longest wait of an expression that fires at all: 29 February, around a year such as 2100.
CRON_WAIT_YEARS_MAX = 8

_DAY_S = 86_400
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ONE_SECOND = timedelta(seconds=1)


# ---------------------------------------------------------------------------------------- intervals


@dataclass(frozen=True, slots=True)
class Interval:
    """A fixed period, counted from whatever instant it is asked about.

    With `on_second` (what "@every" means) it fires on whole seconds: the fraction of the instant is
    dropped before the period is added.
    """

    ns: int
    on_second: bool = False

    def __post_init__(self) -> None:
        if self.ns < INTERVAL_NS_MIN:
            raise ValueError(
                f"a period of {format_duration(self.ns)}: a schedule needs at least {format_duration(INTERVAL_NS_MIN)}"
            )

    @property
    def seconds(self) -> float:
        return self.ns / SECOND

    def next_after(self, when: datetime) -> datetime:
        """The next firing after `when`, an aware datetime, in its time zone.

        Counted in elapsed time, so a change of the clocks neither stretches nor shortens a period.
        Raises ValueError for a naive `when`.
        """
        elapsed = _aware(when) - _EPOCH
        if self.on_second:
            elapsed -= timedelta(microseconds=elapsed.microseconds)
        # Rounded up: a period that is no multiple of the unit may be long by less than one, never short.
        elapsed += timedelta(microseconds=-(-self.ns // MICROSECOND))
        try:
            return (_EPOCH + elapsed).astimezone(when.tzinfo)
        except OverflowError:
            raise ValueError(f"{self} after {when} is beyond the year {MAXYEAR}") from None

    def next_after_ms(self, after_ms: int, *, zone: tzinfo | None = None) -> int:
        """The same in milliseconds since the epoch; `zone` is there for likeness with `Cron`."""
        if self.on_second:
            after_ms -= after_ms % 1000
        return after_ms + -(-self.ns // MILLISECOND)

    def __str__(self) -> str:
        """The text that `parse_spec` reads back as this."""
        return f"@every {format_duration(self.ns)}" if self.on_second else format_duration(self.ns)


# ------------------------------------------------------------------------------- cron: fire times


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression: the sorted values of its fields, and the zone that it names, if any.

    `both_days` is the star rule: with a star in one of the two day fields a date must match both,
    otherwise one of them is enough.
    """

    text: str
    minutes: tuple[int, ...] = field(repr=False)
    hours: tuple[int, ...] = field(repr=False)
    days: tuple[int, ...] = field(repr=False)
    months: tuple[int, ...] = field(repr=False)
    weekdays: tuple[int, ...] = field(repr=False)  # 0 is Sunday
    both_days: bool = field(repr=False)
    zone: tzinfo | None = None
    seconds: tuple[int, ...] = field(default=(0,), repr=False)

    def next_after(self, when: datetime) -> datetime:
        """The next firing after `when`, an aware datetime, in its time zone.

        The fields are readings in the zone that the expression names, else in that of `when`. Raises
        ValueError for a naive `when`, and where nothing fires any more: after the year 9999, or in a
        zone that skips the one reading of the year every year.
        """
        after_s = (_aware(when) - _EPOCH) // _ONE_SECOND
        zone = when.tzinfo
        assert zone is not None
        return datetime.fromtimestamp(self._next_s(after_s, self.zone or zone), zone)

    def next_after_ms(self, after_ms: int, *, zone: tzinfo | None = None) -> int:
        """The same in milliseconds since the epoch, read in the expression's zone, else `zone`, else UTC."""
        return 1000 * self._next_s(after_ms // 1000, self.zone or zone or UTC)

    def __str__(self) -> str:
        return self.text

    def _next_s(self, after_s: int, zone: tzinfo) -> int:
        """The first second after `after_s` at which the clock of `zone` shows a matching reading."""
        at = after_s + 1
        here = datetime.fromtimestamp(at, zone)
        year_max = min(here.year + CRON_WAIT_YEARS_MAX, MAXYEAR)
        while True:
            clock = here.replace(tzinfo=None)
            reading = self._first_reading(clock, year_max)
            if reading is None:
                raise ValueError(f"{self.text!r} does not fire in {zone} between {here} and the end of {year_max}")
            # When the clock would show it if it ran on unchanged. Look at most a day ahead, so that no
            # two changes that cancel each other can hide in between.
            found = at + (reading - clock) // _ONE_SECOND
            end = min(found, at + _DAY_S)
            there = datetime.fromtimestamp(end, zone)
            if there.utcoffset() != here.utcoffset():
                # The clock is changed on the way: from there on its readings are others.
                at = _first_change(zone, at, end)
            elif end == found:
                return found
            else:
                # No reading between now and then matches, and no change moves a clock by more than a day.
                at = max(end, found - _DAY_S)
            here = datetime.fromtimestamp(at, zone)

    def _first_reading(self, clock: datetime, year_max: int) -> datetime | None:
        """The first matching reading at or after `clock`, as if no clock were ever changed."""
        # A copy is 40 times as fast as reading the expression anew, and the threads share nothing.
        search = copy(
            _search(self.seconds, self.minutes, self.hours, self.days, self.months, self.weekdays, self.both_days)
        )
        try:
            reading: datetime = search.get_next(datetime, start_time=clock - _ONE_SECOND)
        except (CroniterBadDateError, OverflowError, ValueError):
            return None
        return reading if reading.year <= year_max else None

    def _can_fire(self) -> bool:
        """Whether any date at all has what the fields ask for, 29 February included."""
        if not (self.seconds and self.minutes and self.hours):
            return False
        a_date = any(self.days and self.days[0] <= _MONTH_DAYS_MAX[month] for month in self.months)
        a_weekday = bool(self.weekdays and self.months)
        return a_date and a_weekday if self.both_days else a_date or a_weekday


_MONTH_DAYS_MAX = (0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def _aware(when: datetime) -> datetime:
    if when.utcoffset() is None:
        raise ValueError(f"{when!r} has no time zone: pass an aware datetime, such as datetime.now(timezone.utc)")
    return when


@lru_cache(maxsize=4_096)
def _search(
    seconds: tuple[int, ...],
    minutes: tuple[int, ...],
    hours: tuple[int, ...],
    days: tuple[int, ...],
    months: tuple[int, ...],
    weekdays: tuple[int, ...],
    both_days: bool,
) -> croniter:
    """A croniter for these values, to be copied and not used itself."""
    columns = [_spell(values, column) for values, column in ((minutes, _MINUTE), (hours, _HOUR))]
    day, weekday = _spell(days, _DAY), _spell(weekdays, _WEEKDAY)
    if not both_days and days and weekdays and "*" in (day, weekday):
        day = weekday = "*"  # one of them is enough, and one of them always holds
    columns += [day, _spell(months, _MONTH), weekday]
    if seconds != (0,):
        columns.append(_spell(seconds, _SECOND))
    return croniter(
        " ".join(columns), datetime(1970, 1, 1), day_or=not both_days, max_years_between_matches=CRON_WAIT_YEARS_MAX + 1
    )


def _spell(values: tuple[int, ...], column: _Field) -> str:
    """The values of a field one by one, or a star for all of them, and for none where the other day field decides."""
    if not values or len(values) == column.high - column.low + 1:
        return "*"
    return ",".join(map(str, values))


def _first_change(zone: tzinfo, start: int, end: int) -> int:
    """The first second in (start, end] at which the offset is no longer that of `start`."""
    before = datetime.fromtimestamp(start, zone).utcoffset()
    while end - start > 1:
        middle = (start + end) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == before:
            start = middle
        else:
            end = middle
    return end


# ---------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class _Field:
    """One column of an expression: its name, its bounds, and the names of its values."""

    title: str
    low: int
    high: int
    names: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        spelled = f", or {'-'.join([*self.names][:: len(self.names) - 1]).upper()}" if self.names else ""
        return f"the {self.title} field takes {self.low}-{self.high}{spelled}"


def _numbered(names: str, first: int) -> dict[str, int]:
    return {name: number for number, name in enumerate(names.split(), first)}


_SECOND = _Field("second", 0, 59)
_MINUTE = _Field("minute", 0, 59)
_HOUR = _Field("hour", 0, 23)
_DAY = _Field("day-of-month", 1, 31)
_MONTH = _Field("month", 1, 12, _numbered("jan feb mar apr may jun jul aug sep oct nov dec", 1))
_WEEKDAY = _Field("day-of-week", 0, 6, _numbered("sun mon tue wed thu fri sat", 0))

_DESCRIPTORS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

_ZONE_PREFIX = re.compile(r"(?:CRON_)?TZ=(?P<zone>\S*)\s*(?P<expression>.*)", re.DOTALL)
_NUMBER = re.compile(r"\+?[0-9]{1,18}")


def parse_spec(text: str, *, seconds: bool = False) -> Interval | Cron:
    """Read a Go duration ("90s", "1h30m"), a 5-field cron expression, or a descriptor ("@daily").

    With `seconds` a sixth field may stand in front, as the Go server accepts it for its schedules.
    Raises ValueError, with the text and what would be right, for everything else and for what could
    never fire: periods under a millisecond, zero and negative ones, dates that do not exist.
    """
    if not isinstance(text, str):
        raise ValueError(f"a spec is a text such as '90s' or '0 3 * * *', not {text!r}")
    spec = text.strip()
    if len(spec) > SPEC_CHARACTERS_MAX:
        raise ValueError(f"a spec of {len(spec)} characters: at most {SPEC_CHARACTERS_MAX}")
    if not spec:
        raise ValueError("an empty spec: write a duration such as '90s' or a cron expression such as '0 3 * * *'")
    try:
        ns = parse_duration(spec)
    except ValueError as not_a_duration:
        if len(spec.split()) == 1 and not spec.startswith(("@", "TZ=", "CRON_TZ=")):
            raise ValueError(f"neither a duration nor a cron expression: {not_a_duration}") from None
        return _parse_cron(spec, seconds)
    return Interval(ns)


def load_zone(name: str) -> tzinfo:
    """The time zone of an IANA name such as "Europe/Berlin"; "" is UTC, as in Go.

    Raises ValueError for a name that the time zone database does not have.
    """
    if name in ("", "UTC"):
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        # Beside the first: a path out of the database, a folder of it, a name too long for a file.
        raise ValueError(f"no time zone {name!r}: take a name such as 'Europe/Berlin' or 'UTC'") from None


def _parse_cron(spec: str, with_seconds: bool) -> Interval | Cron:
    zone: tzinfo | None = None
    expression = spec
    prefix = _ZONE_PREFIX.fullmatch(spec)
    if prefix is not None:
        expression = prefix["expression"]
        if not expression:
            raise ValueError(f"{spec!r} names a time zone and no expression: write '{spec} 0 3 * * *'")
        # "Local" is Go's name for the zone of the instant that is asked about, the same as no prefix.
        zone = None if prefix["zone"] == "Local" else load_zone(prefix["zone"])
    if expression.startswith("@every ") or expression == "@every":
        return _parse_every(expression.removeprefix("@every").strip())
    if expression.startswith("@") and expression not in _DESCRIPTORS:
        raise ValueError(f"{expression!r} is no descriptor: there are {', '.join(_DESCRIPTORS)} and @every <duration>")
    columns = _DESCRIPTORS.get(expression, expression).split()
    if with_seconds and len(columns) == 6:
        second, _ = _values(spec, columns.pop(0), _SECOND)
    else:
        second = (0,)
    if len(columns) != 5:
        raise ValueError(
            f"{spec!r} has {len(columns)} fields: a cron expression has 5"
            f"{' or 6' if with_seconds else ''}: minute hour day-of-month month day-of-week"
        )
    days, star_day = _values(spec, columns[2], _DAY)
    weekdays, star_weekday = _values(spec, columns[4], _WEEKDAY)
    cron = Cron(
        text=spec,
        minutes=_values(spec, columns[0], _MINUTE)[0],
        hours=_values(spec, columns[1], _HOUR)[0],
        days=days,
        months=_values(spec, columns[3], _MONTH)[0],
        weekdays=weekdays,
        both_days=star_day or star_weekday,
        zone=zone,
        seconds=second,
    )
    if not cron._can_fire():
        raise ValueError(f"{spec!r} can never fire: a field is empty, or no month in it has such a day")
    return cron


def _parse_every(duration: str) -> Interval:
    """`@every`: whole seconds, at least one. Go makes one second of anything shorter, negative ones too."""
    ns = max(parse_duration(duration), SECOND)
    return Interval(ns - ns % SECOND, on_second=True)


def _values(spec: str, text: str, column: _Field) -> tuple[tuple[int, ...], bool]:
    """The sorted values of a comma-separated field, and whether a bare star is among its items.

    Empty items are skipped, so a field of commas only is empty.
    """
    values: set[int] = set()
    star = False
    for item in filter(None, text.split(",")):
        try:
            expanded, is_star = _item(item, column)
        except ValueError as why:
            raise ValueError(f"{item!r} in {spec!r}: {why}; {column}") from None
        values.update(expanded)
        star = star or is_star
    return tuple(sorted(values)), star


def _item(item: str, column: _Field) -> tuple[range, bool]:
    """One item: `*`, `?`, N or N-M, each with an optional /step; N/step runs from N to the end."""
    bounds_text, *steps = item.split("/")
    bounds = bounds_text.split("-")
    if len(steps) > 1:
        raise ValueError("more than one step")
    star = bounds[0] in ("*", "?")
    if star:
        low, high = column.low, column.high  # Go reads nothing behind the hyphen of "*-5"
    else:
        if len(bounds) > 2:
            raise ValueError("more than one hyphen")
        low = _number(bounds[0], column.names)
        high = _number(bounds[1], column.names) if len(bounds) == 2 else column.high if steps else low
    step = _number(steps[0], {}) if steps else 1
    if low < column.low or high > column.high:
        raise ValueError(f"{low if low < column.low else high} is out of range")
    if low > high:
        raise ValueError(f"{low} is after {high}, and a range does not wrap around")
    if step == 0:
        raise ValueError("a step of 0")
    return range(low, high + 1, step), star and step == 1


def _number(text: str, names: Mapping[str, int]) -> int:
    named = names.get(text.lower())
    if named is not None:
        return named
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is no number" if text else "a number is missing")
    return int(text)
