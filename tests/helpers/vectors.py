"""The recordings of the real peers, as lists that are never empty.

`ZAP_VECTORS` names another folder with files of the same names and format.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_DEFAULT = Path(__file__).parents[2] / "conformance" / "zapconform" / "vectors"
FOLDER = Path(os.environ.get("ZAP_VECTORS", _DEFAULT))

RECORDINGS = ("go-mini-client", "go-sdk-client", "go-sdk-worker")

Case = dict[str, Any]


def message_cases(kind: str) -> list[Case]:
    """The `build` or `read` cases of message.json."""
    cases: list[Case] = json.loads((FOLDER / "message.json").read_text())[kind]
    return _not_empty(cases, f"message.json {kind}")


def recording(name: str) -> list[Case]:
    """Every frame of one recorded session, in order."""
    lines = (FOLDER / f"{name}.jsonl").read_text().splitlines()
    return _not_empty([json.loads(line) for line in lines if line], name)


def recorded_frames() -> list[Case]:
    """Every frame of every recording, with the recording's name beside it."""
    return [record | {"recording": name} for name in RECORDINGS for record in recording(name)]


def identify(case: Case) -> str:
    """What pytest shows for a case."""
    return str(case.get("name") or f"{case['recording']}:{case['n']}")


def _not_empty(cases: list[Case], what: str) -> list[Case]:
    if not cases:
        raise RuntimeError(f"{FOLDER / what}: no cases, and no cases prove nothing")
    return cases
