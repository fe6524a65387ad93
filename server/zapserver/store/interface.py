"""What every store does: atomic batches from one fenced owner, ordered scans, snapshots.

A store keeps the records of one (org, namespace). A record is bytes, encoded by whoever keeps it, under a key in a
named table; the tables are the members of one `StrEnum`, given when the store is opened. Nothing here waits for
anything but the disk: no event loop. Reads come from one thread at a time and commits from one thread at a
time, which may be two different threads.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from zapserver.store.errors import Damaged
from zapserver.store.keys import Key, encode_key

VALUE_BYTES_MAX = 64 * 2**20
"""Of one record: six frames of the largest size, and far below what SQLite can hold."""


class Durability(enum.IntEnum):
    """How far a commit has come when it returns."""

    MEMORY = 0
    """Gone with the process."""
    WRITTEN = 1
    """With the operating system: survives `kill -9`, not the loss of power."""
    SYNCED = 2
    """On the disk."""


class Batch:
    """Puts and deletes that are kept together or not at all. The last word on a key counts."""

    __slots__ = ("changes", "size_bytes")

    def __init__(self) -> None:
        self.changes: dict[tuple[str, bytes], bytes | None] = {}
        """By table and encoded key: the new value, or None for a delete."""
        self.size_bytes = 0
        """What it holds at most, for bounds."""

    def put(self, table: enum.StrEnum, key: Key, value: bytes) -> None:
        if len(value) > VALUE_BYTES_MAX:
            raise ValueError(f"a record of {len(value)} bytes for {table} {key}: at most {VALUE_BYTES_MAX}")
        encoded = encode_key(key)
        # The exact str, which hashes and binds faster than a member.
        self.changes[table._value_, encoded] = value
        self.size_bytes += len(encoded) + len(value)

    def delete(self, table: enum.StrEnum, key: Key) -> None:
        """A key that does not exist is fine."""
        encoded = encode_key(key)
        self.changes[table._value_, encoded] = None
        self.size_bytes += len(encoded)

    def absorb(self, later: Batch) -> None:
        """Make this one do what it does now and then what `later` does."""
        self.changes.update(later.changes)
        self.size_bytes += later.size_bytes

    def __len__(self) -> int:
        return len(self.changes)


class Reader(Protocol):
    """What can be read, from a store or from a snapshot of it."""

    def get(self, table: enum.StrEnum, key: Key) -> bytes | None:
        """The record, or None. Raises `Damaged`."""

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
        """The records whose keys begin with `prefix`, from `start` (included) up to `end` (not), in order.

        Damaged records are left out and appended to `damaged`; without such a list the first one raises `Damaged`.
        A scan holds nothing open: what is committed while it runs may be seen or not, except in a snapshot.
        """

    def count(self, table: enum.StrEnum) -> int:
        """How many records the table has, damaged ones too. Reads the whole table."""


class Store(Reader, Protocol):
    """The records of one namespace, in the hands of one owner."""

    @property
    def epoch(self) -> int:
        """Grows with every opening and may with `recover`; a commit of an owner with an older one raises `Fenced`."""

    @property
    def durability(self) -> Durability:
        """The most that a commit can reach."""

    def commit(self, batch: Batch, durability: Durability = Durability.SYNCED) -> None:
        """Keep all of `batch` or nothing; return once `durability`, or the store's own if less, is reached."""

    def snapshot(self) -> AbstractContextManager[Reader]:
        """The records as they are now, whatever is committed meanwhile. Close it soon: it keeps old data alive."""

    def recover(self) -> None:
        """After a failed commit: prove that commits work again, and make sure that the failed one stays undone."""

    def close(self) -> None:
        """Let go of everything. Closing twice is fine; anything else afterwards raises `Closed`."""


def check_table(table: str, names: frozenset[str]) -> None:
    """A table that the store was not opened with is the caller's mistake, and so no `StoreError`."""
    if table not in names:
        raise ValueError(f"no table {str(table)!r}: this store was opened with {', '.join(sorted(names))}")
