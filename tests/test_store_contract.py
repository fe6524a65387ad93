"""Every store does the same, step by step, as a plain dict."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from tests.helpers.store_machine import StoreMachine, Table

from zapserver.store import Batch, Durability, Medium, MemoryStore, SqliteStore, Store

OPENERS = ("memory", "sqlite")


def opener(kind: str, folder: Path) -> Callable[[bool], Store]:
    """Opens the same store each time."""
    if kind == "memory":
        medium = Medium()
        return lambda _: MemoryStore(Table, medium)
    path = folder / "org" / "namespace.db"

    def opened(beside_another: bool) -> Store:
        if beside_another:
            # Somebody removed the lock file of a running server; only the epoch is left to fence it.
            path.with_name("namespace.db.lock").unlink()
        return SqliteStore(path, Table)

    return opened


class MemoryMachine(StoreMachine):
    def opener(self) -> Callable[[bool], Store]:
        return opener("memory", Path())


class SqliteMachine(StoreMachine):
    def opener(self) -> Callable[[bool], Store]:
        self.folder = Path(tempfile.mkdtemp())
        return opener("sqlite", self.folder)

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.folder)


# Opening a file with its syncs takes some milliseconds, so there are fewer of them.
MemoryMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
SqliteMachine.TestCase.settings = settings(max_examples=10, stateful_step_count=40, deadline=None)
TestMemory = pytest.mark.timeout(240)(MemoryMachine.TestCase)
TestSqlite = pytest.mark.timeout(240)(SqliteMachine.TestCase)


@pytest.fixture(params=OPENERS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return opener(request.param, tmp_path)(False)


def put(table: Table, *records: tuple[tuple[str | int, ...], bytes]) -> Batch:
    batch = Batch()
    for key, value in records:
        batch.put(table, key, value)
    return batch


def test_one_key_in_two_tables_is_two_records(store: Store) -> None:
    store.commit(put(Table.HISTORY, (("a",), b"1")))
    assert store.get(Table.EXECUTIONS, ("a",)) is None
    store.commit(put(Table.EXECUTIONS, (("a",), b"2")))
    assert store.get(Table.HISTORY, ("a",)) == b"1"
    store.close()


def test_the_last_word_of_a_batch_on_a_key_counts(store: Store) -> None:
    batch = put(Table.HISTORY, (("a",), b"1"), (("a",), b"2"), (("b",), b"1"))
    batch.delete(Table.HISTORY, ("b",))
    batch.absorb(put(Table.HISTORY, (("c",), b"3")))
    store.commit(batch)
    assert list(store.scan(Table.HISTORY)) == [(("a",), b"2"), (("c",), b"3")]
    store.close()


def test_a_scan_goes_on_through_commits_and_can_be_left(store: Store) -> None:
    store.commit(put(Table.HISTORY, *(((number,), b"old") for number in range(600))))
    scan = store.scan(Table.HISTORY)
    assert next(scan) == ((0,), b"old")
    change = put(Table.HISTORY, ((1,), b"changed"), ((599,), b"new"))
    change.delete(Table.HISTORY, (598,))
    store.commit(change)
    rest = list(scan)
    # Where the scan had read already it may show either; what nobody touched must be there, in order, once.
    assert [key for key, _ in rest if key not in ((598,),)] == [(number,) for number in range(1, 600) if number != 598]
    next(store.scan(Table.HISTORY, reverse=True))
    store.commit(put(Table.HISTORY, ((0,), b"no reader in the way")))
    store.close()


def test_a_table_of_another_store_is_refused_before_anything_is_kept(store: Store) -> None:
    import enum

    class Other(enum.StrEnum):
        QUEUES = "queues"

    batch = put(Table.HISTORY, (("a",), b"1"))
    batch.put(Other.QUEUES, ("a",), b"1")
    with pytest.raises(ValueError, match="no table 'queues': this store was opened with executions, history"):
        store.commit(batch)
    assert store.count(Table.HISTORY) == 0
    for read in (lambda: store.get(Other.QUEUES, ()), lambda: list(store.scan(Other.QUEUES))):
        with pytest.raises(ValueError, match="no table 'queues'"):
            read()
    store.close()


def test_a_record_above_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zapserver.store.interface.VALUE_BYTES_MAX", 100)
    put(Table.HISTORY, ((), bytes(100)))
    with pytest.raises(ValueError, match=r"a record of 101 bytes for history .* at most 100"):
        put(Table.HISTORY, ((), bytes(101)))


def test_each_store_says_how_durable_it_is(tmp_path: Path) -> None:
    assert MemoryStore(Table).durability is Durability.MEMORY
    store = SqliteStore(tmp_path / "a.db", Table)
    assert store.durability is Durability.SYNCED
    store.close()
