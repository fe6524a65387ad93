"""One open connection on trio: calls, one-way messages and a handler, over a non-blocking socket.

A link has one task, `run`: it reads, hands what came to the handler, and wakes the callers. The protocol is
`connection.Connection`, the writing half is `outbox.Outbox`, and what the links of one listener or client
share is `link_group.LinkGroup`. An idle link holds no buffer.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import structlog
import trio
from outcome import Error, Value
from trio.lowlevel import (
    Abort,
    Task,
    checkpoint,
    current_task,
    enable_ki_protection,
    notify_closing,
    reschedule,
    wait_task_rescheduled,
)

from zapwire.body import encode_json
from zapwire.connection import (
    CALLS_IN_FLIGHT,
    TOO_MANY_CALLS,
    CallReceived,
    CallRefused,
    Connection,
    Ended,
    Event,
    HelloReceived,
    PushReceived,
    ReplyReceived,
    ReplyUnreadable,
    Role,
)
from zapwire.encodings import as_cbor, with_json
from zapwire.envelope import FLAG_CBOR, STATUS_OK, Envelope
from zapwire.errors import (
    BadHandshake,
    CallFailed,
    ConnectionLost,
    LocalProtocolError,
    NotSent,
    OutcomeUnknown,
    ZapError,
)
from zapwire.frame import Buffer
from zapwire.handshake import BODIES, CBOR, Capability, Hello
from zapwire.link_group import SILENT_INTERVALS_MAX, LinkGroup
from zapwire.opcodes import Op
from zapwire.outbox import WOULD_BLOCK, Outbox

READ_BYTES_MAX: Final = 64 * 1024
"""The most that one read takes: some 600 small calls, handled before one write."""

POLLS_BEFORE_SLEEP: Final = 16
"""How often a reader looks again, a trio tick apart, before it sleeps in the kernel.

Waking a sleeping processor costs more than a small call. Measured on two cores with client and server in two
processes, median of the p50: 103 us with 20 polls, 127 with 12, 147 with 8, 238 without; a bare trio echo in
the same run took 169. The price is at most 16 ticks, some 130 us, and only while polling pays: see below."""

POLL_PAUSE_MAX: Final = 1023
"""How many reads go without polling, at most. A round of polls in vain doubles the pause, a successful one halves
it: where the peer is far, slow, or shares our core, one read in a thousand still tries."""

log = structlog.wrap_logger(logging.getLogger(__name__))


class _Caller(msgspec.Struct, gc=False):
    """Who waits for a reply: nobody for a probe, and nobody any more once it was canceled."""

    task: Task | None
    timeout: float
    deadline: float


class Link:
    """One open connection, either end; made by `open_link`, `open_reconnecting_link` and `open_listener`.

    Everything but `call`, `call_raw` and `aclose` is synchronous and never waits.
    """

    __slots__ = (
        "_connected",
        "_connection",
        "_ended",
        "_error",
        "_group",
        "_heard",
        "_outbox",
        "_outbox_bytes_max",
        "_pause_bytes",
        "_poll_pause",
        "_poll_penalty",
        "_scopes",
        "_silent_intervals",
        "_sock",
        "_unhandled",
        "capabilities",
        "writes_cbor",
    )

    def __init__(self, sock: socket.socket, role: Role, group: LinkGroup) -> None:
        limits = group.limits
        self.capabilities = Capability(0)
        """What both ends can do. None with a Go peer."""
        self.writes_cbor = False
        """Whether one end has asked for CBOR in its hello, and both can read it: then what `call` and `send` take and
        return is JSON as ever, and travels as CBOR, unless CBOR cannot say it."""
        self._sock = sock
        self._group = group
        self._connection: Connection[_Caller] = Connection(
            role,
            group.hello,
            frame_bytes_max=limits.frame_bytes,
            calls_in_flight_max=limits.calls_in_flight,
            unanswered_calls_max=limits.unanswered_calls,
        )
        self._outbox = Outbox(sock, group, self._abort)
        self._outbox_bytes_max = limits.outbox_bytes
        self._pause_bytes = limits.pause_bytes if role is Role.SERVER else math.inf
        self._poll_penalty = 0
        self._poll_pause = 0
        self._heard = False
        self._silent_intervals = 0
        self._unhandled: list[Event[_Caller]] = []  # received, and waiting for its turn
        self._scopes: set[trio.CancelScope] | None = None
        self._connected = False  # the handler was told of the beginning
        self._error: ZapError | None = None  # why the end has come; the socket is closed
        self._ended = False  # everybody was told of the end

    def __repr__(self) -> str:
        peer = self._connection.peer
        return f"<Link to {peer.node_id if peer else 'nobody yet'}: {'open' if self.open else 'not open'}>"

    @property
    def node_id(self) -> str:
        """The peer's node id, as it says itself; nobody has verified it."""
        return self.peer.node_id

    @property
    def peer(self) -> Hello:
        """The peer's hello."""
        peer = self._connection.peer
        if peer is None:
            raise LocalProtocolError("the handshake is not done: there is no peer yet")
        return peer

    @property
    def open(self) -> bool:
        """Whether the handshake is done and the end has not come."""
        return self._connected and self._error is None

    @property
    def error(self) -> ZapError | None:
        """Why the connection has ended; None while it has not."""
        return self._error

    @property
    def connection(self) -> Connection[_Caller]:
        """The protocol machine, to read its counters."""
        return self._connection

    @property
    def outbox_bytes(self) -> int:
        """How many bytes wait for the peer to read."""
        return self._outbox.bytes

    async def wait_sent(self, size: int = 0) -> None:
        """Wait until no more than `size` bytes wait for the peer to read, or the connection has ended."""
        await self._outbox.below(size)

    def owes(self, request_id: int) -> bool:
        """Whether the peer's call with this id still waits for an answer that can be sent."""
        return self._error is None and self._connection.owes(request_id)

    # Calls and messages

    @enable_ki_protection  # a KeyboardInterrupt between the call and the wait would leave a caller that does not wait
    async def call(
        self, opcode: int, body: Buffer = b"{}", *, timeout: float | None = None, flags: int = 0
    ) -> Envelope:
        """Call the peer and return its answer. Not a checkpoint before the call is sent, always one after.

        Only while more waits for the peer than may (`LinkLimits.outbox_bytes`) a call waits here for room.
        `timeout` is in seconds. A call that is canceled or runs out of time is forgotten: while it still waits
        here it never leaves, and otherwise a peer of ours is told that nobody waits any more. Raises
        `CallFailed` for an answer other than success, `NotSent` or `OutcomeUnknown` when time or connection
        end, `BadMessage` for an answer that cannot be read, `LocalProtocolError` for a call that cannot be made.
        """
        if self._outbox.bytes + len(body) > self._outbox_bytes_max:
            timeout = await self._wait_for_room(len(body), timeout)
        if self._error is not None:
            raise self._not_sent()
        is_json = not flags & FLAG_CBOR
        if self.writes_cbor and is_json:
            body, flags = as_cbor(body, flags)
        caller = self._caller(timeout)
        request_id, frame = self._connection.call(opcode, body, caller, flags=flags)
        self._outbox.write(frame)
        envelope = (await self._reply_to(request_id, caller)).envelope
        if is_json and envelope.flags & FLAG_CBOR:
            envelope = with_json(envelope)
        if envelope.status != STATUS_OK and envelope.status != 0:
            raise CallFailed(envelope.status, envelope.error, opcode=opcode, body=bytes(envelope.body))
        return envelope

    @enable_ki_protection
    async def call_raw(self, message: Buffer, *, timeout: float | None = None) -> bytes:
        """Call the peer with a whole message and return its whole answer, whatever status that has.

        For the opcodes whose root object is not the envelope. Otherwise as `call`.
        """
        if self._outbox.bytes + len(message) > self._outbox_bytes_max:
            timeout = await self._wait_for_room(len(message), timeout)
        if self._error is not None:
            raise self._not_sent()
        caller = self._caller(timeout)
        request_id, frame = self._connection.call_raw(message, caller)
        self._outbox.write(frame)
        return (await self._reply_to(request_id, caller)).message

    async def _wait_for_room(self, size: int, timeout: float | None) -> float | None:
        """Wait until the peer has read so much that `size` bytes may wait too; returns the rest of the timeout."""
        limit = max(self._outbox_bytes_max - size, 0)
        deadline = math.inf if timeout is None else trio.current_time() + timeout
        with trio.move_on_at(deadline):
            while self._outbox.bytes > limit and self._error is None:
                await trio.lowlevel.checkpoint()  # what was gathered leaves in the next tick
                await self._outbox.below(limit)
        if self._error is None and self._outbox.bytes > limit:
            raise NotSent(
                f"{self.node_id} read too little for {timeout:g} s: {self._outbox.bytes} bytes wait for it, and the"
                " call was never sent"
            )
        return None if timeout is None else max(deadline - trio.current_time(), 0.0)

    def _caller(self, timeout: float | None) -> _Caller:
        if timeout is None:
            return _Caller(current_task(), math.inf, math.inf)
        deadline = trio.current_time() + timeout
        self._group.call_timer.look_by(deadline)
        return _Caller(current_task(), timeout, deadline)

    async def _reply_to(self, request_id: int, caller: _Caller) -> ReplyReceived[_Caller]:
        """Wait until the reader brings the reply, or `finish` or `expire_calls` the reason why there is none."""

        def canceled(_: object) -> Abort:
            # The reply may have been read already, behind what canceled this call: nobody is to be woken by it.
            caller.task = None
            self._give_up(request_id)
            return Abort.SUCCEEDED

        reply: ReplyReceived[_Caller] = await wait_task_rescheduled(canceled)
        return reply

    def _give_up(self, request_id: int) -> bool:
        """Forget a call of ours. True if it was still here and never leaves."""
        self._connection.abandon(request_id)
        if self._outbox.withdraw(request_id):
            return True
        if self.capabilities:
            self.send(Op.ABANDON_CALL, encode_json({"request_id": request_id}))
        return False

    def expire_calls(self, now: float) -> float:
        """End the calls whose time is over; returns the earliest deadline of the others. For the group's timer."""
        earliest = math.inf
        for request_id, caller in list(self._connection.in_flight.items()):
            if caller.deadline > now:
                earliest = min(earliest, caller.deadline)
            elif caller.task is not None:
                error: ConnectionLost
                if self._give_up(request_id):
                    error = NotSent(f"{self.node_id} took nothing for {caller.timeout:g} s: the call was never sent")
                else:
                    error = OutcomeUnknown(f"no answer from {self.node_id} within {caller.timeout:g} s")
                reschedule(caller.task, Error(error))
        return earliest

    def send(self, opcode: int, body: Buffer, *, flags: int = 0) -> None:
        """Send a one-way message. After the end of the connection it is dropped: `disconnected` tells of that."""
        if self._error is None:
            if self.writes_cbor and not flags & FLAG_CBOR:
                body, flags = as_cbor(body, flags)
            self._outbox.write(self._connection.push(opcode, body, flags=flags))

    def reply(self, request_id: int, status: int, body: Buffer = b"null", error: str = "", *, flags: int = 0) -> None:
        """Answer a call. After the end of the connection the answer is dropped.

        A call that is not open raises `LocalProtocolError`; so does an answer that is longer than a frame, and
        then the call can still be answered otherwise.
        """
        if self._error is None:
            self._outbox.write(self._connection.reply(request_id, status, body, error, flags=flags))

    def reply_raw(self, request_id: int, message: Buffer) -> None:
        """Answer a call with a whole message. Otherwise as `reply`."""
        if self._error is None:
            self._outbox.write(self._connection.reply_raw(request_id, message))

    def reply_error(self, request_id: int, error: Exception, *, opcode: int) -> None:
        """Answer a call with what went wrong, unless it is answered already, and log it in one line.

        A `ZapError` gives its own status and text; of anything else the peer gets 500, the type and the message.
        """
        if isinstance(error, ZapError):
            status, text = error.status, error.detail if isinstance(error, CallFailed) else str(error)
            log.info("call failed", peer=self.node_id, opcode=opcode, status=status, error=text)
        else:
            status, text = 500, f"{type(error).__name__}: {error}"
            log.error("call handler failed", peer=self.node_id, opcode=opcode, exc_info=error)
        if self.owes(request_id):
            self.reply(request_id, status, error=text)

    def start_soon(self, function: Callable[..., Awaitable[None]], *args: object) -> None:
        """Run a task that is canceled when the connection ends. It must handle its own errors."""
        self._group.nursery.start_soon(self._run_task, function, args)

    async def _run_task(self, function: Callable[..., Awaitable[None]], args: tuple[object, ...]) -> None:
        with trio.CancelScope() as scope:
            if self._scopes is None:
                self._scopes = set()
            self._scopes.add(scope)
            if self._ended:
                scope.cancel()
            try:
                await function(*args)
            finally:
                self._scopes.discard(scope)

    # From the first byte to the last

    async def shake_hands(self) -> None:
        """Do the TLS handshake, if any, then send and hear hello. First of three; next comes `begin`, then `run`.

        A server's own hello is left to `begin`, so that it can still refuse the peer. Raises `BadHandshake` or
        `ConnectionLost`. A link whose handshake failed or was canceled is closed.
        """
        seconds = self._group.limits.handshake_seconds
        try:
            with trio.move_on_after(seconds):
                if isinstance(self._sock, ssl.SSLSocket):
                    await _shake_hands_tls(self._sock)
                if self._connection.role is Role.CLIENT:
                    self._outbox.write(self._connection.hello_frame())
                while not self._unhandled:
                    self._unhandled = await self._receive_events()
                first = self._unhandled.pop(0)
                if isinstance(first, Ended):
                    if isinstance(first.error, BadHandshake | ConnectionLost):
                        raise first.error
                    raise BadHandshake(f"the peer's first bytes are no hello: {first.error}")
                self.capabilities = self._connection.capabilities
                asked = CBOR in (self._connection.hello.details.get(BODIES), self.peer.details.get(BODIES))
                self.writes_cbor = asked and Capability.CBOR_BODIES in self.capabilities
                return
            raise BadHandshake(f"no hello within {seconds:g} s")
        except BaseException as error:
            self.close("the handshake failed")
            self.finish()
            if isinstance(error, OSError):
                raise ConnectionLost(f"the connection broke in the handshake: {error}") from error
            raise

    @enable_ki_protection
    def begin(self) -> None:
        """Tell the handler of the connection. A server says hello now."""
        with self._group.flusher:
            if self._connection.role is Role.SERVER:
                self._outbox.write(self._connection.hello_frame())
            self._connected = True
            self._group.links.add(self)
            try:
                self._group.handler.connected(self)
            except Exception as error:
                self._handler_failed("connected", error)

    @enable_ki_protection
    async def run(self) -> None:
        """Read and handle until the end, which goes to the handler and is never raised."""
        try:
            while self._error is None:
                if not self._unhandled:
                    self._unhandled = await self._receive_events()
                self._handle()
                if self._outbox.bytes > self._pause_bytes:
                    await self._outbox.below(self._pause_bytes)
        except OSError as error:
            self._abort(ConnectionLost(f"the connection broke: {error}"))
        except trio.ClosedResourceError:
            pass  # _abort closed the socket while this task waited for it
        finally:
            self.close()
            self.finish()

    async def _receive_events(self) -> list[Event[_Caller]]:
        data = await self._receive()
        self._heard = True
        events = self._connection.receive_data(data) if data else self._connection.receive_eof()
        self._outbox.heard = len(events) < 2
        return events

    async def _receive(self) -> bytes:
        """The next bytes of the peer; none at the end of its stream."""
        sock = self._sock
        if isinstance(sock, ssl.SSLSocket) and sock.pending():
            await checkpoint()
            return sock.recv(READ_BYTES_MAX)
        if self._poll_pause:
            self._poll_pause -= 1
        else:
            for _ in range(POLLS_BEFORE_SLEEP):
                await checkpoint()
                try:
                    data = sock.recv(READ_BYTES_MAX)
                except WOULD_BLOCK:
                    continue
                self._poll_penalty //= 2
                return data
            self._poll_penalty = min(2 * self._poll_penalty + 1, POLL_PAUSE_MAX)
            self._poll_pause = self._poll_penalty
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                return sock.recv(READ_BYTES_MAX)
            except WOULD_BLOCK:
                continue

    def _handle(self) -> None:
        """Handle what came; what is written meanwhile leaves at the end. Stops early when too much waits already."""
        if not self._unhandled:
            return
        events, self._unhandled = self._unhandled, []
        end: ZapError | None = None
        with self._group.flusher:
            for number, event in enumerate(events, start=1):
                match event:
                    case ReplyReceived() | ReplyUnreadable():
                        _wake(event)
                    case CallReceived():
                        try:
                            self._group.handler.on_call(self, event.request_id, event.envelope, event.message)
                        except Exception as error:
                            self.reply_error(event.request_id, error, opcode=event.envelope.opcode)
                    case PushReceived():
                        try:
                            self._group.handler.on_push(self, event.envelope)
                        except Exception as error:
                            opcode = event.envelope.opcode
                            log.error("push handler failed", peer=self.node_id, opcode=opcode, exc_info=error)
                    case CallRefused():
                        if event.status == TOO_MANY_CALLS:
                            self._group.refused[CALLS_IN_FLIGHT] += 1
                        self._outbox.write(event.answer)
                    case Ended():
                        end = event.error
                    case HelloReceived():
                        raise AssertionError("the machine gives one hello, and shake_hands took it")
                if self._error is not None or self._outbox.bytes > self._pause_bytes:
                    self._unhandled = events[number:]
                    break
            try:
                self._group.handler.batch_end(self)
            except Exception as error:
                self._handler_failed("batch_end", error)
        if end is not None:
            self._abort(end)

    def _handler_failed(self, where: str, error: Exception) -> None:
        """A handler failed where nobody can be answered: what it held may be lost, so the connection ends."""
        log.error("link handler failed", peer=self.node_id, where=where, exc_info=error)
        self._abort(ConnectionLost(f"the handler failed in {where}: {type(error).__name__}"))

    def check_alive(self) -> None:
        """Probe the connection if it was silent since the last check, end it if it stays silent. For the group."""
        if self._heard:
            self._heard = False
            self._silent_intervals = 0
            return
        self._silent_intervals += 1
        if not self.capabilities or self._error is not None:
            return
        if self._silent_intervals >= SILENT_INTERVALS_MAX:
            seconds = self._silent_intervals * self._group.limits.probe_seconds
            self._abort(ConnectionLost(f"nothing was heard from {self.node_id} for {seconds:g} s"))
        else:
            _, frame = self._connection.call(Op.HEALTH, b"{}", _Caller(None, math.inf, math.inf))
            self._outbox.write(frame)

    # The end

    async def aclose(self, reason: str = "this end closed the connection") -> None:
        """Send what waits, within `close_seconds`, and end the connection. Cancel ends it at once.

        Calls in flight fail with `OutcomeUnknown`, or `NotSent` if they never left.
        """
        try:
            self._outbox.flush()
            with trio.move_on_after(self._group.limits.close_seconds):
                await self._outbox.below(0)
            await checkpoint()
        finally:
            self.close(reason)

    def close(self, reason: str = "this end closed the connection") -> None:
        """End the connection now. What waits to be sent is dropped, and calls in flight fail in the next tick."""
        self._abort(ConnectionLost(reason))

    def _abort(self, error: ZapError) -> None:
        """Close the socket; the first reason counts. The link's own task does the rest, so that handlers never nest."""
        if self._error is not None:
            return
        self._error = error
        self._outbox.stop()
        if isinstance(self._sock, ssl.SSLSocket):
            # Sends TLS's own goodbye; the answer to it, or a handshake that never ended, concerns nobody.
            with contextlib.suppress(OSError, ValueError):
                self._sock.unwrap()
        notify_closing(self._sock)
        self._sock.close()

    def finish(self) -> None:
        """Tell everybody of the end: callers, tasks, the handler. Only for a link that was closed, and only once."""
        error = self._error
        assert error is not None, "close a link before it is finished"
        if self._ended:
            return
        self._ended = True
        self._connection.close()
        self._group.links.discard(self)
        never_sent = self._outbox.clear()
        for event in self._unhandled:  # replies that were read: whoever waits for one has no other end to hear of
            if isinstance(event, ReplyReceived | ReplyUnreadable):
                _wake(event)
        for request_id, caller in self._connection.take_in_flight().items():
            if caller.task is None:
                continue
            if request_id in never_sent:
                reschedule(caller.task, Error(NotSent(f"the connection ended before the call was sent: {error}")))
            else:
                reschedule(caller.task, Error(OutcomeUnknown(f"the connection ended before the answer: {error}")))
        for scope in self._scopes or ():
            scope.cancel()
        if self._connected:
            with self._group.flusher:
                try:
                    self._group.handler.disconnected(self, error)
                except Exception as failure:
                    log.error("link handler failed", peer=self.node_id, where="disconnected", exc_info=failure)

    def _not_sent(self) -> NotSent:
        return NotSent(f"the connection has ended: {self._error}")


def _wake(event: ReplyReceived[_Caller] | ReplyUnreadable[_Caller]) -> None:
    """Give a reply to who waits for it, if anybody still does."""
    task = event.caller.task
    if task is not None:
        reschedule(task, Value(event) if isinstance(event, ReplyReceived) else Error(event.error))


async def _shake_hands_tls(sock: ssl.SSLSocket) -> None:
    """The TLS handshake on a non-blocking socket. Raises `OSError`, of which `ssl.SSLError` is one."""
    while True:
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            await trio.lowlevel.wait_readable(sock)
        except ssl.SSLWantWriteError:
            await trio.lowlevel.wait_writable(sock)
        else:
            return
