"""One connection as a pure machine: bytes in, events out, frames to send back. No socket, task or clock.

    machine = Connection(Role.CLIENT, Hello("worker-7"))
    send(machine.hello_frame())
    for event in machine.receive_data(bytes_from_peer): ...
    request_id, frame = machine.call(0x90, b"{}", caller)

It knows who still owes an answer to whom. Calls of ours wait in a table, each with the `caller` that it
was made for, which comes back with the reply; calls of the peer are remembered until they are answered,
so that none is answered twice and a peer cannot pile them up.

What a peer gets wrong ends where it does least harm. A call that cannot be read is answered with 400 (its
correlation header is enough for that), a one-way message that cannot be read and a reply that nobody waits
for are counted and dropped; only a broken stream, a refused handshake or a reused request id ends the
connection, with `Ended` as the last event.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, Generic, TypeVar

import msgspec

from zapwire.envelope import Envelope, decode_envelope, encode_push, encode_request, encode_response
from zapwire.errors import (
    BadHandshake,
    BadMessage,
    ConnectionLost,
    FrameTooLarge,
    LocalProtocolError,
    RemoteProtocolError,
    ZapError,
)
from zapwire.frame import (
    FRAME_BYTES_MAX,
    KIND_ONE_WAY,
    KIND_REQUEST,
    KIND_RESPONSE,
    PREFIX_BYTES,
    REQUEST_ID_MAX,
    Buffer,
    FrameDecoder,
    call_frame,
    frame,
    split_call,
)
from zapwire.handshake import Capability, Hello, decode_hello, encode_hello

HELLO_BYTES_MAX: Final = 8 * 1024
"""The longest handshake: twice the longest details, so that a stranger cannot make us hold a frame of 10 MiB."""

CALLS_IN_FLIGHT_MAX: Final = 65_536
"""Our own unanswered calls on one connection; one more is refused here, because a table that only grows
means a peer that answers nothing."""

UNANSWERED_CALLS_MAX: Final = 16_384
"""The peer's calls that we have not answered; one more is answered 429 at once. About 1 MiB of table."""

CALLS_IN_FLIGHT: Final = "calls-in-flight"
"""The name of that bound."""
TOO_MANY_CALLS: Final = 429

CallerT = TypeVar("CallerT")


class Role(Enum):
    """Which end of the connection this is: the client speaks first."""

    CLIENT = "client"
    SERVER = "server"


class State(Enum):
    """Where a connection stands."""

    HANDSHAKE = "handshake"
    OPEN = "open"
    ENDED = "ended"  # the peer's stream is over; what came before can still be answered
    CLOSED = "closed"


class Input(Enum):
    """What can happen to a connection."""

    HELLO = "the peer's hello"
    MESSAGE = "a message of the peer"
    SEND = "a message to send"
    FAULT = "a fault of the peer"
    EOF = "the end of the stream"
    CLOSE = "a local close"


TRANSITIONS: Final[dict[tuple[State, Input], State]] = {
    (State.HANDSHAKE, Input.HELLO): State.OPEN,
    (State.HANDSHAKE, Input.FAULT): State.CLOSED,
    (State.HANDSHAKE, Input.EOF): State.CLOSED,
    (State.HANDSHAKE, Input.CLOSE): State.CLOSED,
    (State.OPEN, Input.MESSAGE): State.OPEN,
    (State.OPEN, Input.SEND): State.OPEN,
    (State.OPEN, Input.FAULT): State.ENDED,
    (State.OPEN, Input.EOF): State.ENDED,
    (State.OPEN, Input.CLOSE): State.CLOSED,
    (State.ENDED, Input.SEND): State.ENDED,
    (State.ENDED, Input.CLOSE): State.CLOSED,
    (State.CLOSED, Input.CLOSE): State.CLOSED,
}
"""Every pair that may happen. Any other is this process's mistake: a `LocalProtocolError`."""

_RECEIVING: Final = (State.HANDSHAKE, State.OPEN)
_SENDING: Final = (State.OPEN, State.ENDED)


class HelloReceived(msgspec.Struct, frozen=True, gc=False):
    """The peer has introduced itself and the connection is open. A server now sends its own hello."""

    hello: Hello


class CallReceived(msgspec.Struct, frozen=True, gc=False):
    """A call that waits for `reply` or `reply_raw` with its id.

    `message` is the call as it came, for the opcodes whose root object is not the envelope.
    """

    request_id: int
    envelope: Envelope
    message: bytes


class CallRefused(msgspec.Struct, frozen=True, gc=False):
    """A call that is refused before anybody looks at it; `answer` is the frame to send."""

    request_id: int
    status: int
    reason: str
    answer: bytes


class ReplyReceived(msgspec.Struct, Generic[CallerT], frozen=True, gc=False):
    """The answer to a call of ours. `message` is the answer as it came."""

    request_id: int
    caller: CallerT
    envelope: Envelope
    message: bytes


class ReplyUnreadable(msgspec.Struct, Generic[CallerT], frozen=True, gc=False):
    """The answer to a call of ours came and is not a message: the caller gets the reason and waits no longer."""

    request_id: int
    caller: CallerT
    error: BadMessage


class PushReceived(msgspec.Struct, frozen=True, gc=False):
    """A one-way message."""

    envelope: Envelope


class Ended(msgspec.Struct, frozen=True, gc=False):
    """Nothing more will come; always the last event. Answer what came before it, then close.

    `error` is a `RemoteProtocolError` for a fault of the peer, `ConnectionLost` for the end of its stream.
    """

    error: ZapError


# A struct without garbage collection is made in 0.13 us, a frozen slotted dataclass in 0.72 us (CPython 3.11).
Event = (
    HelloReceived
    | CallReceived
    | CallRefused
    | ReplyReceived[CallerT]
    | ReplyUnreadable[CallerT]
    | PushReceived
    | Ended
)


class Connection(Generic[CallerT]):
    """One end of one connection.

    `hello` is what we tell the peer; a bad node id in it raises `LocalProtocolError` here, at the caller.
    The two bounds are counted in calls.
    """

    __slots__ = (
        "_decoder",
        "_hello_prefix",
        "_in_flight",
        "_last_request_id",
        "_owed",
        "_state",
        "calls_in_flight_max",
        "dropped_messages",
        "hello",
        "late_replies",
        "peer",
        "role",
        "unanswered_calls_max",
    )

    def __init__(
        self,
        role: Role,
        hello: Hello,
        *,
        frame_bytes_max: int = FRAME_BYTES_MAX,
        calls_in_flight_max: int = CALLS_IN_FLIGHT_MAX,
        unanswered_calls_max: int = UNANSWERED_CALLS_MAX,
    ) -> None:
        encode_hello(hello)
        self.role = role
        self.hello = hello
        self.peer: Hello | None = None
        self.calls_in_flight_max = calls_in_flight_max
        self.unanswered_calls_max = unanswered_calls_max
        self.dropped_messages = 0
        self.late_replies = 0
        self._state = State.HANDSHAKE
        self._hello_prefix = b""
        self._decoder = FrameDecoder(frame_bytes_max)
        self._last_request_id = 0
        self._in_flight: dict[int, CallerT] = {}
        self._owed: set[int] = set()

    @property
    def state(self) -> State:
        """Where the connection stands."""
        return self._state

    @property
    def capabilities(self) -> Capability:
        """What both ends can do: only these may be used. None before the handshake and with a Go peer."""
        if self.peer is None:
            return Capability(0)
        return Capability(self.hello.capabilities & self.peer.capabilities)

    @property
    def in_flight(self) -> Mapping[int, CallerT]:
        """Our calls that wait for an answer: request id to caller."""
        return self._in_flight

    @property
    def calls_unanswered(self) -> int:
        """How many calls of the peer wait for an answer."""
        return len(self._owed)

    def owes(self, request_id: int) -> bool:
        """Whether the peer's call with this id still waits for an answer."""
        return request_id in self._owed

    # What comes in

    def receive_data(self, data: Buffer) -> list[Event[CallerT]]:
        """Take the next bytes of the peer's stream, torn anywhere, and say what they mean, in order.

        When they hold a fault, what was right before it comes first and `Ended` last. Not after that.
        """
        if self._state not in _RECEIVING:
            self._step(Input.MESSAGE)
        events: list[Event[CallerT]] = []
        fault: RemoteProtocolError | None = None
        try:
            if self._state is State.HANDSHAKE:
                self._check_hello_prefix(data)
            try:
                payloads = self._decoder.feed(data)
            except FrameTooLarge as error:
                payloads = error.frames
                fault = error
            if payloads and self._state is State.HANDSHAKE:
                self.peer = decode_hello(payloads.pop(0))
                self._step(Input.HELLO)
                events.append(HelloReceived(self.peer))
            for payload in payloads:
                self._receive(payload, events)
        except RemoteProtocolError as error:
            fault = error
        if fault is not None:
            self._step(Input.FAULT)
            events.append(Ended(fault))
        return events

    def _check_hello_prefix(self, data: Buffer) -> None:
        """Refuse a hello that is too long as soon as its length is readable: most strangers end here."""
        missing = PREFIX_BYTES - len(self._hello_prefix)
        if missing:
            self._hello_prefix += bytes(data[:missing])
            length = int.from_bytes(self._hello_prefix, "little")
            if len(self._hello_prefix) == PREFIX_BYTES and length > HELLO_BYTES_MAX:
                raise BadHandshake(f"a hello of {length} bytes: at most {HELLO_BYTES_MAX} are allowed")

    def _receive(self, payload: bytes, events: list[Event[CallerT]]) -> None:
        kind, request_id, message = split_call(payload)
        try:
            envelope = decode_envelope(message)
        except BadMessage as error:
            self._receive_unreadable(kind, request_id, error, events)
            return
        if kind == KIND_RESPONSE:
            if request_id in self._in_flight:
                events.append(ReplyReceived(request_id, self._in_flight.pop(request_id), envelope, message))
            else:
                self.late_replies += 1
        elif kind == KIND_REQUEST:
            if request_id in self._owed:
                raise BadMessage(f"request id {request_id} is in use by a call that was not answered yet")
            if len(self._owed) >= self.unanswered_calls_max:
                reason = (
                    f"{len(self._owed)} calls of this connection wait for an answer, no more are taken"
                    f" (limit {CALLS_IN_FLIGHT})"
                )
                events.append(_refusal(request_id, TOO_MANY_CALLS, reason))
            else:
                self._owed.add(request_id)
                events.append(CallReceived(request_id, envelope, message))
        else:
            events.append(PushReceived(envelope))

    def _receive_unreadable(self, kind: int, request_id: int, error: BadMessage, events: list[Event[CallerT]]) -> None:
        if kind == KIND_REQUEST:
            events.append(_refusal(request_id, error.status, str(error)))
        elif kind == KIND_RESPONSE and request_id in self._in_flight:
            events.append(ReplyUnreadable(request_id, self._in_flight.pop(request_id), error))
        elif kind == KIND_ONE_WAY:
            self.dropped_messages += 1
        else:
            self.late_replies += 1

    def receive_eof(self) -> list[Event[CallerT]]:
        """The peer's stream has ended. Not after `Ended`."""
        held = self._decoder.pending
        where = f", {held} bytes into a frame" if held else ""
        error: ZapError
        if self._state is State.HANDSHAKE:
            error = BadHandshake(f"the peer closed the connection before its hello{where}")
        else:
            error = ConnectionLost(f"the peer closed the connection{where}")
        self._step(Input.EOF)
        return [Ended(error)]

    # What goes out

    def hello_frame(self) -> bytes:
        """Our hello: a client's first bytes, a server's answer to `HelloReceived`.

        A server leaves its extension out towards a peer that sent none.
        """
        hello = self.hello
        if self.role is Role.SERVER and self.peer is not None and not self.peer.capabilities:
            hello = Hello(hello.node_id)
        return frame(encode_hello(hello))

    def call(self, opcode: int, body: Buffer, caller: CallerT, *, flags: int = 0) -> tuple[int, bytes]:
        """Make a call: returns its request id and the frame to send. Its reply will bring `caller` back."""
        return self.call_raw(encode_request(opcode, body, flags), caller)

    def call_raw(self, message: Buffer, caller: CallerT) -> tuple[int, bytes]:
        """Make a call of a whole message, for the opcodes whose root object is not the envelope."""
        if self._state not in _SENDING:
            self._step(Input.SEND)
        in_flight = self._in_flight
        if len(in_flight) >= self.calls_in_flight_max:
            raise LocalProtocolError(f"{len(in_flight)} calls are in flight on this connection, no more are allowed")
        request_id = self._last_request_id
        while True:
            request_id = request_id + 1 if request_id < REQUEST_ID_MAX else 0
            if request_id not in in_flight:
                break
        # Framed first: a message that is too long leaves no trace in the table.
        data = call_frame(request_id, KIND_REQUEST, message)
        self._last_request_id = request_id
        in_flight[request_id] = caller
        return request_id, data

    def abandon(self, request_id: int) -> None:
        """Forget a call of ours: its caller waits no longer, and its answer will be dropped as late."""
        self._in_flight.pop(request_id, None)

    def take_in_flight(self) -> dict[int, CallerT]:
        """Empty the table of our unanswered calls and return it, for the end of the connection."""
        in_flight, self._in_flight = self._in_flight, {}
        return in_flight

    def push(self, opcode: int, body: Buffer, *, flags: int = 0) -> bytes:
        """A one-way message: returns the frame to send."""
        if self._state not in _SENDING:
            self._step(Input.SEND)
        return frame(encode_push(opcode, body, flags))

    def reply(self, request_id: int, status: int, body: Buffer, error: str = "", *, flags: int = 0) -> bytes:
        """Answer a call of the peer: returns the frame to send."""
        return self.reply_raw(request_id, encode_response(status, body, error, flags))

    def reply_raw(self, request_id: int, message: Buffer) -> bytes:
        """Answer a call of the peer with a whole message.

        A call that is not open (never made, or answered already) raises `LocalProtocolError`; so does a
        message that is too long, and then the call stays open for a shorter answer.
        """
        if self._state not in _SENDING:
            self._step(Input.SEND)
        if request_id not in self._owed:
            raise LocalProtocolError(f"request id {request_id}: no call with this id waits for an answer")
        data = call_frame(request_id, KIND_RESPONSE, message)
        self._owed.discard(request_id)
        return data

    def close(self) -> None:
        """This end is done. Closing twice is harmless."""
        self._step(Input.CLOSE)

    def _step(self, happened: Input) -> None:
        following = TRANSITIONS.get((self._state, happened))
        if following is None:
            raise LocalProtocolError(f"{happened.value} while the connection is in state {self._state.value}")
        self._state = following


def _refusal(request_id: int, status: int, reason: str) -> CallRefused:
    answer = call_frame(request_id, KIND_RESPONSE, encode_response(status, b"", reason))
    return CallRefused(request_id, status, reason, answer)
