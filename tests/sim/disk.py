"""A disk that outlives the server: what SQLite's log keeps through a crash, and the writer that commits to it.

A commit is first written, then synced. A synced commit makes itself and every earlier one durable. Killing the process
loses nothing that is written; losing power keeps a prefix of what was not synced yet, and a commit that was being
written disappears as a whole. A commit whose sync failed may be found by a restart, until `recover` has settled it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tests.sim.world import World

from zapserver.engine.tables import Table
from zapserver.store import Batch, DiskFull, Durability, MemoryStore, StoreError, Unavailable
from zapserver.store.memory import Medium

OnDone = Callable[[StoreError | None], None]

WELL_MS_MAX = 4
"""What half a commit takes at most on a disk that is well."""


HEARD_MS = 1
"""How much later than the writer its owner knows."""


class SimStore(MemoryStore):
    """Reads what is written. Commits come from the writer alone."""

    @property
    def durability(self) -> Durability:
        return Durability.SYNCED


class SimDisk:
    def __init__(self, world: World) -> None:
        self._world = world
        self._medium = Medium()
        self._unsynced: list[Batch] = []
        """What would take back each commit that is written and not synced."""
        self._ghost: Batch | None = None
        """A commit whose sync failed."""
        self.is_full = False
        self.is_failing = False
        self.is_slow = False
        self.when_written: Callable[[], None] | None = None
        """To be done once, between the next write and its sync."""

    @property
    def is_well(self) -> bool:
        return not (self.is_full or self.is_failing or self.is_slow)

    def failure(self) -> StoreError | None:
        """What stands in the way of a commit."""
        if self.is_full:
            return DiskFull("the simulated disk is full")
        if self.is_failing:
            return Unavailable("the simulated disk failed a sync")
        return None

    def part_ms(self) -> int:
        """How long the next write or sync takes."""
        return self._world.between(300, 2_000) if self.is_slow else self._world.between(0, WELL_MS_MAX)

    def open(self) -> SimStore:
        """What a restart finds. Raises `StoreError`. Opening commits the epoch, which syncs whatever was found."""
        failure = self.failure()
        if failure is not None:
            raise failure
        if self._ghost is not None and self._world.chance(0.5):
            self._world.count("failed commit found again")
            self.write(self._ghost)
        self.settle()
        return SimStore(Table, self._medium)

    def write(self, batch: Batch) -> None:
        """Not synced yet."""
        undo = Batch()
        for (table, key), _ in batch.changes.items():
            known = self._medium.tables.get(table)
            undo.changes[table, key] = None if known is None else known.values.get(key)
        self._unsynced.append(undo)
        MemoryStore(Table, self._medium).commit(batch)
        if self.when_written is not None:
            self._world.after(0, self.when_written)
            self.when_written = None

    def write_without_sync(self, batch: Batch) -> None:
        """The sync failed: nobody knows whether it is there."""
        self._ghost = batch

    def settle(self) -> None:
        """A commit that reached the disk: nothing before it is in doubt any more."""
        self._ghost = None
        self._unsynced.clear()

    sync = settle

    def lose_power(self) -> None:
        lost = self._world.between(0, len(self._unsynced))
        if lost:
            self._world.count("written commits lost")
        for undo in reversed(self._unsynced[len(self._unsynced) - lost :]):
            MemoryStore(Table, self._medium).commit(undo)
        self._unsynced.clear()


@dataclass(slots=True)
class _Job:
    on_done: OnDone
    batch: Batch | None = None
    """None: a recovery."""
    durability: Durability = Durability.SYNCED


class SimWriter:
    """A `journal.Writer`: `GroupCommit` without its thread. Everything that waits goes into the next commit."""

    def __init__(self, world: World, disk: SimDisk) -> None:
        self._world = world
        self._disk = disk
        self._jobs: deque[_Job] = deque()
        self._is_busy = False
        self._broken: StoreError | None = None
        self._failure: StoreError | None = None
        self._is_dead = False

    @property
    def is_idle(self) -> bool:
        """Everything that was submitted is done."""
        return not self._is_busy and not self._jobs

    def kill(self) -> None:
        """The process is gone, in the middle of whatever it did."""
        if self._is_busy:
            self._world.count("killed in a commit")
        self._is_dead = True

    def submit(self, batch: Batch, on_done: OnDone, durability: Durability = Durability.SYNCED) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        self._jobs.append(_Job(on_done, batch, durability))
        self._go_on()

    def recover(self, on_done: OnDone) -> None:
        self._jobs.append(_Job(on_done))
        self._go_on()

    # --- in the place of the thread ------------------------------------------------------------------

    def _go_on(self) -> None:
        if self._jobs and not self._is_busy:
            self._is_busy = True
            self._later(self._disk.part_ms(), self._take)

    def _later(self, ms: int, action: Callable[[], None]) -> None:
        def unless_dead() -> None:
            if not self._is_dead:
                action()

        self._world.after(ms, unless_dead)

    def _take(self) -> None:
        if self._jobs[0].batch is None:
            self._recover(self._jobs.popleft())
            return
        group: list[_Job] = []
        whole = Batch()
        while self._jobs and (batch := self._jobs[0].batch) is not None:
            whole.absorb(batch)
            group.append(self._jobs.popleft())
        self._world.count("commits")
        if len(group) > 1:
            self._world.count("commits of several batches")
        failure = self._broken or self._disk.failure()
        if failure is not None:
            if self._broken is None and isinstance(failure, Unavailable):
                self._disk.write_without_sync(whole)
            self._broken = failure
            self._settle(group, failure)
            return
        self._disk.write(whole)
        if max(job.durability for job in group) < Durability.SYNCED:
            self._world.count("commits not synced")
            self._settle(group, None)
        else:
            self._later(self._disk.part_ms(), lambda: self._sync(group, whole))

    def _sync(self, group: list[_Job], whole: Batch) -> None:
        self._disk.sync()
        self._settle(group, None)

    def _recover(self, job: _Job) -> None:
        self._broken = self._disk.failure()
        if self._broken is None:
            self._disk.settle()
        self._settle([job], self._broken)

    def _settle(self, group: list[_Job], error: StoreError | None) -> None:
        """The owner hears of it a moment later, and until then goes on."""

        def tell() -> None:
            if group[0].batch is None or error is not None:
                self._failure = error
            for job in group:
                job.on_done(error)

        self._is_busy = False
        self._later(HEARD_MS, tell)
        self._go_on()
