"""The same link over TLS: the same calls, the same failures."""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.lowlevel
import trio.testing
import trustme
from structlog.testing import capture_logs
from tests.helpers.link_peers import ECHO, HOLD, NOTE, RawPeer, Recorder, raw_client
from trio.testing import MockClock

from zapwire.client_link import Backoff, open_link, open_reconnecting_link
from zapwire.errors import BadHandshake, CallFailed, ConnectionLost, OutcomeUnknown
from zapwire.frame import frame
from zapwire.handshake import Hello, encode_hello
from zapwire.link import Link
from zapwire.link_group import LinkLimits
from zapwire.listener import Listener, open_listener

MIB = 1024 * 1024


@pytest.fixture
def patient_clock() -> MockClock:
    """Time jumps once nothing has happened for 30 ms, which is long for loopback, even on a busy machine."""
    return MockClock(autojump_threshold=0.03)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@asynccontextmanager
async def served_over_tls(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, limits: LinkLimits | None = None
) -> AsyncIterator[tuple[Link, Listener, Recorder]]:
    recorder = Recorder()
    async with (
        open_listener(
            "127.0.0.1", 0, recorder, node_id="server", ssl_context=server_context, limits=limits
        ) as listener,
        open_link(*listener.address, node_id="client", ssl_context=client_context, limits=limits) as link,
    ):
        yield link, listener, recorder


async def test_calls_and_pushes(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    async with served_over_tls(server_context, client_context) as (link, _, recorder):
        assert (await link.call(ECHO, b"secret")).body == b"secret"
        with pytest.raises(CallFailed, match="501"):
            await link.call(0xEE)
        link.send(NOTE, b"one way")
        await recorder.until(lambda: "on_push" in recorder.methods())


async def test_the_bytes_are_not_readable_on_the_way(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """A proxy in the middle sees the traffic of a call and nothing of its body."""
    seen = bytearray()
    async with (
        open_listener("127.0.0.1", 0, Recorder(), node_id="server", ssl_context=server_context) as listener,
        trio.open_nursery() as nursery,
    ):

        async def forward(source: trio.SocketStream, target: trio.SocketStream) -> None:
            async for data in source:
                seen.extend(data)
                await target.send_all(data)

        async def proxy(near: trio.SocketStream) -> None:
            async with await trio.open_tcp_stream(*listener.address) as far, trio.open_nursery() as both:
                both.start_soon(forward, near, far)
                both.start_soon(forward, far, near)

        (proxying,) = await nursery.start(partial(trio.serve_tcp, proxy, 0, host="127.0.0.1"))
        port = proxying.socket.getsockname()[1]
        async with open_link("127.0.0.1", port, node_id="client", ssl_context=client_context) as link:
            assert (await link.call(ECHO, b"the secret body")).body == b"the secret body"
        nursery.cancel_scope.cancel()
    assert len(seen) > 100
    assert b"secret" not in seen


@pytest.mark.parametrize("size", [16 * 1024 - 1, 16 * 1024, 64 * 1024, 9 * MIB])
async def test_bodies_larger_than_a_record(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, size: int
) -> None:
    """Several TLS records in one read, and a kernel buffer that fills up in the middle of one."""
    body = random.Random(size).randbytes(size)
    async with served_over_tls(server_context, client_context) as (link, _, _):
        assert (await link.call(ECHO, body)).body == body
        assert (await link.call(ECHO, b"x")).body == b"x"


async def test_many_calls_both_ways_while_buffers_are_full(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    answers: list[bool] = []

    async def caller(link: Link, body: bytes) -> None:
        answers.append((await link.call(ECHO, body)).body == body)

    source = random.Random(4)
    async with served_over_tls(server_context, client_context) as (link, _, _), trio.open_nursery() as nursery:
        for _ in range(300):
            nursery.start_soon(caller, link, source.randbytes(source.randrange(100_000)))
    assert answers == [True] * 300


async def test_a_deadline_and_a_cancel(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, patient_clock: MockClock
) -> None:
    async with served_over_tls(server_context, client_context) as (link, _, _):
        with pytest.raises(OutcomeUnknown, match="within 3 s"):
            await link.call(HOLD, timeout=3)
        with trio.move_on_after(1):
            await link.call(HOLD)
        assert (await link.call(ECHO, b"x")).body == b"x"


async def test_the_end_fails_calls_in_flight(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    async with served_over_tls(server_context, client_context) as (link, _, recorder), trio.open_nursery() as nursery:

        async def caller() -> None:
            with pytest.raises(OutcomeUnknown, match="the peer closed the connection"):
                await link.call(HOLD)

        nursery.start_soon(caller)
        await recorder.until(lambda: recorder.held)
        recorder.links[0].close("away")


async def test_a_server_that_restarts(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    recorder = Recorder()
    async with (
        open_listener("127.0.0.1", 0, recorder, node_id="server", ssl_context=server_context) as listener,
        open_reconnecting_link(
            *listener.address, node_id="client", ssl_context=client_context, backoff=Backoff(0.001, 0.01)
        ) as link,
    ):
        for number in range(3):
            assert (await link.call(ECHO, b"x", timeout=20)).body == b"x"
            recorder.links[number].close("again")
            while link.link is not None:
                await trio.lowlevel.checkpoint()


async def test_aclose_sends_what_waits(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    body = random.Random(5).randbytes(4 * MIB)
    async with served_over_tls(server_context, client_context) as (link, _, recorder):
        link.send(NOTE, body)
        assert link.outbox_bytes > 0
        await link.aclose()
        await recorder.until(lambda: recorder.ends)
        assert ("on_push", "client", (NOTE, body)) in recorder.log


# Whom not to trust


async def test_a_certificate_of_a_stranger_is_refused(server_context: ssl.SSLContext) -> None:
    stranger = ssl.create_default_context()
    trustme.CA().configure_trust(stranger)
    async with open_listener("127.0.0.1", 0, Recorder(), node_id="server", ssl_context=server_context) as listener:
        with capture_logs() as lines:
            with pytest.raises(ConnectionLost, match="certificate verify failed"):
                async with open_link(*listener.address, node_id="client", ssl_context=stranger):
                    pass
            while listener.connections:
                await trio.lowlevel.checkpoint()
        assert [line["event"] for line in lines] == ["no handshake"]


async def test_a_certificate_for_another_name_is_refused(authority: trustme.CA, client_context: ssl.SSLContext) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("tasks.example.org").configure_cert(context)
    async with open_listener("127.0.0.1", 0, Recorder(), node_id="server", ssl_context=context) as listener:
        with pytest.raises(ConnectionLost, match="certificate"):
            async with open_link(*listener.address, node_id="client", ssl_context=client_context):
                pass


@pytest.mark.parametrize(
    "data", [frame(encode_hello(Hello("plain"))), b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\0\5rubbi"]
)
async def test_a_peer_without_tls_disturbs_nobody(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, data: bytes
) -> None:
    async with served_over_tls(server_context, client_context) as (link, listener, _), raw_client(listener) as peer:
        await peer.send(data)
        await until_end(peer)
        assert (await link.call(ECHO, b"x")).body == b"x"


async def until_end(peer: RawPeer) -> None:
    """Read to the end; TLS may send an alert first."""
    try:
        while await peer.stream.receive_some(1000):
            pass
    except trio.BrokenResourceError:
        pass


async def test_a_tls_client_at_a_port_without_tls(client_context: ssl.SSLContext) -> None:
    async with open_listener("127.0.0.1", 0, Recorder(), node_id="server") as listener:
        with pytest.raises(ConnectionLost):
            async with open_link(*listener.address, node_id="client", ssl_context=client_context):
                pass


async def test_a_tls_handshake_that_stalls_is_dropped_at_the_deadline(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, patient_clock: MockClock
) -> None:
    async with served_over_tls(server_context, client_context) as (link, listener, _), raw_client(listener) as peer:
        start = trio.current_time()
        await peer.send(b"\x16\x03\x01")
        assert await peer.ended()
        assert trio.current_time() - start == pytest.approx(10, abs=0.5)
        assert (await link.call(ECHO, b"x")).body == b"x"


async def test_a_peer_that_does_the_tls_handshake_and_says_nothing(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, patient_clock: MockClock
) -> None:
    async with served_over_tls(server_context, client_context) as (link, listener, _):
        stream = trio.SSLStream(
            await trio.open_tcp_stream(*listener.address), client_context, server_hostname="127.0.0.1"
        )
        async with stream:
            await stream.do_handshake()
            start = trio.current_time()
            assert await stream.receive_some() == b""
            assert trio.current_time() - start == pytest.approx(10, abs=0.5)
        assert (await link.call(ECHO, b"x")).body == b"x"


async def test_a_peer_that_never_reads_is_dropped(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, patient_clock: MockClock
) -> None:
    async with served_over_tls(server_context, client_context) as (link, listener, recorder):
        stream = trio.SSLStream(
            await trio.open_tcp_stream(*listener.address), client_context, server_hostname="127.0.0.1"
        )
        await stream.do_handshake()
        await stream.send_all(frame(encode_hello(Hello("deaf"))))
        await recorder.until(lambda: len(recorder.links) == 2)
        recorder.links[1].send(NOTE, bytes(9 * MIB))
        await recorder.until(lambda: recorder.ends)
        assert "read nothing for 10 s" in str(recorder.ends[0])
        assert (await link.call(ECHO, b"x")).body == b"x"
        await trio.aclose_forcefully(stream)


async def test_a_server_that_never_finishes_the_tls_handshake(
    client_context: ssl.SSLContext, patient_clock: MockClock
) -> None:
    (listening,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listening:
        with pytest.raises(BadHandshake, match="within 10 s"):
            async with open_link(
                "127.0.0.1", listening.socket.getsockname()[1], node_id="client", ssl_context=client_context
            ):
                pass
