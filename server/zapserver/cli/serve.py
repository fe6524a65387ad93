"""`zaptasks serve`: the flags and environment of the Go daemon, one line when ready, a clean end on a signal."""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys

import click
import structlog
import trio

from zapserver.cli.running import run
from zapserver.limits import LimitsError, parse_limits
from zapserver.logs import FORMATS, LEVELS, configure_logging
from zapserver.server import StartError, open_server
from zapserver.settings import (
    DATA_DEFAULT,
    HTTP_PORT_DEFAULT,
    MEMORY,
    NODE_ID_DEFAULT,
    ZAP_PORT_DEFAULT,
    Settings,
    SettingsError,
    parse_address,
)

SWITCH_SECONDS = 0.0002
COLLECTOR_THRESHOLDS = (10_000, 20, 50)
"""New objects that survive for a collection of the youngest, of those for one of the middle, and of those for all."""

log = structlog.get_logger("zapserver")


class _GoFlags(click.Command):
    """Go's flags have one dash or two, and both are in use in scripts: `-zap-port 9999` works as well."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {option for parameter in self.params for option in parameter.opts if option.startswith("--")}
        return super().parse_args(ctx, [f"-{arg}" if f"-{arg.partition('=')[0]}" in known else arg for arg in args])


@click.command(cls=_GoFlags, short_help="Run the server.")
@click.option(
    "--zap-port",
    default=str(ZAP_PORT_DEFAULT),
    metavar="[HOST:]PORT",
    envvar="TASKS_ZAP_PORT",
    help="Where to speak ZAP.",
)
@click.option(
    "--http",
    default=f":{HTTP_PORT_DEFAULT}",
    metavar="[HOST]:PORT",
    envvar="TASKS_HTTP_ADDR",
    help="Where to speak HTTP.",
)
@click.option(
    "--data",
    default=DATA_DEFAULT,
    show_default=True,
    metavar="DIR",
    envvar=["TASKSD_DATA_DIR", "TASKS_DATA_DIR"],
    help=f"Where to keep everything, one file a namespace; {MEMORY} keeps nothing.",
)
@click.option("--namespace", default="default", envvar="TASKS_NAMESPACE", help="What calls mean that name none.")
@click.option("--node-id", default=NODE_ID_DEFAULT, envvar="TASKSD_NODE_ID", help="The server's name in the handshake.")
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="NAME=VALUE",
    help="Set a limit, once or more; `zaptasks limits` lists them. TASKSD_LIMITS takes several, with commas.",
)
@click.option(
    "--allow-anonymous",
    is_flag=True,
    envvar="TASKSD_ALLOW_ANONYMOUS",
    help="Listen on other than loopback addresses without asking anyone who they are.",
)
@click.option("--require-identity", is_flag=True, envvar="TASKSD_REQUIRE_IDENTITY", hidden=True)
@click.option("--jwks-url", default="", envvar="TASKSD_JWKS_URL", hidden=True)
@click.option("--log-format", type=click.Choice(FORMATS), default="text", envvar="TASKSD_LOG_FORMAT")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", envvar="TASKSD_LOG_LEVEL")
def serve(
    zap_port: str,
    http: str,
    data: str,
    namespace: str,
    node_id: str,
    limits: tuple[str, ...],
    allow_anonymous: bool,
    require_identity: bool,
    jwks_url: str,
    log_format: str,
    log_level: str,
) -> None:
    """Run the server until SIGTERM or SIGINT.

    When it is ready it prints one line on stdout, `ready zap=HOST:PORT http=HOST:PORT`; logs go to stderr. Both
    ports are on loopback unless an address says otherwise, and port 0 means any free one.
    """
    try:
        from_environment = [text for text in os.environ.get("TASKSD_LIMITS", "").split(",") if text.strip()]
        of_namespaces, of_server = parse_limits([*from_environment, *limits])
        settings = Settings(
            zap=parse_address(zap_port),
            http=parse_address(http),
            data=data,
            namespace=namespace,
            node_id=node_id,
            limits=of_namespaces,
            server_limits=of_server,
            allow_anonymous=allow_anonymous,
            require_identity=require_identity,
            jwks_url=jwks_url,
        )
    except (SettingsError, LimitsError) as error:
        raise click.UsageError(str(error)) from None
    configure_logging(log_format, log_level)
    _use_all_descriptors()
    # A commit in the writer's thread takes the interpreter lock a few times, and a busy loop gives it away only
    # after this long: with the default of 5 ms a commit under load took 8 ms, with this one 4 and less.
    sys.setswitchinterval(SWITCH_SECONDS)
    run(_serve, settings)


def _use_all_descriptors() -> None:
    """Connections and stores need thousands; the usual soft limit is for programs that call `select`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _serve(settings: Settings) -> None:
    gc.disable()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        try:
            async with open_server(settings) as server:
                _spare_what_was_opened()
                # The one line that scripts wait for.
                click.echo(f"ready zap={server.zap_address} http={server.http_address}")
                log.info("serving", zap=str(server.zap_address), http=str(server.http_address), data=settings.data)
                async for received in signals:
                    log.info("draining", signal=signal.Signals(received).name)
                    break
        except StartError as error:
            raise click.ClickException(str(error)) from None
    log.info("ended")


def _spare_what_was_opened() -> None:
    """What was just read stays for long: the collector begins now, and need not look through it.

    With 100,000 open tasks a full collection stopped the server for more than a second, and one comes soon after the
    start. Garbage in cycles comes from errors alone, so that a larger first generation costs little memory.
    """
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
    gc.enable()
