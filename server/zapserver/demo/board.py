"""The demo's progress: a set of bars in a terminal, a line for each thing that happened in a log."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

LABEL_CHARACTERS = 20


@dataclass(slots=True)
class _Row:
    bar: TaskID
    total: int
    done: int = 0


class Board:
    """Shown for the length of a `with` block."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._started = time.monotonic()
        self._rows: dict[str, _Row] = {}
        self._bars = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def expect(self, label: str, total: int) -> None:
        """One more kind of work, in so many pieces."""
        self._rows[label] = _Row(self._bars.add_task(f"{label:<{LABEL_CHARACTERS}}", total=total, note=""), total)

    def advance(self, label: str) -> None:
        """One more piece of it is done."""
        row = self._rows[label]
        self.set(label, row.done + 1)

    def set(self, label: str, done: int, note: str = "") -> None:
        """So many pieces of it are done."""
        row = self._rows[label]
        row.done = done
        self._bars.update(row.bar, completed=done, note=note)
        if done == row.total and not self.console.is_terminal:
            self.tell(f"{label}: {done} of {row.total} done")

    def tell(self, text: str) -> None:
        """Something worth a line of its own."""
        self.console.print(f"{time.monotonic() - self._started:7.1f} s  {text}", markup=False)
