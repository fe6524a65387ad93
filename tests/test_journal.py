"""Nobody hears of what is not kept: the order of changes, commits and what leaves."""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zapserver.journal import Ahead, Journal
from zapserver.store import Batch, DiskFull, Durability, MemoryStore, QueueFull, StoreError

SYNCED, WRITTEN = Durability.SYNCED, Durability.WRITTEN


class Tables(enum.StrEnum):
    THINGS = "things"
    OTHERS = "others"


OnDone = Callable[[StoreError | None], None]


class Writer:
    """Commits when it is told to."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.waiting: list[tuple[Batch, OnDone, Durability]] = []
        self.recovering: list[OnDone] = []

    def submit(self, batch: Batch, on_done: OnDone, durability: Durability = SYNCED) -> None:
        self.waiting.append((batch, on_done, durability))

    def recover(self, on_done: OnDone) -> None:
        self.recovering.append(on_done)

    def commit(self) -> None:
        batch, on_done, durability = self.waiting.pop(0)
        self._store.commit(batch, durability)
        on_done(None)

    def fail(self, error: StoreError) -> None:
        failed, self.waiting = self.waiting, []
        for _, on_done, _ in failed:
            on_done(error)


class Case:
    def __init__(self, queue_bytes_max: int = 1_000_000) -> None:
        self.store = MemoryStore(Tables)
        self.writer = Writer(self.store)
        self.journal = Journal(self.store, self.writer, queue_bytes_max=queue_bytes_max)
        self.heard: list[str] = []
        self.failed: list[tuple[str, type[StoreError]]] = []
        self.voided = 0
        self.journal.on_failure = self._void

    def _void(self) -> None:
        self.voided += 1

    def put(self, key: int, value: bytes = b"x", durability: Durability = SYNCED) -> None:
        batch = Batch()
        batch.put(Tables.THINGS, (key,), value)
        self.journal.add(batch, durability)

    def say(self, word: str) -> None:
        self.journal.send(partial(self.heard.append, word), lambda error: self.failed.append((word, type(error))))


def test_what_was_decided_leaves_after_its_commit_and_in_order() -> None:
    case = Case()
    case.say("nothing is decided yet")
    case.put(1)
    case.say("one")
    case.journal.flush()
    case.say("still one")
    case.put(2)
    case.say("two")
    case.journal.flush()
    assert case.heard == ["nothing is decided yet"]
    case.writer.commit()
    assert case.heard == ["nothing is decided yet", "one", "still one"]
    case.writer.commit()
    assert case.heard[3:] == ["two"]
    assert case.journal.is_settled


def test_everything_between_two_flushes_is_one_commit_of_the_highest_level() -> None:
    case = Case()
    for key, level in ((1, WRITTEN), (2, SYNCED), (3, WRITTEN)):
        case.put(key, durability=level)
    case.journal.flush()
    case.put(4, durability=WRITTEN)
    case.journal.flush()
    case.journal.flush()
    assert [(len(batch), level) for batch, _, level in case.writer.waiting] == [(3, SYNCED), (1, WRITTEN)]


def test_what_waits_for_the_disk_is_counted_until_it_is_kept_or_lost() -> None:
    case = Case()
    assert case.journal.queued_bytes == 0
    for key in (1, 2):
        case.put(key, b"x" * 100)
        case.journal.flush()
    assert case.journal.queued_bytes > 200
    case.writer.commit()
    assert 100 < case.journal.queued_bytes < 200
    case.writer.fail(DiskFull("no room"))
    assert case.journal.queued_bytes == 0


def test_the_level_is_that_of_the_latest_commit_which_takes_along_what_came_before() -> None:
    case = Case()
    assert case.journal.level is SYNCED, "what a store was opened with is on the disk"
    case.put(1, durability=WRITTEN)
    assert case.journal.level is WRITTEN
    case.journal.flush()
    assert case.journal.level is WRITTEN
    case.writer.commit()
    assert case.journal.level is WRITTEN
    case.put(2, durability=Durability.MEMORY)
    assert case.journal.level is Durability.MEMORY
    case.put(3)
    assert case.journal.level is SYNCED
    case.journal.flush()
    case.put(4, durability=WRITTEN)
    case.journal.flush()
    case.writer.fail(DiskFull("no room"))
    case.journal.recover(lambda error: None)
    case.writer.recovering.pop()(None)
    assert case.journal.level is SYNCED, "a store that is well again has proven it by a synced commit"


def test_the_reader_sees_what_is_on_its_way_before_and_while_and_after_it_is_kept() -> None:
    case = Case()
    case.put(1, b"old")
    case.journal.flush()
    case.writer.commit()
    case.put(1, b"new")
    assert case.journal.reader.get(Tables.THINGS, (1,)) == b"new"
    assert case.store.get(Tables.THINGS, (1,)) == b"old"
    case.journal.flush()
    case.put(1, b"newest")
    case.journal.flush()
    case.writer.commit()
    assert case.journal.reader.get(Tables.THINGS, (1,)) == b"newest", "an older commit uncovered what came later"
    case.writer.commit()
    assert case.store.get(Tables.THINGS, (1,)) == case.journal.reader.get(Tables.THINGS, (1,)) == b"newest"


def test_a_failed_commit_takes_everything_after_it_along_and_says_so_once() -> None:
    case = Case()
    case.put(1)
    case.say("one")
    case.journal.flush()
    case.put(2)
    case.say("two")
    case.journal.flush()
    case.put(3)
    case.say("three")
    case.writer.fail(DiskFull("no room"))
    assert case.heard == []
    assert case.failed == [("one", DiskFull), ("two", DiskFull), ("three", DiskFull)]
    assert case.voided == 1
    assert case.journal.reader.get(Tables.THINGS, (1,)) is None
    for _ in range(2):
        with pytest.raises(DiskFull):
            case.journal.check_ready()
    case.journal.flush()
    assert case.writer.waiting == []


def test_it_goes_on_once_the_store_has_recovered() -> None:
    case = Case()
    case.put(1)
    case.journal.flush()
    case.writer.fail(DiskFull("no room"))
    told: list[StoreError | None] = []
    case.journal.recover(told.append)
    case.writer.recovering.pop()(DiskFull("still none"))
    assert isinstance(told[0], DiskFull)
    assert case.journal.failure is not None
    case.journal.recover(told.append)
    case.writer.recovering.pop()(None)
    case.journal.check_ready()
    case.put(2)
    case.say("two")
    case.journal.flush()
    case.writer.commit()
    assert case.heard == ["two"]


def test_a_disk_that_is_too_slow_becomes_a_refusal_and_not_memory() -> None:
    case = Case(queue_bytes_max=1_000)
    case.put(1, bytes(2_000))
    case.journal.check_ready()
    case.journal.flush()
    with pytest.raises(QueueFull, match="wait for the disk, the limit is 1000"):
        case.journal.check_ready()
    case.writer.commit()
    case.journal.check_ready()


def test_without_a_writer_everything_is_kept_at_once() -> None:
    store = MemoryStore(Tables)
    journal = Journal(store)
    batch = Batch()
    batch.put(Tables.THINGS, (1,), b"x")
    journal.add(batch, SYNCED)
    heard: list[int] = []
    journal.send(lambda: heard.append(1))
    assert heard == [1]
    assert store.get(Tables.THINGS, (1,)) == b"x"


KEYS = st.tuples(st.sampled_from("ab"), st.integers(0, 9))
CHANGES = st.lists(st.tuples(st.sampled_from(list(Tables)), KEYS, st.none() | st.binary(max_size=2)), max_size=30)


@given(
    stored=CHANGES,
    ahead=CHANGES,
    prefix=st.sampled_from([(), ("a",), ("b", 3)]),
    start=st.none() | KEYS,
    end=st.none() | KEYS,
    reverse=st.booleans(),
    limit=st.none() | st.integers(0, 12),
)
def test_a_scan_ahead_is_the_scan_of_the_store_to_come(
    stored: list[tuple[Tables, tuple[str, int], bytes | None]],
    ahead: list[tuple[Tables, tuple[str, int], bytes | None]],
    prefix: tuple[str | int, ...],
    start: tuple[str, int] | None,
    end: tuple[str, int] | None,
    reverse: bool,
    limit: int | None,
) -> None:
    present, future = MemoryStore(Tables), MemoryStore(Tables)
    present.commit(_batch(stored))
    future.commit(_batch(stored))
    later = _batch(ahead)
    future.commit(later)
    reader = Ahead(present)
    reader.note(later, "owner")
    for table in Tables:
        seen = reader.scan(table, prefix=prefix, start=start, end=end, reverse=reverse, limit=limit)
        wanted = future.scan(table, prefix=prefix, start=start, end=end, reverse=reverse, limit=limit)
        assert list(seen) == list(wanted)
        for key, _ in future.scan(table):
            assert reader.get(table, key) == future.get(table, key)
    present.commit(later)
    reader.forget(later, "owner")
    assert not any(reader._changes.values())


def _batch(changes: list[tuple[Tables, tuple[str, int], bytes | None]]) -> Batch:
    batch = Batch()
    for table, key, value in changes:
        if value is None:
            batch.delete(table, key)
        else:
            batch.put(table, key, value)
    return batch
