"""What workflows cost against a real server that syncs every step: `python -m benchmarks.workflows [--quick] [--json]`.

The server, the worker and the client are processes of their own, over loopback TCP. benchmarks/temporal_peer.py has
the same workloads for Temporal; `benchmarks.comparison` runs both.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import trio
from benchmarks.floors import Figures, figures
from benchmarks.tasks import ServerProcess, resident_bytes, serving, worker_process
from rich.console import Console
from rich.table import Table

import zaptasks
from zaptasks import workflow

QUEUE = "benchmark"
IN_FLIGHT = 50
WARM_UP = 20
COUNTERS = 10
"""Workflows that take signals, queries and updates in turn: Temporal lets one have ten updates at once."""

START, ONE, TEN, HUNDRED = "start to result", "one activity", "ten in sequence", "hundred in parallel"
SIGNAL, QUERY, UPDATE, REPLAY = "signal", "query", "update", "replay of 100 activities"


# --- the workflows, which benchmarks/temporal_peer.py has too ----------------------------------------------


async def shout(text: str) -> str:
    return text.upper()


@workflow.defn
async def echo(text: str) -> str:
    return text


@workflow.defn
async def in_sequence(count: int) -> int:
    done = 0
    for _ in range(count):
        await workflow.execute_activity(shout, "hello", start_to_close=30)
        done += 1
    return done


@workflow.defn
async def in_parallel(count: int) -> int:
    async def one() -> None:
        await workflow.execute_activity(shout, "hello", start_to_close=30)

    async with workflow.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
    return count


@workflow.defn
class Counter:
    def __init__(self) -> None:
        self.count = 0
        self.is_over = False

    @workflow.run
    async def run(self) -> int:
        await workflow.wait_condition(lambda: self.is_over)
        return self.count

    @workflow.signal
    def add(self, number: int) -> None:
        self.count += number

    @workflow.signal
    def end(self) -> None:
        self.is_over = True

    @workflow.query
    def total(self) -> int:
        return self.count

    @workflow.update
    def add_up(self, number: int) -> int:
        self.count += number
        return self.count


WORKFLOWS: list[Callable[..., Any]] = [echo, in_sequence, in_parallel, Counter]


# --- what is measured --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sizes:
    """How often each workload runs, one after the other; and in all with `IN_FLIGHT` at once."""

    one_by_one: int
    at_once: int

    def of(self, name: str) -> Sizes:
        share = {TEN: 4, HUNDRED: 20, REPLAY: 10}.get(name, 1)
        return Sizes(max(self.one_by_one // share, 2), max(self.at_once // share, 2))


FULL, QUICK, SMALLEST = Sizes(1_000, 4_000), Sizes(200, 800), Sizes(2, 4)


def ours(sizes: Sizes) -> list[Figures]:
    """Every workload on our server, each twice: one by one, and `IN_FLIGHT` at once."""
    with serving("synced") as server, worker(server):
        return trio.run(_ours, server, sizes)


async def _ours(server: ServerProcess, sizes: Sizes) -> list[Figures]:
    async with zaptasks.open_client(server.zap, timeout=60) as client:

        async def run(type: str, argument: object) -> None:
            handle = await client.start_workflow(type, argument, task_queue=QUEUE)
            await handle.result()

        counters = [await client.start_workflow("Counter", task_queue=QUEUE) for _ in range(COUNTERS)]
        turns = itertools.cycle(counters)
        work: dict[str, Callable[[], Awaitable[object]]] = {
            START: lambda: run("echo", "hello"),
            ONE: lambda: run("in_sequence", 1),
            TEN: lambda: run("in_sequence", 10),
            HUNDRED: lambda: run("in_parallel", 100),
            SIGNAL: lambda: next(turns).signal("add", 1),
            QUERY: lambda: next(turns).query("total"),
            UPDATE: lambda: next(turns).update("add_up", 1),
        }
        rows: list[Figures] = []
        for name, once in work.items():
            rows += await measured(name, once, sizes.of(name))
        rows.append(await replays(client, sizes.of(REPLAY).one_by_one))
        for counter in counters:
            await counter.signal("end")
            await counter.result()
        return rows


async def replays(client: zaptasks.AsyncClient, count: int) -> Figures:
    """What it takes to bring a history of a hundred activities to its end again, without a server."""
    handle = await client.start_workflow("in_sequence", 100, task_queue=QUEUE)
    await handle.result()
    history = await handle.export_history()
    replayer = zaptasks.Replayer(workflows=WORKFLOWS)
    durations: list[float] = []
    for _ in range(count):
        start = time.perf_counter()
        replayed = replayer.replay(history)
        durations.append(time.perf_counter() - start)
        assert replayed.fits, replayed.error
    return figures(f"{REPLAY} ({len(history.events)} events)", durations, sum(durations))


async def measured(name: str, once: Callable[[], Awaitable[object]], sizes: Sizes) -> list[Figures]:
    """The figures of one workload."""
    durations: list[float] = []

    async def repeat(count: int) -> None:
        for _ in range(count):
            start = time.perf_counter()
            await once()
            durations.append(time.perf_counter() - start)

    await repeat(min(WARM_UP, sizes.one_by_one))
    durations.clear()
    began = time.perf_counter()
    await repeat(sizes.one_by_one)
    rows = [figures(name, durations, time.perf_counter() - began)]
    durations.clear()
    in_flight = min(IN_FLIGHT, sizes.at_once)
    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(in_flight):
            nursery.start_soon(repeat, sizes.at_once // in_flight)
    return [*rows, figures(f"{name}, {in_flight} at once", durations, time.perf_counter() - began)]


@dataclass(frozen=True, slots=True)
class Suspended:
    """What one run that waits costs, in bytes of resident memory."""

    runs: int
    worker_bytes: float
    server_bytes: float


def suspended(runs: int = 1_000) -> Suspended:
    """Start so many workflows that wait for a signal, after a tenth as many that bring both processes into shape."""
    with serving("synced") as server, worker(server) as worker_pid:
        return trio.run(_suspended, server, worker_pid, runs)


async def _suspended(server: ServerProcess, worker_pid: int, runs: int) -> Suspended:
    async with zaptasks.open_client(server.zap) as client:

        async def start(count: int) -> None:
            for _ in range(count):
                handle = await client.start_workflow("Counter", task_queue=QUEUE)
            await handle.query("total")  # behind its first workflow task

        await start(max(runs // 10, 1))
        before = resident_bytes(worker_pid), resident_bytes(server.pid)
        await start(runs)
        after = resident_bytes(worker_pid), resident_bytes(server.pid)
        return Suspended(runs, *((late - early) / runs for early, late in zip(before, after, strict=True)))


def worker(server: ServerProcess) -> AbstractContextManager[int]:
    """A worker in a process of its own, once it is subscribed; its process id."""
    return worker_process("benchmarks.workflows", "--worker", server.zap)


async def _work(zap: str) -> None:
    async with (
        zaptasks.open_client(zap) as client,
        zaptasks.open_worker(client, QUEUE, workflows=WORKFLOWS, activities=[shout], slots=200),
    ):
        print("subscribed", flush=True)
        await trio.sleep_forever()


def table(rows: list[Figures], waiting: Suspended) -> Table:
    """For eyes."""
    view = Table(title="workflows, each step synced to the disk")
    view.add_column("workload")
    for heading in ("p50 ms", "p99 ms", "per second"):
        view.add_column(heading, justify="right")
    for row in rows:
        view.add_row(row.name, f"{row.p50_us / 1000:,.2f}", f"{row.p99_us / 1000:,.2f}", f"{row.rate:,.0f}")
    worker, server = f"{waiting.worker_bytes:,.0f}", f"{waiting.server_bytes:,.0f}"
    view.caption = f"a run that waits costs its worker {worker} bytes and the server {server}"
    return view


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workflows", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fifth of the sizes, for a first look")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--worker", metavar="HOST:PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        trio.run(_work, arguments.worker)
        return
    rows, waiting = ours(QUICK if arguments.quick else FULL), suspended()
    if arguments.json:
        print(json.dumps({"figures": [asdict(row) for row in rows], "suspended": asdict(waiting)}, indent=2))
    else:
        Console().print(table(rows, waiting))


if __name__ == "__main__":
    main()
