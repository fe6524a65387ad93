"""The handshake: the first message of each side, which says who is there and what both may use.

The hello's root object, little-endian:

    0   60 bytes  node id, zero padded
    60  u32       length of the node id
    64  u32       capability bits      } our extension: Go peers neither
    68  u32       zero                 } send nor read it
    72  Bytes     CBOR map of details  }

The first 64 bytes are the whole of a Go peer's hello. Because a field that a message does not reach reads as
zero, such a hello says by itself that its sender has no capabilities. Capability bits 0 mean that nothing of
the extension is there. Unknown bits and keys are kept and otherwise ignored; both only ever grow.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from zapwire.body import decode_cbor, encode_cbor
from zapwire.errors import BadBody, BadHandshake, BadMessage, LocalProtocolError
from zapwire.frame import Buffer
from zapwire.message import HEADER_BYTES, MAGIC, VERSION, Object, parse

NODE_ID_BYTES_MAX: Final = 60
"""What fits into a Go peer's fixed field."""

DETAILS_BYTES_MAX: Final = 4096
"""The details are a few short texts and numbers, from a peer that nobody has authenticated yet."""

_HEADER: Final = struct.Struct("<4sHHII")
_IDENTITY: Final = struct.Struct("<60sI")
_EXTENSION: Final = struct.Struct("<I4xiI")

_CAPABILITIES_AT: Final = 64
_DETAILS_AT: Final = 72


BODIES: Final = "bodies"
"""The key of the details that says in what a peer would like bodies to be: `CBOR`, or anything else for JSON."""

CBOR: Final = "cbor"


class Capability(enum.IntFlag):
    """What a peer can do beyond v1. Use one only if both sides set it. Bits are only ever added."""

    CBOR_BODIES = 1  # reads bodies marked FLAG_CBOR
    REPLAY_HISTORY = 2  # wants the history in a workflow task, and replays it
    RECEIPTS = 4
    COMPRESSED = 8
    GOODBYE = 16
    STREAMS = 32


NO_CAPABILITIES: Final = Capability(0)
"""What a Go peer has, and what no bits at all mean."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Who a peer is. `details` holds `sdk`, `version`, `max_frame` and what later versions add."""

    node_id: str
    capabilities: Capability = NO_CAPABILITIES
    details: Mapping[str, Any] = field(default_factory=dict)


def encode_hello(hello: Hello) -> bytes:
    """The hello as a message: 80 bytes without capabilities, as a Go peer sends it; longer with them.

    Raises `LocalProtocolError` for a node id that is not 1 to 60 bytes of printable ASCII, and for details
    that are too long or come without any capability, which would tell the peer that there are none.
    """
    node_id = hello.node_id.encode("utf-8", "surrogatepass")
    problem = _node_id_problem(node_id)
    if problem:
        raise LocalProtocolError(problem)
    bits = int(hello.capabilities)
    if not 0 <= bits <= 0xFFFF_FFFF:
        raise LocalProtocolError(f"capability bits {bits:#x}: must fit into 32 bits")
    identity = _IDENTITY.pack(node_id, len(node_id))
    if bits == 0:
        if hello.details:
            raise LocalProtocolError("a hello with details needs a capability: bits 0 mean that no details follow")
        return _header(len(identity)) + identity
    details = encode_cbor(dict(hello.details)) if hello.details else b""
    if len(details) > DETAILS_BYTES_MAX:
        raise LocalProtocolError(f"hello details of {len(details)} bytes: at most {DETAILS_BYTES_MAX} are allowed")
    extension = _EXTENSION.pack(bits, 8 if details else 0, len(details))
    return _header(len(identity) + len(extension) + len(details)) + identity + extension + details


def decode_hello(payload: Buffer) -> Hello:
    """Read a peer's first message. Raises `BadHandshake`, which names what is wrong and what would be right."""
    try:
        root = parse(payload).root()
    except BadMessage as error:
        raise BadHandshake(f"the first message is not a handshake: {error}") from None
    node_id = _peer_node_id(root)
    capabilities = Capability(root.uint32(_CAPABILITIES_AT))
    return Hello(node_id, capabilities, _peer_details(root) if capabilities else {})


def _peer_node_id(root: Object) -> str:
    length = root.uint32(NODE_ID_BYTES_MAX)
    node_id = bytes(root.uint8(offset) for offset in range(min(length, NODE_ID_BYTES_MAX)))
    problem = _node_id_problem(node_id, length)
    if problem:
        raise BadHandshake(f"peer's {problem}")
    return node_id.decode("ascii")


def _peer_details(root: Object) -> dict[str, Any]:
    data = root.bytes(_DETAILS_AT)
    if not data:
        return {}
    if len(data) > DETAILS_BYTES_MAX:
        raise BadHandshake(f"hello details of {len(data)} bytes: at most {DETAILS_BYTES_MAX} are allowed")
    try:
        return decode_cbor(data, dict[str, Any])
    except BadBody as error:
        raise BadHandshake(f"the hello's details are not a CBOR map: {error}") from None


def _node_id_problem(node_id: bytes, length: int | None = None) -> str:
    length = len(node_id) if length is None else length
    if not 1 <= length <= NODE_ID_BYTES_MAX:
        return f"node id {node_id!r} of {length} bytes: must be 1 to {NODE_ID_BYTES_MAX} bytes of printable ASCII"
    if any(not 0x20 <= byte <= 0x7E for byte in node_id):
        return f"node id {node_id!r}: must be printable ASCII"
    return ""


def _header(object_bytes: int) -> bytes:
    return _HEADER.pack(MAGIC, VERSION, 0, HEADER_BYTES, HEADER_BYTES + object_bytes)
