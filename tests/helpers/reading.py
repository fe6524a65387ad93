"""Reads everything that can be read from a message, with any reader that has ZAP's method names.

Only the standard library is used here: the zap-proto peer runs this module in an environment of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

NUMBERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
ELEMENTS_READ_MAX = 3

Reading = dict[str, Any]


def read_message(parse: Callable[[bytes], Any], data: bytes, offsets: int) -> Reading:
    """The header and what every accessor of the root answers at every offset; `error` where it raised."""
    try:
        message = parse(data)
    except Exception as error:
        return {"error": type(error).__name__}
    root = message.root()
    return {
        "flags": message.flags,
        "size": message.size,
        "root_is_null": root.is_null(),
        "fields": [read_field(root, offset) for offset in range(offsets)],
    }


def read_field(target: Any, offset: int) -> Reading:
    """What every accessor answers at one offset."""
    items = target.list(offset)
    nested = target.object(offset)
    return {
        **{name: getattr(target, name)(offset) for name in NUMBERS},
        "bool": target.bool(offset),
        "float32": _float_text(target.float32(offset)),
        "float64": _float_text(target.float64(offset)),
        "bytes": bytes(target.bytes(offset)).hex(),
        "text": _text(target, offset),
        "object_is_null": nested.is_null(),
        "object": [0 if nested.is_null() else nested.uint32(inner) for inner in range(4)],
        "list_is_null": items.is_null(),
        "list": _read_list(items),
    }


def _read_list(items: Any) -> Reading:
    indices = range(min(len(items), ELEMENTS_READ_MAX))
    return {
        "length": len(items),
        "uint8": [items.uint8(index) for index in indices],
        "uint32": [items.uint32(index) for index in indices],
        "uint64": [items.uint64(index) for index in indices],
        "objects": [items.object(index, 4).uint32(0) for index in indices],
        "entries": [bytes(items.bytes_at(index)).hex() for index in indices],
        "raw": bytes(items.raw()).hex(),
        "past_the_end": [items.uint8(len(items)), items.uint64(len(items))],
    }


def _text(target: Any, offset: int) -> str:
    try:
        text: str = target.text(offset)
    except UnicodeDecodeError:
        return "(not UTF-8)"
    return text


def _float_text(value: float) -> str:
    """The value's bits; every NaN is the same here, since reading one may change its bits."""
    return "nan" if value != value else struct.pack("<d", value).hex()
