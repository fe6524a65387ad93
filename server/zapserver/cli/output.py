"""What the commands print: tables and lines for eyes, or JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zapserver.printable import printable
from zaptasks import Durability

LOG_CHARACTERS: Final = 160
"""The width of a table that goes to a file or a pipe, which has none of its own."""


def make_console() -> Console:
    """A console for stdout, as wide as the terminal, or `LOG_CHARACTERS`."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=LOG_CHARACTERS)


class Payload:
    """A value that travels as JSON and is shown as JSON: the text "7" and the number 7 stay apart."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


class Output:
    """Where a command's answer goes. Texts of others (ids, payloads, reasons) are made safe to print."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def json(self, value: object) -> None:
        """One JSON value on one line."""
        click.echo(_encode(value))

    def say(self, text: str) -> None:
        """A line for eyes; programs asked for JSON and get nothing."""
        if not self.as_json:
            click.echo(printable(text))

    def warn(self, text: str) -> None:
        """A line on stderr, for eyes and for logs."""
        click.echo(printable(text), err=True)

    def reached(self, reached: Durability | None, asked: Durability | None) -> None:
        """Say it when a server did less than it was asked for."""
        if asked is not None and reached != asked:
            self.warn(f"the server answered with durability {reached or 'unknown'}, and {asked} was asked for")

    def rows(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, none: str) -> None:
        """Many of a kind: a table of `columns` (key to heading), or a JSON array of everything."""
        if self.as_json:
            self.json(rows)
            return
        if not rows:
            click.echo(none)
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        keys = list(columns)
        for key in keys:
            # Only what is long by nature may be broken: ids, and whatever stands last.
            table.add_column(columns[key], overflow="fold", no_wrap=key not in (keys[0], keys[-1]))
        for row in rows:
            table.add_row(*(Text(shown(row.get(key))) for key in keys))
        make_console().print(table)

    def record(self, record: Mapping[str, Any]) -> None:
        """One of a kind: a line for each key that has a value, or a JSON object."""
        if self.as_json:
            self.json(record)
            return
        known = {key: value for key, value in record.items() if shown(value) not in ("-", "", "{}")}
        width = max(map(len, known), default=0)
        for key, value in known.items():
            click.echo(f"{key:<{width}}  {shown(value)}")


def shown(value: object) -> str:
    """A value on one line."""
    match value:
        case None | Payload(value=None):
            return "-"
        case bool():
            return "yes" if value else "no"
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S}"
        case str():
            return printable(value)
        case list() if all(isinstance(item, str | datetime) for item in value):
            return ", ".join(shown(item) for item in value)
        case _:
            return printable(_encode(value))


def _encode(value: object) -> str:
    return msgspec.json.encode(value, enc_hook=_plain).decode()


def _plain(value: object) -> object:
    assert isinstance(value, Payload)  # everything else is JSON by itself
    return value.value
