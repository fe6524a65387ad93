"""What one namespace has decided and not yet kept, and what may leave only once it is kept.

    step -> add(changes) ... send(reply), send(push) ... flush -> [one commit] -> the replies and pushes leave, in order

Everything between two flushes is one group: one batch for the writer, one callback when it is on the disk. What leaves
is tied to the group that was the latest when it was decided, so nobody hears of what a crash could undo. A reader that
is asked here knows every group, kept or not: the engine runs ahead of the disk, the outside never does.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import merge
from typing import Protocol, TypeAlias

from zapserver.store.errors import Damaged, QueueFull, StoreError
from zapserver.store.interface import Batch, Durability, Reader, Store
from zapserver.store.keys import Key, decode_key, encode_key, key_range
from zapserver.store.writer import QUEUE_BYTES_MAX

Send: TypeAlias = Callable[[], None]
Fail: TypeAlias = Callable[[StoreError], None]


class Writer(Protocol):
    """Commits batches in order, elsewhere. `store.GroupCommit` is one; simulations have their own."""

    def submit(
        self, batch: Batch, on_done: Callable[[StoreError | None], None], durability: Durability = Durability.SYNCED
    ) -> None: ...

    def recover(self, on_done: Callable[[StoreError | None], None]) -> None: ...


@dataclass(slots=True, eq=False)
class _Group:
    batch: Batch = field(default_factory=Batch)
    durability: Durability = Durability.MEMORY
    outputs: list[tuple[Send, Fail | None]] = field(default_factory=list)


class Journal:
    """The way of one namespace's changes to its store. Without a writer the store keeps them at once."""

    def __init__(self, store: Store, writer: Writer | None = None, *, queue_bytes_max: int = QUEUE_BYTES_MAX) -> None:
        self._store = store
        self._writer = writer
        self._queue_bytes_max = queue_bytes_max
        self._open = _Group()
        self._in_flight: deque[_Group] = deque()
        self._in_flight_bytes = 0
        self._level_given = Durability.SYNCED
        self.reader = Ahead(store)
        """The store as it will be once everything is kept."""
        self.failure: StoreError | None = None
        """Why nothing is taken at present; `recover` ends it."""
        self.on_kept: Callable[[], None] = _nothing
        """Called whenever something was kept, after what waited for it has left."""
        self.on_failure: Callable[[], None] = _nothing
        """Called once when a commit has failed: what was decided since is void, the engine has to be built again."""

    @property
    def durability(self) -> Durability:
        """The most that can be had here."""
        return self._store.durability

    @property
    def level(self) -> Durability:
        """What everything decided so far reaches once it is kept: a commit takes with it all that came before."""
        return self._open.durability if self._open.batch.changes else self._level_given

    def reaches(self, level: Durability) -> bool:
        """Whether everything decided so far gets as far as this, or as the store can, by what is on its way."""
        return self._writer is None or min(level, self.durability) <= self.level

    @property
    def queued_bytes(self) -> int:
        """What was given to the writer and is not kept yet."""
        return self._in_flight_bytes

    @property
    def is_settled(self) -> bool:
        """Whether everything decided so far is kept."""
        return not self._in_flight and not self._open.batch.changes

    def check_ready(self) -> None:
        """Raise what stands in the way of a step: the store's failure, or too much that waits for the disk."""
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        if self._in_flight_bytes > self._queue_bytes_max:
            raise QueueFull(
                f"{self._in_flight_bytes} bytes wait for the disk, the limit is {self._queue_bytes_max}:"
                " the disk is slower than what comes in, try again later"
            )

    def add(self, changes: Batch | None, durability: Durability) -> None:
        """The changes of a step. `durability` is what those who hear of it want reached."""
        if changes is None:
            return
        if self._writer is None:
            self._store.commit(changes, durability)
            return
        self._open.batch.absorb(changes)
        self._open.durability = max(self._open.durability, durability)
        self.reader.note(changes, self._open)

    def send(self, send: Send, fail: Fail | None = None) -> None:
        """Call `send` once everything decided so far is kept, which may be now; `fail` if it never is."""
        if self._open.batch.changes:
            self._open.outputs.append((send, fail))
        elif self._in_flight:
            self._in_flight[-1].outputs.append((send, fail))
        else:
            send()

    def flush(self) -> None:
        """Give what was decided since the last flush to the writer."""
        group = self._open
        if not group.batch.changes or self.failure is not None:
            return
        assert self._writer is not None
        self._open = _Group()
        self._in_flight.append(group)
        self._in_flight_bytes += group.batch.size_bytes
        self._level_given = group.durability
        try:
            self._writer.submit(group.batch, lambda error: self._done(group, error), group.durability)
        except StoreError as error:
            self._fail(error)

    def void(self, failure: StoreError) -> None:
        """What was decided since the last `add` is not to be kept: take nothing until the engine is built again."""
        self.flush()
        self.failure = failure
        self.on_failure()

    def recover(self, on_done: Callable[[StoreError | None], None]) -> None:
        """Ask the store whether it commits again; if so, `failure` is None when `on_done` gets None.

        Then `on_done` has to build the engine again before it returns: the one that is there knows what was never kept.
        """

        def settled(error: StoreError | None) -> None:
            if error is None:
                self.failure = None
                self._level_given = Durability.SYNCED
            on_done(error)

        if self._writer is not None:
            self._writer.recover(settled)
        else:
            self._store.recover()
            settled(None)

    def _done(self, group: _Group, error: StoreError | None) -> None:
        if not self._in_flight or self._in_flight[0] is not group:
            return  # it failed together with an earlier one
        if error is not None:
            self._fail(error)
            return
        self._in_flight.popleft()
        self._in_flight_bytes -= group.batch.size_bytes
        self.reader.forget(group.batch, group)
        for send, _ in group.outputs:
            send()
        self.on_kept()

    def _fail(self, error: StoreError) -> None:
        """One commit failed: so did everything that was decided after it."""
        self.failure = error
        groups = [*self._in_flight, self._open]
        self._in_flight.clear()
        self._in_flight_bytes = 0
        self._open = _Group()
        self.reader.forget_all()
        for group in groups:
            for _, fail in group.outputs:
                if fail is not None:
                    fail(error)
        self.on_failure()


class Ahead:
    """A `Reader` over a store and over the changes that are on their way to it."""

    def __init__(self, store: Reader) -> None:
        self._store = store
        self._changes: dict[str, dict[bytes, tuple[object, bytes | None]]] = {}
        """By table and encoded key: who changed it last, and to what."""

    def note(self, batch: Batch, owner: object) -> None:
        """These changes are decided."""
        for (name, key), value in batch.changes.items():
            table = self._changes.get(name)
            if table is None:
                table = self._changes[name] = {}
            table[key] = (owner, value)

    def forget(self, batch: Batch, owner: object) -> None:
        """The store has these changes now."""
        for name, key in batch.changes:
            table = self._changes[name]
            if table[key][0] is owner:
                del table[key]

    def forget_all(self) -> None:
        """Nothing of what was on its way arrives."""
        self._changes.clear()

    def get(self, table: enum.StrEnum, key: Key) -> bytes | None:
        """As `Reader.get`."""
        changes = self._changes.get(table.value)
        if changes:
            change = changes.get(encode_key(key))
            if change is not None:
                return change[1]
        return self._store.get(table, key)

    def scan(
        self,
        table: enum.StrEnum,
        *,
        prefix: Key = (),
        start: Key | None = None,
        end: Key | None = None,
        reverse: bool = False,
        limit: int | None = None,
        damaged: list[Damaged] | None = None,
    ) -> Iterator[tuple[Key, bytes]]:
        """As `Reader.scan`. What is on its way to the table is looked through: some thousand records at most."""
        low, high = key_range(prefix, start, end)
        changes = self._changes.get(table.value) or {}
        changed = {key: value for key, (_, value) in changes.items() if low <= key < high}
        if not changed:
            yield from self._store.scan(
                table, prefix=prefix, start=start, end=end, reverse=reverse, limit=limit, damaged=damaged
            )
            return
        enough = None if limit is None else limit + len(changed)
        stored = self._store.scan(
            table, prefix=prefix, start=start, end=end, reverse=reverse, limit=enough, damaged=damaged
        )
        kept = ((encode_key(key), value) for key, value in stored)
        both = merge(
            ((key, value) for key, value in kept if key not in changed),
            ((key, value) for key, value in sorted(changed.items(), reverse=reverse) if value is not None),
            key=_key_of,
            reverse=reverse,
        )
        for count, (key, value) in enumerate(both):
            if count == limit:
                return
            assert value is not None
            yield decode_key(key), value

    def count(self, table: enum.StrEnum) -> int:
        """As `Reader.count`, of what the store has."""
        return self._store.count(table)


def _key_of(item: tuple[bytes, bytes | None]) -> bytes:
    return item[0]


def _nothing() -> None:
    return None
