"""From a connection's calls to engine steps, and from the engine's effects to replies and pushes.

    frames of one read --> on_call ... on_call --> batch_end --> [commit] --> replies and pushes leave
                             |  step, effects        | one commit for all      | one write for each connection

Everything is synchronous: a call costs no task switch, and no thread hop beyond the one to the store's writer. Whatever
leaves goes through the journal of its namespace, which holds it until what it rests on is kept. A call that the engine
or the store refuses is answered with the refusal's status and text; a call that fails in an unforeseen way ends in a
500, one log line, and a connection that goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

import msgspec
import structlog
import trio

from zapserver import shapes
from zapserver.calls import BINARY_CALLS, CALLS, DEFERRED
from zapserver.calls.executions import followed_history, query_answer
from zapserver.deliveries import delivery_body
from zapserver.engine.commands import AbandonWait, Command, PeerKey, PeerLost, ResumePeer, Tick, Waiter
from zapserver.engine.effects import (
    Answered,
    Closed,
    Delivery,
    HistoryGrew,
    PeerFull,
    UpdateAnswered,
    UpdateRejected,
)
from zapserver.engine.errors import EngineError
from zapserver.namespaces import Namespace, Namespaces
from zapserver.requests import AbandonRequest, Request, SubscriptionRequest, read_durability
from zapserver.store import Durability, StoreError
from zapwire.body import decode_json, encode_json
from zapwire.encodings import in_cbor, with_json
from zapwire.envelope import FLAG_CBOR, Envelope, encode_ack, encode_response, encode_submit_reply, with_receipt
from zapwire.errors import LocalProtocolError, ZapError
from zapwire.failure import decode_failure
from zapwire.handshake import Capability
from zapwire.link import Link
from zapwire.link_handler import not_served
from zapwire.opcodes import Op

R = TypeVar("R")

log = structlog.get_logger("zapserver")

_NULL = b"null"
_SUBMITS = frozenset({Op.TASK_SUBMIT, Op.TASK_SCHEDULE})
_HELD_BY_CONNECTIONS = frozenset(
    {Op.SUBSCRIBE_WORKFLOW_TASKS, Op.SUBSCRIBE_ACTIVITY_TASKS, Op.UNSUBSCRIBE_TASKS, Op.GRANT_CREDITS}
)
"""Calls about what no store has: it lives as long as the connection, also through a failure of the store."""
SETTLE_SECONDS_MAX = 10.0
"""How long an ending server waits for its disks."""
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
        self.on_store_failure: Callable[[Namespace], None] = _nobody_mends
        """Called when a namespace's store has failed and its engine is void."""
        namespaces.on_open = self._watch
        for namespace in namespaces:
            self._watch(namespace)
        self._peers: dict[Link, _Peer] = {}
        self._links: dict[PeerKey, _Peer] = {}
        # Leases are kept with the key of their holder. Those of an earlier process must not look like ours when the
        # store fails before it has heard that they are over.
        self._last_peer_key = int(namespaces.random() * 2**40) << 20
        self._announced_deadline_ms: int | None = None
        self._deadline_moved = False
        self.is_ending = False
        """The server ends: connections that close now lose nothing."""
        self._unflushed: dict[Namespace, None] = {}
        """Where something was decided that the store does not know of yet."""
        self._full: list[tuple[PeerKey, Namespace]] = []
        """Peers that get nothing more before they have taken what they got."""

    def _watch(self, namespace: Namespace) -> None:
        namespace.journal.on_kept = self._after_steps
        namespace.journal.on_failure = lambda: self.on_store_failure(namespace)

    # --- what a link tells ---------------------------------------------------------------------------

    def connected(self, link: Link) -> None:
        self._last_peer_key += 1
        peer = _Peer(self._last_peer_key, link)
        self._peers[link] = self._links[peer.key] = peer

    def on_call(self, link: Link, request_id: int, envelope: Envelope, message: bytes) -> None:
        call = _Call(self, self._peers[link], request_id)
        opcode = envelope.opcode
        binary = BINARY_CALLS.get(opcode)
        answer: bytes | None
        try:
            if binary is not None:
                answer = binary(call.in_namespace, message)
                if call.receipt:
                    answer = with_receipt(answer, call.receipt, is_submit_reply=opcode in _SUBMITS)
            else:
                answer = self._answer(call, envelope)
        except (EngineError, ZapError, StoreError) as error:
            self.namespaces.count_refusal(error)
            answer = _refusal(opcode, error.status, str(error))
        except Exception as error:
            log.exception("a call failed", opcode=opcode, peer=link.node_id)
            answer = _refusal(opcode, 500, f"internal error: {type(error).__name__}")
        if answer is not None:
            self._leave(call, opcode, answer)
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
        except (EngineError, ZapError, StoreError) as error:
            log.info("a one-way message was dropped", opcode=envelope.opcode, peer=link.node_id, reason=str(error))

    def _abandon(self, peer: _Peer, request_id: int) -> None:
        """The caller forgot its call: forget who waits for it, and take it off the list of unanswered calls."""
        now_ms = self.clock()
        for namespace in peer.namespaces:
            self._step_unasked(namespace, AbandonWait(waiter=(peer.key, request_id), peer=peer.key), now_ms)
        peer.cbor_calls.discard(request_id)
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
            # A namespace whose store fails is built again from its records, without this peer. A server that
            # ends leaves everything as it is kept: what was held is free again when the next one starts.
            if not self.is_ending:
                self._step_unasked(namespace, PeerLost(peer=peer.key, reason=str(error)), now_ms)
        self._after_steps()

    # --- what the server's shell asks ----------------------------------------------------------------

    def next_deadline_ms(self) -> int | None:
        """When `tick` is due at the latest, in the clock's milliseconds."""
        deadlines = [
            namespace.engine.next_deadline_ms() for namespace in self.namespaces if namespace.journal.failure is None
        ]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def tick(self) -> None:
        """Do what has become due."""
        now_ms = self.clock()
        for namespace in list(self.namespaces):
            deadline_ms = namespace.engine.next_deadline_ms()
            if deadline_ms is not None and deadline_ms <= now_ms:
                self._step_unasked(namespace, Tick(), now_ms)
        self._after_steps()
        self._announced_deadline_ms = self.next_deadline_ms()
        self._deadline_moved = False

    def _step_unasked(self, namespace: Namespace, command: Command[None], now_ms: int) -> None:
        """A step that nobody waits for. A namespace whose store fails is built again, and misses nothing by it."""
        if namespace.journal.failure is not None:
            return
        try:
            namespace.step(command, now_ms)
        except Exception:
            log.exception("a step failed", command=type(command).__name__, namespace=namespace.name)
        self._perform(namespace)

    def submit(self, command: Command[R], namespace: Namespace, durability: Durability = Durability.SYNCED) -> R:
        """One step for a caller without a connection, such as the HTTP routes.

        Wait for `kept` before anybody hears of it. Raises `EngineError` and `StoreError`.
        """
        namespace.journal.check_ready()
        try:
            return namespace.step(command, self.clock(), durability)
        finally:
            self._perform(namespace)
            self._after_steps()

    async def kept(self, namespace: Namespace, level: Durability = Durability.SYNCED) -> None:
        """Wait until what was decided so far has reached this level. Raises `StoreError` if it never does."""
        journal = namespace.journal
        if journal.failure is not None and journal.is_settled:  # it was given to the store already, which refused it
            raise journal.failure.with_traceback(None)
        outcomes: list[StoreError | None] = []
        done = trio.Event()

        def settle(error: StoreError | None = None) -> None:
            outcomes.append(error)
            done.set()

        namespace.send(settle, settle, level)
        self._unflushed[namespace] = None
        self._after_steps()
        await done.wait()
        if outcomes[0] is not None:
            raise outcomes[0].with_traceback(None)

    async def settle(self) -> None:
        """Wait until everything that was decided is kept, or cannot be, for a while: the server is about to end."""
        with trio.move_on_after(SETTLE_SECONDS_MAX):
            for namespace in list(self.namespaces):
                with suppress(StoreError):
                    await self.kept(namespace)

    def rebuild(self, namespace: Namespace) -> None:
        """The store of a namespace is well again after a failure: go on from what was kept."""
        live = [peer.key for peer in self._peers.values() if namespace in peer.namespaces]
        namespace.rebuild(self.clock(), live)
        self._perform(namespace)
        self._after_steps()

    # --- answers ---------------------------------------------------------------------------------------

    def _answer(self, call: _Call, envelope: Envelope) -> bytes | None:
        """The answer, or None when an effect will bring it."""
        handler = CALLS.get(envelope.opcode)
        if handler is None:
            return _refusal(envelope.opcode, 501, not_served(envelope.opcode))
        request = _read(envelope, handler.request)
        call.namespace_name = request.namespace
        if request.durability:
            call.ask_for(request.durability)
        answer = handler.answer(call, request)
        if answer is DEFERRED:
            if envelope.flags & FLAG_CBOR:
                call.remember_cbor()
            return None
        message = encode_response(200, encode_json(answer), "", 0, call.receipt)
        return in_cbor(message) if envelope.flags & FLAG_CBOR else message

    def _leave(self, call: _Call, opcode: int, answer: bytes) -> None:
        """Answer a call as soon as what it asked for is as durable as it asked."""
        namespace = call.seen
        if namespace is None or call.durability is Durability.MEMORY:
            self._reply(call.link, call.request_id, opcode, answer)
        else:
            send = partial(self._reply, call.link, call.request_id, opcode, answer)

            def fail(error: StoreError) -> None:
                if opcode in _HELD_BY_CONNECTIONS:
                    send()
                else:
                    self._reply(call.link, call.request_id, opcode, _refusal(opcode, error.status, str(error)))

            namespace.send(send, fail, call.durability)
            self._unflushed[namespace] = None

    def _reply(self, link: Link, request_id: int, opcode: int, answer: bytes) -> None:
        if not link.owes(request_id):  # the connection or the caller is gone
            return
        try:
            link.reply_raw(request_id, answer)
        except LocalProtocolError as error:
            log.warning("an answer could not be sent", opcode=opcode, peer=link.node_id, reason=str(error))
            link.reply_raw(request_id, _refusal(opcode, 500, f"the answer cannot be sent: {error}"))

    # --- effects ---------------------------------------------------------------------------------------

    def _perform(self, namespace: Namespace | None) -> None:
        if namespace is None:
            return
        if namespace.journal.failure is not None:
            self._answer_void(namespace, namespace.journal.failure)
            return
        self._note_deadline(namespace)
        self._unflushed[namespace] = None
        for effect in namespace.engine.take_effects():
            match effect:
                case Closed():
                    answer = encode_response(200, msgspec.json.encode(shapes.closed(effect)))
                    self._answer_later(namespace, effect.waiter, answer)
                case Answered(error=None):
                    answer = encode_response(200, msgspec.json.encode(query_answer(effect.result)))
                    self._answer_later(namespace, effect.waiter, answer)
                case Answered(error=error):
                    assert error is not None
                    self._answer_later(namespace, effect.waiter, encode_response(error.status, _NULL, str(error)))
                case HistoryGrew():
                    page = followed_history(namespace.engine.views, effect.run_id, effect.after)
                    self._answer_later(namespace, effect.waiter, encode_response(200, encode_json(page)))
                case UpdateAnswered():
                    answer = encode_response(200, msgspec.json.encode(shapes.updated(effect)))
                    self._answer_later(namespace, effect.waiter, answer)
                case UpdateRejected():
                    text = f"update {effect.update_id!r} was rejected: {decode_failure(effect.failure).message}"
                    self._answer_later(namespace, effect.waiter, encode_response(400, bytes(effect.failure), text))
                case PeerFull():
                    namespace.journal.send(partial(self._full.append, (effect.peer, namespace)))
                case _:
                    namespace.journal.send(partial(self._push, effect, namespace))

    def _answer_void(self, namespace: Namespace, failure: StoreError) -> None:
        """A step went wrong: nothing of it leaves but that those who waited for it are told."""
        for effect in namespace.engine.take_effects():
            if isinstance(effect, Closed | Answered | HistoryGrew | UpdateAnswered | UpdateRejected):
                self._answer_waiter(effect.waiter, encode_response(failure.status, _NULL, str(failure)))

    def _push(self, effect: Delivery, namespace: Namespace) -> None:
        peer = self._links.get(effect.peer)
        if peer is not None:
            opcode, body = delivery_body(effect, namespace.name)
            peer.link.send(opcode, body)

    def _answer_later(self, namespace: Namespace, waiter: Waiter, message: bytes) -> None:
        namespace.send(
            partial(self._answer_waiter, waiter, message),
            lambda error: self._answer_waiter(waiter, encode_response(error.status, _NULL, str(error))),
        )

    def _answer_waiter(self, waiter: Waiter, message: bytes) -> None:
        assert isinstance(waiter, tuple)
        peer_key, request_id = waiter
        peer = self._links.get(peer_key)
        if peer is None:
            return
        if request_id in peer.cbor_calls:
            peer.cbor_calls.remove(request_id)
            message = in_cbor(message)
        if peer.link.owes(request_id):
            peer.link.reply_raw(request_id, message)

    def _note_deadline(self, namespace: Namespace) -> None:
        """Only the namespace that a step touched can have an earlier deadline: the others are not asked."""
        deadline_ms = namespace.engine.next_deadline_ms()
        announced = self._announced_deadline_ms
        if deadline_ms is not None and (announced is None or deadline_ms < announced):
            self._announced_deadline_ms = deadline_ms
            self._deadline_moved = True

    def _after_steps(self) -> None:
        """Hand what was decided to the stores, and tell the timer of an earlier deadline."""
        while self._unflushed or self._full:
            while self._unflushed:
                self._unflushed.popitem()[0].journal.flush()
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
        self._step_unasked(namespace, ResumePeer(peer=peer.key), self.clock())


class _Peer:
    __slots__ = ("cbor_calls", "key", "link", "namespaces")

    def __init__(self, key: PeerKey, link: Link) -> None:
        self.key = key
        self.link = link
        self.namespaces: dict[Namespace, None] = {}
        """Where it may hold something that its end has to release."""
        self.cbor_calls: set[int] = set()
        """Its calls that came as CBOR and are answered later."""


class _Call:
    """A `calls.Call`: one call of one connection while it is handled."""

    __slots__ = (
        "_dispatcher",
        "_peer",
        "durability",
        "namespace_name",
        "now_ms",
        "receipt",
        "request_id",
        "seen",
        "touched",
    )

    def __init__(self, dispatcher: Dispatcher, peer: _Peer, request_id: int) -> None:
        self._dispatcher = dispatcher
        self._peer = peer
        self.request_id = request_id
        self.namespace_name = ""
        self.now_ms = dispatcher.clock()
        self.durability = Durability.SYNCED
        """What the caller wants reached before it is answered; a store may be able to do less."""
        self.receipt = 0
        """For a peer that reads receipts, once something was asked of the engine."""
        self.seen: Namespace | None = None
        """What the answer tells of."""
        self.touched: Namespace | None = None
        """What the call may have changed."""

    def remember_cbor(self) -> None:
        """The answer comes later, and is to be CBOR."""
        self._peer.cbor_calls.add(self.request_id)

    def ask_for(self, durability: str) -> None:
        """Take the level that the request names. Raises `Invalid`."""
        self.durability = read_durability(durability)

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
        namespace = self._dispatcher.namespaces.get(self.namespace_name)
        if namespace.journal.failure is not None:
            raise namespace.journal.failure.with_traceback(None)
        self.seen = namespace
        return namespace

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
        namespace.journal.check_ready()
        self.changes(namespace)
        self._peer.namespaces[namespace] = None
        return namespace.step(command, self.now_ms, self.durability)

    def changes(self, namespace: Namespace) -> None:
        """This call changes `namespace`: its answer waits for the store."""
        self.seen = self.touched = namespace
        if Capability.RECEIPTS in self._peer.link.capabilities:
            self.receipt = 1 + min(self.durability, namespace.journal.durability)


def _refusal(opcode: int, status: int, text: str) -> bytes:
    """A failure in the layout in which the opcode is answered."""
    if opcode in _SUBMITS:
        return encode_submit_reply(status, msgspec.json.encode({"error": text, "code": status}))
    if opcode in BINARY_CALLS:
        return encode_ack(status, text)
    return encode_response(status, _NULL, text)


RequestT = TypeVar("RequestT", bound=Request)


def _read(envelope: Envelope, request: type[RequestT]) -> RequestT:
    """The body as a request; an empty one has no keys."""
    return decode_json(with_json(envelope).body or b"{}", request)


def _nothing() -> None:
    return None


def _nobody_mends(namespace: Namespace) -> None:
    log.error("the store failed", namespace=namespace.name, reason=str(namespace.journal.failure))
