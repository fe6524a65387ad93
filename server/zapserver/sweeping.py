"""Retention: closed executions are kept for a while after their end, and then forgotten with their histories.

Their streamed output is forgotten much sooner: see `outputs`.
"""

from __future__ import annotations

from typing import Final

import structlog
import trio

from zapserver.dispatch import Dispatcher
from zapserver.engine.commands import SweepClosed
from zapserver.engine.errors import EngineError
from zapserver.namespaces import Namespace
from zapserver.store import StoreError

LOOK_SECONDS: Final = 60.0
SWEEP_EXECUTIONS: Final = 200
"""Forgotten in one step, some milliseconds; others are served between two of them."""
PAUSE_SECONDS: Final = 0.05

log = structlog.get_logger("zapserver")


class Sweeper:
    """Looks through a dispatcher's namespaces for what is past its retention. `run` is its task."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def run(self) -> None:
        """For ever."""
        while True:
            for namespace in list(self._dispatcher.namespaces):
                try:
                    await self.sweep(namespace)
                except (EngineError, StoreError) as error:
                    log.warning("retention waits", namespace=namespace.name, reason=str(error))
                except Exception:
                    log.exception("retention failed", namespace=namespace.name)
            await trio.sleep(LOOK_SECONDS)

    async def sweep(self, namespace: Namespace) -> int:
        """Forget everything in one namespace that is past its retention; how many executions that were."""
        namespace.outputs.sweep(namespace.engine.views.is_open, self._dispatcher.clock())
        forgotten = 0
        while True:
            before_ms = self._dispatcher.clock() - namespace.about.retention_ms
            command = SweepClosed(closed_before_ms=before_ms, limit=SWEEP_EXECUTIONS)
            swept = self._dispatcher.submit(command, namespace)
            await self._dispatcher.kept(namespace)
            forgotten += swept
            if not swept:
                return forgotten
            await trio.sleep(PAUSE_SECONDS)
