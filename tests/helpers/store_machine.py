"""A store driven step by step beside a plain dict, with openings, snapshots and scans of every kind."""

from __future__ import annotations

import enum
from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice
from typing import TypeAlias

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from zapserver.store import Batch, Closed, Durability, Fenced, Key, Reader, Store


class Table(enum.StrEnum):
    EXECUTIONS = "executions"
    HISTORY = "history"


Model: TypeAlias = dict[tuple[Table, Key], bytes]

tables = st.sampled_from(Table)
parts = (
    st.sampled_from(["", "a", "b", "a\0", "ab", "é", "\U0001f600"]) | st.integers(-3, 3) | st.sampled_from([255, 256])
)
keys = st.lists(parts, max_size=3).map(tuple)
changes = st.lists(st.tuples(tables, keys, st.none() | st.binary(max_size=20)), max_size=30)
bounds = st.none() | keys


def sortable(key: Key) -> tuple[tuple[int, str | int], ...]:
    """What Python sorts in the order that keys have: integers before texts."""
    return tuple((isinstance(part, str), part) for part in key)


def expected(
    model: Model, table: Table, prefix: Key, start: Key | None, end: Key | None, reverse: bool, limit: int | None
) -> list[tuple[Key, bytes]]:
    """What a scan must yield, said in the plainest way."""
    found = [
        (key, value)
        for (its_table, key), value in model.items()
        if its_table is table
        and key[: len(prefix)] == prefix
        and (start is None or sortable(key) >= sortable(start))
        and (end is None or sortable(key) < sortable(end))
    ]
    found.sort(key=lambda record: sortable(record[0]), reverse=reverse)
    return list(islice(found, limit))


class StoreMachine(RuleBasedStateMachine):
    """Subclasses say what a store is opened on: `medium()` once, `opened(medium)` for each opening."""

    snapshots: Bundle[tuple[ExitStack, Reader, Model]] = Bundle("snapshots")
    fenced: Bundle[Store] = Bundle("fenced")

    def __init__(self) -> None:
        super().__init__()
        self.open = self.opener()
        self.store = self.open(False)
        self.model: Model = {}
        self.kept = ExitStack()

    def opener(self) -> Callable[[bool], Store]:
        """A function that opens the same store each time; its argument: the owner before has not closed it."""
        raise NotImplementedError

    @rule(changes=changes, durability=st.sampled_from(Durability))
    def commit(self, changes: list[tuple[Table, Key, bytes | None]], durability: Durability) -> None:
        batch = Batch()
        for table, key, value in changes:
            if value is None:
                batch.delete(table, key)
                self.model.pop((table, key), None)
            else:
                batch.put(table, key, value)
                self.model[table, key] = value
        self.store.commit(batch, durability)

    @rule()
    def commit_many(self) -> None:
        """More than any page of a scan or block of keys holds, with every size of statement."""
        batch = Batch()
        for number in range(1500):
            batch.put(Table.HISTORY, ("many", number), b"%d" % number)
            self.model[Table.HISTORY, ("many", number)] = b"%d" % number
        self.store.commit(batch)

    @rule(step=st.integers(1, 3))
    def delete_many(self, step: int) -> None:
        batch = Batch()
        for number in range(0, 1500, step):
            batch.delete(Table.HISTORY, ("many", number))
            self.model.pop((Table.HISTORY, ("many", number)), None)
        self.store.commit(batch)

    @rule(table=tables, key=keys)
    def get(self, table: Table, key: Key) -> None:
        assert self.store.get(table, key) == self.model.get((table, key))

    @rule(
        table=tables,
        prefix=st.just(()) | keys,
        start=bounds,
        end=bounds,
        reverse=st.booleans(),
        limit=st.none() | st.integers(0, 5) | st.sampled_from([255, 256, 257, 512]),
    )
    def scan(
        self, table: Table, prefix: Key, start: Key | None, end: Key | None, reverse: bool, limit: int | None
    ) -> None:
        found = self.store.scan(table, prefix=prefix, start=start, end=end, reverse=reverse, limit=limit)
        assert list(found) == expected(self.model, table, prefix, start, end, reverse, limit)

    @rule(target=snapshots)
    def take_snapshot(self) -> tuple[ExitStack, Reader, Model]:
        stack = ExitStack()
        self.kept.push(stack)
        return stack, stack.enter_context(self.store.snapshot()), dict(self.model)

    @rule(snapshot=snapshots, table=tables, reverse=st.booleans())
    def read_snapshot(self, snapshot: tuple[ExitStack, Reader, Model], table: Table, reverse: bool) -> None:
        _, reader, model = snapshot
        records = expected(model, table, (), None, None, reverse, None)
        assert list(reader.scan(table, reverse=reverse)) == records
        assert reader.count(table) == len(records)
        for key, value in records[:3]:
            assert reader.get(table, key) == value

    @rule(snapshot=consumes(snapshots))
    def end_snapshot(self, snapshot: tuple[ExitStack, Reader, Model]) -> None:
        stack, reader, _ = snapshot
        stack.close()
        with pytest.raises(Closed):
            reader.count(Table.HISTORY)

    @rule()
    def reopen(self) -> None:
        before = self.store
        before.close()
        before.close()
        self.store = self.open(False)
        assert self.store.epoch > before.epoch
        uses: list[Callable[[], object]] = [
            lambda: before.commit(Batch()),
            lambda: before.get(Table.HISTORY, ()),
            lambda: next(before.scan(Table.HISTORY)),
            before.recover,
        ]
        for use in uses:
            with pytest.raises(Closed):
                use()

    @rule(target=fenced)
    def newer_owner(self) -> Store:
        before, self.store = self.store, self.open(True)
        self.kept.callback(before.close)
        assert self.store.epoch > before.epoch
        return before

    @rule(store=fenced, key=keys)
    def commit_of_a_fenced_owner(self, store: Store, key: Key) -> None:
        batch = Batch()
        batch.put(Table.EXECUTIONS, key, b"from a stale owner")
        with pytest.raises(Fenced, match="newer owner"):
            store.commit(batch)
        with pytest.raises(Fenced, match="newer owner"):
            store.recover()

    @rule()
    def recover(self) -> None:
        self.store.recover()

    @invariant()
    def counts(self) -> None:
        for table in Table:
            assert self.store.count(table) == sum(its_table is table for its_table, _ in self.model)

    def teardown(self) -> None:
        self.kept.close()
        self.store.close()
