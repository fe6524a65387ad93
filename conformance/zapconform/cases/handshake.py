"""The handshake: one message each, who speaks first, and which ids are accepted."""

from __future__ import annotations

import time

from zapconform import opcodes as op
from zapconform import wire
from zapconform.case import SHOULD, Failed, case, check, equal
from zapconform.codec import Field, Writer, little, message
from zapconform.peer import Peer, call_message
from zapconform.trial import Trial, about

HANDSHAKE_SECONDS = 10.0
HANDSHAKE_SLACK_SECONDS = 2.5
SILENCE_SECONDS = 0.3
REFUSAL_SECONDS = 2.0


@case("handshake/server-speaks-second", "The connector sends its handshake first; the acceptor says nothing before.")
def server_speaks_second(trial: Trial) -> None:
    peer = trial.raw()
    early = peer.connection.next_frame(time.monotonic() + SILENCE_SECONDS)
    check(early is None, expected="silence until our handshake", actual=early)
    peer.shake_hands(wire.hello(trial.name("peer").encode()))
    peer.settle()


@case("handshake/reply-layout", "The answer is one message: 64 bytes of object with an id of 1 to 60 printable bytes.")
def reply_layout(trial: Trial) -> None:
    peer = trial.raw()
    hello = peer.shake_hands(wire.hello(trial.name("peer").encode()))
    check(
        1 <= hello.length <= wire.NODE_ID_BYTES_MAX,
        expected="an id of 1 to 60 bytes in the server's handshake",
        actual=f"length {hello.length}",
    )
    check(
        all(0x20 < byte < 0x7F for byte in hello.node_id),
        expected="printable ASCII as the server's id",
        actual=hello.node_id,
    )
    equal("flags of the server's handshake", expected=0, actual=hello.flags)
    peer.settle()
    check(not peer.stray, expected="one handshake message", actual=f"{len(peer.stray)} more plain messages")


@case(
    "handshake/reply-is-80-bytes",
    "A peer of v1 gets the v1 handshake: a message of exactly 80 bytes, zero padded after the id.",
    severity=SHOULD,
)
def reply_is_80_bytes(trial: Trial) -> None:
    peer = trial.raw()
    peer.connection.send_frame(wire.hello(trial.name("peer").encode()))
    payload = peer.connection.next_frame(time.monotonic() + trial.timeout)
    check(payload is not None, expected="the server's handshake", actual="nothing")
    assert payload is not None
    equal("bytes of the handshake", expected=wire.HELLO_MESSAGE_BYTES, actual=len(payload))
    hello = wire.read_hello(payload)
    equal("the handshake", expected=wire.hello(hello.node_id).hex(), actual=payload.hex())


@case("handshake/id-of-1-byte", "An id of one byte is accepted.")
def id_of_1_byte(trial: Trial) -> None:
    accepted(trial, trial.random.choice("abcdefghijklmnopqrstuvwxyz").encode())


@case("handshake/id-of-60-bytes", "An id of 60 bytes, the longest, is accepted.")
def id_of_60_bytes(trial: Trial) -> None:
    accepted(trial, trial.name("peer").encode().ljust(wire.NODE_ID_BYTES_MAX, b"x"))


def accepted(trial: Trial, node_id: bytes) -> None:
    peer = trial.raw()
    peer.shake_hands(wire.hello(node_id))
    peer.settle()


@case("handshake/id-of-61-bytes-refused", "An id over 60 bytes is refused: the connection ends.", hostile=True)
def id_of_61_bytes_refused(trial: Trial) -> None:
    refused(trial, wire.hello(trial.name("peer").encode().ljust(61, b"x")))


@case("handshake/id-empty-refused", "An empty id is refused: the connection ends.", hostile=True)
def id_empty_refused(trial: Trial) -> None:
    refused(trial, wire.hello(b""))


@case("handshake/id-length-huge-refused", "An id length of 0xFFFFFFFF is refused.", hostile=True)
def id_length_huge_refused(trial: Trial) -> None:
    refused(trial, wire.hello(b"peer", length=0xFFFFFFFF))


@case(
    "handshake/id-control-characters-refused",
    "An id with control characters or bytes outside ASCII is refused.",
    severity=SHOULD,
    hostile=True,
)
def id_control_characters_refused(trial: Trial) -> None:
    for bad in (b"a\nb", b"a\x00b", b"\x1b[31m", b"\x7f", "µ".encode(), b"\xff\xfe"):
        refused(trial, wire.hello(bad))


@case(
    "handshake/short-object-refused", "A message without a handshake's 64 bytes has no id and is refused.", hostile=True
)
def short_object_refused(trial: Trial) -> None:
    refused(trial, message(8, [Field(0, "u32", 5)]))
    refused(trial, Writer().finish())


@case("handshake/damaged-refused", "A handshake with another magic, version or size is refused.", hostile=True)
def damaged_refused(trial: Trial) -> None:
    sound = wire.hello(trial.name("peer").encode())
    refused(trial, b"ZIP\x00" + sound[4:])
    refused(trial, sound[:4] + little(2, 2) + sound[6:])
    refused(trial, sound[:12] + little(1000, 4) + sound[16:])
    refused(trial, sound[:40])


def refused(trial: Trial, hello: bytes) -> None:
    """The connection ends, and nothing on it is served."""
    peer = trial.raw("refused")
    peer.connection.send_frame(hello)
    peer.expect_ended("the connection to end after this handshake", REFUSAL_SECONDS)
    check(peer.connection.next_frame(0) is None, expected="no handshake in answer", actual="one was sent")


@case("handshake/garbage-first", "A client of another protocol (HTTP, TLS, SSH) is turned away.", hostile=True)
def garbage_first(trial: Trial) -> None:
    openings = (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes.fromhex("160301020001") + bytes(60),
        b"SSH-2.0-OpenSSH_9.6\r\n",
        trial.random.randbytes(3) + b"\xff" + trial.random.randbytes(100),
    )
    for opening in openings:
        peer = trial.raw("garbage")
        peer.connection.send_bytes(opening)
        peer.expect_ended("the connection to end after this opening", REFUSAL_SECONDS)


@case(
    "handshake/call-before-it-not-served",
    "A call in place of the handshake is not executed, and the connection ends.",
    hostile=True,
)
def call_before_it_not_served(trial: Trial) -> None:
    workflow_id = trial.name("early")
    body = {"namespace": trial.namespace, "workflow_id": workflow_id, "workflow_type": "Early"}
    trial.terminate_later({"workflow_id": workflow_id})
    peer = trial.raw()
    peer.connection.send_frame(wire.call_payload(1, call_message(op.START, body)))
    peer.expect_ended("the connection to end after a call without a handshake", REFUSAL_SECONDS)
    observer = trial.is_served("observer")
    observer.call(op.DESCRIBE, {"namespace": trial.namespace, "workflow_id": workflow_id}).refused(404)


@case(
    "handshake/deadline",
    "A connection that says nothing is closed when the handshake's deadline of 10 s has passed.",
    hostile=True,
    seconds=HANDSHAKE_SECONDS,
)
def deadline(trial: Trial) -> None:
    peer = trial.raw("silent")
    peer.expect_ended("the silent connection to end", HANDSHAKE_SECONDS + HANDSHAKE_SLACK_SECONDS)


@case(
    "handshake/deadline-not-extended-by-dribbling",
    "A handshake that arrives a byte a second does not extend its deadline of 10 s.",
    hostile=True,
    seconds=HANDSHAKE_SECONDS,
)
def deadline_not_extended_by_dribbling(trial: Trial) -> None:
    peer = trial.raw("dribbling")
    data = wire.frame(wire.hello(trial.name("peer").encode()))
    for place in range(int(HANDSHAKE_SECONDS + HANDSHAKE_SLACK_SECONDS)):
        peer.connection.send_bytes(data[place : place + 1])
        if peer.connection.wait_ended(1.0):
            return
    raise Failed(expected="the connection to end after 10 s", actual="it still waits for the rest of the handshake")


@case("handshake/split-at-every-byte", "The handshake may arrive in two segments, cut at any byte.")
def split_at_every_byte(trial: Trial) -> None:
    for place in range(1, 84, 2):
        peer = trial.raw(f"cut at {place}")
        data = wire.frame(wire.hello(trial.name("peer").encode()))
        peer.connection.send_bytes(data[:place], quiet=True)
        time.sleep(0.002)
        peer.connection.send_bytes(data[place:], quiet=True)
        peer.expect_hello()
        peer.close()


@case("handshake/half-then-close", "A peer that closes in the middle of its handshake disturbs nobody.", hostile=True)
def half_then_close(trial: Trial) -> None:
    for place in (1, 4, 20, 83):
        peer = trial.raw("half")
        peer.connection.send_bytes(wire.frame(wire.hello(b"half"))[:place])
        peer.close()


@case(
    "handshake/calls-in-the-same-write", "Calls may follow the handshake in the same write; they are answered after it."
)
def calls_in_the_same_write(trial: Trial) -> None:
    peer = trial.raw()
    ids = [peer.next_id() for _ in range(10)]
    for request_id in ids:
        peer.expect_reply_to(request_id, op.HEALTH)
    calls = b"".join(wire.call_frame(request_id, call_message(op.HEALTH, {})) for request_id in ids)
    peer.connection.send_bytes(wire.frame(wire.hello(trial.name("peer").encode())) + calls)
    peer.expect_hello()
    for request_id in ids:
        peer.reply(request_id).succeeded()


@case("handshake/bytes-after-the-id-ignored", "What stands in the 60 bytes after the id is padding.", severity=SHOULD)
def bytes_after_the_id_ignored(trial: Trial) -> None:
    node_id = trial.name("peer").encode()
    accepted_hello = wire.hello(node_id.ljust(60, b"\xee"), length=len(node_id))
    peer = trial.raw()
    peer.shake_hands(accepted_hello)
    peer.settle()


@case("handshake/newest-wins", "A second connection with a known id is served, and the older one is closed.")
def newest_wins(trial: Trial) -> None:
    node_id = trial.name("twin")
    older = trial.peer("older", node_id)
    older.settle()
    newer = trial.peer("newer", node_id)
    newer.settle()
    older.expect_ended("the older connection of the same id to end")


@case(
    "handshake/newest-wins-releases-work",
    "When a newer connection replaces an older one, what the older held goes to another worker.",
)
def newest_wins_releases_work(trial: Trial) -> None:
    node_id, queue = trial.name("twin"), trial.name("queue")
    older = trial.peer("older", node_id)
    execution, first = trial.held_workflow(older, queue)
    other = trial.peer("other")
    other.subscribe_workflows(trial.namespace, queue)
    trial.peer("newer", node_id).settle()
    second = other.push(op.DELIVER_WORKFLOW, about(execution))
    check(second.token != first.token, expected="a new token with the new delivery", actual=second.token)


@case("handshake/same-id-again-after-close", "An id is free again at once when its connection has closed.")
def same_id_again_after_close(trial: Trial) -> None:
    node_id = trial.name("again")
    for _ in range(5):
        peer = trial.peer("again", node_id)
        peer.settle()
        peer.close()


@case("handshake/second-one-harmless", "A second handshake on an open connection disturbs nobody.", hostile=True)
def second_one_harmless(trial: Trial) -> None:
    peer = trial.peer()
    peer.connection.send_frame(wire.hello(trial.name("peer").encode()))
    try:
        peer.settle()
    except Failed:
        if not peer.connection.ended:
            raise
        trial.note("the connection ended; it need not have")


@case("handshake/many-peers", "A hundred peers with ids of their own are served side by side.")
def many_peers(trial: Trial) -> None:
    peers: list[Peer] = [trial.peer() for _ in range(100)]
    waiting = [(peer, peer.send_call(op.HEALTH, {})) for peer in peers]
    for peer, request_id in waiting:
        peer.reply(request_id).succeeded()


@case(
    "handshake/longer-object-accepted",
    "A handshake object may be longer than 64 bytes: unknown capability bits and keys are ignored.",
)
def longer_object_accepted(trial: Trial) -> None:
    unknown_key = b"\xa1\x67unknown\xf5"  # CBOR {"unknown": true}
    for capabilities, details in ((0, b""), (0xFFFFFFC0, unknown_key)):
        peer = trial.raw()
        hello = wire.extended_hello(trial.name("peer").encode(), capabilities=capabilities, details=details)
        peer.shake_hands(hello)
        peer.settle()


@case(
    "handshake/extension-announced",
    "A server with additions announces them to a peer that does: capability bits at 64, a CBOR map at 72.",
    extension=True,
)
def extension_announced(trial: Trial) -> None:
    peer = trial.raw()
    name = trial.name("peer").encode()
    answer = peer.shake_hands(wire.extended_hello(name, capabilities=wire.CAPABILITY_BITS_KNOWN, details=b"\xa0"))
    check(answer.capabilities != 0, expected="capability bits at 64", actual=answer.capabilities)
    check(
        bool(answer.details) and answer.details[0] >> 5 == 5,  # major type 5 is a map
        expected="a CBOR map at 72",
        actual=answer.details.hex() or "nothing",
    )
    peer.settle()


@case(
    "handshake/extension-damaged-harmless",
    "A longer handshake whose details are not CBOR, or lie outside, disturbs nobody.",
    hostile=True,
)
def extension_damaged_harmless(trial: Trial) -> None:
    for details in (b"\xff\xff", b"\x9f" * 1000, b"\xbb" + b"\xff" * 8):
        peer = trial.raw()
        name = trial.name("peer").encode()
        peer.connection.send_frame(wire.extended_hello(name, capabilities=1, details=details))
        peer.connection.wait_ended(0.1)
