"""Runs in the zap-proto environment: builds and reads a batch of messages with that package, as JSON in and out.

In: {"programs": [...], "messages": [hex, ...], "offsets": n}. Out: {"built": [hex, ...], "read": [reading, ...]}.
Run it as a module from the repository's root; it imports only the standard library, zap-proto and its neighbors here.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from tests.helpers import programs, reading


def main() -> None:
    wire = importlib.import_module("zap.wire")
    batch: dict[str, Any] = json.load(sys.stdin)
    built = [programs.execute(wire.Builder(), program).hex() for program in batch["programs"]]
    read = [reading.read_message(wire.parse, bytes.fromhex(data), batch["offsets"]) for data in batch["messages"]]
    json.dump({"built": built, "read": read}, sys.stdout)


if __name__ == "__main__":
    main()
