"""The connection machine: what bytes mean in every state, who waits for whom, and what a peer cannot do to us."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zapwire.connection import (
    HELLO_BYTES_MAX,
    TRANSITIONS,
    CallReceived,
    CallRefused,
    Connection,
    Ended,
    Event,
    HelloReceived,
    Input,
    PushReceived,
    ReplyReceived,
    ReplyUnreadable,
    Role,
    State,
)
from zapwire.envelope import decode_envelope, decode_respond, encode_respond
from zapwire.errors import BadHandshake, BadMessage, ConnectionLost, FrameTooLarge, LocalProtocolError
from zapwire.frame import FRAME_BYTES_MAX, KIND_REQUEST, KIND_RESPONSE, REQUEST_ID_MAX, call_frame, frame, split_call
from zapwire.handshake import Capability, Hello, encode_hello

HEALTH = 0x90
PUSH = 0xB1
CLIENT_HELLO = Hello("client-1", Capability.CBOR_BODIES | Capability.GOODBYE, {"sdk": "test"})
SERVER_HELLO = Hello("server-1", Capability.CBOR_BODIES | Capability.STREAMS)

Machine = Connection[str]


def machine(role: Role, **bounds: int) -> Machine:
    return Connection(role, CLIENT_HELLO if role is Role.CLIENT else SERVER_HELLO, **bounds)


def open_pair(**bounds: int) -> tuple[Machine, Machine]:
    """A client and a server that have shaken hands; the bounds are the server's."""
    client, server = machine(Role.CLIENT), machine(Role.SERVER, **bounds)
    server.receive_data(client.hello_frame())
    client.receive_data(server.hello_frame())
    return client, server


def refused(answer: bytes) -> tuple[int, int, str]:
    """(request id, status, error text) of a framed answer."""
    kind, request_id, message = split_call(answer[4:])
    assert kind == KIND_RESPONSE
    envelope = decode_envelope(message)
    return request_id, envelope.status, envelope.error


# The handshake


def test_each_side_hears_the_other() -> None:
    client, server = machine(Role.CLIENT), machine(Role.SERVER)
    assert server.receive_data(client.hello_frame()) == [HelloReceived(CLIENT_HELLO)]
    assert client.receive_data(server.hello_frame()) == [HelloReceived(SERVER_HELLO)]
    assert client.state is server.state is State.OPEN
    assert client.peer == SERVER_HELLO
    assert client.capabilities == server.capabilities == Capability.CBOR_BODIES


def test_no_capability_before_the_handshake() -> None:
    assert machine(Role.CLIENT).capabilities == Capability(0)


def test_a_go_peer_gets_a_go_hello() -> None:
    server = machine(Role.SERVER)
    server.receive_data(frame(encode_hello(Hello("go-worker"))))
    assert server.hello_frame() == frame(encode_hello(Hello("server-1")))
    assert server.capabilities == Capability(0)


def test_calls_may_follow_the_hello_in_the_same_bytes() -> None:
    client, _ = open_pair()
    _, call = client.call(HEALTH, b"{}", "first")
    fresh = machine(Role.SERVER)
    hello, received = fresh.receive_data(machine(Role.CLIENT).hello_frame() + call)
    assert isinstance(hello, HelloReceived)
    assert isinstance(received, CallReceived)
    assert received.envelope.opcode == HEALTH


BAD_HELLOS = {
    "garbage": frame(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    "empty": frame(b""),
    "magic": frame(b"ZAQ\0" + encode_hello(CLIENT_HELLO)[4:]),
    "version": frame(encode_hello(CLIENT_HELLO).replace(b"ZAP\0\x01", b"ZAP\0\x02", 1)),
    "no root": frame(b"ZAP\0" + struct.pack("<HHII", 1, 0, 0, 16)),
    "id of 0 bytes": frame(b"ZAP\0" + struct.pack("<HHII60sI", 1, 0, 16, 80, b"", 0)),
    "id of 61 bytes": frame(b"ZAP\0" + struct.pack("<HHII60sI", 1, 0, 16, 80, b"a" * 60, 61)),
    "control character": frame(b"ZAP\0" + struct.pack("<HHII60sI", 1, 0, 16, 80, b"a\nb", 3)),
    "a call": call_frame(1, KIND_REQUEST, encode_hello(CLIENT_HELLO)),
    "too long": frame(encode_hello(CLIENT_HELLO) + bytes(HELLO_BYTES_MAX)),
}


@pytest.mark.parametrize("data", BAD_HELLOS.values(), ids=BAD_HELLOS.keys())
def test_a_bad_hello_ends_the_connection(data: bytes) -> None:
    server = machine(Role.SERVER)
    [ended] = server.receive_data(data)
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, BadHandshake)
    assert server.state is State.CLOSED


@pytest.mark.parametrize("length", [HELLO_BYTES_MAX + 1, FRAME_BYTES_MAX + 1, 0xFFFF_FFFF])
def test_a_hello_that_is_too_long_is_refused_when_its_length_is_readable(length: int) -> None:
    server = machine(Role.SERVER)
    prefix = struct.pack("<I", length)
    assert [server.receive_data(bytes([byte])) for byte in prefix[:3]] == [[], [], []]
    [ended] = server.receive_data(prefix[3:])
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, BadHandshake)
    assert str(length) in str(ended.error)


def test_the_longest_hello_and_a_long_call_behind_it_are_taken() -> None:
    server = machine(Role.SERVER)
    hello = encode_hello(CLIENT_HELLO)
    _, call = open_pair()[0].call(HEALTH, bytes(2 * HELLO_BYTES_MAX), "me")
    events = server.receive_data(frame(hello + bytes(HELLO_BYTES_MAX - len(hello))) + call)
    assert [type(event) for event in events] == [HelloReceived, CallReceived]


@pytest.mark.parametrize("length", [1, 60])
def test_node_ids_up_to_60_bytes(length: int) -> None:
    server = machine(Role.SERVER)
    [hello] = server.receive_data(frame(encode_hello(Hello("i" * length))))
    assert hello == HelloReceived(Hello("i" * length))


@pytest.mark.parametrize("node_id", ["", "i" * 61, "a\nb", "ä"])
def test_our_own_bad_node_id_is_an_error_at_the_caller(node_id: str) -> None:
    with pytest.raises(LocalProtocolError, match="node id"):
        Connection(Role.CLIENT, Hello(node_id))


# Calls


def test_a_call_and_its_reply() -> None:
    client, server = open_pair()
    request_id, call = client.call(HEALTH, b"{}", "me")
    assert dict(client.in_flight) == {request_id: "me"}
    [received] = server.receive_data(call)
    assert isinstance(received, CallReceived)
    assert (received.request_id, received.envelope.opcode, received.envelope.body) == (1, HEALTH, b"{}")
    assert server.owes(1)
    [reply] = client.receive_data(server.reply(1, 200, b"ok"))
    assert isinstance(reply, ReplyReceived)
    assert (reply.request_id, reply.caller, reply.envelope.body) == (1, "me", b"ok")
    assert not client.in_flight
    assert not server.owes(1)
    assert server.calls_unanswered == 0


def test_a_call_looks_as_a_go_peer_sends_it() -> None:
    """The recorded Health call of go-server.md, section 1.5."""
    _, call = open_pair()[0].call(HEALTH, b"{}", "me")
    assert call.hex() == (
        "32000000" "0100000001000000" "5a41500001000090100000002a000000"
        "180000000200000000000000000000000000000000000000" "7b7d"
    )  # fmt: skip


def test_replies_come_in_any_order() -> None:
    client, server = open_pair()
    calls = [client.call(HEALTH, b"%d" % number, f"caller {number}") for number in range(50)]
    server.receive_data(b"".join(data for _, data in calls))
    ids = [request_id for request_id, _ in calls]
    random.Random(7).shuffle(ids)
    events = client.receive_data(b"".join(server.reply(request_id, 200, b"%d" % request_id) for request_id in ids))
    got = [(event.caller, event.envelope.body) for event in events if isinstance(event, ReplyReceived)]
    assert got == [(f"caller {request_id - 1}", b"%d" % request_id) for request_id in ids]


def test_a_binary_call_keeps_its_message() -> None:
    client, server = open_pair()
    message = encode_respond(0xA3, b"token", b"[1]")
    [received] = server.receive_data(client.call_raw(message, "me")[1])
    assert isinstance(received, CallReceived)
    assert decode_respond(received.message) == (b"token", b"[1]")
    [reply] = client.receive_data(server.reply_raw(received.request_id, message))
    assert isinstance(reply, ReplyReceived)
    assert reply.message == message


def test_request_ids_wrap_and_skip_those_in_use() -> None:
    client, _ = open_pair()
    first, _ = client.call(HEALTH, b"", "old")
    client._last_request_id = REQUEST_ID_MAX - 1
    ids = [client.call(HEALTH, b"", "new")[0] for _ in range(3)]
    assert first == 1
    assert ids == [REQUEST_ID_MAX, 0, 2]


def test_a_call_that_cannot_be_framed_leaves_no_trace() -> None:
    client, _ = open_pair()
    with pytest.raises(LocalProtocolError, match="at most"):
        client.call(HEALTH, bytes(FRAME_BYTES_MAX), "me")
    assert not client.in_flight
    assert client.call(HEALTH, b"", "me")[0] == 1


@pytest.mark.parametrize("opcode", [0, -1, 256])
def test_opcodes_outside_1_to_255_are_never_sent(opcode: int) -> None:
    client, _ = open_pair()
    with pytest.raises(LocalProtocolError):
        client.call(opcode, b"", "me")
    with pytest.raises(LocalProtocolError):
        client.push(opcode, b"")
    assert not client.in_flight


def test_our_calls_in_flight_are_bounded() -> None:
    client = Connection[str](Role.CLIENT, CLIENT_HELLO, calls_in_flight_max=2)
    client.receive_data(frame(encode_hello(SERVER_HELLO)))
    client.call(HEALTH, b"", "1")
    client.call(HEALTH, b"", "2")
    with pytest.raises(LocalProtocolError, match="2 calls are in flight"):
        client.call(HEALTH, b"", "3")


def test_an_abandoned_call_has_a_late_reply() -> None:
    client, server = open_pair()
    request_id, call = client.call(HEALTH, b"", "me")
    client.abandon(request_id)
    server.receive_data(call)
    reply = server.reply(request_id, 200, b"")
    assert client.receive_data(reply) == []
    assert client.late_replies == 1
    client.abandon(request_id)  # nobody there any more: harmless


def test_a_reply_nobody_asked_for_is_dropped() -> None:
    client, _ = open_pair()
    assert client.receive_data(call_frame(99, KIND_RESPONSE, encode_hello(SERVER_HELLO))) == []
    assert client.late_replies == 1


def test_taking_the_calls_in_flight_empties_the_table() -> None:
    client, _ = open_pair()
    client.call(HEALTH, b"", "a")
    client.call(HEALTH, b"", "b")
    assert client.take_in_flight() == {1: "a", 2: "b"}
    assert not client.in_flight


def test_only_an_open_call_can_be_answered() -> None:
    client, server = open_pair()
    server.receive_data(client.call(HEALTH, b"", "me")[1])
    server.reply(1, 200, b"")
    for request_id in (1, 2):
        with pytest.raises(LocalProtocolError, match=f"request id {request_id}"):
            server.reply(request_id, 200, b"")


def test_an_answer_that_is_too_long_can_be_replaced() -> None:
    client, server = open_pair()
    server.receive_data(client.call(HEALTH, b"", "me")[1])
    with pytest.raises(LocalProtocolError, match="at most"):
        server.reply(1, 200, bytes(FRAME_BYTES_MAX))
    [reply] = client.receive_data(server.reply(1, 500, b"null", "the answer is too long"))
    assert isinstance(reply, ReplyReceived)
    assert reply.envelope.status == 500


def test_one_way_messages() -> None:
    client, server = open_pair()
    [push] = client.receive_data(server.push(PUSH, b'{"a":1}'))
    assert isinstance(push, PushReceived)
    assert (push.envelope.opcode, push.envelope.body, push.envelope.status) == (PUSH, b'{"a":1}', 200)


# What a peer gets wrong


def test_an_unreadable_call_is_answered_with_the_reason() -> None:
    client, server = open_pair()
    [event] = server.receive_data(call_frame(5, KIND_REQUEST, b"not a message at all"))
    assert isinstance(event, CallRefused)
    request_id, status, text = refused(event.answer)
    assert (request_id, status) == (5, 400)
    assert "magic" in text
    assert not server.owes(5)
    assert server.state is State.OPEN
    assert [type(event) for event in server.receive_data(client.call(HEALTH, b"", "me")[1])] == [CallReceived]


@pytest.mark.parametrize("payload", [b"", b"x", b"garbage that is long enough", b"ZAP\0"])
def test_an_unreadable_one_way_message_is_counted_and_dropped(payload: bytes) -> None:
    _, server = open_pair()
    assert server.receive_data(frame(payload)) == []
    assert server.dropped_messages == 1
    assert server.state is State.OPEN


def test_an_unreadable_reply_reaches_its_caller() -> None:
    client, _ = open_pair()
    client.call(HEALTH, b"", "me")
    [event] = client.receive_data(call_frame(1, KIND_RESPONSE, b"rubbish"))
    assert isinstance(event, ReplyUnreadable)
    assert event.caller == "me"
    assert isinstance(event.error, BadMessage)
    assert not client.in_flight
    assert client.receive_data(call_frame(1, KIND_RESPONSE, b"rubbish")) == []
    assert client.late_replies == 1


def test_a_request_id_in_use_ends_the_connection_after_what_was_right() -> None:
    client, server = open_pair()
    _, call = client.call(HEALTH, b"", "me")
    received, ended = server.receive_data(call + call)
    assert isinstance(received, CallReceived)
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, BadMessage)
    assert "request id 1" in str(ended.error)
    [reply] = client.receive_data(server.reply(1, 200, b"still answered"))
    assert isinstance(reply, ReplyReceived)


def test_a_request_id_may_be_used_again_once_answered() -> None:
    client, server = open_pair()
    _, call = client.call(HEALTH, b"", "me")
    for _ in range(2):
        [received] = server.receive_data(call)
        assert isinstance(received, CallReceived)
        server.reply(1, 200, b"")


def test_a_frame_that_is_too_long_ends_the_connection_after_what_was_right() -> None:
    client, server = open_pair()
    data = client.call(HEALTH, b"", "me")[1] + struct.pack("<I", FRAME_BYTES_MAX + 1) + b"body"
    received, ended = server.receive_data(data)
    assert isinstance(received, CallReceived)
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, FrameTooLarge)
    assert str(FRAME_BYTES_MAX + 1) in str(ended.error)


def test_a_frame_bound_of_our_own_holds() -> None:
    _, server = open_pair(frame_bytes_max=1000)
    [ended] = server.receive_data(struct.pack("<I", 1001))
    assert isinstance(ended, Ended)


def test_calls_that_we_leave_unanswered_are_bounded() -> None:
    client, server = open_pair(unanswered_calls_max=2)
    events = server.receive_data(b"".join(client.call(HEALTH, b"", "me")[1] for _ in range(3)))
    assert [type(event) for event in events] == [CallReceived, CallReceived, CallRefused]
    assert isinstance(events[2], CallRefused)
    assert refused(events[2].answer)[:2] == (3, 429)
    server.reply(1, 200, b"")
    [event] = server.receive_data(client.call(HEALTH, b"", "me")[1])
    assert isinstance(event, CallReceived)


# The end


def test_the_end_of_the_stream() -> None:
    client, server = open_pair()
    [ended] = client.receive_eof()
    assert isinstance(ended, Ended)
    assert type(ended.error) is ConnectionLost
    server.receive_data(b"\x10\x00\x00\x00abc")
    [ended] = server.receive_eof()
    assert isinstance(ended, Ended)
    assert "7 bytes into a frame" in str(ended.error)


@pytest.mark.parametrize("data", [b"", b"\x50\x00\x00\x00ZAP"])
def test_the_end_before_the_hello_is_a_bad_handshake(data: bytes) -> None:
    server = machine(Role.SERVER)
    assert server.receive_data(data) == []
    [ended] = server.receive_eof()
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, BadHandshake)


# Every state and input


def fault(connection: Machine) -> None:
    connection.receive_data(struct.pack("<I", FRAME_BYTES_MAX + 1))


INPUTS: dict[Input, Callable[[Machine], object]] = {
    Input.HELLO: lambda connection: connection.receive_data(frame(encode_hello(CLIENT_HELLO))),
    Input.MESSAGE: lambda connection: connection.receive_data(
        call_frame(1, KIND_REQUEST, bytes.fromhex("5a415000010000901000000028000000") + bytes(24))
    ),
    Input.SEND: lambda connection: connection.push(PUSH, b""),
    Input.FAULT: fault,
    Input.EOF: lambda connection: connection.receive_eof(),
    Input.CLOSE: lambda connection: connection.close(),
}


def in_state(state: State) -> Machine:
    connection = machine(Role.SERVER)
    if state is not State.HANDSHAKE:
        connection.receive_data(frame(encode_hello(CLIENT_HELLO)))
    if state is State.ENDED:
        connection.receive_eof()
    if state is State.CLOSED:
        connection.close()
    assert connection.state is state
    return connection


def pairs() -> Iterator[tuple[State, Input]]:
    for state in State:
        for happened in Input:
            # To the machine a message in the handshake is a bad hello, and a hello afterwards is a message.
            if (state, happened) not in {(State.HANDSHAKE, Input.MESSAGE), (State.OPEN, Input.HELLO)}:
                yield state, happened


@pytest.mark.parametrize(("state", "happened"), list(pairs()))
def test_every_state_and_input(state: State, happened: Input) -> None:
    connection = in_state(state)
    if (state, happened) in TRANSITIONS:
        INPUTS[happened](connection)
        assert connection.state is TRANSITIONS[state, happened]
    else:
        with pytest.raises(LocalProtocolError, match="while the connection is in state"):
            INPUTS[happened](connection)
        assert connection.state is state


def test_nothing_leaves_closed() -> None:
    assert {after for (before, _), after in TRANSITIONS.items() if before is State.CLOSED} == {State.CLOSED}


@pytest.mark.parametrize("state", [State.HANDSHAKE, State.CLOSED])
def test_nothing_is_sent_unless_open(state: State) -> None:
    connection = in_state(state)
    for send in (
        lambda: connection.call(HEALTH, b"", "me"),
        lambda: connection.call_raw(b"", "me"),
        lambda: connection.push(PUSH, b""),
        lambda: connection.reply(1, 200, b""),
        lambda: connection.reply_raw(1, b""),
    ):
        with pytest.raises(LocalProtocolError, match="a message to send"):
            send()


# Torn streams


def session() -> bytes:
    """A client's whole stream: hello, calls, one-way messages, rubbish, and an oversized prefix at the end."""
    client, _ = open_pair()
    return b"".join(
        (
            machine(Role.CLIENT).hello_frame(),
            client.call(HEALTH, b"{}", "a")[1],
            client.push(PUSH, b"{}"),
            frame(b""),
            call_frame(70, KIND_REQUEST, b"rubbish"),
            frame(b"rubbish"),
            client.call(0x60, b'{"workflow_id":"w"}' * 40, "b")[1],
            struct.pack("<I", FRAME_BYTES_MAX + 1),
        )
    )


def events_of(pieces: list[bytes]) -> list[Event[str]]:
    server = machine(Role.SERVER)
    events: list[Event[str]] = []
    for piece in pieces:
        if server.state is not State.ENDED:
            events += server.receive_data(piece)
    return events


def shown(events: list[Event[str]]) -> list[str]:
    """Events as text, because errors compare by identity."""
    return [repr(event) for event in events]


WHOLE = events_of([session()])


def test_the_whole_session() -> None:
    kinds = [type(event) for event in WHOLE]
    assert kinds == [HelloReceived, CallReceived, PushReceived, CallRefused, CallReceived, Ended]


def test_byte_by_byte() -> None:
    assert shown(events_of([bytes([byte]) for byte in session()])) == shown(WHOLE)


def test_torn_once_anywhere() -> None:
    data = session()
    for position in range(len(data)):
        assert shown(events_of([data[:position], data[position:]])) == shown(WHOLE), position


@given(st.lists(st.integers(0, len(session())), max_size=12))
def test_torn_anywhere(cuts: list[int]) -> None:
    data = session()
    edges = [0, *sorted(cuts), len(data)]
    pieces = [data[start:stop] for start, stop in itertools.pairwise(edges)]
    assert shown(events_of(pieces)) == shown(WHOLE)


@given(st.lists(st.binary(max_size=80), max_size=20))
def test_random_bytes_never_raise(pieces: list[bytes]) -> None:
    _, server = open_pair()
    for piece in pieces:
        events = server.receive_data(piece)
        if any(isinstance(event, Ended) for event in events):
            assert server.state is State.ENDED
            return
    assert server.state is State.OPEN


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.binary(max_size=60)), max_size=30))
def test_random_frames_never_raise_and_no_call_is_left_in_silence(frames: list[tuple[int, int, bytes]]) -> None:
    _, server = open_pair()
    for request_id, kind, body in frames:
        events = server.receive_data(frame(struct.pack("<II", request_id, kind) + body))
        if server.state is State.ENDED:
            return
        if kind == KIND_REQUEST:
            assert [type(event) for event in events] in ([CallReceived], [CallRefused])
