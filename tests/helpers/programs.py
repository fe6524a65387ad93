"""Programs of builder calls, in the format of message.json, for any builder that has ZAP's method names.

Only the standard library is used here: the zap-proto peer runs this module in an environment of its own.
"""

from __future__ import annotations

import random
import struct
from typing import Any

Program = dict[str, Any]

SETTERS = {
    "u8": "set_uint8",
    "u16": "set_uint16",
    "u32": "set_uint32",
    "u64": "set_uint64",
    "i8": "set_int8",
    "i16": "set_int16",
    "i32": "set_int32",
    "i64": "set_int64",
}
BITS = {name: int(name[1:]) for name in SETTERS}
WIDTHS = {name: bits // 8 for name, bits in BITS.items()} | {
    "bool": 1,
    "f32": 4,
    "f64": 8,
    "text": 8,
    "bytes": 8,
    "object": 4,
    "list": 8,
}


def float_of(kind: str, bits: int | str) -> float:
    """A float from its bit pattern."""
    layout = ("<I", "<f") if kind == "f32" else ("<Q", "<d")
    value: float = struct.unpack(layout[1], struct.pack(layout[0], int(bits)))[0]
    return value


def execute(builder: Any, program: Program) -> bytes:
    """Run the program on a builder and return the finished message."""
    built: dict[str, Any] = {}
    for step in program["steps"]:
        if step["op"] == "list":
            built[step["id"]] = _build_list(builder, step)
        else:
            finished = _build_object(builder, step, built)
            if not step.get("root"):
                built[step["id"]] = finished
    message: bytes = builder.finish_with_flags(program["flags"])
    return message


def _build_list(builder: Any, step: dict[str, Any]) -> tuple[int, int]:
    items = builder.start_list(step["elem_size"])
    for item in step["items"]:
        if step["kind"] == "bytes":
            items.add_bytes(bytes.fromhex(item))
        elif step["kind"] == "entries":
            items.add_object_bytes(bytes.fromhex(item))
        else:
            getattr(items, f"add_uint{step['kind'][1:]}")(int(item))
    offset, length = items.finish()
    return offset, length


def _build_object(builder: Any, step: dict[str, Any], built: dict[str, Any]) -> int:
    target = builder.start_object(step["size"])
    for field in step["fields"]:
        kind, offset, value = field["type"], field["offset"], field["value"]
        if kind == "bool":
            target.set_bool(offset, value)
        elif kind == "text":
            target.set_text(offset, value)
        elif kind == "bytes":
            target.set_bytes(offset, bytes.fromhex(value))
        elif kind == "object":
            target.set_object(offset, built[value])
        elif kind == "list":
            target.set_list(offset, *built[value])
        elif kind == "f32":
            target.set_float32(offset, float_of(kind, value))
        elif kind == "f64":
            target.set_float64(offset, float_of(kind, value))
        else:
            getattr(target, SETTERS[kind])(offset, int(value))
    finished: int = target.finish_as_root() if step.get("root") else target.finish()
    return finished


def random_program(rng: random.Random) -> Program:
    """A program whose objects and lists are built in a random order, the root last."""
    steps: list[dict[str, Any]] = []
    known: dict[str, list[str]] = {"list": [], "object": []}
    for number in range(rng.randrange(6)):
        if rng.random() < 0.5:
            known["list"].append(f"l{number}")
            steps.append(_random_list(rng, f"l{number}"))
        else:
            steps.append(_random_object(rng, known) | {"id": f"o{number}"})
            known["object"].append(f"o{number}")
    steps.append(_random_object(rng, known) | {"root": True})
    return {"flags": rng.randrange(1 << 16), "steps": steps}


def _random_list(rng: random.Random, name: str) -> dict[str, Any]:
    kind = rng.choice(["u8", "u32", "u64", "bytes", "entries"])
    count = rng.randrange(6)
    if kind in ("bytes", "entries"):
        items: list[Any] = [rng.randbytes(rng.randrange(12)).hex() for _ in range(count)]
    else:
        items = [str(rng.getrandbits(BITS[kind])) for _ in range(count)]
    return {
        "op": "list",
        "id": name,
        "elem_size": WIDTHS.get(kind, 1) if kind != "bytes" else 1,
        "kind": kind,
        "items": items,
    }


def _random_object(rng: random.Random, known: dict[str, list[str]]) -> dict[str, Any]:
    kinds = [kind for kind in WIDTHS if kind not in known or known[kind]]
    fields: list[dict[str, Any]] = []
    end = 0
    for _ in range(rng.randrange(7)):
        kind = rng.choice(kinds)
        offset = end + rng.choice([0, 0, 1, 4])
        fields.append({"type": kind, "offset": offset, "value": _random_value(rng, kind, known)})
        end = offset + WIDTHS[kind]
    rng.shuffle(fields)
    return {"op": "object", "size": end + rng.randrange(9), "fields": fields}


def _random_value(rng: random.Random, kind: str, known: dict[str, list[str]]) -> Any:
    if kind == "bool":
        return rng.random() < 0.5
    if kind == "text":
        return "".join(rng.choice("az Ä€\n\x00😀") for _ in range(rng.randrange(20)))
    if kind == "bytes":
        return rng.randbytes(rng.randrange(40)).hex()
    if kind in known:
        return rng.choice(known[kind])
    if kind == "f32":
        return struct.unpack("<I", struct.pack("<f", rng.uniform(-1e9, 1e9)))[0]
    if kind == "f64":
        return str(struct.unpack("<Q", struct.pack("<d", rng.uniform(-1e300, 1e300)))[0])
    bits = BITS[kind]
    value = rng.getrandbits(bits)
    return str(value - (1 << bits - 1) if kind[0] == "i" else value)
