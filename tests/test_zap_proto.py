"""Differential test against zap-proto, other people's ZAP codec: the same calls, the same bytes, the same values.

zap-proto lives in an environment of its own (`make peers`). One subprocess builds and reads the whole batch.
`ZAP_PROTO_SEED` repeats a run; the seed is in the message of a failure.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import programs, reading

from zapwire.errors import BadMessage
from zapwire.message import Builder, parse

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".peers" / "zap-proto" / "bin" / "python"

PROGRAMS = 120
DAMAGED = 240
OFFSETS = 32


def ask_zap_proto(batch: dict[str, Any]) -> dict[str, Any]:
    if not PYTHON.exists():
        pytest.fail(f"zap-proto is not installed at {PYTHON}: run `make peers`")
    command = [str(PYTHON), "-m", "tests.helpers.zap_proto_peer"]
    done = subprocess.run(
        command, cwd=ROOT, input=json.dumps(batch), capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def damage(rng: random.Random, data: bytes) -> bytes:
    """A copy with a few bytes changed, or cut short."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        changed[rng.randrange(len(changed))] = rng.choice([0, 1, 2, 15, 16, 127, 128, 255, rng.randrange(256)])
    return bytes(changed[: rng.randrange(len(changed) + 1)] if rng.random() < 0.2 else changed)


class Run:
    """One batch, built and read on both sides."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.seed = seed
        self.programs = [programs.random_program(rng) for _ in range(PROGRAMS)]
        self.ours = [programs.execute(Builder(), program) for program in self.programs]
        self.damaged = [damage(rng, rng.choice(self.ours)) for _ in range(DAMAGED)]
        messages = [data.hex() for data in self.ours + self.damaged]
        answer = ask_zap_proto({"programs": self.programs, "messages": messages, "offsets": OFFSETS})
        self.theirs = [bytes.fromhex(data) for data in answer["built"]]
        self.read_theirs: list[reading.Reading] = answer["read"]

    def where(self, index: int) -> str:
        return f"message {index}, repeat with ZAP_PROTO_SEED={self.seed}"


@pytest.fixture(scope="module")
def run() -> Run:
    return Run(int(os.environ.get("ZAP_PROTO_SEED") or random.SystemRandom().getrandbits(32)))


def test_the_same_calls_build_the_same_bytes(run: Run) -> None:
    for index, (ours, theirs) in enumerate(zip(run.ours, run.theirs, strict=True)):
        assert ours == theirs, f"{run.where(index)}: {run.programs[index]}"


def test_well_formed_messages_read_the_same(run: Run) -> None:
    """Read at every offset, most of them in the middle of some field, so every rule for null is met here too."""
    compared = sum(_compare(run, index, data) for index, data in enumerate(run.ours))
    assert compared == len(run.ours)


def test_damaged_messages_read_the_same_or_null(run: Run) -> None:
    compared = sum(_compare(run, index, data) for index, data in enumerate(run.damaged, start=len(run.ours)))
    assert compared > len(run.damaged) // 4, "too few damaged messages still parse to prove anything"


def _compare(run: Run, index: int, data: bytes) -> bool:
    """Compare both readings of one message; False when neither side parses it."""
    where = run.where(index)
    theirs = run.read_theirs[index]
    try:
        message = parse(data)
    except BadMessage:
        # zap-proto also knows version 2; the Go system that we are compatible with does not.
        assert "error" in theirs or data[4:6] == b"\x02\x00", where
        return False
    if "error" in theirs:
        # A declared size below the header's: Go reads such a message as empty, zap-proto refuses it.
        assert message.size < 16, where
        assert message.root().is_null(), where
        return False
    ours = reading.read_message(parse, data, OFFSETS)
    assert (ours["flags"], ours["size"]) == (theirs["flags"], theirs["size"]), where
    root = int.from_bytes(data[8:12], "little")
    if ours["root_is_null"]:
        # zap-proto reads a null root's fields from the header, and follows a root pointer anywhere. Ours are zero.
        assert theirs["root_is_null"] == (root == 0), where
        assert root < 16 or root > message.size, where
        assert not any(field["uint64"] or field["bytes"] or field["list"]["length"] for field in ours["fields"]), where
        return True
    for offset, (our_field, their_field) in enumerate(zip(ours["fields"], theirs["fields"], strict=True)):
        _compare_field(our_field, their_field, root + offset, message.size, f"{where}, offset {offset}")
    return True


def _compare_field(ours: reading.Reading, theirs: reading.Reading, address: int, size: int, where: str) -> None:
    differing = {name for name in ours if ours[name] != theirs[name]}
    if ours["int32"] < 0:
        # zap-proto reads the pointer of text and bytes as unsigned, so one that points backwards is null to it.
        # Go reads it as signed and follows it; so do we.
        assert theirs["bytes"] == theirs["text"] == "", where
        differing -= {"bytes", "text"}
    if theirs["text"] == "(not UTF-8)":
        # zap-proto raises on text that is not UTF-8, where we put U+FFFD.
        assert "\ufffd" in ours["text"], where
        differing -= {"text"}
    elif "text" in differing:
        # Or it passes encoded surrogates through, which Go's strings and ours do not know.
        assert "\ufffd" in ours["text"], where
        assert any("\ud800" <= letter <= "\udfff" for letter in theirs["text"]), where
        differing -= {"text"}
    if ours["list_is_null"] and not theirs["list_is_null"]:
        # zap-proto believes any list length, where a list that cannot fit is null to us. And with a pointer but no
        # elements a list is null to Go and to us, not to zap-proto.
        length = theirs["list"]["length"]
        assert length == 0 or address + ours["int32"] + length > size, where
        differing -= {"list", "list_is_null"}
    assert not differing, f"{where}: {[(name, ours[name], theirs[name]) for name in sorted(differing)]}"
