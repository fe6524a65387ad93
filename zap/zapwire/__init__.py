"""The ZAP wire protocol: messages, frames, the handshake, the connection machine, and a link on trio.

    from zapwire import Op, open_link

    async with open_link("127.0.0.1", 9999, node_id="me") as link:
        answer = await link.call(Op.HEALTH)

Everything up to `Connection` is pure: bytes in, values out. docs/wire.md is the specification.
"""

from zapwire.body import decode_cbor as decode_cbor
from zapwire.body import decode_json as decode_json
from zapwire.body import encode_cbor as encode_cbor
from zapwire.body import encode_json as encode_json
from zapwire.client_link import Backoff as Backoff
from zapwire.client_link import ReconnectingLink as ReconnectingLink
from zapwire.client_link import open_link as open_link
from zapwire.client_link import open_reconnecting_link as open_reconnecting_link
from zapwire.connection import Connection as Connection
from zapwire.connection import Role as Role
from zapwire.envelope import Envelope as Envelope
from zapwire.envelope import Receipt as Receipt
from zapwire.envelope import decode_envelope as decode_envelope
from zapwire.envelope import encode_request as encode_request
from zapwire.envelope import encode_response as encode_response
from zapwire.errors import BadBody as BadBody
from zapwire.errors import BadHandshake as BadHandshake
from zapwire.errors import BadMessage as BadMessage
from zapwire.errors import CallFailed as CallFailed
from zapwire.errors import ConnectionLost as ConnectionLost
from zapwire.errors import FrameTooLarge as FrameTooLarge
from zapwire.errors import LocalProtocolError as LocalProtocolError
from zapwire.errors import NotSent as NotSent
from zapwire.errors import OutcomeUnknown as OutcomeUnknown
from zapwire.errors import RemoteProtocolError as RemoteProtocolError
from zapwire.errors import ZapError as ZapError
from zapwire.failure import Failure as Failure
from zapwire.failure import decode_failure as decode_failure
from zapwire.failure import encode_failure as encode_failure
from zapwire.frame import FRAME_BYTES_MAX as FRAME_BYTES_MAX
from zapwire.frame import FrameDecoder as FrameDecoder
from zapwire.handshake import Capability as Capability
from zapwire.handshake import Hello as Hello
from zapwire.link import Link as Link
from zapwire.link_group import LinkLimits as LinkLimits
from zapwire.link_handler import Handlers as Handlers
from zapwire.link_handler import LinkHandler as LinkHandler
from zapwire.link_handler import RefusingHandler as RefusingHandler
from zapwire.listener import Listener as Listener
from zapwire.listener import open_listener as open_listener
from zapwire.message import Builder as Builder
from zapwire.message import List as List
from zapwire.message import ListBuilder as ListBuilder
from zapwire.message import Message as Message
from zapwire.message import Object as Object
from zapwire.message import ObjectBuilder as ObjectBuilder
from zapwire.message import parse as parse
from zapwire.opcodes import OPCODES as OPCODES
from zapwire.opcodes import Op as Op
from zapwire.opcodes import Opcode as Opcode
