"""Framing: a u32 length and so many bytes, however TCP cuts them and whatever they claim."""

from __future__ import annotations

import time
from itertools import pairwise

from zapconform import opcodes as op
from zapconform import wire
from zapconform.case import SHOULD, case, check
from zapconform.codec import little
from zapconform.peer import Peer, call_message
from zapconform.trial import Trial

REFUSAL_SECONDS = 2.0
"""A refusal needs no more than the prefix, so it does not take long."""

SEGMENT_SECONDS = 0.002
"""Between two writes, so that they leave as two segments."""

HEALTH_CALL = call_message(op.HEALTH, {})


def health_frame(request_id: int) -> bytes:
    return wire.call_frame(request_id, HEALTH_CALL)


def expect_health(peer: Peer, *request_ids: int) -> None:
    for request_id in request_ids:
        peer.reply(request_id).succeeded()


def call_cut_at(peer: Peer, *places: int, pause: float = SEGMENT_SECONDS) -> None:
    """A Health call whose frame leaves in segments, cut at these places, and its answer."""
    request_id = peer.next_id()
    peer.expect_reply_to(request_id, op.HEALTH)
    for index, piece in enumerate(cut(health_frame(request_id), *places)):
        if index:
            time.sleep(pause)
        peer.connection.send_bytes(piece, quiet=len(places) > 8)
    expect_health(peer, request_id)


def cut(data: bytes, *places: int) -> list[bytes]:
    edges = [0, *places, len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@case("frame/whole", "A frame is a little-endian u32 length and that many bytes; a call in one write is answered.")
def whole(trial: Trial) -> None:
    call_cut_at(trial.peer())


@case("frame/split-at-every-byte", "TCP may cut a frame anywhere: a call in two segments is answered, cut at any byte.")
def split_at_every_byte(trial: Trial) -> None:
    peer = trial.peer()
    for place in range(1, len(health_frame(1))):
        call_cut_at(peer, place)


@case("frame/dribbled", "A frame that arrives a byte at a time is read like any other.")
def dribbled(trial: Trial) -> None:
    call_cut_at(trial.peer(), *range(1, len(health_frame(1))), pause=0.001)


@case(
    "frame/pause-after-prefix",
    "A pause between a frame's prefix and its body loses nothing: no read deadline desynchronizes the stream.",
    seconds=1.5,
)
def pause_after_prefix(trial: Trial) -> None:
    call_cut_at(trial.peer(), 4, pause=1.5)


@case("frame/pause-in-prefix", "A pause inside a frame's prefix loses nothing.", seconds=1.5)
def pause_in_prefix(trial: Trial) -> None:
    call_cut_at(trial.peer(), 2, pause=1.5)


@case("frame/pause-in-body", "A pause inside a frame's body loses nothing.", seconds=1.5)
def pause_in_body(trial: Trial) -> None:
    call_cut_at(trial.peer(), 30, pause=1.5)


@case("frame/coalesced", "One read may bring many frames: every one of 200 calls in a single write is answered.")
def coalesced(trial: Trial) -> None:
    peer = trial.peer()
    ids = [peer.next_id() for _ in range(200)]
    for request_id in ids:
        peer.expect_reply_to(request_id, op.HEALTH)
    peer.connection.send_bytes(b"".join(map(health_frame, ids)))
    expect_health(peer, *ids)


@case("frame/odd-pieces", "Frames and segments need not line up: 200 calls in pieces of 997 bytes are all answered.")
def odd_pieces(trial: Trial) -> None:
    peer = trial.peer()
    ids = [peer.next_id() for _ in range(200)]
    for request_id in ids:
        peer.expect_reply_to(request_id, op.HEALTH)
    data = b"".join(map(health_frame, ids))
    for piece in cut(data, *range(997, len(data), 997)):
        peer.connection.send_bytes(piece, quiet=True)
        time.sleep(SEGMENT_SECONDS)
    expect_health(peer, *ids)


@case("frame/interleaved-connections", "Half a frame on one connection never mixes with half a frame on another.")
def interleaved_connections(trial: Trial) -> None:
    first, second = trial.peer("first"), trial.peer("second")
    for peer, request_id in ((first, 11), (second, 22)):
        peer.expect_reply_to(request_id, op.HEALTH)
        peer.connection.send_bytes(health_frame(request_id)[:25])
    time.sleep(SEGMENT_SECONDS)
    for peer, request_id in ((second, 22), (first, 11)):
        peer.connection.send_bytes(health_frame(request_id)[25:])
    expect_health(first, 11)
    expect_health(second, 22)
    check(not first.unclaimed_replies(), expected="one answer each", actual=first.unclaimed_replies())


@case("frame/zero-length-ignored", "A frame of length 0 is legal and ignored; the frames around it are served.")
def zero_length_ignored(trial: Trial) -> None:
    peer = trial.peer()
    for request_id in (1, 2):
        peer.expect_reply_to(request_id, op.HEALTH)
    empty = wire.frame(b"")
    peer.connection.send_bytes(empty + health_frame(1) + empty * 3 + health_frame(2) + empty)
    expect_health(peer, 1, 2)


@case("frame/maximum-accepted", "A frame of exactly 10,485,760 bytes is read; its call is answered.")
def maximum_accepted(trial: Trial) -> None:
    peer = trial.peer()
    around = len(wire.call_payload(1, call_message(op.HEALTH, {"pad": ""})))
    message = call_message(op.HEALTH, {"pad": "x" * (wire.FRAME_BYTES_MAX - around)})
    check(len(message) + 8 == wire.FRAME_BYTES_MAX, expected="a frame at the limit", actual=len(message) + 8)
    peer.reply(peer.send_message(message, op.HEALTH))
    peer.settle()


@case(
    "frame/one-over-refused",
    "A prefix of 10,485,761 is refused as soon as it is readable: the connection ends without any of the body.",
    hostile=True,
)
def one_over_refused(trial: Trial) -> None:
    refuses_prefix(trial, wire.FRAME_BYTES_MAX + 1)


@case("frame/sign-bit-prefix-refused", "A length is unsigned: 0x80000000 is too long, not negative.", hostile=True)
def sign_bit_prefix_refused(trial: Trial) -> None:
    refuses_prefix(trial, 0x80000000)


@case("frame/all-ones-prefix-refused", "A prefix of 0xFFFFFFFF is refused at once.", hostile=True)
def all_ones_prefix_refused(trial: Trial) -> None:
    refuses_prefix(trial, 0xFFFFFFFF)


def refuses_prefix(trial: Trial, length: int) -> None:
    peer = trial.peer()
    peer.settle()
    peer.connection.send_bytes(little(length, 4))
    peer.expect_ended(f"the connection to end after a length prefix of {length}", REFUSAL_SECONDS)


@case(
    "frame/oversized-after-good-calls",
    "Calls that came before an oversized prefix, in the same write, are answered.",
    severity=SHOULD,
    hostile=True,
)
def oversized_after_good_calls(trial: Trial) -> None:
    peer = trial.peer()
    for request_id in (1, 2, 3):
        peer.expect_reply_to(request_id, op.HEALTH)
    peer.connection.send_bytes(b"".join(map(health_frame, (1, 2, 3))) + little(0xFFFFFFFF, 4))
    expect_health(peer, 1, 2, 3)


@case("frame/prefix-then-close", "A peer that closes after a length prefix disturbs nobody.", hostile=True)
def prefix_then_close(trial: Trial) -> None:
    peer = trial.peer()
    peer.connection.send_bytes(little(100, 4))
    peer.close()


@case("frame/torn-call-not-executed", "A call whose frame is never completed is not executed.", hostile=True)
def torn_call_not_executed(trial: Trial) -> None:
    workflow_id = trial.name("torn")
    body = {
        "namespace": trial.namespace,
        "workflow_id": workflow_id,
        "workflow_type": "Torn",
        "task_queue": trial.name("queue"),
    }
    trial.terminate_later({"workflow_id": workflow_id})
    peer = trial.peer()
    peer.connection.send_bytes(wire.call_frame(1, call_message(op.START, body))[:-1])
    peer.close()
    observer = trial.is_served("observer")
    observer.call(op.DESCRIBE, {"namespace": trial.namespace, "workflow_id": workflow_id}).refused(404)


@case("frame/reset-inside-frame", "A TCP reset in the middle of a frame disturbs nobody.", hostile=True)
def reset_inside_frame(trial: Trial) -> None:
    peer = trial.peer()
    peer.connection.send_bytes(health_frame(1)[:30])
    peer.connection.reset()


@case("frame/random-garbage", "Random bytes in place of frames disturb nobody, whatever they are.", hostile=True)
def random_garbage(trial: Trial) -> None:
    for _ in range(20):
        peer = trial.peer("garbage")
        peer.connection.send_bytes(trial.random.randbytes(trial.random.randrange(1, 4096)))
        peer.close()


@case("frame/random-payloads", "Well-framed random payloads disturb nobody.", hostile=True)
def random_payloads(trial: Trial) -> None:
    peer = trial.peer("garbage")
    for _ in range(200):
        if not peer.connection.send_frame(trial.random.randbytes(trial.random.randrange(1, 200))):
            peer = trial.peer("garbage")
    trial.is_served("meanwhile")


@case("frame/damaged-calls", "Calls with bytes flipped at random disturb nobody.", hostile=True)
def damaged_calls(trial: Trial) -> None:
    body = {"namespace": trial.namespace, "workflow_id": trial.name("none"), "run_id": ""}
    whole_frame = wire.call_frame(1, call_message(op.DESCRIBE, body))
    for _ in range(60):
        damaged = bytearray(whole_frame)
        for _ in range(trial.random.randrange(1, 6)):
            damaged[trial.random.randrange(4, len(damaged))] = trial.random.randrange(256)
        peer = trial.peer("damaged")
        peer.connection.send_bytes(bytes(damaged))
        peer.close()


@case(
    "frame/announced-and-never-sent",
    "Length prefixes of 10 MiB on 32 connections with nothing behind them cost the server next to nothing.",
    hostile=True,
)
def announced_and_never_sent(trial: Trial) -> None:
    for _ in range(32):
        peer = trial.peer("announcer")
        peer.connection.send_bytes(little(wire.FRAME_BYTES_MAX, 4) + b"\x01\x00\x00\x00")
    trial.is_served("meanwhile")


@case(
    "frame/peer-that-never-reads",
    "A peer that sends calls and never reads its answers blocks nobody else, and is not served without bound.",
    hostile=True,
    seconds=1.0,
)
def peer_that_never_reads(trial: Trial) -> None:
    peer = trial.peer("never reads")
    bystander = trial.peer("bystander-2")
    call = wire.call_frame(1, call_message(op.LIST_NAMESPACES, {}))
    flood = call * (1024 * 1024 // len(call))
    for _ in range(5):
        peer.connection.try_send(flood, 0.2)
        bystander.settle()


@case("frame/server-writes-whole-frames", "The server's own frames are whole: nothing follows an answer but frames.")
def server_writes_whole_frames(trial: Trial) -> None:
    peer = trial.peer()
    for _ in range(20):
        peer.settle()
    check(not peer.stray, expected="nothing but the answers to our calls", actual=f"{len(peer.stray)} other frames")
