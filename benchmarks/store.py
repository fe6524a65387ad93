"""What group commit makes of the disk: synced batches a second beside the disk's own rate of syncs, in one run.

    python -m benchmarks.store [--folder DIR] [--seconds S]

A batch is what starting a task keeps: four records in three tables, about 600 bytes. The owner is a trio loop in its
own thread, as in the server. `--folder` chooses the disk. Each figure depends on the keys: ids that begin with the
time land on the same few pages of the tree, random ones on a page each.
"""

from __future__ import annotations

import argparse
import enum
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import trio
from benchmarks.floors import Figures, figures
from rich.console import Console
from rich.table import Table

from zapserver.store import Batch, Durability, GroupCommit, SqliteStore, Store, StoreError

IN_FLIGHT = (1, 8, 64, 512)
SYNC_BYTES = 4096
SWITCH_SECONDS = 0.0002
"""What the server would set: the time after which a busy thread lets another one in."""
BIG_RECORDS = 100_000


class Tables(enum.StrEnum):
    EXECUTIONS = "executions"
    ACTIVITIES = "activities"
    HISTORY = "history"


def batch_of(number: int, ordered: bool) -> Batch:
    """A started task."""
    random_id = f"{random.getrandbits(80):020x}"
    run_id = f"{number:012x}{random_id}" if ordered else f"{random.getrandbits(48):012x}{random_id}"
    batch = Batch()
    batch.put(Tables.EXECUTIONS, (run_id,), bytes(150))
    batch.put(Tables.ACTIVITIES, (run_id, "1"), bytes(110))
    batch.put(Tables.HISTORY, (run_id, 1), bytes(110))
    batch.put(Tables.HISTORY, (run_id, 2), bytes(70))
    return batch


def disk_syncs(folder: Path, seconds: float) -> Figures:
    """The floor: append 4 KiB and sync, one after the other."""
    durations: list[float] = []
    data = os.urandom(SYNC_BYTES)
    with (folder / "floor").open("ab", buffering=0) as file:
        began = time.perf_counter()
        while (start := time.perf_counter()) < began + seconds:
            file.write(data)
            os.fsync(file.fileno())
            durations.append(time.perf_counter() - start)
        elapsed = time.perf_counter() - began
    (folder / "floor").unlink()
    return figures("append 4 KiB + fsync", durations, elapsed)


def with_store(folder: Path, measure: Callable[[SqliteStore], Figures]) -> Figures:
    """A fresh file for each measurement."""
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        store = SqliteStore(Path(fresh) / "a.db", Tables)
        try:
            return measure(store)
        finally:
            store.close()


def inline(store: Store, seconds: float, ordered: bool) -> Figures:
    """Commits in the loop's own thread, which does nothing else meanwhile."""
    durations: list[float] = []
    began = time.perf_counter()
    while (start := time.perf_counter()) < began + seconds:
        store.commit(batch_of(len(durations), ordered))
        durations.append(time.perf_counter() - start)
    return figures(f"inline, {'ordered' if ordered else 'random'} ids", durations, time.perf_counter() - began)


def grouped(
    store: Store, seconds: float, ordered: bool, in_flight: int, durability: Durability = Durability.SYNCED
) -> Figures:
    """A closed loop of `in_flight` submitters; each submits again when its batch is kept."""
    return trio.run(_grouped, store, seconds, ordered, in_flight, durability)


async def _grouped(store: Store, seconds: float, ordered: bool, in_flight: int, durability: Durability) -> Figures:
    writer = GroupCommit(store, call_soon=trio.lowlevel.current_trio_token().run_sync_soon)
    durations: list[float] = []
    finished = trio.Event()
    began = time.perf_counter()
    open_loops = in_flight
    number = 0

    def submit() -> None:
        nonlocal number
        number += 1
        start = time.perf_counter()

        def done(error: StoreError | None) -> None:
            nonlocal open_loops
            if error is not None:
                raise error
            now = time.perf_counter()
            durations.append(now - start)
            if now < began + seconds:
                submit()
            else:
                open_loops -= 1
                if not open_loops:
                    finished.set()

        writer.submit(batch_of(number, ordered), done, durability)

    for _ in range(in_flight):
        submit()
    await finished.wait()
    elapsed = time.perf_counter() - began
    writer.close()
    per_commit = writer.batches / writer.transactions
    name = f"{in_flight} in flight, {'ordered' if ordered else 'random'} ids, {durability.name.lower()}"
    return figures(f"{name} ({per_commit:.1f} a commit)", durations, elapsed)


def reading(store: Store) -> Figures:
    """A scan over records such as recovery makes, each checked; the rate is records a second."""
    for first in range(0, BIG_RECORDS, 1000):
        batch = Batch()
        for number in range(first, first + 1000):
            batch.put(Tables.EXECUTIONS, (f"{number:032x}",), bytes(400))
        store.commit(batch, Durability.WRITTEN)
    began = time.perf_counter()
    read = sum(1 for _ in store.scan(Tables.EXECUTIONS))
    elapsed = time.perf_counter() - began
    return figures("scan of 100,000 records", [elapsed / read] * read, elapsed)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    arguments = parser.parse_args()
    seconds: float = arguments.seconds
    sys.setswitchinterval(SWITCH_SECONDS)
    view = Table(title=f"the store on {arguments.folder}, this run; fsync / a second is the floor")
    view.add_column("measurement")
    for heading in ("p50 us", "p99 us", "per second", "per second / floor beside it"):
        view.add_column(heading, justify="right")

    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="zaptasks-bench-") as name:
        folder = Path(name)
        rows: list[Callable[[SqliteStore], Figures]] = [
            *(lambda store, ordered=ordered: inline(store, seconds, ordered) for ordered in (True, False)),
            *(
                lambda store, n=n, ordered=ordered: grouped(store, seconds, ordered, n)
                for ordered in (True, False)
                for n in IN_FLIGHT
            ),
            *(lambda store, n=n: grouped(store, seconds, True, n, Durability.WRITTEN) for n in (1, 64)),
            reading,
        ]
        for measure in rows:
            # A shared disk changes by the second, so every figure has a floor of its own.
            floor = disk_syncs(folder, min(1.0, seconds))
            row = with_store(folder, measure)
            view.add_row(
                f"{row.name}",
                f"{row.p50_us:,.0f}",
                f"{row.p99_us:,.0f}",
                f"{row.rate:,.0f}",
                f"{row.rate / floor.rate:.2f} of {floor.rate:,.0f}",
            )
            print(row.name, f"p50 {row.p50_us:,.0f} us, {row.rate:,.0f}/s", file=sys.stderr, flush=True)
    Console().print(view)


if __name__ == "__main__":
    main()
