"""Swarm: what one seed does and suffers, and how often. A run without a fault finds what hides behind that fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

FAULTS = (
    "server stop",
    "server kill",
    "power loss",
    "client crash",
    "worker crash",
    "cut",
    "stall",
    "slow disk",
    "disk full",
    "disk failing",
    "clock forward",
    "clock back",
)
MISBEHAVIOURS = (
    "silent",
    "hand back",
    "answer twice",
    "answer late",
    "ignore stop",
    "idle holder",
    "evict",
    "slow replay",
    "fail task",
    "torn answer",
)
OPERATIONS = {
    "submit": 30,
    "start": 14,
    "play": 14,
    "note": 10,
    "update": 12,
    "ask update again": 4,
    "start with id": 3,
    "update with start": 5,
    "signal": 8,
    "signal with start": 4,
    "cancel": 6,
    "terminate": 3,
    "await": 14,
    "describe": 6,
    "history": 3,
    "list": 2,
    "explain": 3,
    "requeue": 2,
    "reset": 2,
    "put schedule": 8,
    "pause schedule": 2,
    "resume schedule": 2,
    "trigger schedule": 3,
    "backfill schedule": 6,
    "delete schedule": 1,
    "describe schedule": 2,
}
"""With their weights."""
TASK_TYPES = {"quick": 8, "slow": 5, "flaky": 4, "doomed": 2, "forever": 2, "silent": 2, "later": 5, "orphan": 1}
FLOW_TYPES = {"chain": 5, "fan": 4, "orphan": 1}


@dataclass(frozen=True, slots=True)
class Profile:
    clients: int
    workers: int
    replayers: int
    """In each namespace."""
    namespaces: int
    operations: int
    think_ms: int
    """The mean pause of a client between two operations."""
    fault_pause_ms: int
    """The mean pause between two faults."""
    faults: tuple[str, ...]
    misbehaviours: tuple[str, ...]
    misbehaviour_rate: float
    operation_weights: dict[str, int]
    delay_ms: int
    """What the network takes at most, one way."""
    torn_rate: float
    """How often what is sent arrives in pieces."""
    weak_rate: float
    """How often a start asks for less than a synced disk."""
    repeat_rate: float
    """How often what carries a request id is sent again although it was answered."""
    worker_rate: float
    """How many activities a second each worker asks for at most; 0 for no such bound."""
    queue_rate: float
    """How many of each queue, over all workers."""
    bytes_scale: int
    """How many bytes each byte that waits for a peer stands for: small payloads fill large buffers."""


def draw_profile(random: Random) -> Profile:
    return Profile(
        clients=random.randint(2, 4),
        workers=random.randint(2, 4),
        replayers=random.randint(1, 2),
        namespaces=random.choice((1, 2)),
        operations=random.choice((40, 80, 120, 160)),
        think_ms=random.choice((60, 200, 800)),
        fault_pause_ms=random.choice((600, 1_500, 4_000, 10_000)),
        faults=_some(random, FAULTS),
        misbehaviours=_some(random, MISBEHAVIOURS),
        misbehaviour_rate=random.choice((0.0, 0.05, 0.2)),
        operation_weights=_draw_weights(random),
        delay_ms=random.choice((2, 20, 200)),
        torn_rate=random.choice((0.0, 0.1, 0.5)),
        weak_rate=random.choice((0.0, 0.0, 0.3)),
        repeat_rate=random.choice((0.0, 0.2)),
        worker_rate=random.choice((0, 0, 0, 3, 30)),
        queue_rate=random.choice((0, 0, 0, 5, 50)),
        bytes_scale=random.choice((1, 1_000)),
    )


def _draw_weights(random: Random) -> dict[str, int]:
    """A third of the runs are about plays."""
    weights = {name: weight for name, weight in OPERATIONS.items() if random.random() < 0.85}
    weights |= {"submit": 30, "start": 14, "play": 14}
    if random.random() < 0.35:
        weights |= {"submit": 5, "start": 3, "play": 20, "note": 60, "update": 30}
    return weights


def _some(random: Random, names: Sequence[str]) -> tuple[str, ...]:
    """Each of them in half of the runs, in a few none at all."""
    if random.random() < 0.05:
        return ()
    return tuple(name for name in names if random.random() < 0.5)
