"""Retry policies: how long to wait after the n-th failed attempt, and when to stop."""

from __future__ import annotations

import msgspec

INITIAL_INTERVAL_MS = 1_000
BACKOFF_COEFFICIENT = 2.0
MAXIMUM_INTERVAL_MS = 100_000
INTERVAL_MS_MAX = 365 * 24 * 3_600_000
"""No wait is longer than a year: larger numbers are a mistake of units."""


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Exponential backoff. Zero `maximum_attempts` means no limit.

    Values that make no sense are replaced as Go's `Normalize` does: an initial interval of zero or
    less becomes 1 s, a coefficient under 1 becomes 2, a maximum interval of zero or less becomes a
    hundred times the initial one.
    """

    initial_interval_ms: int = INITIAL_INTERVAL_MS
    backoff_coefficient: float = BACKOFF_COEFFICIENT
    maximum_interval_ms: int = 0
    maximum_attempts: int = 0
    non_retryable_error_types: tuple[str, ...] = ()

    def normalized(self) -> RetryPolicy:
        initial = self.initial_interval_ms if self.initial_interval_ms > 0 else INITIAL_INTERVAL_MS
        initial = min(initial, INTERVAL_MS_MAX)
        maximum = self.maximum_interval_ms if self.maximum_interval_ms > 0 else 100 * initial
        return RetryPolicy(
            initial_interval_ms=initial,
            backoff_coefficient=self.backoff_coefficient if self.backoff_coefficient >= 1 else BACKOFF_COEFFICIENT,
            maximum_interval_ms=min(maximum, INTERVAL_MS_MAX),
            maximum_attempts=max(self.maximum_attempts, 0),
            non_retryable_error_types=self.non_retryable_error_types,
        )

    def interval_ms(self, failures: int) -> int:
        """How long to wait after the `failures`-th failure (1 or more) in a row."""
        try:
            wait = self.initial_interval_ms * self.backoff_coefficient ** (failures - 1)
        except OverflowError:
            return self.maximum_interval_ms
        return int(min(wait, self.maximum_interval_ms))

    def allows_another(self, attempts: int) -> bool:
        """Whether another attempt may follow after this many."""
        return self.maximum_attempts == 0 or attempts < self.maximum_attempts


TASK_RETRY = RetryPolicy(maximum_interval_ms=MAXIMUM_INTERVAL_MS, maximum_attempts=10)
"""One-shot tasks retry for about five minutes before they become dead letters."""

NO_RETRY = RetryPolicy(maximum_interval_ms=MAXIMUM_INTERVAL_MS, maximum_attempts=1)
"""An activity of a Go workflow that names no policy gets the one attempt its SDK expects."""
