"""No more is delivered in a second than a rate allows: to a worker, and from a queue to all workers together.

Every worker of a seed states the same rates, so that they hold for as long as anybody is subscribed.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.sim.network import SimLink
from tests.sim.profile import Profile
from tests.sim.world import World

from zapserver.engine.rate import burst_of

SLACK = 0.001
"""Of one delivery, for what floats leave out."""


@dataclass(slots=True)
class _Bucket:
    """What may still go out at once, and when that was so."""

    left: float
    at_ms: int


class Rates:
    def __init__(self, world: World, profile: Profile) -> None:
        self._world = world
        self._worker_rate = profile.worker_rate
        self._queue_rate = profile.queue_rate
        self._workers: dict[SimLink, _Bucket] = {}
        self._queues: dict[str, _Bucket] = {}
        self._stated: set[SimLink] = set()
        """Connections that know that the rate of a queue was heard."""

    def subscribed(self, link: SimLink) -> None:
        self._stated.add(link)

    def parted(self, link: SimLink) -> None:
        """A rate of a queue goes with the last who stated it, and comes back with all of its burst."""
        self._workers.pop(link, None)
        self._stated.discard(link)
        if not self._stated:
            self._queues.clear()

    def forgotten(self) -> None:
        """By an engine that is built anew."""
        self._workers.clear()
        self._queues.clear()

    def delivered(self, link: SimLink, queue: str, at_ms: int) -> None:
        """`at_ms`: when the engine decided it. What is written to a slow disk leaves later, and all at once."""
        if self._worker_rate:
            bucket = self._workers.setdefault(link, _Bucket(burst_of(self._worker_rate), at_ms))
            self._take(bucket, self._worker_rate, at_ms, f"worker {link.node_id}")
        if self._queue_rate:
            bucket = self._queues.setdefault(queue, _Bucket(burst_of(self._queue_rate), at_ms))
            self._take(bucket, self._queue_rate, at_ms, f"queue {queue}")

    def _take(self, bucket: _Bucket, per_second: float, at_ms: int, whose: str) -> None:
        earned = max(0, at_ms - bucket.at_ms) * per_second / 1_000
        bucket.left = min(burst_of(per_second), bucket.left + earned) - 1
        bucket.at_ms = max(bucket.at_ms, at_ms)
        if bucket.left < -SLACK:
            self._world.fail("rate", f"{whose} has {per_second} a second, and one more went out at {at_ms}")
        if bucket.left < 1:
            self._world.count(f"rates spent: {whose.partition(' ')[0]}")
