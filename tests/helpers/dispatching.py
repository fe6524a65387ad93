"""A dispatcher and its connections, without sockets."""

from __future__ import annotations

import json
from typing import Any

from zapserver.dispatch import Dispatcher
from zapserver.namespaces import Namespaces
from zapwire.body import decode_cbor
from zapwire.envelope import (
    FLAG_CBOR,
    decode_envelope,
    decode_submit_reply,
    encode_request,
    encode_respond,
    encode_response,
    encode_task_submit,
)
from zapwire.handshake import Capability
from zapwire.opcodes import Op


class FakeLink:
    """Takes what a dispatcher writes and gives it back decoded."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.capabilities = Capability(0)
        self.outbox_bytes = 0
        self.when_read: list[Any] = []
        self.replies: dict[int, bytes] = {}
        self.pushes: list[tuple[int, dict[str, Any]]] = []
        self._owed: set[int] = set()

    def owe(self, request_id: int) -> None:
        self._owed.add(request_id)

    def start_soon(self, function: Any, *args: Any) -> None:
        self.when_read.append((function, args))

    async def wait_sent(self, size: int) -> None:
        assert self.outbox_bytes <= size

    def owes(self, request_id: int) -> bool:
        return request_id in self._owed

    def reply_raw(self, request_id: int, message: bytes) -> None:
        assert request_id in self._owed, f"call {request_id} was answered twice or never made"
        self._owed.discard(request_id)
        self.replies[request_id] = message

    def reply(self, request_id: int, status: int, body: bytes = b"null", error: str = "", *, flags: int = 0) -> None:
        self.reply_raw(request_id, encode_response(status, body, error, flags))

    def send(self, opcode: int, body: bytes, *, flags: int = 0) -> None:
        self.pushes.append((opcode, json.loads(body)))


class DispatchedServer:
    """A dispatcher with namespaces in memory, and a clock that stands."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.dispatcher = Dispatcher(Namespaces(now_ms=self.now_ms), clock=lambda: self.now_ms)
        self._request_id = 0

    def connect(self, node_id: str) -> FakeLink:
        link = FakeLink(node_id)
        self.dispatcher.connected(link)  # type: ignore[arg-type]
        return link

    def send(self, link: FakeLink, message: bytes) -> int:
        self._request_id += 1
        link.owe(self._request_id)
        self.dispatcher.on_call(link, self._request_id, decode_envelope(message), message)  # type: ignore[arg-type]
        self.dispatcher.batch_end(link)  # type: ignore[arg-type]
        return self._request_id

    def call(self, link: FakeLink, opcode: int, body: object, flags: int = 0) -> tuple[int, Any, str]:
        """(status, decoded body, error text) of an envelope call."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return answer(link, self.send(link, encode_request(opcode, data, flags)))

    def respond(self, link: FakeLink, opcode: int, token: str, payload: bytes) -> tuple[int, str]:
        status, _, error = answer(link, self.send(link, encode_respond(opcode, token.encode(), payload)))
        return status, error

    def submit(self, link: FakeLink, task_type: str, payload: bytes = b"{}", **options: object) -> tuple[int, Any]:
        data = json.dumps(options).encode() if options else b""
        status, body = decode_submit_reply(link.replies[self.send(link, encode_task_submit(task_type, payload, data))])
        return status, json.loads(bytes(body))

    def push(self, link: FakeLink, opcode: int, body: object) -> None:
        """A one-way message."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.dispatcher.on_push(link, decode_envelope(encode_request(opcode, data)))  # type: ignore[arg-type]

    def subscribe(self, link: FakeLink, **more: object) -> None:
        body = {"task_queue": "default", **more}
        assert self.call(link, Op.SUBSCRIBE_ACTIVITY_TASKS, body)[0] == 200


def answer(link: FakeLink, request_id: int) -> tuple[int, Any, str]:
    envelope = decode_envelope(link.replies[request_id])
    body = bytes(envelope.body)
    decoded = decode_cbor(body) if envelope.flags & FLAG_CBOR else json.loads(body) if body else None
    return envelope.status, decoded, envelope.error
