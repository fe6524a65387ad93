"""The answer to a submitted task or schedule (0x50, 0x51), which has a layout of its own."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from zapwire.body import decode_json
from zapwire.envelope import decode_envelope, decode_submit_reply, submit_receipt
from zapwire.errors import BadBody
from zapwire.frame import Buffer

from .errors import refusal
from .records import with_receipt

T = TypeVar("T")


def read_submit_reply(answer: bytes, opcode: int, type: type[T]) -> T:
    """The answer's JSON as `type`, with its receipt. Raises `CallFailed` for a refusal.

    A peer that refuses the call before it looks at it, or that does not serve the opcode, answers with an envelope.
    An envelope with an error text has its status and text where a submit reply has a length and zeros.
    """
    status, body = decode_submit_reply(answer)
    envelope = decode_envelope(answer)
    if envelope.error and envelope.status >= 400:
        raise refusal(envelope.status, envelope.error, opcode=opcode)
    if status not in (0, 200):
        raise refusal(status, _error_text(body), opcode=opcode)
    return with_receipt(decode_json(body or b"{}", type), submit_receipt(answer))


class _Refusal(msgspec.Struct):
    error: str = ""


def _error_text(body: Buffer) -> str:
    try:
        return decode_json(body, _Refusal).error
    except BadBody:
        return bytes(body[:200]).decode("utf-8", "replace")
