"""`make bench`: every figure of design section 9 that this version has, with its floor, in one run.

    python -m benchmarks [--quick | --smallest] [--json FILE]

A figure means little alone: machines differ, and a shared one differs by the minute. So the floors (a bare
blocking echo and a bare trio echo of the same sizes) run first and again last, and each latency also stands
as its ratio to the bare trio echo's median.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import msgspec
from benchmarks.engine import OPEN, StepCost
from benchmarks.engine import table as step_table
from benchmarks.floors import Figures, blocking_echo, trio_echo
from benchmarks.link import link_calls
from benchmarks.store import disk_syncs
from benchmarks.tasks import delivery, disk_folder, idle_connection_bytes, now_to_started, submits
from rich.console import Console
from rich.table import Table

IN_FLIGHT = (1, 8, 32, 64, 256)
SUBMITS_IN_FLIGHT = (1, 8, 64, 512)
WORKERS = (1, 10, 100)

CALLS_MIN = 512
"""The smallest size: two calls for each of 256 in flight."""


def plan(scale: float) -> list[Callable[[], Figures]]:
    """The measurements of a full run, in order; `scale` shrinks their sizes."""

    def size(full: int) -> int:
        return max(int(full * scale), CALLS_MIN)

    return [
        lambda: blocking_echo(size(10_000)),
        lambda: trio_echo(size(10_000)),
        *(lambda n=n: link_calls(n, size(10_000 if n == 1 else 60_000)) for n in IN_FLIGHT),
        *(lambda level=level: now_to_started(size(3_000), level) for level in ("memory", "synced")),
        *(lambda n=n: submits(n, size(5_000 if n == 1 else 30_000)) for n in (1, 64)),
        lambda: disk_syncs(disk_folder(), max(scale, 0.1)),
        *(
            lambda level=level, n=n: submits(n, size(2_000 if n == 1 else 20_000), level)
            for level in ("written", "synced")
            for n in SUBMITS_IN_FLIGHT
        ),
        lambda: disk_syncs(disk_folder(), max(scale, 0.1)),
        *(lambda n=n: delivery(n, size(6_000)) for n in WORKERS),
        lambda: trio_echo(size(10_000)),
    ]


def step_costs(scale: float, say: Callable[[str], None]) -> list[StepCost]:
    """Up to a million open executions in a full run, each number in a process of its own."""
    costs: list[StepCost] = []
    for full in OPEN:
        executions = max(int(full * scale), OPEN[0] // 10)
        command = [sys.executable, "-m", "benchmarks.engine", "--open", str(executions), "--json"]
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        shown = json.loads(ended.stdout)
        costs.append(msgspec.convert(shown[0], StepCost))
        say(f"a task through the engine beside {executions:,} open ones: p50 {costs[-1].step.p50_us:.0f} us")
    return costs


def run(scale: float, connections: int, say: Callable[[str], None]) -> dict[str, object]:
    """Measure everything and return it as a document."""
    rows: list[Figures] = []
    for measure in plan(scale):
        rows.append(measure())
        say(f"{rows[-1].name}: p50 {rows[-1].p50_us:.0f} us, {rows[-1].rate:,.0f}/s")
    say(f"memory of {connections:,} idle connections")
    idle = idle_connection_bytes(connections)
    echoes = [row.p50_us for row in rows if row.name == "bare trio echo"]
    floor = sum(echoes) / len(echoes)
    return {
        "machine": {"python": platform.python_version(), "system": platform.platform()},
        "floor_p50_us": floor,
        "figures": [{**asdict(row), "ratio": row.p50_us / floor} for row in rows],
        "idle_connection_bytes": idle,
        "step_costs": [asdict(cost) for cost in step_costs(scale, say)],
    }


def table(document: dict[str, object]) -> Table:
    """The document for eyes."""
    view = Table(title="latency and throughput, this run")
    view.add_column("measurement")
    for heading in ("p50 us", "p99 us", "per second", "p50 / bare trio echo"):
        view.add_column(heading, justify="right")
    figures = document["figures"]
    assert isinstance(figures, list)
    for row in figures:
        view.add_row(
            row["name"], f"{row['p50_us']:,.0f}", f"{row['p99_us']:,.0f}", f"{row['rate']:,.0f}", f"{row['ratio']:.2f}"
        )
    view.caption = f"an idle connection costs the server {document['idle_connection_bytes']:,.0f} bytes"
    return view


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a tenth of the sizes, for a first look")
    size.add_argument("--smallest", action="store_true", help="the smallest sizes, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    arguments = parser.parse_args()
    scale, connections = (1.0, 1_000)
    if arguments.quick:
        scale, connections = (0.1, 100)
    elif arguments.smallest:
        scale, connections = (0.0, 20)
    began = time.monotonic()
    document = run(scale, connections, lambda line: print(line, file=sys.stderr, flush=True))
    console = Console()
    console.print(table(document))
    console.print(step_table(msgspec.convert(document["step_costs"], list[StepCost])))
    console.print(f"measured in {time.monotonic() - began:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
