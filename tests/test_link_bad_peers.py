"""Bad peers: each gets what it deserves, costs a bounded amount of memory, and disturbs nobody else."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.lowlevel
import trio.testing
from structlog.testing import capture_logs
from tests.helpers.link_peers import (
    ECHO,
    HOLD,
    NOTE,
    RawPeer,
    Recorder,
    decode_reply,
    framed_call,
    linked_to_raw,
    neighbor,
    raw_client,
    raw_server,
)
from trio.testing import MockClock

from zapwire.client_link import open_link
from zapwire.envelope import Envelope
from zapwire.errors import BadHandshake, ConnectionLost, OutcomeUnknown, ZapError
from zapwire.frame import FRAME_BYTES_MAX, KIND_REQUEST, KIND_RESPONSE, call_frame, frame
from zapwire.handshake import Hello, encode_hello
from zapwire.link import Link
from zapwire.link_group import LinkLimits
from zapwire.listener import Listener, open_listener

HELLO = encode_hello(Hello("bad"))
MIB = 1024 * 1024


def hello_of(node_id: bytes, length: int) -> bytes:
    """A hello with any id at all."""
    return frame(b"ZAP\0" + struct.pack("<HHII60sI", 1, 0, 16, 80, node_id, length))


@pytest.fixture
def patient_clock() -> MockClock:
    """Time jumps once nothing has happened for 30 ms, which is long for loopback, even on a busy machine."""
    return MockClock(autojump_threshold=0.03)


@asynccontextmanager
async def disturbed(limits: LinkLimits | None = None) -> AsyncIterator[tuple[Listener, Recorder]]:
    """A listener for a bad peer to talk to. Before and after, a neighbor on the same listener must work."""
    recorder = Recorder()
    async with (
        open_listener("127.0.0.1", 0, recorder, node_id="server", limits=limits) as listener,
        neighbor(listener) as works,
    ):
        yield listener, recorder
        await works()
        assert set(listener.links) <= {"neighbor", "bad"}


# Before the handshake

BAD_STARTS = {
    "HTTP": (b"GET / HTTP/1.1\r\nHost: zap\r\n\r\n", "hello of"),
    "TLS": (bytes.fromhex("16030100f8010000f40303") + bytes(64), "hello of"),
    "zeros": (bytes(8), "a message of 0 bytes"),
    "wrong magic": (frame(b"ZAQ\0" + HELLO[4:]), "magic"),
    "wrong version": (frame(HELLO[:4] + b"\2\0" + HELLO[6:]), "version 2"),
    "no root": (frame(b"ZAP\0" + struct.pack("<HHII", 1, 0, 0, 16)), "node id"),
    "root outside": (frame(b"ZAP\0" + struct.pack("<HHII", 1, 0, 4000, 16)), "node id"),
    "size beyond the end": (frame(HELLO[:12] + struct.pack("<I", 81) + HELLO[16:]), "81 bytes"),
    "id of 0 bytes": (hello_of(b"", 0), "node id"),
    "id of 61 bytes": (hello_of(b"i" * 60, 61), "61 bytes"),
    "id with a newline": (hello_of(b"a\nb", 3), "printable"),
    "id with a byte above ASCII": (hello_of(b"\xff", 1), "printable"),
    "a call instead": (framed_call(1, ECHO), "handshake"),
    "oversized prefix": (struct.pack("<I", FRAME_BYTES_MAX + 1), str(FRAME_BYTES_MAX + 1)),
    "largest prefix there is": (b"\xff\xff\xff\xff", "4294967295"),
    "a long hello": (struct.pack("<I", 8193), "at most 8192"),
}


@pytest.mark.parametrize(("data", "reason"), BAD_STARTS.values(), ids=BAD_STARTS.keys())
async def test_a_bad_start_is_refused_with_a_logged_reason(data: bytes, reason: str) -> None:
    async with disturbed() as (listener, recorder), raw_client(listener) as peer:
        with capture_logs() as lines:
            await peer.send(data)
            assert await peer.ended()
        assert [line["event"] for line in lines] == ["no handshake"]
        assert reason in lines[0]["reason"]
        assert "connected" not in recorder.methods()[1:]


async def test_a_peer_that_says_nothing_is_dropped_at_the_deadline(patient_clock: MockClock) -> None:
    async with disturbed() as (listener, _), raw_client(listener) as peer:
        start = trio.current_time()
        assert await peer.ended()
        assert trio.current_time() - start == pytest.approx(10, abs=0.5)


async def test_a_hello_dribbled_too_slowly_is_dropped_at_the_deadline(patient_clock: MockClock) -> None:
    """Bytes that come do not extend the deadline."""
    async with disturbed() as (listener, _), raw_client(listener) as peer, trio.open_nursery() as nursery:

        async def dribble() -> None:
            for byte in frame(HELLO):
                await peer.send(bytes([byte]))
                await trio.sleep(1)

        nursery.start_soon(dribble)
        start = trio.current_time()
        assert await peer.ended()
        assert trio.current_time() - start == pytest.approx(10, abs=0.5)
        nursery.cancel_scope.cancel()


async def test_a_hello_and_a_call_dribbled_in_time_are_served(patient_clock: MockClock) -> None:
    async with disturbed() as (listener, _), raw_client(listener) as peer:
        for byte in frame(HELLO):
            await peer.send(bytes([byte]))
        await peer.hear_hello()
        for byte in framed_call(1, ECHO, b"slow"):
            await peer.send(bytes([byte]))
            await trio.sleep(1)
        assert decode_reply(await peer.payload()) == (1, 200, b"slow")


async def test_connections_that_end_before_their_hello_leave_nothing() -> None:
    async with disturbed() as (listener, _):
        for data in (b"", b"\x50", frame(HELLO)[:40]):
            for reset in (False, True):
                async with raw_client(listener) as peer:
                    await peer.send(data)
                    if reset:
                        peer.vanish()
        while listener.connections > 1:
            await trio.lowlevel.checkpoint()


# After the handshake


@asynccontextmanager
async def greeted(listener: Listener) -> AsyncIterator[RawPeer]:
    """A bare client behind its handshake."""
    async with raw_client(listener, small_buffers=True) as peer:
        await peer.say_hello("bad")
        await peer.hear_hello()
        yield peer


async def test_an_unreadable_call_is_answered_400_and_the_connection_lives() -> None:
    async with disturbed() as (listener, _), greeted(listener) as peer:
        await peer.send(call_frame(7, KIND_REQUEST, b"this is not a message"))
        kind, request_id, envelope = await peer.message()
        assert (kind, request_id, envelope.status) == (KIND_RESPONSE, 7, 400)
        assert "magic" in envelope.error
        await peer.call(8, ECHO, b"x")
        assert decode_reply(await peer.payload()) == (8, 200, b"x")


async def test_unreadable_and_unknown_one_way_messages_are_ignored() -> None:
    async with disturbed() as (listener, recorder), greeted(listener) as peer:
        await peer.send(frame(b"") + frame(b"rubbish") + frame(b"ZAP\0\2\0" + bytes(40)))
        await peer.send(call_frame(99, KIND_RESPONSE, b"nobody asked") + call_frame(98, KIND_RESPONSE, HELLO))
        await peer.call(1, ECHO, b"x")
        assert decode_reply(await peer.payload()) == (1, 200, b"x")
        machine = recorder.links[-1].connection
        assert (machine.dropped_messages, machine.late_replies) == (2, 3)  # version 2 reads as a reply


@pytest.mark.parametrize("length", [FRAME_BYTES_MAX + 1, 0x8000_0000, 0xFFFF_FFFF])
async def test_an_oversized_frame_ends_the_connection_after_what_came_before(length: int) -> None:
    async with disturbed() as (listener, recorder), greeted(listener) as peer:
        await peer.send(framed_call(1, ECHO, b"in time") + struct.pack("<I", length) + b"body")
        assert decode_reply(await peer.payload()) == (1, 200, b"in time")
        assert await peer.ended()
        await recorder.until(lambda: recorder.ends)
        assert str(length) in str(recorder.ends[0])


async def test_a_request_id_used_twice_ends_the_connection() -> None:
    async with disturbed() as (listener, recorder), greeted(listener) as peer:
        await peer.send(framed_call(1, HOLD) * 2)
        assert await peer.ended()
        await recorder.until(lambda: recorder.ends)
        assert "request id 1 is in use" in str(recorder.ends[0])


@pytest.mark.parametrize("reset", [False, True])
async def test_a_peer_that_vanishes_in_a_frame(reset: bool) -> None:
    async with disturbed() as (listener, recorder):
        async with greeted(listener) as peer:
            await peer.send(framed_call(1, HOLD) + framed_call(2, ECHO, bytes(1000))[:500])
            await recorder.until(lambda: recorder.held)
            if reset:
                peer.vanish()
        await recorder.until(lambda: recorder.ends)
        assert isinstance(recorder.ends[0], ConnectionLost)
        link, request_id, _ = recorder.held[0]
        link.reply(request_id, 200, b"to nobody")


@pytest.mark.parametrize("seed", range(40))
async def test_random_bytes_and_mutations(seed: int) -> None:
    """A peer that sends calls with flipped bytes, torn and interleaved with noise, until it is thrown out."""
    source = random.Random(seed)
    async with disturbed() as (listener, _), greeted(listener) as peer, trio.open_nursery() as nursery:

        async def read() -> None:
            while not await peer.ended():
                pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(read)
        for number in range(200):
            data = bytearray(framed_call(number, source.choice((ECHO, HOLD, NOTE)), source.randbytes(30)))
            for _ in range(source.randrange(3)):
                data[source.randrange(4, len(data))] = source.randrange(256)
            if source.random() < 0.02:
                data = bytearray(source.randbytes(50))
            try:
                await peer.send(bytes(data))
            except trio.BrokenResourceError:
                break
        nursery.cancel_scope.cancel()


async def test_calls_piled_up_beyond_the_bound_are_refused() -> None:
    async with disturbed(LinkLimits(unanswered_calls=10)) as (listener, recorder), greeted(listener) as peer:
        await peer.send(b"".join(framed_call(number, HOLD) for number in range(15)))
        for number in range(10, 15):
            assert decode_reply(await peer.payload())[:2] == (number, 429)
        assert len(recorder.held) == 10


# Peers that do not read


async def test_a_peer_that_calls_and_never_reads_is_read_no_more_and_then_dropped(patient_clock: MockClock) -> None:
    """Its answers pile up to the pause bound and a read's worth, not to the outbox bound."""
    async with disturbed() as (listener, recorder), greeted(listener) as peer, trio.open_nursery() as nursery:

        async def flood() -> None:
            call = framed_call(0, ECHO, bytes(16 * 1024))
            for number in range(10_000):
                await peer.send(call[:4] + struct.pack("<I", number) + call[8:])
            raise AssertionError("the server has read everything")

        async def flood_until_it_ends() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await flood()

        nursery.start_soon(flood_until_it_ends)
        await recorder.until(lambda: len(recorder.links) == 2)
        link = recorder.links[1]
        waiting: list[int] = []
        while not recorder.ends:
            waiting.append(link.outbox_bytes)
            await trio.sleep(1)
        assert "read nothing for 10 s" in str(recorder.ends[0])
        assert MIB < max(waiting) < 2 * MIB


async def test_many_large_answers_at_once_reach_a_peer_that_reads() -> None:
    """Calls of one read whose answers are a hundred MiB together are handled as fast as the peer reads."""
    answers = 30
    most = 0

    class Large(Recorder):
        def on_call(self, link: Link, request_id: int, envelope: Envelope, message: bytes) -> None:
            nonlocal most
            link.reply(request_id, 200, bytes(4 * MIB) if envelope.opcode == HOLD else envelope.body)
            most = max(most, link.outbox_bytes)

    async with (
        open_listener("127.0.0.1", 0, Large(), node_id="server") as listener,
        neighbor(listener) as works,
        raw_client(listener) as peer,
    ):
        await peer.say_hello("hungry")
        await peer.hear_hello()
        await peer.send(b"".join(framed_call(number, HOLD) for number in range(answers)))
        for number in range(answers):
            assert decode_reply(await peer.payload())[:2] == (number, 200)
            await works()
    assert most < 6 * MIB


async def test_a_peer_that_is_pushed_to_and_never_reads_is_dropped_at_the_bound() -> None:
    async with disturbed() as (listener, recorder), greeted(listener):
        await recorder.until(lambda: len(recorder.links) == 2)
        link = recorder.links[1]
        most = 0
        for _ in range(1000):
            link.send(NOTE, bytes(100_000))
            most = max(most, link.outbox_bytes)
            if not link.open:
                break
        await recorder.until(lambda: recorder.ends)
        assert "the peer does not read" in str(recorder.ends[0])
        assert 16 * MIB < most < 16 * MIB + 2 * 101_000


async def test_a_peer_that_reads_slowly_is_kept(patient_clock: MockClock) -> None:
    """The write deadline counts from the last progress."""
    async with disturbed() as (listener, recorder), greeted(listener) as peer:
        link = recorder.links[1]
        link.send(NOTE, bytes(8 * MIB))
        left = [link.outbox_bytes]
        for _ in range(20):
            for _ in range(50):
                await peer.stream.receive_some(65536)
            await trio.sleep(5)
            left.append(link.outbox_bytes)
        assert not recorder.ends
        assert left == sorted(left, reverse=True)
        assert 0 < left[-1] < left[0]


async def test_a_half_sent_frame_costs_what_was_sent() -> None:
    """A hundred peers that announce 10 MiB each and send a little of it."""
    async with disturbed() as (listener, recorder):
        peers: list[RawPeer] = []
        async with trio.open_nursery() as nursery:

            async def announce(number: int) -> None:
                async with raw_client(listener) as peer:
                    await peer.say_hello(f"bad{number}" if number else "bad")
                    await peer.hear_hello()
                    await peer.send(struct.pack("<I", FRAME_BYTES_MAX) + bytes(1000))
                    peers.append(peer)
                    await trio.sleep_forever()

            tracemalloc.start()
            try:
                for number in range(100):
                    nursery.start_soon(announce, number)
                await recorder.until(lambda: len(recorder.links) == 101)
                while len(peers) < 100:
                    await trio.lowlevel.checkpoint()
                await trio.testing.wait_all_tasks_blocked(0.01)
                held, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert held < 10 * MIB
            nursery.cancel_scope.cancel()
        await recorder.until(lambda: len(recorder.ends) == 100)


# Bad servers


async def failing_start(behave: Callable[[RawPeer], object]) -> ZapError:
    """Open a link to a server that behaves badly; returns what the caller gets."""
    async with raw_server() as server, trio.open_nursery() as nursery:

        async def serve() -> None:
            peer = await server.accept()
            result = behave(peer)
            if result is not None:
                await result  # type: ignore[misc]

        nursery.start_soon(serve)
        with pytest.raises(ZapError) as caught:
            async with open_link("127.0.0.1", server.port, node_id="client"):
                raise AssertionError("the handshake was accepted")
        nursery.cancel_scope.cancel()
    return caught.value


@pytest.mark.parametrize(("data", "reason"), BAD_STARTS.values(), ids=BAD_STARTS.keys())
async def test_a_server_with_a_bad_hello(data: bytes, reason: str) -> None:
    error = await failing_start(lambda peer: peer.send(data))
    assert reason in str(error)


async def test_a_server_that_closes_instead_of_answering() -> None:
    """What Go does when the node id is connected already."""

    async def close(peer: RawPeer) -> None:
        await peer.hear_hello()
        await peer.stream.aclose()

    error = await failing_start(close)
    assert isinstance(error, BadHandshake)
    assert "closed the connection before its hello" in str(error)


async def test_a_server_that_resets_instead_of_answering() -> None:
    assert isinstance(await failing_start(lambda peer: peer.vanish()), BadHandshake | ConnectionLost)


async def test_a_server_that_never_answers(patient_clock: MockClock) -> None:
    async def silence(peer: RawPeer) -> None:
        await trio.sleep_forever()

    error = await failing_start(silence)
    assert isinstance(error, BadHandshake)
    assert str(error) == "no hello within 10 s"


async def test_a_server_that_sends_an_oversized_answer() -> None:
    async with linked_to_raw() as (link, peer), trio.open_nursery() as nursery:

        async def answer() -> None:
            await peer.message()
            await peer.send(struct.pack("<I", FRAME_BYTES_MAX + 1))

        nursery.start_soon(answer)
        with pytest.raises(OutcomeUnknown, match="10485761"):
            await link.call(ECHO)


async def test_a_server_that_answers_twice_and_unasked() -> None:
    async with linked_to_raw() as (link, peer), trio.open_nursery() as nursery:

        async def answer() -> None:
            for _ in range(2):
                _, request_id, _ = await peer.message()
                for _ in range(3):
                    await peer.reply(request_id, body=b"x")
                await peer.reply(request_id + 1000)

        nursery.start_soon(answer)
        assert (await link.call(ECHO)).body == b"x"
        assert (await link.call(ECHO)).body == b"x"
        assert link.connection.late_replies >= 3


async def test_a_server_that_calls_gets_501() -> None:
    async with linked_to_raw() as (_, peer):
        await peer.call(1, ECHO)
        _, request_id, envelope = await peer.message()
        assert (request_id, envelope.status) == (1, 501)


async def test_a_server_that_never_reads_is_given_up(patient_clock: MockClock) -> None:
    ends: list[ZapError] = []

    class Ends(Recorder):
        def disconnected(self, link: Link, error: ZapError) -> None:
            ends.append(error)

    async with linked_to_raw(small_buffers=True, handler=Ends()) as (link, _):
        with pytest.raises(OutcomeUnknown, match="read nothing for 10 s"):
            await link.call(ECHO, bytes(8 * MIB))
        assert len(ends) == 1
