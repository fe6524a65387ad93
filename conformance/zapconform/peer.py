"""A peer that has shaken hands: calls, pushes, and what workers say.

Reading happens only while something is waited for. Replies are kept by request id and pushes in the
order of their arrival, so a case may look at either whenever it likes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from zapconform import opcodes as op
from zapconform import wire
from zapconform.case import Failed, Unsupported, equal, shown
from zapconform.codec import Unreadable
from zapconform.connection import Connection, TrafficLog, wait_readable

Json = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """The answer to a call."""

    what: str
    request_id: int
    message: bytes
    envelope: wire.Envelope

    @property
    def status(self) -> int:
        return self.envelope.status

    def __str__(self) -> str:
        return f"status {self.status}, error {self.envelope.error!r}, body {shown(self.envelope.body)}"

    def is_success(self) -> bool:
        return self.status in (0, 200)

    def succeeded(self) -> Reply:
        """Raise unless the status is 0 or 200."""
        self._must_be_served()
        if not self.is_success():
            raise Failed(expected=f"status 0 or 200 for {self.what}", actual=str(self))
        return self

    def ok(self) -> Json:
        """The JSON object of a successful answer."""
        self.succeeded()
        try:
            body = wire.parse_json(self.envelope.body)
        except ValueError as reason:
            raise Failed(expected=f"a JSON body for {self.what}", actual=f"{self} ({reason})") from None
        if not isinstance(body, dict):
            raise Failed(expected=f"a JSON object for {self.what}", actual=str(self))
        return body

    def refused(self, *statuses: int) -> Reply:
        """Raise unless the status is an error, and one of these when any are named."""
        if 501 not in statuses:
            self._must_be_served()
        wanted = " or ".join(map(str, statuses)) or "an error"
        if self.is_success() or (statuses and self.status not in statuses):
            raise Failed(expected=f"status {wanted} for {self.what}", actual=str(self))
        return self

    def _must_be_served(self) -> None:
        if self.status == 501:
            raise Unsupported(f"{self.what}: status 501 {self.envelope.error!r}")


@dataclass(frozen=True)
class Push:
    """A one-way message from the server."""

    opcode: int
    body: Json
    payload: bytes
    envelope: wire.Envelope

    @property
    def token(self) -> str:
        """The token of a task, or of a query."""
        token = self.body.get("task_token", self.body.get("token"))
        if not isinstance(token, str) or not token:
            raise Failed(expected=f"a token in the push {op.name_of(self.opcode)}", actual=shown(self.body))
        return token

    def __str__(self) -> str:
        return f"{op.name_of(self.opcode)} {shown(self.body)}"


class Peer:
    """A client, a worker, or both at once."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.pushes: list[Push] = []
        self.stray: list[bytes] = []
        """Plain messages that are no push: nobody may rely on them, and a case may want none."""
        self._replies: dict[int, list[bytes]] = {}
        self._calls: dict[int, int] = {}
        self._last_id = 0

    # --- handshake ---------------------------------------------------------------------------------

    def shake_hands(self, hello: bytes) -> wire.Hello:
        self.connection.send_frame(hello)
        return self.expect_hello()

    def expect_hello(self) -> wire.Hello:
        payload = self.connection.next_frame(time.monotonic() + self.connection.timeout)
        expected = "the server's handshake in answer to ours"
        if payload is None:
            raise Failed(expected=expected, actual=self._how_it_stands())
        try:
            return wire.read_hello(payload)
        except Unreadable as reason:
            raise Failed(expected=expected, actual=str(reason)) from None

    # --- calls ------------------------------------------------------------------------------------

    def next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def expect_reply_to(self, request_id: int, opcode: int) -> None:
        """Say that a frame which a case writes by hand is this call."""
        self._calls[request_id] = opcode

    def send_message(self, message: bytes, opcode: int, request_id: int | None = None) -> int:
        """Send a finished message as a call without waiting; its request id is the answer."""
        chosen = self.next_id() if request_id is None else request_id
        self.expect_reply_to(chosen, opcode)
        self.connection.send_frame(wire.call_payload(chosen, message))
        return chosen

    def send_call(self, opcode: int, body: Json | bytes, request_id: int | None = None) -> int:
        return self.send_message(call_message(opcode, body), opcode, request_id)

    def reply(self, request_id: int, seconds: float | None = None) -> Reply:
        """Wait for the answer to this call."""
        opcode = self._calls[request_id]
        what = op.name_of(opcode)
        self._wait(lambda: bool(self._replies.get(request_id)), f"an answer to {what}, request {request_id}", seconds)
        message = self._replies[request_id].pop(0)
        read = wire.read_submit_reply if opcode in op.BINARY else wire.read_envelope
        try:
            envelope = read(message)
        except Unreadable as reason:
            raise Failed(expected=f"a ZAP message in answer to {what}", actual=str(reason)) from None
        return Reply(what, request_id, message, envelope)

    def has_reply(self, request_id: int) -> bool:
        return bool(self._replies.get(request_id))

    def unclaimed_replies(self) -> list[int]:
        """Request ids of answers that nobody has asked for."""
        return sorted(number for number, replies in self._replies.items() if replies)

    def call(self, opcode: int, body: Json | bytes, seconds: float | None = None) -> Reply:
        return self.reply(self.send_call(opcode, body), seconds)

    def settle(self) -> None:
        """A round trip: what the server sent before it has arrived now."""
        self.call(op.HEALTH, {}).succeeded()

    # --- pushes --------------------------------------------------------------------------------------

    def push(self, opcode: int, where: Callable[[Json], bool] = lambda _: True, seconds: float | None = None) -> Push:
        """Wait for a push of this kind and take it; others stay."""

        def found() -> Push | None:
            return next((p for p in self.pushes if p.opcode == opcode and where(p.body)), None)

        self._wait(lambda: found() is not None, f"a push {op.name_of(opcode)}", seconds)
        wanted = found()
        assert wanted is not None
        self.pushes.remove(wanted)
        return wanted

    def no_push(self, opcode: int) -> None:
        """Raise if such a push has come; a round trip first, so that it would be here."""
        self.settle()
        come = [p for p in self.pushes if p.opcode == opcode]
        if come:
            raise Failed(expected=f"no push {op.name_of(opcode)}", actual=f"{len(come)}, the first: {come[0]}")

    def quiet_for(self, seconds: float, opcode: int) -> None:
        """Raise if such a push comes within this time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.connection.ended:
            self.pump(deadline)
        self.no_push(opcode)

    # --- worker -------------------------------------------------------------------------------------

    def subscribe_activities(self, namespace: str, queue: str, **extra: object) -> str:
        return self._subscribe(op.SUBSCRIBE_ACTIVITIES, namespace, queue, extra)

    def subscribe_workflows(self, namespace: str, queue: str, **extra: object) -> str:
        return self._subscribe(op.SUBSCRIBE_WORKFLOWS, namespace, queue, extra)

    def _subscribe(self, opcode: int, namespace: str, queue: str, extra: Json) -> str:
        body = {"namespace": namespace, "task_queue": queue, "identity": "zapconform", **extra}
        answer = self.call(opcode, body).ok()
        subscription = answer.get("subscription_id")
        if not isinstance(subscription, str) or not subscription:
            raise Failed(expected="a non-empty subscription_id", actual=shown(answer))
        return subscription

    def answer(self, opcode: int, token: str, payload: bytes) -> Reply:
        """One of a worker's binary frames, and the server's acknowledgement."""
        return self.reply(self.send_message(wire.worker_answer(opcode, token.encode(), payload), opcode))

    def complete(self, task: Push, result: object = "done") -> Reply:
        return self.answer(op.COMPLETE_ACTIVITY, task.token, wire.compact(result))

    def fail(self, task: Push, message: str = "boom", *, code: str = "ApplicationError", final: bool = False) -> Reply:
        return self.answer(op.FAIL_ACTIVITY, task.token, failure(message, code=code, final=final))

    def heartbeat(self, task: Push, details: object = ()) -> Reply:
        return self.answer(op.HEARTBEAT, task.token, wire.compact(list(details) if details == () else details))

    def commands(self, task: Push, commands: object) -> Reply:
        return self.answer(op.COMPLETE_WORKFLOW_TASK, task.token, wire.compact({"v": 1, "cmds": commands}))

    # --- waiting ---------------------------------------------------------------------------------------

    def pump(self, deadline: float) -> bool:
        """Read one frame and sort it. False when none came."""
        payload = self.connection.next_frame(deadline)
        if payload is None:
            return False
        header = wire.correlated(payload)
        if header is not None and header.kind == wire.KIND_RESPONSE:
            self._replies.setdefault(header.request_id, []).append(header.message)
        elif header is None and (push := read_push(payload)) is not None:
            self.pushes.append(push)
        elif payload:
            self.stray.append(payload)
        return True

    def _wait(self, done: Callable[[], bool], expected: str, seconds: float | None) -> None:
        limit = self.connection.timeout if seconds is None else seconds
        deadline = time.monotonic() + limit
        while not done():
            if not self.pump(deadline):
                raise Failed(expected=f"{expected} within {limit:g} s", actual=self._how_it_stands())

    def _how_it_stands(self) -> str:
        if self.connection.ended:
            return f"the connection ended: {self.connection.ended}"
        others = "; ".join(str(push) for push in self.pushes[:3])
        return f"nothing{f' (but {len(self.pushes)} other pushes: {others})' if others else ''}"

    # --- ending ----------------------------------------------------------------------------------------

    def close(self) -> None:
        self.connection.close()

    def expect_ended(self, expected: str, seconds: float | None = None) -> None:
        limit = self.connection.timeout if seconds is None else seconds
        if not self.connection.wait_ended(limit):
            raise Failed(expected=f"{expected} within {limit:g} s", actual="the connection is still open")


def call_message(opcode: int, body: Json | bytes) -> bytes:
    return wire.request(opcode, body if isinstance(body, bytes) else wire.compact(body))


def read_push(payload: bytes) -> Push | None:
    """A plain frame as a push, or None when it is something else."""
    try:
        envelope = wire.read_envelope(payload)
        body = wire.parse_json(envelope.body)
    except (Unreadable, ValueError):
        return None
    if envelope.opcode == 0 or not isinstance(body, dict):
        return None
    return Push(envelope.opcode, body, payload, envelope)


def first_push(
    peers: Sequence[Peer], opcode: int, seconds: float, where: Callable[[Json], bool] = lambda _: True
) -> tuple[Peer, Push]:
    """Whoever of these peers gets such a push first."""
    deadline = time.monotonic() + seconds
    while True:
        for peer in peers:
            for push in peer.pushes:
                if push.opcode == opcode and where(push.body):
                    peer.pushes.remove(push)
                    return peer, push
        buffered = [peer for peer in peers if peer.connection.has_frames()]
        if not buffered and not wait_readable([peer.connection for peer in peers], deadline):
            raise Failed(
                expected=f"a push {op.name_of(opcode)} to one of {len(peers)} workers within {seconds:g} s",
                actual="nothing",
            )
        for peer in peers:
            peer.pump(time.monotonic() + 0.001)


def failure(message: str, *, code: str = "ApplicationError", final: bool = False) -> bytes:
    """A failure as workers write it; `final` forbids a retry."""
    inner: Json = {"message": message, "code": code}
    if final:
        inner["nonRetryable"] = True
    return wire.compact({"v": 1, "p": inner})


def open_peer(
    address: tuple[str, int], log: TrafficLog, label: str, timeout: float, node_id: str
) -> tuple[Peer, wire.Hello]:
    """A peer outside of any case; the caller closes it."""
    peer = Peer(Connection(address, log, label, timeout))
    try:
        return peer, peer.shake_hands(wire.hello(node_id.encode()))
    except Failed:
        peer.close()
        raise


def payload_value(field: object) -> object:
    """A payload in an answer or an event, which servers write as JSON or as JSON text."""
    if not isinstance(field, str):
        return field
    try:
        return wire.parse_json(field.encode())
    except ValueError:
        return field


def same_json(what: str, expected: object, text: object) -> None:
    """Raise unless `text` is JSON text of the same value, with the same digits and the same order of keys."""
    if not isinstance(text, str):
        raise Failed(expected=f"{what} as JSON text", actual=shown(text))
    try:
        got = wire.parse_json(text.encode())
    except ValueError as reason:
        raise Failed(expected=f"{what} as JSON text", actual=f"{shown(text)} ({reason})") from None
    equal(what, expected=wire.compact(expected).decode(), actual=wire.compact(got).decode())
