"""Pydantic models as payloads: read by their own rules for JSON, alone and inside other types."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any
from uuid import UUID

import pytest

from zaptasks import DataConverter, PayloadError
from zaptasks.arguments import ArgumentsError, Parameters
from zapwire.errors import BadBody

pytest.importorskip("pydantic")

import pydantic

PLAIN = DataConverter()


class Owner(pydantic.BaseModel):
    name: str
    born: date
    key: bytes = b"k"


class Robot(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, populate_by_name=True)
    serial: UUID = pydantic.Field(alias="serialNumber")


@dataclass
class Order:
    names: list[str]
    owner: Owner


OWNER = Owner(name="Ada", born=date(1815, 12, 10))
ROBOT = Robot(serialNumber=UUID(int=7))

VALUES: list[tuple[object, Any]] = [
    (OWNER, Owner),
    (ROBOT, Robot),
    ([OWNER, OWNER], list[Owner]),
    (None, Owner | None),
    ({"a": OWNER}, dict[str, Owner | None]),
    ([ROBOT, OWNER], list[Owner | Robot]),
    ((b"\xff\xef", OWNER), tuple[bytes, Owner | Robot]),
    ((timedelta(seconds=90), ROBOT), tuple[timedelta, Owner | Robot]),
    (Order(["a"], OWNER), Order),
]


@pytest.mark.parametrize(("value", "kind"), VALUES, ids=[str(kind) for _, kind in VALUES])
def test_a_model_comes_back_as_its_type(value: object, kind: Any) -> None:
    def handler(payload: object) -> None: ...

    handler.__annotations__["payload"] = kind
    payload = PLAIN.encode(value)
    assert PLAIN.decode(payload, kind) == value
    assert Parameters(handler).from_payload(payload.decode()) == (value,)


def test_a_model_travels_as_pydantic_writes_it() -> None:
    assert PLAIN.encode(OWNER) == b'{"name":"Ada","born":"1815-12-10","key":"k"}'
    assert PLAIN.encode(ROBOT) == b'{"serialNumber":"00000000-0000-0000-0000-000000000007"}'


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_what_cannot_be_encoded_is_named_by_its_path() -> None:
    name: Any = object()
    broken = Order([], Owner.model_construct(name=name, born=date(2026, 1, 1)))
    with pytest.raises(PayloadError) as caught:
        PLAIN.encode(broken)
    assert caught.value.path == "$.owner.name"


class Picky(pydantic.BaseModel):
    name: str

    @pydantic.field_validator("name")
    @classmethod
    def look_up(cls, name: str) -> str:
        return {"ada": "Ada"}[name]

    @pydantic.field_serializer("name")
    def look_back(self, name: str) -> str:
        return {"Ada": "ada"}[name]


@pytest.mark.parametrize("kind", [Picky, list[Picky]])
def test_whatever_a_model_raises_is_an_error_about_the_data(kind: Any) -> None:
    def handler(value: object) -> None: ...

    handler.__annotations__["value"] = kind
    payload = b'{"name":"bob"}' if kind is Picky else b'[{"name":"bob"}]'
    with pytest.raises(ArgumentsError, match="KeyError: 'bob' - at "):
        Parameters(handler).from_payload(payload)
    with pytest.raises(PayloadError, match="KeyError"):
        PLAIN.encode(Picky.model_construct(name="bob"))


def test_a_model_with_nan_in_it_is_not_sent_as_null() -> None:
    class Reading(pydantic.BaseModel):
        value: float

    with pytest.raises(PayloadError, match="NaN or an infinity"):
        PLAIN.encode([Reading(value=math.inf)])


@pytest.mark.parametrize(
    ("payload", "kind", "text"),
    [
        (b'{"names":[],"owner":{"name":"a","born":"x"}}', Order, "- at `$.owner.born`"),
        (b'[{"name":1,"born":"2026-01-01"}]', list[Owner], "should be a valid string - at `$[0].name`"),
        (b'{"name":1,"born":"2026-01-01"}', Owner, "should be a valid string - at `$.name`"),
        (b"[{}]", list[Owner | Robot], "- at `$[0].Owner.name`"),
    ],
)
def test_what_is_of_another_shape_is_named_by_its_path(payload: bytes, kind: Any, text: str) -> None:
    def handler(value: object) -> None: ...

    handler.__annotations__["value"] = kind
    with pytest.raises(BadBody) as caught:
        PLAIN.decode(payload, kind)
    assert text in str(caught.value)
    with pytest.raises(ArgumentsError) as refused:
        Parameters(handler).from_payload(payload)
    assert text in str(refused.value)
