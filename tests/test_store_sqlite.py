"""What only a file can do: be damaged, be full, be somebody else's, be torn."""

from __future__ import annotations

import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tests.helpers.store_faults import DISK_FULL, SYNC_FAILED, Disk
from tests.helpers.store_machine import Table

from zapserver.engine.errors import Invalid
from zapserver.settings import MEMORY
from zapserver.store import (
    Batch,
    Damaged,
    DiskFull,
    Durability,
    Incompatible,
    InUse,
    ReadOnly,
    SqliteStore,
    StoreError,
    Unavailable,
)
from zapserver.store.connecting import connect
from zapserver.store.paths import store_path, stored_namespaces
from zapserver.store.schema import APPLICATION_ID, MIGRATIONS, migrate
from zapserver.stores import DESCRIPTORS_PER_STORE, Stores

ROOT = Path(__file__).parent.parent


def batch_of(*numbers: int, value: bytes = b"value") -> Batch:
    batch = Batch()
    for number in numbers:
        batch.put(Table.HISTORY, (number,), value)
    return batch


def kept(store: SqliteStore) -> list[object]:
    return [key[0] for key, _ in store.scan(Table.HISTORY)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "_" / "default.db"


# --- damage ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "key", "named"),
    [
        ("value = x'00'", b"\x15\x03", "(3,)"),
        ("checksum = checksum + 1", b"\x15\x03", "(3,)"),
        ("name = 'executions', key = x'ff'", None, ""),
        ("key = x'150902'", b"\x15\x09\x02", "150902"),
    ],
)
def test_a_damaged_record_is_named_and_the_others_are_served(
    path: Path, change: str, key: bytes | None, named: str
) -> None:
    store = SqliteStore(path, Table)
    store.commit(batch_of(*range(600)))
    with sqlite3.connect(path) as other:
        other.execute(f"UPDATE records SET {change} WHERE key = x'1503'")
    other.close()
    for reverse in (False, True):
        damaged: list[Damaged] = []
        found = [key[0] for key, _ in store.scan(Table.HISTORY, damaged=damaged, reverse=reverse)]
        assert found == sorted(set(range(600)) - {3}, reverse=reverse)
        assert [(error.table, error.key) for error in damaged] == ([("history", key)] if key else [])
        for error in damaged:
            assert str(error).startswith(f"{path}: the record {named} in 'history' is damaged: restore it")
    if key:
        with pytest.raises(Damaged):
            kept(store)
    if key == b"\x15\x03":
        with pytest.raises(Damaged):
            store.get(Table.HISTORY, (3,))
    assert len(store.verify().damaged) == 1, "also where no scan would come by"
    store.commit(batch_of(3))
    assert store.get(Table.HISTORY, (3,)) == b"value", "a record that is written anew is well again"
    store.close()


def test_a_file_with_damaged_pages_says_so(path: Path) -> None:
    store = SqliteStore(path, Table)
    store.commit(batch_of(*range(5000)))
    store.close()
    with path.open("r+b") as file:
        file.seek(8 * 4096)
        file.write(b"\xff" * 4096 * 8)
    store = SqliteStore(path, Table)
    assert store.get(Table.HISTORY, (0,)) == b"value"
    with pytest.raises(Damaged, match="malformed: stop the server, keep a copy of the file, and restore a backup"):
        kept(store)
    report = store.verify()
    assert not report.is_good
    assert report.file_errors
    store.close()


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 8192])
def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(Damaged, match="restore a backup"):
        SqliteStore(path, Table)
    assert path.read_bytes() == content


def test_any_torn_end_of_the_log_leaves_whole_batches(path: Path, tmp_path: Path) -> None:
    store = SqliteStore(path, Table)
    for number in range(40):
        batch = Batch()
        for part in range(8):
            batch.put(Table.HISTORY, (number, part), bytes(300))
        store.commit(batch)
    log = path.with_name("default.db-wal").read_bytes()
    seed = random.randrange(2**32)
    print("seed", seed)
    source = random.Random(seed)
    for attempt in range(25):
        torn = tmp_path / f"torn{attempt}.db"
        shutil.copy(path, torn)
        cut = source.randrange(len(log) // 4, len(log))
        tail = source.choice([b"", bytes(5000), source.randbytes(5000)])
        torn.with_name(f"{torn.name}-wal").write_bytes(log[:cut] + tail)
        again = SqliteStore(torn, Table)
        found = [key for key, _ in again.scan(Table.HISTORY)]
        assert found == [(number, part) for number in range(len(found) // 8) for part in range(8)]
        again.close()
    store.close()


# --- the disk ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails_at", ["BEGIN", "INSERT", "COMMIT"])
@pytest.mark.parametrize(("error", "expected"), [(DISK_FULL, DiskFull), (SYNC_FAILED, Unavailable)])
def test_a_failed_commit_leaves_nothing_and_the_next_one_works(
    path: Path, fails_at: str, error: sqlite3.OperationalError, expected: type[StoreError]
) -> None:
    disk = Disk()
    store = SqliteStore(path, Table, connect=disk.connect)
    store.commit(batch_of(1))
    disk.fails_at, disk.error = fails_at, error
    for _ in range(2):
        with pytest.raises(expected, match="the server goes on by itself") as caught:
            store.commit(batch_of(2, 3))
        assert caught.value.may_pass
        assert kept(store) == [1], "reads go on"
    disk.fails_at = None
    store.recover()
    store.commit(batch_of(4))
    assert kept(store) == [1, 4]
    store.close()


def test_each_recovery_writes_to_the_disk(path: Path) -> None:
    """One that writes nothing would find a disk well that takes nothing, and leave a failed commit in the log."""
    store = SqliteStore(path, Table)
    log = path.with_name(f"{path.name}-wal")
    for number in range(1, 4):
        before = store.epoch
        contents = log.read_bytes()
        store.recover()
        assert log.read_bytes() != contents
        assert store.epoch > before
        store.commit(batch_of(number))
    epoch = store.epoch
    store.close()
    again = SqliteStore(path, Table)
    assert again.epoch > epoch
    assert kept(again) == [1, 2, 3]
    again.close()


def test_a_transaction_that_could_not_be_rolled_back_is_ended_by_the_next_one(path: Path) -> None:
    disk = Disk()
    store = SqliteStore(path, Table, connect=disk.connect)
    writing = disk.connections[0]
    writing.execute("BEGIN IMMEDIATE")
    writing.execute("INSERT INTO records VALUES ('history', x'1501', x'00', 0)")
    store.commit(batch_of(2))
    assert kept(store) == [2]
    store.close()


def test_a_full_disk_by_sqlites_own_limit(path: Path) -> None:
    """The real SQLITE_FULL, from SQLite's own allocation of a page."""
    disk = Disk()
    store = SqliteStore(path, Table, connect=disk.connect)
    limit = disk.connections[0]
    limit.execute("PRAGMA max_page_count = 20")
    written = 0

    def fill() -> None:
        nonlocal written
        while True:
            store.commit(batch_of(*range(written, written + 10), value=bytes(200)))
            written += 10

    with pytest.raises(DiskFull, match="database or disk is full: free space on its disk"):
        fill()
    assert kept(store) == list(range(written))
    store.recover()
    deletes = Batch()
    deletes.delete(Table.HISTORY, (0,))
    store.commit(deletes)
    assert kept(store) == list(range(1, written)), "a full disk still takes a delete"
    limit.execute("PRAGMA max_page_count = 1000000")
    store.commit(batch_of(*range(written, written + 10), value=bytes(200)))
    assert kept(store) == list(range(1, written + 10))
    store.close()


FILE_LIMIT = """
import enum, resource, sys
from pathlib import Path
from zapserver.store import Batch, SqliteStore, Unavailable
class Table(enum.StrEnum):
    HISTORY = "history"
def commit(number):
    batch = Batch()
    batch.put(Table.HISTORY, (number,), bytes(3000))
    store.commit(batch)
store = SqliteStore(Path(sys.argv[1]), Table)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
written = 0
try:
    while True:
        commit(written)
        written += 1
except Unavailable as error:
    print(error, file=sys.stderr)
for attempt in range(3):
    try:
        store.recover()
    except Unavailable:
        pass
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.recover()
assert [key for key, _ in store.scan(Table.HISTORY)] == [(number,) for number in range(written)], written
for number in range(written, 200):
    commit(number)
print(written)
import os
os._exit(0)
"""


def test_writes_that_the_kernel_refuses(path: Path) -> None:
    """Real failing writes in the log, by a limit of the process on the size of files; the disk's return heals it."""
    done = subprocess.run(
        [sys.executable, "-c", FILE_LIMIT, str(path)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 10 < int(done.stdout) < 100
    assert "disk I/O error (SQLITE_IOERR_WRITE)" in done.stderr
    store = SqliteStore(path, Table)
    assert kept(store) == list(range(200))
    store.close()


READ_ONLY = """
import enum, os, sys
from pathlib import Path
from zapserver.store import ReadOnly, SqliteStore
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
class Table(enum.StrEnum):
    HISTORY = "history"
try:
    SqliteStore(Path(sys.argv[1]), Table)
except ReadOnly as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_data_directory_that_cannot_be_written(tmp_path: Path, what: str) -> None:
    """In a process of another user, since root may write everywhere."""
    folder = tmp_path / "org"
    if what == "file":
        SqliteStore(folder / "a.db", Table).close()
        folder.chmod(0o777)
        (folder / "a.db").chmod(0o444)
        (folder / "a.db.lock").chmod(0o666)
    else:
        folder.mkdir(mode=0o555)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and parent.is_relative_to("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", READ_ONLY, str(folder / "a.db")], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{folder / 'a.db'}: " in done.stdout
    assert "writ" in done.stdout


def test_a_file_that_becomes_read_only_while_it_is_open(path: Path) -> None:
    disk = Disk()
    store = SqliteStore(path, Table, connect=disk.connect)
    disk.connections[0].execute("PRAGMA query_only = ON")
    with pytest.raises(ReadOnly, match="make the file and its folder writable"):
        store.commit(batch_of(1))
    disk.connections[0].execute("PRAGMA query_only = OFF")
    store.commit(batch_of(1))
    assert kept(store) == [1]
    store.close()


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_file_that_is_removed_while_it_is_open_takes_nothing_until_it_is_back(path: Path, is_replaced: bool) -> None:
    """SQLite goes on writing to a file without a name, which nobody finds again."""
    store = SqliteStore(path, Table)
    store.commit(batch_of(1))
    elsewhere = path.with_name("moved")
    path.rename(elsewhere)
    if is_replaced:
        path.touch()
    with pytest.raises(Unavailable, match="the file was removed, or another is in its place"):
        store.commit(batch_of(2))
    with pytest.raises(Unavailable, match="put it back"):
        store.recover()
    elsewhere.rename(path)
    store.recover()
    store.commit(batch_of(3))
    assert kept(store) == [1, 3]
    store.close()


def test_a_process_that_keeps_the_file_locked_is_an_error_with_an_end(path: Path) -> None:
    disk = Disk()
    store = SqliteStore(path, Table, connect=disk.connect)
    disk.connections[0].execute("PRAGMA busy_timeout = 10")
    other = connect(path)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked: another process has kept it locked"):
        store.commit(batch_of(1))
    other.execute("ROLLBACK")
    other.close()
    store.commit(batch_of(2))
    assert kept(store) == [2]
    store.close()


def test_a_commit_syncs_exactly_when_it_is_asked_to(path: Path) -> None:
    disk = Disk()
    store = SqliteStore(path, Table, connect=disk.connect)

    def level() -> object:
        return disk.connections[0].execute("PRAGMA synchronous").fetchone()[0]

    full, normal = 2, 1
    for durability, expected in (
        (Durability.SYNCED, full),
        (Durability.WRITTEN, normal),
        (Durability.MEMORY, normal),
        (Durability.SYNCED, full),
    ):
        store.commit(batch_of(1), durability)
        assert level() == expected
    store.commit(batch_of(1), Durability.WRITTEN)
    store.recover()
    assert level() == full
    store.close()


# --- whose it is -------------------------------------------------------------------------------------


def test_a_second_owner_is_told_who_the_first_is(path: Path) -> None:
    store = SqliteStore(path, Table)
    with pytest.raises(InUse, match=rf"default\.db is in use by process {os.getpid()}: stop that server") as caught:
        SqliteStore(path, Table)
    assert caught.value.pid == os.getpid()
    store.commit(batch_of(1))
    store.close()
    path.with_name("default.db.lock").write_bytes(b"whatever")
    again = SqliteStore(path, Table)
    path.with_name("default.db.lock").write_bytes(b"")
    with pytest.raises(InUse, match="in use by another process"):
        SqliteStore(path, Table)
    assert kept(again) == [1]
    again.close()


def test_a_refused_opening_lets_go_of_the_file(path: Path) -> None:
    disk = Disk()
    disk.fails_at = "UPDATE owner"
    with pytest.raises(DiskFull):
        SqliteStore(path, Table, connect=disk.connect)
    SqliteStore(path, Table).close()


def test_only_the_owner_can_read_the_files(path: Path) -> None:
    store = SqliteStore(path, Table)
    store.commit(batch_of(1))
    assert {file.stat().st_mode & 0o077 for file in path.parent.iterdir()} == {0}
    assert path.parent.stat().st_mode & 0o077 == 0
    store.close()


# --- versions ----------------------------------------------------------------------------------------


def test_a_newer_file_is_refused_and_left_alone(path: Path) -> None:
    SqliteStore(path, Table).close()
    with sqlite3.connect(path) as other:
        other.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    other.close()
    before = path.read_bytes()
    with pytest.raises(Incompatible, match=f"has version {len(MIGRATIONS) + 1} and this server knows up to"):
        SqliteStore(path, Table)
    assert path.read_bytes() == before


def test_a_database_of_another_program_is_refused(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (a)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(Incompatible, match="an SQLite database of another program"):
        SqliteStore(path, Table)
    assert path.read_bytes() == before


def test_migrations_run_in_order_each_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.touch()
    steps = [("CREATE TABLE a (x)",), ("ALTER TABLE a ADD COLUMN y", "INSERT INTO a VALUES (1, 2)")]
    connection = connect(path)
    assert migrate(connection, "a", steps[:1]) == (0, 1)
    broken = [*steps, ("CREATE TABLE b (x)", "INSERT INTO nowhere VALUES (1)")]
    with pytest.raises(sqlite3.OperationalError, match="no such table: nowhere"):
        migrate(connection, "a", broken)
    assert migrate(connection, "a", steps) == (2, 2), "the good step before the broken one has been kept"
    assert connection.execute("SELECT x, y FROM a").fetchall() == [(1, 2)]
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("a",)]
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    connection.close()


# --- maintenance -------------------------------------------------------------------------------------


def test_a_backup_beside_commits_is_a_store_as_it_was(path: Path, tmp_path: Path) -> None:
    store = SqliteStore(path, Table)
    store.commit(batch_of(*range(2000)))
    target = tmp_path / "backup.db"
    size = store.backup(target)
    store.commit(batch_of(5000))
    assert size == target.stat().st_size > 4096
    assert sorted(file.name for file in tmp_path.iterdir()) == ["backup.db", "data"]
    copy = SqliteStore(target, Table)
    assert kept(copy) == list(range(2000))
    assert copy.verify().is_good
    copy.commit(batch_of(3000))
    copy.close()
    with pytest.raises(FileExistsError, match="name a file that does not"):
        store.backup(target)
    store.close()


def test_verify_counts_what_is_whole_and_names_what_is_not(path: Path) -> None:
    store = SqliteStore(path, Table)
    store.commit(batch_of(*range(300)))
    assert (store.verify().records, store.verify().is_good) == (300, True)
    with sqlite3.connect(path) as other:
        other.execute("UPDATE records SET value = x'01' WHERE key = x'1507'")
        other.execute("UPDATE records SET key = x'ff' WHERE key = x'1508'")
    other.close()
    report = store.verify()
    assert report.records == 298
    assert [(error.table, error.key) for error in report.damaged] == [("history", b"\x15\x07"), ("history", b"\xff")]
    assert not report.is_good
    store.close()


def test_compact_gives_space_back_while_the_store_is_open(path: Path) -> None:
    store = SqliteStore(path, Table)
    store.commit(batch_of(*range(3000), value=bytes(1000)))
    deletes = Batch()
    for number in range(1, 3000):
        deletes.delete(Table.HISTORY, (number,))
    store.commit(deletes)
    freed = store.compact()
    assert freed > 2_000_000
    assert path.stat().st_size < 100_000
    store.commit(batch_of(7))
    assert kept(store) == [0, 7]
    assert store.verify().is_good
    store.close()


# --- paths -------------------------------------------------------------------------------------------


def test_a_store_has_its_place(tmp_path: Path) -> None:
    assert store_path(tmp_path, "", "default") == tmp_path / "_" / "default.db"
    assert store_path(tmp_path, "acme", "a.b") == tmp_path / "acme" / "a.b.db"
    assert stored_namespaces(tmp_path, "acme") == []
    for namespace in ("b", "a.db"):
        SqliteStore(store_path(tmp_path, "acme", namespace), Table).close()
    assert stored_namespaces(tmp_path, "acme") == ["a.db", "b"]


def test_stores_leave_half_of_the_descriptors_to_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that opened more than it has descriptors for could not be started again."""
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1_200, 4_000))
    assert Stores(str(tmp_path)).namespaces_max == 100
    assert Stores(MEMORY).namespaces_max > 10**6
    opened = len(os.listdir("/proc/self/fd"))
    store = SqliteStore(tmp_path / "_" / "a.db", Table)
    store.commit(batch_of(1))
    assert len(os.listdir("/proc/self/fd")) - opened <= DESCRIPTORS_PER_STORE
    store.close()


def test_what_else_lies_in_a_data_directory_is_no_namespace(tmp_path: Path) -> None:
    for name in ("a copy.db", ".db", "...db", "é.db", "a.db.partial", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "elsewhere.db").symlink_to(tmp_path / "not mounted" / "elsewhere.db")  # to be opened, and to fail
    assert stored_namespaces(tmp_path.parent, tmp_path.name) == ["elsewhere"]


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../a", "/a", "a\0", "a\n", "é", "a" * 65, "a\\b", " "])
def test_no_path_hides_in_a_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(Invalid, match="invalid namespace"):
        store_path(tmp_path, "acme", name)
    with pytest.raises(Invalid, match="invalid org"):
        store_path(tmp_path, name, "default")


def test_the_folder_of_the_nameless_org_is_nobody_elses(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="invalid org '_'"):
        store_path(tmp_path, "_", "default")
    with pytest.raises(Invalid, match="invalid namespace"):
        store_path(tmp_path, "acme", "")
