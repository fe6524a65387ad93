"""The failure JSON: Go's shape, our additions, and what bytes that are none read as."""

from __future__ import annotations

import msgspec
import pytest

from zapwire.failure import DECODE_ERROR, FAILURE_BYTES_MAX, Failure, decode_failure, encode_failure


def test_a_failure_arrives_as_it_was_sent() -> None:
    sent = Failure(
        message="no funds",
        code="Payment",
        non_retryable=True,
        details=[msgspec.Raw(b"7")],
        cause=Failure(message="declined"),
        stack="at line 3",
        next_retry_ms=1_500,
    )
    read = decode_failure(encode_failure(sent))
    assert msgspec.structs.replace(read, details=None) == msgspec.structs.replace(sent, details=None)
    assert read.details is not None
    assert [bytes(detail) for detail in read.details] == [b"7"]


def test_the_next_retry_stands_beside_what_go_reads() -> None:
    written = msgspec.json.decode(encode_failure(Failure(message="busy", next_retry_ms=0)))
    assert written == {"v": 1, "p": {"message": "busy", "code": "ApplicationError"}, "nextRetryDelayMs": 0}
    assert "nextRetryDelayMs" not in msgspec.json.decode(encode_failure(Failure(message="busy")))


def test_a_failure_that_is_cut_keeps_its_next_retry() -> None:
    data = encode_failure(Failure(message="busy", stack="x" * FAILURE_BYTES_MAX, next_retry_ms=7))
    assert len(data) < FAILURE_BYTES_MAX
    assert (decode_failure(data).message, decode_failure(data).next_retry_ms) == ("busy", 7)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"v":2,"p":{}}', b'{"v":1,"p":{},"nextRetryDelayMs":"soon"}', b"\xff"]
)
def test_what_is_no_failure_reads_as_one_that_is_not_retried(data: bytes) -> None:
    read = decode_failure(data)
    assert (read.code, read.non_retryable) == (DECODE_ERROR, True)
