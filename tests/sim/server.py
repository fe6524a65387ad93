"""The server as a process that can be killed: the real dispatcher and engine over the simulated disk and network."""

from __future__ import annotations

from collections.abc import Callable

from tests.sim.checkers import Checkers, Watchers
from tests.sim.disk import SimDisk, SimWriter
from tests.sim.network import NOTICE_MS_MAX, Cable, SimLink
from tests.sim.profile import Profile
from tests.sim.world import Timer, World

from zapserver.dispatch import SETTLE_SECONDS_MAX, Dispatcher
from zapserver.engine import Engine, Limits
from zapserver.engine.commands import SweepClosed
from zapserver.mending import RETRY_SECONDS_MAX, RETRY_SECONDS_MIN
from zapserver.namespaces import Namespace, Namespaces
from zapserver.store import Store, StoreError
from zapserver.timer import CLOCK_CHECK_SECONDS_MAX
from zapwire.errors import ConnectionLost

RESTART_MS = (300, 4_000)
"""How long the supervisor takes. Longer than anything that was sent to the old process is on its way."""


class SimServer:
    """One address, where one process after the other serves."""

    def __init__(
        self, world: World, profile: Profile, disks: dict[str, SimDisk], checkers: dict[str, Checkers]
    ) -> None:
        """`disks` and `checkers` by namespace."""
        self._world = world
        self._profile = profile
        self._disks = disks
        self._checkers = checkers
        self._process: _Process | None = None

    @property
    def is_up(self) -> bool:
        return self._process is not None

    def engine(self, namespace: str) -> Engine:
        return self.dispatcher.namespaces.get(namespace).engine

    @property
    def dispatcher(self) -> Dispatcher:
        assert self._process is not None
        return self._process.dispatcher

    def serves(self, namespace: str) -> bool:
        return self._process is not None and namespace not in self._process.mending

    def start(self) -> None:
        if self._process is not None:
            return
        try:
            self._process = _Process(self._world, self._profile, self._disks, self._checkers)
        except StoreError:
            self._world.count("start refused by the disk")
            self._world.after(1_000, self.start)
            return
        self._world.note("server up")
        for name, checkers in self._checkers.items():
            checkers.restarted(self.engine(name))

    def crash(self, *, is_power: bool) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill(NOTICE_MS_MAX if is_power else 200)
        if is_power:
            for disk in self._disks.values():
                disk.lose_power()
        for checkers in self._checkers.values():
            checkers.crashed(is_power=is_power)
        self._world.after(self._world.between(*RESTART_MS), self.start)

    def stop(self) -> None:
        """As after SIGTERM: what was decided is kept, then the connections close."""
        if self._process is not None:
            self._process.stop(lambda: self.crash(is_power=False))

    def accept(self) -> SimLink | None:
        """A new connection, or None when nobody listens."""
        return None if self._process is None else self._process.accept()


class _Process:
    def __init__(
        self, world: World, profile: Profile, disks: dict[str, SimDisk], checkers: dict[str, Checkers]
    ) -> None:
        self._world = world
        self._profile = profile
        self._checkers = checkers
        self._watcher = Watchers(world, checkers)
        stores = {name: disk.open() for name, disk in disks.items()}
        self._writers = {name: SimWriter(world, disk) for name, disk in disks.items()}
        self.is_dead = False
        self.mending: set[str] = set()
        """Namespaces that wait for their disk."""
        self._links: list[SimLink] = []
        self._sleep: Timer | None = None
        self._wake_ms = 0

        def open_store(name: str) -> tuple[Store, SimWriter]:
            return stores[name], self._writers[name]

        namespaces = Namespaces(
            now_ms=world.clock(),
            limits=Limits(burst_bytes_max=2 * 2**20 // profile.bytes_scale),
            open_store=open_store,
            known=disks,
            new_id=world.new_id,
            random=world.random.random,
        )
        self.dispatcher = Dispatcher(namespaces, clock=world.clock)
        self.dispatcher.on_deadline_moved = self._plan
        self.dispatcher.on_store_failure = self._store_failed
        self._tick()
        # As `Sweeper` does it when a server starts.
        for namespace in namespaces:
            self.dispatcher.submit(SweepClosed(closed_before_ms=0, limit=1), namespace)

    def accept(self) -> SimLink:
        profile = self._profile
        cable = Cable(self._world, profile.delay_ms, profile.torn_rate)
        link = SimLink(self._world, self.dispatcher, self._watcher, cable, profile.bytes_scale)
        self._links = [link for link in self._links if not link.is_over]
        self._links.append(link)
        return link

    def stop(self, then: Callable[[], None]) -> None:
        self.dispatcher.is_ending = True
        settled_by_ms = self._world.now_ms + int(SETTLE_SECONDS_MAX * 1000)

        def look() -> None:
            if self.is_dead:
                return
            is_idle = all(writer.is_idle for writer in self._writers.values())
            if not is_idle and self._world.now_ms < settled_by_ms:
                self._world.after(5, look)
                return
            for link in self._links:
                link.lose(ConnectionLost("the server ends"))
            then()

        look()

    def kill(self, notice_ms_max: int) -> None:
        self.is_dead = True
        for writer in self._writers.values():
            writer.kill()
        for link in self._links:
            if not link.is_over:
                link.abandon()
                link.cable.cut(notice_ms_max)

    # --- the timer -----------------------------------------------------------------------------------

    def _plan(self) -> None:
        """As `Timer`: sleep until the deadline, and look at the clock now and then."""
        due_ms = self.dispatcher.next_deadline_ms()
        if due_ms is None or self.is_dead:
            return
        wait_ms = min(max(due_ms - self._world.clock(), 0), int(CLOCK_CHECK_SECONDS_MAX * 1000))
        at_ms = self._world.now_ms + wait_ms
        if self._sleep is not None and self._sleep.action is not None:
            if self._wake_ms <= at_ms:
                return
            self._sleep.cancel()
        self._wake_ms = at_ms
        self._sleep = self._world.after(wait_ms, self._tick)

    def _tick(self) -> None:
        if self.is_dead:
            return
        self._world.count("ticks")
        self.dispatcher.tick()
        self._plan()

    # --- a store that fails --------------------------------------------------------------------------

    def _store_failed(self, namespace: Namespace) -> None:
        self._world.count("store failed")
        self._world.note("store failed", namespace.name, namespace.journal.failure)
        if "mistake in the server" in str(namespace.journal.failure):
            self._world.fail("8 step", str(namespace.journal.failure))
        self.mending.add(namespace.name)
        self._checkers[namespace.name].store_failed()
        self._mend(namespace, int(RETRY_SECONDS_MIN * 1000))

    def _mend(self, namespace: Namespace, pause_ms: int) -> None:
        """As `Mender`: try until it commits again, then build the engine from what was kept."""

        def settled(error: StoreError | None) -> None:
            if error is not None:
                again_ms = min(2 * pause_ms, int(RETRY_SECONDS_MAX * 1000))
                self._world.after(pause_ms, lambda: None if self.is_dead else self._mend(namespace, again_ms))
                return
            self._world.count("store mended")
            self._world.note("store mended", namespace.name)
            self.dispatcher.rebuild(namespace)
            self.mending.discard(namespace.name)
            self._checkers[namespace.name].rebuilt(namespace.engine)
            self._plan()

        namespace.journal.recover(settled)
