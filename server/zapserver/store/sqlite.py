"""A store in one SQLite file: write-ahead log, every commit synced, a checksum on every record.

Two connections: one that only commits, and one that only reads and so never waits for a sync. Anybody else
(`maintenance`, another process) may read the file at any time; only the owner writes records.
"""

from __future__ import annotations

import enum
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from zapserver.store import maintenance
from zapserver.store.connecting import connect, translated, translated_os_error
from zapserver.store.errors import Closed, Damaged, Fenced, Unavailable
from zapserver.store.folders import make_folder
from zapserver.store.interface import Batch, Durability, check_table
from zapserver.store.keys import Key, decode_key, encode_key, key_range
from zapserver.store.lock import OwnerLock
from zapserver.store.schema import check_version, migrate, record_checksum

Connect: TypeAlias = Callable[[Path], sqlite3.Connection]
"""How the store gets its connections; tests give one whose connections fail on demand."""

T = TypeVar("T")

PAGE_BYTES = 4096
"""What disks write at once. 1, 2, 8 and 16 KiB were within the noise of it (docs/decisions/0009)."""
CHECKPOINT_PAGES = 2000
"""The log is folded into the database every 8 MiB; the commit that does it takes longer, 1 in some hundreds."""
CACHE_BYTES = 8 * 2**20
"""Of each of the two connections: the inner pages of a file with a million records."""
SCAN_RECORDS = 256
"""A scan reads as many at a time, so that one that is left in the middle holds no read transaction."""

STATEMENT_RECORDS = (64, 16, 4, 1)
"""Records are written as many to a statement. The interpreter lock is let go and taken again for each statement, and
taking it from a busy event loop can cost a whole switch interval (sys.setswitchinterval, 5 ms by default)."""


def _put_statement(records: int) -> str:
    return (
        f"INSERT INTO records VALUES {','.join(['(?,?,?,?)'] * records)}"
        " ON CONFLICT (name, key) DO UPDATE SET value = excluded.value, checksum = excluded.checksum"
    )


def _delete_statement(records: int) -> str:
    return f"DELETE FROM records WHERE name = ? AND key IN ({','.join('?' * records)})"


_PUTS = [(count, _put_statement(count)) for count in STATEMENT_RECORDS]
_DELETES = [(count, _delete_statement(count)) for count in STATEMENT_RECORDS]


class _SqliteReader:
    """The reading half, over one connection."""

    def __init__(self, path: Path, tables: type[enum.StrEnum], connection: sqlite3.Connection) -> None:
        self.path = path
        self._names = frozenset(table.value for table in tables)
        self._reading = connection
        self._is_closed = False

    def get(self, table: enum.StrEnum, key: Key) -> bytes | None:
        """As `Reader.get`."""
        encoded = encode_key(key)
        rows = self._rows(table, "SELECT value, checksum FROM records WHERE name = ? AND key = ?", encoded)
        if not rows:
            return None
        value, expected = rows[0]
        if record_checksum(table.value, encoded, value) != expected:
            raise self._damaged(table, encoded)
        return bytes(value)

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
        """As `Reader.scan`."""
        low, high = key_range(prefix, start, end)
        statement = (
            "SELECT key, value, checksum FROM records WHERE name = ? AND key >= ? AND key < ? "
            f"ORDER BY key {'DESC' if reverse else 'ASC'} LIMIT ?"
        )
        left = limit
        while left is None or left > 0:
            size = SCAN_RECORDS if left is None else min(left, SCAN_RECORDS)
            rows = self._rows(table, statement, low, high, size)
            for encoded, value, expected in rows:
                if record_checksum(table.value, encoded, value) == expected:
                    yield decode_key(encoded), value
                    if left is not None:
                        left -= 1
                elif damaged is None:
                    raise self._damaged(table, encoded)
                else:
                    damaged.append(self._damaged(table, encoded))
            if len(rows) < size:
                return
            if reverse:
                high = rows[-1][0]
            else:
                low = rows[-1][0] + b"\0"

    def count(self, table: enum.StrEnum) -> int:
        """As `Reader.count`."""
        return int(self._rows(table, "SELECT count(*) FROM records WHERE name = ?")[0][0])

    def _rows(self, table: enum.StrEnum, statement: str, *values: bytes | int) -> list[Any]:
        self._check_open()
        check_table(table, self._names)
        try:
            return self._reading.execute(statement, (table.value, *values)).fetchall()
        except sqlite3.Error as error:
            raise translated(error, self.path) from error

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed(f"{self.path}: this store or snapshot is closed: open it again")

    def _end(self) -> None:
        self._is_closed = True

    def _damaged(self, table: enum.StrEnum, encoded: bytes) -> Damaged:
        return maintenance.damaged_record(self.path, table.value, encoded)


class SqliteStore(_SqliteReader):
    """A `Store` in the file `path`, which is made if it does not exist.

    Raises `InUse` while another process has it open, `Incompatible` for a newer or a foreign file, `Damaged` for
    one that cannot be read at all, `ReadOnly` and `DiskFull`.
    """

    def __init__(self, path: Path, tables: type[enum.StrEnum], *, connect: Connect = connect) -> None:
        self._tables = tables
        self._connect = connect
        self._connections: list[sqlite3.Connection] = []
        try:
            make_folder(path.parent)
            self._lock = OwnerLock(path.with_name(f"{path.name}.lock"), str(path))
        except OSError as error:
            raise translated_os_error(error, path) from error
        try:
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            writing = self._opened(path)
            if check_version(writing, str(path)) == 0:
                writing.execute(f"PRAGMA page_size = {PAGE_BYTES}")
                # So that `compact` can give pages back while commits go on. Its cost is within the noise.
                writing.execute("PRAGMA auto_vacuum = INCREMENTAL")
            writing.execute("PRAGMA journal_mode = WAL")
            writing.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            writing.execute("PRAGMA synchronous = FULL")
            migrate(writing, str(path))
            self._writing = writing
            self._file = _identity(path)
            super().__init__(path, tables, self._opened(path))
            self._level = Durability.SYNCED
            self._epoch = self._take_epoch()
        except BaseException as error:
            self._let_go()
            if isinstance(error, sqlite3.Error):
                raise translated(error, path) from error
            raise

    @property
    def epoch(self) -> int:
        """As `Store.epoch`."""
        return self._epoch

    @property
    def durability(self) -> Durability:
        """Up to `SYNCED`."""
        return Durability.SYNCED

    def commit(self, batch: Batch, durability: Durability = Durability.SYNCED) -> None:
        """As `Store.commit`."""
        puts: list[tuple[str, bytes, bytes, int]] = []
        deletes: dict[str, list[bytes]] = {}
        for (name, key), value in batch.changes.items():
            check_table(name, self._names)
            if value is None:
                deletes.setdefault(name, []).append(key)
            else:
                puts.append((name, key, value, record_checksum(name, key, value)))
        # Neighbours in the tree one after the other: a third less of SQLite's time for 64 batches.
        puts.sort()
        with self._transaction(durability):
            for statement, rows in _in_statements(puts, _PUTS):
                self._writing.execute(statement, tuple(chain.from_iterable(rows)))
            for name, keys in deletes.items():
                for statement, some in _in_statements(keys, _DELETES):
                    self._writing.execute(statement, (name, *some))

    def recover(self) -> None:
        """As `Store.recover`: a synced commit of nothing but the next epoch.

        It is written where the failed one began in the log, so no crash can bring that one back. The epoch has to be
        another one: SQLite writes no page that does not change, and a disk that takes nothing would pass for well.
        """
        epoch = self._epoch + 1
        with self._transaction(Durability.SYNCED):
            self._writing.execute("UPDATE owner SET epoch = ?", (epoch,))
        self._epoch = epoch

    @contextmanager
    def snapshot(self) -> Iterator[_SqliteReader]:
        """As `Store.snapshot`. The log cannot be cut while it is open."""
        self._check_open()
        with ExitStack() as stack:
            try:
                connection = stack.enter_context(closing(self._connect(self.path)))
                connection.execute("BEGIN")
                # The transaction begins with its first read.
                connection.execute("SELECT epoch FROM owner").fetchone()
            except sqlite3.Error as error:
                raise translated(error, self.path) from error
            reader = _SqliteReader(self.path, self._tables, connection)
            stack.callback(reader._end)
            yield reader

    def backup(self, target: Path) -> int:
        """As `maintenance.backup`, while commits go on."""
        self._check_open()
        return maintenance.backup(self.path, target)

    def verify(self) -> maintenance.Report:
        """As `maintenance.verify`, while commits go on."""
        self._check_open()
        return maintenance.verify(self.path)

    def compact(self) -> int:
        """As `maintenance.compact`, between commits."""
        self._check_open()
        return maintenance.compact(self.path)

    def close(self) -> None:
        """As `Store.close`; no commit may be under way."""
        if not self._is_closed:
            self._is_closed = True
            self._let_go()

    def _opened(self, path: Path) -> sqlite3.Connection:
        connection = self._connect(path)
        self._connections.append(connection)
        connection.execute(f"PRAGMA cache_size = {-CACHE_BYTES // 1024}")
        return connection

    def _let_go(self) -> None:
        for connection in reversed(self._connections):
            connection.close()
        self._lock.release()

    def _take_epoch(self) -> int:
        self._writing.execute("BEGIN IMMEDIATE")
        self._writing.execute("UPDATE owner SET epoch = epoch + 1")
        epoch = self._newest_epoch()
        self._writing.execute("COMMIT")
        return epoch

    def _newest_epoch(self) -> int:
        return int(self._writing.execute("SELECT epoch FROM owner").fetchone()[0])

    @contextmanager
    def _transaction(self, durability: Durability) -> Iterator[None]:
        """A write transaction of the present owner, all or nothing."""
        self._check_open()
        try:
            self._roll_back()
            level = max(durability, Durability.WRITTEN)
            if level is not self._level:
                self._writing.execute(f"PRAGMA synchronous = {'FULL' if level is Durability.SYNCED else 'NORMAL'}")
                self._level = level
            self._writing.execute("BEGIN IMMEDIATE")
            newest = self._newest_epoch()
            if newest != self._epoch:
                raise Fenced(str(self.path), self._epoch, newest)
            if _identity(self.path) != self._file:
                raise Unavailable(
                    f"{self.path}: the file was removed, or another is in its place: what is written to it now is lost"
                    " with this process; put it back, and the server goes on by itself, or start the server again"
                )
            yield
            self._writing.execute("COMMIT")
        except BaseException as error:
            with suppress(sqlite3.Error):
                self._roll_back()
            if isinstance(error, sqlite3.Error):
                raise translated(error, self.path) from error
            raise

    def _roll_back(self) -> None:
        """End a transaction that failed, unless SQLite has done so, as it does when the disk is full."""
        if self._writing.in_transaction:
            self._writing.execute("ROLLBACK")


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file has this name; None for none. A microsecond, in commits of some hundred."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _in_statements(items: list[T], statements: list[tuple[int, str]]) -> Iterator[tuple[str, list[T]]]:
    """Cut `items` into the sizes for which there are statements, the largest first."""
    at = 0
    for size, statement in statements:
        while len(items) - at >= size:
            yield statement, items[at : at + size]
            at += size
