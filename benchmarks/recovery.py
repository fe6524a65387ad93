"""How long a restart takes with much that is open, and what it takes in memory.

    python -m benchmarks.recovery [--open N ...] [--json]

The data directory is filled by the engine and the store themselves, without a server; then a server starts on it,
once with tasks that wait for nothing but a worker, and once with tasks that have a timer each.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import trio
from benchmarks.tasks import ServerProcess, disk_folder, serving_data
from rich.console import Console
from rich.table import Table as Printed

from zapserver.engine import Engine
from zapserver.engine.commands import ActivityTimeouts, Payload, StartTask
from zapserver.engine.tables import Table
from zapserver.store import Batch, Durability, SqliteStore
from zapserver.store.paths import store_path
from zaptasks import open_client, open_worker

STEPS_PER_COMMIT = 1_000
PAYLOAD = Payload(b'{"to":"ada@example.org","subject":"A payload of the usual size","lines":[1,2,3,4,5,6,7,8,9,10]}')
DAY_MS = 86_400_000
OPEN = (1_000, 10_000, 100_000)
CALLS = 1_000


@dataclass(frozen=True, slots=True)
class Recovery:
    """One start of a server; times in seconds since its process was started."""

    open_executions: int
    timers: int
    ready_s: float
    first_answer_s: float
    first_delivery_s: float
    resident_bytes: int
    call_p50_ms: float
    call_p99_ms: float
    call_max_ms: float


def fill(folder: Path, executions: int, *, timers: bool) -> None:
    """A data directory with so many tasks that nobody has begun."""
    store = SqliteStore(store_path(folder, "", "default"), Table)
    rng = random.Random(1)
    numbers = count()
    engine = Engine(new_id=lambda: f"{next(numbers):024x}00000000", random=rng.random, reader=store)
    now_ms = time.time_ns() // 1_000_000
    timeouts = ActivityTimeouts(start_to_close_ms=600_000, schedule_to_close_ms=DAY_MS if timers else 0)
    batch = Batch()
    for number in range(executions):
        command = StartTask(
            type="email.send", input=PAYLOAD, task_queue="default", request_id=f"r-{number}", timeouts=timeouts
        )
        engine.step(command, now_ms)
        engine.take_effects()
        changes = engine.take_changes()
        assert changes is not None
        batch.absorb(changes)
        if number % STEPS_PER_COMMIT == STEPS_PER_COMMIT - 1 or number == executions - 1:
            store.commit(batch, Durability.WRITTEN)
            batch = Batch()
    store.close()


def recovery(executions: int, *, timers: bool = False) -> Recovery:
    """Fill a directory, start a server on it, and look when it is of use."""
    with tempfile.TemporaryDirectory(prefix="zaptasks-bench-", dir=disk_folder()) as folder:
        fill(Path(folder), executions, timers=timers)
        began = time.perf_counter()
        with serving_data(folder) as server:
            ready = time.perf_counter() - began
            return trio.run(_measured, server, began, ready, executions, executions if timers else 0)


async def _measured(server: ServerProcess, began: float, ready: float, executions: int, timers: int) -> Recovery:
    delivered = trio.Event()

    async def send(mail: object) -> None:
        delivered.set()
        await trio.sleep_forever()

    async with open_client(server.zap, timeout=120) as client:
        await client.health()
        answer = time.perf_counter() - began
        resident = server.memory_bytes()
        delivery = 0.0
        if executions:
            with trio.CancelScope() as scope:
                async with open_worker(client, tasks={"email.send": send}, slots=1, shutdown_timeout=0):
                    await delivered.wait()
                    delivery = time.perf_counter() - began
                    scope.cancel()
        latencies = []
        for number in range(CALLS):
            before = time.perf_counter()
            await client.start_task("other", number, task_queue="other")
            latencies.append((time.perf_counter() - before) * 1000)
    latencies.sort()
    return Recovery(
        executions,
        timers,
        round(ready, 2),
        round(answer, 2),
        round(delivery, 2),
        resident,
        round(latencies[CALLS // 2], 3),
        round(latencies[CALLS * 99 // 100], 3),
        round(latencies[-1], 1),
    )


def recoveries(sizes: Sequence[int]) -> list[Recovery]:
    """An empty server, each size with tasks, and the largest with a timer for each task."""
    return [*(recovery(size) for size in (0, *sizes)), recovery(sizes[-1], timers=True)]


def table(rows: list[Recovery]) -> Printed:
    """For eyes; below it what a task and a timer take."""
    view = Printed(title="a start of the server, by the number of open tasks")
    for heading in ("open", "timers", "ready s", "first answer s", "first delivery s", "resident MiB"):
        view.add_column(heading, justify="right")
    view.add_column("synced call p50 / p99 / max ms", justify="right")
    for row in rows:
        view.add_row(
            f"{row.open_executions:,}",
            f"{row.timers:,}",
            f"{row.ready_s:.2f}",
            f"{row.first_answer_s:.2f}",
            f"{row.first_delivery_s:.2f}" if row.open_executions else "",
            f"{row.resident_bytes / 2**20:.0f}",
            f"{row.call_p50_ms:.2f} / {row.call_p99_ms:.2f} / {row.call_max_ms:.0f}",
        )
    empty, plain, timed = rows[0], rows[-2], rows[-1]
    each = (plain.resident_bytes - empty.resident_bytes) / plain.open_executions
    timer = (timed.resident_bytes - plain.resident_bytes) / timed.open_executions
    view.caption = f"{each:,.0f} bytes an open task, {timer:,.0f} bytes more with a timer"
    return view


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--open", type=int, nargs="+", default=list(OPEN), metavar="N", help="how many tasks are open")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    rows = recoveries(arguments.open)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        Console().print(table(rows))


if __name__ == "__main__":
    main()
