"""What a link tells its owner: the hook for servers and clients, and the small form for everybody else."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol, cast

import structlog

from zapwire import opcodes
from zapwire.envelope import Envelope
from zapwire.errors import CallFailed, ZapError

if TYPE_CHECKING:
    from zapwire.link import Link

HANDLER_TASKS_MAX: Final = 100
"""Asynchronous handlers that may run at once for one `Handlers`; a call past it is answered 429."""

# Not structlog's default, which prints: a library must leave an application's stdout alone.
log = structlog.wrap_logger(logging.getLogger(__name__))


class LinkHandler(Protocol):
    """Plain calls, made while the bytes of one read are handled; none may block.

    What they write, to any link of the same listener or client, is gathered and leaves after `batch_end` at the
    latest: nothing waits for it, so write only what may be known already. Calls never nest: no method is called
    from within another, whatever the handler does to links.
    """

    def connected(self, link: Link) -> None:
        """The handshake is done. Called once, first."""

    def on_call(self, link: Link, request_id: int, envelope: Envelope, message: bytes) -> None:
        """A call: answer it with `link.reply(request_id, ...)`, now or later, in any order.

        `message` is the call as it came, for the opcodes whose root object is not the envelope. If this
        raises, the call is answered with the error's status (500 if it is no `ZapError`), one line is
        logged, and the connection lives on.
        """

    def on_push(self, link: Link, envelope: Envelope) -> None:
        """A one-way message; ignore one that you do not know. If this raises, one line is logged."""

    def batch_end(self, link: Link) -> None:
        """What one read brought was handled: the place to commit. If this raises, the connection ends."""

    def disconnected(self, link: Link, error: ZapError) -> None:
        """The connection has ended, and why. Called once, last. Only for a link that was `connected`."""


class RefusingHandler:
    """Serves nothing: every call is answered 501. Override what you serve."""

    def connected(self, link: Link) -> None:
        """Nothing to do."""

    def on_call(self, link: Link, request_id: int, envelope: Envelope, message: bytes) -> None:
        """Answer 501."""
        link.reply(request_id, 501, error=not_served(envelope.opcode))

    def on_push(self, link: Link, envelope: Envelope) -> None:
        """Ignore it."""

    def batch_end(self, link: Link) -> None:
        """Nothing to do."""

    def disconnected(self, link: Link, error: ZapError) -> None:
        """Nothing to do."""


def not_served(opcode: int) -> str:
    """The text of a 501."""
    known = opcodes.by_number.get(opcode)
    return f"opcode 0x{opcode:02X} ({known.name if known else 'unknown'}) is not served"


Answer = bytes | None
"""The body of a handler's answer; None is answered with `null`, as the Go server answers without a result."""

HandlerFunction = Callable[["Link", Envelope], Answer | Awaitable[Answer]]
"""Takes the link and the envelope of a call or push. Raise `CallFailed(status, text)` to answer with a failure."""


class Handlers(RefusingHandler):
    """A function for each opcode, plain or async; calls and one-way messages alike.

        async def health(link: Link, envelope: Envelope) -> bytes:
            return b'{"status":"ok"}'

        handler = Handlers({Op.HEALTH: health})

    A plain function is answered at once. An async one runs as a task that is canceled when its connection
    ends, at most `tasks_max` of them at a time; its call is answered when it returns.
    """

    def __init__(self, functions: Mapping[int, HandlerFunction], *, tasks_max: int = HANDLER_TASKS_MAX) -> None:
        self._plain = {opcode: function for opcode, function in functions.items() if not _is_async(function)}
        self._async = {opcode: function for opcode, function in functions.items() if _is_async(function)}
        self._tasks_max = tasks_max
        self._tasks = 0

    def on_call(self, link: Link, request_id: int, envelope: Envelope, message: bytes) -> None:
        """Run the opcode's function and answer with what it returns."""
        opcode = envelope.opcode
        if opcode in self._plain:
            _answer(link, request_id, self._plain[opcode](link, envelope))
        elif opcode in self._async:
            self._start(link, envelope, request_id)
        else:
            super().on_call(link, request_id, envelope, message)

    def on_push(self, link: Link, envelope: Envelope) -> None:
        """Run the opcode's function; what it returns is dropped."""
        if envelope.opcode in self._plain:
            self._plain[envelope.opcode](link, envelope)
        elif envelope.opcode in self._async:
            self._start(link, envelope, None)

    def _start(self, link: Link, envelope: Envelope, request_id: int | None) -> None:
        if self._tasks >= self._tasks_max:
            raise CallFailed(429, f"{self._tasks} handlers are running, no more are started")
        self._tasks += 1
        link.start_soon(self._run, link, envelope, request_id)

    async def _run(self, link: Link, envelope: Envelope, request_id: int | None) -> None:
        try:
            answer = await cast("Awaitable[Answer]", self._async[envelope.opcode](link, envelope))
            if request_id is not None:
                _answer(link, request_id, answer)
        except Exception as error:
            if request_id is not None:
                link.reply_error(request_id, error, opcode=envelope.opcode)
            else:
                log.error("push handler failed", peer=link.node_id, opcode=envelope.opcode, exc_info=error)
        finally:
            self._tasks -= 1


def _is_async(function: HandlerFunction) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _answer(link: Link, request_id: int, answer: object) -> None:
    if answer is not None and not isinstance(answer, bytes):
        raise TypeError(f"a handler returned {type(answer).__name__}: must be bytes, the body of the answer, or None")
    link.reply(request_id, 200, b"null" if answer is None else answer)
