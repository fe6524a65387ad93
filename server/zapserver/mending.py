"""What a server does when a store takes nothing: try until it does, then go on from what was kept."""

from __future__ import annotations

import math
from typing import Final

import structlog
import trio

from zapserver.dispatch import Dispatcher
from zapserver.namespaces import Namespace
from zapserver.store import StoreError

RETRY_SECONDS_MIN: Final = 0.1
RETRY_SECONDS_MAX: Final = 5.0
"""How long a disk that is well again may go unnoticed."""
RELAPSE_SECONDS: Final = 10.0
"""A store that fails again so soon was not well: the next attempt waits, twice as long as the one before. Some disks
take the small commit of the attempt and no other, and each attempt that succeeds costs the reading of everything."""

log = structlog.get_logger("zapserver")


class Mender:
    """Watches the journals of a dispatcher's namespaces. `run` is its task."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._failed: list[Namespace] = []
        self._mending: set[Namespace] = set()
        self._mended: dict[str, tuple[float, float]] = {}
        """By namespace: when its store was last found well, and the pause before that."""
        self._noticed = trio.Event()
        dispatcher.on_store_failure = self._notice

    def _notice(self, namespace: Namespace) -> None:
        if namespace not in self._mending:
            self._mending.add(namespace)
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
        mended_at, pause = self._mended.get(namespace.name, (-math.inf, 0.0))
        if trio.current_time() - mended_at < RELAPSE_SECONDS:
            pause = _longer(pause)
            await trio.sleep(pause)
        else:
            pause = 0.0
        while (error := await self._attempt(namespace, pause)) is not None:
            if type(error) is not type(failure):
                failure = error
                log.error("the store still takes nothing", namespace=namespace.name, reason=str(error))
            pause = _longer(pause)
            await trio.sleep(pause)

    async def _attempt(self, namespace: Namespace, pause: float) -> StoreError | None:
        """Ask the store; if it commits again, its namespace is served again before anybody else can reach it."""
        outcome: list[StoreError | None] = []
        done = trio.Event()

        def settle(error: StoreError | None) -> None:
            if error is None:
                self._serve_again(namespace, pause)
            outcome.append(error)
            done.set()

        namespace.journal.recover(settle)
        await done.wait()
        return outcome[0]

    def _serve_again(self, namespace: Namespace, pause: float) -> None:
        self._mending.discard(namespace)
        self._mended[namespace.name] = (trio.current_time(), pause)
        try:
            self._dispatcher.rebuild(namespace)
        except Exception:  # it has failed again, which was noticed: the next attempt comes after a pause
            log.exception("what the store has kept could not be read", namespace=namespace.name)
            return
        log.info("the store is well again, and its namespace is served", namespace=namespace.name)


def _longer(pause: float) -> float:
    return min(max(2 * pause, RETRY_SECONDS_MIN), RETRY_SECONDS_MAX)
