"""`zaptasks worker module:object`: a worker for the handlers that a module holds."""

from __future__ import annotations

from functools import partial

import click

from zapserver.cli.connecting import zap_options
from zapserver.cli.modules import load_handlers
from zapserver.cli.running import run
from zapserver.logs import FORMATS, LEVELS, configure_logging
from zaptasks import open_client, run_worker
from zaptasks.worker import MAX_THREADS, SHUTDOWN_SECONDS, SLOTS


@click.command(short_help="Run a worker for the handlers of a module.")
@click.argument("target", metavar="MODULE[:OBJECT]")
@zap_options
@click.option("--task-queue", default="default", show_default=True)
@click.option("--slots", type=click.IntRange(1), default=SLOTS, show_default=True, help="Handlers that run at once.")
@click.option(
    "--threads", type=click.IntRange(1), default=MAX_THREADS, show_default=True, help="Of those, `def` handlers."
)
@click.option("--identity", default="", help="Who it is to people who look at the server.")
@click.option(
    "--shutdown-timeout",
    type=click.FloatRange(0),
    default=SHUTDOWN_SECONDS,
    show_default=True,
    help="Seconds that running handlers get at SIGTERM before they are handed back.",
)
@click.option("--log-format", type=click.Choice(FORMATS), default="text", show_default=True)
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True)
def worker(
    target: str,
    zap: str,
    namespace: str,
    timeout: float,
    task_queue: str,
    slots: int,
    threads: int,
    identity: str,
    shutdown_timeout: float,
    log_format: str,
    log_level: str,
) -> None:
    """Run a worker until SIGTERM or SIGINT, then finish what runs or hand it back.

    MODULE is a Python module, also one in the current directory; OBJECT in it is a function or workflow, a list of
    them, or a dict of names to them. Without an OBJECT, everything decorated in the module is served.
    """
    configure_logging(log_format, log_level)
    handlers = load_handlers(target)

    async def serve() -> None:
        async with open_client(zap, namespace=namespace, identity=identity, timeout=timeout, wait=False) as client:
            await run_worker(
                client,
                task_queue,
                tasks=handlers.tasks,
                activities=handlers.activities,
                workflows=handlers.workflows,
                slots=slots,
                max_threads=threads,
                shutdown_timeout=shutdown_timeout,
            )

    run(partial(serve))
