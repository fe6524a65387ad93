"""What running activities emit: the newest of each execution, in memory, for readers that follow it.

    emit(activity, items) -> numbered, the readers that waited for more
    read(run, after)      -> what is there past a number

Nothing of it is durable, and none of it is the engine's: no history, no record, no lease knows of it. Numbers only
grow within a run, over a restart of the server too, so a reader sees by a gap that something is missing.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
from typing import Final, TypeVar

import msgspec

from zapserver.engine.commands import Payload, PeerKey, Waiter
from zapserver.engine.limits import SMALL_PAYLOAD_BYTES_MAX, Limits
from zapserver.engine.records import Activity, Execution
from zapwire.body import unreadable

K = TypeVar("K", bound=Hashable)

KEPT_MS: Final = 60_000
"""How long the output of a closed execution can still be read, at least; at most twice as long, by the sweeper."""
PAGE_BYTES_MAX: Final = 1024 * 1024
"""An answer to a reader ends here, and has one item at least."""
STREAM_BYTES: Final = 500
ITEM_BYTES: Final = 250
"""About what a stream and an item take beside the payloads: they count towards the bounds."""
NUMBERS_PER_MS: Final = 1_000
"""No execution emits more in the long run. So the numbers of one whose stream was lost can go on past all that it may
have used, without anything being kept: see `Outputs._opened`."""


class Item(msgspec.Struct, frozen=True, gc=False):
    """One emitted item, as readers get it."""

    number: int
    activity_id: str
    activity_type: str
    attempt: int
    item: Payload

    @property
    def size(self) -> int:
        return ITEM_BYTES + len(self.item)


@dataclass(slots=True, eq=False)
class _Stream:
    """Of one run."""

    number: int
    """Of the last item."""
    items: deque[Item] = field(default_factory=deque)
    bytes: int = STREAM_BYTES
    closed_ms: int | None = None
    """Since when it is known that the run is over."""


@dataclass(slots=True, frozen=True)
class Reader:
    """A call that waits for output of a run."""

    waiter: Waiter
    peer: PeerKey
    run_id: str
    after: int


class Outputs:
    """The output of one namespace. Not thread safe."""

    def __init__(self, limits: Limits, now_ms: int) -> None:
        self._limits = limits
        self._streams: OrderedDict[str, _Stream] = OrderedDict()
        """By run id, those first that have been silent for the longest."""
        self._bytes = 0
        self._forgotten_ms = now_ms
        """Of runs that started before this the numbers that were used may be unknown."""
        self._readers: dict[Waiter, Reader] = {}
        self._of_runs: dict[str, set[Waiter]] = {}
        self._of_peers: dict[PeerKey, set[Waiter]] = {}

    @property
    def bytes(self) -> int:
        """About what is kept."""
        return self._bytes

    # --- emitting ------------------------------------------------------------------------------------

    def emit(self, activity: Activity, items: Sequence[Payload], dropped: int, now_ms: int) -> list[Reader]:
        """Add items, after `dropped` ones that the worker had to drop; returns the readers that wait no more.

        An item that is longer than a small payload, or that a reader of its page could not read, is dropped here, and
        leaves a gap as well.
        """
        run_id = activity.execution.run_id
        stream = self._opened(activity.execution, now_ms)
        stream.number += dropped
        has_news = False
        for payload in items:
            stream.number += 1
            if len(payload) <= SMALL_PAYLOAD_BYTES_MAX and not unreadable(bytes(payload)):
                self._add(stream, Item(stream.number, activity.activity_id, activity.type, activity.attempt, payload))
                has_news = True
        while stream.bytes > self._limits.output_bytes_max and len(stream.items) > 1:
            self._drop_oldest(stream)
        self._make_room(run_id, now_ms)
        return self._forget_all(self._of_runs.get(run_id, ())) if has_news else []

    def _opened(self, execution: Execution, now_ms: int) -> _Stream:
        stream = self._streams.get(execution.run_id)
        if stream is None:
            is_first = execution.start_ms >= self._forgotten_ms
            number = 0 if is_first else NUMBERS_PER_MS * max(now_ms - execution.start_ms, 1)
            stream = self._streams[execution.run_id] = _Stream(number)
            self._bytes += stream.bytes
        self._streams.move_to_end(execution.run_id)
        return stream

    def _add(self, stream: _Stream, item: Item) -> None:
        stream.items.append(item)
        stream.bytes += item.size
        self._bytes += item.size

    def _drop_oldest(self, stream: _Stream) -> None:
        size = stream.items.popleft().size
        stream.bytes -= size
        self._bytes -= size

    def _make_room(self, run_id: str, now_ms: int) -> None:
        """Drop what is oldest of the runs that have been silent for the longest, but not this one's last item."""
        while self._bytes > self._limits.output_total_bytes_max:
            silent_id, stream = next(iter(self._streams.items()))
            if silent_id == run_id and len(stream.items) <= 1:
                return
            if stream.items:
                self._drop_oldest(stream)
            else:
                self._forget_stream(silent_id, stream)
                self._forgotten_ms = now_ms + 1

    def _forget_stream(self, run_id: str, stream: _Stream) -> None:
        del self._streams[run_id]
        self._bytes -= stream.bytes

    # --- reading -------------------------------------------------------------------------------------

    def read(self, run_id: str, after: int) -> list[Item]:
        """The items past a number, as many as an answer holds; none if there are none, or none any more."""
        stream = self._streams.get(run_id)
        if stream is None:
            return []
        news = list(takewhile(lambda item: item.number > after, reversed(stream.items)))
        sizes = accumulate(item.size for item in reversed(news))
        return [item for item, size in zip(reversed(news), sizes, strict=True) if size <= PAGE_BYTES_MAX] or news[-1:]

    def wait(self, reader: Reader) -> None:
        """Remember a reader for which there is nothing yet, until `emit` returns it or `forget` is called."""
        self._readers[reader.waiter] = reader
        self._of_runs.setdefault(reader.run_id, set()).add(reader.waiter)
        self._of_peers.setdefault(reader.peer, set()).add(reader.waiter)

    def forget(self, waiter: Waiter) -> Reader | None:
        """The reader that waits as `waiter`, if one does; it waits no more."""
        reader = self._readers.pop(waiter, None)
        if reader is not None:
            _discard(self._of_runs, reader.run_id, waiter)
            _discard(self._of_peers, reader.peer, waiter)
        return reader

    def forget_peer(self, peer: PeerKey) -> None:
        """Its connection is gone: nobody reads there any more."""
        self._forget_all(self._of_peers.get(peer, ()))

    def _forget_all(self, waiters: Iterable[Waiter]) -> list[Reader]:
        readers = [self.forget(waiter) for waiter in list(waiters)]
        return [reader for reader in readers if reader is not None]

    # --- the end ---------------------------------------------------------------------------------------

    def sweep(self, is_open: Callable[[str], bool], now_ms: int) -> None:
        """Forget the output of runs that have been closed for long enough. Called now and then."""
        for run_id, stream in list(self._streams.items()):
            if is_open(run_id):
                continue
            if stream.closed_ms is None:
                stream.closed_ms = now_ms
            elif stream.closed_ms + KEPT_MS <= now_ms:
                self._forget_stream(run_id, stream)


def _discard(index: dict[K, set[Waiter]], key: K, waiter: Waiter) -> None:
    index[key].discard(waiter)
    if not index[key]:
        del index[key]
