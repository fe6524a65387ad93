"""Headers: small texts that a start gives along, for everything that belongs to the execution.

Its attempts, activities, children and later runs see them: a trace id, a tenant, who asked. The server copies them,
workers send none. They are never encoded: a `DataConverter` does not hide them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from zapwire.body import encode_json

Headers: TypeAlias = Mapping[str, str]

HeaderSource: TypeAlias = Callable[[], Headers]
"""Asked at each start, in the task or thread that makes it, for the headers of the moment."""

HEADER_BYTES_MAX: Final = 4 * 1024
"""All headers of an execution, as JSON. What a server takes; it may be set to take less."""


def headers_of_start(source: HeaderSource | None, given: Headers | None) -> dict[str, str]:
    """What a start sends: the headers of the moment, and those that the call gives, which win.

    Raises `TypeError` for what is no text, `ValueError` for names that are empty, control characters, and more than
    4 KiB. What `source` raises is the start's error.
    """
    headers = {**_checked({} if source is None else source()), **_checked(given or {})}
    size = len(encode_json(headers))
    if headers and size > HEADER_BYTES_MAX:
        raise ValueError(
            f"the headers have {size} bytes as JSON, and at most {HEADER_BYTES_MAX} are allowed: they are for ids and"
            " names, send other data in the input"
        )
    return headers


def _checked(headers: Headers) -> Headers:
    if not isinstance(headers, Mapping):
        raise TypeError(f"headers are {headers!r}: they must be a mapping of texts to texts")
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"header {name!r} is {value!r}: names and values must be texts")
        if not name or not name.isprintable() or not value.isprintable():
            raise ValueError(f"header {name[:80]!r} is {value[:80]!r}: both must be printable, and the name not empty")
    return headers
