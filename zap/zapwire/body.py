"""JSON and CBOR bodies, bounded in size and nesting, with one kind of error for each side's fault.

A value of ours that cannot be sent raises `LocalProtocolError`; a body of a peer's that cannot be read
raises `BadBody`. What the two formats leave open is decided here:

- JSON has no NaN or infinity: sending one is an error (msgspec alone would quietly write null).
  CBOR carries them.
- Lone surrogates have no UTF-8 form: an error both ways, as text and as a JSON escape. A JSON body must be
  UTF-8 throughout, also in the parts that are passed on unread.
- A key that occurs twice: the last wins in JSON, as in Go; CBOR refuses it.
- Integers are exact in any size up to 4,300 digits in JSON and 1,024 bytes in CBOR. A JSON number with a
  fraction or an exponent is a 64-bit float and refused when it does not fit.
- Map keys are text. Numbers as keys become text when sent; CBOR refuses other keys when it reads, since
  numbers can be chosen to collide in a hash table.
- CBOR bodies carry bytes and aware datetimes besides what JSON has. Every other tag is refused: some
  of those that cbor2 knows build patterns, addresses or shared references from what a peer sends.
- Nothing may follow the value but JSON whitespace.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import io
import math
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any, Final, TypeVar, overload

import cbor2
import msgspec

from zapwire.errors import BadBody, LocalProtocolError
from zapwire.frame import FRAME_BYTES_MAX, Buffer

BODY_BYTES_MAX: Final = FRAME_BYTES_MAX
"""No body is longer than the frame that it travels in. What is kept in files may be: `bytes_max` says how long."""

BODY_DEPTH_MAX: Final = 200
"""How deep lists and maps may be nested: far above any real body, far below the interpreter's stack."""

PAYLOAD_DEPTH_MAX: Final = 160
"""The same of a value that is kept and passed on: it is read inside a page of history, or of a failure's causes."""

BIGNUM_BYTES_MAX: Final = 1024
"""The longest integer that a CBOR body may carry: printing a number takes time in the square of its length."""

_BIGNUM_LIMIT: Final = 1 << 8 * BIGNUM_BYTES_MAX
_TOO_DEEP: Final = f"nested more than {BODY_DEPTH_MAX} levels deep"

T = TypeVar("T")

_json_encoder: Final = msgspec.json.Encoder()
_plain_decoder: Final = msgspec.json.Decoder()


def encode_json(value: object) -> bytes:
    """Encode a value, msgspec structs and dataclasses included, as UTF-8 JSON without spaces."""
    return encode_json_with(_json_encoder, value)


def encode_json_with(encoder: msgspec.json.Encoder, value: object) -> bytes:
    """The same with an encoder that has a hook for more types; what its hook returns is not searched for NaN."""
    try:
        body = encoder.encode(value)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise LocalProtocolError(f"the value cannot be sent as JSON: {error}") from None
    # Only a body with a null in it can hide a NaN, so that the search through the value is rare.
    # (`find`, because `in` takes 100 ns more for bytes.)
    if body.find(b"null") >= 0 and has_non_finite(value):
        raise LocalProtocolError("the value cannot be sent as JSON: it contains NaN or an infinity")
    if len(body) <= BODY_DEPTH_MAX:
        return body
    if _json_too_deep(body):
        raise LocalProtocolError(f"the value cannot be sent as JSON: {_TOO_DEEP}")
    return _checked_size(body)


@overload
def decode_json(body: Buffer, *, bytes_max: int = ...) -> Any: ...
@overload
def decode_json(body: Buffer, type: type[T], *, bytes_max: int = ...) -> T: ...
def decode_json(body: Buffer, type: Any = Any, *, bytes_max: int = BODY_BYTES_MAX) -> Any:
    """Decode a JSON body, into `type` where one is given (any type that msgspec understands)."""
    is_long = len(body) > BODY_DEPTH_MAX
    if is_long:
        _check_received_size(body, bytes_max)
    try:
        text = str(body, "utf-8")
        if is_long and _json_too_deep(body):
            raise BadBody(f"the JSON body cannot be read: {_TOO_DEEP}")
        return (_plain_decoder if type is Any else _json_decoder(type)).decode(text)
    except UnicodeDecodeError as error:
        raise BadBody(f"the JSON body is not UTF-8 at byte {error.start}") from None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadBody(f"the JSON body cannot be read: {error}") from None


@functools.lru_cache(maxsize=1024)
def _json_decoder(type: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(type)


def encode_cbor(value: object, *, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """Encode a value, msgspec structs and dataclasses included, as CBOR. Datetimes must have a time zone."""
    try:
        plain = msgspec.to_builtins(value, builtin_types=_CBOR_TYPES, str_keys=True)
        _check_cbor(plain)
        body = cbor2.dumps(plain)
    except (msgspec.MsgspecError, cbor2.CBORError, TypeError, ValueError, RecursionError) as error:
        raise LocalProtocolError(f"the value cannot be sent as CBOR: {error}") from None
    return _checked_size(body, bytes_max)


@overload
def decode_cbor(body: Buffer, *, bytes_max: int = ...) -> Any: ...
@overload
def decode_cbor(body: Buffer, type: type[T], *, bytes_max: int = ...) -> T: ...
def decode_cbor(body: Buffer, type: Any = Any, *, bytes_max: int = BODY_BYTES_MAX) -> Any:
    """Decode a CBOR body, into `type` where one is given (any type that msgspec understands)."""
    _check_received_size(body, bytes_max)
    stream = io.BytesIO(body)
    try:
        value = cbor2.CBORDecoder(
            stream,
            semantic_decoders=_CBOR_TAGS,
            max_depth=BODY_DEPTH_MAX,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        ).decode()
        if stream.tell() != len(body):
            raise BadBody(f"the CBOR body has {len(body) - stream.tell()} bytes after its value")
        # Refuses what only CBOR knows: undefined, simple values, bytes as keys.
        plain = msgspec.to_builtins(value, builtin_types=_CBOR_TYPES, str_keys=True)
        return plain if type is Any else msgspec.convert(plain, type, builtin_types=_CBOR_TYPES)
    except (msgspec.MsgspecError, cbor2.CBORError, TypeError, ValueError, RecursionError) as error:
        raise BadBody(f"the CBOR body cannot be read: {error}") from None


def cbor_from_json(body: Buffer) -> bytes:
    """A JSON body as CBOR. Raises `LocalProtocolError` for an integer that is too long for CBOR."""
    value = decode_json(body)
    if len(body) > 2 * BIGNUM_BYTES_MAX:  # no shorter text has so many digits
        try:
            _check_cbor(value)
        except ValueError as error:
            raise LocalProtocolError(f"the value cannot be sent as CBOR: {error}") from None
    return _checked_size(cbor2.dumps(value))


def json_from_cbor(body: Buffer) -> bytes:
    """A CBOR body as JSON: bytes become base64 text, times ISO 8601. Raises `BadBody`, for NaN and infinities too."""
    value = decode_cbor(body)
    try:
        return encode_json(value)
    except LocalProtocolError as error:
        raise BadBody(f"the CBOR body cannot be read as JSON: {error}") from None


def unreadable(text: bytes, depth_max: int = PAYLOAD_DEPTH_MAX) -> str:
    """Why those to whom this JSON value is passed on inside a body could not read that body; empty if they could.

    For a value whose JSON was only skipped so far, which looks neither at its depth nor at the range of its numbers.
    """
    if len(text) > depth_max and _json_too_deep(text, depth_max):
        return f"is nested more than {depth_max} levels deep"
    marked = text.translate(_NUMBER_PARTS)  # text and search take 2 ns a byte; reading all values would take 10 to 50
    if any(marked.find(part) >= 0 for part in _LARGE_NUMBERS):
        try:
            _plain_decoder.decode(text)
        except msgspec.MsgspecError:
            return "has a number that is out of range: send it as text"
    return ""


def _checked_size(body: bytes, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    if len(body) > bytes_max:
        raise LocalProtocolError(f"the value cannot be sent: {len(body)} bytes, at most {bytes_max} are allowed")
    return body


def _check_received_size(body: Buffer, bytes_max: int) -> None:
    if len(body) > bytes_max:
        raise BadBody(f"the body has {len(body)} bytes, at most {bytes_max} are allowed")


_NOT_STRUCTURE: Final = bytes(byte for byte in range(256) if byte not in b'[]{}"')
_STEP: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


_NUMBER_PARTS: Final = bytes.maketrans(b"123456789E", b"000000000e")
_LARGE_NUMBERS: Final = (b"0e000", b"0e+000", b"0" * 200)
"""One of these, in text that went through `_NUMBER_PARTS`, is in every number that can be out of range."""


def _json_too_deep(body: Buffer, depth_max: int = BODY_DEPTH_MAX) -> bool:
    """True when brackets are nested deeper than the bound; exact for well-formed JSON. Only longer bodies can be.

    The number of opening brackets settles it for most bodies. For the others the brackets
    within strings are taken out first: without escapes, every second piece between quotes is inside a string,
    and dropping two adjacent quotes changes nothing about that. All of it runs in C, in linear time.
    """
    text = bytes(body)
    if text.count(b"[") + text.count(b"{") <= depth_max:
        return False
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    structure = text.translate(None, _NOT_STRUCTURE).replace(b'""', b"")
    brackets = b"".join(structure.split(b'"')[::2])
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > depth_max


def has_non_finite(value: object) -> bool:
    """Whether a float in it, at any depth, is NaN or an infinity."""
    match value:
        case float():
            return not math.isfinite(value)
        case dict():
            return any(has_non_finite(item) for item in value.values())
        case list() | tuple() | set() | frozenset():
            return any(has_non_finite(item) for item in value)
        case msgspec.Struct():
            return _any_non_finite(value, value.__struct_fields__)
        case _ if dataclasses.is_dataclass(value):
            return _any_non_finite(value, (field.name for field in dataclasses.fields(value)))
        case _:
            attributes: tuple[Any, ...] = getattr(type(value), "__attrs_attrs__", ())
            return _any_non_finite(value, (attribute.name for attribute in attributes))


def _any_non_finite(value: object, names: Iterable[str]) -> bool:
    return any(has_non_finite(getattr(value, name)) for name in names)


def _check_cbor(value: object) -> None:
    """Refuse what our own decoder would refuse: too many levels, integers too long."""
    level = [value]
    for _ in range(BODY_DEPTH_MAX + 1):
        inner: list[object] = []
        containers = False
        for item in level:
            if isinstance(item, dict):
                containers = True
                inner.extend(item.values())
            elif isinstance(item, list | tuple):
                containers = True
                inner.extend(item)
            elif isinstance(item, int) and not -_BIGNUM_LIMIT <= item < _BIGNUM_LIMIT:
                raise ValueError(f"an integer of {item.bit_length()} bits, at most {8 * BIGNUM_BYTES_MAX} are allowed")
        if not containers:
            return
        level = inner
    raise ValueError(_TOO_DEEP)


_CBOR_TYPES: Final = (bytes, bytearray, memoryview, datetime.datetime)


def _refuse_tag(value: object, immutable: bool) -> object:
    raise ValueError("this tag is not allowed")


def _positive_bignum(value: object, immutable: bool) -> int:
    if not isinstance(value, bytes) or len(value) > BIGNUM_BYTES_MAX:
        raise ValueError(f"an integer is a byte string of at most {BIGNUM_BYTES_MAX} bytes")
    return int.from_bytes(value, "big")


def _negative_bignum(value: object, immutable: bool) -> int:
    return -1 - _positive_bignum(value, immutable)


class _AllowedTags(dict[int, Callable[[Any, bool], Any]]):
    """The CBOR tags that are read: dates (0, 1) by cbor2, big integers (2, 3) here. All others are refused."""

    def __missing__(self, tag: int) -> Callable[[Any, bool], Any]:
        if tag in (0, 1):
            raise KeyError(tag)
        return _refuse_tag


_CBOR_TAGS: Final = _AllowedTags({2: _positive_bignum, 3: _negative_bignum})
