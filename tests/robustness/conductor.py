"""What goes wrong in a run, when, and to whom: everything is drawn from one seed."""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable

import trio
from tests.robustness.processes import Broken, Process
from tests.robustness.proxy import Proxy

GAP_SECONDS = (0.1, 1.2)
"""Between two faults: some come while the one before is not over yet."""
SERVER_STOP_SECONDS_MAX = 1.5
WORKER_STOP_SECONDS_MAX = 3.0
STALL_SECONDS = (0.1, 3.0)
KILLED_AGAIN_SHARE = 0.15
"""Of the restarts of the server, how many are killed before it is ready."""
STARTING_SECONDS_MAX = 0.6


class Conductor:
    """Kills, stops and cuts until `kills` processes were killed with -9, or until it is told to end."""

    def __init__(self, server: Process, workers: list[Process], proxy: Proxy, rng: random.Random, kills: int) -> None:
        self._server = server
        self._workers = workers
        self._proxy = proxy
        self._rng = rng
        self._kills_wanted = kills
        self.faults: Counter[str] = Counter()
        self._operations: list[tuple[float, Callable[[], Awaitable[None]]]] = [
            (36, self._kill_server),
            (36, self._kill_worker),
            (4, self._stop_server),
            (6, self._stop_worker),
            (4, self._restart_server),
            (2, self._restart_worker),
            (6, self._cut),
            (6, self._stall),
            (3, self._delay),
        ]

    @property
    def kills(self) -> int:
        return self.faults["kill -9 server"] + self.faults["kill -9 worker"]

    async def run(self) -> None:
        """Until the kills are done. Everything runs again when it returns."""
        weights = [weight for weight, _ in self._operations]
        while self.kills < self._kills_wanted:
            await trio.sleep(self._rng.uniform(*GAP_SECONDS))
            for process in (self._server, *self._workers):
                if not process.is_running:
                    raise Broken(f"{process.name} ended by itself; its log ends in:\n{process.log_end()}")
            ((_, operation),) = self._rng.choices(self._operations, weights)
            await operation()
        self._proxy.delay(1.0, 0.0)

    # --- the server --------------------------------------------------------------------------------------

    async def _kill_server(self) -> None:
        await self._server.kill()
        self.faults["kill -9 server"] += 1
        await self._start_server()

    async def _start_server(self) -> None:
        self._server.start()
        while self.kills < self._kills_wanted and self._rng.random() < KILLED_AGAIN_SHARE:
            await trio.sleep(self._rng.uniform(0, STARTING_SECONDS_MAX))
            await self._server.kill()
            self.faults["kill -9 server"] += 1
            self._server.start()
        await self._server.wait_ready()

    async def _stop_server(self) -> None:
        await self._stop(self._server, SERVER_STOP_SECONDS_MAX)
        self.faults["SIGSTOP server"] += 1

    async def _restart_server(self) -> None:
        self._server.send(signal.SIGTERM)
        status = await self._server.ended()
        if status != 0:
            raise Broken(f"the server ended with {status} on SIGTERM; its log ends in:\n{self._server.log_end()}")
        self.faults["SIGTERM server"] += 1
        await self._start_server()

    # --- workers -------------------------------------------------------------------------------------------

    async def _kill_worker(self) -> None:
        worker = self._rng.choice(self._workers)
        await worker.kill()
        self.faults["kill -9 worker"] += 1
        worker.start()  # the next fault does not wait for it

    async def _stop_worker(self) -> None:
        await self._stop(self._rng.choice(self._workers), WORKER_STOP_SECONDS_MAX)
        self.faults["SIGSTOP worker"] += 1

    async def _restart_worker(self) -> None:
        worker = self._rng.choice(self._workers)
        worker.send(signal.SIGTERM)
        await worker.ended()
        self.faults["SIGTERM worker"] += 1
        worker.start()

    async def _stop(self, process: Process, seconds_max: float) -> None:
        process.send(signal.SIGSTOP)
        await trio.sleep(self._rng.uniform(0.05, seconds_max))
        process.send(signal.SIGCONT)

    # --- connections -----------------------------------------------------------------------------------------

    async def _cut(self) -> None:
        self.faults["connections cut"] += self._proxy.cut(self._rng.choice((0.3, 1.0)))

    async def _stall(self) -> None:
        self.faults["connections stalled"] += self._proxy.stall(0.6, self._rng.uniform(*STALL_SECONDS))

    async def _delay(self) -> None:
        self.faults["connections delayed"] += self._proxy.delay(0.5, self._rng.choice((0.0, 0.005, 0.05)))
