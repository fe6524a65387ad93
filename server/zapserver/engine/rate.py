"""How much a second: token buckets, and the rates of deliveries that are made of them. Times are milliseconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from zapserver.engine.commands import PeerKey, QueueKind

THING = 1_000_000
"""What one thing costs, so that a rate of 0.001 a second earns whole numbers each millisecond."""

PER_SECOND_MIN = 0.001
PER_SECOND_MAX = 1_000_000.0
"""A rate of deliveries that a worker may ask for: from one in a quarter of an hour to more than there ever are."""

BURSTS_PER_SECOND = 10
"""A rate of deliveries has a tenth of a second's worth at once, and never less than one: as even as Go's workers, who
have one, up to 10 a second; above that one would fall behind the rate whenever the server looks a little late."""


@dataclass(slots=True)
class TokenBucket:
    """At most `per_second` things a second on the whole; after a rest `burst` may come at once."""

    per_second: float
    burst: int
    _saved: int = 0
    _saved_ms: int = 0
    """When `_saved` was what was left. At 0, long ago, the bucket is full."""

    def wait_ms(self, now_ms: int) -> int:
        """How long until one more may happen; 0 for now."""
        return -(-max(0, THING - self._left(now_ms)) // self._earned)

    def take(self, now_ms: int) -> None:
        """One happened."""
        self._saved, self._saved_ms = self._left(now_ms) - THING, now_ms

    def change(self, per_second: float, burst: int, now_ms: int) -> None:
        """Another rate from now on."""
        self._saved, self._saved_ms = self._left(now_ms), now_ms
        self.per_second, self.burst = per_second, burst

    @property
    def _earned(self) -> int:
        return round(self.per_second * (THING // 1_000))

    def _left(self, now_ms: int) -> int:
        return min(self.burst * THING, self._saved + (now_ms - self._saved_ms) * self._earned)


@dataclass(slots=True, eq=False)
class DeliveryRate:
    """How many activities and tasks a second go out under it. Spent, it has them wait until `deadline_ms`."""

    per_second: float
    next_ms: int | None = None
    """When the next one may go out, while it is spent."""
    timer_ms: int | None = None
    _bucket: TokenBucket = field(init=False)

    def __post_init__(self) -> None:
        self._bucket = TokenBucket(self.per_second, burst_of(self.per_second))

    @property
    def is_spent(self) -> bool:
        return self.next_ms is not None

    def take(self, now_ms: int) -> None:
        """One goes out."""
        self._bucket.take(now_ms)
        self._look(now_ms)

    def change(self, per_second: float, now_ms: int) -> None:
        """Another rate from now on: what was used up stays so."""
        self.per_second = per_second
        self._bucket.change(per_second, burst_of(per_second), now_ms)
        self._look(now_ms)

    def open(self) -> None:
        """Its time has come."""
        self.next_ms = None

    def _look(self, now_ms: int) -> None:
        wait_ms = self._bucket.wait_ms(now_ms)
        self.next_ms = now_ms + wait_ms if wait_ms else None

    def deadline_ms(self) -> int | None:
        return self.next_ms


@dataclass(slots=True, eq=False, kw_only=True)
class PeerRate(DeliveryRate):
    """Of a worker: of all subscriptions of its connection that state one."""

    peer: PeerKey


@dataclass(slots=True, eq=False, kw_only=True)
class QueueRate(DeliveryRate):
    """Of a task queue, over all its workers."""

    queue: tuple[QueueKind, str]


def burst_of(per_second: float) -> int:
    """How many deliveries may come at once after a rest."""
    return max(1, int(per_second / BURSTS_PER_SECOND))
