"""How many actions a second a namespace takes: a token bucket that is full after a second of rest."""

from __future__ import annotations

from dataclasses import dataclass

ACTION = 1_000
"""What an action costs, so that a rate of 1 a second earns whole numbers each millisecond."""


@dataclass(slots=True)
class ActionRate:
    """At most `per_second` actions a second; a second's worth may come at once. Times are milliseconds."""

    per_second: int
    _saved: int = 0
    _saved_ms: int = 0
    """When `_saved` was what was left. At 0, long ago, the bucket is full."""

    def wait_ms(self, now_ms: int) -> int:
        """How long until one more action may happen; 0 for now."""
        return -(-max(0, ACTION - self._left(now_ms)) // self.per_second)

    def take(self, now_ms: int) -> None:
        """One action happened."""
        self._saved, self._saved_ms = self._left(now_ms) - ACTION, now_ms

    def _left(self, now_ms: int) -> int:
        return min(self.per_second * ACTION, self._saved + (now_ms - self._saved_ms) * self.per_second)
