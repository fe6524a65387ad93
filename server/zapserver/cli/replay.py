"""`zaptasks replay FILE... MODULE[:WORKFLOW]`: whether code fits the histories that are there; for a CI job."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from zapserver.cli.modules import load_handlers, load_object
from zapserver.cli.output import Output, make_console
from zapserver.logs import configure_logging
from zapserver.printable import printable
from zaptasks import DataConverter, HistoryError, Replayed, Replayer, WorkflowHistory
from zaptasks.converters import PLAIN
from zaptasks.exported_history import HISTORY_BYTES_MAX
from zaptasks.watchdog import Watchdog
from zaptasks.workflow import NondeterminismError, Place, Step
from zapwire.errors import ZapError

SUFFIXES: Final = (".json", ".cbor")
"""What of a directory is a history."""

COLUMNS: Final = {
    "file": "FILE",
    "workflow_type": "TYPE",
    "workflow_id": "ID",
    "events": "EVENTS",
    "fits": "FITS",
    "next": "THEN IT WOULD",
}
HELD_SECONDS_MAX: Final = 10.0
"""The largest histories replay in a second or two. Code that takes longer is perhaps in a loop: stderr says where."""

INPUT_CHARACTERS_MAX: Final = 200
LINES_AROUND: Final = 2
"""Of the source, before and behind the line that a mismatch is at."""


@click.command(short_help="Hold workflows against exported histories.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.argument("target", metavar="MODULE[:WORKFLOW]")
@click.option("--converter", metavar="MODULE:OBJECT", help="The DataConverter that opens encrypted payloads.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def replay(files: tuple[Path, ...], target: str, converter: str | None, as_json: bool) -> None:
    """Replay histories against the workflows of MODULE, without a server; exit status 1 if any does not fit.

    A FILE is what `zaptasks workflow history ID --json` printed, or the same as CBOR; of a directory, all files in it
    that end in .json or .cbor. WORKFLOW is a workflow in the module, a list of them, or a dict of types to them;
    without it all of the module are taken. A mismatch shows the line of the code, and what is recorded beside what the
    code does.
    """
    configure_logging(level="warning")
    replayer = Replayer(_workflows(target), converter=_converter(converter))
    console, watchdog = make_console(), Watchdog(HELD_SECONDS_MAX)
    records = []
    for path in _histories(files):
        with watchdog.watch(f"the replay of {path}"):
            replayed = _replayed(replayer, path)
        records.append(_record(path, replayed))
        if replayed.error is not None and not as_json:
            console.print(Text(_title(path, replayed.history), style="bold"))
            console.print(Padding(_explained(replayed.error), (0, 0, 1, 2), expand=False))
    Output(as_json=as_json).rows(records, COLUMNS, none="no histories")
    sys.exit(0 if all(record["fits"] for record in records) else 1)


def _workflows(target: str) -> dict[str, Any]:
    workflows = load_handlers(target).workflows
    if not workflows:
        raise click.UsageError(f"{target} holds no workflow: put one under @workflow.defn, or name it")
    return dict(workflows)


def _converter(target: str | None) -> DataConverter:
    if target is None:
        return PLAIN
    found = load_object(target)
    if not isinstance(found, DataConverter):
        raise click.UsageError(f"{target} is a {type(found).__name__}, and not a zaptasks.DataConverter")
    return found


def _histories(files: tuple[Path, ...]) -> Iterator[Path]:
    for path in files:
        if not path.is_dir():
            yield path
            continue
        inside = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if not inside:
            raise click.UsageError(f"the directory {path} has no file that ends in {' or '.join(SUFFIXES)}")
        yield from inside


def _replayed(replayer: Replayer, path: Path) -> Replayed:
    try:
        size = path.stat().st_size
        if size > HISTORY_BYTES_MAX:
            raise HistoryError(f"the file has {size} bytes, and a history at most {HISTORY_BYTES_MAX}")
        data = path.read_bytes()
    except OSError as error:
        return Replayed(history=None, error=HistoryError(f"the file cannot be read: {error.strerror}"))
    except ZapError as error:
        return Replayed(history=None, error=error)
    return replayer.replay_all([data])[0]


# --- for programs ------------------------------------------------------------------------------------------


def _record(path: Path, replayed: Replayed) -> dict[str, Any]:
    history, error = replayed.history, replayed.error
    return {
        "file": str(path),
        "workflow_type": history.workflow_type if history else "",
        "workflow_id": history.workflow_id if history else "",
        "run_id": history.run_id if history else "",
        "events": len(history.events) if history else 0,
        "fits": replayed.fits,
        "next": list(replayed.next),
        "error": None if error is None else _error_record(error),
    }


def _error_record(error: ZapError) -> dict[str, Any]:
    record: dict[str, Any] = {"code": error.code, "message": str(error)}
    if isinstance(error, NondeterminismError):
        record["place"] = error.place
        record["source"] = _source_record(error.source)
        record["recorded"] = _step_record(error.recorded)
        record["new"] = _step_record(error.new)
        record["matched"] = [_step_record(step) for step in error.matched]
    return record


def _step_record(step: Step | None) -> dict[str, Any] | None:
    if step is None:
        return None
    return {
        "text": step.text,
        "kind": step.kind,
        "name": step.name,
        "place": step.place,
        "input": _input(step),
        "event_id": step.event_id or None,
        "source": _source_record(step.source),
    }


def _source_record(place: Place | None) -> dict[str, Any] | None:
    return None if place is None else {"file": place.file, "line": place.line, "function": place.function}


# --- for eyes ----------------------------------------------------------------------------------------------


def _title(path: Path, history: WorkflowHistory | None) -> str:
    return printable(str(path) if history is None else f"{path}: {history}")


def _explained(error: ZapError) -> RenderableType:
    if not isinstance(error, NondeterminismError):
        return Text(printable(str(error)))
    line = "" if error.source is None else f"{error.source}: "
    parts: list[RenderableType] = [
        Text(f"{line}the code does not do what the history says that it did, at {error.place}"),
        *_source_lines(error.source),
        Text(),
        _beside(error.recorded, error.new),
        Text(),
    ]
    if error.matched:
        parts += [Text("Before that, these fit:"), _matched(error.matched), Text()]
    parts.append(Text("Put the old code back, or keep it beside the new: `if workflow.patched(...)`."))
    return Group(*parts)


def _beside(recorded: Step | None, new: Step | None) -> Table:
    table = _table("", "RECORDED", "NEW")
    for label, left, right in zip(_LABELS, _column(recorded), _column(new), strict=True):
        differs = left != right and label != "event"
        table.add_row(*_texts(label, left, right), style="red" if differs else "")
    return table


_LABELS: Final = ("what", "kind", "name", "place", "event", "input")


def _column(step: Step | None) -> tuple[str, ...]:
    if step is None:
        return ("nothing", "-", "-", "-", "-", "-")
    event = str(step.event_id or "-")
    return (step.text, step.kind or "-", step.name or "-", step.place or "-", event, _input(step) or "-")


def _matched(steps: tuple[Step, ...]) -> Table:
    table = _table("EVENT", "PLACE", "WHAT", "LINE")
    for step in steps:
        table.add_row(*_texts(str(step.event_id), step.place, step.text, str(step.source or "-")))
    return table


def _source_lines(place: Place | None) -> Iterator[Text]:
    """The line of the code and those around it, as far as the file is there."""
    if place is None:
        return
    for number in range(max(1, place.line - LINES_AROUND), place.line + LINES_AROUND + 1):
        code = linecache.getline(place.file, number).rstrip().expandtabs()
        if code:
            mark = ">" if number == place.line else " "
            yield Text(printable(f"{mark} {number:>5}  {code}"), style="bold" if mark == ">" else "dim")


def _input(step: Step) -> str | None:
    """What goes along, as JSON that fits a line; None for nothing."""
    if step.input is None:
        return None
    text = step.input.decode(errors="replace")
    return text if len(text) <= INPUT_CHARACTERS_MAX else f"{text[:INPUT_CHARACTERS_MAX]}..."


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _texts(*cells: str) -> list[Text]:
    return [Text(printable(cell)) for cell in cells]
