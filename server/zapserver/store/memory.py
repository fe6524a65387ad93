"""A store in memory: the semantics of the others, and nothing left when the process ends."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from threading import Lock

from zapserver.store.errors import Closed, Damaged, Fenced
from zapserver.store.interface import Batch, Durability, check_table
from zapserver.store.keys import Key, decode_key, encode_key, key_range
from zapserver.store.ordered import OrderedKeys

SCAN_RECORDS = 256
"""A scan takes as many at a time, so that one that is left in the middle holds nothing."""


class Medium:
    """What stands for the disk: it outlives the stores that open it, and knows its latest owner."""

    def __init__(self) -> None:
        self.epoch = 0
        self.tables: dict[str, _Table] = {}
        self.lock = Lock()


class _Table:
    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.keys = OrderedKeys()


class _MemoryReader:
    def __init__(self, tables: type[enum.StrEnum], medium: Medium) -> None:
        self._tables = tables
        self._names = frozenset(table.value for table in tables)
        self._medium = medium
        self._is_closed = False

    def get(self, table: enum.StrEnum, key: Key) -> bytes | None:
        """As `Reader.get`."""
        return self._table(table).values.get(encode_key(key))

    def scan(
        self,
        table: enum.StrEnum,
        *,
        prefix: Key = (),
        start: Key | None = None,
        end: Key | None = None,
        reverse: bool = False,
        limit: int | None = None,
        damaged: list[Damaged] | None = None,
    ) -> Iterator[tuple[Key, bytes]]:
        """As `Reader.scan`; nothing is ever damaged here."""
        low, high = key_range(prefix, start, end)
        left = limit
        while left is None or left > 0:
            page = self._page(self._table(table), low, high, reverse, SCAN_RECORDS if left is None else left)
            for encoded, value in page:
                yield decode_key(encoded), value
            if len(page) < SCAN_RECORDS:
                return
            if left is not None:
                left -= len(page)
            if reverse:
                high = page[-1][0]
            else:
                low = page[-1][0] + b"\0"

    def count(self, table: enum.StrEnum) -> int:
        """As `Reader.count`, without the reading."""
        return len(self._table(table).values)

    def _page(self, table: _Table, low: bytes, high: bytes, reverse: bool, size: int) -> list[tuple[bytes, bytes]]:
        if low >= high:
            return []
        with self._medium.lock:
            keys = table.keys.between_reversed(low, high) if reverse else table.keys.between(low, high)
            return [(key, table.values[key]) for key in islice(keys, min(size, SCAN_RECORDS))]

    def _table(self, table: enum.StrEnum) -> _Table:
        if self._is_closed:
            raise Closed("this memory store or snapshot is closed: open another one")
        check_table(table, self._names)
        found = self._medium.tables.get(table.value)
        return _Table() if found is None else found


class MemoryStore(_MemoryReader):
    """A `Store` over a `Medium`, by default one of its own."""

    def __init__(self, tables: type[enum.StrEnum], medium: Medium | None = None) -> None:
        super().__init__(tables, medium or Medium())
        self._medium.epoch += 1
        self._epoch = self._medium.epoch

    @property
    def epoch(self) -> int:
        """As `Store.epoch`."""
        return self._epoch

    @property
    def durability(self) -> Durability:
        """Never more than `MEMORY`."""
        return Durability.MEMORY

    def commit(self, batch: Batch, durability: Durability = Durability.SYNCED) -> None:
        """As `Store.commit`."""
        self.recover()
        for name, _ in batch.changes:
            check_table(name, self._names)
        with self._medium.lock:
            for (name, key), value in batch.changes.items():
                table = self._medium.tables.get(name)
                if table is None:
                    table = self._medium.tables[name] = _Table()
                if value is None:
                    if table.values.pop(key, None) is not None:
                        table.keys.remove(key)
                else:
                    if key not in table.values:
                        table.keys.add(key)
                    table.values[key] = value

    @contextmanager
    def snapshot(self) -> Iterator[_MemoryReader]:
        """As `Store.snapshot`: a copy, which costs as much as there are records."""
        copy = Medium()
        with self._medium.lock:
            for name, table in self._medium.tables.items():
                copied = copy.tables[name] = _Table()
                copied.values.update(table.values)
                for key in table.keys.between(b"", b"\xff"):
                    copied.keys.add(key)
        reader = _MemoryReader(self._tables, copy)
        try:
            yield reader
        finally:
            reader._is_closed = True

    def recover(self) -> None:
        """As `Store.recover`: only the end or a newer owner can stop a commit here."""
        if self._is_closed:
            raise Closed("this memory store is closed: open another one")
        if self._epoch != self._medium.epoch:
            raise Fenced("this memory store", self._epoch, self._medium.epoch)

    def close(self) -> None:
        """As `Store.close`."""
        self._is_closed = True
