"""The registry of opcodes: complete, without duplicates, and our numbers only from the free ranges."""

from __future__ import annotations

import dataclasses

import pytest
from tests.helpers import vectors

from zapwire.opcodes import (
    FREE_RANGES,
    OPCODES,
    OURS,
    V1,
    Direction,
    Kind,
    Layout,
    Op,
    Opcode,
    by_name,
    by_number,
    check_registry,
    describe,
    opcode_table,
)

V1_SERVED = {0x50, 0x51, *range(0x60, 0x6A), 0x6B, *range(0x70, 0x77), 0x80, 0x81, 0x82, 0x90} | {
    *range(0xA0, 0xA7),
    *range(0xB0, 0xB5),
    0xC4,
}
V1_NOT_SERVED = {0x6C, 0x6D, 0xFF}
OUR_OWN = {*range(0x91, 0x9B), 0x9E, 0xB5}


def test_every_opcode_is_there_and_served_as_promised() -> None:
    assert {opcode.number for opcode in OPCODES if opcode.since == V1} == V1_SERVED | V1_NOT_SERVED
    assert {opcode.number for opcode in OPCODES if opcode.since == OURS} == OUR_OWN
    assert {opcode.number for opcode in OPCODES if opcode.served} == V1_SERVED | OUR_OWN


def test_each_is_found_by_number_and_by_name() -> None:
    for opcode in OPCODES:
        assert by_number[opcode.number] is opcode
        assert by_number[opcode.op] is opcode
        assert by_name[opcode.name] is opcode
    assert len(by_number) == len(by_name) == len(OPCODES) == len(Op)
    assert by_name["StartWorkflow"].number == 0x60
    assert by_name["RecordActivityTaskHeartbeat"].number == 0xA5


def test_free_ranges_are_those_of_the_wire_rulings() -> None:
    free = {number for numbers in FREE_RANGES for number in numbers}
    assert free == {*range(0x91, 0xA0), *range(0xB5, 0xC4), *range(0xC5, 0xFF)}
    assert not free & (V1_SERVED | V1_NOT_SERVED | {*range(0x52, 0x60)})
    assert free >= OUR_OWN


def test_workers_receive_exactly_the_pushes() -> None:
    pushes = {opcode.number for opcode in OPCODES if opcode.direction is Direction.TO_WORKER}
    assert pushes == {*range(0xB0, 0xB6)}
    assert all(by_number[number].kind is Kind.ONE_WAY for number in pushes)
    one_way = {opcode.op for opcode in OPCODES if opcode.kind is Kind.ONE_WAY} - {Op(number) for number in pushes}
    assert one_way == {Op.ABANDON_CALL, Op.GRANT_CREDITS}
    assert not any(opcode.response for opcode in OPCODES if opcode.kind is Kind.ONE_WAY)


def test_layouts() -> None:
    other = {opcode.number: opcode.layout for opcode in OPCODES if opcode.layout is not Layout.ENVELOPE}
    assert other == {0x50: Layout.SUBMIT, 0x51: Layout.SCHEDULE} | dict.fromkeys(
        [0xA2, 0xA3, 0xA4, 0xA5, 0x95], Layout.RESPOND
    )


def test_every_recorded_opcode_goes_the_way_the_registry_says() -> None:
    for record in vectors.recorded_frames():
        decoded = record["decoded"]
        number = int(decoded.get("opcode", "0x00"), 16)
        if decoded["kind"] == "request":
            assert (by_number[number].direction, by_number[number].kind) == (Direction.TO_SERVER, Kind.CALL)
        elif decoded["kind"] == "message" and record["dir"] == "s2c":
            assert (by_number[number].direction, by_number[number].kind) == (Direction.TO_WORKER, Kind.ONE_WAY)


def test_recorded_bodies_use_fields_that_the_registry_names() -> None:
    """What a recorded request or push carries is in the registry, and what the registry requires is in it."""
    checked = set()
    for record in vectors.recorded_frames():
        decoded = record["decoded"]
        if decoded["kind"] not in ("request", "message") or not decoded.get("body"):
            continue
        row = by_number[int(decoded["opcode"], 16)]
        if row.op is Op.GET_WORKFLOW_HISTORY and "signal_name" in decoded["body"]:
            row = by_number[Op.SIGNAL_WITH_START]  # the Go SDK's number for it
        assert set(decoded["body"]) <= {name.removesuffix("?") for name in row.request}, row.name
        assert {name for name in row.request if not name.endswith("?")} <= set(decoded["body"]), row.name
        checked.add(row.op)
    assert len(checked) > 20


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ((*OPCODES, OPCODES[-1]), "once each"),
        ((OPCODES[0], *OPCODES), "once each"),
        (OPCODES[::-1], "order"),
        (OPCODES[1:], "TASK_SUBMIT"),
        (tuple(dataclasses.replace(row, since=V1) for row in OPCODES), "0x91 AwaitExecution since v1.*free range"),
        (tuple(dataclasses.replace(row, since=OURS) for row in OPCODES), "0x50 TaskSubmit since 0.1.*Go system"),
    ],
)
def test_a_wrong_registry_is_refused_at_import(rows: tuple[Opcode, ...], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_registry(rows)


def test_the_table_is_text_with_one_row_each() -> None:
    rows = opcode_table()
    assert len(rows) == len(OPCODES)
    assert all(isinstance(cell, str) for row in rows for cell in row)
    assert rows[0] == (
        "0x50",
        "TaskSubmit",
        "client->server",
        "call",
        "task_type payload? options?",
        "status body?",
        "v1",
        "yes",
        "the Now client's; options are ours",
    )


def test_numbers_for_eyes() -> None:
    assert describe(0x60) == "0x60 StartWorkflow"
    assert describe(0x6A) == "0x6A unknown"
