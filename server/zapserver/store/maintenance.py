"""Backup, verification and compaction of a store's file, whether its server runs or not.

Each works over a connection of its own, so it can run in another process, or in a thread beside the owner's.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from zapserver.store.connecting import connect, translated
from zapserver.store.errors import Damaged, StoreError
from zapserver.store.folders import sync_folder
from zapserver.store.keys import decode_key
from zapserver.store.schema import check_version, record_checksum

COMPACT_PAGES = 256
"""Given back in one transaction: commits wait for one of them at most, some milliseconds."""
COMPACT_PAUSE_SECONDS = 0.002
"""Between two of them, so that a commit that waits gets in."""
FILE_ERRORS_MAX = 100
"""As many as SQLite is asked to find."""


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found."""

    records: int
    """That are whole."""
    damaged: list[Damaged]
    file_errors: list[str]
    """What SQLite says about the file's own structure."""

    @property
    def is_good(self) -> bool:
        """Whether there is nothing to repair."""
        return not self.damaged and not self.file_errors


def verify(path: Path) -> Report:
    """Read every record and every page of the file as it is now. Raises `Incompatible` for one that is not ours."""
    records = 0
    damaged: list[Damaged] = []
    file_errors: list[str] = []
    with closing(connect(path)) as connection:
        try:
            check_version(connection, str(path))
            connection.execute("BEGIN")
            for name, key, value, expected in connection.execute("SELECT name, key, value, checksum FROM records"):
                if record_checksum(name, key, value) == expected:
                    records += 1
                else:
                    damaged.append(damaged_record(path, name, key))
            found = [text for (text,) in connection.execute(f"PRAGMA integrity_check({FILE_ERRORS_MAX})")]
            file_errors += [text for text in found if text != "ok"]
        except sqlite3.Error as error:
            failure = translated(error, path)
            if not isinstance(failure, Damaged):
                raise failure from error
            file_errors.append(str(error))
    return Report(records, damaged, file_errors)


def damaged_record(path: Path, name: str, encoded: bytes) -> Damaged:
    """The error for a record whose checksum does not match."""
    try:
        key = str(decode_key(encoded))
    except ValueError:
        key = encoded.hex()
    return Damaged(
        f"{path}: the record {key} in {name!r} is damaged: restore it from a backup; everything else is served",
        table=name,
        key=encoded,
    )


def backup(path: Path, target: Path) -> int:
    """Copy the store as it is now to `target`, synced; return its size in bytes.

    `target` appears whole or not at all, and an existing one is never overwritten: `FileExistsError`.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists: name a file that does not")
    partial = target.with_name(f"{target.name}.partial")
    partial.unlink(missing_ok=True)
    with _translating(path), closing(connect(path)) as source:
        check_version(source, str(path))
        os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            with closing(connect(partial)) as copy:
                # All pages in one step: in smaller ones every commit of the owner would start it over.
                source.backup(copy)
                # A backup is one file.
                copy.execute("PRAGMA journal_mode = DELETE")
            os.link(partial, target)
            sync_folder(target.parent)
        finally:
            partial.unlink()
    return target.stat().st_size


def compact(path: Path) -> int:
    """Give unused pages back to the file system, a few at a time; return by how many bytes the file shrank."""
    with _translating(path), closing(connect(path)) as connection:
        check_version(connection, str(path))
        connection.execute("PRAGMA wal_checkpoint(FULL)").fetchall()
        before = path.stat().st_size
        (unused,) = connection.execute("PRAGMA freelist_count").fetchone()
        # What a busy server frees meanwhile is left for the next time, or this might never end.
        for _ in range(0, unused, COMPACT_PAGES):
            # Not `execute`: it stops at the first of the empty rows that this makes, one for each page.
            connection.executescript(f"PRAGMA incremental_vacuum({COMPACT_PAGES})")
            time.sleep(COMPACT_PAUSE_SECONDS)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return before - path.stat().st_size


@contextmanager
def _translating(path: Path) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise
    except sqlite3.Error as error:
        raise translated(error, path) from error
