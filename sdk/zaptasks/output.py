"""What a running task or activity streams to whoever reads `handle.output()`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from zapwire.opcodes import Op

from .caller import Caller
from .pages import Pages

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OutputItem(Generic[T]):
    """One item that was emitted.

    `number` grows within a run; read on from there with `output(after=number)` of a handle with this `run_id`.
    `is_after_gap` says that items are missing before this one: dropped, or lost with a server that was restarted.
    """

    number: int
    value: T
    activity_id: str
    activity_type: str
    attempt: int
    run_id: str
    is_after_gap: bool


class _Item(msgspec.Struct, frozen=True):
    number: int
    activity_id: str = ""
    activity_type: str = ""
    attempt: int = 0
    item: msgspec.Raw = msgspec.Raw(b"null")


class OutputPage(msgspec.Struct, frozen=True):
    """The answer to ReadOutput."""

    run_id: str
    items: list[_Item] = []
    closed: bool = False
    new_run_id: str = ""


def read_output(
    client: Caller, workflow_id: str, run_id: str, after: int, type: Any
) -> Pages[OutputItem[Any], tuple[str, int] | None]:
    """The output of a run, and of those that follow it, until the last one is closed."""

    async def fetch(place: tuple[str, int] | None) -> tuple[list[OutputItem[Any]], tuple[str, int] | None]:
        assert place is not None
        run_id, last = place
        request = {"workflow_id": workflow_id, "run_id": run_id, "after": last}
        page = await client.wait(Op.READ_OUTPUT, request, OutputPage)
        items: list[OutputItem[Any]] = []
        for each in page.items:
            items.append(
                OutputItem(
                    number=each.number,
                    value=client.converter.decode(each.item, type),
                    activity_id=each.activity_id,
                    activity_type=each.activity_type,
                    attempt=each.attempt,
                    run_id=page.run_id,
                    is_after_gap=each.number != last + 1,
                )
            )
            last = each.number
        if page.closed:
            return items, (page.new_run_id, 0) if page.new_run_id else None
        return items, (page.run_id, last)

    if after < 0:
        raise ValueError(f"after is {after}: it must be 0, or the number of the last item that was read")
    return Pages(fetch, (run_id, after))
