"""The handshake: Go's bytes, our extension behind them, and every bad hello refused with its value."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zapwire.body import encode_cbor
from zapwire.errors import BadHandshake, LocalProtocolError
from zapwire.handshake import DETAILS_BYTES_MAX, Capability, Hello, decode_hello, encode_hello
from zapwire.message import Builder, parse

NODE_IDS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=60)
DETAILS = st.dictionaries(st.text("abc_", max_size=8), st.integers() | st.binary(max_size=8) | st.none(), max_size=4)


def build(node_id: bytes, length: int | None = None, *, bits: int = 0, details: bytes = b"", size: int = 80) -> bytes:
    """Any hello, also those that nobody should send."""
    builder = Builder()
    root = builder.start_object(size)
    for offset, byte in enumerate(node_id[:60]):
        root.set_uint8(offset, byte)
    root.set_uint32(60, len(node_id) if length is None else length)
    if size > 64:
        root.set_uint32(64, bits)
        root.set_bytes(72, details)
    root.finish_as_root()
    return builder.finish()


def test_a_hello_without_capabilities_is_byte_for_byte_go() -> None:
    documented = "5A41500001000000 10000000 50000000" + b"tasks-embed".hex() + "00" * 49 + "0B000000"
    assert encode_hello(Hello("tasks-embed")) == bytes.fromhex(documented)
    assert decode_hello(bytes.fromhex(documented)) == Hello("tasks-embed", Capability(0), {})


def test_the_first_64_bytes_of_a_longer_hello_are_go_s() -> None:
    """A Go peer reads those and nothing else."""
    plain = encode_hello(Hello("worker-7"))
    longer = encode_hello(Hello("worker-7", Capability.CBOR_BODIES, {"sdk": "zaptasks"}))
    assert longer[16:80] == plain[16:]
    assert (parse(longer).flags, parse(longer).root().uint32(60)) == (0, 8)


@given(NODE_IDS, st.integers(0, 2**32 - 1), DETAILS)
def test_a_hello_round_trips(node_id: str, bits: int, details: dict[str, Any]) -> None:
    """Capability bits that we do not know yet are kept too."""
    hello = Hello(node_id, Capability(bits), details if bits else {})
    assert decode_hello(encode_hello(hello)) == hello


def test_unknown_keys_of_the_details_are_ignored() -> None:
    details = {"sdk": "other", "from the future": [1, {"x": b"y"}]}
    assert decode_hello(build(b"peer", bits=1, details=encode_cbor(details))).details["sdk"] == "other"


def test_without_capability_bits_nothing_behind_them_is_read() -> None:
    assert decode_hello(build(b"peer", bits=0, details=b"\xff not CBOR")) == Hello("peer")


@pytest.mark.parametrize("length", [1, 60])
def test_the_shortest_and_the_longest_node_id(length: int) -> None:
    assert decode_hello(encode_hello(Hello("x" * length))).node_id == "x" * length


@pytest.mark.parametrize("node_id", ["", "x" * 61, "tab\there", "nul\0", "del\x7f", "café", "\ud800", "日本"])
def test_a_bad_node_id_of_ours_is_an_error_at_the_caller(node_id: str) -> None:
    with pytest.raises(LocalProtocolError, match="printable ASCII"):
        encode_hello(Hello(node_id))


@pytest.mark.parametrize(
    ("hello", "problem"),
    [
        (build(b""), "of 0 bytes"),
        (build(b"x" * 61), "of 61 bytes"),
        (build(b"x", 2**32 - 1), "of 4294967295 bytes"),
        (build(b"a\nb"), r"node id b'a\\nb'"),
        (build(b"a", 3), r"node id b'a\\x00\\x00'"),
        (build("é".encode()), r"b'\\xc3\\xa9'"),
        (build(b"short", size=60)[:70], "not a handshake"),
        (b"", "not a handshake: a message of 0 bytes"),
        (b"GET / HTTP/1.1\r\n\r\n", "not a handshake: magic 47455420"),
        (Builder().finish(), "of 0 bytes"),
        (build(b"peer", bits=1, details=b"\xa1"), "not a CBOR map"),
        (build(b"peer", bits=1, details=b"\x01"), "not a CBOR map"),
        (build(b"peer", bits=1, details=b"\x81" * 1000), "not a CBOR map"),
        (build(b"peer", bits=1, details=b"\xd8\x23\x61a"), "not a CBOR map"),
        (build(b"peer", bits=1, details=encode_cbor({"x": bytes(DETAILS_BYTES_MAX)})), "at most 4096"),
    ],
)
def test_a_bad_hello_is_refused_with_what_was_wrong(hello: bytes, problem: str) -> None:
    with pytest.raises(BadHandshake, match=problem):
        decode_hello(hello)


def test_details_are_bounded_and_need_a_capability() -> None:
    with pytest.raises(LocalProtocolError, match="at most 4096"):
        encode_hello(Hello("x", Capability.STREAMS, {"x": bytes(DETAILS_BYTES_MAX)}))
    with pytest.raises(LocalProtocolError, match="needs a capability"):
        encode_hello(Hello("x", details={"sdk": "zaptasks"}))


@given(st.binary(max_size=140))
def test_arbitrary_bytes_raise_only_bad_handshake(data: bytes) -> None:
    for sent in (data, build(data[:60], bits=1, details=data)):
        try:
            decode_hello(sent)
        except BadHandshake:
            continue


@given(NODE_IDS, st.binary(max_size=20))
def test_trailing_bytes_change_nothing(node_id: str, trailing: bytes) -> None:
    hello = Hello(node_id, Capability.GOODBYE, {"version": "1"})
    assert decode_hello(encode_hello(hello) + trailing) == hello
