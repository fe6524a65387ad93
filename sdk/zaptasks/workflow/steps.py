"""Commands as people compare them: what a history has, and what the code does now."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from .commands import Named, describe
from .history import Recorded, subject_of
from .places import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that a workflow does, as its history has it or as its code does it now."""

    text: str
    """In words: `activity 'charge'`."""
    kind: str = ""
    """As docs/wire.md names the command: `schedule-activity`. Empty for what is no command, such as an end."""
    name: str = ""
    """The type of an activity or child, the name of a marker, the workflow id that a signal or cancel goes to."""
    place: str = ""
    """In the task tree, `0.2/3`: the third command of the second task that the workflow's own has started."""
    input: bytes | None = None
    """What goes along, as JSON; None for nothing."""
    event_id: int = 0
    """Where the history has it; 0 for what only the code does."""
    source: Place | None = None
    """The line of the code that does it, where that is known."""

    def __str__(self) -> str:
        return f"{self.text} (event {self.event_id})" if self.event_id else self.text


def step_of_command(command: Named, source: Place | None) -> Step:
    """What the code does now."""
    return Step(
        text=describe(command),
        kind=str(command.__struct_config__.tag),
        name=subject_of(command),
        place=command.id,
        input=_input(getattr(command, "input", None) or getattr(command, "details", None)),
        source=source,
    )


def step_of_record(recorded: Recorded, source: Place | None = None) -> Step:
    """What the history has, and the line that does it now."""
    event = recorded.event
    return Step(
        text=recorded.text,
        kind=str(recorded.kind.__struct_config__.tag),
        name=recorded.subject,
        place=event.command_id,
        input=event.payload("input") or event.payload("details"),
        event_id=event.event_id,
        source=source,
    )


def _input(raw: msgspec.Raw | None) -> bytes | None:
    return None if raw is None or bytes(raw) == b"null" else bytes(raw)
