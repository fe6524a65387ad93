"""zapconform's own decoder against every vector: it judges others, so it has to be right itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import zapconform
from zapconform import wire
from zapconform.cli import main
from zapconform.codec import Field, Unreadable, Writer, message, parse
from zapconform.replay import read_recording
from zapconform.vector_files import BUILT_IN, BUILT_IN_RECORDINGS, build, check_file, read

VECTORS: dict[str, list[dict[str, Any]]] = json.loads((BUILT_IN / "message.json").read_text())


@pytest.mark.parametrize("entry", VECTORS["build"], ids=lambda entry: entry["name"])
def test_builds_the_recorded_bytes(entry: dict[str, Any]) -> None:
    assert build(entry) == ""


@pytest.mark.parametrize("entry", VECTORS["read"], ids=lambda entry: entry["name"])
def test_reads_go_or_null(entry: dict[str, Any]) -> None:
    assert read(entry) == ""


def test_a_wrong_byte_is_noticed() -> None:
    entry = dict(next(entry for entry in VECTORS["build"] if entry["name"] == "lists"))
    entry["hex"] = entry["hex"][:-2] + "01"
    assert "built" in build(entry)


def test_a_wrong_reading_is_noticed() -> None:
    entry = dict(next(entry for entry in VECTORS["read"] if entry["name"] == "as-built:scalars"))
    entry["reads"] = [{"type": "u32", "offset": 0, "value": 41}]
    assert "reads 42" in read(entry)


def test_a_wrong_verdict_of_parse_is_noticed() -> None:
    sound = dict(next(entry for entry in VECTORS["read"] if entry["parse"] == "ok"))
    assert "Go refuses" in read(sound | {"parse": "zap: invalid magic bytes"})
    damaged = dict(next(entry for entry in VECTORS["read"] if entry["parse"] != "ok"))
    assert "Go reads it" in read(damaged | {"parse": "ok"})


@pytest.mark.parametrize("name", BUILT_IN_RECORDINGS)
def test_reads_recorded_frames_as_the_recording_says(name: str) -> None:
    checked, problems = check_file(BUILT_IN / f"{name}.jsonl")
    assert checked > 0
    assert problems == []


@pytest.mark.parametrize("name", BUILT_IN_RECORDINGS)
def test_writes_a_go_clients_frames_byte_for_byte(name: str) -> None:
    """What a case sends is what Go would send, not only something that decodes alike."""
    for row in read_recording(BUILT_IN / f"{name}.jsonl"):
        if row.from_client:
            assert rewritten(row.payload).hex() == row.payload.hex(), wire.describe(row.payload)


def rewritten(payload: bytes) -> bytes:
    if wire.is_hello(payload):
        return wire.hello(wire.read_hello(payload).node_id)
    header = wire.correlated(payload)
    inner = parse(header.message if header else payload)
    root = inner.root()
    match inner.opcode:
        case 0x50:
            again = wire.task_submit(root.text(0), root.bytes(8))
        case 0x51:
            again = wire.task_schedule(root.text(0), interval=root.text(16), cron=root.text(24))
        case 0xA2 | 0xA3 | 0xA4 | 0xA5:
            again = wire.worker_answer(inner.opcode, root.bytes(0), root.bytes(8))
        case opcode:
            again = wire.request(opcode, root.bytes(0))
    return wire.call_payload(header.request_id, again) if header else again


@pytest.mark.parametrize("length", range(80))
def test_a_truncated_message_is_refused_and_not_guessed_at(length: int) -> None:
    whole = wire.hello(b"peer")
    with pytest.raises(Unreadable, match="bytes"):
        parse(whole[:length])


def test_every_accessor_is_null_everywhere_in_a_message_of_noise() -> None:
    """All ones as every pointer: nothing is followed, nothing raises."""
    data = message(32, [Field(offset, "u8", 0xFF) for offset in range(32)])
    root = parse(data).root()
    for offset in range(40):
        assert root.bytes(offset) == b""
        assert root.list_length(offset) == 0
        assert root.numbers(offset, "u32") == []
        assert root.object(offset).is_null() or offset <= 16 + 32


def test_lists_of_numbers_are_read() -> None:
    writer = Writer()
    where = writer.list("u32", [1, 2, 0xFFFFFFFF])
    writer.object(8, [Field(0, "list", where)], root=True)
    assert parse(writer.finish()).root().numbers(0, "u32") == [1, 2, 0xFFFFFFFF]


def test_a_handshake_is_not_taken_for_a_call_nor_a_call_for_a_handshake() -> None:
    """Flags of 0 make a plain message look like a request; only the magic behind the header tells."""
    assert wire.is_hello(wire.hello(b"peer"))
    looks_alike = wire.call_payload(int.from_bytes(b"ZAP\x00", "little"), wire.request(0x90, b"{}" + b" " * 80))
    assert not wire.is_hello(looks_alike)


def test_the_longer_handshake_is_read() -> None:
    hello = wire.read_hello(wire.extended_hello(b"peer", capabilities=5, details=b"\xa0"))
    assert (hello.node_id, hello.capabilities, hello.details) == (b"peer", 5, b"\xa0")


def test_the_command_line_checks_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["vectors", str(BUILT_IN / "message.json")]) == 0
    assert "0 wrong" in capsys.readouterr().out
    damaged = VECTORS["build"][2] | {"hex": "00"}
    (tmp_path / "bad.json").write_text(json.dumps({"build": [damaged], "read": []}))
    assert main(["vectors", str(tmp_path / "bad.json")]) == 1
    (tmp_path / "none.json").write_text(json.dumps({"build": [], "read": []}))
    assert main(["vectors", str(tmp_path / "none.json")]) == 2
    assert main(["vectors", str(tmp_path / "missing.json")]) == 2


def test_the_package_names_what_users_import() -> None:
    assert all(hasattr(zapconform, name) for name in zapconform.__all__)
