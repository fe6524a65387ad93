"""Values that a run keeps in its history: side effects, values that change, and which patches it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from zaptasks.payloads import encode_payload

from . import commands as c
from .errors import Broken
from .history import Event
from .places import caller
from .replay import PATCH
from .scheduler import current_task
from .steps import Step

if TYPE_CHECKING:
    from .execution import Run

ID_CHARACTERS_MAX: Final = 200
"""Of the ids that workflows give to patches and to changing values: they are in every list of events."""


class Markers:
    """The markers of one run: each is made once, and found again in a replay."""

    def __init__(self, run: Run) -> None:
        self.recorded: Final[dict[str, Event]] = {}
        """By command id, for as long as the run is replayed."""
        self._run = run
        self._patches: dict[str, bool] = {}
        self._last_values: dict[str, bytes] = {}
        """Of `changing_marker`, by name."""

    def marker(self, name: str, make: Callable[[], object], what: str) -> bytes:
        """The recorded details of the marker that belongs here; made now, where the run is not replayed."""
        command_id = current_task().next_command_id()
        event = self.recorded.get(command_id)
        if event is not None:
            details = event.payload("details") or b"null"
        elif self._run.is_replaying:
            self._break_at_marker(command_id, name, what)
        else:
            details = encode_payload(make(), f"the value of {what}")
        self._run.add(c.RecordMarker(id=command_id, name=name, details=msgspec.Raw(details)))
        return details

    def changing_marker(self, name: str, changed: Callable[[bytes | None], bytes | None], what: str) -> bytes:
        """Like `marker`, for a value of this name that is asked for again and again, and kept where it has changed.

        `changed` gets the last value and returns the new one, or None where the last one still holds.
        """
        command_id = current_task().next_command_id()
        last = self._last_values.get(name)
        event = self.recorded.get(command_id)
        if event is not None:
            details = event.payload("details") or b"null"
        elif not self._run.is_replaying:
            new = changed(last)
            if new is None and last is not None:
                return last
            details = new or b"null"
        else:
            if self._run.matching.recorded_at(command_id) is None and last is not None:
                return last
            self._break_at_marker(command_id, name, what)
        self._last_values[name] = details
        self._run.add(c.RecordMarker(id=command_id, name=name, details=msgspec.Raw(details)))
        return details

    def _break_at_marker(self, command_id: str, name: str, what: str) -> NoReturn:
        """The code asks for a value in a replay, and the history has something else there, or nothing."""
        was, line = self._run.matching.recorded_at(command_id), caller()
        now = Step(text=what, kind="record-marker", name=name, place=command_id, source=line)
        self._run.scheduler.broken = self._run.matching.mismatch(command_id, was, now, line)
        raise Broken("the history does not have this value")

    def patched(self, patch_id: str, *, is_deprecated: bool) -> bool:
        """Whether code behind this patch runs: in what is new, and in what was done with the patch in place."""
        check_marker_id("patch id", patch_id)
        known = self._patches.get(patch_id)
        if known is not None:
            return known
        current_task().check_may_change("record a patch")
        command_id = f"{PATCH}/{patch_id}"
        is_on = not self._run.is_replaying or command_id in self.recorded
        self._patches[patch_id] = is_on
        if is_on:
            details = msgspec.json.encode({"deprecated": is_deprecated})
            self._run.add(c.RecordMarker(id=command_id, name=PATCH, details=msgspec.Raw(details)))
        return is_on


def check_marker_id(what: str, marker_id: str) -> None:
    """Raise `ValueError` for an id that a marker cannot go by."""
    if not marker_id or len(marker_id) > ID_CHARACTERS_MAX or not marker_id.isprintable() or "|" in marker_id:
        raise ValueError(f"{what} {marker_id!r}: it must be 1 to {ID_CHARACTERS_MAX} printable characters, and no '|'")
