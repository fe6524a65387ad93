"""One seed: everything is set up, faults happen for a while, then they stop and everything has to end."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from random import Random
from unittest.mock import patch

import structlog
from tests.sim.checkers import Checkers
from tests.sim.disk import SimDisk
from tests.sim.peer import Peer, Surroundings
from tests.sim.player import Player
from tests.sim.plays import PLAY, RIDDLE
from tests.sim.profile import Profile, draw_profile
from tests.sim.replayer import Replayer
from tests.sim.server import SimServer
from tests.sim.tokens import TokenHolder
from tests.sim.worker import KNOWN_FLOWS, Worker
from tests.sim.world import Violation, World

from zapserver.engine import histories
from zapserver.engine.commands import CancelExecution, PauseSchedule

SAFETY_MS_MAX = 10 * 60_000
"""The operations of a seed are done by then."""
CALM_MS = 60_000
"""How long schedules go on after the faults."""
LIVENESS_MS_MAX = 20 * 60_000
"""How long everything may take to end once faults have stopped: all retries and timeouts of a task."""
NAMESPACES = ("default", "second")
CHUNK_BYTES_MAX = 2_000
"""What of a history goes with a workflow task, so that workers have something to read."""
EVENTS_MAX = 400_000
"""More of them are a loop."""


@dataclass(frozen=True, slots=True)
class Report:
    seed: int
    violation: Violation | None
    counts: Counter[str]
    trace_hash: str
    events: int


class Simulation:
    def __init__(self, seed: int, *, is_traced: bool = False) -> None:
        self.world = World(seed, is_traced=is_traced)
        self.profile: Profile = draw_profile(Random(f"profile {seed}"))
        self.world.note("profile", self.profile)
        self.names = NAMESPACES[: self.profile.namespaces]
        if len(self.names) > 1:
            self.world.count("seeds of two namespaces")
        self.disks = {name: SimDisk(self.world) for name in self.names}
        self.checkers = {name: Checkers(self.world, self.profile) for name in self.names}
        self.server = SimServer(self.world, self.profile, self.disks, self.checkers)
        self.around = Surroundings(self.world, self.profile, self.server, self.checkers)
        self.clients = [
            Player(self.around, f"client-{number}", self._namespace(number)) for number in range(self.profile.clients)
        ]
        self.workers = [self._worker(number) for number in range(max(self.profile.workers, len(self.names)))]
        self.workers += [self._replayer(number) for number in range(self.profile.replayers * len(self.names))]
        self.holder = TokenHolder(self.around, "holder", self.names[0])
        self._operations_left = self.profile.operations
        self._events = 0
        self._offset_max_ms = 0

    def _namespace(self, number: int) -> str:
        return self.names[number % len(self.names)]

    def _worker(self, number: int) -> Worker:
        slots = self.world.random.choice((1, 3, 10))
        is_first = number < len(self.names)
        knows = KNOWN_FLOWS if is_first or self.world.chance(0.7) else KNOWN_FLOWS[:1]
        return Worker(self.around, f"worker-{number}", self._namespace(number), slots=slots, knows=knows)

    def _replayer(self, number: int) -> Worker:
        slots = self.world.random.choice((1, 3, 10))
        is_first = number < len(self.names)
        knows = (PLAY, RIDDLE) if is_first or self.world.chance(0.5) else (PLAY,)
        return Replayer(self.around, f"replayer-{number}", self._namespace(number), slots=slots, knows=knows)

    @property
    def _peers(self) -> list[Peer]:
        return [*self.clients, self.holder, *self.workers]

    # --- the phases ----------------------------------------------------------------------------------

    def run(self) -> Report:
        """Until the first violation, or to the end."""
        self._be_unsafe()
        if self.world.violation is None:
            self._be_kind()
        return Report(self.world.seed, self.world.violation, self.world.counts, self.world.trace_hash, self._events)

    def _be_unsafe(self) -> None:
        self.server.start()
        for peer in self._peers:
            peer.start()
        for client in self.clients:
            self._plan_operation(client)
        if self.profile.faults:
            self._plan_fault()
        self._run_until(lambda: self._operations_left <= 0 or self.world.now_ms > SAFETY_MS_MAX)
        self._run_for(self.world.between(0, 5_000))

    def _be_kind(self) -> None:
        """Faults stop, and everything that can end does."""
        self.around.is_calm = True
        self.world.note("calm")
        for disk in self.disks.values():
            disk.is_full = disk.is_failing = disk.is_slow = False
        self._set_clock_right()
        for peer in self._peers:
            peer.start()
            self._resume(peer)
        self._run_for(CALM_MS)
        self._run_until(lambda: self._serves, CALM_MS)
        if self.world.violation is not None:
            return
        if not self._serves:
            self.world.fail("4 end", "the server does not come back")
            return
        self._end_by_hand()
        self._run_until(lambda: self._serves and not self._is_something_open(), LIVENESS_MS_MAX)
        self._run_for(5_000)
        self._check_end()
        if self.world.violation is None:
            self._restart_once_more()

    def _restart_once_more(self) -> None:
        """What was true at the end is true after one more loss of power."""
        self.server.crash(is_power=True)
        self._run_until(lambda: self._serves, CALM_MS)
        self._run_for(CALM_MS)
        self._check_end()

    def _check_end(self) -> None:
        for name, checkers in self.checkers.items():
            if self.world.violation is None:
                checkers.check_end(self.server.engine(name))

    def _is_something_open(self) -> bool:
        return any(checkers.endings.still_open(self.server.engine(name)) for name, checkers in self.checkers.items())

    @property
    def _serves(self) -> bool:
        return all(self.server.serves(name) for name in self.names)

    def _set_clock_right(self) -> None:
        """Where it was set back the engine's time has stood still, and would go on to."""
        right_ms = max(self.world.clock_offset_ms, self._offset_max_ms)
        self.world.jumped_ms += right_ms - self.world.clock_offset_ms
        self.world.clock_offset_ms = right_ms

    def _end_by_hand(self) -> None:
        """Schedules pause, and what runs until it is stopped is stopped."""
        for name in self.names:
            self._end_namespace_by_hand(name)

    def _end_namespace_by_hand(self, name: str) -> None:
        engine, dispatcher, checkers = self.server.engine(name), self.server.dispatcher, self.checkers[name]
        namespace = dispatcher.namespaces.get(name)
        for schedule in engine.views.schedules():
            if not schedule.paused:
                dispatcher.submit(PauseSchedule(schedule_id=schedule.schedule_id, paused=True), namespace)
                checkers.kept.paused(schedule.schedule_id)
        for execution in checkers.endings.still_open(engine):
            if execution.type == "forever":
                self.world.count("canceled at the end")
                dispatcher.submit(
                    CancelExecution(workflow_id=execution.workflow_id, run_id=execution.run_id), namespace
                )
                checkers.cancels.acknowledged(execution.run_id)

    # --- events --------------------------------------------------------------------------------------

    def _step(self) -> bool:
        if self._events >= EVENTS_MAX:
            self.world.fail("4 end", f"{EVENTS_MAX} events and no end: something goes round and round")
        if self.world.violation is not None or not self.world.step():
            return False
        self._events += 1
        for name, checkers in self.checkers.items():
            checkers.stepped(is_serving=self.server.serves(name), is_disk_well=self.disks[name].is_well)
        return True

    def _run_until(self, is_done: Callable[[], bool], ms_max: int = SAFETY_MS_MAX * 2) -> None:
        until_ms = self.world.now_ms + ms_max
        while self.world.now_ms <= until_ms and not is_done():
            if not self._step():
                return

    def _run_for(self, ms: int) -> None:
        done: list[bool] = []
        self.world.after(ms, lambda: done.append(True))
        self._run_until(lambda: bool(done))

    def _plan_operation(self, client: Player) -> None:
        def act() -> None:
            if self.around.is_calm or self._operations_left <= 0:
                return
            if client.is_connected:
                self._operations_left -= 1
                weights = self.profile.operation_weights
                client.act(self.world.random.choices(list(weights), list(weights.values()))[0])
            self._plan_operation(client)

        self.world.after(int(self.world.random.expovariate(1 / self.profile.think_ms)), act)

    # --- faults --------------------------------------------------------------------------------------

    def _plan_fault(self) -> None:
        def happen() -> None:
            if not self.around.is_calm:
                self._happen(self.world.random.choice(self.profile.faults))
                self._plan_fault()

        self.world.after(int(self.world.random.expovariate(1 / self.profile.fault_pause_ms)), happen)

    def _happen(self, fault: str) -> None:
        world = self.world
        world.count(f"fault {fault}")
        world.note("fault", fault)
        match fault:
            case "server stop":
                self.server.stop()
            case "server kill":
                self.server.crash(is_power=False)
            case "power loss":
                if world.chance(0.5):
                    self.server.crash(is_power=True)
                else:
                    self._any_disk().when_written = self._lose_power
            case "client crash":
                world.random.choice([*self.clients, self.holder]).crash()
            case "worker crash":
                world.random.choice(self.workers).crash()
            case "cut":
                cable = world.random.choice(self._peers).cable
                if cable is not None:
                    cable.cut(world.random.choice((100, 2_000, 20_000)))
            case "stall":
                self._stall(world.random.choice(self._peers))
            case "slow disk":
                self._for_a_while("is_slow")
            case "disk full":
                self._for_a_while("is_full")
            case "disk failing":
                self._for_a_while("is_failing")
            case "clock forward":
                jump_ms = world.random.choice((500, 20_000, 600_000, 6 * 3_600_000))
                world.clock_offset_ms += jump_ms
                world.jumped_ms += jump_ms
                self._offset_max_ms = max(self._offset_max_ms, world.clock_offset_ms)
            case "clock back":
                world.clock_offset_ms -= world.random.choice((500, 20_000, 600_000))
            case _:
                raise AssertionError(fault)

    def _lose_power(self) -> None:
        if not self.around.is_calm:
            self.server.crash(is_power=True)

    def _stall(self, peer: Peer) -> None:
        cable = peer.cable
        if cable is None or cable.is_cut or cable.to_client.is_stalled:
            return
        cable.stall()
        self.world.after(self.world.random.choice((1_000, 8_000, 30_000)), lambda: self._resume(peer))

    def _resume(self, peer: Peer) -> None:
        cable = peer.cable
        if cable is not None:
            cable.resume()

    def _for_a_while(self, what: str) -> None:
        disk = self._any_disk()
        setattr(disk, what, True)
        self.world.after(self.world.between(200, 5_000), lambda: setattr(disk, what, False))

    def _any_disk(self) -> SimDisk:
        return self.world.random.choice(list(self.disks.values()))


@contextmanager
def _quiet() -> Iterator[None]:
    """The server's log lines say what a run does on purpose; a trace shows them."""
    config = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**config)


def run_seed(seed: int, *, is_traced: bool = False) -> Report:
    """The same seed does the same, in any process."""
    with nullcontext() if is_traced else _quiet(), patch.object(histories, "CHUNK_BYTES_MAX", CHUNK_BYTES_MAX):
        return Simulation(seed, is_traced=is_traced).run()
