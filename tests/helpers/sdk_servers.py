"""Servers for the tests of the client and the worker: a real one in this process, and one that does as it is told."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from zapserver.server import Server, open_server
from zapserver.settings import MEMORY, Address, Settings
from zapwire.envelope import Envelope, decode_respond, decode_task_submit, encode_submit_reply
from zapwire.errors import ZapError
from zapwire.handshake import Capability
from zapwire.link import Link
from zapwire.link_handler import RefusingHandler
from zapwire.listener import open_listener
from zapwire.opcodes import Op


@dataclass
class RealServer:
    """A whole server in the test's own loop; it keeps nothing unless it has a data directory."""

    server: Server

    @property
    def zap(self) -> str:
        return str(self.server.zap_address)

    @property
    def url(self) -> str:
        return f"http://{self.server.http_address}"

    def drop_connections(self) -> None:
        """Cut every connection, as a network does."""
        for link in list(self.server.dispatcher._peers):
            link.close("the test cut it")


@asynccontextmanager
async def open_real_server(
    *, port: int = 0, ssl_context: ssl.SSLContext | None = None, data: str = MEMORY
) -> AsyncIterator[RealServer]:
    settings = Settings(zap=Address("127.0.0.1", port), http=Address("127.0.0.1", 0), data=data)
    async with open_server(settings, ssl_context=ssl_context) as server:
        yield RealServer(server)


@dataclass
class Call:
    """A call that a fake server got, and where to answer it."""

    link: Link
    request_id: int
    opcode: int
    message: bytes
    body: Any

    def answer(self, body: object = None, *, status: int = 200, error: str = "") -> None:
        self.link.reply(self.request_id, status, json.dumps(body).encode(), error)

    def answer_raw(self, message: bytes) -> None:
        self.link.reply_raw(self.request_id, message)

    def started(self, workflow_id: str = "w-1", run_id: str = "r-1") -> None:
        """The answer to a submitted task."""
        body = json.dumps({"workflow_id": workflow_id, "run_id": run_id}).encode()
        self.answer_raw(encode_submit_reply(200, body))

    @property
    def options(self) -> dict[str, Any]:
        """What a submitted task was sent with."""
        return dict(json.loads(bytes(decode_task_submit(self.message).options)))

    @property
    def token(self) -> str:
        """The token of a respond frame."""
        return bytes(decode_respond(self.message)[0]).decode()

    @property
    def payload(self) -> Any:
        """The JSON of a respond frame."""
        return json.loads(bytes(decode_respond(self.message)[1]))


Answer = Callable[[Call], None]


@dataclass
class FakeServer(RefusingHandler):
    """Answers each opcode as the test says, writes down what it got, and pushes what the test wants."""

    answers: dict[int, Answer] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    pushes: list[tuple[int, Any]] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    connections: int = 0
    zap: str = ""
    _news: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        self.answers.setdefault(Op.HEALTH, lambda call: call.answer({"status": "ok"}))
        for opcode in (Op.SUBSCRIBE_ACTIVITY_TASKS, Op.SUBSCRIBE_WORKFLOW_TASKS):
            self.answers.setdefault(opcode, lambda call: call.answer({"subscription_id": f"s{call.request_id}"}))
        self.answers.setdefault(Op.UNSUBSCRIBE_TASKS, lambda call: call.answer({"ok": True}))
        for opcode in (
            Op.RESPOND_ACTIVITY_TASK_COMPLETED,
            Op.RESPOND_ACTIVITY_TASK_FAILED,
            Op.RESPOND_WORKFLOW_TASK_COMPLETED,
            Op.HAND_BACK_TASK,
            Op.DETACH_TASK,
        ):
            self.answers.setdefault(opcode, lambda call: call.answer())
        self.answers.setdefault(Op.RECORD_ACTIVITY_TASK_HEARTBEAT, lambda call: call.answer(status=0))

    def connected(self, link: Link) -> None:
        self.links.append(link)
        self.connections += 1
        self._tell()

    def disconnected(self, link: Link, error: ZapError) -> None:
        self.links.remove(link)
        self._tell()

    def on_call(self, link: Link, request_id: int, envelope: Envelope, message: bytes) -> None:
        try:
            body = json.loads(bytes(envelope.body))
        except ValueError:
            body = None
        call = Call(link, request_id, envelope.opcode, message, body)
        self.calls.append(call)
        self._tell()
        answer = self.answers.get(envelope.opcode)
        if answer is None:
            super().on_call(link, request_id, envelope, message)
        else:
            answer(call)

    def on_push(self, link: Link, envelope: Envelope) -> None:
        self.pushes.append((envelope.opcode, json.loads(bytes(envelope.body))))
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def until(self, ready: Callable[[], object]) -> None:
        """Wait until this is true; looked at after everything that arrives."""
        while not ready():
            await self._news.wait()

    async def call_of(self, opcode: int, number: int = 1) -> Call:
        """Wait for the `number`-th call with this opcode."""
        await self.until(lambda: len(self.calls_of(opcode)) >= number)
        return self.calls_of(opcode)[number - 1]

    def calls_of(self, opcode: int) -> list[Call]:
        return [call for call in self.calls if call.opcode == opcode]

    def drop_connections(self) -> None:
        for link in list(self.links):
            link.close("the test cut it")

    def deliver(self, type: str, input: object = None, *, token: str = "t-1", kind: str = "task", **more: Any) -> None:
        """Push an activity or a one-shot task to the worker, on the newest connection that subscribed."""
        body = {
            "task_token": token,
            "workflow_id": f"w-{token}",
            "run_id": f"r-{token}",
            "activity_id": f"a-{token}",
            "activity_type_name": type,
            "attempt": 1,
            "kind": kind,
            **more,
        }
        if input is not None:
            body["input"] = json.dumps(input)
        self.push(Op.DELIVER_ACTIVITY_TASK, body)

    def push(self, opcode: int, body: object) -> None:
        subscriptions = [
            call
            for call in self.calls
            if call.opcode in (Op.SUBSCRIBE_ACTIVITY_TASKS, Op.SUBSCRIBE_WORKFLOW_TASKS) and call.link in self.links
        ]
        subscriptions[-1].link.send(opcode, json.dumps(body).encode())


@asynccontextmanager
async def open_fake_server(
    answers: Mapping[Any, Answer] | None = None,
    *,
    port: int = 0,
    capabilities: Capability = Capability.CBOR_BODIES,
) -> AsyncIterator[FakeServer]:
    """With no capabilities it passes for a Go server."""
    fake = FakeServer(dict(answers or {}))
    async with open_listener("127.0.0.1", port, fake, node_id="fake", capabilities=capabilities) as listener:
        fake.zap = f"127.0.0.1:{listener.address[1]}"
        yield fake


@dataclass
class FakeHttp:
    """An HTTP server that answers every POST as the test says; None closes the connection instead."""

    answer: Callable[[str, Any], tuple[int, str] | None]
    posts: list[tuple[str, Any]] = field(default_factory=list)
    url: str = ""

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            data = b""
            while True:
                head, separator, body = data.partition(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0
                )
                if separator and len(body) >= length:
                    break
                received = await stream.receive_some()
                if not received:
                    return
                data += received
            path = head.split()[1].decode()
            self.posts.append((path, json.loads(body)))
            answer = self.answer(path, self.posts[-1][1])
            if answer is not None:
                status, text = answer
                head = (
                    f"HTTP/1.1 {status} X\r\ncontent-length: {len(text.encode())}\r\nconnection: close\r\n\r\n".encode()
                )
                await stream.send_all(head + text.encode())


@asynccontextmanager
async def open_fake_http(answer: Callable[[str, Any], tuple[int, str] | None]) -> AsyncIterator[FakeHttp]:
    fake = FakeHttp(answer)
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, fake._serve, [listener])
        fake.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        yield fake
        nursery.cancel_scope.cancel()
