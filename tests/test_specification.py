"""docs/wire.md is what the tables say, and the tables say something about everything."""

from pathlib import Path

from zapwire.handshake import Capability
from zapwire.opcodes import OPCODES
from zapwire.specification import specification

PAGE = Path(__file__).parent.parent / "docs" / "wire.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == specification(), "run: python -m zapwire.specification > docs/wire.md"


def test_every_opcode_and_capability_is_on_the_page() -> None:
    text = specification()
    for opcode in OPCODES:
        assert f"| 0x{opcode.number:02X} | {opcode.name} |" in text
    for bit in Capability:
        assert f"| {int(bit)} | {bit.name} |" in text
