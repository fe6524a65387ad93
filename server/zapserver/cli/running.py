"""Running the asynchronous part of a command, and turning what it raises into one line and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TypeVarTuple

import click
import trio

from zaptasks.groups import unwrapped
from zapwire.errors import ZapError

Ts = TypeVarTuple("Ts")

INTERRUPTED = 130
"""128 and SIGINT: what a shell expects of a command that was interrupted."""


def run(function: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
    """Run it to its end. A `ZapError` or a click exception, alone or in a group, ends the command with its text."""
    try:
        with unwrapped():
            trio.run(function, *args)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except ZapError as error:
        raise click.ClickException(str(error)) from None
