"""Messages that are damaged inside a sound frame: headers, roots and pointers that lie.

A call is always answered or its connection ended, never met with silence; an answer is preferred,
since the frame was sound and the request id readable.
"""

from __future__ import annotations

from collections.abc import Iterable

from zapconform import opcodes as op
from zapconform import wire
from zapconform.case import SHOULD, Failed, case
from zapconform.codec import HEADER_BYTES, Writer, little
from zapconform.peer import Peer, call_message
from zapconform.trial import Trial

HEALTH_CALL = call_message(op.HEALTH, {})


def patched(message: bytes, at: int, replacement: bytes) -> bytes:
    return message[:at] + replacement + message[at + len(replacement) :]


def never_silent(trial: Trial, messages: Iterable[bytes], opcode: int, *, preferred: tuple[int, ...] = (400,)) -> None:
    """Each message, sent as a call, is refused or ends its connection; then a call on it works or it is over."""
    peer = trial.peer()
    ended = 0
    for message in messages:
        request_id = peer.send_message(message, opcode)
        try:
            reply = peer.reply(request_id)
        except Failed:
            if not peer.connection.ended:
                raise
            ended += 1
            peer = trial.peer()
            continue
        if preferred:
            reply.refused(*preferred)
        peer.settle()
    if ended:
        trial.note(f"{ended} of these calls ended the connection instead of being refused")


def any_answer(trial: Trial, messages: Iterable[bytes], opcode: int) -> None:
    """Each message, sent as a call, is answered with whatever status, and the connection goes on."""
    peer = trial.peer()
    for message in messages:
        peer.reply(peer.send_message(message, opcode))
        peer.settle()


@case(
    "frame/header-cut-short",
    "A call whose message is shorter than the 16-byte header is refused with 400, never met with silence.",
    hostile=True,
)
def header_cut_short(trial: Trial) -> None:
    never_silent(trial, (HEALTH_CALL[:length] for length in range(HEADER_BYTES)), op.HEALTH)


@case("frame/header-magic", "A call whose message has another magic is refused with 400.", hostile=True)
def header_magic(trial: Trial) -> None:
    wrong = (b"zap\x00", b"ZAP\x01", b"\x00PAZ", b"HTTP", bytes(4))
    never_silent(trial, (patched(HEALTH_CALL, 0, magic) for magic in wrong), op.HEALTH)


@case("frame/header-version", "A call whose message has a version other than 1 is refused with 400.", hostile=True)
def header_version(trial: Trial) -> None:
    never_silent(trial, (patched(HEALTH_CALL, 4, little(v, 2)) for v in (0, 2, 256, 0xFFFF)), op.HEALTH)


@case(
    "frame/header-size-too-large",
    "A call whose header claims more bytes than the frame holds is refused with 400.",
    hostile=True,
)
def header_size_too_large(trial: Trial) -> None:
    sizes = (len(HEALTH_CALL) + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
    never_silent(trial, (patched(HEALTH_CALL, 12, little(size, 4)) for size in sizes), op.HEALTH)


@case("frame/bytes-after-the-message-ignored", "Bytes after the size that the header states are not part of a message.")
def bytes_after_the_message_ignored(trial: Trial) -> None:
    peer = trial.peer()
    for trailing in (b"\x00", b"x" * 100, HEALTH_CALL):
        peer.reply(peer.send_message(HEALTH_CALL + trailing, op.HEALTH)).succeeded()


@case(
    "frame/header-size-cuts-the-body",
    "A stated size that ends inside the root or the body makes the rest unreadable, not the server.",
    hostile=True,
)
def header_size_cuts_the_body(trial: Trial) -> None:
    message = call_message(op.DESCRIBE, {"namespace": trial.namespace, "workflow_id": trial.name("none")})
    sizes = (0, 1, 15, 16, 17, 24, 39, 40, 41, len(message) - 1)
    never_silent(trial, (patched(message, 12, little(size, 4)) for size in sizes), op.DESCRIBE, preferred=(400, 404))


@case("frame/root-null", "A null root reads as an empty body: the call is answered.", hostile=True)
def root_null(trial: Trial) -> None:
    any_answer(trial, [patched(HEALTH_CALL, 8, bytes(4)), Writer().finish(op.HEALTH << 8)], op.HEALTH)


@case(
    "frame/root-outside",
    "A root that lies in the header, at the end or far outside reads as null: the call is answered.",
    hostile=True,
)
def root_outside(trial: Trial) -> None:
    size = len(HEALTH_CALL)
    roots = (1, 4, 8, 15, size - 1, size, size + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF)
    any_answer(trial, (patched(HEALTH_CALL, 8, little(root, 4)) for root in roots), op.HEALTH)


BAD_POINTERS = (
    ("before the message", little(-1000, 4) + little(4, 4)),
    ("into the header", little(-16, 4) + little(8, 4)),
    ("the smallest number", little(-(2**31), 4) + little(4, 4)),
    ("past the end", little(10_000, 4) + little(4, 4)),
    ("the largest number", little(2**31 - 1, 4) + little(4, 4)),
    ("a length past the end", little(24, 4) + little(0x7FFFFFFF, 4)),
    ("a length of all ones", little(24, 4) + little(0xFFFFFFFF, 4)),
    ("a length but no target", little(0, 4) + little(0xFFFFFFFF, 4)),
)


@case(
    "frame/body-pointer-outside",
    "A body pointer out of bounds reads as no body: the call is answered as one with an empty body.",
    hostile=True,
)
def body_pointer_outside(trial: Trial) -> None:
    message = call_message(op.DESCRIBE, {"namespace": trial.namespace, "workflow_id": "x"})
    damaged = (patched(message, HEADER_BYTES, slot) for _, slot in BAD_POINTERS)
    never_silent(trial, damaged, op.DESCRIBE, preferred=(400, 404))


@case(
    "frame/token-pointer-outside",
    "A worker's answer whose token pointer is out of bounds is refused.",
    hostile=True,
)
def token_pointer_outside(trial: Trial) -> None:
    for opcode in sorted(op.WORKER_ANSWERS):
        message = wire.worker_answer(opcode, b"act|nobody", b"{}")
        damaged = (patched(message, HEADER_BYTES, slot) for _, slot in BAD_POINTERS)
        never_silent(trial, damaged, opcode, preferred=(400, 404))


@case(
    "frame/submit-pointer-outside",
    "A task submission whose type pointer is out of bounds has no type and is refused with 400.",
    hostile=True,
)
def submit_pointer_outside(trial: Trial) -> None:
    message = wire.task_submit("job", b"{}")
    never_silent(trial, (patched(message, HEADER_BYTES, slot) for _, slot in BAD_POINTERS), op.TASK_SUBMIT)
    schedule = wire.task_schedule("job", interval="1h")
    never_silent(trial, (patched(schedule, HEADER_BYTES, slot) for _, slot in BAD_POINTERS), op.TASK_SCHEDULE)


@case(
    "frame/pointer-to-itself",
    "A body that overlaps its own root or the whole message is only bytes: the call is answered.",
    hostile=True,
)
def pointer_to_itself(trial: Trial) -> None:
    slots = (little(4, 4) + little(8, 4), little(1, 4) + little(20, 4))
    any_answer(trial, (patched(HEALTH_CALL, HEADER_BYTES, slot) for slot in slots), op.HEALTH)


@case(
    "frame/low-flags",
    "The low flag bits mean nothing between peers that have not agreed on them: the call is answered.",
    severity=SHOULD,
)
def low_flags(trial: Trial) -> None:
    peer = trial.peer()
    for bit in range(8):
        message = wire.request(op.HEALTH, b"{}", low_flags=1 << bit)
        peer.reply(peer.send_message(message, op.HEALTH))


@case("frame/root-anywhere", "The root may lie anywhere in the message, at any alignment.")
def root_anywhere(trial: Trial) -> None:
    peer: Peer = trial.peer()
    sound = HEALTH_CALL[HEADER_BYTES:]
    for gap in (1, 3, 8, 100):
        size = HEADER_BYTES + gap + len(sound)
        header = patched(patched(HEALTH_CALL[:HEADER_BYTES], 8, little(HEADER_BYTES + gap, 4)), 12, little(size, 4))
        message = header + b"\xee" * gap + sound
        peer.reply(peer.send_message(message, op.HEALTH)).succeeded()
