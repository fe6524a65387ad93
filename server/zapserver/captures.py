"""Reading captured bytes from a file: a recording, a raw capture, or a hex dump. Pure: bytes in, chunks out.

    recording   one JSON object a line with `hex`, and `conn` and `dir` (`c2s`, `s2c`) where known
    raw         the bytes of one or both directions, as they were on the wire
    hex dump    as xxd, hexdump, hexdump -C and od -A x print it, or plain hexadecimal digits

A line that cannot be read is reported in its place, and what follows is read as far as it can be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

_TEXT = frozenset(b"\t\n\r\x0c") | frozenset(range(0x20, 0x7F))
SNIFF_BYTES = 4096
"""How much of a file decides what it is. A raw capture shows a zero byte within its first length prefix."""

DUMP_BYTES_MAX = 64 * 1024 * 1024
"""How far the "*" of a dump may reach: a line of text must not make us hold any amount of memory."""

_HEX = re.compile(r"[0-9A-Fa-f]*")
_AT = r"(?P<at>[0-9A-Fa-f]{4,16})"
_DUMP_STYLES = {
    "xxd": re.compile(_AT + r":\s(?P<hex>[0-9A-Fa-f]+(?: [0-9A-Fa-f]+)*)(?:\s\s.*)?"),
    "words": re.compile(_AT + r"\s+(?P<hex>[0-9A-Fa-f]{4}(?:\s+[0-9A-Fa-f]{4})*)\s*"),
    "bytes": re.compile(_AT + r"\s+(?P<hex>[0-9A-Fa-f]{2}(?:\s+[0-9A-Fa-f]{2})*)(?:\s+[|>].*)?\s*"),
}
_LAST = re.compile(_AT + r"\s*")
"""The last line of a dump is its length, alone."""
_SEPARATORS = re.compile(r"0[xX]|[\s|,:;]+")
_DIRECTIONS = ("", "c2s", "s2c")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some bytes of one direction of one connection, in order. `direction` is empty when it is not known."""

    data: bytes
    conn: int = 1
    direction: str = ""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line of a text capture that cannot be read."""

    line: int
    reason: str


class _Line(msgspec.Struct):
    hex: str
    conn: int = 1
    dir: str = ""


def read_capture(data: bytes) -> Iterator[Chunk | BadLine]:
    """The chunks of a capture, whichever of the three forms it has."""
    head = data[:SNIFF_BYTES]
    if not _TEXT.issuperset(head):
        yield Chunk(data)
        return
    lines = data.decode("ascii", "replace").splitlines()
    if head.lstrip()[:1] == b"{":
        yield from _read_recording(lines)
    else:
        yield from _read_dump(lines)


def _read_recording(lines: Iterable[str]) -> Iterator[Chunk | BadLine]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = msgspec.json.decode(line, type=_Line)
        except msgspec.MsgspecError as error:
            yield BadLine(number, f"not a line of a recording: {error}")
            continue
        if entry.dir not in _DIRECTIONS:
            yield BadLine(number, f"direction {entry.dir!r}: must be 'c2s' or 's2c'")
        elif problem := _hex_problem(entry.hex):
            yield BadLine(number, problem)
        else:
            yield Chunk(bytes.fromhex(entry.hex), entry.conn, entry.dir)


def _read_dump(lines: list[str]) -> Iterator[Chunk | BadLine]:
    """One chunk of everything up to the first line that cannot be read: what follows it would be misplaced."""
    data = bytearray()
    problem: BadLine | None = None
    style = _style_of(lines)
    before, is_repeated = b"", False
    for number, line in enumerate(lines, 1):
        if style and line.strip() == "*":
            is_repeated = True
            continue
        at, piece, reason = _styled_line(style, line) if style else _plain_line(line)
        if is_repeated and at is not None and before:
            # "*" stands for the line before it, again and again up to the offset that comes next.
            data += before * ((min(at, DUMP_BYTES_MAX) - len(data)) // len(before))
        is_repeated = False
        if style == "words" and not piece and at == len(data) - 1:
            data.pop()  # an odd number of bytes: the last word was filled up
        if not reason and at is not None and at != len(data):
            reason = f"offset {at:#x} where {len(data):#x} comes next: a part of the dump is missing"
        if reason:
            problem = BadLine(number, reason)
            break
        data += piece
        before = piece
    if data:
        yield Chunk(bytes(data))
    if problem is not None:
        yield problem
    elif not data:
        yield BadLine(1, "nothing in it: neither a recording, nor a dump, nor bytes")


def _style_of(lines: Iterable[str]) -> str:
    """Which program printed this dump, or "" for plain digits: its first line shows offset 0."""
    first = next((line.strip() for line in lines if line.strip()), "")
    for style, pattern in _DUMP_STYLES.items():
        match = pattern.fullmatch(first)
        if match and int(match["at"], 16) == 0:
            return style
    return ""


def _styled_line(style: str, line: str) -> tuple[int | None, bytes, str]:
    """A line of a program's dump as its offset, its bytes, and what is wrong with it (or "")."""
    line = line.strip()
    if not line:
        return None, b"", ""
    if match := _LAST.fullmatch(line):
        return int(match["at"], 16), b"", ""
    match = _DUMP_STYLES[style].fullmatch(line)
    if match is None:
        return None, b"", f"{line[:60]!r} is no line of this dump"
    groups = match["hex"].split()
    problem = _hex_problem("".join(groups))
    if problem:
        return None, b"", problem
    # Words are two bytes in the machine's order, which is little-endian.
    piece = b"".join(bytes.fromhex(group)[:: -1 if style == "words" else 1] for group in groups)
    return int(match["at"], 16), piece, ""


def _plain_line(line: str) -> tuple[int | None, bytes, str]:
    digits = _SEPARATORS.sub("", line)
    problem = _hex_problem(digits)
    return None, b"" if problem else bytes.fromhex(digits), problem


def _hex_problem(digits: str) -> str:
    match = _HEX.match(digits)
    assert match is not None  # the pattern may be empty
    end = match.end()
    if end < len(digits):
        return f"{digits[end]!r} is no hexadecimal digit, after {end} digits"
    if end % 2:
        return f"{end} hexadecimal digits: a byte takes two"
    return ""
