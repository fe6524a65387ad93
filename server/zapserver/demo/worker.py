"""The worker process of the demo: `python -m zapserver.demo.worker HOST:PORT`."""

from __future__ import annotations

import os
import signal
import sys

import trio

from zapserver.demo import shop
from zapserver.demo.journal import WORKER_VARIABLE, tell_ready
from zapserver.logs import configure_logging
from zaptasks import open_client, open_worker


async def main(address: str) -> None:
    """Serve the shop's handlers until SIGTERM."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with (
            open_client(address) as client,
            open_worker(
                client,
                tasks=shop.TASKS,
                activities=shop.ACTIVITIES,
                workflows=shop.WORKFLOWS,
                slots=8,
                max_threads=2,
                identity=os.environ[WORKER_VARIABLE],
            ),
        ):
            tell_ready()
            await anext(signals)


if __name__ == "__main__":
    configure_logging()
    trio.run(main, sys.argv[1])
