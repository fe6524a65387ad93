"""How long a restart takes with much that is open, and what it takes in memory.

    python -m tests.robustness.recovery [--open 100000] [--json]

The data directory is filled by the engine and the store themselves, without a server; then a server starts on it,
once with tasks that wait for nothing but a worker, and once with tasks that have a timer each.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import trio
from rich.console import Console
from rich.table import Table as Printed
from tests.robustness.processes import Process, free_port, server_process

from zapserver.engine import Engine
from zapserver.engine.commands import ActivityTimeouts, Payload, StartTask
from zapserver.engine.tables import Table
from zapserver.store import Batch, Durability, SqliteStore
from zapserver.store.paths import store_path
from zaptasks import open_client, open_worker
from zapwire.client_link import Backoff

STEPS_PER_COMMIT = 1_000
PAYLOAD = Payload(b'{"to":"ada@example.org","subject":"A payload of the usual size","lines":[1,2,3,4,5,6,7,8,9,10]}')
DAY_MS = 86_400_000
CALLS = 1_000
AT_ONCE = Backoff(0.002, 0.005)


@dataclass
class Figures:
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
    store = SqliteStore(store_path(folder / "data", "", "default"), Table)
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


async def measure(folder: Path, executions: int, *, timers: bool, launcher: str = "zapserver.cli") -> Figures:
    """Start a server on the directory and look when it is of use."""
    port = free_port()
    server = server_process(folder, port, free_port(), launcher=launcher)
    began = time.perf_counter()
    server.start()
    try:
        return await _measure(server, port, began, executions, executions if timers else 0)
    finally:
        server.destroy()


async def _measure(server: Process, port: int, began: float, executions: int, timers: int) -> Figures:
    delivered = trio.Event()
    moments: dict[str, float] = {}

    async def send(mail: object) -> None:
        if "delivery" not in moments:
            moments["delivery"] = time.perf_counter() - began
            delivered.set()
        await trio.sleep_forever()

    async def ready(server: Process) -> None:
        await server.wait_ready()
        moments["ready"] = time.perf_counter() - began

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ready, server)
        async with open_client(f"127.0.0.1:{port}", backoff=AT_ONCE, timeout=120) as client:
            moments["answer"] = time.perf_counter() - began
            resident = _resident_bytes(server.pid)
            if executions:
                with trio.CancelScope() as scope:
                    async with open_worker(client, tasks={"email.send": send}, slots=1, shutdown_timeout=0):
                        await delivered.wait()
                        scope.cancel()
            latencies = []
            for number in range(CALLS):
                before = time.perf_counter()
                await client.start_task("other", number, task_queue="other")
                latencies.append((time.perf_counter() - before) * 1000)
    latencies.sort()
    return Figures(
        executions,
        timers,
        round(moments["ready"], 2),
        round(moments["answer"], 2),
        round(moments.get("delivery", 0.0), 2),
        resident,
        round(latencies[CALLS // 2], 3),
        round(latencies[CALLS * 99 // 100], 3),
        round(latencies[-1], 1),
    )


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("Linux says how much memory a process has")


def measured(executions: int) -> Iterator[Figures]:
    """An empty server, one with tasks, and one whose tasks have timers."""
    for number, timers in ((0, False), (executions, False), (executions, True)):
        with tempfile.TemporaryDirectory(prefix="recovery-") as folder:
            fill(Path(folder), number, timers=timers)
            yield trio.run(_with_keywords, Path(folder), number, timers)


async def _with_keywords(folder: Path, executions: int, timers: bool) -> Figures:
    return await measure(folder, executions, timers=timers)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.robustness.recovery", description=__doc__)
    parser.add_argument("--open", type=int, default=100_000, help="how many tasks are open")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    empty, plain, timed = rows = list(measured(arguments.open))
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    table = Printed("open", "timers", "ready", "first answer", "first delivery", "resident", "synced call p50/p99/max")
    for row in rows:
        table.add_row(
            f"{row.open_executions:,}",
            f"{row.timers:,}",
            f"{row.ready_s:.2f} s",
            f"{row.first_answer_s:.2f} s",
            f"{row.first_delivery_s:.2f} s" if row.open_executions else "",
            f"{row.resident_bytes / 2**20:.0f} MiB",
            f"{row.call_p50_ms:.2f} / {row.call_p99_ms:.2f} / {row.call_max_ms:.0f} ms",
        )
    console = Console()
    console.print(table)
    each = (plain.resident_bytes - empty.resident_bytes) / arguments.open
    timer = (timed.resident_bytes - plain.resident_bytes) / arguments.open
    console.print(f"{each:,.0f} bytes an open task, {timer:,.0f} bytes more with a timer")


if __name__ == "__main__":
    main()
