"""`zaptasks backup`, `verify` and `compact`, on real files: whole, damaged, in use, and not there."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.helpers.store_machine import Table

from zapserver.cli import main
from zapserver.store import Batch, Durability, SqliteStore, maintenance
from zapserver.store.connecting import connect
from zapserver.store.errors import DiskFull, Unavailable
from zapserver.store.paths import store_path

OWNER = """
import sys
from pathlib import Path
from tests.helpers.store_machine import Table
from zapserver.store import Batch, SqliteStore
store = SqliteStore(Path(sys.argv[1]), Table)
number = 0
print("open", flush=True)
for line in sys.stdin:
    batch = Batch()
    for _ in range(50):
        number += 1
        batch.put(Table.HISTORY, (number,), b"more" * 100)
    store.commit(batch)
    print(number, flush=True)
"""


def fill(path: Path, records: int = 20) -> SqliteStore:
    store = SqliteStore(path, Table)
    batch = Batch()
    for number in range(records):
        batch.put(Table.HISTORY, ("order-17", number), b"value %d" % number)
    store.commit(batch)
    return store


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three namespaces of two orgs."""
    data = tmp_path / "data"
    for org, namespace, records in (("", "default", 20), ("", "shop", 5), ("acme", "default", 7)):
        fill(store_path(data, org, namespace), records).close()
    return data


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def rows(*args: object, status: int = 0) -> list[dict[str, Any]]:
    result = run(*args, "--json")
    assert result.exit_code == status, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def kept(path: Path) -> list[bytes]:
    with closing(SqliteStore(path, Table)) as store:
        return [value for _, value in store.scan(Table.HISTORY)]


def flip_a_byte(path: Path, of: bytes) -> None:
    """In the database file itself, as a disk does it."""
    with closing(connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    content = bytearray(path.read_bytes())
    at = content.index(of)
    content[at] ^= 0x40
    path.write_bytes(content)


@contextmanager
def owned(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the store open and commits 50 records for each line that it gets."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.stdin.close()
            assert process.wait(10) == 0


def commit(process: subprocess.Popen[str]) -> int:
    """How many records it has committed after one more commit."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return int(process.stdout.readline())


# --- backup ------------------------------------------------------------------------------------------


def test_a_backup_has_every_namespace_in_the_same_places(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "backup"
    done = rows("backup", data, target)
    assert [(row["org"], row["namespace"]) for row in done] == [("_", "default"), ("_", "shop"), ("acme", "default")]
    files = sorted(path.relative_to(target) for path in target.rglob("*") if path.is_file())
    assert [str(file) for file in files] == ["_/default.db", "_/shop.db", "acme/default.db"]
    assert all(row["bytes"] == Path(row["file"]).stat().st_size > 0 for row in done)
    assert len(kept(store_path(target, "acme", "default"))) == 7
    assert kept(store_path(target, "", "default")) == kept(store_path(data, "", "default"))


def test_a_backup_of_one_namespace_or_org(data: Path, tmp_path: Path) -> None:
    assert [row["org"] for row in rows("backup", data, tmp_path / "a", "--namespace", "default")] == ["_", "acme"]
    assert [row["namespace"] for row in rows("backup", data, tmp_path / "b", "--org", "_")] == ["default", "shop"]
    [row] = rows("backup", data, tmp_path / "c", "--org", "acme", "--namespace", "default")
    assert row["file"] == str(tmp_path / "c" / "acme" / "default.db")


def test_a_backup_prints_a_table_for_eyes(data: Path, tmp_path: Path) -> None:
    lines = run("backup", data, tmp_path / "target").stdout.splitlines()
    assert lines[0].split() == ["ORG", "NAMESPACE", "BYTES", "FILE"]
    assert [line.split()[:2] for line in lines[1:]] == [["_", "default"], ["_", "shop"], ["acme", "default"]]


def test_a_backup_overwrites_nothing_and_copies_nothing_then(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    rows("backup", data, target, "--org", "acme")
    before = (target / "acme" / "default.db").read_bytes()
    result = run("backup", data, target)
    assert result.exit_code == 2
    assert "exists, and a backup overwrites nothing" in result.output
    assert (target / "acme" / "default.db").read_bytes() == before
    assert not (target / "_").exists()
    rows("backup", data, target, "--org", "_")


@pytest.mark.parametrize("inside", ["data", "data/backup", "data/_/backup"])
def test_a_backup_into_its_own_source_is_refused(data: Path, tmp_path: Path, inside: str) -> None:
    before = sorted(data.rglob("*"))
    result = run("backup", data, tmp_path / inside)
    assert result.exit_code == 2
    assert "name a directory elsewhere" in result.output
    assert sorted(data.rglob("*")) == before


def test_a_backup_into_a_file_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    result = run("backup", data, tmp_path / "target")
    assert result.exit_code == 2
    assert "is a file: name a directory" in result.output


def test_a_backup_beside_a_running_server_is_of_one_moment(data: Path, tmp_path: Path) -> None:
    path = store_path(data, "", "busy")
    with owned(path) as owner:
        assert commit(owner) == 50
        rows("backup", data, tmp_path / "target", "--namespace", "busy")
        assert commit(owner) == 100  # it still owns its file
    assert len(kept(store_path(tmp_path / "target", "", "busy"))) == 50
    assert len(kept(path)) == 100


def test_a_full_disk_is_one_clear_line_and_ends_it(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []

    def full(path: Path, target: Path) -> int:
        copied.append(target)
        raise DiskFull("database or disk is full")

    monkeypatch.setattr(maintenance, "backup", full)
    result = run("backup", data, tmp_path / "target")
    assert result.exit_code == 1
    target = tmp_path / "target"
    assert f"Error: no room in {target} for the copy of {store_path(data, '', 'default')}: free space" in result.stderr
    assert len(copied) == 1


def test_a_target_that_cannot_be_written_is_one_clear_line(data: Path, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "_").write_text("in the way")
    result = run("backup", data, tmp_path / "target", "--org", "_")
    assert result.exit_code == 1
    assert "Error: " in result.stderr
    assert str(tmp_path / "target" / "_") in result.stderr
    assert "Traceback" not in result.output


def test_one_broken_file_does_not_keep_the_others_from_being_copied(data: Path, tmp_path: Path) -> None:
    broken = store_path(data, "", "default")
    broken.write_bytes(b"this is no database at all" * 100)
    done = rows("backup", data, tmp_path / "target", status=1)
    assert [(row["org"], row["namespace"]) for row in done] == [("_", "shop"), ("acme", "default")]
    assert not (tmp_path / "target" / "_" / "default.db").exists()


# --- verify ------------------------------------------------------------------------------------------


def test_verify_counts_what_is_good(data: Path) -> None:
    found = rows("verify", data)
    assert [(row["org"], row["namespace"], row["records"], row["state"]) for row in found] == [
        ("_", "default", 20, "good"),
        ("_", "shop", 5, "good"),
        ("acme", "default", 7, "good"),
    ]
    assert all(row["damaged"] == row["file_errors"] == [] for row in found)
    assert run("verify", data).stdout.splitlines()[0].split() == ["ORG", "NAMESPACE", "STATE", "RECORDS", "FILE"]


def test_a_flipped_byte_is_found_and_its_record_named(data: Path) -> None:
    path = store_path(data, "", "default")
    flip_a_byte(path, b"value 13")
    found = rows("verify", data, status=1)
    assert [row["state"] for row in found] == ["damaged", "good", "good"]
    assert found[0]["records"] == 19
    [record] = found[0]["damaged"]
    assert (record["table"], record["key"]) == (Table.HISTORY.value, "('order-17', 13)")
    result = run("verify", data)
    assert result.exit_code == 1
    assert f"{path}: table '{Table.HISTORY.value}', key ('order-17', 13) is damaged" in result.stdout
    assert "Error: 1 of 3 files damaged: restore them from a backup" in result.stderr
    assert run("verify", data, "--namespace", "shop").exit_code == 0


def test_damage_is_found_while_another_process_has_the_file_open(data: Path) -> None:
    path = store_path(data, "", "busy")
    with owned(path) as owner:
        commit(owner)
        assert [row["records"] for row in rows("verify", data, "--namespace", "busy")] == [50]
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE records SET checksum = checksum + 1 WHERE key = x'1507'")
        [found] = rows("verify", data, "--namespace", "busy", status=1)
        assert [record["key"] for record in found["damaged"]] == ["(7,)"]
        commit(owner)


def test_a_key_that_cannot_be_read_is_shown_as_bytes(data: Path) -> None:
    with closing(connect(store_path(data, "", "shop"))) as connection:
        connection.execute("UPDATE records SET key = x'ff00' WHERE key = (SELECT max(key) FROM records)")
    [found] = rows("verify", data, "--namespace", "shop", status=1)
    assert [(record["key"], record["key_bytes"]) for record in found["damaged"]] == [("ff00", "ff00")]


def test_a_file_that_is_no_database_or_another_programs_is_named(data: Path) -> None:
    store_path(data, "", "default").write_bytes(b"this is no database at all" * 100)
    with closing(sqlite3.connect(store_path(data, "", "foreign"))) as connection, connection:
        connection.execute("CREATE TABLE theirs (id)")
    store_path(data, "", "hollow").touch()
    result = run("verify", data)
    assert result.exit_code == 1
    assert "file is not a database" in result.stdout
    assert "foreign.db is an SQLite database of another program" in result.stderr
    assert "hollow.db is empty" in result.stderr
    assert "1 of 5 files damaged" in result.stderr


# --- compact -----------------------------------------------------------------------------------------


def test_compact_gives_unused_space_back_beside_a_running_server(data: Path) -> None:
    path = store_path(data, "", "busy")
    with closing(SqliteStore(path, Table)) as store:
        batch, gone = Batch(), Batch()
        for number in range(1_000, 2_000):
            batch.put(Table.HISTORY, (number,), os.urandom(2_000))
            gone.delete(Table.HISTORY, (number,))
        store.commit(batch)
        store.commit(gone)
    with owned(path) as owner:
        commit(owner)
        [row] = rows("compact", data, "--namespace", "busy")
        assert row["freed"] > 1_000_000
        assert row["bytes"] == path.stat().st_size < 500_000
        commit(owner)
    assert len(kept(path)) == 100
    [again] = rows("compact", data, "--namespace", "shop")
    assert again["freed"] == 0


def test_a_file_that_stays_locked_is_named_and_the_others_are_compacted(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = maintenance.compact

    def locked(path: Path) -> int:
        if path.name == "shop.db":
            raise Unavailable(f"{path}: database is locked")
        return whole(path)

    monkeypatch.setattr(maintenance, "compact", locked)
    result = run("compact", data)
    assert result.exit_code == 1
    assert [line.split()[:2] for line in result.stdout.splitlines()[1:]] == [["_", "default"], ["acme", "default"]]
    assert "shop.db: database is locked" in result.stderr


# --- what is not there -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["verify"], ["compact"], ["backup", "TARGET"]])
def test_what_is_not_there_is_said_and_nothing_is_made(data: Path, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    name, *target = command
    for source, advice in (
        (tmp_path / "nowhere", "there is no directory"),
        (store_path(data, "", "shop"), "there is no directory"),
        (tmp_path / "empty", "holds no namespaces, which are files such as"),
        (":memory:", "keeps nothing on disk"),
    ):
        result = run(name, source, *[tmp_path / item for item in target])
        assert result.exit_code == 2
        assert advice in " ".join(result.output.split())
    result = run(name, data, *[tmp_path / item for item in target], "--namespace", "stock", "--org", "acme")
    assert result.exit_code == 2
    assert "holds no acme/stock; there is _/default, _/shop, acme/default" in " ".join(result.output.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "empty"]


def test_other_files_of_a_data_directory_are_left_alone(data: Path, tmp_path: Path) -> None:
    (data / "notes.db").write_text("not in an org's folder")
    (data / "_" / "default.db.partial").write_text("of a backup that was killed")
    with closing(fill(store_path(data, "", "open"))):
        names = [row["namespace"] for row in rows("verify", data, "--org", "_")]
    assert names == ["default", "open", "shop"]


def test_no_durability_is_lost_by_a_backup(data: Path, tmp_path: Path) -> None:
    """The copy is a store of full value: it opens, takes commits and is as durable."""
    rows("backup", data, tmp_path / "target")
    with closing(fill(store_path(tmp_path / "target", "acme", "default"), 30)) as store:
        assert store.count(Table.HISTORY) == 30
        assert store.durability is Durability.SYNCED
