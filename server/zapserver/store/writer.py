"""Group commit: one thread that commits, and everything that arrives during one sync goes into the next.

A sync costs the same for one batch as for a hundred. So with many in flight the disk's rate bounds the latency and
not the throughput, and the event loop never waits for the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeAlias

from zapserver.store.errors import Closed, QueueFull, StoreError
from zapserver.store.interface import Batch, Durability, Store

QUEUE_BYTES_MAX = 64 * 2**20
"""What may wait for the disk, so that a slow disk becomes an answer and not memory: a second of a fast one."""
GROUP_BYTES_MAX = 4 * 2**20
"""Where one transaction ends: a larger one only makes its first callers wait longer."""

OnDone: TypeAlias = Callable[[StoreError | None], None]
"""Called in the owner's thread; must not raise."""
CallSoon: TypeAlias = Callable[[Callable[[], None]], None]
"""Runs a function in the owner's thread: trio's `TrioToken.run_sync_soon`."""


@dataclass(slots=True, eq=False)
class _Write:
    batch: Batch
    on_done: OnDone
    durability: Durability
    size_bytes: int


@dataclass(slots=True, eq=False)
class _Recover:
    on_done: OnDone


class GroupCommit:
    """The one writer of a store. Everything but the commits themselves happens in the thread that made it.

    When a commit fails, every batch of its transaction fails with it, and so does everything after it until a
    `recover` has succeeded: later batches may rest on the lost ones. The owner calls `recover`, reads its
    state from the store again, and goes on.
    """

    def __init__(self, store: Store, *, call_soon: CallSoon, queue_bytes_max: int = QUEUE_BYTES_MAX) -> None:
        self._store = store
        self._call_soon = call_soon
        self._queue_bytes_max = queue_bytes_max
        self._queue: SimpleQueue[_Write | _Recover | None] = SimpleQueue()
        self._is_closed = False
        self._broken: StoreError | None = None
        """The failure as the thread knows it, which is before the owner does."""
        self.failure: StoreError | None = None
        """Why nothing is taken at present, as the owner knows it."""
        self.queued_bytes = 0
        """Submitted and not done yet."""
        self.batches = 0
        """Committed so far."""
        self.transactions = 0
        """In as many commits."""
        # A daemon, so that a process whose owner fell over can still end.
        self._thread = Thread(target=self._run, name="store writer", daemon=True)
        self._thread.start()

    def submit(self, batch: Batch, on_done: OnDone, durability: Durability = Durability.SYNCED) -> None:
        """Commit `batch` after all that were submitted before; it must not change any more.

        `on_done` gets None once it has reached `durability`, or the error. Raises, and takes nothing, `QueueFull`,
        `Closed`, or the failure that waits for `recover`.
        """
        if self._is_closed:
            raise Closed("the writer of this store is closed: nothing can be written any more")
        if self.failure is not None:
            # One error is raised many times here, and would keep the traceback of each.
            raise self.failure.with_traceback(None)
        # Beside its bytes a batch costs some for itself, so that empty ones are bounded too.
        size_bytes = batch.size_bytes + 1024
        # One batch alone is always taken, however large.
        if self.queued_bytes and self.queued_bytes + size_bytes > self._queue_bytes_max:
            raise QueueFull(
                f"{self.queued_bytes} bytes wait for the disk, the limit is {self._queue_bytes_max}: try again later"
            )
        self.queued_bytes += size_bytes
        self._queue.put(_Write(batch, on_done, durability, size_bytes))

    def recover(self, on_done: OnDone) -> None:
        """Try whether the store commits again; if so, `failure` is None when `on_done` gets None."""
        if self._is_closed:
            raise Closed("the writer of this store is closed: open the store again")
        self._queue.put(_Recover(on_done))

    def close(self) -> None:
        """Commit what was submitted, and end the thread. Waits for the disk; the last `on_done`s are still to come."""
        if not self._is_closed:
            self._is_closed = True
            self._queue.put(None)
            self._thread.join()

    def _settled(self, group: list[_Write], error: StoreError | None) -> None:
        if error is None:
            self.batches += len(group)
            self.transactions += 1
        else:
            self.failure = error
        for write in group:
            self.queued_bytes -= write.size_bytes
            write.on_done(error)

    def _recovered(self, on_done: OnDone, error: StoreError | None) -> None:
        self.failure = error
        on_done(error)

    # --- in the writer's thread ------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            group: list[_Write] = []
            group_bytes = 0
            for job in self._waiting():
                if isinstance(job, _Write):
                    group.append(job)
                    group_bytes += job.size_bytes
                    if group_bytes < GROUP_BYTES_MAX:
                        continue
                self._commit(group)
                group, group_bytes = [], 0
                if job is None:
                    return
                if isinstance(job, _Recover):
                    self._broken = _attempt(self._store.recover)
                    self._call_soon(partial(self._recovered, job.on_done, self._broken))
            self._commit(group)

    def _waiting(self) -> list[_Write | _Recover | None]:
        """All that wait, and at least one."""
        jobs = [self._queue.get()]
        with suppress(Empty):
            while True:
                jobs.append(self._queue.get_nowait())
        return jobs

    def _commit(self, group: list[_Write]) -> None:
        if not group:
            return
        if self._broken is None:
            self._broken = _attempt(partial(self._store.commit, *_merged(group)))
        self._call_soon(partial(self._settled, group, self._broken))


def _merged(group: list[_Write]) -> tuple[Batch, Durability]:
    """One batch for all, and the most durability that any of them asked for."""
    if len(group) == 1:
        return group[0].batch, group[0].durability
    batch = Batch()
    for write in group:
        batch.absorb(write.batch)
    return batch, max(write.durability for write in group)


def _attempt(work: Callable[[], None]) -> StoreError | None:
    try:
        work()
    except StoreError as error:
        return error
    except Exception as error:
        # A mistake in a batch or in the store must not end the thread: its callers would wait for ever.
        failure = StoreError(f"the store writer failed: {error!r}: please report it")
        failure.__cause__ = error
        return failure
    return None
