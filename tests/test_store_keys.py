"""Encoded keys sort as the keys do, and come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers.store_machine import sortable

from zapserver.store.keys import INTEGER_MAX, KEY_BYTES_MAX, Key, decode_key, encode_key, key_range

edges = [number + off for size in range(8) for number in (256**size, -(256**size)) for off in (-1, 0, 1)]
integers = st.integers(-INTEGER_MAX, INTEGER_MAX) | st.sampled_from(edges) | st.integers(-300, 300)
texts = st.text(max_size=5) | st.text(alphabet="\0\x01ab\xff\U0010ffff", max_size=4)
keys = st.lists(integers | texts, max_size=4).map(tuple)


@given(keys, keys)
def test_encoded_keys_sort_as_keys_do(one: Key, other: Key) -> None:
    assert (encode_key(one) < encode_key(other)) == (sortable(one) < sortable(other))
    assert (encode_key(one) == encode_key(other)) == (one == other)


@given(keys)
def test_keys_come_back(key: Key) -> None:
    assert decode_key(encode_key(key)) == key


@given(keys, keys)
def test_a_prefix_holds_exactly_the_keys_that_begin_with_it(prefix: Key, key: Key) -> None:
    low, high = key_range(prefix, None, None)
    assert low <= encode_key(prefix + key) < high
    assert (low <= encode_key(key) < high) == (key[: len(prefix)] == prefix)


@given(st.binary(max_size=12))
def test_other_bytes_are_refused_or_are_the_encoding_of_what_they_say(data: bytes) -> None:
    try:
        key = decode_key(data)
    except ValueError:
        return
    assert encode_key(key) == data


@pytest.mark.parametrize("part", [True, None, 1.0, b"a", INTEGER_MAX + 1, -INTEGER_MAX - 1])
def test_only_texts_and_bounded_integers_can_be_in_a_key(part: object) -> None:
    with pytest.raises(ValueError, match="in a key: texts and integers"):
        encode_key((part,))  # type: ignore[arg-type]


def test_a_key_has_a_bound_and_no_half_characters() -> None:
    encode_key(("a" * (KEY_BYTES_MAX - 2),))
    with pytest.raises(ValueError, match=f"a key of {KEY_BYTES_MAX + 1} bytes: at most {KEY_BYTES_MAX}"):
        encode_key(("a" * (KEY_BYTES_MAX - 1),))
    with pytest.raises(ValueError, match="surrogates not allowed"):
        encode_key(("\ud800",))


@pytest.mark.parametrize("data", [b"\x20a", b"\x20a\0\xff", b"\x15", b"\x15\0", b"\x13\xff", b"\xff", b"\0"])
def test_what_is_no_key_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not an encoded key"):
        decode_key(data)
