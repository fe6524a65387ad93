"""From a connection's calls to engine steps, and from the engine's effects to replies and pushes.

    frames of one read --> on_call ... on_call --> batch_end
                             |  step, effects        | one write for each connection that got something

Everything is synchronous: a call costs no task switch and no thread hop. A call that the engine
refuses is answered with the refusal's status and text; a call that fails in an unforeseen way ends in a
500, one log line, and a connection that goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec
import structlog

from zapserver import shapes
from zapserver.calls import BINARY_CALLS, CALLS, DEFERRED
from zapserver.calls.executions import query_answer
from zapserver.deliveries import delivery_body
from zapserver.engine.commands import AbandonWait, Command, PeerKey, PeerLost, ResumePeer, Tick, Waiter
from zapserver.engine.effects import Answered, Closed, PeerFull, UpdateAnswered, UpdateRejected
from zapserver.engine.errors import EngineError
from zapserver.namespaces import Namespace, Namespaces
from zapserver.requests import AbandonRequest, Request, SubscriptionRequest
from zapwire.body import decode_cbor, decode_json, encode_cbor, encode_json
from zapwire.envelope import FLAG_CBOR, Envelope, encode_ack, encode_response, encode_submit_reply
from zapwire.errors import LocalProtocolError, ZapError
from zapwire.failure import decode_failure
from zapwire.link import Link
from zapwire.link_handler import not_served
from zapwire.opcodes import Op

R = TypeVar("R")

log = structlog.get_logger("zapserver")

_NULL = b"null"
RESUME_BYTES_MAX = 512 * 1024
"""A peer for which no more than this waits is reading."""
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a caller that went away; nobody reads this answer."""


class Dispatcher:
    """Serves every connection of one server. A `zapwire.LinkHandler`; not thread safe.

    `clock` returns milliseconds since the epoch.
    """

    def __init__(self, namespaces: Namespaces, *, clock: Callable[[], int]) -> None:
        self.namespaces = namespaces
        self.clock = clock
        self.on_deadline_moved: Callable[[], None] = _nothing
        """Called when `next_deadline_ms` may have become earlier."""
        self._peers: dict[Link, _Peer] = {}
        self._links: dict[PeerKey, _Peer] = {}
        self._last_peer_key = 0
        self._announced_deadline_ms: int | None = None
        self._deadline_moved = False
        self._full: list[tuple[PeerKey, Namespace]] = []
        """Peers that get nothing more before they have taken what they got."""

    # --- what a link tells ---------------------------------------------------------------------------

    def connected(self, link: Link) -> None:
        self._last_peer_key += 1
        peer = _Peer(self._last_peer_key, link)
        self._peers[link] = self._links[peer.key] = peer

    def on_call(self, link: Link, request_id: int, envelope: Envelope, message: bytes) -> None:
        call = _Call(self, self._peers[link], request_id)
        opcode = envelope.opcode
        binary = BINARY_CALLS.get(opcode)
        try:
            if binary is not None:
                link.reply_raw(request_id, binary(call.in_namespace, message))
            else:
                self._answer(call, envelope)
        except (EngineError, ZapError) as error:
            self._refuse(link, request_id, opcode, error.status, str(error))
        except Exception as error:
            log.exception("a call failed", opcode=opcode, peer=link.node_id)
            self._refuse(link, request_id, opcode, 500, f"internal error: {type(error).__name__}")
        self._perform(call.touched)

    def on_push(self, link: Link, envelope: Envelope) -> None:
        """One-way messages: a caller that gives up, a worker that changes its slots.

        Go's workers echo every delivery as an empty one-way message; those mean nothing.
        """
        try:
            if envelope.opcode == Op.ABANDON_CALL:
                self._abandon(self._peers[link], _read(envelope, AbandonRequest).request_id)
            elif envelope.opcode == Op.GRANT_CREDITS:
                call = _Call(self, self._peers[link], 0)
                request = _read(envelope, SubscriptionRequest)
                call.namespace_name = request.namespace
                CALLS[Op.GRANT_CREDITS].answer(call, request)
                self._perform(call.touched)
        except (EngineError, ZapError) as error:
            log.info("a one-way message was dropped", opcode=envelope.opcode, peer=link.node_id, reason=str(error))

    def _abandon(self, peer: _Peer, request_id: int) -> None:
        """The caller forgot its call: forget who waits for it, and take it off the list of unanswered calls."""
        now_ms = self.clock()
        for namespace in peer.namespaces:
            namespace.engine.step(AbandonWait(waiter=(peer.key, request_id), peer=peer.key), now_ms)
            self._perform(namespace)
        if peer.link.owes(request_id):
            peer.link.reply(request_id, CLIENT_CLOSED_REQUEST, error="abandoned by its caller")

    def batch_end(self, link: Link) -> None:
        self._after_steps()

    def disconnected(self, link: Link, error: ZapError) -> None:
        peer = self._peers.pop(link, None)
        if peer is None:
            return
        del self._links[peer.key]
        now_ms = self.clock()
        for namespace in peer.namespaces:
            namespace.engine.step(PeerLost(peer=peer.key, reason=str(error)), now_ms)
            self._perform(namespace)
        self._after_steps()

    # --- what the server's shell asks ----------------------------------------------------------------

    def next_deadline_ms(self) -> int | None:
        """When `tick` is due at the latest, in the clock's milliseconds."""
        deadlines = [namespace.engine.next_deadline_ms() for namespace in self.namespaces]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def tick(self) -> None:
        """Do what has become due."""
        now_ms = self.clock()
        for namespace in list(self.namespaces):
            deadline_ms = namespace.engine.next_deadline_ms()
            if deadline_ms is not None and deadline_ms <= now_ms:
                namespace.engine.step(Tick(), now_ms)
                self._perform(namespace)
        self._resume_full_peers()
        self._announced_deadline_ms = self.next_deadline_ms()
        self._deadline_moved = False

    def submit(self, command: Command[R], namespace: str = "") -> R:
        """One step for a caller without a connection, such as the HTTP routes. Raises `EngineError`."""
        target = self.namespaces.get(namespace)
        try:
            return target.engine.step(command, self.clock())
        finally:
            self._perform(target)
            self._after_steps()

    # --- answers ---------------------------------------------------------------------------------------

    def _answer(self, call: _Call, envelope: Envelope) -> None:
        handler = CALLS.get(envelope.opcode)
        if handler is None:
            self._refuse(call.link, call.request_id, envelope.opcode, 501, not_served(envelope.opcode))
            return
        request = _read(envelope, handler.request)
        call.namespace_name = request.namespace
        answer = handler.answer(call, request)
        if answer is not DEFERRED:
            body = encode_json(answer)
            if envelope.flags & FLAG_CBOR:
                body = encode_cbor(decode_json(body))
            call.link.reply(call.request_id, 200, body, flags=envelope.flags & FLAG_CBOR)

    def _refuse(self, link: Link, request_id: int, opcode: int, status: int, text: str) -> None:
        if opcode in (Op.TASK_SUBMIT, Op.TASK_SCHEDULE):
            message = encode_submit_reply(status, msgspec.json.encode({"error": text, "code": status}))
        elif opcode in BINARY_CALLS:
            message = encode_ack(status, text)
        else:
            message = encode_response(status, _NULL, text)
        try:
            link.reply_raw(request_id, message)
        except LocalProtocolError:
            log.warning("a call was answered twice", opcode=opcode, peer=link.node_id)

    # --- effects ---------------------------------------------------------------------------------------

    def _perform(self, namespace: Namespace | None) -> None:
        if namespace is None:
            return
        self._note_deadline(namespace)
        for effect in namespace.engine.take_effects():
            match effect:
                case Closed():
                    answer: object = shapes.closed(effect)
                    self._reply_later(effect.waiter, encode_response(200, msgspec.json.encode(answer)))
                case Answered(error=None):
                    answer = query_answer(effect.result)
                    self._reply_later(effect.waiter, encode_response(200, msgspec.json.encode(answer)))
                case Answered(error=error):
                    assert error is not None
                    self._reply_later(effect.waiter, encode_response(error.status, _NULL, str(error)))
                case UpdateAnswered():
                    answer = shapes.updated(effect)
                    self._reply_later(effect.waiter, encode_response(200, msgspec.json.encode(answer)))
                case UpdateRejected():
                    text = f"update {effect.update_id!r} was rejected: {decode_failure(effect.failure).message}"
                    self._reply_later(effect.waiter, encode_response(400, bytes(effect.failure), text))
                case PeerFull():
                    self._full.append((effect.peer, namespace))
                case _:
                    peer = self._links.get(effect.peer)
                    if peer is not None:
                        opcode, body = delivery_body(effect, namespace.name)
                        peer.link.send(opcode, body)

    def _reply_later(self, waiter: Waiter, message: bytes) -> None:
        assert isinstance(waiter, tuple)
        peer_key, request_id = waiter
        peer = self._links.get(peer_key)
        if peer is not None and peer.link.owes(request_id):
            peer.link.reply_raw(request_id, message)

    def _note_deadline(self, namespace: Namespace) -> None:
        """Only the namespace that a step touched can have an earlier deadline: the others are not asked."""
        deadline_ms = namespace.engine.next_deadline_ms()
        announced = self._announced_deadline_ms
        if deadline_ms is not None and (announced is None or deadline_ms < announced):
            self._announced_deadline_ms = deadline_ms
            self._deadline_moved = True

    def _after_steps(self) -> None:
        self._resume_full_peers()
        if self._deadline_moved:
            self._deadline_moved = False
            self.on_deadline_moved()

    def _resume_full_peers(self) -> None:
        """Most peers have taken what they got by now; the others are asked again when they have read."""
        while self._full:
            key, namespace = self._full.pop()
            peer = self._links.get(key)
            if peer is None:
                continue
            if peer.link.outbox_bytes > RESUME_BYTES_MAX:
                peer.link.start_soon(self._resume_when_read, peer, namespace)
            else:
                self._resume(peer, namespace)

    async def _resume_when_read(self, peer: _Peer, namespace: Namespace) -> None:
        await peer.link.wait_sent(RESUME_BYTES_MAX)
        self._resume(peer, namespace)
        self._after_steps()

    def _resume(self, peer: _Peer, namespace: Namespace) -> None:
        namespace.engine.step(ResumePeer(peer=peer.key), self.clock())
        self._perform(namespace)


class _Peer:
    __slots__ = ("key", "link", "namespaces")

    def __init__(self, key: PeerKey, link: Link) -> None:
        self.key = key
        self.link = link
        self.namespaces: set[Namespace] = set()
        """Where it may hold something that its end has to release."""


class _Call:
    """A `calls.Call`: one call of one connection while it is handled."""

    __slots__ = ("_dispatcher", "_peer", "namespace_name", "now_ms", "request_id", "touched")

    def __init__(self, dispatcher: Dispatcher, peer: _Peer, request_id: int) -> None:
        self._dispatcher = dispatcher
        self._peer = peer
        self.request_id = request_id
        self.namespace_name = ""
        self.now_ms = dispatcher.clock()
        self.touched: Namespace | None = None

    def in_namespace(self, namespace: str = "") -> _Call:
        self.namespace_name = namespace
        self.namespace  # noqa: B018  an unknown one is refused here
        return self

    @property
    def link(self) -> Link:
        return self._peer.link

    @property
    def namespaces(self) -> Namespaces:
        return self._dispatcher.namespaces

    @property
    def namespace(self) -> Namespace:
        return self._dispatcher.namespaces.get(self.namespace_name)

    @property
    def peer(self) -> PeerKey:
        return self._peer.key

    @property
    def peer_name(self) -> str:
        return self._peer.link.node_id

    @property
    def waiter(self) -> Waiter:
        return (self._peer.key, self.request_id)

    def step(self, command: Command[R]) -> R:
        namespace = self.namespace
        self.touched = namespace
        self._peer.namespaces.add(namespace)
        return namespace.engine.step(command, self.now_ms)


RequestT = TypeVar("RequestT", bound=Request)


def _read(envelope: Envelope, request: type[RequestT]) -> RequestT:
    """The body as a request; an empty one has no keys. CBOR passes through JSON: its users are few so far."""
    body = envelope.body
    if body and envelope.flags & FLAG_CBOR:
        body = encode_json(decode_cbor(body))
    return decode_json(body or b"{}", request)


def _nothing() -> None:
    return None
