"""Bodies: values round trip, hostile bytes cost little and raise BadBody, unsendable values are our own error."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import time
import tracemalloc
import uuid
from typing import Any

import cbor2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zapwire.body import (
    BIGNUM_BYTES_MAX,
    BODY_BYTES_MAX,
    BODY_DEPTH_MAX,
    decode_cbor,
    decode_json,
    encode_cbor,
    encode_json,
)
from zapwire.errors import BadBody, LocalProtocolError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=20)


class Point(msgspec.Struct):
    x: float
    label: str | None = None


@dataclasses.dataclass
class Reading:
    value: float
    note: str | None = None


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


# JSON


@given(VALUES)
def test_json_round_trips_and_is_what_everyone_reads(value: Any) -> None:
    body = encode_json(value)
    assert decode_json(body) == value
    assert json.loads(body) == value


@given(VALUES, st.sampled_from([bytearray, memoryview]))
def test_json_is_read_from_any_buffer(value: Any, convert: type) -> None:
    assert decode_json(convert(encode_json(value))) == value


def test_json_into_a_type() -> None:
    assert decode_json(b'{"x":1.5,"unknown":[1]}', Point) == Point(1.5)
    with pytest.raises(BadBody, match=r"Expected `float`, got `str` - at `\$.x`"):
        decode_json(b'{"x":"1"}', Point)
    raw = decode_json(b'{"a": [1,  2]}', dict[str, msgspec.Raw])["a"]
    assert bytes(raw) == b"[1,  2]"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[1] 2",
        b"[1,]",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"nul",
        b"'x'",
        b'"\\ud800"',
        b'"\\ud800\\u0041"',
        b'"\x01"',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b"\xef\xbb\xbf{}",
        b"1e999",
        b"1" * 4301,
        b'{"a":1',
        b"\x00",
    ],
)
def test_unreadable_json_is_a_bad_body(body: bytes) -> None:
    with pytest.raises(BadBody, match=r"^the JSON body"):
        decode_json(body)


def test_json_that_is_passed_on_unread_is_utf8_too() -> None:
    with pytest.raises(BadBody, match="not UTF-8 at byte 6"):
        decode_json(b'{"a":"\xff"}', dict[str, msgspec.Raw])


def test_of_a_key_that_occurs_twice_json_keeps_the_last() -> None:
    assert decode_json(b'{"a":1,"a":2}') == {"a": 2}


@pytest.mark.parametrize("value", [2**63, 2**64, -(2**63) - 1, 10**4299])
def test_json_integers_are_exact(value: int) -> None:
    assert decode_json(encode_json(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        [1, {"a": (None, -math.inf)}],
        {math.nan: None, "b": math.nan},
        Point(math.nan),
        Reading(math.nan),
        [Reading(1.0), Point(math.inf)],
        frozenset({math.nan}),
    ],
)
def test_json_has_no_nan(value: Any) -> None:
    with pytest.raises(LocalProtocolError, match="NaN or an infinity"):
        encode_json(value)


def test_null_alone_is_no_nan() -> None:
    assert encode_json([None, Point(1.0), Reading(0.5), "null"]) == (
        b'[null,{"x":1.0,"label":null},{"value":0.5,"note":null},"null"]'
    )


@pytest.mark.parametrize("value", ["\ud800", {"\udfff": 1}, object(), {(1, 2): 3}, {None: 1}, [10**5000]])
@pytest.mark.parametrize("encode", [encode_json, encode_cbor])
def test_a_value_that_cannot_be_sent_is_our_own_error(encode: Any, value: Any) -> None:
    with pytest.raises(LocalProtocolError, match="the value cannot be sent as"):
        encode(value)


@pytest.mark.parametrize("encode", [encode_json, encode_cbor])
def test_a_cycle_cannot_be_sent(encode: Any) -> None:
    value: list[Any] = []
    value.append({"again": value})
    with pytest.raises(LocalProtocolError, match="the value cannot be sent as"):
        encode(value)


# Bounds of both


@pytest.mark.parametrize(("encode", "decode"), [(encode_json, decode_json), (encode_cbor, decode_cbor)])
def test_the_deepest_value_passes_and_one_level_more_does_not(encode: Any, decode: Any) -> None:
    assert decode(encode(nested(BODY_DEPTH_MAX))) == nested(BODY_DEPTH_MAX)
    with pytest.raises(LocalProtocolError, match="nested more than 200 levels"):
        encode(nested(BODY_DEPTH_MAX + 1))


@pytest.mark.parametrize("depth", [BODY_DEPTH_MAX + 1, 5000, 1_000_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"]]":', b"}]")])
def test_json_nested_too_deep_is_refused(depth: int, opening: bytes, closing: bytes) -> None:
    for body in (opening * depth + b"1" + closing * depth, opening * depth):
        with pytest.raises(BadBody, match="nested more than 200 levels"):
            decode_json(body)


def test_brackets_within_strings_are_not_nesting() -> None:
    for text in ("[" * 500, "{" * 500, '"[' * 500, "\\[" * 500, '\\"[' * 500, '\\\\"{' * 500 + "\\"):
        assert decode_json(encode_json([text, {text: text}])) == [text, {text: text}]


@given(st.lists(st.sampled_from(["[", "]", '"', "\\", "{", "a"]), max_size=30).map("".join), st.integers(195, 205))
def test_closing_brackets_within_strings_hide_no_nesting(text: str, depth: int) -> None:
    """Nesting is counted as the decoder would, whatever the strings around it hold."""
    string = json.dumps(text).encode()
    body = (b"[" + string + b",") * depth + string + b"]" * depth
    if depth <= BODY_DEPTH_MAX:
        assert len(decode_json(body)) == 2
    else:
        with pytest.raises(BadBody, match="nested more than 200 levels"):
            decode_json(body)


def test_many_shallow_lists_are_not_deep() -> None:
    value = [{"a": [1, 2], "b": {}}] * 1000
    assert decode_json(encode_json(value)) == value


@pytest.mark.parametrize("decode", [decode_json, decode_cbor])
def test_a_body_longer_than_a_frame_is_refused(decode: Any) -> None:
    with pytest.raises(BadBody, match="10485761 bytes, at most 10485760"):
        decode(b" " * (BODY_BYTES_MAX + 1))


@pytest.mark.parametrize("encode", [encode_json, encode_cbor])
def test_a_value_longer_than_a_frame_cannot_be_sent(encode: Any) -> None:
    with pytest.raises(LocalProtocolError, match="at most 10485760"):
        encode("x" * BODY_BYTES_MAX)


# CBOR


@given(st.recursive(SCALARS | st.binary(max_size=12), lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner)))
def test_cbor_round_trips(value: Any) -> None:
    assert decode_cbor(encode_cbor(value)) == value


def test_cbor_carries_what_json_cannot() -> None:
    now = datetime.datetime(2026, 3, 29, 2, 30, 0, 123456, datetime.UTC)
    value = {"at": now, "bytes": b"\x00\xff", "inf": math.inf, "big": -(2**70)}
    assert decode_cbor(encode_cbor(value)) == value
    assert math.isnan(decode_cbor(encode_cbor(math.nan)))


def test_cbor_into_a_type() -> None:
    assert decode_cbor(encode_cbor(Point(1.0, "a")), Point) == Point(1.0, "a")
    assert decode_cbor(encode_cbor({"a": b"x"}), dict[str, bytes]) == {"a": b"x"}
    with pytest.raises(BadBody, match="Expected `float`"):
        decode_cbor(encode_cbor({"x": "1"}), Point)


def test_cbor_sends_rich_values_as_plain_ones() -> None:
    identifier = uuid.UUID(int=7)
    assert decode_cbor(encode_cbor({"id": identifier, 1: (1, 2)})) == {"id": str(identifier), "1": [1, 2]}


@pytest.mark.parametrize("value", [datetime.datetime(2026, 1, 1), {"x": datetime.datetime(2026, 1, 1)}])
def test_a_datetime_without_a_zone_cannot_be_sent_as_cbor(value: Any) -> None:
    with pytest.raises(LocalProtocolError, match="naive datetime"):
        encode_cbor(value)


@pytest.mark.parametrize("size", [1, 9, BIGNUM_BYTES_MAX])
def test_cbor_integers_are_exact_up_to_their_bound(size: int) -> None:
    largest = 256**size - 1
    for value in (largest, -1 - largest):
        assert decode_cbor(encode_cbor(value)) == value


def test_an_integer_past_its_bound_is_refused_both_ways() -> None:
    too_large = 256**BIGNUM_BYTES_MAX
    with pytest.raises(LocalProtocolError, match="8193 bits, at most 8192"):
        encode_cbor([too_large])
    for value in (too_large, -too_large - 1):
        with pytest.raises(BadBody, match="tag"):
            decode_cbor(cbor2.dumps(value))


@pytest.mark.parametrize(
    "body",
    [
        "",
        "ff",
        "0101",  # a second value
        "a10102",  # a number as key
        "a1416102",  # bytes as key
        "a18101 02",  # a list as key
        "a24161014161 02",  # the same key twice
        "a26161016161 02",
        "f7",  # undefined
        "81f7",
        "f8ff",  # a simple value
        "61ff",  # text that is not UTF-8
        "63eda080",  # an encoded surrogate
        "c06178",  # a date that is none
        "c1fb7e37e43c8800759c",  # a time beyond the calendar
        "c1f97e00",  # a time that is NaN
        "c2f6",  # an integer that is no byte string
        "c26161",
        "9affffffff",  # lengths without content
        "9bffffffffffffffff",
        "baffffffff",
        "5b7fffffffffffffff",
        "7bffffffffffffffff",
        "1c",  # reserved
        "d81c81d81d00",  # a list that contains itself
    ],
)
def test_unreadable_cbor_is_a_bad_body(body: str) -> None:
    with pytest.raises(BadBody, match=r"^the CBOR body"):
        decode_cbor(bytes.fromhex(body))


def test_every_tag_but_dates_and_big_integers_is_refused() -> None:
    """Also those that a later cbor2 may learn: what is allowed is listed, not what is refused."""
    for tag in [*range(4, 1200), 43000, 55799, 65535, 2**32, 2**63]:
        for content in (None, "a", b"a", 1, [1, 2]):
            with pytest.raises(BadBody, match="tag"):
                decode_cbor(cbor2.dumps(cbor2.CBORTag(tag, content)))


@pytest.mark.parametrize("start", [b"\x81", b"\xa1\x61a", b"\x9f", b"\xc1", b"\xd8\x64"])
def test_cbor_nested_too_deep_is_refused(start: bytes) -> None:
    with pytest.raises(BadBody, match=r"^the CBOR body"):
        decode_cbor(start * 100_000)


def test_cbor_one_level_past_the_bound_is_refused() -> None:
    assert decode_cbor(b"\x81" * BODY_DEPTH_MAX + b"\x01")
    with pytest.raises(BadBody, match=r"depth \(200\) exceeded"):
        decode_cbor(b"\x81" * (BODY_DEPTH_MAX + 1) + b"\x01")


@pytest.mark.parametrize("announced", ["9a00ffffff", "ba00ffffff", "5a00ffffff", "7a7fffffff", "9b00000fffffffffff"])
def test_an_announced_length_allocates_nothing(announced: str) -> None:
    body = bytes.fromhex(announced) * 150
    tracemalloc.start()
    try:
        with pytest.raises(BadBody):
            decode_cbor(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1024 * 1024


@pytest.mark.parametrize(("encode", "decode"), [(encode_json, decode_json), (encode_cbor, decode_cbor)])
@given(data=st.binary(max_size=80))
def test_arbitrary_bytes_raise_only_bad_body(encode: Any, decode: Any, data: bytes) -> None:
    try:
        body = encode(decode(data))
    except BadBody:
        return
    assert encode(decode(body)) == body


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decode", "body"),
    [
        (decode_json, b"[" + b"[]," * 3_000_000 + b"1]"),
        (decode_json, b"[" + b'"[",' * 2_000_000 + b"1]"),
        (decode_json, b'"' + b"\\\\" * 5_000_000 + b'"'),
        (decode_cbor, b"\x5f" + b"\x41x" * 5_000_000 + b"\xff"),
        (decode_cbor, b"\x9f" + b"\xc2\x41\x01" * 1_000_000 + b"\xff"),
    ],
    ids=["lists", "strings", "escapes", "chunks", "integers"],
)
def test_the_worst_body_that_fits_a_frame_is_read_in_seconds(decode: Any, body: bytes) -> None:
    """Time linear in the length; a quadratic step would take hours here."""
    assert len(body) <= BODY_BYTES_MAX
    started = time.perf_counter()
    decode(body)
    assert time.perf_counter() - started < 20
