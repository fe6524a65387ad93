"""Calls: correlation by request id, many in flight, and numbers that nobody serves."""

from __future__ import annotations

import time

from zapconform import opcodes as op
from zapconform import wire
from zapconform.case import SHOULD, Failed, case, check, equal
from zapconform.codec import little
from zapconform.peer import Peer, call_message
from zapconform.trial import Trial

RECORDED_HEALTH_CALL = bytes.fromhex(
    "3200000001000000010000005a41500001000090100000002a0000001800000002000000000000000000000000000000000000007b7d"
)
"""The first call of a recorded Go client, byte for byte."""


@case("call/health", "Health answers a JSON object with service `tasks`, status `ok` and the default namespace.")
def health(trial: Trial) -> None:
    answer = trial.peer().call(op.HEALTH, {}).ok()
    equal("service", expected="tasks", actual=answer.get("service"))
    equal("status", expected="ok", actual=answer.get("status"))
    check(bool(answer.get("namespace")), expected="a namespace", actual=answer)


@case("call/recorded-frame", "The bytes of a recorded Go client's first call are answered.")
def recorded_frame(trial: Trial) -> None:
    peer = trial.peer()
    peer.expect_reply_to(1, op.HEALTH)
    peer.connection.send_bytes(RECORDED_HEALTH_CALL)
    equal("status of the service", expected="ok", actual=peer.reply(1).ok().get("status"))


@case(
    "call/reply-layout",
    "A reply is the request id, kind 2 and a message whose root has Bytes at 0, u32 status at 8 and Bytes at 12.",
)
def reply_layout(trial: Trial) -> None:
    peer = trial.peer()
    peer.connection.send_frame(wire.call_payload(77, call_message(op.HEALTH, {})))
    payload = peer.connection.next_frame(time.monotonic() + trial.timeout)
    check(payload is not None, expected="an answer to Health", actual="nothing")
    assert payload is not None
    equal("request id and kind", expected=(little(77, 4) + little(2, 4)).hex(), actual=payload[:8].hex())
    envelope = wire.read_envelope(payload[8:])
    check(envelope.status in (0, 200), expected="u32 status 0 or 200 at 8", actual=envelope.status)
    equal("error text of a success", expected="", actual=envelope.error)
    check(envelope.opcode in (0, op.HEALTH), expected="flags 0 or the call's opcode", actual=hex(envelope.flags))


@case("call/request-id-echoed", "A reply carries the request id of its call, whatever that is: 0, 2^31, 2^32 - 1.")
def request_id_echoed(trial: Trial) -> None:
    peer = trial.peer()
    for request_id in (1, 0, 2, 255, 65536, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 0x50415A):
        peer.reply(peer.send_call(op.HEALTH, {}, request_id)).succeeded()
    check(not peer.unclaimed_replies(), expected="one answer each", actual=peer.unclaimed_replies())


@case("call/request-id-wraps", "Request ids wrap: after 0xFFFFFFFF comes a small one, on the same connection.")
def request_id_wraps(trial: Trial) -> None:
    peer = trial.peer()
    ids = [(0xFFFFFFF0 + step) % 2**32 for step in range(32)]
    for request_id in ids:
        peer.send_call(op.HEALTH, {}, request_id)
    for request_id in ids:
        peer.reply(request_id).succeeded()


@case("call/many-in-flight", "Many calls may be in flight on one connection; each is answered exactly once.")
def many_in_flight(trial: Trial) -> None:
    peer = trial.peer()
    ids = [peer.send_call(op.HEALTH, {}) for _ in range(500)]
    for request_id in ids:
        peer.reply(request_id).succeeded()
    peer.settle()
    check(not peer.unclaimed_replies(), expected="one answer each", actual=peer.unclaimed_replies())


@case("call/answers-match-their-calls", "Answers are matched by request id: calls of different kinds never swap them.")
def answers_match_their_calls(trial: Trial) -> None:
    peer = trial.peer()
    ids: dict[int, str | None] = {}
    for number in range(100):
        name = trial.name(f"ghost{number}")
        ids[peer.send_call(op.DESCRIBE_NAMESPACE, {"name": name, "namespace": name})] = None
        ids[peer.send_call(op.HEALTH, {})] = "tasks"
    for request_id, service in ids.items():
        reply = peer.reply(request_id)
        if service is None:
            reply.refused(404)
        else:
            equal("service", expected=service, actual=reply.ok().get("service"))


@case(
    "call/slow-call-blocks-no-other",
    "A call that takes long (a query whose worker is silent) does not hold up later calls of its connection.",
)
def slow_call_blocks_no_other(trial: Trial) -> None:
    client, worker = trial.peer("client"), trial.peer("worker")
    execution, _ = trial.held_workflow(worker, trial.name("queue"))
    query = client.send_call(
        op.QUERY, {"namespace": trial.namespace, **execution.key, "query_type": "slow", "args": []}
    )
    worker.push(op.DELIVER_QUERY)
    client.settle()
    check(not client.has_reply(query), expected="the query to wait for its worker", actual="it was answered")


@case(
    "call/duplicate-id-in-flight",
    "Two calls in flight with one request id are both answered, or their connection ends: never silence.",
    hostile=True,
)
def duplicate_id_in_flight(trial: Trial) -> None:
    peer = trial.peer()
    peer.expect_reply_to(9, op.HEALTH)
    peer.connection.send_bytes(wire.call_frame(9, call_message(op.HEALTH, {})) * 2)
    try:
        peer.reply(9)
        peer.reply(9)
        peer.settle()
    except Failed:
        if not peer.connection.ended:
            raise


@case(
    "call/unserved-opcodes-answered-501",
    "A call with a number of v1 that nobody serves (0x6C, 0x6D, 0x52 to 0x5F, others) is answered 501, never silence.",
)
def unserved_opcodes_answered_501(trial: Trial) -> None:
    peer = trial.peer()
    ids = [peer.send_call(opcode, {}) for opcode in sorted(op.NOT_SERVED)]
    for request_id in ids:
        peer.reply(request_id).refused(501)


@case("call/opcode-0-answered-501", "A call with flags 0 has no opcode that anyone serves: it is answered 501.")
def opcode_0_answered_501(trial: Trial) -> None:
    trial.peer().call(0, {}).refused(501)


@case("call/free-opcodes-answered", "A call with a number left free for additions is answered, with 501 or otherwise.")
def free_opcodes_answered(trial: Trial) -> None:
    peer = trial.peer()
    # 0x91 and its kin may wait for something, and 0x92 and 0x97 are one-way where they exist.
    added = {op.AWAIT_EXECUTION, op.ABANDON_CALL, op.GRANT_CREDITS}
    ids = [peer.send_call(opcode, {}) for opcode in sorted(op.FREE - added)]
    for request_id in ids:
        peer.reply(request_id)


@case(
    "call/push-opcodes-answered-501",
    "The numbers of pushes are not calls: as calls to the server they are answered 501.",
    severity=SHOULD,
)
def push_opcodes_answered_501(trial: Trial) -> None:
    peer = trial.peer()
    for opcode in sorted(op.PUSHES):
        peer.call(opcode, {}).refused(501)


@case(
    "call/unserved-opcode-body-not-read",
    "An unserved number is answered 501 whatever its body is, since nobody reads it.",
    severity=SHOULD,
)
def unserved_opcode_body_not_read(trial: Trial) -> None:
    peer = trial.peer()
    for body in (b"", b"not json", b"\xff" * 100, b"[" * 5000):
        peer.call(0x6D, body).refused(501)


@case("call/501-names-the-opcode", "The error text of a 501 names the number.", severity=SHOULD)
def unserved_error_names_the_opcode(trial: Trial) -> None:
    reply = trial.peer().call(0x6C, {}).refused(501)
    check(
        "6c" in reply.envelope.error.lower() or "108" in reply.envelope.error,
        expected="an error text with 0x6C in it",
        actual=reply.envelope.error,
    )


@case("call/unknown-one-way-dropped", "A one-way message with an unknown number is dropped; the connection goes on.")
def unknown_one_way_dropped(trial: Trial) -> None:
    peer = trial.peer()
    for opcode in (0x01, 0x52, 0x6D, 0xEE, 0xFF):
        peer.connection.send_frame(call_message(opcode, {}))
    peer.settle()
    check(not peer.pushes, expected="no answer to one-way messages", actual=peer.pushes)


@case(
    "call/opcode-0-one-way-dropped",
    "A one-way message with flags 0 looks like a call; it changes nothing.",
    hostile=True,
)
def opcode_0_one_way_dropped(trial: Trial) -> None:
    peer = trial.peer()
    for _ in range(3):
        peer.connection.send_frame(call_message(0, {}))
    goes_on_or_ends(trial, peer)


@case("call/one-way-health-harmless", "A call's number sent one-way asks for no answer; the next call is answered.")
def one_way_health_harmless(trial: Trial) -> None:
    peer = trial.peer()
    peer.connection.send_frame(call_message(op.HEALTH, {}))
    peer.settle()


@case("call/response-to-nothing-dropped", "A response whose request id belongs to no call is dropped.")
def response_to_nothing_dropped(trial: Trial) -> None:
    peer = trial.peer()
    answer = wire.response(0, 200, b"{}")
    for request_id in (0, 1, 12345, 0xFFFFFFFF):
        peer.connection.send_frame(wire.response_payload(request_id, answer))
    peer.settle()


@case(
    "call/unknown-kind-dropped",
    "A frame whose second word is neither 1 nor 2 is a plain message, here a bad one: dropped.",
    hostile=True,
)
def unknown_kind_dropped(trial: Trial) -> None:
    peer = trial.peer()
    for kind in (0, 3, 4, 255, 0xFFFFFFFF):
        peer.connection.send_frame(little(5, 4) + little(kind, 4) + call_message(op.HEALTH, {}))
    goes_on_or_ends(trial, peer)


@case(
    "call/short-frames-dropped",
    "Frames of 1 to 15 bytes are no message; they are dropped and nothing else happens.",
    hostile=True,
)
def short_frames_dropped(trial: Trial) -> None:
    peer = trial.peer()
    for length in range(1, 16):
        peer.connection.send_frame(b"\x5a" * length)
    goes_on_or_ends(trial, peer)


def goes_on_or_ends(trial: Trial, peer: Peer) -> None:
    """The connection is still served, which is preferred, or it has ended."""
    try:
        peer.settle()
    except Failed:
        if not peer.connection.ended:
            raise
        trial.note("the connection ended; dropping the message would have been enough")


@case(
    "call/client-that-vanishes", "A client that ends its connection with calls in flight disturbs nobody.", hostile=True
)
def client_that_vanishes(trial: Trial) -> None:
    for reset in (False, True):
        peer = trial.peer("vanishing")
        for _ in range(50):
            peer.send_call(op.LIST_NAMESPACES, {})
        if reset:
            peer.connection.reset()
        else:
            peer.close()


@case("call/two-clients-do-not-mix", "Calls of two connections with the same request ids get their own answers.")
def two_clients_do_not_mix(trial: Trial) -> None:
    first, second = trial.peer("first"), trial.peer("second")
    started = trial.start(first, trial.name("queue"))
    describe = {"namespace": trial.namespace, "workflow_id": started.workflow_id}
    ghost = {"namespace": trial.namespace, "workflow_id": trial.name("ghost")}
    for request_id in range(1000, 1050):
        first.send_call(op.DESCRIBE, describe, request_id)
        second.send_call(op.DESCRIBE, ghost, request_id)
    for request_id in range(1000, 1050):
        second.reply(request_id).refused(404)
        first.reply(request_id).ok()


@case(
    "call/cbor-body",
    "Peers that have both announced CBOR bodies may send them: flag bit 3 says so, and the answer can be read.",
    extension=True,
)
def cbor_body(trial: Trial) -> None:
    peer = trial.raw()
    name = trial.name("peer").encode()
    hello = peer.shake_hands(wire.extended_hello(name, capabilities=wire.CAPABILITY_CBOR, details=b"\xa0"))
    check(bool(hello.capabilities & wire.CAPABILITY_CBOR), expected="the CBOR bit in answer", actual=hello.capabilities)
    body = cbor_map({"namespace": trial.namespace, "workflow_id": trial.name("none")})
    message = wire.request(op.DESCRIBE, body, low_flags=wire.FLAG_CBOR)
    # Whoever took this for JSON would answer 400.
    peer.reply(peer.send_message(message, op.DESCRIBE)).refused(404)
    peer.settle()


@case("call/json-peer-gets-json", "A peer that has not announced CBOR bodies is never sent any.")
def json_peer_gets_json(trial: Trial) -> None:
    worker = trial.peer()
    _, task = trial.held_workflow(worker, trial.name("queue"))
    reply = worker.call(op.HEALTH, {}).succeeded()
    for flags in (task.envelope.flags, reply.envelope.flags):
        equal("flag bit 3", expected=0, actual=flags & wire.FLAG_CBOR)


def cbor_map(texts: dict[str, str]) -> bytes:
    """A CBOR map of short texts."""
    encoded = bytes([0xA0 | len(texts)])
    for item in (part for pair in texts.items() for part in pair):
        encoded += bytes([0x78, len(item.encode())]) + item.encode()
    return encoded
