"""How values become payloads and payloads values: JSON, and whatever codecs do to it.

    converter = DataConverter(codecs=[Compression(), Encryption(keys, active="2026-11")])
    async with zaptasks.open_client("127.0.0.1:9999", converter=converter) as client: ...

Without codecs a payload is the JSON of the value and nothing else, which is what Go's peers read. What codecs have
changed is still one JSON value, an envelope:

    {"$zap": {"codec": ["zlib", "aes-256-gcm"], "key": "2026-11", "data": "<base64>"}}

`codec` names the codecs in the order in which they were used. A value of the application that looks like an envelope
is sent as `{"$zap": {"plain": <the value>}}`. A failure that is hidden keeps its code, whether it may be retried, and
when: its message is "encrypted", and the whole of it is in its only detail, an envelope with `"of": "failure"`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, overload

import msgspec

from zapwire.body import BODY_BYTES_MAX, decode_json
from zapwire.errors import BadBody
from zapwire.failure import FAILURE_BYTES_MAX, Failure, decode_failure, encode_failure
from zapwire.frame import Buffer

from .codecs import Codec
from .errors import CodecError, PayloadError
from .json_types import UnreadableType, reader, type_text
from .payloads import PAYLOAD_BYTES_MAX, encode_payload, too_large

HIDDEN_TEXT: Final = "encrypted"
"""What the server sees of the message of a failure."""

_FAILURE: Final = "failure"
_HIDDEN_FAILURE_BYTES_MAX: Final = FAILURE_BYTES_MAX - 4096
_MARK: Final = b'"$zap"'
_MARK_TEXT: Final = '"$zap"'
_HEAD: Final = slice(1, 7)
"""Where an envelope has its mark. Slicing and comparing takes 50 ns for any payload; `in` takes three times as long."""

T = TypeVar("T")


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    codec: list[str] = []
    key: str = ""
    of: str = ""
    data: bytes = b""
    plain: msgspec.Raw = msgspec.Raw()


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    zap: _Sealed = msgspec.field(name="$zap")


_encoder: Final = msgspec.json.Encoder()
_envelopes: Final = msgspec.json.Decoder(_Envelope)


class DataConverter:
    """Encodes and decodes everything that is the application's: for a client, its workers, and the local engine.

    Peers that exchange payloads need converters that can read each other's: the same codecs, and the keys. May be used
    from any thread.
    """

    __slots__ = ("_by_name", "_codecs", "_hides")

    def __init__(self, *, codecs: Sequence[Codec] = ()) -> None:
        self._codecs = tuple(codecs)
        self._by_name = {codec.name: codec for codec in self._codecs}
        if len(self._by_name) != len(self._codecs):
            names = ", ".join(codec.name for codec in self._codecs)
            raise ValueError(f"two codecs have the same name, and could not be told apart: {names}")
        self._hides = any(getattr(codec, "hides", True) for codec in self._codecs)

    def __repr__(self) -> str:
        return f"<DataConverter with codecs: {', '.join(self._by_name) or 'none'}>"

    # --- values --------------------------------------------------------------------------------------

    def encode(self, value: object, what: str = "the value", bytes_max: int = PAYLOAD_BYTES_MAX) -> bytes:
        """The payload for a value; `what` is its name in errors.

        Raises `PayloadError` for what JSON cannot carry, with the type and the path of the offending part, and for a
        payload of more than `bytes_max`.
        """
        return self.seal(encode_payload(value, what, BODY_BYTES_MAX if self._codecs else bytes_max), what, bytes_max)

    def seal(self, payload: bytes, what: str = "the value", bytes_max: int = PAYLOAD_BYTES_MAX) -> bytes:
        """The payload for a value that is JSON already. Raises `PayloadError` where the codecs make too much of it."""
        if self._codecs or payload[_HEAD] == _MARK:
            payload = self._seal(payload)
            if len(payload) > bytes_max:
                raise too_large(what, len(payload), bytes_max)
        return payload

    def encode_optional(self, value: object, what: str, bytes_max: int = PAYLOAD_BYTES_MAX) -> msgspec.Raw | None:
        """The same for a value that is part of a request; None stays absent."""
        return None if value is None else msgspec.Raw(self.encode(value, what, bytes_max))

    def encode_arguments(self, args: tuple[object, ...], what: str) -> msgspec.Raw:
        """Positional arguments as the JSON array that workflows, activities and queries take, in one payload."""
        return msgspec.Raw(self.encode(list(args), what))

    @overload
    def decode(self, payload: Buffer | str | msgspec.Raw) -> Any: ...
    @overload
    def decode(self, payload: Buffer | str | msgspec.Raw, type: type[T]) -> T: ...
    def decode(self, payload: Buffer | str | msgspec.Raw, type: Any = Any) -> Any:
        """The value of a payload, read as `type` where one is given.

        Raises `BadBody` for a payload of another shape, with the path of the part that does not fit, `CodecError` for
        one whose codec or key is not here, and `PayloadError` for a type that nothing can be read as.
        """
        data = payload if isinstance(payload, bytes) else _as_bytes(payload)
        if data[_HEAD] == _MARK:
            data = self._open(data)
        if type is Any:
            return decode_json(data)
        try:
            read = reader(type)
        except UnreadableType as error:
            raise PayloadError(str(error), path=error.path) from None
        decode_json(data, msgspec.Raw)  # its size, depth and encoding
        try:
            return read(data)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise BadBody(f"the JSON body cannot be read as {type_text(type)}: {error}") from None

    # --- payloads ------------------------------------------------------------------------------------

    def open(self, payload: Buffer | str | msgspec.Raw) -> bytes | str:
        """The JSON in a payload: itself, unless it is an envelope. Raises `CodecError`."""
        if isinstance(payload, str):
            return self._open(payload.encode()) if payload[_HEAD] == _MARK_TEXT else payload
        data = payload if isinstance(payload, bytes) else _as_bytes(payload)
        return self._open(data) if data[_HEAD] == _MARK else data

    def _seal(self, plain: bytes, of: str = "") -> bytes:
        data, names, key = plain, [], ""
        for codec in self._codecs:
            encoded = _call(codec, codec.encode, data)
            if encoded is not data:
                names.append(codec.name)
                key = getattr(codec, "key", "") or key
                data = encoded
        if names:
            return _encoder.encode(_Envelope(_Sealed(codec=names, key=key, of=of, data=data)))
        return _escaped(plain) if plain[_HEAD] == _MARK else plain

    def _open(self, payload: bytes) -> bytes:
        sealed = _envelope(payload)
        return payload if sealed is None else self._unseal(sealed)

    def _unseal(self, sealed: _Sealed) -> bytes:
        if sealed.plain:
            return bytes(sealed.plain)
        data = sealed.data
        for name in reversed(sealed.codec):
            codec = self._by_name.get(name)
            if codec is None:
                raise CodecError(self._missing(sealed, name))
            data = _call(codec, codec.decode, data)
        return data

    def _missing(self, sealed: _Sealed, name: str) -> str:
        if sealed.key and not self._hides:
            return f"this payload is encrypted with key {sealed.key!r}, and this client has no keys"
        known = ", ".join(map(repr, self._by_name)) or "none"
        return f"this payload is encoded with {name!r}, and the codecs of this client are: {known}"

    # --- failures ------------------------------------------------------------------------------------

    def encode_failure(self, failure: Failure) -> bytes:
        """A failure as it travels. With a codec that hides, only its code and when it may be retried can be read.

        Never raises: where the codecs fail, nothing but that goes.
        """
        if not self._hides:
            return encode_failure(failure)
        shown = Failure(
            message=HIDDEN_TEXT,
            code=failure.code,
            non_retryable=failure.non_retryable,
            next_retry_ms=failure.next_retry_ms,
        )
        try:
            sealed = self._seal(encode_failure(failure), _FAILURE)
            if len(sealed) > _HIDDEN_FAILURE_BYTES_MAX:
                short = msgspec.structs.replace(
                    failure, message=failure.message[:4096], details=None, cause=None, stack=""
                )
                sealed = self._seal(encode_failure(short), _FAILURE)
        except CodecError as error:
            return encode_failure(msgspec.structs.replace(shown, message=f"lost: {error}"))
        return encode_failure(msgspec.structs.replace(shown, details=[msgspec.Raw(sealed)]))

    def decode_failure(self, data: Buffer | msgspec.Raw) -> Failure:
        """The failure that somebody sent. Never raises: one that cannot be decrypted says why in its message."""
        return self.open_failure(decode_failure(data))

    def open_failure(self, failure: Failure) -> Failure:
        """What a failure hides, in its causes too: the server may have put it into one of its own."""
        try:
            failure = self._revealed(failure)
        except (CodecError, BadBody) as error:
            return msgspec.structs.replace(failure, message=f"{failure.message}: {error}", details=None)
        if failure.cause is None:
            return failure
        return msgspec.structs.replace(failure, cause=self.open_failure(failure.cause))

    def open_failure_json(self, data: bytes) -> bytes:
        """The JSON of a failure with all that it hides. Raises `CodecError` for what cannot be opened."""
        return data if _MARK not in data else encode_failure(self._opened_failure(decode_failure(data)))

    def _opened_failure(self, failure: Failure) -> Failure:
        failure = self._revealed(failure)
        if failure.cause is None:
            return failure
        return msgspec.structs.replace(failure, cause=self._opened_failure(failure.cause))

    def _revealed(self, failure: Failure) -> Failure:
        details = failure.details
        if not details:
            return failure
        if len(details) == 1:
            sealed = _envelope(bytes(details[0])) if bytes(details[0])[_HEAD] == _MARK else None
            if sealed is not None and sealed.of == _FAILURE:
                failure = decode_failure(self._unseal(sealed))
                details = failure.details or []
        if not any(bytes(detail)[_HEAD] == _MARK for detail in details):
            return failure
        return msgspec.structs.replace(failure, details=[msgspec.Raw(bytes(self._open(bytes(raw)))) for raw in details])

    # --- what is shown -------------------------------------------------------------------------------

    def reveal(self, value: Any) -> Any:
        """A payload that was read as part of an answer, for people: an envelope stays if it cannot be opened."""
        if not isinstance(value, dict) or value.keys() != {"$zap"}:
            return value
        try:
            return decode_json(self._open(_encoder.encode(value)))
        except (CodecError, BadBody):
            return value

    def reveal_failure(self, value: Any) -> Any:
        """The same for a failure."""
        if not isinstance(value, dict) or _MARK not in (data := _encoder.encode(value)):
            return value
        return decode_json(encode_failure(self.decode_failure(data)))

    # --- texts ---------------------------------------------------------------------------------------

    def hide_text(self, text: str) -> str:
        """A text for the other side, in an answer that has nothing but text: why a query failed."""
        if not self._hides:
            return text
        try:
            return self._seal(_encoder.encode(text)).decode()
        except CodecError as error:
            return f"lost: {error}"

    def find_text(self, text: str) -> str:
        """A text with the part in it that `hide_text` has made, in the open; itself if that cannot be opened."""
        start = text.find('{"$zap":')
        if start < 0:
            return text
        try:
            return text[:start] + str(decode_json(self._open(text[start:].encode())))
        except (CodecError, BadBody):
            return text


def _call(codec: Codec, method: Callable[[bytes], bytes], data: bytes) -> bytes:
    """Have a codec work. Whatever it raises is a `CodecError` to those who have payloads, and not their end."""
    try:
        return method(data)
    except CodecError:
        raise
    except Exception as error:
        raise CodecError(f"the codec {codec.name!r} failed: {type(error).__name__}") from error


def _as_bytes(payload: Buffer | str | msgspec.Raw) -> bytes:
    return payload.encode() if isinstance(payload, str) else bytes(payload)


def _envelope(payload: bytes) -> _Sealed | None:
    """What is in an envelope; None for any other value."""
    try:
        return _envelopes.decode(payload).zap
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _escaped(payload: bytes) -> bytes:
    """A payload of the application, so that it cannot be taken for an envelope."""
    if _envelope(payload) is None:
        return payload
    return _encoder.encode(_Envelope(_Sealed(plain=msgspec.Raw(payload))))


PLAIN: Final = DataConverter()
"""The converter of those who name none: JSON as it is."""
