"""`zaptasks inspect`: a file of captured traffic, or a proxy that shows what goes through it."""

from __future__ import annotations

import sys
from functools import partial
from typing import BinaryIO

import click

from zapserver.captures import BadLine
from zapserver.cli.running import run
from zapserver.dissect import Frame
from zapserver.inspect import dissect_capture, json_line, run_proxy, text_lines
from zapserver.settings import Address, SettingsError, parse_address


def _address(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Address | None:
    if value is None:
        return None
    try:
        return parse_address(value)
    except SettingsError as error:
        raise click.BadParameter(str(error)) from None


@click.command(short_help="Show captured or live ZAP traffic.")
@click.argument("file", type=click.File("rb"), required=False)
@click.option("--listen", metavar="HOST:PORT", callback=_address, help="Be a proxy: take connections here.")
@click.option("--to", metavar="HOST:PORT", callback=_address, help="Where the proxy passes them on to.")
@click.option("--verbose", "-v", is_flag=True, help="Every field with its offset, and bodies in full.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a frame; it can be inspected again.")
def inspect(file: BinaryIO | None, listen: Address | None, to: Address | None, verbose: bool, as_json: bool) -> None:
    """Show frames, opcodes, fields and bodies, one line a frame.

    FILE (- for stdin) is a recording of JSON lines, the bytes of a connection, or a hex dump. Damage is shown with its
    offset and reason, and makes the exit status 1. With --listen and --to it shows live traffic instead, and passes
    every byte on unchanged.
    """
    printer = _Printer(verbose, as_json)
    if listen is not None and to is not None and file is None:
        run(partial(run_proxy, listen, to, printer.show, partial(click.echo, err=True)))
    elif file is not None and listen is None and to is None:
        for item in dissect_capture(file.read()):
            printer.show(item)
        sys.exit(1 if printer.saw_damage else 0)
    else:
        raise click.UsageError("give a FILE, or --listen and --to")


class _Printer:
    def __init__(self, verbose: bool, as_json: bool) -> None:
        self._verbose = verbose
        self._as_json = as_json
        self._count = 0
        self.saw_damage = False

    def show(self, item: Frame | BadLine) -> None:
        self._count += 1
        self.saw_damage |= isinstance(item, BadLine) or item.damage is not None
        if self._as_json:
            click.echo(json_line(item, self._count, verbose=self._verbose))
        else:
            for line in text_lines(item, verbose=self._verbose):
                click.echo(line)
