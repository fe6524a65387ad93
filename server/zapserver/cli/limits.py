"""`zaptasks limits`: every bound of a server, from the table behind `serve --limit`."""

from __future__ import annotations

import click
from rich.table import Table

from zapserver.cli.output import Output, make_console
from zapserver.limits import known_limits


@click.command(short_help="List the limits of a server.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def limits(as_json: bool) -> None:
    """List the limits that `zaptasks serve --limit NAME=VALUE` sets, with their defaults and reasons."""
    if as_json:
        keys = ("name", "default", "unit", "reason", "least", "most")
        Output(as_json=True).json([{key: getattr(row, key) for key in keys} for row in known_limits()])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("NAME", no_wrap=True)
    table.add_column("DEFAULT", justify="right", no_wrap=True)
    table.add_column("UNIT", no_wrap=True)
    table.add_column("REASON", overflow="fold")
    for row in known_limits():
        table.add_row(row.name, str(row.default), row.unit, row.reason)
    make_console().print(table)
