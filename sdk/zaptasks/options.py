"""Settings that callers give in seconds, and the milliseconds that travel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal, TypeAlias, get_args

Seconds: TypeAlias = float | timedelta
"""A span of time in the public API: seconds as a number, or a timedelta."""

Durability: TypeAlias = Literal["memory", "written", "synced"]
"""What an answer stands for. "memory": gone with the server's process; "written": with the operating system, survives
the process and not the loss of power; "synced": on the disk."""

DURABILITIES: Final[tuple[Durability, ...]] = get_args(Durability)
"""From the weakest to the strongest."""

IdReusePolicy: TypeAlias = Literal["allow-duplicate", "allow-duplicate-failed-only", "reject-duplicate"]
"""Whether a start may take an id that a closed execution has: always, if that one did not complete, or never."""

IdConflictPolicy: TypeAlias = Literal["fail", "use-existing", "terminate-existing"]
"""What a start does with an id that an open execution has: it is refused, joins that one, or ends it first."""

Bodies: TypeAlias = Literal["json", "cbor"]
"""In what calls, answers and deliveries travel."""

SPAN_SECONDS_MAX: Final = 100 * 365 * 86_400
"""A hundred years: longer spans are a mistake of units, and the server refuses them."""


def to_seconds(value: Seconds, what: str) -> float:
    """Seconds as a float. Raises `ValueError` for NaN, negative spans and those over a hundred years."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if math.isnan(seconds) or not 0 <= seconds <= SPAN_SECONDS_MAX:
        raise ValueError(f"{what} is {value!r}: it must be 0 to {SPAN_SECONDS_MAX} seconds")
    return seconds


PER_SECOND_MIN: Final = 0.001
PER_SECOND_MAX: Final = 1_000_000


def to_rate(per_second: float | None, name: str) -> float:
    """How many a second; 0 for None. Raises `ValueError` outside of what a server takes."""
    if per_second is None:
        return 0.0
    if not PER_SECOND_MIN <= per_second <= PER_SECOND_MAX:
        raise ValueError(f"{name} is {per_second!r}: it must be {PER_SECOND_MIN} to {PER_SECOND_MAX:,}, or None")
    return float(per_second)


def to_ms(value: Seconds | None, what: str) -> int:
    """Milliseconds, rounded up so that no span becomes 0, which means none. None is 0."""
    return 0 if value is None else math.ceil(round(to_seconds(value, what) * 1000, 6))


def present(**fields: object) -> dict[str, object]:
    """The fields that say something: Go reads absent and zero alike, and so do we."""
    return {name: value for name, value in fields.items() if value not in (None, "", 0, {})}


def workflow_timeouts(
    execution_timeout: Seconds | None, run_timeout: Seconds | None, task_timeout: Seconds | None
) -> dict[str, int]:
    """The timeouts of a workflow that are given, as a request has them."""
    spans = {
        "workflow_execution_ms": to_ms(execution_timeout, "execution_timeout"),
        "workflow_run_ms": to_ms(run_timeout, "run_timeout"),
        "workflow_task_ms": to_ms(task_timeout, "task_timeout"),
    }
    return {name: span for name, span in spans.items() if span}


def check_options(given: Mapping[str, object], known: type, function: str) -> None:
    """Refuse options that a function with `**options: Unpack[known]` does not have. Raises `TypeError`."""
    unknown = given.keys() - known.__annotations__.keys()
    if unknown:
        names = ", ".join(map(repr, sorted(unknown)))
        raise TypeError(f"{function}() has no option {names}; its options are: {', '.join(known.__annotations__)}")


def id_policies(reuse: IdReusePolicy | None, conflict: IdConflictPolicy | None) -> dict[str, str]:
    """The policies as a request has them; nothing for None, the server's own. Raises `ValueError`."""
    found: dict[str, str] = {}
    for name, value, kind in (
        ("id_reuse_policy", reuse, IdReusePolicy),
        ("id_conflict_policy", conflict, IdConflictPolicy),
    ):
        if value is None:
            continue
        if value not in get_args(kind):
            raise ValueError(f"{name} is {value!r}: it must be one of {', '.join(map(repr, get_args(kind)))}, or None")
        found[name] = str(value)
    return found


def check_bodies(bodies: Bodies) -> Bodies:
    """The same. Raises `ValueError` for another word."""
    if bodies not in get_args(Bodies):
        raise ValueError(f'bodies is {bodies!r}: it must be "json" or "cbor"')
    return bodies


def asked(durability: Durability | None) -> dict[str, object]:
    """What asks a server for this level; nothing for None, the server's own. Raises `ValueError` for another word."""
    if durability is None:
        return {}
    if durability not in DURABILITIES:
        raise ValueError(f'durability is {durability!r}: it must be "memory", "written" or "synced", or None')
    return {"durability": durability}


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How failed attempts are repeated: exponential backoff, between bounds.

    `maximum_attempts` counts the first one too; 0 means no limit. `maximum_interval` is 100 times the initial
    one if it is not given. A failure whose type is among `non_retryable_error_types` is final.
    """

    initial_interval: Seconds = 1.0
    backoff_coefficient: float = 2.0
    maximum_interval: Seconds | None = None
    maximum_attempts: int = 0
    non_retryable_error_types: Sequence[str] = ()

    def __post_init__(self) -> None:
        if to_ms(self.initial_interval, "initial_interval") == 0:
            raise ValueError(f"initial_interval is {self.initial_interval!r}: it must be more than 0")
        if self.maximum_interval is not None and to_ms(self.maximum_interval, "maximum_interval") == 0:
            raise ValueError(f"maximum_interval is {self.maximum_interval!r}: it must be more than 0, or None")
        if not (math.isfinite(self.backoff_coefficient) and self.backoff_coefficient >= 1):
            raise ValueError(f"backoff_coefficient is {self.backoff_coefficient!r}: it must be 1 or more")
        if self.maximum_attempts < 0:
            raise ValueError(f"maximum_attempts is {self.maximum_attempts}: it must be 0 (no limit) or more")
        if isinstance(self.non_retryable_error_types, str):
            raise ValueError("non_retryable_error_types is a text: it must be a sequence of type names")

    def interval(self, attempt: int) -> float:
        """Seconds between the failure of this attempt, counted from 1, and the next one."""
        first = to_seconds(self.initial_interval, "initial_interval")
        longest = 100 * first
        if self.maximum_interval is not None:
            longest = to_seconds(self.maximum_interval, "maximum_interval")
        try:
            return min(first * self.backoff_coefficient ** (attempt - 1), longest)
        except OverflowError:
            return longest

    def to_wire(self) -> dict[str, object]:
        """The JSON object that Go's SDK sends for a policy."""
        return {
            "initial_interval_ms": to_ms(self.initial_interval, "initial_interval"),
            "backoff_coefficient": self.backoff_coefficient,
            "maximum_interval_ms": to_ms(self.maximum_interval, "maximum_interval"),
            "maximum_attempts": self.maximum_attempts,
            "non_retryable_error_types": list(self.non_retryable_error_types),
        }
