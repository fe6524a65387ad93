"""When a schedule is due: the slots of its spec, without its state and without jitter.

A slot is a moment that the spec names. An interval with a phase has its slots at the multiples of the interval
since the epoch, plus the phase; one without counts from an anchor, the creation of the schedule, so its first slot
is one period later. All times are milliseconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, takewhile
from typing import TypeAlias

from zapserver.engine.commands import ScheduleSpec
from zapserver.engine.errors import Invalid
from zapserver.engine.specs import TIME_MS_MAX, next_due_ms, read_spec
from zaptasks.spec import Interval

INTERVAL_MS_MIN = 1
"""The engine's unit of time. `zaptasks.parse_spec` has the same floor."""
INTERVAL_MS_MAX = 100 * 365 * 24 * 3_600_000
RULES_MAX = 100
"""Cron expressions of a spec, and intervals of a spec: each is looked at for every slot."""
LOOKS_PER_STEP_MAX = 1_000
"""Looks at the calendar while a schedule catches up: a tenth of a second."""
LOOKS_PER_RANGE_MAX = 10_000
"""The same for a range that somebody asks for. A hundred expressions that agree cost a hundred looks a slot."""
MISSED_COUNTED_MAX = 100
"""A look at the calendar takes croniter 0.2 to 1 ms, and a clock that jumped a day ahead meets many schedules."""
MATCHING_TIMES_MAX = 1_000
"""The most slots that one look at a range shows, as in Go's server."""

_Rule: TypeAlias = Callable[[int], "int | None"]
"""The next moment of one expression or interval after a moment."""


def slots_after(spec: ScheduleSpec, anchor_ms: int, after_ms: int) -> Iterator[int]:
    """The slots after a moment, in order and each once, until the schedule ends.

    Each rule is asked again only when its own moment has come, so a hundred expressions cost what their slots cost.
    """
    if spec.start_ms is not None:
        after_ms = max(after_ms, spec.start_ms - 1)
    end_ms = TIME_MS_MAX if spec.end_ms is None else min(spec.end_ms, TIME_MS_MAX)
    rules = _rules(spec, anchor_ms)
    coming = [rule(after_ms) for rule in rules]
    while True:
        slot_ms = min((moment for moment in coming if moment is not None), default=None)
        if slot_ms is None or slot_ms > end_ms:
            return
        yield slot_ms
        for number, moment in enumerate(coming):
            if moment == slot_ms:
                coming[number] = rules[number](slot_ms)


def slot_after(spec: ScheduleSpec, anchor_ms: int, after_ms: int) -> int | None:
    """The first slot after a moment; None when the schedule ends before."""
    return next(slots_after(spec, anchor_ms, after_ms), None)


def slots_at_once(spec: ScheduleSpec, wanted: int, looks_max: int) -> int:
    """How many slots may be looked for at a time: fewer than `wanted` for a spec of many cron expressions."""
    return max(1, min(wanted, looks_max // max(1, len(spec.cron))))


def slots_between(spec: ScheduleSpec, anchor_ms: int, start_ms: int, end_ms: int, limit: int) -> list[int]:
    """The first `limit` slots from `start_ms` to `end_ms`, both included. Raises `Invalid` for a range that is none."""
    for what, moment in (("start", start_ms), ("end", end_ms)):
        if not 0 <= moment <= TIME_MS_MAX:
            raise Invalid(f"the {what} of the range is {moment} ms; it must be 0 to {TIME_MS_MAX}, since the epoch")
    if end_ms < start_ms:
        raise Invalid(f"the range ends at {end_ms} ms, before its start at {start_ms} ms; give the earlier time first")
    following = slots_after(spec, anchor_ms, start_ms - 1)
    return list(islice(takewhile(lambda slot_ms: slot_ms <= end_ms, following), limit))


def pass_over(spec: ScheduleSpec, anchor_ms: int, slot_ms: int, until_ms: int) -> tuple[int, int | None]:
    """How many slots there are from the slot `slot_ms` to before `until_ms`, and the first one from there on.

    Only an interval that is alone is counted to the end; anything else up to `MISSED_COUNTED_MAX`.
    """
    following_ms = slot_after(spec, anchor_ms, until_ms - 1)
    if slot_ms >= until_ms:
        return 0, following_ms
    if interval_ms := _only_interval(spec):
        last_ms = until_ms - 1 if spec.end_ms is None else min(until_ms - 1, spec.end_ms)
        return (last_ms - slot_ms) // interval_ms + 1, following_ms
    passed = takewhile(lambda moment: moment < until_ms, slots_after(spec, anchor_ms, slot_ms - 1))
    counted_max = slots_at_once(spec, MISSED_COUNTED_MAX, LOOKS_PER_STEP_MAX)
    return sum(1 for _ in islice(passed, counted_max)), following_ms


def latest_slot(spec: ScheduleSpec, anchor_ms: int, slot_ms: int, now_ms: int) -> int:
    """The last slot up to now, where `slot_ms` is one."""
    if interval_ms := _only_interval(spec):
        last_ms = now_ms if spec.end_ms is None else min(now_ms, spec.end_ms)
        return slot_ms + max(0, last_ms - slot_ms) // interval_ms * interval_ms
    low_ms, high_ms = slot_ms, now_ms
    while high_ms - low_ms > 0:  # the latest is at `slot_ms`, at `low_ms`, or behind it up to `high_ms`
        middle_ms = (low_ms + high_ms) // 2
        following_ms = slot_after(spec, anchor_ms, middle_ms)
        if following_ms is not None and following_ms <= now_ms:
            low_ms = slot_ms = following_ms
        else:
            high_ms = middle_ms
    return slot_ms


def check_spec(spec: ScheduleSpec, now_ms: int) -> None:
    """Refuse what can never fire, and what is out of bounds."""
    if not spec.cron and not spec.interval_ms and not spec.intervals:
        raise Invalid("a schedule needs an interval or a cron expression; this one could never fire")
    if len(spec.cron) > RULES_MAX:
        raise Invalid(f"{len(spec.cron)} cron expressions; at most {RULES_MAX} are allowed")
    if len(spec.intervals) > RULES_MAX:
        raise Invalid(f"{len(spec.intervals)} intervals; at most {RULES_MAX} are allowed")
    if spec.phase_ms is not None and not spec.interval_ms:
        raise Invalid(f"a phase of {spec.phase_ms} ms without an interval that it could shift")
    for interval_ms, phase_ms in _intervals(spec):
        if not INTERVAL_MS_MIN <= interval_ms <= INTERVAL_MS_MAX:
            raise Invalid(f"an interval of {interval_ms} ms; it must be {INTERVAL_MS_MIN} ms to 100 years")
        if phase_ms is not None and not 0 <= phase_ms < interval_ms:
            raise Invalid(f"a phase of {phase_ms} ms in an interval of {interval_ms} ms; it must be 0 or more and less")
    if spec.jitter_ms < 0:
        raise Invalid(f"a jitter of {spec.jitter_ms} ms; it must not be negative")
    for text in spec.cron:
        read_spec(text, spec.timezone)
    if slot_after(spec, now_ms, now_ms) is None:
        raise Invalid("the schedule ends before it can fire")


def _intervals(spec: ScheduleSpec) -> list[tuple[int, int | None]]:
    return [(spec.interval_ms, spec.phase_ms), *spec.intervals] if spec.interval_ms else list(spec.intervals)


def _only_interval(spec: ScheduleSpec) -> int:
    """The interval of a spec that has nothing else, whose slots can be counted without a look at each; or 0."""
    intervals = _intervals(spec)
    return intervals[0][0] if len(intervals) == 1 and not spec.cron else 0


def _rules(spec: ScheduleSpec, anchor_ms: int) -> list[_Rule]:
    texts = [_text_rule(text, spec.timezone, anchor_ms) for text in spec.cron]
    return texts + [_interval_rule(interval_ms, phase_ms, anchor_ms) for interval_ms, phase_ms in _intervals(spec)]


def _text_rule(text: str, timezone: str, anchor_ms: int) -> _Rule:
    """A cron expression, or "@every", which counts from the anchor as an interval does: beside another
    expression it would otherwise begin anew at each slot of that one, and never come."""
    read = read_spec(text, timezone)
    if isinstance(read, Interval):
        return _interval_rule(read.next_after_ms(0), None, anchor_ms - anchor_ms % 1000 * read.on_second)
    return lambda after_ms: next_due_ms(text, after_ms, timezone)


def _interval_rule(interval_ms: int, phase_ms: int | None, anchor_ms: int) -> _Rule:
    if phase_ms is None:
        return lambda after_ms: anchor_ms + max(1, (after_ms - anchor_ms) // interval_ms + 1) * interval_ms
    return lambda after_ms: phase_ms + ((after_ms - phase_ms) // interval_ms + 1) * interval_ms
