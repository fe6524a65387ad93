"""What a delivery is answered on: the one connection that it came over.

Leases belong to a connection. An answer that waited for the next one would only be refused there, so nothing here
reconnects: when the connection is gone, `ConnectionLost` says so.
"""

from __future__ import annotations

from typing import Final

from zapwire.body import encode_json
from zapwire.envelope import Envelope, decode_envelope, encode_respond
from zapwire.frame import Buffer
from zapwire.link import Link


class Line:
    """A worker's connection, from one handshake to its end, with the worker's namespace and timeout."""

    def __init__(self, link: Link, *, namespace: str, timeout: float) -> None:
        self.namespace: Final = namespace
        self.timeout: Final = timeout
        self._link = link

    @property
    def is_ours(self) -> bool:
        """Whether the server is of our kind. Go's answers every heartbeat as if a cancel were requested."""
        return bool(self._link.capabilities)

    async def call(self, opcode: int, request: dict[str, object]) -> Buffer:
        """A call with a JSON body; returns the body of the answer. Raises `CallFailed` and `ConnectionLost`."""
        body = encode_json({"namespace": self.namespace, **request})
        return (await self._link.call(opcode, body, timeout=self.timeout)).body

    async def respond(self, opcode: int, token: str, payload: bytes) -> Envelope:
        """A respond frame, for the task with this token; returns the acknowledgement, whatever its status."""
        message = encode_respond(opcode, token.encode(), payload)
        return decode_envelope(await self._link.call_raw(message, timeout=self.timeout))
