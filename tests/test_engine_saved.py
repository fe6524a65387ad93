"""Records and back: what a schedule does comes back as it was."""

from __future__ import annotations

import msgspec
import pytest

from zapserver.engine.commands import Action, Overlap, Payload, ScheduleSpec
from zapserver.engine.records import Schedule
from zapserver.engine.saved import ActionRecord, decode_schedule, encode_schedule


def schedule(action: Action) -> Schedule:
    return Schedule("s", ScheduleSpec(), action, Overlap.SKIP, created_ms=1, updated_ms=2, anchor_ms=3)


@pytest.mark.parametrize("text", [b'{"to":"ada"}', b"[1]", b"7", b'"x"', b"1e400", b"true"])
def test_the_payloads_of_an_action_come_back_digit_for_digit(text: bytes) -> None:
    """They did not: with an input the server could not start again."""
    action = Action(type="t", task_queue="q", is_task=True, input=Payload(text), memo=Payload(text))
    read = decode_schedule(encode_schedule(schedule(action))).action
    assert (bytes(read.input or b""), bytes(read.memo or b"")) == (text, text)


def test_an_action_without_payloads_has_none() -> None:
    action = Action(type="t", task_queue="q", is_task=False, search_attributes={"Customer": "ada"})
    assert decode_schedule(encode_schedule(schedule(action))).action == action


def test_every_field_of_an_action_is_kept() -> None:
    def names(kind: type[msgspec.Struct]) -> set[str]:
        return {each.name for each in msgspec.structs.fields(kind)}

    assert names(ActionRecord) == names(Action)
