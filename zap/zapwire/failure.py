"""The failure JSON that travels when a handler raises: Go's shape, plus a stack that Go ignores.

    {"v":1,"p":{"message":"no funds","code":"Payment","nonRetryable":true,"details":[7],"cause":{...}}}

Beside `v` and `p` there may be "nextRetryDelayMs": when the next attempt is to begin, whatever the retry
policy's own interval is. It is ours; Go ignores it.

Reading never raises: bytes that are no failure read as a `DecodeError` that must not be retried,
as Go's SDK does, so that a broken peer cannot turn a failure into a success or into nothing.
"""

from __future__ import annotations

import msgspec

from zapwire.frame import Buffer

FAILURE_VERSION = 1
FAILURE_BYTES_MAX = 256 * 1024
"""A longer one is cut down to its message: a stack or detail list must not fill histories."""
CAUSE_DEPTH_MAX = 16

APPLICATION_ERROR = "ApplicationError"
CANCELED_ERROR = "CanceledError"
TIMEOUT_ERROR = "TimeoutError"
DECODE_ERROR = "DecodeError"
NOT_FOUND_ERROR = "NotFoundError"
PANIC_ERROR = "PanicError"


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What went wrong, in a form that every peer reads.

    `code` is the type of the error: Go's code, or the class name of a Python exception.
    """

    message: str = ""
    code: str = APPLICATION_ERROR
    non_retryable: bool = msgspec.field(default=False, name="nonRetryable")
    details: list[msgspec.Raw] | None = None
    cause: Failure | None = None
    stack: str = ""
    next_retry_ms: int | None = None
    """Milliseconds until the next attempt, where the one that failed knows better than the retry policy."""

    def __str__(self) -> str:
        text = f"{self.message} ({self.code})"
        return text if self.cause is None else f"{text}: {self.cause}"


class _Frame(msgspec.Struct, frozen=True):
    v: int
    p: Failure
    nextRetryDelayMs: int | None = None  # noqa: N815


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Frame)


def encode_failure(failure: Failure) -> bytes:
    """The failure as JSON; too long a one keeps the start of its message and drops the rest.

    `code` is always written, because Go reads it.
    """
    data = _encoder.encode(_document(failure, CAUSE_DEPTH_MAX))
    if len(data) > FAILURE_BYTES_MAX:
        short = Failure(
            message=failure.message[:4096],
            code=failure.code[:256],
            non_retryable=failure.non_retryable,
            next_retry_ms=failure.next_retry_ms,
        )
        data = _encoder.encode(_document(short, 0))
    return data


def decode_failure(data: Buffer | msgspec.Raw) -> Failure:
    """Read a failure; anything else becomes a `DecodeError` that is not retried."""
    try:
        frame = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Failure(message=f"the failure cannot be read: {error}", code=DECODE_ERROR, non_retryable=True)
    if frame.v != FAILURE_VERSION:
        return Failure(message=f"the failure has version {frame.v}, not 1", code=DECODE_ERROR, non_retryable=True)
    if frame.nextRetryDelayMs is not None:
        return msgspec.structs.replace(frame.p, next_retry_ms=frame.nextRetryDelayMs)
    return frame.p


def _document(failure: Failure, depth: int) -> dict[str, object]:
    document: dict[str, object] = {"v": FAILURE_VERSION, "p": _body(failure, depth)}
    if failure.next_retry_ms is not None:
        document["nextRetryDelayMs"] = failure.next_retry_ms
    return document


def _body(failure: Failure, depth: int) -> dict[str, object]:
    body: dict[str, object] = {"message": failure.message, "code": failure.code}
    if failure.non_retryable:
        body["nonRetryable"] = True
    if failure.details:
        body["details"] = failure.details
    if failure.cause is not None and depth > 0:
        body["cause"] = _body(failure.cause, depth - 1)
    if failure.stack:
        body["stack"] = failure.stack
    return body
