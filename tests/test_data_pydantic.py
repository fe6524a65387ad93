"""Pydantic models as payloads: read by their own rules for JSON, alone and inside other types."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date
from typing import Any
from uuid import UUID

import pytest

from zaptasks import DataConverter, PayloadError
from zaptasks.arguments import ArgumentsError, Parameters
from zapwire.errors import BadBody

pytest.importorskip("pydantic")

import pydantic
import pydantic.dataclasses

PLAIN = DataConverter()


class Owner(pydantic.BaseModel):
    name: str
    born: date
    key: bytes = b"k"


class Robot(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, populate_by_name=True)
    serial: UUID = pydantic.Field(alias="serialNumber")


@pydantic.dataclasses.dataclass
class Percent:
    value: int = pydantic.Field(le=100)


@dataclass
class Order:
    names: list[str]
    owner: Owner


OWNER = Owner(name="Ada", born=date(1815, 12, 10))
ROBOT = Robot(serialNumber=UUID(int=7))
PERCENT = pydantic.TypeAdapter(Percent).validate_python({"value": 7})

VALUES: list[tuple[object, Any]] = [
    (OWNER, Owner),
    (ROBOT, Robot),
    ([OWNER, OWNER], list[Owner]),
    (None, Owner | None),
    ({"a": OWNER}, dict[str, Owner | None]),
    ([ROBOT, OWNER], list[Owner | Robot]),
    (Order(["a"], OWNER), Order),
    (PERCENT, Percent),
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
        (b'{"value":101}', Percent, "less than or equal to 100 - at `$.value`"),
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
