"""How values become payloads and come back: which types, and what is said about those that do not fit."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypedDict
from uuid import UUID

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaptasks import DataConverter, PayloadError
from zaptasks.arguments import ArgumentsError, Parameters
from zapwire.errors import BadBody

PLAIN = DataConverter()


class Color(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


@dataclass
class Item:
    name: str
    price: Decimal


@attrs.define
class Parcel:
    weight: float
    items: list[Item]


class Shelf(msgspec.Struct):
    id: UUID
    parcels: tuple[Parcel, ...]


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Album:
    pictures: list[PurePosixPath]


class Options(TypedDict, total=False):
    fast: bool


@dataclass
class Order:
    items: list[Item]


class Mine:
    """A class that nobody can build from JSON."""


@dataclass
class HasMine:
    parts: list[Mine]


ITEM = Item("cup", Decimal("1.10"))
PARCEL = Parcel(2.5, [ITEM])

VALUES: list[tuple[object, Any]] = [
    (datetime(2026, 11, 26, 4, 48, 55, 7, UTC), datetime),
    (date(2026, 11, 26), date),
    (time(4, 48, tzinfo=UTC), time),
    (timedelta(days=1, seconds=2.5), timedelta),
    (UUID(int=5), UUID),
    (Decimal("1.10"), Decimal),
    (Path("films") / "a.raw", Path),
    (Album([PurePosixPath("/a/b.png")]), Album),
    (b"\x00\xff", bytes),
    (bytearray(b"\xfe"), bytearray),
    (Color.RED, Color),
    (Level.HIGH, Level),
    ({1, 2}, set[int]),
    (frozenset({"a"}), frozenset[str]),
    ((1, "a"), tuple[int, str]),
    (Point(1, 2), Point),
    ({"fast": True}, Options),
    (ITEM, Item),
    (PARCEL, Parcel),
    (Shelf(UUID(int=1), (PARCEL,)), Shelf),
    ({Color.RED: [None, 1]}, dict[Color, list[int | None]]),
    (Order([ITEM]), Order),
]


@pytest.mark.parametrize(("value", "kind"), VALUES, ids=[str(kind) for _, kind in VALUES])
def test_a_value_comes_back_as_its_type(value: object, kind: Any) -> None:
    payload = PLAIN.encode(value)
    back = PLAIN.decode(payload, kind)
    assert back == value
    assert type(back) is type(value)
    assert PLAIN.decode(payload.decode(), kind) == value, "as text, which is how it is delivered"
    assert PLAIN.decode(memoryview(payload), kind) == value


@pytest.mark.parametrize(("value", "kind"), VALUES, ids=[str(kind) for _, kind in VALUES])
def test_a_handler_gets_the_type_that_it_names(value: object, kind: Any) -> None:
    def handler(payload: object) -> None: ...

    handler.__annotations__["payload"] = kind
    assert Parameters(handler).from_payload(PLAIN.encode(value)) == (value,)


def test_what_travels_is_json_as_other_languages_write_it() -> None:
    value = {"at": datetime(2026, 1, 2, tzinfo=UTC), "for": timedelta(seconds=90), "raw": b"\x00\xff"}
    assert PLAIN.encode(value) == b'{"at":"2026-01-02T00:00:00Z","for":"PT90S","raw":"AP8="}'


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.just("$zap"), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_any_json_value_comes_back(value: object) -> None:
    assert PLAIN.decode(PLAIN.encode(value)) == value


# --- what does not fit ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"rows": [1, Mine()]}, "$.rows[1]"),
        (Order([Mine()]), "$.items[0]"),  # type: ignore[list-item]
        (Parcel(1.0, [Item("a", Mine())]), "$.items[0].price"),  # type: ignore[arg-type]
        ([Parcel(math.nan, [])], "$[0].weight"),
    ],
)
def test_what_cannot_be_encoded_is_named_by_its_path(value: object, path: str) -> None:
    with pytest.raises(PayloadError) as caught:
        PLAIN.encode(value, "the payload of 'x'")
    assert caught.value.path == path
    assert str(caught.value).startswith(f"the payload of 'x' cannot be sent as JSON: {path} is of type ")


@pytest.mark.parametrize(
    ("payload", "kind", "text"),
    [
        (b"5", Order, "Expected `object`, got `int`"),
        (
            b'{"items":[{"name":"a","price":"1"},{"name":5,"price":"1"}]}',
            Order,
            "Expected `str`, got `int` - at `$.items[1].name`",
        ),
    ],
)
def test_what_is_of_another_shape_is_named_by_its_path(payload: bytes, kind: Any, text: str) -> None:
    with pytest.raises(BadBody) as caught:
        PLAIN.decode(payload, kind)
    assert text in str(caught.value)

    def handler(value: object) -> None: ...

    handler.__annotations__["value"] = kind
    with pytest.raises(ArgumentsError) as refused:
        Parameters(handler).from_payload(payload)
    assert text in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "path", "culprit"),
    [
        (Mine, "$", "Mine"),
        (list[Mine], "$[]", "Mine"),
        (HasMine, "$.parts[]", "Mine"),
        (dict[str, Item | Order], "$[]", "Item | "),
    ],
)
def test_a_type_that_nothing_can_be_read_as_is_an_error_that_names_it(kind: Any, path: str, culprit: str) -> None:
    with pytest.raises(PayloadError) as caught:
        PLAIN.decode(b"{}", kind)
    assert caught.value.path == path
    assert f": {path} is " in str(caught.value)
    assert culprit in str(caught.value)


@dataclass
class Checked:
    key: str

    def __post_init__(self) -> None:
        raise KeyError(self.key)


def test_whatever_a_class_raises_when_it_is_made_is_an_error_about_the_data() -> None:
    def handler(value: Checked) -> None: ...

    handler.__annotations__["value"] = Checked
    with pytest.raises(ArgumentsError, match="the payload does not fit: KeyError: 'a'"):
        Parameters(handler).from_payload(b'{"key":"a"}')


def test_a_parameter_of_such_a_type_gets_plain_values() -> None:
    def handler(value: Mine) -> None: ...

    assert Parameters(handler).from_payload(b'{"a":1}') == ({"a": 1},)


def test_a_payload_that_is_too_large_is_refused_with_what_to_do() -> None:
    with pytest.raises(PayloadError, match="the memo is 12 bytes of JSON; at most 10 can be sent: store the data"):
        PLAIN.encode("x" * 10, "the memo", 10)


def test_what_a_program_does_not_use_is_not_imported() -> None:
    program = (
        "import sys, zaptasks; c = zaptasks.DataConverter(); c.decode(c.encode({'a': 1}), dict[str, int]);"
        "assert not {'pydantic', 'cryptography'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_an_argument_that_is_missing_is_named_where_none_would_not_do() -> None:
    def handler(item: Item, note: str | None, more: object, level: int = 3) -> None: ...

    handler.__annotations__["item"] = Item
    parameters = Parameters(handler)
    item = PLAIN.encode([Item("cup", Decimal(1))])
    assert parameters.from_array(item) == (Item("cup", Decimal(1)), None, None, 3)
    for input in (None, b"[]"):
        with pytest.raises(ArgumentsError, match=r"argument 1 \('item'\) is missing"):
            parameters.from_array(input)
    with pytest.raises(ArgumentsError, match=r"argument 1 \('item'\) is missing"):
        parameters.from_payload(None)


def test_a_path_is_read_from_text_alone() -> None:
    with pytest.raises(BadBody, match="Expected `str`, got `int`"):
        PLAIN.decode(b'{"pictures":["a",1]}', Album)
