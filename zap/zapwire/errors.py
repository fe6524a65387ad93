"""Every error that the wire can raise, under one root.

Who did it decides the type: `LocalProtocolError` is a mistake of this process, `RemoteProtocolError`
is the peer's fault, `CallFailed` is an answer that says no, and `NotSent` and `OutcomeUnknown` tell
a caller whose connection or deadline ended whether the peer can have seen the call.

Each class carries a stable `code` for programs and the `status` that it is answered with.
"""

from __future__ import annotations

from typing import ClassVar

from .opcodes import describe


class ZapError(Exception):
    """The root of everything that zapwire raises on purpose."""

    code: ClassVar[str] = "zap_error"
    status: int = 500


class LocalProtocolError(ZapError):
    """This process asked for something that the protocol does not allow."""

    code: ClassVar[str] = "local_protocol_error"
    status = 400


class RemoteProtocolError(ZapError):
    """The peer sent something that the protocol does not allow."""

    code: ClassVar[str] = "remote_protocol_error"
    status = 400


class FrameTooLarge(RemoteProtocolError):
    """A length prefix above the limit; nothing of the body was held.

    `frames` are the payloads that were complete before it in the same bytes.
    """

    code: ClassVar[str] = "frame_too_large"
    status = 413

    def __init__(self, message: str, *, frames: list[bytes] | None = None) -> None:
        super().__init__(message)
        self.frames = [] if frames is None else frames


class BadMessage(RemoteProtocolError):
    """Bytes that are not a ZAP message: too short, wrong magic, unknown version."""

    code: ClassVar[str] = "bad_message"


class BadBody(RemoteProtocolError):
    """A message whose JSON or CBOR body cannot be read."""

    code: ClassVar[str] = "bad_body"


class BadHandshake(RemoteProtocolError):
    """The peer's first message is not an acceptable handshake, or did not come in time."""

    code: ClassVar[str] = "bad_handshake"


class CallFailed(ZapError):
    """The peer answered a call with a status that is not success.

    `status` is the peer's, in HTTP's numbering; `detail` is its text, and `body` what the answer has beside it.
    """

    code: ClassVar[str] = "call_failed"

    def __init__(self, status: int, detail: str, *, opcode: int | None = None, body: bytes = b"") -> None:
        where = "" if opcode is None else f"call {describe(opcode)}: "
        super().__init__(f"{where}status {status}: {detail or 'the peer gave no reason'}")
        self.status = status
        self.detail = detail
        self.opcode = opcode
        self.body = body


class ConnectionLost(ZapError):
    """There is no connection, or it ended before the call did."""

    code: ClassVar[str] = "connection_lost"
    status = 503


class NotSent(ConnectionLost):
    """The call never left this process: repeating it is harmless."""

    code: ClassVar[str] = "not_sent"


class OutcomeUnknown(ConnectionLost):
    """The call left this process and no answer came: the peer may or may not have acted on it.

    Repeat it only with the same request id, or after looking.
    """

    code: ClassVar[str] = "outcome_unknown"
    status = 504
