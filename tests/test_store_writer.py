"""Group commit: order, grouping, bounds, failures; and a process that is killed while it writes."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event, get_ident

import pytest
from tests.helpers.store_machine import Table
from tests.helpers.store_writer import RECORDS
from tests.helpers.store_writer import Table as Numbers

from zapserver.store import (
    Batch,
    Closed,
    DiskFull,
    Durability,
    GroupCommit,
    MemoryStore,
    QueueFull,
    SqliteStore,
    StoreError,
)

ROOT = Path(__file__).parent.parent
Outcome = tuple[int, StoreError | None]


class SlowStore(MemoryStore):
    """Commits one at a time, when it is told to, and fails when it is told to."""

    def __init__(self) -> None:
        super().__init__(Table)
        self.begun: SimpleQueue[tuple[int, Durability]] = SimpleQueue()
        self.go: SimpleQueue[Exception | None] = SimpleQueue()
        self.recoveries: SimpleQueue[Exception | None] = SimpleQueue()

    def commit(self, batch: Batch, durability: Durability = Durability.SYNCED) -> None:
        self.begun.put((len(batch), durability))
        error = self.go.get()
        if error is not None:
            raise error
        super().commit(batch, durability)

    def recover(self) -> None:
        error = None if self.recoveries.empty() else self.recoveries.get()
        if error is not None:
            raise error


class Owner:
    """The owner's thread: runs what it is given, and remembers outcomes in their order."""

    def __init__(self, store: SlowStore, queue_bytes_max: int = 2**20) -> None:
        self.store = store
        self.soon: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.writer = GroupCommit(store, call_soon=self.soon.put, queue_bytes_max=queue_bytes_max)
        self.outcomes: list[Outcome] = []
        self.recovered: list[StoreError | None] = []

    def submit(self, number: int, durability: Durability = Durability.SYNCED, size: int = 1) -> None:
        def done(error: StoreError | None) -> None:
            assert get_ident() == self.thread
            self.outcomes.append((number, error))

        self.thread = get_ident()
        self.writer.submit(batch_of(number, size), done, durability)

    def run_one(self) -> None:
        self.soon.get(timeout=20)()


def batch_of(number: int, size: int = 1) -> Batch:
    batch = Batch()
    batch.put(Table.HISTORY, (number,), bytes(size))
    return batch


@contextmanager
def owner(queue_bytes_max: int = 2**20) -> Iterator[Owner]:
    one = Owner(SlowStore(), queue_bytes_max)
    try:
        yield one
    finally:
        for _ in range(20):
            one.store.go.put(None)
        one.writer.close()


def test_what_arrives_during_a_commit_goes_into_the_next() -> None:
    with owner() as one:
        one.submit(0)
        assert one.store.begun.get(timeout=20) == (1, Durability.SYNCED)
        for number in range(1, 6):
            one.submit(number)
        one.store.go.put(None)
        assert one.store.begun.get(timeout=20) == (5, Durability.SYNCED)
        assert one.outcomes == [], "nothing is called in the writer's thread"
        one.run_one()
        assert one.outcomes == [(0, None)]
        one.store.go.put(None)
        one.run_one()
        assert one.outcomes == [(number, None) for number in range(6)]
        assert (one.writer.batches, one.writer.transactions, one.writer.queued_bytes) == (6, 2, 0)


def test_a_group_is_as_durable_as_its_most_demanding_member() -> None:
    with owner() as one:
        one.submit(0, Durability.WRITTEN)
        assert one.store.begun.get(timeout=20) == (1, Durability.WRITTEN)
        one.submit(1, Durability.WRITTEN)
        one.submit(2, Durability.SYNCED)
        one.submit(3, Durability.WRITTEN)
        one.store.go.put(None)
        assert one.store.begun.get(timeout=20) == (3, Durability.SYNCED)


def test_a_failure_fails_its_group_and_all_that_follow_until_recovery() -> None:
    with owner() as one:
        one.submit(0)
        one.store.begun.get(timeout=20)
        one.submit(1)
        full = DiskFull("full")
        one.store.go.put(full)
        one.run_one()
        assert one.outcomes == [(0, full)]
        one.run_one()
        assert one.outcomes == [(0, full), (1, full)], "what was queued behind it fails without being tried"
        assert one.store.begun.empty()
        for _ in range(2):
            with pytest.raises(DiskFull) as caught:
                one.submit(2)
            assert caught.value is one.writer.failure is full
        still_full = DiskFull("still full")
        one.store.recoveries.put(still_full)
        one.writer.recover(one.recovered.append)
        one.run_one()
        assert one.recovered == [one.writer.failure] == [still_full]
        one.writer.recover(one.recovered.append)
        one.run_one()
        assert one.recovered == [still_full, None]
        one.submit(3)
        one.store.go.put(None)
        one.run_one()
        assert one.outcomes[2:] == [(3, None)]
        assert [key for key, _ in one.store.scan(Table.HISTORY)] == [(3,)]
        assert one.writer.queued_bytes == 0


def test_a_batch_submitted_before_the_owner_knows_of_a_failure_is_not_written() -> None:
    with owner() as one:
        one.submit(0)
        one.store.go.put(DiskFull("full"))
        one.store.begun.get(timeout=20)
        failed = one.soon.get(timeout=20)
        one.submit(1)
        failed()
        one.run_one()
        assert [number for number, error in one.outcomes if isinstance(error, DiskFull)] == [0, 1]


def test_a_mistake_in_the_store_reaches_the_caller() -> None:
    with owner() as one:
        one.submit(0)
        one.store.go.put(RuntimeError("a bug"))
        one.run_one()
        ((_, error),) = one.outcomes
        assert type(error) is StoreError
        assert str(error) == "the store writer failed: RuntimeError('a bug'): please report it"


def test_the_queue_is_bounded_and_takes_again_when_it_has_room() -> None:
    with owner(queue_bytes_max=10_000) as one:
        one.submit(0, size=50_000)
        one.store.begun.get(timeout=20)
        with pytest.raises(QueueFull, match="bytes wait for the disk, the limit is 10000: try again later"):
            one.submit(1)
        one.store.go.put(None)
        one.run_one()
        taken = 0

        def fill() -> None:
            nonlocal taken
            while True:
                one.submit(taken, size=0)
                taken += 1

        with pytest.raises(QueueFull):
            fill()
        assert 1 < taken < 10, "empty batches count too"


def test_groups_end_at_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zapserver.store.writer.GROUP_BYTES_MAX", 5_000)
    with owner() as one:
        one.submit(0)
        one.store.begun.get(timeout=20)
        for number in range(1, 6):
            one.submit(number, size=1_500)
        for _ in range(4):
            one.store.go.put(None)
        assert [one.store.begun.get(timeout=20)[0] for _ in range(3)] == [2, 2, 1]


def test_close_commits_what_was_submitted() -> None:
    one = Owner(SlowStore())
    for number in range(3):
        one.submit(number)
    for _ in range(3):
        one.store.go.put(None)
    one.writer.close()
    one.writer.close()
    while not one.soon.empty():
        one.run_one()
    assert one.outcomes == [(0, None), (1, None), (2, None)]
    with pytest.raises(Closed):
        one.submit(3)
    with pytest.raises(Closed):
        one.writer.recover(one.recovered.append)


def test_a_later_batch_of_a_group_wins(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "a.db", Table)
    done = Event()
    writer = GroupCommit(store, call_soon=lambda function: function())

    def seen(number: int, error: StoreError | None) -> None:
        assert error is None
        if number == 199:
            done.set()

    for number in range(200):
        batch = batch_of(0, number)
        if number % 2:
            batch.delete(Table.HISTORY, (1,))
        else:
            batch.put(Table.HISTORY, (1,), b"")
        writer.submit(batch, partial(seen, number))
    assert done.wait(20)
    assert list(store.scan(Table.HISTORY)) == [((0,), bytes(199))]
    assert writer.transactions < writer.batches == 200
    writer.close()
    store.close()


@pytest.mark.timeout(240)  # some thousand syncs, on whatever disk the tests run on
@pytest.mark.parametrize("in_flight", [1, 20])
def test_kill_9_loses_nothing_that_was_said_to_be_kept(tmp_path: Path, in_flight: int) -> None:
    path = tmp_path / "numbers.db"
    seed = random.randrange(2**32)
    print("seed", seed)
    source = random.Random(seed)
    said = 0
    for _ in range(6):
        writer = [sys.executable, str(ROOT / "tests/helpers/store_writer.py"), str(path), str(in_flight)]
        with subprocess.Popen(writer, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(source.randrange(1, 250)):
                said = int(process.stdout.readline())
            process.kill()
            said = max([said, *(int(line) for line in process.stdout.read().splitlines(keepends=True) if "\n" in line)])
        store = SqliteStore(path, Numbers)
        keys = [key for key, _ in store.scan(Numbers.NUMBERS)]
        last = int(keys[-1][0])
        assert last >= said, "a number that was said is gone"
        for number in range(1, last + 1):
            parts = range(1, RECORDS, 2) if number <= last - 100 else range(RECORDS)
            records = list(store.scan(Numbers.NUMBERS, prefix=(number,)))
            assert records == [((number, part), b"%d" % number * 20) for part in parts], "a batch is there in part"
        assert len(keys) == sum(2 if number <= last - 100 else 4 for number in range(1, last + 1))
        assert store.verify().is_good
        store.close()
