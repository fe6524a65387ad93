"""`zaptasks demo`."""

from __future__ import annotations

import sys

import click

from zapserver.cli.output import make_console
from zapserver.cli.running import run
from zapserver.demo.night import run_night
from zapserver.logs import configure_logging


@click.command(short_help="A server, a worker and a client at work, in half a minute.")
def demo() -> None:
    """An online shop's night: a server, two workers and a client, each a process of its own, on this machine.

    It shows what runs where and how long each step takes, and checks that all of it is as it must be: the exit status
    is 1 if anything is not. Nothing is left behind.
    """

    configure_logging(level="error")

    async def night() -> None:
        if not await run_night(make_console()):
            sys.exit(1)

    run(night)
