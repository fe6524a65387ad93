"""Go's duration text, both ways: "1h15m30.5s" and the number of nanoseconds that it means.

The text is what stands on the wire, so reading and printing agree with Go to the nanosecond: the
same spellings are accepted, fractions are rounded the same way, and the printed form is the same.
"""

from __future__ import annotations

import re

NANOSECOND = 1
MICROSECOND = 1_000
MILLISECOND = 1_000_000
SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE

# Go counts in a signed 64-bit number of nanoseconds: a little over 292 years either way.
DURATION_NS_MAX = 2**63 - 1
# Far above any duration that means something; it bounds the work on a text that a peer sent.
DURATION_CHARACTERS_MAX = 1024

# Both letters that people type for micro: the micro sign (U+00B5) and the Greek mu (U+03BC).
_UNITS = {
    "ns": NANOSECOND,
    "us": MICROSECOND,
    "\u00b5s": MICROSECOND,
    "\u03bcs": MICROSECOND,
    "ms": MILLISECOND,
    "s": SECOND,
    "m": MINUTE,
    "h": HOUR,
}
_TERM = re.compile(r"(?P<whole>[0-9]*)(?:\.(?P<fraction>[0-9]*))?(?P<unit>[^0-9.]*)")
_RIGHT = 'write numbers with units, such as "90s", "1h30m" or "1.5ms" (units ns, us, ms, s, m, h)'


def parse_duration(text: str) -> int:
    """The nanoseconds that a Go duration such as "1h15m30.5s" means, negative ones included.

    Raises ValueError, with the text and what would be right, for anything that Go refuses: no unit,
    an unknown unit, spaces, an empty text, more than 64 bits of nanoseconds.
    """
    if len(text) > DURATION_CHARACTERS_MAX:
        raise ValueError(f"a duration of {len(text)} characters: at most {DURATION_CHARACTERS_MAX}")
    negative = text.startswith("-")
    rest = text[1:] if text.startswith(("-", "+")) else text
    if rest == "0":
        return 0
    if not rest:
        raise ValueError(f"{text!r} is not a duration: {_RIGHT}")
    total = 0
    position = 0
    while position < len(rest):
        term = _TERM.match(rest, position)
        assert term is not None  # every part of the pattern may be empty
        total += _term_ns(text, term)
        if total > DURATION_NS_MAX + negative:
            raise ValueError(f"{text!r} is too long: a duration is at most {format_duration(DURATION_NS_MAX)}")
        position = term.end()
    return -total if negative else total


def _term_ns(text: str, term: re.Match[str]) -> int:
    """One number with its unit, in nanoseconds."""
    whole, fraction, unit = term["whole"], term["fraction"] or "", term["unit"]
    if not whole and not fraction:
        raise ValueError(f"{text!r} is not a duration: a number is missing; {_RIGHT}")
    if not unit:
        raise ValueError(f"{text!r} is not a duration: a unit is missing; {_RIGHT}")
    unit_ns = _UNITS.get(unit)
    if unit_ns is None:
        raise ValueError(f"{text!r} is not a duration: {unit!r} is no unit; {_RIGHT}")
    return int(whole or "0") * unit_ns + _fraction_ns(fraction, unit_ns)


def _fraction_ns(digits: str, unit_ns: int) -> int:
    """The part behind the point, computed as Go does: in 64-bit floats, cut off at the nanosecond.

    Exact arithmetic would differ from Go by a nanosecond here and there. Digits beyond what 63 bits
    hold are ignored, as there.
    """
    value = 0
    scale = 1.0
    for digit in digits:
        longer = value * 10 + int(digit)
        if longer > 2**63:
            break
        value = longer
        scale *= 10.0
    return int(value * (unit_ns / scale))


def format_duration(ns: int) -> str:
    """The text that Go prints for so many nanoseconds: "1h15m30.5s", "500ms", "0s"."""
    sign = "-" if ns < 0 else ""
    ns = abs(ns)
    if ns == 0:
        return "0s"
    if ns < MICROSECOND:
        return f"{sign}{ns}ns"
    if ns < MILLISECOND:
        return f"{sign}{_decimal(ns, MICROSECOND)}\u00b5s"
    if ns < SECOND:
        return f"{sign}{_decimal(ns, MILLISECOND)}ms"
    hours, below_hour = divmod(ns, HOUR)
    minutes, below_minute = divmod(below_hour, MINUTE)
    text = f"{_decimal(below_minute, SECOND)}s"
    if ns >= MINUTE:
        text = f"{minutes}m{text}"
    if ns >= HOUR:
        text = f"{hours}h{text}"
    return sign + text


def _decimal(ns: int, unit_ns: int) -> str:
    """`ns` counted in `unit_ns`, a power of ten, without trailing zeros."""
    whole, part = divmod(ns, unit_ns)
    if part == 0:
        return str(whole)
    places = len(str(unit_ns)) - 1
    return f"{whole}.{part:0{places}d}".rstrip("0")
