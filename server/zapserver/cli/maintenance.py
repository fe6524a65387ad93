"""`zaptasks backup`, `verify` and `compact`: a data directory's files, whether a server has them open or not."""

from __future__ import annotations

import functools
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from zapserver.cli.output import Output
from zapserver.settings import MEMORY
from zapserver.store import maintenance
from zapserver.store.connecting import translated, translated_os_error
from zapserver.store.errors import Damaged, DiskFull, StoreError
from zapserver.store.folders import make_folder
from zapserver.store.keys import decode_key
from zapserver.store.paths import ROOT_ORG_FOLDER

SUFFIX: Final = ".db"

T = TypeVar("T")


class StoredNamespace(NamedTuple):
    """A file of a data directory."""

    folder: str
    """Of its org; "_" is the org without a name."""
    namespace: str
    path: Path

    @property
    def names(self) -> dict[str, Any]:
        return {"org": self.folder, "namespace": self.namespace, "file": str(self.path)}


def _selecting(function: Callable[..., None]) -> Callable[..., None]:
    """The options that say which files of DATA are meant; the command gets what was found."""

    @click.option("--namespace", default="", help="Only this namespace; without it all.")
    @click.option("--org", default="", help=f"Only this org, {ROOT_ORG_FOLDER} for the one without a name.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
    @click.argument("data", type=click.Path(path_type=Path))
    @functools.wraps(function)
    def command(data: Path, namespace: str, org: str, as_json: bool, **arguments: Any) -> None:
        function(found(data, org, namespace), Output(as_json=as_json), **arguments)

    return command


def found(data: Path, org: str = "", namespace: str = "") -> list[StoredNamespace]:
    """The files that are meant, sorted. Raises `click.UsageError` when there are none."""
    if str(data) == MEMORY:
        raise click.UsageError(f"{MEMORY} keeps nothing on disk: name the directory that a server was given as --data")
    if not data.is_dir():
        raise click.UsageError(f"there is no directory {str(data)!r}: name the one that the server was given as --data")
    try:
        there = [
            StoredNamespace(folder.name, path.name.removesuffix(SUFFIX), path)
            for folder in sorted(data.iterdir())
            if folder.is_dir()
            for path in sorted(folder.iterdir())
            if path.name.endswith(SUFFIX) and path.is_file()
        ]
    except OSError as error:
        raise click.UsageError(f"{str(data)!r} cannot be read: {error}") from None
    if not there:
        example = data / ROOT_ORG_FOLDER / f"default{SUFFIX}"
        raise click.UsageError(f"{str(data)!r} holds no namespaces, which are files such as {example}")
    chosen = [item for item in there if org in ("", item.folder) and namespace in ("", item.namespace)]
    if not chosen:
        names = ", ".join(f"{item.folder}/{item.namespace}" for item in there[:20])
        wanted = f"{org or '*'}/{namespace or '*'}"
        raise click.UsageError(f"{str(data)!r} holds no {wanted}; there is {names}{', ...' if there[20:] else ''}")
    return chosen


@click.command(short_help="Copy a data directory, also of a running server.")
@_selecting
@click.argument("target", type=click.Path(path_type=Path))
def backup(stored: list[StoredNamespace], output: Output, target: Path) -> None:
    """Copy the namespaces in the directory DATA into the directory TARGET, laid out as it is in DATA.

    Each copy is of one moment and appears whole or not at all; a server that runs goes on meanwhile. Nothing that
    exists is overwritten. To go back, start a server with --data TARGET.
    """
    _check_target(stored, target)
    copies = {item: target / item.folder / item.path.name for item in stored}

    def copy(item: StoredNamespace) -> int:
        try:
            make_folder(copies[item].parent)
            return maintenance.backup(item.path, copies[item])
        except DiskFull:
            text = f"no room in {target} for the copy of {item.path}: free space there, or name another directory"
            raise DiskFull(text) from None
        except FileExistsError as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            raise translated_os_error(error, copies[item]) from None

    done, problems = _each(stored, "backup", copy)
    rows = [{**item.names, "file": str(copies[item]), "bytes": size} for item, size in done]
    output.rows(rows, {"org": "ORG", "namespace": "NAMESPACE", "bytes": "BYTES", "file": "FILE"}, none="nothing copied")
    _end(problems)


def _check_target(stored: list[StoredNamespace], target: Path) -> None:
    """Before anything is copied: half a backup that fails on its last file is of no use."""
    data = stored[0].path.parent.parent
    if target.resolve().is_relative_to(data.resolve()):
        raise click.UsageError(f"{str(target)!r} is inside of {str(data)!r}: name a directory elsewhere")
    if target.exists() and not target.is_dir():
        raise click.UsageError(f"{str(target)!r} is a file: name a directory")
    for item in stored:
        path = target / item.folder / item.path.name
        if path.exists():
            raise click.UsageError(f"{str(path)!r} exists, and a backup overwrites nothing: name another directory")


@click.command(short_help="Look for damage in a data directory.")
@_selecting
def verify(stored: list[StoredNamespace], output: Output) -> None:
    """Read every record of the namespaces in the directory DATA, also while a server runs.

    The exit status is 1 when something is damaged, and each damaged record is named with its table and key.
    """
    done, problems = _each(stored, "verify", lambda item: maintenance.verify(item.path))
    rows = [
        {
            **item.names,
            "records": report.records,
            "state": "good" if report.is_good else "damaged",
            "damaged": [_damaged(record) for record in report.damaged],
            "file_errors": report.file_errors,
        }
        for item, report in done
    ]
    columns = {"org": "ORG", "namespace": "NAMESPACE", "state": "STATE", "records": "RECORDS", "file": "FILE"}
    output.rows(rows, columns, none="nothing could be read")
    for row in rows:
        for record in row["damaged"]:
            output.say(f"{row['file']}: table {record['table']!r}, key {record['key']} is damaged")
        for text in row["file_errors"]:
            output.say(f"{row['file']}: {text}")
    bad = [row for row in rows if row["state"] != "good"]
    _end(problems, f"{len(bad)} of {len(stored)} files damaged: restore them from a backup" if bad else "")


def _damaged(record: Damaged) -> dict[str, str]:
    try:
        key = str(decode_key(record.key))
    except ValueError:
        key = record.key.hex()
    return {"table": record.table, "key": key, "key_bytes": record.key.hex()}


@click.command(short_help="Give unused space of a data directory back.")
@_selecting
def compact(stored: list[StoredNamespace], output: Output) -> None:
    """Give what the files of the namespaces in the directory DATA no longer use back to the file system.

    A server that runs goes on meanwhile.
    """
    done, problems = _each(stored, "compact", lambda item: maintenance.compact(item.path))
    rows = [{**item.names, "freed": freed, "bytes": _size(item.path)} for item, freed in done]
    columns = {"org": "ORG", "namespace": "NAMESPACE", "freed": "FREED", "bytes": "BYTES", "file": "FILE"}
    output.rows(rows, columns, none="nothing compacted")
    _end(problems)


def _each(
    stored: list[StoredNamespace], what: str, work: Callable[[StoredNamespace], T]
) -> tuple[list[tuple[StoredNamespace, T]], list[StoreError]]:
    """Do `work` with each file, with a progress bar on a terminal: what it returned, and where it failed.

    A file that is broken does not keep the others waiting; a full disk ends it.
    """
    done: list[tuple[StoredNamespace, T]] = []
    problems: list[StoreError] = []
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=sum(_size(item.path) for item in stored))
        for item in stored:
            size = _size(item.path)
            progress.update(task, description=f"{what} {item.folder}/{item.namespace}")
            try:
                if not size:
                    raise StoreError(
                        f"{item.path} is empty: no server has finished making it, so nothing is lost in it"
                    )
                done.append((item, work(item)))
            except (StoreError, sqlite3.Error, OSError) as error:
                problems.append(_store_error(error, item.path))
                if isinstance(problems[-1], DiskFull):
                    break
            progress.advance(task, size)
    return done, problems


def _store_error(error: Exception, path: Path) -> StoreError:
    match error:
        case sqlite3.Error():
            return translated(error, path)
        case OSError():
            return translated_os_error(error, path)
    assert isinstance(error, StoreError)
    return error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # removed since it was found: the work with it says so


def _end(problems: list[StoreError], text: str = "") -> None:
    """Say what did not work, on stderr, and end with status 1; or return."""
    texts = [str(problem) for problem in problems] + ([text] if text else [])
    if texts:
        raise click.ClickException("\n".join(texts))
