"""Payload codecs: compression and encryption, the envelope, keys that change, and payloads that were changed."""

from __future__ import annotations

import base64
import json
import os
import zlib
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.test_data_converters import json_values

from zaptasks import Codec, CodecError, Compression, DataConverter, Encryption, Failure, PayloadError
from zapwire.body import BODY_BYTES_MAX
from zapwire.failure import FAILURE_BYTES_MAX, decode_failure

OLD, NEW = bytes(range(32)), bytes(range(1, 33))
PLAIN = DataConverter()
SECRET = DataConverter(codecs=[Compression(bytes_min=0), Encryption({"new": NEW}, "new")])
try:
    Compression("zstd")
    ALGORITHMS = ["zlib", "zstd"]
except ValueError:
    ALGORITHMS = ["zlib"]
HAS_ZSTD = pytest.mark.skipif("zstd" not in ALGORITHMS, reason="neither compression.zstd nor backports.zstd is here")
LONG = {"text": "all work and no play " * 100}


def envelope(payload: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(payload)
    assert document.keys() == {"$zap"}
    inner: dict[str, Any] = document["$zap"]
    return inner


class Reverse:
    """A codec of an application."""

    name = "reverse"

    def encode(self, data: bytes) -> bytes:
        return data[::-1]

    def decode(self, data: bytes) -> bytes:
        return data[::-1]


# --- the envelope -------------------------------------------------------------------------------------


def test_an_encoded_payload_is_one_json_value_that_names_its_codecs_and_its_key() -> None:
    found = envelope(SECRET.encode(LONG))
    assert found.keys() == {"codec", "key", "data"}
    assert (found["codec"], found["key"]) == (["zlib", "aes-256-gcm"], "new")
    assert b"work" not in base64.b64decode(found["data"], validate=True)


@given(json_values)
def test_any_value_comes_back_through_all_codecs(value: object) -> None:
    assert SECRET.decode(SECRET.encode(value)) == value
    assert SECRET.decode(PLAIN.encode(value)) == value, "what is not encoded is read as it is"


@dataclass
class Mail:
    to: str
    raw: bytes


def test_types_come_back_through_codecs() -> None:
    mail = Mail("ada", b"\x00\xff")
    assert SECRET.decode(SECRET.encode(mail), Mail) == mail
    assert SECRET.decode(SECRET.encode(mail).decode(), Mail) == mail


LOOKALIKES: list[Any] = [
    {"$zap": {}},
    {"$zap": {"codec": ["zlib"], "key": "", "data": "AAAA"}},
    {"$zap": {"plain": 1}},
    {"$zap": {"plain": {"$zap": {"plain": {"$zap": {}}}}}},
    {"$zap": {"codec": [], "of": "failure", "data": ""}},
]
OTHERS: list[Any] = [
    {"$zap": 5},
    {"$zap": {"other": 1}},
    {"$zap": {"codec": "zlib"}},
    {"$zap": {"data": "?"}},
    {"$zap": {}, "more": 1},
    [{"$zap": {}}],
]


@pytest.mark.parametrize("converter", [PLAIN, SECRET, DataConverter(codecs=[Compression()])])
@pytest.mark.parametrize("value", LOOKALIKES + OTHERS)
def test_a_value_that_looks_like_an_envelope_comes_back(converter: DataConverter, value: object) -> None:
    payload = converter.encode(value)
    assert converter.decode(payload) == value
    assert converter.decode(payload.decode()) == value
    assert converter.decode(msgspec.Raw(payload)) == value
    assert PLAIN.reveal(json.loads(PLAIN.encode(value))) == value


@pytest.mark.parametrize("value", OTHERS)
def test_a_value_that_is_no_envelope_is_sent_as_it_is(value: object) -> None:
    assert json.loads(PLAIN.encode(value)) == value


@given(
    st.fixed_dictionaries({"$zap": json_values})
    | st.fixed_dictionaries({"$zap": st.fixed_dictionaries({"plain": json_values})})
)
def test_escapes_come_back(value: object) -> None:
    assert PLAIN.decode(PLAIN.encode(value)) == value
    assert PLAIN.decode(PLAIN.encode(PLAIN.encode(value).decode())) == PLAIN.encode(value).decode()


def test_without_keys_the_error_says_so() -> None:
    with pytest.raises(CodecError, match=r"^this payload is encrypted with key 'new', and this client has no keys$"):
        PLAIN.decode(SECRET.encode(1))
    with pytest.raises(CodecError, match="has no keys"):
        DataConverter(codecs=[Compression()]).decode(SECRET.encode(1))


def test_a_codec_that_is_not_here_is_named() -> None:
    sent = DataConverter(codecs=[Reverse()]).encode(1)
    with pytest.raises(CodecError, match="is encoded with 'reverse', and the codecs of this client are: 'zlib'"):
        DataConverter(codecs=[Compression()]).decode(sent)


def test_the_order_of_the_codecs_is_that_of_the_envelope_and_not_of_the_reader() -> None:
    sent = DataConverter(codecs=[Reverse(), Encryption({"new": NEW}, "new")]).encode(LONG)
    assert DataConverter(codecs=[Encryption({"new": NEW}, "new"), Reverse()]).decode(sent) == LONG
    assert isinstance(Reverse(), Codec)


def test_two_codecs_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two codecs have the same name"):
        DataConverter(codecs=[Compression(), Compression()])


def test_the_limit_is_for_what_is_sent() -> None:
    random = os.urandom(60).hex()
    assert len(DataConverter(codecs=[Compression(bytes_min=0)]).encode("a" * 1000, "the memo", 200)) <= 200
    with pytest.raises(PayloadError, match=r"the memo is 2\d\d bytes of JSON; at most 200"):
        SECRET.encode(random, "the memo", 200)


# --- compression ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_compression_works_from_a_size_on_and_when_it_helps(algorithm: Any) -> None:
    converter = DataConverter(codecs=[Compression(algorithm, bytes_min=500)])
    assert envelope(converter.encode(LONG))["codec"] == [algorithm]
    assert len(converter.encode(LONG)) < len(PLAIN.encode(LONG)) / 4
    assert converter.decode(converter.encode(LONG)) == LONG
    assert converter.encode("a" * 400) == PLAIN.encode("a" * 400)
    noise = base64.b64encode(os.urandom(3000)).decode()
    assert converter.encode(noise) == PLAIN.encode(noise)


@given(st.binary(max_size=3000))
def test_compressed_bytes_come_back(data: bytes) -> None:
    for algorithm in ALGORITHMS:
        codec = Compression(algorithm, bytes_min=0)  # type: ignore[arg-type]
        shorter = codec.encode(data)
        if shorter is not data:
            assert len(shorter) < len(data)
            assert codec.decode(shorter) == data


@HAS_ZSTD
def test_both_ways_of_compression_are_read_by_a_client_that_has_both() -> None:
    both = DataConverter(codecs=[Compression("zstd"), Compression("zlib")])
    assert envelope(both.encode(LONG))["codec"] == ["zstd"]
    assert both.decode(DataConverter(codecs=[Compression()]).encode(LONG)) == LONG


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_few_bytes_cannot_fill_the_memory(algorithm: Any) -> None:
    codec = Compression(algorithm)
    bomb = codec.encode(b" " * (BODY_BYTES_MAX + 1))
    assert len(bomb) < 100_000
    with pytest.raises(CodecError, match="more than"):
        codec.decode(bomb)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_broken_compression_is_a_codec_error(algorithm: Any) -> None:
    codec = Compression(algorithm)
    good = codec.encode(b"a" * 5000)
    for broken in (b"", b"\x00garbage", good[:-1], good + b"x"):
        with pytest.raises(CodecError, match=f"with {algorithm}"):
            codec.decode(broken)


def test_settings_of_compression_are_checked() -> None:
    with pytest.raises(ValueError, match="bytes_min is -1"):
        Compression(bytes_min=-1)
    with pytest.raises(ValueError, match='must be "zlib" or "zstd"'):
        Compression("lzma")  # type: ignore[arg-type]


def test_zstd_where_there_is_none_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ValueError, match=r"backports\.zstd"):
        Compression("zstd")


# --- encryption -------------------------------------------------------------------------------------------


@given(st.binary(max_size=500))
def test_encrypted_bytes_come_back_and_never_look_the_same(data: bytes) -> None:
    codec = Encryption({"new": NEW}, "new")
    one, other = codec.encode(data), codec.encode(data)
    assert one != other
    assert codec.decode(one) == codec.decode(other) == data


def test_no_nonce_occurs_twice() -> None:
    codec = Encryption({"new": NEW}, "new")
    start = 2 + len("new")
    nonces = {codec.encode(b"")[start : start + 12] for _ in range(5_000)}
    assert len(nonces) == 5_000


@given(st.data())
def test_every_changed_byte_is_noticed(data: st.DataObject) -> None:
    codec = Encryption({"new": NEW, "old": OLD, "nev": NEW}, "new")
    sealed = bytearray(codec.encode(b"pay 10 to ada"))
    index = data.draw(st.integers(0, len(sealed) - 1))
    sealed[index] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CodecError):
        codec.decode(bytes(sealed))


def test_a_key_id_that_was_changed_to_another_with_the_same_key_is_noticed() -> None:
    codec = Encryption({"new": NEW, "nev": NEW}, "new")
    with pytest.raises(CodecError, match="was changed on its way"):
        codec.decode(codec.encode(b"x").replace(b"new", b"nev"))


@pytest.mark.parametrize("length", range(33))
def test_a_payload_that_is_cut_off_is_a_codec_error(length: int) -> None:
    codec = Encryption({"new": NEW}, "new")
    with pytest.raises(CodecError):
        codec.decode(codec.encode(b"")[:length])


def test_a_wrong_key_under_the_same_id_is_a_clear_error() -> None:
    sealed = Encryption({"k": OLD}, "k").encode(b"x")
    with pytest.raises(CodecError, match="or key 'k' is not the same here"):
        Encryption({"k": NEW}, "k").decode(sealed)


def test_keys_change_while_payloads_are_under_way() -> None:
    before = DataConverter(codecs=[Encryption({"old": OLD}, "old")])
    readers = DataConverter(codecs=[Encryption({"old": OLD, "new": NEW}, "old")])
    writers = DataConverter(codecs=[Encryption({"old": OLD, "new": NEW}, "new")])
    after = DataConverter(codecs=[Encryption({"new": NEW}, "new")])
    assert envelope(readers.encode(1))["key"] == "old"
    assert envelope(writers.encode(1))["key"] == "new"
    for one, next_ in ((before, readers), (readers, writers), (writers, after)):
        assert next_.decode(writers.encode(1) if next_ is after else one.encode(1)) == 1
    assert readers.decode(writers.encode(2)) == 2
    with pytest.raises(CodecError, match="is encrypted with key 'new', and the keys here are 'old'"):
        before.decode(writers.encode(1))
    with pytest.raises(CodecError, match="is encrypted with key 'old', and the keys here are 'new'"):
        after.decode(before.encode(1))


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(31), bytes(33), "a" * 32, 5])
def test_a_key_of_another_length_is_refused_without_showing_it(key: Any) -> None:
    with pytest.raises(ValueError, match="must be 32 random bytes") as caught:
        Encryption({"k": key}, "k")
    assert repr(key) not in str(caught.value) or key == 5


def test_an_active_key_that_is_not_there_and_bad_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="the active key is 'b', and the keys are 'a'"):
        Encryption({"a": NEW}, "b")
    with pytest.raises(ValueError, match="the keys are none"):
        Encryption({}, "")
    for key_id in ("", "x" * 256, "a\nb"):
        with pytest.raises(ValueError, match="1 to 255 bytes"):
            Encryption({key_id: NEW}, key_id)


def test_keys_are_not_shown() -> None:
    codec = Encryption({"a": NEW, "b": OLD}, "a")
    shown = repr(codec) + repr(DataConverter(codecs=[codec]))
    assert shown == "<Encryption with key 'a' of 'a', 'b'><DataConverter with codecs: aes-256-gcm>"


def test_a_payload_that_is_no_base64_or_json_is_read_as_it_is_or_refused() -> None:
    payload = b'{"$zap":{"codec":["aes-256-gcm"],"key":"new","data":"AAAA"}}'
    with pytest.raises(CodecError, match="version"):
        SECRET.decode(payload)
    broken = b'{"$zap":{"codec":["zlib"],"data":"' + base64.b64encode(zlib.compress(b"{no json")) + b'"}}'
    with pytest.raises(Exception, match="cannot be read"):
        SECRET.decode(broken)


# --- failures ---------------------------------------------------------------------------------------------

FAILURE = Failure(
    message="card 4111 refused",
    code="Payment",
    non_retryable=True,
    details=[msgspec.Raw(b'"4111"')],
    cause=Failure(message="bank says 4111", code="Bank", stack="line 4111"),
    stack="File 4111",
    next_retry_ms=5,
)


def test_a_failure_shows_the_server_its_code_and_whether_to_retry_and_nothing_else() -> None:
    sent = SECRET.encode_failure(FAILURE)
    assert b"4111" not in sent
    assert b"Bank" not in sent
    seen = decode_failure(sent)
    assert (seen.message, seen.code, seen.non_retryable, seen.next_retry_ms) == ("encrypted", "Payment", True, 5)
    assert (seen.cause, seen.stack) == (None, "")
    assert SECRET.decode_failure(sent) == FAILURE


def test_a_failure_inside_one_of_the_servers_own_is_opened_too() -> None:
    outer = Failure(message="too late", code="TimeoutError", cause=decode_failure(SECRET.encode_failure(FAILURE)))
    assert SECRET.open_failure(outer).cause == FAILURE


def test_without_the_key_a_failure_is_still_a_failure_and_says_why_it_is_dark() -> None:
    read = PLAIN.decode_failure(SECRET.encode_failure(FAILURE))
    assert (read.code, read.non_retryable) == ("Payment", True)
    assert read.message == "encrypted: this payload is encrypted with key 'new', and this client has no keys"


def test_a_long_failure_keeps_its_message_and_fits() -> None:
    noise = os.urandom(200_000).hex()
    long = msgspec.structs.replace(FAILURE, stack=noise[:250_000], details=[msgspec.Raw(b'"' + noise.encode() + b'"')])
    sent = SECRET.encode_failure(long)
    assert len(sent) <= FAILURE_BYTES_MAX
    assert SECRET.decode_failure(sent).message == FAILURE.message


def test_compression_alone_hides_no_failure() -> None:
    converter = DataConverter(codecs=[Compression(bytes_min=0)])
    assert decode_failure(converter.encode_failure(FAILURE)) == FAILURE
    assert converter.decode_failure(converter.encode_failure(FAILURE)) == FAILURE


def test_a_codec_that_does_not_say_counts_as_one_that_hides() -> None:
    assert b"4111" not in DataConverter(codecs=[Reverse()]).encode_failure(FAILURE)


@pytest.mark.parametrize("text", ["", "no", 'an {"$zap":{}} in it', "ä\n"])
def test_a_text_is_hidden_and_found(text: str) -> None:
    hidden = SECRET.hide_text(text)
    assert not text or text not in hidden
    assert SECRET.find_text(f"the query failed: {hidden}") == f"the query failed: {text}"
    assert PLAIN.find_text(hidden) == hidden
    assert PLAIN.hide_text(text) == text
