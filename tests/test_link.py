"""The link: calls, one-way messages, deadlines, ends and liveness, over real sockets."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from functools import partial

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from tests.helpers.link_peers import (
    ECHO,
    HOLD,
    NOTE,
    RAISE,
    RawPeer,
    Recorder,
    decode_reply,
    framed_call,
    framed_push,
    linked_to_raw,
    neighbor,
    raw_client,
    served,
)
from trio.testing import MockClock

from zapwire.client_link import open_link, open_reconnecting_link
from zapwire.envelope import (
    Envelope,
    decode_submit_reply,
    encode_response,
    encode_submit_reply,
    encode_task_submit,
)
from zapwire.errors import (
    BadHandshake,
    BadMessage,
    CallFailed,
    ConnectionLost,
    LocalProtocolError,
    NotSent,
    OutcomeUnknown,
    ZapError,
)
from zapwire.frame import KIND_ONE_WAY, KIND_REQUEST, KIND_RESPONSE, FrameDecoder, call_frame, frame
from zapwire.handshake import Capability, Hello, encode_hello
from zapwire.link import Link
from zapwire.link_group import LinkLimits
from zapwire.link_handler import Handlers, RefusingHandler
from zapwire.listener import Listener, open_listener
from zapwire.opcodes import Op
from zapwire.outbox import GATHER_FRAMES_MAX


@pytest.fixture
def patient_clock() -> MockClock:
    """Time jumps once nothing has happened for 30 ms, which is long for loopback, even on a busy machine."""
    return MockClock(autojump_threshold=0.03)


# Calls


async def test_a_call_is_answered() -> None:
    async with served() as (link, listener, _):
        envelope = await link.call(ECHO, b'{"a":1}')
        assert (envelope.status, envelope.body) == (200, b'{"a":1}')
        assert (link.node_id, list(listener.links)) == ("server", ["client"])
        assert link.capabilities == Capability.CBOR_BODIES
        assert link.peer.node_id == "server"
        assert repr(link) == "<Link to server: open>"


async def test_replies_reach_their_callers_in_any_order() -> None:
    calls = 200
    answers: dict[int, bytes] = {}

    async def caller(link: Link, number: int) -> None:
        answers[number] = bytes((await link.call(HOLD, b"%d" % number)).body)

    async with served() as (link, _, recorder), trio.open_nursery() as nursery:
        for number in range(calls):
            nursery.start_soon(caller, link, number)
        await recorder.until(lambda: len(recorder.held) == calls)
        random.Random(11).shuffle(recorder.held)
        for server_link, request_id, body in recorder.held:
            server_link.reply(request_id, 200, b"answer to " + body)
    assert answers == {number: b"answer to %d" % number for number in range(calls)}


async def test_both_ends_call() -> None:
    handlers = Handlers({ECHO: lambda link, envelope: b"from the client: " + bytes(envelope.body)})
    recorder = Recorder()
    async with (
        open_listener("127.0.0.1", 0, recorder, node_id="server") as listener,
        open_link(*listener.address, node_id="client", handler=handlers),
    ):
        await recorder.until(lambda: recorder.links)
        assert (await recorder.links[0].call(ECHO, b"hi")).body == b"from the client: hi"


async def test_a_failure_carries_the_peers_status_and_text() -> None:
    async with served() as (link, _, recorder):
        recorder.error = CallFailed(404, "workflow not found")
        with pytest.raises(CallFailed, match="call 0xC7 unknown: status 404: workflow not found") as caught:
            await link.call(RAISE)
        assert (caught.value.status, caught.value.detail, caught.value.opcode) == (404, "workflow not found", RAISE)


async def test_a_handler_that_raises_costs_its_call_only() -> None:
    async with served() as (link, _, recorder):
        for error, status, text in (
            (ValueError("boom"), 500, "ValueError: boom"),
            (LocalProtocolError("opcode 0"), 400, "opcode 0"),
        ):
            recorder.error = error
            with capture_logs() as lines, pytest.raises(CallFailed) as caught:
                await link.call(RAISE)
            assert (caught.value.status, caught.value.detail) == (status, text)
            assert len(lines) == 1
        assert (await link.call(ECHO, b"x")).body == b"x"


async def test_an_opcode_that_is_not_served_is_answered_501() -> None:
    async with served() as (link, _, _):
        with pytest.raises(CallFailed) as known:
            await link.call(Op.HEALTH)
        with pytest.raises(CallFailed) as unknown:
            await link.call(0xEE)
    assert (known.value.status, known.value.detail) == (501, "opcode 0x90 (Health) is not served")
    assert unknown.value.detail == "opcode 0xEE (unknown) is not served"


async def test_a_binary_call_travels_whole() -> None:
    class Submit(RefusingHandler):
        def on_call(self, link: Link, request_id: int, envelope: Envelope, message: bytes) -> None:
            assert message == encode_task_submit("email.send", b"{}")
            link.reply_raw(request_id, encode_submit_reply(503, b"later"))

    async with (
        open_listener("127.0.0.1", 0, Submit(), node_id="server") as listener,
        open_link(*listener.address, node_id="client") as link,
    ):
        answer = await link.call_raw(encode_task_submit("email.send", b"{}"))
        assert decode_submit_reply(answer) == (503, b"later")


async def test_a_body_of_a_whole_frame_travels() -> None:
    body = random.Random(3).randbytes(10 * 1024 * 1024 - 8 - 40)
    async with served() as (link, _, _):
        assert (await link.call(ECHO, body)).body == body
        with pytest.raises(LocalProtocolError, match="at most 10485760"):
            await link.call(ECHO, body + b"x")
        assert (await link.call(ECHO, b"x")).body == b"x"


async def test_an_answer_that_is_too_long_fails_its_call_only() -> None:
    handlers = Handlers({ECHO: lambda link, envelope: bytes(11 * 1024 * 1024), NOTE: lambda link, envelope: b"x"})
    async with (
        open_listener("127.0.0.1", 0, handlers, node_id="server") as listener,
        open_link(*listener.address, node_id="client") as link,
    ):
        with pytest.raises(CallFailed, match="at most 10485760"):
            await link.call(ECHO)
        assert (await link.call(NOTE)).body == b"x"


async def test_an_answer_that_cannot_be_read_fails_its_call_only() -> None:
    async with linked_to_raw() as (link, peer), trio.open_nursery() as nursery:

        async def answer() -> None:
            await peer.message()
            await peer.send(call_frame(1, KIND_RESPONSE, b"not a message at all"))
            await peer.message()
            await peer.reply(2, body=b"fine")

        nursery.start_soon(answer)
        with pytest.raises(BadMessage, match="magic"):
            await link.call(ECHO)
        assert (await link.call(ECHO)).body == b"fine"


class ActingOnPush(RefusingHandler):
    """Does what the test says when a one-way message comes."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def on_push(self, link: Link, envelope: Envelope) -> None:
        self.act()


def framed_reply(request_id: int, body: bytes) -> bytes:
    return call_frame(request_id, KIND_RESPONSE, encode_response(200, body, ""))


async def test_a_reply_right_behind_what_cancels_its_call_wakes_nobody() -> None:
    """One read brings both; the call is over before its reply is looked at. It used to end the whole worker."""
    scope = trio.CancelScope()
    async with linked_to_raw(handler=ActingOnPush(scope.cancel)) as (link, peer):
        async with trio.open_nursery() as nursery:

            async def answer() -> None:
                await peer.message()
                await peer.send(framed_push(NOTE) + framed_reply(1, b"too late"))

            nursery.start_soon(answer)
            with scope:
                await link.call(ECHO)
            assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_echo, peer, 2)
            assert (await link.call(ECHO)).body == b"fine"


async def answer_echo(peer: RawPeer, request_id: int) -> None:
    await peer.message()
    await peer.reply(request_id, body=b"fine")


async def test_a_reply_right_behind_what_closes_the_link_reaches_its_caller() -> None:
    """The answer was read, so that the end of the link must neither hide it nor leave the caller waiting."""
    handler = ActingOnPush(lambda: link.close("enough"))
    async with linked_to_raw(handler=handler) as (link, peer), trio.open_nursery() as nursery:

        async def answer() -> None:
            await peer.message()
            await peer.send(framed_push(NOTE) + framed_reply(1, b"in time"))

        nursery.start_soon(answer)
        with trio.fail_after(5):
            assert (await link.call(ECHO)).body == b"in time"
        assert not link.open


class CountingSocket:
    """A link's socket, with its sends counted."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sent: list[int] = []

    def send(self, data: bytes) -> int:
        self.sent.append(len(data))
        return self.sock.send(data)


async def test_calls_made_in_one_tick_share_their_sends() -> None:
    """The first goes at once, so that a lone call waits for nothing; the others are gathered."""
    async with linked_to_raw() as (link, peer), trio.open_nursery() as nursery:
        counting = CountingSocket(link._sock)
        link._outbox._sock = counting  # type: ignore[assignment]
        for _ in range(100):
            nursery.start_soon(link.call, ECHO)
        await trio.testing.wait_all_tasks_blocked(0.01)
        size = len(framed_call(1, ECHO))
        assert sum(counting.sent) == 100 * size
        assert counting.sent[0] == size
        assert len(counting.sent) <= 2 + 99 / GATHER_FRAMES_MAX
        for request_id in range(1, 101):
            await peer.reply(request_id)


async def test_the_calls_of_one_read_are_one_batch_and_leave_in_one_send() -> None:
    async with served() as (_, listener, recorder), raw_client(listener) as peer:
        await peer.say_hello()
        await peer.hear_hello()
        recorder.log.clear()
        await peer.send(b"".join(framed_call(number, ECHO) for number in (1, 2, 3)))
        answer = await peer.stream.receive_some(65536)
        assert [decode_reply(frame)[:2] for frame in FrameDecoder().feed(answer)] == [(1, 200), (2, 200), (3, 200)]
        assert recorder.methods() == ["on_call", "on_call", "on_call", "batch_end"]


async def test_calls_right_behind_the_hello_are_served() -> None:
    async with served() as (_, listener, recorder), raw_client(listener) as peer:
        await peer.send(frame(encode_hello(Hello("eager"))) + framed_call(1, ECHO, b"early") + framed_push(NOTE))
        assert (await peer.hear_hello()).node_id == "server"
        assert decode_reply(await peer.payload()) == (1, 200, b"early")
        about_eager = [method for method, node_id, _ in recorder.log if node_id == "eager"]
        assert about_eager == ["connected", "on_call", "on_push", "batch_end"]


# One-way messages


async def test_one_way_messages_go_both_ways() -> None:
    at_client = Recorder()
    at_server = Recorder()
    async with (
        open_listener("127.0.0.1", 0, at_server, node_id="server") as listener,
        open_link(*listener.address, node_id="client", handler=at_client) as link,
    ):
        link.send(NOTE, b"to the server")
        await at_server.until(lambda: "on_push" in at_server.methods())
        at_server.links[0].send(NOTE, b"to the client")
        await at_client.until(lambda: "on_push" in at_client.methods())
    assert ("on_push", "client", (NOTE, b"to the server")) in at_server.log
    assert ("on_push", "server", (NOTE, b"to the client")) in at_client.log


async def test_messages_stay_in_order_whatever_way_they_take() -> None:
    """At once, gathered, and waiting for room in the kernel's buffer."""
    async with served() as (link, _, recorder):
        sent = []
        for number in range(300):
            sent.append(b"%d" % number + bytes(number * 100))
            link.send(NOTE, sent[-1])
            if number % 7 == 0:
                await trio.lowlevel.checkpoint()
        await recorder.until(lambda: recorder.methods().count("on_push") == len(sent))
        assert [about for method, _, about in recorder.log if method == "on_push"] == [(NOTE, body) for body in sent]


async def test_a_push_handler_that_raises_is_logged_and_the_connection_lives() -> None:
    class Failing(RefusingHandler):
        def on_push(self, link: Link, envelope: Envelope) -> None:
            raise ValueError("boom")

    async with (
        open_listener("127.0.0.1", 0, Failing(), node_id="server") as listener,
        open_link(*listener.address, node_id="client") as link,
    ):
        with capture_logs() as lines:
            link.send(NOTE, b"")
            with pytest.raises(CallFailed):
                await link.call(ECHO)
        assert [line["event"] for line in lines] == ["push handler failed"]


# Cancel and deadlines


async def test_a_canceled_call_is_forgotten_and_the_peer_is_told() -> None:
    async with served() as (link, _, recorder):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.call, HOLD)
                await recorder.until(lambda: recorder.held)
                scope.cancel()
        assert not link.connection.in_flight
        await recorder.until(lambda: "on_push" in recorder.methods())
        assert ("on_push", "client", (Op.ABANDON_CALL, b'{"request_id":1}')) in recorder.log
        server_link, request_id, _ = recorder.held[0]
        server_link.reply(request_id, 200, b"too late")
        assert (await link.call(ECHO, b"on")).body == b"on"
        assert link.connection.late_replies == 1


async def test_a_go_peer_is_not_told_of_canceled_calls() -> None:
    async with linked_to_raw() as (link, peer):
        with trio.move_on_after(0.01):
            await link.call(HOLD)
        link.send(NOTE, b"next")
        assert (await peer.message())[0] == KIND_REQUEST
        kind, _, envelope = await peer.message()
        assert (kind, envelope.opcode) == (KIND_ONE_WAY, NOTE)


async def test_a_call_ends_at_its_deadline(patient_clock: MockClock) -> None:
    async with served() as (link, _, _):
        start = trio.current_time()
        with pytest.raises(OutcomeUnknown, match="no answer from server within 5 s"):
            await link.call(HOLD, timeout=5)
        assert trio.current_time() - start == pytest.approx(5)
        assert (await link.call(ECHO, b"on", timeout=5)).body == b"on"


async def test_many_deadlines_end_in_their_order(patient_clock: MockClock) -> None:
    seconds = [3.0, 1.0, 2.0, 5.0, 4.0, 1.0]
    ended: list[tuple[float, float]] = []

    async def caller(link: Link, timeout: float) -> None:
        with pytest.raises(OutcomeUnknown):
            await link.call(HOLD, timeout=timeout)
        ended.append((timeout, trio.current_time() - start))

    async with served() as (link, _, _):
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for timeout in seconds:
                nursery.start_soon(caller, link, timeout)
    assert [timeout for timeout, _ in ended] == sorted(seconds)
    assert all(took == pytest.approx(timeout) for timeout, took in ended)


async def test_a_call_that_never_left_says_so_at_its_deadline(patient_clock: MockClock) -> None:
    limits = LinkLimits(write_stall_seconds=1000)
    async with linked_to_raw(small_buffers=True, limits=limits) as (link, peer), trio.open_nursery() as nursery:
        link.send(NOTE, bytes(8 * 1024 * 1024))  # more than the kernel takes from a sender whose peer does not read

        async def caller() -> None:
            with pytest.raises(NotSent, match="took nothing for 2 s"):
                await link.call(ECHO, b"withdrawn", timeout=2)

        nursery.start_soon(caller)
        await trio.sleep(3)
        link.send(NOTE, b"the end")
        assert len((await peer.message())[2].body) == 8 * 1024 * 1024
        assert (await peer.message())[2].body == b"the end"
        assert link.outbox_bytes == 0


async def test_more_calls_than_may_wait_for_the_peer_take_their_turns() -> None:
    body = bytes(4 * 1024 * 1024)
    lengths: list[int] = []

    async def caller(link: Link) -> None:
        lengths.append(len((await link.call(ECHO, body)).body))

    async with served() as (link, _, _), trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(caller, link)
    assert lengths == [len(body)] * 12


async def test_a_call_that_finds_no_room_says_so_at_its_deadline(patient_clock: MockClock) -> None:
    limits = LinkLimits(write_stall_seconds=1000, outbox_bytes=1024 * 1024)
    async with linked_to_raw(small_buffers=True, limits=limits) as (link, peer):
        link.send(NOTE, bytes(8 * 1024 * 1024))
        began = trio.current_time()
        for call in (partial(link.call, ECHO, b"a"), partial(link.call_raw, b"a" * 1_000)):
            with pytest.raises(NotSent, match="read too little for 2 s"):
                await call(timeout=2)
        assert trio.current_time() - began == pytest.approx(4)
        with trio.move_on_after(1):
            await link.call(ECHO, b"a")
        assert len((await peer.message())[2].body) == 8 * 1024 * 1024
        assert link.open


# The end


async def test_a_lost_connection_fails_every_call_at_once() -> None:
    failures: list[Exception] = []

    async def caller(link: Link) -> None:
        with pytest.raises(OutcomeUnknown, match="ended before the answer: the peer closed") as caught:
            await link.call(HOLD)
        failures.append(caught.value)

    async with linked_to_raw() as (link, peer):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(caller, link)
            for _ in range(20):
                await peer.message()
            await peer.stream.aclose()
        assert len(failures) == 20
        with pytest.raises(NotSent, match="the connection has ended: the peer closed the connection"):
            await link.call(ECHO)
        with pytest.raises(NotSent):
            await link.call_raw(b"")
        link.send(NOTE, b"dropped")
        assert not link.open


async def test_a_reset_connection_fails_its_calls() -> None:
    async with linked_to_raw() as (link, peer), trio.open_nursery() as nursery:

        async def caller() -> None:
            with pytest.raises(OutcomeUnknown, match="the connection broke"):
                await link.call(HOLD)

        nursery.start_soon(caller)
        await peer.message()
        peer.vanish()


async def test_a_call_that_waits_behind_a_full_buffer_was_not_sent() -> None:
    async with linked_to_raw(small_buffers=True) as (link, peer), trio.open_nursery() as nursery:
        link.send(NOTE, bytes(8 * 1024 * 1024))

        async def caller() -> None:
            with pytest.raises(NotSent, match="before the call was sent"):
                await link.call(ECHO)

        nursery.start_soon(caller)
        await trio.testing.wait_all_tasks_blocked()
        peer.vanish()


async def test_answers_that_came_before_the_end_count() -> None:
    async with linked_to_raw() as (link, peer), trio.open_nursery() as nursery:

        async def answer_and_go() -> None:
            await peer.message()
            await peer.reply(1, body=b"last words")
            await peer.stream.aclose()

        nursery.start_soon(answer_and_go)
        assert (await link.call(ECHO)).body == b"last words"


async def test_closing_fails_the_calls_in_flight() -> None:
    async with served() as (link, _, recorder), trio.open_nursery() as nursery:

        async def caller() -> None:
            with pytest.raises(OutcomeUnknown, match="enough"):
                await link.call(HOLD)

        nursery.start_soon(caller)
        await recorder.until(lambda: recorder.held)
        await link.aclose("enough")
        await recorder.until(lambda: "disconnected" in recorder.methods())
        server_link, request_id, _ = recorder.held[0]
        server_link.reply(request_id, 200, b"dropped")
        assert not server_link.owes(request_id)


async def test_aclose_sends_what_waits() -> None:
    body = random.Random(5).randbytes(4 * 1024 * 1024)
    async with served() as (link, _, recorder):
        link.send(NOTE, body)
        assert link.outbox_bytes > 0
        await link.aclose()
        await recorder.until(lambda: "disconnected" in recorder.methods())
    assert ("on_push", "client", (NOTE, body)) in recorder.log


async def test_aclose_waits_no_longer_than_its_limit(patient_clock: MockClock) -> None:
    async with linked_to_raw(small_buffers=True) as (link, _):
        link.send(NOTE, bytes(8 * 1024 * 1024))
        start = trio.current_time()
        await link.aclose()
        assert trio.current_time() - start == pytest.approx(LinkLimits().close_seconds)


async def test_the_handler_hears_of_everything_in_order() -> None:
    recorder = Recorder()
    async with open_listener("127.0.0.1", 0, recorder, node_id="server") as listener:
        async with open_link(*listener.address, node_id="client") as link:
            await link.call(ECHO)
        await recorder.until(lambda: "disconnected" in recorder.methods())
    assert recorder.methods() == [
        "connected",
        "on_call",
        "batch_end",
        "batch_end",
        "disconnected",
    ]  # the end is a read too


async def call_once(listener: Listener) -> None:
    async with open_link(*listener.address, node_id="client") as link:
        await link.call(HOLD)


@pytest.mark.parametrize("where", ["connected", "batch_end"])
async def test_a_handler_that_fails_where_nobody_can_be_answered_ends_the_connection(where: str) -> None:
    class Failing(Recorder):
        def connected(self, link: Link) -> None:
            super().connected(link)
            if where == "connected" and link.node_id == "client":
                raise ValueError("boom")

        def batch_end(self, link: Link) -> None:
            super().batch_end(link)
            if where == "batch_end" and link.node_id == "client" and "on_call" in self.methods():
                raise ValueError("boom")

    recorder = Failing()
    async with open_listener("127.0.0.1", 0, recorder, node_id="server") as listener:
        with capture_logs() as lines:
            with pytest.raises((BadHandshake, ConnectionLost)):
                await call_once(listener)
            await recorder.until(lambda: recorder.ends)
        assert [line["where"] for line in lines if line["event"] == "link handler failed"] == [where]
        assert f"the handler failed in {where}" in str(recorder.ends[0])
        async with neighbor(listener) as works:
            await works()


async def test_a_handler_that_fails_at_the_end_disturbs_nobody() -> None:
    class Failing(Recorder):
        def disconnected(self, link: Link, error: ZapError) -> None:
            super().disconnected(link, error)
            raise ValueError("boom")

    recorder = Failing()
    async with open_listener("127.0.0.1", 0, recorder, node_id="server") as listener, neighbor(listener) as works:
        async with open_link(*listener.address, node_id="client"):
            pass
        await recorder.until(lambda: recorder.ends)
        await works()


async def test_a_handler_may_close_any_link_and_handlers_never_nest() -> None:
    class Closing(Recorder):
        depth = 0

        def on_call(self, link: Link, request_id: int, envelope: Envelope, message: bytes) -> None:
            self.depth += 1
            super().on_call(link, request_id, envelope, message)
            for other in self.links:
                other.close("everybody out")
            self.depth -= 1

        def disconnected(self, link: Link, error: ZapError) -> None:
            assert not self.depth
            super().disconnected(link, error)

    recorder = Closing()
    async with (
        open_listener("127.0.0.1", 0, recorder, node_id="server") as listener,
        open_link(*listener.address, node_id="one") as one,
        open_link(*listener.address, node_id="two") as two,
    ):
        with pytest.raises(OutcomeUnknown):
            await one.call(HOLD)
        await recorder.until(lambda: len(recorder.ends) == 2)
        assert {str(error) for error in recorder.ends} == {"everybody out"}
        with pytest.raises(ConnectionLost):
            await two.call(ECHO)


async def test_an_exception_of_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with served():
            raise KeyError("mine")
    with pytest.raises(KeyError, match="mine"):
        async with open_reconnecting_link("127.0.0.1", 1, node_id="client"):
            raise KeyError("mine")


# Liveness


async def test_a_silent_peer_is_probed_and_then_given_up(patient_clock: MockClock) -> None:
    recorder = Recorder()
    start = trio.current_time()
    async with linked_to_raw(capabilities=Capability.CBOR_BODIES, handler=recorder) as (link, peer):
        for _ in range(2):
            kind, _, envelope = await peer.message()
            assert (kind, envelope.opcode) == (KIND_REQUEST, Op.HEALTH)
        await recorder.until(lambda: recorder.ends)
        assert "nothing was heard from raw-server for 45 s" in str(recorder.ends[0])
        assert trio.current_time() - start == pytest.approx(60)
        assert not link.open


async def test_a_peer_that_answers_probes_stays(patient_clock: MockClock) -> None:
    """Both ends are ours and both probe; Health is answered 501 here, and that is an answer."""
    async with served() as (link, _, recorder):
        await trio.sleep(300)
        assert link.open
        assert recorder.methods().count("on_call") > 5


async def test_a_go_peer_is_not_probed(patient_clock: MockClock) -> None:
    async with linked_to_raw() as (link, peer):
        await trio.sleep(300)
        assert link.open
        link.send(NOTE, b"first thing that it hears")
        assert (await peer.message())[2].opcode == NOTE
