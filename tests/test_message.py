"""Messages: what is built reads back, mistakes are refused where they are made, and no bytes make a reader raise."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import programs, reading

from zapwire.errors import BadMessage, LocalProtocolError
from zapwire.message import Builder, ListBuilder, ObjectBuilder, parse

HEADER = b"ZAP\x00\x01\x00\x00\x00"


def message(root: int, *data: bytes) -> bytes:
    """A message with any root pointer and any data segment."""
    body = b"".join(data)
    return HEADER + struct.pack("<II", root, 16 + len(body)) + body


def slot(pointer: int, length: int) -> bytes:
    return struct.pack("<iI", pointer, length)


PROGRAMS = st.integers(0, 2**32).map(lambda seed: programs.random_program(random.Random(seed)))


@given(PROGRAMS)
def test_every_program_reads_back(program: programs.Program) -> None:
    parsed = parse(programs.execute(Builder(), program))
    assert (parsed.flags, parsed.opcode, parsed.version) == (program["flags"], program["flags"] >> 8, 1)
    root = parsed.root()
    for field in program["steps"][-1]["fields"]:
        kind, offset, value = field["type"], field["offset"], field["value"]
        if kind in programs.SETTERS:
            assert getattr(root, programs.SETTERS[kind].removeprefix("set_"))(offset) == int(value)
        elif kind == "text":
            assert root.text(offset) == value
        elif kind == "bytes":
            assert root.bytes(offset) == bytes.fromhex(value)
        elif kind == "list":
            (step,) = (step for step in program["steps"] if step.get("id") == value)
            items = root.list(offset)
            if step["kind"] == "entries":
                assert [items.bytes_at(index).hex() for index in range(len(items))] == step["items"]
            elif step["kind"] == "bytes":
                assert items.raw().hex() == "".join(step["items"])
            else:
                read = getattr(items, f"uint{step['kind'][1:]}")
                assert [str(read(index)) for index in range(len(items))] == step["items"]


@given(st.binary(max_size=120))
def test_arbitrary_bytes_raise_only_bad_message(data: bytes) -> None:
    _read_everything(data)


@given(st.integers(0, 60), st.binary(max_size=120))
def test_an_arbitrary_data_segment_never_raises(root: int, data: bytes) -> None:
    assert "error" not in _read_everything(message(root, data))


@given(PROGRAMS, st.data())
def test_a_damaged_message_never_raises(program: programs.Program, data: st.DataObject) -> None:
    damaged = bytearray(programs.execute(Builder(), program))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    _read_everything(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))


def _read_everything(data: bytes) -> reading.Reading:
    result = reading.read_message(parse, data, 48)
    assert result.get("error", "BadMessage") == "BadMessage"
    return result


@given(PROGRAMS, st.binary(max_size=20))
def test_bytes_after_the_declared_size_are_not_there(program: programs.Program, trailing: bytes) -> None:
    data = programs.execute(Builder(), program)
    assert reading.read_message(parse, data + trailing, 24) == reading.read_message(parse, data, 24)


@pytest.mark.parametrize("length", range(16))
def test_a_message_shorter_than_its_header_is_refused(length: int) -> None:
    with pytest.raises(BadMessage, match=f"{length} bytes"):
        parse(message(16)[:length])


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"ZAP\x01" + message(16)[4:], "magic 5a415001"),
        (HEADER[:4] + b"\x02\x00" + message(16)[6:], "version 2"),
        (HEADER[:4] + b"\x00\x00" + message(16)[6:], "version 0"),
        (message(16, b"12345678")[:-1], "says 24 bytes, only 23"),
    ],
)
def test_a_bad_header_is_refused_with_the_value(data: bytes, problem: str) -> None:
    with pytest.raises(BadMessage, match=problem):
        parse(data)


@pytest.mark.parametrize("size", [0, 8, 15])
def test_a_declared_size_below_the_header_holds_nothing(size: int) -> None:
    parsed = parse(HEADER + struct.pack("<II", 16, size) + bytes(24))
    assert parsed.size == size
    assert parsed.root().is_null()
    assert parsed.root().uint64(0) == 0


@pytest.mark.parametrize("root", [0, 1, 15, 41, 0xFFFF_FFFF])
def test_a_root_in_the_header_or_past_the_end_is_null(root: int) -> None:
    target = parse(message(root, b"\xff" * 24)).root()
    assert target.is_null()
    assert target.uint8(0) == 0
    assert not target.bytes(0)
    assert target.object(0).is_null()
    assert target.list(0).is_null()


@pytest.mark.parametrize("pointer", [-17, -16, -1, 9, 2**31 - 1, -(2**31)])
def test_a_pointer_into_the_header_or_past_the_end_is_null(pointer: int) -> None:
    root = parse(message(16, slot(pointer, 1))).root()
    assert not root.bytes(0)
    assert root.text(0) == ""
    assert root.object(0).is_null()
    assert root.list(0).is_null()


def test_an_object_at_the_very_end_is_null_and_bytes_there_are_empty() -> None:
    """Nothing lies there to be read; only a root may be empty and last."""
    root = parse(message(16, slot(8, 0))).root()
    assert root.object(0).is_null()
    assert not root.bytes(0)


def test_a_pointer_may_point_backwards_and_at_its_own_object() -> None:
    root = parse(message(24, b"behind!!", slot(-8, 7))).root()
    assert root.text(0) == "behind!"
    assert bytes(root.list(0).raw()) == b"behind!"


def test_a_list_that_runs_past_the_end_is_null() -> None:
    inside, outside = (parse(message(16, slot(8, length), bytes(8))).root() for length in (8, 9))
    assert len(inside.list(0)) == 8
    assert outside.list(0).is_null()
    assert inside.list(0, element_bytes=4).is_null()
    assert len(parse(message(16, slot(8, 2), bytes(8))).root().list(0, element_bytes=4)) == 2


def test_a_negative_offset_or_index_reads_as_zero() -> None:
    root = parse(message(24, b"\xff" * 8, slot(8, 4), b"\xff" * 8)).root()
    assert root.uint8(-1) == root.uint64(-8) == root.float64(-8) == 0
    assert not root.bytes(-8)
    assert root.object(-4).is_null()
    assert root.list(-8).is_null()
    assert root.list(0).uint8(-1) == 0
    assert root.list(0).object(-1, 1).is_null()
    assert not root.list(0).bytes_at(-1)


def test_entries_that_run_past_the_end_read_as_nothing() -> None:
    root = parse(message(16, slot(8, 3), b"\x01\0\0\0a", b"\xff\0\0\0")).root()
    assert [bytes(root.list(0).bytes_at(index)) for index in range(4)] == [b"a", b"", b"", b""]


def test_inline_objects_read_by_their_size() -> None:
    builder = Builder()
    items = builder.start_list(8)
    for number in (1, 2, 3):
        items.add_uint64(number)
    root = builder.start_object(8)
    root.set_list(0, *items.finish())
    root.finish_as_root()
    read = parse(builder.finish()).root().list(0)
    assert [read.object(index, 8).uint64(0) for index in range(4)] == [1, 2, 3, 0]
    assert read.object(2, 16).is_null()
    assert read.object(0, -1).is_null()


def test_reading_copies_nothing() -> None:
    builder = Builder()
    root = builder.start_object(16)
    root.set_bytes(0, b"payload")
    root.finish_as_root()
    data = builder.finish()
    view = parse(data).root().bytes(0)
    assert view.obj is data
    assert bytes(view) == b"payload"


def test_text_that_is_not_utf8_reads_with_replacements() -> None:
    assert parse(message(16, slot(8, 3), b"a\xffb")).root().text(0) == "a�b"


# Mistakes of the caller


def started() -> tuple[Builder, ObjectBuilder]:
    builder = Builder()
    return builder, builder.start_object(16)


@pytest.mark.parametrize(
    ("setter", "value"),
    [(f"set_uint{bits}", value) for bits in (8, 16, 32, 64) for value in (-1, 1 << bits)]
    + [(f"set_int{bits}", value) for bits in (8, 16, 32, 64) for value in (-(1 << bits - 1) - 1, 1 << bits - 1)]
    + [("set_uint32", 1.5), ("set_uint8", "7"), ("set_int64", None), ("set_float32", 1e39), ("set_float64", "pi")],
)
def test_a_value_that_does_not_fit_is_refused(setter: str, value: object) -> None:
    _, target = started()
    with pytest.raises(LocalProtocolError, match=r"field 8: .* cannot be stored"):
        getattr(target, setter)(8, value)


@pytest.mark.parametrize("adder", ["add_uint8", "add_uint32", "add_uint64"])
@pytest.mark.parametrize("value", [-1, 2**64, 0.5])
def test_an_element_that_does_not_fit_is_refused(adder: str, value: object) -> None:
    with pytest.raises(LocalProtocolError, match=r"element 0: .* cannot be stored"):
        getattr(Builder().start_list(8), adder)(value)


def test_text_without_a_utf8_form_is_refused() -> None:
    builder, target = started()
    with pytest.raises(LocalProtocolError, match=r"'\\ud800' at position 2"):
        target.set_text(0, "ab\ud800")
    with pytest.raises(LocalProtocolError, match="position 0"):
        builder.write_text("\udfff")


def test_a_field_past_the_size_grows_the_last_object_only() -> None:
    builder, first = started()
    first.set_uint8(20, 1)
    builder.start_object(8).finish()
    first.set_uint8(20, 2)  # inside what it has grown to
    with pytest.raises(LocalProtocolError, match="field 21 of 4 bytes: the object has 21 bytes"):
        first.set_uint32(21, 1)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda builder, target: target.set_uint8(-1, 1),
        lambda builder, target: target.set_object(0, 8),
        lambda builder, target: target.set_object(0, 1000),
        lambda builder, target: target.set_list(0, 15, 1),
        lambda builder, target: target.set_list(0, 16, -1),
        lambda builder, target: target.set_list(0, 16, 1 << 32),
        lambda builder, target: builder.start_object(-1),
        lambda builder, target: builder.start_list(-1),
        lambda builder, target: builder.finish(),
        lambda builder, target: builder.finish_with_flags(-1),
        lambda builder, target: builder.finish_with_flags(1 << 16),
        lambda builder, target: (target.finish(), target.finish()),
        lambda builder, target: (target.finish(), target.set_uint8(0, 1)),
        lambda builder, target: _interleave(builder.start_list(1), builder),
    ],
)
def test_misuse_is_refused_where_it_happens(mistake: Any) -> None:
    builder, target = started()
    with pytest.raises(LocalProtocolError):
        mistake(builder, target)


def _interleave(items: ListBuilder, builder: Builder) -> None:
    items.add_uint8(1)
    builder.write_bytes(b"between")
    items.add_uint8(2)


def test_a_builder_can_be_used_again() -> None:
    builder = Builder()
    builder.start_object(8).finish_as_root()
    builder.finish_with_flags(0x6001)
    builder.reset()
    assert builder.finish() == Builder().finish() == message(0)


def test_raw_bytes_are_aligned_and_found_by_their_offset() -> None:
    builder = Builder()
    assert builder.write_bytes(b"") == builder.write_text("") == 0
    assert builder.write_bytes(b"abc") == 16
    assert builder.write_text("hé") == 24
    root = builder.start_object(8)
    root.set_list(0, 24, 3)
    assert root.finish_as_root() == 32
    assert parse(builder.finish()).root().list(0).raw() == "hé".encode()
