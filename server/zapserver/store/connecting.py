"""Connections to an SQLite file of ours, and what their errors mean."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

from zapserver.store.errors import Damaged, DiskFull, ReadOnly, StoreError, Unavailable

BUSY_SECONDS_MAX = 5.0
"""How long a connection waits for another one's write: `compact` holds the file for some milliseconds at a time."""
STATEMENTS_CACHED = 64


def connect(path: Path) -> sqlite3.Connection:
    """A connection to a file that exists, without transactions of the module's own."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=BUSY_SECONDS_MAX,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=STATEMENTS_CACHED,
    )


def translated(error: sqlite3.Error, path: Path) -> StoreError:
    """What an error of SQLite means for the store in `path`, and what to do about it."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code == sqlite3.SQLITE_IOERR_SHMSIZE:  # the first page beside the log found no room, before any write to it
        code = sqlite3.SQLITE_FULL
    # The low byte is the kind; the others say where in SQLite. Mistakes in the use of the module have no code.
    match code & 0xFF:
        case sqlite3.SQLITE_FULL:
            return DiskFull(f"{path}: {error}: free space on its disk; the server goes on by itself then")
        case sqlite3.SQLITE_READONLY:
            return ReadOnly(
                f"{path}: {error}: make the file and its folder writable; the server goes on by itself then"
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return Damaged(f"{path}: {error}: stop the server, keep a copy of the file, and restore a backup")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Unavailable(
                f"{path}: {error}: another process has kept it locked for {BUSY_SECONDS_MAX:g} s: end that process"
            )
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN:
            return Unavailable(
                f"{path}: {error} ({getattr(error, 'sqlite_errorname', '')}): look for errors of its disk in the "
                "system's log; the server goes on by itself when the disk does"
            )
    return StoreError(f"{path}: {error}: a mistake in this program: please report it")


def translated_os_error(error: OSError, path: Path) -> StoreError:
    """The same for an error of the operating system while the file is made."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return DiskFull(f"{path}: {error}: free space on its disk")
        case errno.EACCES | errno.EPERM | errno.EROFS | errno.ENOTDIR | errno.EEXIST:
            return ReadOnly(f"{path}: {error}: give a data directory that can be written")
    return Unavailable(f"{path}: {error}: look for errors of its disk in the system's log")
