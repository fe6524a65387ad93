"""What a server does when a store takes nothing: try until it does, then go on from what was kept."""

from __future__ import annotations

from typing import Final

import structlog
import trio

from zapserver.dispatch import Dispatcher
from zapserver.namespaces import Namespace
from zapserver.store import StoreError

RETRY_SECONDS_MIN: Final = 0.1
RETRY_SECONDS_MAX: Final = 5.0
"""How long a disk that is well again may go unnoticed."""

log = structlog.get_logger("zapserver")


class Mender:
    """Watches the journals of a dispatcher's namespaces. `run` is its task."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._failed: list[Namespace] = []
        self._noticed = trio.Event()
        dispatcher.on_store_failure = self._notice

    def _notice(self, namespace: Namespace) -> None:
        self._failed.append(namespace)
        self._noticed.set()

    async def run(self) -> None:
        """For ever."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._noticed.wait()
                self._noticed = trio.Event()
                while self._failed:
                    nursery.start_soon(self._mend, self._failed.pop())

    async def _mend(self, namespace: Namespace) -> None:
        failure = namespace.journal.failure
        log.error("the store takes nothing, and its namespace refuses every call", namespace=namespace.name,
                  reason=str(failure))  # fmt: skip
        pause = RETRY_SECONDS_MIN
        while (error := await _recover(namespace)) is not None:
            if type(error) is not type(failure):
                failure = error
                log.error("the store still takes nothing", namespace=namespace.name, reason=str(error))
            await trio.sleep(pause)
            pause = min(2 * pause, RETRY_SECONDS_MAX)
        self._dispatcher.rebuild(namespace)
        log.info("the store is well again, and its namespace is served", namespace=namespace.name)


async def _recover(namespace: Namespace) -> StoreError | None:
    outcome: list[StoreError | None] = []
    done = trio.Event()

    def settle(error: StoreError | None) -> None:
        outcome.append(error)
        done.set()

    namespace.journal.recover(settle)
    await done.wait()
    return outcome[0]
