"""Every bound of a server that can be set, by name: those of a namespace (`engine.limits`) and those of the server.

One table is behind `serve --limit`, `zaptasks limits` and docs/limits.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, NamedTuple, TypeVar

import msgspec
import msgspec.inspect

from zapserver.engine.limits import LimitName, Limits, limit, limit_name
from zapwire.connection import UNANSWERED_CALLS_MAX
from zapwire.listener import CONNECTIONS_MAX, CONNECTIONS_PER_ADDRESS_MAX

NAMESPACES_MAX = 10_000

StructT = TypeVar("StructT", bound=msgspec.Struct)


class LimitsError(ValueError):
    """A setting of a limit that cannot be used; the message says which, with its value, and what would be right."""


class ServerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one server may hold, whatever the namespace."""

    connections_max: Annotated[
        int, limit("connections", "Each costs a descriptor and a task. One more is closed when it is accepted.")
    ] = CONNECTIONS_MAX

    connections_per_address_max: Annotated[
        int,
        limit(
            "connections of an address",
            "One machine, or everybody behind one proxy, leaves room for others. One more is closed when it is"
            " accepted.",
        ),
    ] = CONNECTIONS_PER_ADDRESS_MAX

    calls_in_flight_max: Annotated[
        int,
        limit("unanswered calls of a connection", "About 1 MiB of table: a peer cannot pile calls up.", most=1_000_000),
    ] = UNANSWERED_CALLS_MAX

    namespaces_max: Annotated[
        int,
        limit(
            "namespaces",
            "Each has an engine, and where data is kept a file, with 6 descriptors; they get half of those that the"
            " process may have, whatever is set here.",
        ),
    ] = NAMESPACES_MAX


class KnownLimit(NamedTuple):
    """A row of the table."""

    name: LimitName
    field: str
    default: int
    unit: str
    reason: str
    least: int
    most: int | None


def known_limits(*structs: type[msgspec.Struct]) -> Iterator[KnownLimit]:
    """The bounds that these structs declare, in their order; by default all that there are."""
    for struct in structs or (Limits, ServerLimits):
        info = msgspec.inspect.type_info(struct)
        assert isinstance(info, msgspec.inspect.StructType)
        for field in info.fields:
            meta, bounds = field.type, getattr(field.type, "type", None)
            assert isinstance(meta, msgspec.inspect.Metadata)
            assert isinstance(bounds, msgspec.inspect.IntType)
            yield KnownLimit(
                limit_name(field.name),
                field.name,
                field.default,
                (meta.extra or {})["unit"],
                (meta.extra_json_schema or {})["description"],
                bounds.ge or 0,
                bounds.le,
            )


def parse_limits(settings: Iterable[str]) -> tuple[Limits, ServerLimits]:
    """Read `name=value` texts, of which a later one wins. Raises `LimitsError`."""
    known = {row.name: row for row in known_limits()}
    values: dict[str, int] = {}
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        row = known.get(name)
        if not equals or row is None:
            problem = f"no limit is called {name[:80]!r}" if equals else f"{setting[:80]!r} is not NAME=VALUE"
            raise LimitsError(f"{problem}; the limits are {', '.join(known)}")
        digits = text.replace("_", "")
        number = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= 18 else -1
        if number < row.least or (row.most is not None and number > row.most):
            most = "" if row.most is None else f" and at most {row.most}"
            raise LimitsError(f"{name}={text[:80]}: a number of {row.unit} must be at least {row.least}{most}")
        values[row.field] = number
    return _chosen(Limits, values), _chosen(ServerLimits, values)


def _chosen(struct: type[StructT], values: dict[str, int]) -> StructT:
    return struct(**{name: values[name] for name in struct.__struct_fields__ if name in values})
