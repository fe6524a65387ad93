"""What a delivery is answered on: the one connection that it came over.

Leases belong to a connection. An answer that waited for the next one would only be refused there, so nothing here
reconnects: when the connection is gone, `ConnectionLost` says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

import trio

from zapwire.body import encode_json
from zapwire.envelope import Envelope, decode_envelope, encode_respond
from zapwire.errors import CallFailed, ConnectionLost, ZapError
from zapwire.frame import Buffer
from zapwire.link import Link

from .errors import BUSY

log = logging.getLogger("zaptasks.worker")

LEASE_OVER: Final = (404, 409)
"""Statuses of an answer that comes too late."""

TOO_LARGE: Final = 413
TOO_MANY: Final = 429

AGAIN_SECONDS_MIN: Final = 0.1
AGAIN_SECONDS_MAX: Final = 5.0
"""The pauses before a server that takes nothing now is asked again: they double from the first to the second."""


class Line:
    """A worker's connection, from one handshake to its end, with the worker's namespace and timeout."""

    def __init__(self, link: Link, *, namespace: str, timeout: float) -> None:
        self.namespace: Final = namespace
        self._link = link
        self._timeout = timeout
        self._over = trio.Event()
        self._busy_status = 0
        """Of a server that takes nothing now, as it was last logged."""

    @property
    def is_ours(self) -> bool:
        """Whether the server is of our kind. Go's answers every heartbeat as if a cancel were requested."""
        return bool(self._link.capabilities)

    @property
    def is_open(self) -> bool:
        """Whether the connection has not ended."""
        return self._link.open

    def end(self) -> None:
        """The connection has ended: nothing waits for a better time any more."""
        self._over.set()

    def close(self, reason: str) -> None:
        """End the connection; its leases and subscriptions end with it."""
        self._link.close(reason)

    def push(self, opcode: int, body: bytes) -> None:
        """A one-way message; dropped once the connection has ended."""
        self._link.send(opcode, body)

    async def wait_sent(self, size: int) -> None:
        """Wait until no more than `size` bytes wait for the server to read, or the connection has ended."""
        await self._link.wait_sent(size)

    async def call(self, opcode: int, request: dict[str, object]) -> Buffer:
        """A call with a JSON body; returns the body of the answer. Raises `CallFailed` and `ConnectionLost`."""
        body = encode_json({"namespace": self.namespace, **request})
        return (await self._link.call(opcode, body, timeout=self._timeout)).body

    async def call_until_taken(self, opcode: int, request: dict[str, object]) -> Buffer:
        """The same, again and again while the disk of the server is full or fails."""
        pauses = _pauses()
        while True:
            try:
                answer = await self.call(opcode, request)
            except CallFailed as error:
                if error.status not in BUSY or error.status == TOO_MANY or not self.is_open:
                    raise
                self.note_status(error.status, error.detail)
                await self._pause(next(pauses))
            else:
                self.note_status(200, "")
                return answer

    def note_status(self, status: int, reason: str) -> bool:
        """Take note of the status of an answer: True for a server that takes nothing now. Logged when that changes."""
        busy_status = status if status in BUSY else 0
        if busy_status != self._busy_status:
            self._busy_status = busy_status
            if busy_status:
                log.warning("the server takes nothing now, outcomes are kept and sent again: %d %s", status, reason)
            else:
                log.info("the server takes outcomes again")
        return bool(busy_status)

    async def _pause(self, seconds: float) -> None:
        """Let time pass, but no longer than the connection lasts."""
        with trio.move_on_after(seconds):
            await self._over.wait()

    async def respond(self, opcode: int, token: str, payload: bytes) -> Envelope:
        """A respond frame, for the task with this token; returns the acknowledgement, whatever its status.

        Shielded, because a worker that is canceled still has to say what becomes of its tasks. The client's timeout
        is the bound.
        """
        message = encode_respond(opcode, token.encode(), payload)
        with trio.CancelScope(shield=True):
            acknowledgement = await self._link.call_raw(message, timeout=self._timeout)
        return decode_envelope(acknowledgement)

    async def answer(self, opcode: int, token: str, payload: bytes, *, what: object) -> int:
        """Answer the delivery `what`, until the server has taken it, the lease is over or the connection ends.

        A repeat is harmless: the first one that arrives ends the lease, and the next one finds none. A server whose
        disk is full, or that is overloaded, is asked again until it is well, also by a worker that is canceled: the
        work is done, and would have to be done again. What becomes of the answer is logged, nothing is raised. Returns
        the server's last status, 0 for none.
        """
        pauses = _pauses()
        while True:
            try:
                envelope = await self.respond(opcode, token, payload)
                if not self.note_status(envelope.status, envelope.error):
                    break
                with trio.CancelScope(shield=True):
                    await self._pause(next(pauses))
                continue
            except ConnectionLost as error:
                if not self.is_open:
                    log.info("the outcome of %s is dropped, the server gives it to another worker: %s", what, error)
                    return 0
                log.warning("the server has not taken the outcome of %s yet, sending it again: %s", what, error)
            except ZapError as error:
                log.warning("the outcome of %s could not be sent: %s", what, error)
                return 0
            await trio.lowlevel.checkpoint()
        if envelope.status in LEASE_OVER:
            log.info("the outcome of %s came too late: %s", what, envelope.error)
        elif not envelope.ok:
            log.warning("the server refused the outcome of %s: %d %s", what, envelope.status, envelope.error)
        return envelope.status


def _pauses() -> Iterator[float]:
    """In seconds, without end."""
    seconds = AGAIN_SECONDS_MIN
    while True:
        yield seconds
        seconds = min(2 * seconds, AGAIN_SECONDS_MAX)
