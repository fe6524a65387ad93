"""`zaptasks worker module:object`: a worker for the handlers that a module holds."""

from __future__ import annotations

from functools import partial

import click

from zapserver.cli.connecting import zap_options
from zapserver.cli.modules import load_handlers
from zapserver.cli.running import run
from zapserver.logs import FORMATS, LEVELS, configure_logging
from zaptasks import open_client, run_worker
from zaptasks.options import PER_SECOND_MAX, PER_SECOND_MIN
from zaptasks.session_host import PLACES_MAX
from zaptasks.worker_options import MAX_PROCESSES, MAX_THREADS, SHUTDOWN_SECONDS, SLOTS

RATE = click.FloatRange(PER_SECOND_MIN, PER_SECOND_MAX)


@click.command(short_help="Run a worker for the handlers of a module.")
@click.argument("target", metavar="MODULE[:OBJECT]")
@zap_options
@click.option("--task-queue", default="default", show_default=True)
@click.option("--slots", type=click.IntRange(1), default=SLOTS, show_default=True, help="Handlers that run at once.")
@click.option(
    "--threads", type=click.IntRange(1), default=MAX_THREADS, show_default=True, help="Of those, `def` handlers."
)
@click.option(
    "--processes", type=click.IntRange(1), default=MAX_PROCESSES, show_default=True, help="For handlers in processes."
)
@click.option(
    "--tasks-per-second", type=RATE, default=None, help="Activities and tasks a second that it gets; no bound if not."
)
@click.option(
    "--queue-tasks-per-second", type=RATE, default=None, help="The same for all workers of the task queue together."
)
@click.option(
    "--sessions",
    type=click.IntRange(0, PLACES_MAX),
    default=0,
    show_default=True,
    help="Sessions of workflows at once.",
)
@click.option("--identity", default="", help="Who it is to people who look at the server.")
@click.option("--build-id", default="", help="Which build of the code this is, for histories and `explain`.")
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
    processes: int,
    tasks_per_second: float | None,
    queue_tasks_per_second: float | None,
    sessions: int,
    identity: str,
    build_id: str,
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
                max_processes=processes,
                build_id=build_id,
                tasks_per_second=tasks_per_second,
                queue_tasks_per_second=queue_tasks_per_second,
                sessions=sessions,
                shutdown_timeout=shutdown_timeout,
            )

    run(partial(serve))
