"""What happened in a run, as lines of JSON in files: each line is there before anything follows from it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

SIDE_EFFECTS = "effects"
"""A handler did its work: `run`, `activity`, `attempt`, `worker`, `pid`, `ms`, `by`."""
BEGUN = "begun"
"""An attempt that reads heartbeat details began: `run`, `attempt`, `step` from which it goes on."""
KEPT = "kept"
"""The server acknowledged to a worker: a heartbeat (`run`, `attempt`, `step`) or a result (`run`, `by`)."""
ACKNOWLEDGED = "acknowledged"
"""The server acknowledged to a client: `what`, and what belongs to it."""


class Journal:
    """Appends lines to the files of a folder. Several processes may have the same file: a line is one write."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, int] = {}

    def write(self, name: str, *, sync: bool = False, **line: Any) -> None:
        """Append a line; with `sync` it is on the disk when this returns, else with the kernel."""
        file = self._files.get(name)
        if file is None:
            path = self._folder / f"{name}.jsonl"
            file = self._files[name] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        data = msgspec.json.encode(line) + b"\n"
        written = os.write(file, data)
        assert written == len(data), f"{self._folder}: a line of {len(data)} bytes was cut to {written}"
        if sync:
            os.fsync(file)


def read(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """The lines of a file, in order; none if it does not exist."""
    try:
        with (folder / f"{name}.jsonl").open("rb") as file:
            for line in file:
                yield msgspec.json.decode(line)
    except FileNotFoundError:
        return
