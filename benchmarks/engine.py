"""What a step of the engine costs while many executions are open: it must not grow with their number.

    python -m benchmarks.engine [--open N ...] [--json]

What is measured is a task that is started, delivered to a waiting worker in the same step, and completed by it in the
next one, with the records that both make. The open executions beside it wait in a queue of their own, each with a
timeout, as a backlog does. No wire and no disk: a store that forgets takes the records.
"""

from __future__ import annotations

import argparse
import enum
import gc
import json
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from random import random

from benchmarks.floors import Figures, figures
from rich.console import Console
from rich.table import Table as View

from zapserver.engine import Engine, Limits
from zapserver.engine import commands as c
from zapserver.engine.effects import DeliverActivityTask
from zapserver.namespaces import new_id
from zapserver.store import Damaged
from zapserver.store.keys import Key

OPEN = (1_000, 10_000, 100_000, 1_000_000)
STEPS = 5_000
PAYLOAD = c.Payload(b'{"to":"ada@example.com"}')


class _Forgets:
    """A `Reader` of a store that keeps nothing."""

    def get(self, table: enum.StrEnum, key: Key) -> bytes | None:
        return None

    def scan(
        self,
        table: enum.StrEnum,
        *,
        prefix: Key = (),
        start: Key | None = None,
        end: Key | None = None,
        reverse: bool = False,
        limit: int | None = None,
        damaged: list[Damaged] | None = None,
    ) -> Iterator[tuple[Key, bytes]]:
        return iter(())

    def count(self, table: enum.StrEnum) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class StepCost:
    open_executions: int
    step: Figures
    """One task, both of its steps."""
    bytes_per_execution: float
    """What each open one takes of the process's memory, with its timer."""


def step_cost(open_executions: int, steps: int = STEPS) -> StepCost:
    """Fill an engine and measure beside what fills it."""
    limits = Limits(open_executions_max=open_executions + 1)
    engine = Engine(new_id=new_id, random=random, reader=_Forgets(), limits=limits)
    gc.collect()
    before = _resident_bytes()
    for _ in range(open_executions):
        engine.step(c.StartTask(type="waits", task_queue="nobody", input=PAYLOAD, timeouts=_TIMEOUTS), 1)
        engine.take_changes()
    gc.collect()
    each = (_resident_bytes() - before) / open_executions
    gc.freeze()
    engine.step(c.Subscribe(peer=1, kind=c.QueueKind.ACTIVITY, task_queue="works", slots=1), 1)
    durations: list[float] = []
    began = time.perf_counter()
    for _ in range(steps):
        start = time.perf_counter()
        engine.step(c.StartTask(type="email.send", task_queue="works", input=PAYLOAD), 2)
        engine.take_changes()
        (delivery,) = (effect for effect in engine.take_effects() if isinstance(effect, DeliverActivityTask))
        engine.step(c.CompleteActivity(token=delivery.task_token, result=PAYLOAD), 2)
        engine.take_changes()
        engine.take_effects()
        durations.append(time.perf_counter() - start)
        engine.step(c.ResumePeer(peer=1), 2)
    elapsed = time.perf_counter() - began
    gc.unfreeze()
    return StepCost(open_executions, figures(f"{open_executions:,} open", durations, elapsed), each)


_TIMEOUTS = c.ActivityTimeouts(schedule_to_close_ms=3_600_000)


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def table(costs: list[StepCost]) -> View:
    """For eyes; the last column is the ratio to the first row."""
    view = View(title="a task through the engine, by the number of open executions beside it")
    view.add_column("open executions", justify="right")
    for heading in ("p50 us", "p99 us", "bytes each", "p50 / first"):
        view.add_column(heading, justify="right")
    for cost in costs:
        step = cost.step
        view.add_row(
            f"{cost.open_executions:,}",
            f"{step.p50_us:,.1f}",
            f"{step.p99_us:,.1f}",
            f"{cost.bytes_per_execution:,.0f}",
            f"{step.p50_us / costs[0].step.p50_us:.2f}",
        )
    return view


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine")
    parser.add_argument("--open", type=int, nargs="+", default=list(OPEN), metavar="N", help="how many are open")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    costs: list[StepCost] = []
    for number in arguments.open:
        costs.append(step_cost(number))
        print(f"{number:,} open: p50 {costs[-1].step.p50_us:,.1f} us", file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps([asdict(cost) for cost in costs], indent=2))
    else:
        Console().print(table(costs))


if __name__ == "__main__":
    main()
