"""Schedules: durations and cron expressions against Go's recorded answers, and against the rule itself."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from zaptasks.duration import DURATION_NS_MAX, format_duration, parse_duration
from zaptasks.spec import SPEC_CHARACTERS_MAX, Cron, Interval, load_zone, parse_spec

VECTORS = Path(__file__).parent.parent / "conformance" / "zapconform" / "vectors" / "spec.json"
BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")


@cache
def vectors(part: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(VECTORS.read_text(encoding="utf-8"))[part]
    return found


def rfc3339(when: datetime) -> str:
    return when.isoformat().replace("+00:00", "Z") if when.tzinfo is UTC else when.isoformat()


def firings(text: str, start: datetime, count: int) -> list[str]:
    spec = parse_spec(text)
    found = []
    for _ in range(count):
        start = spec.next_after(start)
        found.append(rfc3339(start))
    return found


# ---------------------------------------------------------------------------------- Go's answers


def test_every_recorded_duration_is_read_and_printed_as_go_does() -> None:
    assert len(vectors("duration")) >= 30
    for vector in vectors("duration"):
        if vector["ns"] is None:
            with pytest.raises(ValueError):
                parse_duration(vector["in"])
        else:
            assert parse_duration(vector["in"]) == int(vector["ns"]), vector
            assert format_duration(int(vector["ns"])) == vector["text"], vector


def test_every_recorded_expression_fires_when_go_fires() -> None:
    assert len(vectors("cron")) >= 200
    for vector in vectors("cron"):
        if not vector["ok"] or vector["next"] == ["never"]:
            with pytest.raises(ValueError):
                parse_spec(vector["expr"])
            continue
        zone = UTC if vector["location"] == "UTC" else ZoneInfo(vector["location"])
        start = datetime.fromisoformat(vector["from"]).astimezone(zone)
        assert firings(vector["expr"], start, len(vector["next"])) == vector["next"], vector


# Asked of Go 1.27 and robfig/cron 3.0.1, beyond the recordings.
@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("-9223372036854775808ns", -(2**63)),
        ("0.3333333333333333333h", 1_200_000_000_000),
        ("0.58260477976805553385h", 2_097_377_207_164),  # the 20th digit is dropped, or it would be one more
        ("1.0000000000000000000000000001s", 1_000_000_000),
        ("9223372036.854775807s", DURATION_NS_MAX),
        ("1m1m1m", 180_000_000_000),
        ("0.000000000000000000000000000000001h", 0),
    ],
)
def test_durations_at_the_edges_are_go_s(text: str, ns: int) -> None:
    assert parse_duration(text) == ns


@pytest.mark.parametrize(
    "text", ["9223372036.854775808s", "-9223372036854775809ns", "0.0.1s", "1e3s", "1_0s", ".", "1s."]
)
def test_what_go_refuses_as_a_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|too long"):
        parse_duration(text)


@settings(deadline=None)
@given(st.integers(-DURATION_NS_MAX, DURATION_NS_MAX))
def test_a_printed_duration_reads_back(ns: int) -> None:
    assert parse_duration(format_duration(ns)) == ns


@settings(deadline=None)
@given(st.text(alphabet="0159.hmsuµμn-+ ", max_size=12))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        ns = parse_duration(text)
    except ValueError:
        return
    assert abs(ns) <= 2**63


@pytest.mark.parametrize(
    ("text", "start", "expected"),
    [
        # Half past one comes twice in the night when the clocks go back, and is fired twice.
        ("30 1 * * *", "2026-11-01T00:00:00-04:00", ["2026-11-01T01:30:00-04:00", "2026-11-01T01:30:00-05:00"]),
        # Half past two does not come in the night when they go forward, and is not fired.
        ("30 2 * * *", "2026-03-07T12:00:00-05:00", ["2026-03-09T02:30:00-04:00", "2026-03-10T02:30:00-04:00"]),
        # An hourly job neither stops nor bunches.
        ("0 * * * *", "2026-03-08T01:30:00-05:00", ["2026-03-08T03:00:00-04:00", "2026-03-08T04:00:00-04:00"]),
        # The wait for the one day of the year on which the clocks go back ends in its first pass.
        ("30 1 1 11 *", "2026-01-15T00:00:00-05:00", ["2026-11-01T01:30:00-04:00", "2026-11-01T01:30:00-05:00"]),
        # In the first pass, the second is next: not the same date a year later, with the same offset.
        ("30 1 1 11 *", "2026-11-01T01:45:00-04:00", ["2026-11-01T01:30:00-05:00", "2027-11-01T01:30:00-04:00"]),
    ],
)
def test_a_change_of_the_clocks(text: str, start: str, expected: list[str]) -> None:
    assert firings(text, datetime.fromisoformat(start).astimezone(NEW_YORK), 2) == expected


@pytest.mark.parametrize(
    ("zone", "text", "start", "expected"),
    [
        # Clocks that change at midnight: Go's library loses this Friday, the day has no 00:00 there.
        ("Africa/Cairo", "0 12 * * 5", "2026-04-23T12:00:00+02:00", "2026-04-24T12:00:00+03:00"),
        # Go's library fires on the Sunday here.
        ("America/Havana", "0 4 * * 6", "2028-03-11T05:00:00-05:00", "2028-03-18T04:00:00-04:00"),
        # A change by half an hour: Go's library loses the day.
        ("Australia/Lord_Howe", "10 12 * * *", "2027-04-03T12:10:00+11:00", "2027-04-04T12:10:00+10:30"),
        # A whole day that was skipped: 30 December 2011 did not take place.
        ("Pacific/Apia", "0 12 30 * *", "2011-12-01T00:00:00-10:00", "2012-01-30T12:00:00+14:00"),
    ],
)
def test_where_go_breaks_its_own_rule_we_keep_it(zone: str, text: str, start: str, expected: str) -> None:
    assert firings(text, datetime.fromisoformat(start).astimezone(ZoneInfo(zone)), 1) == [expected]


# ------------------------------------------------------------------------------- the rule itself

FIELDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
MONTHS = ("JAN", "feb", "Mar", "APR", "may", "jun", "jul", "aug", "sep", "oct", "nov", "DEC")
WEEKDAYS = ("SUN", "mon", "Tue", "WED", "thu", "fri", "SAT")

Choice = tuple[str, frozenset[int], bool]  # the text, its values, whether a star stands in it


@st.composite
def items(draw: st.DrawFn, column: int) -> Choice:
    low, high = FIELDS[column]
    start = draw(st.integers(low, high))
    end = draw(st.integers(start, high))
    step = draw(st.integers(1, 9))
    spelled = {3: MONTHS, 4: WEEKDAYS}.get(column)

    def number(value: int) -> str:
        return spelled[value - low] if spelled is not None and draw(st.booleans()) else str(value)

    return draw(
        st.sampled_from(
            [
                ("*", frozenset(range(low, high + 1)), True),
                ("?", frozenset(range(low, high + 1)), True),
                (f"*/{step}", frozenset(range(low, high + 1, step)), step == 1),
                (number(start), frozenset([start]), False),
                (f"{number(start)}-{number(end)}", frozenset(range(start, end + 1)), False),
                (f"{number(start)}-{end}/{step}", frozenset(range(start, end + 1, step)), False),
                (f"{number(start)}/{step}", frozenset(range(start, high + 1, step)), False),
            ]
        )
    )


@st.composite
def columns(draw: st.DrawFn, column: int) -> Choice:
    chosen = draw(st.lists(items(column), min_size=1, max_size=3))
    return (
        ",".join(text for text, _, _ in chosen),
        frozenset().union(*(values for _, values, _ in chosen)),
        any(star for _, _, star in chosen),
    )


class Rule:
    """An expression with its meaning, spelled out minute by minute and sharing nothing with the search."""

    def __init__(self, chosen: tuple[Choice, ...]) -> None:
        self.text = " ".join(text for text, _, _ in chosen)
        self.minutes, self.hours, self.days, self.months, self.weekdays = (values for _, values, _ in chosen)
        self.both_days = chosen[2][2] or chosen[4][2]

    def __repr__(self) -> str:
        return f"Rule({self.text!r})"

    def matches(self, clock: datetime) -> bool:
        day, weekday = clock.day in self.days, clock.isoweekday() % 7 in self.weekdays
        return (
            clock.minute in self.minutes
            and clock.hour in self.hours
            and clock.month in self.months
            and (day and weekday if self.both_days else day or weekday)
        )


rules = st.tuples(*(columns(column) for column in range(5))).map(Rule)
instants = st.datetimes(
    datetime(2024, 1, 1), datetime(2030, 12, 31), timezones=st.sampled_from([UTC, BERLIN, NEW_YORK])
)


def read(rule: Rule) -> Interval | Cron | None:
    """The schedule, or None for one whose dates no year has."""
    try:
        return parse_spec(rule.text)
    except ValueError:
        return None


@settings(deadline=None)
@given(rules, instants)
def test_the_next_firing_matches_its_fields_and_is_later(rule: Rule, start: datetime) -> None:
    spec = read(rule)
    if spec is None:
        assert min(rule.days) > 29
        return
    found = spec.next_after(start)
    assert found.astimezone(UTC) > start.astimezone(UTC)
    assert found.tzinfo is start.tzinfo
    assert found.second == found.microsecond == 0
    assert rule.matches(found)


@settings(deadline=None)
@given(rules, instants, st.integers(1, 999_999), st.integers(1, 86_400 * 40))
def test_next_is_monotonic_and_sees_whole_seconds(rule: Rule, start: datetime, us: int, seconds: int) -> None:
    spec = read(rule)
    if spec is None:
        return
    start = start.astimezone(UTC).replace(microsecond=0)
    found = spec.next_after(start)
    assert spec.next_after(start + timedelta(microseconds=us)) == found  # a fraction of a second changes nothing
    assert spec.next_after(found - timedelta(seconds=1)) == found
    assert spec.next_after(found - timedelta(microseconds=1)) == found
    assert spec.next_after(start + timedelta(seconds=seconds)) >= found
    assert spec.next_after_ms(int(start.timestamp() * 1000)) == int(found.timestamp() * 1000)


# Each month-long window has a change of the clocks in it, by an hour, half an hour, or at midnight.
WINDOWS: list[tuple[tzinfo, datetime]] = [
    (UTC, datetime(2028, 2, 10, tzinfo=UTC)),
    (BERLIN, datetime(2026, 3, 20, tzinfo=UTC)),
    (BERLIN, datetime(2026, 10, 10, tzinfo=UTC)),
    (NEW_YORK, datetime(2026, 2, 20, tzinfo=UTC)),
    (NEW_YORK, datetime(2026, 10, 20, tzinfo=UTC)),
    (ZoneInfo("Australia/Lord_Howe"), datetime(2027, 3, 20, tzinfo=UTC)),
    (ZoneInfo("Africa/Cairo"), datetime(2026, 4, 10, tzinfo=UTC)),
    (ZoneInfo("America/Havana"), datetime(2026, 10, 20, tzinfo=UTC)),
    (ZoneInfo("Africa/Casablanca"), datetime(2026, 2, 5, tzinfo=UTC)),
    (ZoneInfo("Asia/Kathmandu"), datetime(2026, 6, 1, tzinfo=UTC)),
]
WINDOW_DAYS = 45


@cache
def clock_readings(window: int) -> list[tuple[datetime, datetime]]:
    """Every minute of the window: the instant, and what the clock shows."""
    zone, start = WINDOWS[window]
    minutes = (start + timedelta(minutes=minute) for minute in range(WINDOW_DAYS * 24 * 60))
    return [(instant, instant.astimezone(zone)) for instant in minutes]


@settings(deadline=None)
@given(rules, st.integers(0, len(WINDOWS) - 1))
def test_the_firings_of_weeks_are_all_minutes_that_match(rule: Rule, window: int) -> None:
    spec = read(rule)
    if spec is None:
        return
    zone, start = WINDOWS[window]
    # Enough to pass every change of day, few enough for a test: the first 300 of the 45 days.
    expected = []
    for instant, clock in clock_readings(window):
        if rule.matches(clock):
            expected.append(instant)
            if len(expected) == 300:
                break
    at = (start - timedelta(seconds=1)).astimezone(zone)
    for instant in expected:
        at = spec.next_after(at)
        assert at.astimezone(UTC) == instant, rule
    if len(expected) < 300:
        assert spec.next_after(at).astimezone(UTC) >= start + timedelta(days=WINDOW_DAYS)


@pytest.mark.parametrize(
    "expression", ["*/7 3-19/4 * * *", "0 0 13 * 5", "5 4 29 2 *", "30 6 1-7 */3 1", "0 9 * * 1-5"]
)
def test_croniter_agrees_where_no_clock_is_changed(expression: str) -> None:
    spec = parse_spec(expression)
    at = datetime(2026, 11, 22, 22, 41, 30, tzinfo=UTC)
    second_opinion = croniter(expression, at)
    for _ in range(50):
        at = spec.next_after(at)
        assert at == second_opinion.get_next(datetime)


# --------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("90s", Interval(90_000_000_000)),
        (" 1h30m\n", Interval(5_400_000_000_000)),
        ("1ms", Interval(1_000_000)),
        ("@every 90s", Interval(90_000_000_000, on_second=True)),
        ("@every 1.7s", Interval(1_000_000_000, on_second=True)),
        ("@every -5s", Interval(1_000_000_000, on_second=True)),
        ("TZ=Europe/Berlin @every 2m", Interval(120_000_000_000, on_second=True)),
    ],
)
def test_periods(text: str, meaning: Interval) -> None:
    assert parse_spec(text) == meaning
    assert parse_spec(str(meaning)) == meaning


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("  0   3\t*  *  * ", "0 3 * * *"),
        ("@weekly", "0 0 * * SUN"),
        ("0 0 ? * ?", "@midnight"),
        ("1,,2 * * * *", "1-2 * * * *"),
        ("+5 * * * *", "5 * * * *"),
        ("*-5 * * * *", "* * * * *"),
        ("50/5 * * * *", "50,55 * * * *"),
        ("5-5 * * * *", "5 * * * *"),
        ("*/100 * * * *", "0 * * * *"),
        ("0 0 , * 1", "0 0 * * 1"),
        ("TZ=Local 0 3 * * *", "0 3 * * *"),
        ("TZ= 0 3 * * *", "CRON_TZ=UTC 0 3 * * *"),
    ],
)
def test_spellings_of_one_schedule(text: str, same_as: str) -> None:
    start = datetime(2026, 11, 22, 22, 41, 30, tzinfo=NEW_YORK)
    assert firings(text, start, 10) == firings(same_as, start, 10)


def test_day_fields_match_both_with_a_star_and_either_without() -> None:
    start = datetime(2026, 11, 22, tzinfo=UTC)
    assert firings("0 0 13 * 5", start, 2) == ["2026-11-27T00:00:00Z", "2026-12-04T00:00:00Z"]
    assert firings("0 0 13 * *", start, 1) == ["2026-12-13T00:00:00Z"]
    # A step takes the star's meaning away: odd days or Mondays.
    assert firings("0 0 */2 * 1", start, 3) == ["2026-11-23T00:00:00Z", "2026-11-25T00:00:00Z", "2026-11-27T00:00:00Z"]


def test_a_named_zone_beats_the_one_that_is_asked_in() -> None:
    spec = parse_spec("CRON_TZ=Asia/Tokyo 0 9 * * *")
    assert spec.next_after(datetime(2026, 6, 1, tzinfo=BERLIN)).isoformat() == "2026-06-01T02:00:00+02:00"
    midnight_ms = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp() * 1000)
    hour_ms = 3_600_000
    assert spec.next_after_ms(midnight_ms - 1, zone=BERLIN) == midnight_ms
    nine = parse_spec("0 9 * * *")
    assert nine.next_after_ms(midnight_ms) == midnight_ms + 9 * hour_ms
    assert nine.next_after_ms(midnight_ms, zone=BERLIN) == midnight_ms + 7 * hour_ms


def test_fixed_offsets_are_zones_too() -> None:
    start = datetime(2026, 6, 1, 23, 30, tzinfo=timezone(timedelta(hours=5, minutes=45)))
    assert firings("0 0 * * *", start, 1) == ["2026-06-02T00:00:00+05:45"]


def test_a_sixth_field_is_seconds_where_it_is_allowed() -> None:
    spec = parse_spec("*/20 30 1 * * *", seconds=True)
    at = datetime(2026, 6, 1, tzinfo=UTC)
    found = []
    for _ in range(4):
        at = spec.next_after(at)
        found.append(rfc3339(at))
    assert found == ["2026-06-01T01:30:00Z", "2026-06-01T01:30:20Z", "2026-06-01T01:30:40Z", "2026-06-02T01:30:00Z"]
    assert parse_spec("0 3 * * *", seconds=True) == parse_spec("0 3 * * *")


def test_a_period_is_elapsed_time_whatever_the_clock_does() -> None:
    # A day across the autumn change is 24 hours, which a wall clock shows as 23.
    start = datetime(2026, 10, 24, 12, tzinfo=BERLIN)
    assert parse_spec("24h").next_after(start).isoformat() == "2026-10-25T11:00:00+01:00"
    assert parse_spec("1.5ms").next_after_ms(1_000) == 1_002  # never early
    assert parse_spec("30ms").next_after_ms(1_000) == 1_030
    assert parse_spec("@every 2s").next_after_ms(1_999) == 3_000


def test_february_29th_across_a_year_that_has_none() -> None:
    start = datetime(2096, 3, 1, tzinfo=UTC)
    assert firings("0 0 29 2 *", start, 2) == ["2104-02-29T00:00:00Z", "2108-02-29T00:00:00Z"]


# -------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty spec"),
        (" \t", "empty spec"),
        ("0", "at least 1ms"),
        ("0s", "a period of 0s"),
        ("-5s", "a period of -5s"),
        ("999us", "at least 1ms"),
        ("30", "a unit is missing"),
        ("1d", "'d' is no unit"),
        ("hourly", "neither a duration nor a cron expression"),
        ("* * * *", "has 4 fields: a cron expression has 5"),
        ("* * * * * *", "has 6 fields: a cron expression has 5"),
        ("60 * * * *", "60 is out of range; the minute field takes 0-59"),
        ("* * * * 7", "7 is out of range; the day-of-week field takes 0-6, or SUN-SAT"),
        ("* * 0 * *", "0 is out of range; the day-of-month field takes 1-31"),
        ("* * * 13 *", "the month field takes 1-12, or JAN-DEC"),
        ("5-1 * * * *", "does not wrap around"),
        ("1-2-3 * * * *", "more than one hyphen"),
        ("*/2/3 * * * *", "more than one step"),
        ("*/0 * * * *", "a step of 0"),
        ("*/-1 * * * *", "'-1' is no number"),
        ("5- * * * *", "a number is missing"),
        ("٣ * * * *", "is no number"),
        ("9999999999999999999 * * * *", "is no number"),
        ("0 9 L * *", "'L' is no number"),
        ("0 0 30 2 *", "can never fire"),
        ("0 0 31 4,6,9,11 *", "can never fire"),
        (", * * * *", "can never fire"),
        ("0 0 , * *", "can never fire"),
        ("0 0 , * ,", "can never fire"),
        ("0 0 1 , 1", "can never fire"),
        ("@reboot", "no descriptor: there are @yearly"),
        ("@Daily", "no descriptor"),
        ("@every", "not a duration"),
        ("@every 5", "a unit is missing"),
        ("TZ=UTC", "no expression: write 'TZ=UTC 0 3 * * *'"),
        ("CRON_TZ=UTC  ", "no expression"),
        ("TZ=UTC 5m", "has 1 fields"),
        ("TZ=Nowhere/City 0 0 * * *", "no time zone 'Nowhere/City'"),
        ("TZ=../../etc/passwd 0 0 * * *", "no time zone"),
        ("TZ=Europe 0 0 * * *", "no time zone"),
        ("TZ=" + "x" * 300 + " 0 0 * * *", "no time zone"),
        ("TZ=\x00 0 0 * * *", "no time zone"),
        ("1," * SPEC_CHARACTERS_MAX + "1 * * * *", "at most 1024"),
    ],
)
def test_a_bad_spec_says_what_is_wrong_and_what_would_be_right(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_spec(text)
    assert why in str(caught.value)


def test_a_spec_that_is_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match="not 5"):
        parse_spec(5)  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.text(alphabet="0123456789*?/-,LW#@ TZ=UC_EVRYeverysmhjanSUN", max_size=30))
def test_any_text_is_a_schedule_or_a_value_error(text: str) -> None:
    try:
        spec = parse_spec(text, seconds=True)
    except ValueError:
        return
    start = datetime(2026, 6, 1, tzinfo=UTC)
    assert spec.next_after(start) > start


def test_every_accepted_date_fires_and_every_other_is_refused_when_read() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    refused = 0
    for day, month in product(range(1, 32), range(1, 13)):
        text = f"0 0 {day} {month} *"
        try:
            datetime(2028, month, day)
        except ValueError:
            refused += 1
            with pytest.raises(ValueError, match="never fire"):
                parse_spec(text)
        else:
            found = parse_spec(text).next_after(start)
            assert (found.month, found.day) == (month, day)
    assert refused == 6  # of 372: 30 and 31 February, and the 31st of four months


@pytest.mark.parametrize("text", ["90s", "@every 1m", "0 3 * * *"])
def test_a_naive_datetime_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="has no time zone"):
        parse_spec(text).next_after(datetime(2026, 6, 1))


@pytest.mark.parametrize("text", ["1h", "0 3 * * *"])
def test_beyond_the_calendar_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"9999|10000|year"):
        parse_spec(text).next_after(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))


class SkippingZone(tzinfo):
    """A zone whose clock goes from 01:59 to 03:00 every first of January, and back at noon."""

    def utcoffset(self, when: datetime | None) -> timedelta:
        assert when is not None
        skipped = when.month == 1 and when.day == 1 and 3 <= when.hour < 13
        return timedelta(hours=1 if skipped else 0)

    def dst(self, when: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, when: datetime | None) -> str:
        return "skipping"

    def fromutc(self, when: datetime) -> datetime:
        skipped = when.month == 1 and when.day == 1 and 2 <= when.hour < 12
        return when + timedelta(hours=1 if skipped else 0)


def test_a_reading_that_no_year_shows_ends_the_search() -> None:
    spec = parse_spec("30 2 1 1 *")
    with pytest.raises(ValueError, match="does not fire"):
        spec.next_after(datetime(2026, 6, 1, tzinfo=SkippingZone()))


def test_load_zone() -> None:
    assert load_zone("") is load_zone("UTC") is UTC
    assert load_zone("Europe/Berlin") == BERLIN
    with pytest.raises(ValueError, match="take a name such as"):
        load_zone("Berlin")


def test_the_next_time_is_cheap() -> None:
    # Ten times what it takes on an idle machine: this catches a search that walks, not a busy neighbor.
    start = datetime(2026, 11, 22, 22, 41, 30, tzinfo=BERLIN)
    for text in ("* * * * *", "*/5 * * * *", "0 3 * * *", "0 12 * * 1-5", "0 0 1 1 *", "0 0 13 * FRI"):
        spec = parse_spec(text)
        best_s = min(_seconds_for_100(spec, start) for _ in range(5))
        assert best_s / 100 < 2e-3, text


def _seconds_for_100(spec: Interval | Cron, start: datetime) -> float:
    began = time.perf_counter()
    for _ in range(100):
        spec.next_after(start)
    return time.perf_counter() - began


def test_firings_never_repeat() -> None:
    at = datetime(2026, 10, 24, tzinfo=BERLIN)
    spec = parse_spec("*/10 * * * *")
    found = [at]
    for _ in range(400):
        found.append(spec.next_after(found[-1]))
    elapsed = {later.astimezone(UTC) - earlier.astimezone(UTC) for earlier, later in pairwise(found)}
    assert elapsed == {timedelta(minutes=10)}
