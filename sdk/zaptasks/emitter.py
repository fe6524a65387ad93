"""What a running handler emits, on its way to the server: gathered, sent in batches, bounded, and never waited for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Final

import msgspec

from zapwire.body import encode_json
from zapwire.opcodes import Op

from .line import Line

UNSENT_BYTES_MAX: Final = 1024 * 1024
"""What one attempt keeps while its connection is busy. Past it the oldest is dropped: a server keeps no more either."""
BATCH_BYTES_MAX: Final = 256 * 1024
BATCH_ITEMS_MAX: Final = 1_000
"""As many as a server takes in one message."""
OUTBOX_BYTES_MAX: Final = 256 * 1024
"""With more than that waiting for the server to read, the next batch waits too."""


class Emitter:
    """The output of one attempt. `add` may be called from any thread; the rest belongs to the worker's loop."""

    def __init__(self, token: str, line: Line) -> None:
        self._token = token
        self._line = line
        self._lock = threading.Lock()
        self._items: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        """How many items before those in `_items` were dropped."""
        self._is_sending = False

    def add(self, item: bytes) -> bool:
        """Take an item; True if `send` has to be started for it."""
        with self._lock:
            self._items.append(item)
            self._bytes += len(item)
            while self._bytes > UNSENT_BYTES_MAX:
                self._bytes -= len(self._items.popleft())
                self._dropped += 1
            must_start, self._is_sending = not self._is_sending, True
        return must_start

    async def send(self) -> None:
        """Send until nothing is left, as fast as the connection takes it."""
        for batch in self._batches():
            self._line.push(Op.EMIT_OUTPUT, batch)
            await self._line.wait_sent(OUTBOX_BYTES_MAX)

    def send_now(self) -> None:
        """Send the rest at once: the answer of the task comes next, and nothing may come after that."""
        for batch in self._batches():
            self._line.push(Op.EMIT_OUTPUT, batch)

    def _batches(self) -> Iterator[bytes]:
        while True:
            with self._lock:
                if not self._items:
                    self._is_sending = False
                    return
                batch = self._take()
                dropped, self._dropped = self._dropped, 0
            body: dict[str, object] = {"task_token": self._token, "items": [msgspec.Raw(item) for item in batch]}
            yield encode_json(body | ({"dropped": dropped} if dropped else {}))

    def _take(self) -> list[bytes]:
        batch: list[bytes] = []
        size = 0
        for item in islice(self._items, BATCH_ITEMS_MAX):
            size += len(item)
            if batch and size > BATCH_BYTES_MAX:
                break
            batch.append(item)
        for item in batch:
            self._items.popleft()
            self._bytes -= len(item)
        return batch
