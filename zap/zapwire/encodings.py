"""Messages from JSON to CBOR and back: whoever handles them reads and writes JSON, whatever travels."""

from __future__ import annotations

import msgspec

from zapwire.body import cbor_from_json, json_from_cbor
from zapwire.envelope import FLAG_CBOR, Envelope, decode_envelope, encode_response
from zapwire.errors import BadBody, LocalProtocolError
from zapwire.frame import Buffer


def as_cbor(body: Buffer, flags: int = 0) -> tuple[Buffer, int]:
    """A JSON body as CBOR, and the flags with that of CBOR; both as they are where CBOR cannot say it."""
    if not body:
        return body, flags
    try:
        return cbor_from_json(body), flags | FLAG_CBOR
    except (LocalProtocolError, BadBody):
        return body, flags


def with_json(envelope: Envelope) -> Envelope:
    """The envelope with its body as JSON, if that is CBOR. Raises `BadBody`."""
    if not envelope.flags & FLAG_CBOR:
        return envelope
    body = json_from_cbor(envelope.body) if envelope.body else b""
    return msgspec.structs.replace(envelope, body=body, flags=envelope.flags & ~FLAG_CBOR)


def in_cbor(answer: bytes) -> bytes:
    """An answer of ours with its JSON body as CBOR, where CBOR can say it."""
    envelope = decode_envelope(answer)
    body, flags = as_cbor(envelope.body, envelope.flags)
    return encode_response(envelope.status, body, envelope.error, flags, envelope.receipt)
