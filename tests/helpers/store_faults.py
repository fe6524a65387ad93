"""Connections that fail on demand, with the errors that SQLite has for it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from zapserver.store.connecting import connect


def sqlite_error(code: int, name: str, text: str) -> sqlite3.OperationalError:
    """An error as the sqlite3 module raises it."""
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    error.sqlite_errorname = name
    return error


DISK_FULL = sqlite_error(sqlite3.SQLITE_FULL, "SQLITE_FULL", "database or disk is full")
SYNC_FAILED = sqlite_error(sqlite3.SQLITE_IOERR_FSYNC, "SQLITE_IOERR_FSYNC", "disk I/O error")


class Disk:
    """Makes connections for one store, and breaks all of them at a statement that begins in a certain way."""

    def __init__(self) -> None:
        self.fails_at: str | None = None
        self.error = DISK_FULL
        self.connections: list[_Connection] = []

    def connect(self, path: Path) -> sqlite3.Connection:
        """In the place of the store's own `connect`."""
        connection = _Connection(connect(path), self)
        # Stands for the builds of SQLite whose default it is.
        connection.execute("PRAGMA synchronous = NORMAL")
        self.connections.append(connection)
        return connection  # type: ignore[return-value]


class _Connection:
    """All of a connection that the store uses; `sqlite3.Connection` itself cannot be made to fail."""

    def __init__(self, connection: sqlite3.Connection, disk: Disk) -> None:
        self._connection = connection
        self._disk = disk

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        if self._disk.fails_at is not None and statement.startswith(self._disk.fails_at):
            raise self._disk.error
        return self._connection.execute(statement, *values)

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def close(self) -> None:
        self._connection.close()
