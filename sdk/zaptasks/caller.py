"""What every part of the client is made of: a connection, and calls that are repeated where that is safe."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol, TypeVar

import msgspec
import trio

from zapwire.body import decode_json, encode_json
from zapwire.client_link import ReconnectingLink
from zapwire.envelope import Envelope, decode_envelope, encode_respond
from zapwire.errors import CallFailed, ConnectionLost, NotSent, OutcomeUnknown

from .connector import ConnectionCount, Connector
from .converters import PLAIN, DataConverter
from .errors import ClientClosed, ServerBusy, UpdateRejected, refusal
from .headers import HeaderSource
from .records import UpdateAnswer, reveal, with_receipt
from .submit_reply import read_submit_reply

T = TypeVar("T")

_named: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])

ASK_AGAIN_SECONDS: Final = 0.2
"""The pause before a call of unknown outcome is repeated to a server that takes nothing now."""


class OwnWorker(Protocol):
    """A worker of this client."""

    def subscription_for(self, task_queue: str, workflow_type: str) -> str:
        """The subscription that brings it new runs of this type; "" if there is none."""


class Caller:
    """A connection that heals itself, and how calls are made over it."""

    def __init__(
        self,
        link: ReconnectingLink,
        connector: Connector,
        connections: ConnectionCount,
        *,
        namespace: str,
        timeout: float,
        headers: HeaderSource | None = None,
        converter: DataConverter = PLAIN,
    ) -> None:
        self.namespace: Final = namespace
        self.converter: Final = converter
        self.timeout: Final = timeout
        self.connector: Final = connector
        self._header_source: Final = headers
        self._link = link
        self._is_closed = False
        self._connections = connections
        self.workers: Final[list[OwnWorker]] = []
        """Those that serve now. They are asked for their subscriptions when a workflow is started."""

    @property
    def identity(self) -> str:
        """Who this client is to people who look at the server."""
        return self.connector.identity

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection now."""
        return self._link.link is not None

    @property
    def peer_is_ours(self) -> bool:
        """Whether the server that we are connected to is of our kind, and not Go's."""
        link = self._link.link
        return link is not None and bool(link.capabilities)

    @property
    def why_disconnected(self) -> str:
        """What happened to the last connection, or to the last attempt at one."""
        return str(self._link.failure or "connecting")

    async def wait_first_attempt(self) -> None:
        """Wait until the first attempt to connect has ended, either way."""
        await self._link.first_attempt.wait()

    async def wait_connection(self, *, after: int) -> int:
        """Wait for a connection later than the `after`-th, and return its number; 0 is before the first."""
        return await self._connections.wait(after)

    def mark_closed(self) -> None:
        """Refuse every call from here on with `ClientClosed`. The block that opened the client ends with it."""
        self._is_closed = True

    # --- calls -----------------------------------------------------------------------------------------

    async def call(self, opcode: int, request: Mapping[str, object], type: type[T], *, repeat: bool = True) -> T:
        """One call, in this client's namespace, with its answer and the receipt of it read as `type`.

        Unless `repeat` is False it is made again after a lost connection, until the client's timeout has passed.
        """
        body = encode_json({"namespace": self.namespace, **request})
        envelope = await self._repeatedly(lambda timeout: self._ask(opcode, body, timeout), self.timeout, repeat)
        return reveal(with_receipt(decode_json(envelope.body, type), envelope.receipt), self.converter)

    async def wait(self, opcode: int, request: Mapping[str, object], type: type[T]) -> T:
        """The same for a call that is answered when something has happened: wait for as long as it takes."""
        body = encode_json({"namespace": self.namespace, **request})
        envelope = await self._repeatedly(lambda timeout: self._ask(opcode, body, timeout), None, True)
        return reveal(decode_json(envelope.body, type), self.converter)

    async def wait_updated(self, opcode: int, name: str, request: Mapping[str, object]) -> UpdateAnswer:
        """Ask for an update, and wait, for as long as it takes, until it is done. Raises `UpdateRejected`."""
        body = encode_json({"namespace": self.namespace, **request})

        async def ask(timeout: float | None) -> Envelope:
            try:
                return await self._ask(opcode, body, timeout)
            except CallFailed as error:
                if error.status == 400 and error.body.startswith(b"{"):
                    raise UpdateRejected(name, self.converter.decode_failure(error.body)) from None
                raise

        return decode_json((await self._repeatedly(ask, None, True)).body, UpdateAnswer)

    async def respond(self, opcode: int, token: str, payload: bytes, *, repeat: bool = False) -> Envelope:
        """Answer the task with this token; returns the acknowledgement. Raises `CallFailed` for a refusal."""
        message = encode_respond(opcode, token.encode(), payload)

        async def ask(timeout: float | None) -> Envelope:
            envelope = decode_envelope(await self._link.call_raw(message, timeout=timeout))
            if not envelope.ok:
                raise refusal(envelope.status, envelope.error, opcode=opcode)
            return envelope

        return await self._repeatedly(ask, self.timeout, repeat)

    async def _ask(self, opcode: int, body: bytes, timeout: float | None) -> Envelope:
        try:
            return await self._link.call(opcode, body, timeout=timeout)
        except CallFailed as error:
            detail = _which(error.detail, body) if error.status == 404 else error.detail
            raise refusal(error.status, detail, opcode=opcode, body=error.body) from None

    async def _call_raw(self, message: bytes, opcode: int, type: type[T], *, repeat: bool = True) -> T:
        async def ask(timeout: float | None) -> T:
            return read_submit_reply(await self._link.call_raw(message, timeout=timeout), opcode, type)

        return await self._repeatedly(ask, self.timeout, repeat)

    async def _repeatedly(
        self, attempt: Callable[[float | None], Awaitable[T]], timeout: float | None, repeat: bool
    ) -> T:
        """Every call goes through here: the client for asyncio replaces it, and nothing else."""
        deadline = math.inf if timeout is None else trio.current_time() + timeout
        lost: ConnectionLost | None = None
        while True:
            if self._is_closed:
                raise ClientClosed(f"this client of {self.connector} was closed")
            left = deadline - trio.current_time()
            if left <= 0 and lost is not None:
                raise lost
            try:
                return await attempt(None if timeout is None else max(left, 0.0))
            except OutcomeUnknown as error:
                if not repeat:
                    raise
                lost = error
            except NotSent as error:
                # An earlier attempt may have arrived: that is what the caller has to know.
                lost = lost or error
            except ServerBusy:
                # A no to the repeat of a call that may have arrived is no no to that one.
                if timeout is None or not isinstance(lost, OutcomeUnknown):
                    raise
                await trio.sleep(min(ASK_AGAIN_SECONDS, deadline - trio.current_time()))
            await trio.lowlevel.checkpoint()


def _which(detail: str, request: bytes) -> str:
    """The text of a 404, with the id that the request asked for: "not found" alone does not say what."""
    id = _named.decode(request).get("workflow_id")
    return detail if id is None else f"{detail}: {bytes(id).decode()}"
