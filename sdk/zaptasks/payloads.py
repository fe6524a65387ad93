"""Values of the application as JSON payloads, with errors that name the part that does not fit.

What msgspec encodes can be sent: JSON's own types, and dataclasses, attrs classes, msgspec Structs, enums,
datetimes, UUIDs, Decimals, sets and bytes (as base64 text); and paths and pydantic models. They arrive as JSON's own
types, or as the type that a handler's parameter is annotated with. What codecs do to the JSON stands in converters.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

import msgspec

from zapwire.body import PAYLOAD_DEPTH_MAX, encode_json_with, unreadable
from zapwire.errors import LocalProtocolError

from .errors import PayloadError
from .json_types import encoder, is_model, type_text

PAYLOAD_BYTES_MAX: Final = 4 * 1024 * 1024
"""Go's protocol hands a payload on as text inside JSON, where quotes and backslashes double: this much still
fits a frame of 10 MiB, with everything around it."""

SMALL_PAYLOAD_BYTES_MAX: Final = 256 * 1024
"""Memos and heartbeat details: they come along wherever a task is listed or delivered again."""


def encode_payload(value: object, what: str, bytes_max: int = PAYLOAD_BYTES_MAX) -> bytes:
    """Encode `value` as JSON; `what` is its name in errors, such as "the payload of 'email.send'".

    Raises `PayloadError` for what JSON cannot carry, with the type and the path of the offending part, and for
    more than `bytes_max`.
    """
    try:
        payload = encode_json_with(encoder, value)
    except LocalProtocolError as error:
        path, culprit, reason = _find_culprit(value, "$", 0) or ("$", value, str(error))
        raise PayloadError(
            f"{what} cannot be sent as JSON: {path} is of type {type_text(type(culprit))}: {reason}", path=path
        ) from None
    if len(payload) > bytes_max:
        raise too_large(what, len(payload), bytes_max)
    if reason := unreadable(payload):
        raise PayloadError(f"{what} cannot be sent as JSON: it {reason}", path="$")
    return payload


def too_large(what: str, size: int, bytes_max: int) -> PayloadError:
    """The error for a payload of more bytes than may be sent."""
    return PayloadError(
        f"{what} is {size} bytes of JSON; at most {bytes_max} can be sent:"
        " store the data elsewhere and send where it is",
        path="$",
    )


def result_too_large(name: str) -> PayloadError:
    """What happened to the result of a handler that its server does not take, though the protocol would."""
    return PayloadError(
        f"the result of {name!r} is larger than this server takes: store the data elsewhere and send where it is",
        path="$",
    )


def encode_optional(value: object, what: str, bytes_max: int = PAYLOAD_BYTES_MAX) -> msgspec.Raw | None:
    """The same for a value that is part of a request; None stays absent."""
    return None if value is None else msgspec.Raw(encode_payload(value, what, bytes_max))


def encode_memo(memo: Mapping[str, object] | None) -> msgspec.Raw | None:
    """The memo of a workflow; None stays absent."""
    return encode_optional(None if memo is None else dict(memo), "the memo", SMALL_PAYLOAD_BYTES_MAX)


def encode_arguments(args: tuple[object, ...], what: str) -> msgspec.Raw:
    """Positional arguments as the JSON array that workflows, activities and queries take."""
    return msgspec.Raw(encode_payload(list(args), what))


def _find_culprit(value: object, path: str, depth: int) -> tuple[str, object, str] | None:
    """The first part that cannot be encoded by itself: its path, itself, and why. Slow, and only for errors."""
    if depth > PAYLOAD_DEPTH_MAX:
        return path, value, f"nested more than {PAYLOAD_DEPTH_MAX} levels deep, or in a circle"
    for name, part in _parts(value):
        found = _find_culprit(part, path + name, depth + 1)
        if found is not None:
            return found
    try:
        encode_json_with(encoder, value)
    except LocalProtocolError as error:
        return path, value, str(error).removeprefix("the value cannot be sent as JSON: ")
    return None


def _parts(value: object) -> Iterator[tuple[str, object]]:
    kind: Any = type(value)
    match value:
        case Mapping():
            for key, item in value.items():
                yield f".{key}" if isinstance(key, str) else f"[{key!r}]", item
        case list() | tuple() | AbstractSet():
            for index, item in enumerate(value):
                yield f"[{index}]", item
        case msgspec.Struct():
            for name in value.__struct_fields__:
                yield f".{name}", getattr(value, name)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            for field in dataclasses.fields(value):
                yield f".{field.name}", getattr(value, field.name)
        case _ if is_model(kind):
            for name in kind.model_fields:
                yield f".{name}", getattr(value, name)
        case _ if hasattr(kind, "__attrs_attrs__"):
            for attribute in kind.__attrs_attrs__:
                yield f".{attribute.name}", getattr(value, attribute.name)
