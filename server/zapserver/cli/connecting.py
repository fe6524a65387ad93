"""What the commands that talk to a server have in common: where it is, and how the answer is printed."""

from __future__ import annotations

import functools
import getpass
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from zapserver.cli.output import Output
from zapserver.cli.running import run
from zapserver.logs import configure_logging
from zapserver.settings import ZAP_PORT_DEFAULT
from zaptasks import open_client, parse_spec
from zaptasks.duration import SECOND, parse_duration
from zaptasks.options import DURABILITIES

ZAP_DEFAULT = f"127.0.0.1:{ZAP_PORT_DEFAULT}"


def zap_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Where the server is."""
    for option in (
        click.option("--timeout", type=click.FloatRange(0, min_open=True), default=10.0, help="Seconds for a call."),
        click.option("--namespace", default="default", envvar="TASKS_NAMESPACE", show_envvar=True, show_default=True),
        click.option(
            "--zap",
            default=ZAP_DEFAULT,
            envvar="TASKS_ZAP",
            show_envvar=True,
            show_default=True,
            help="The server's address.",
        ),
    ):
        function = option(function)
    return function


def with_client(function: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Make a command of an async function that takes a client, an `Output`, and the command's own arguments."""

    @zap_options
    @click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
    @functools.wraps(function)
    def command(zap: str, namespace: str, timeout: float, as_json: bool, **arguments: Any) -> None:
        # A connection that has to be tried again is no news to a person who waits for the outcome.
        configure_logging(level="error")

        async def work() -> None:
            async with open_client(zap, namespace=namespace, timeout=timeout, identity=_identity()) as client:
                await function(client, Output(as_json=as_json), **arguments)

        run(work)

    return command


durability_option = click.option(
    "--durability",
    type=click.Choice(DURABILITIES),
    help="What the answer waits for; without it the most that the server can do.",
)


def _identity() -> str:
    """Who signals, cancels and requeues, for the history: the person and the machine."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no such user id here, as in many containers
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


class JsonText(click.ParamType[Any]):
    """JSON on the command line, or - for JSON on stdin; the value arrives decoded."""

    name = "json"

    def convert(self, value: Any, parameter: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = sys.stdin.read() if value == "-" else value
        try:
            return msgspec.json.decode(text)
        except (msgspec.MsgspecError, UnicodeEncodeError) as error:
            self.fail(
                f"{text[:80]!r} is not JSON ({error}); a text needs quotes of its own: '\"text\"'", parameter, ctx
            )


class SpecText(click.ParamType[str]):
    """A duration or a cron expression that can fire, checked before anybody is asked."""

    name = "spec"

    def convert(self, value: str, parameter: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            parse_spec(value)
        except ValueError as error:
            self.fail(str(error), parameter, ctx)
        return value


class DurationText(click.ParamType[float]):
    """A Go duration such as 1h30m; the value arrives in seconds."""

    name = "duration"

    def convert(self, value: str | float, parameter: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = parse_duration(value) / SECOND if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), parameter, ctx)
        if seconds < 0:
            self.fail(f"{value!r} is negative: give 0s or more", parameter, ctx)
        return seconds


class TimeText(click.ParamType[datetime]):
    """A moment such as 2026-01-31T08:00:00+01:00; one without a time zone is in UTC."""

    name = "time"

    def convert(self, value: str | datetime, parameter: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        except ValueError:
            self.fail(f"{value!r} is no time: write 2026-01-31, or 2026-01-31T08:00:00+01:00", parameter, ctx)
        return moment if moment.utcoffset() is not None else moment.replace(tzinfo=UTC)


JSON = JsonText()
SPEC = SpecText()
DURATION = DurationText()
TIME = TimeText()
