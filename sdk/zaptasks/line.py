"""What a delivery is answered on: the one connection that it came over.

Leases belong to a connection. An answer that waited for the next one would only be refused there, so nothing here
reconnects: when the connection is gone, `ConnectionLost` says so.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from zapwire.body import encode_json
from zapwire.envelope import Envelope, decode_envelope, encode_respond
from zapwire.errors import ConnectionLost, ZapError
from zapwire.frame import Buffer
from zapwire.link import Link

log = logging.getLogger("zaptasks.worker")

LEASE_OVER: Final = (404, 409)
"""Statuses of an answer that comes too late."""


class Line:
    """A worker's connection, from one handshake to its end, with the worker's namespace and timeout."""

    def __init__(self, link: Link, *, namespace: str, timeout: float) -> None:
        self.namespace: Final = namespace
        self._link = link
        self._timeout = timeout

    @property
    def is_ours(self) -> bool:
        """Whether the server is of our kind. Go's answers every heartbeat as if a cancel were requested."""
        return bool(self._link.capabilities)

    @property
    def is_open(self) -> bool:
        """Whether the connection has not ended."""
        return self._link.open

    def close(self, reason: str) -> None:
        """End the connection; its leases and subscriptions end with it."""
        self._link.close(reason)

    async def call(self, opcode: int, request: dict[str, object]) -> Buffer:
        """A call with a JSON body; returns the body of the answer. Raises `CallFailed` and `ConnectionLost`."""
        body = encode_json({"namespace": self.namespace, **request})
        return (await self._link.call(opcode, body, timeout=self._timeout)).body

    async def respond(self, opcode: int, token: str, payload: bytes) -> Envelope:
        """A respond frame, for the task with this token; returns the acknowledgement, whatever its status.

        Shielded, because a worker that is canceled still has to say what becomes of its tasks. The client's timeout
        is the bound.
        """
        message = encode_respond(opcode, token.encode(), payload)
        with trio.CancelScope(shield=True):
            acknowledgement = await self._link.call_raw(message, timeout=self._timeout)
        return decode_envelope(acknowledgement)

    async def answer(self, opcode: int, token: str, payload: bytes, *, what: object) -> None:
        """Answer the delivery `what`, until the server has taken it or the connection ends.

        A repeat is harmless: the first one that arrives ends the lease, and the next one finds none. What becomes of
        the answer is logged, nothing is raised.
        """
        while True:
            try:
                envelope = await self.respond(opcode, token, payload)
                break
            except ConnectionLost as error:
                if not self.is_open:
                    log.info("the outcome of %s is dropped, the server gives it to another worker: %s", what, error)
                    return
                log.warning("the server has not taken the outcome of %s yet, sending it again: %s", what, error)
            except ZapError as error:
                log.warning("the outcome of %s could not be sent: %s", what, error)
                return
            await trio.lowlevel.checkpoint()
        if envelope.status in LEASE_OVER:
            log.info("the outcome of %s came too late: %s", what, envelope.error)
        elif not envelope.ok:
            log.warning("the server refused the outcome of %s: %d %s", what, envelope.status, envelope.error)
