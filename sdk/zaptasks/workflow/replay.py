"""Commands that a replay makes, matched by their ids against those that the history has.

    | the code        | the history                  | then                                                          |
    |-----------------|------------------------------|---------------------------------------------------------------|
    | makes a command | has it, same kind and type   | it is not made again                                          |
    | makes a command | has none of that id, another | `NondeterminismError`                                         |
    | does not make   | has it                       | `NondeterminismError`, at the end of the replay               |
    | stops something | has no trace of that         | it is stopped with the first new answer, unless it is closed   |
    | does not stop   | has it stopped               | `NondeterminismError`, at the end of the replay               |

Order does not count: code that does the same things in another order, task by task, replays.
"""

from __future__ import annotations

import math
from typing import Final

from . import commands as c
from . import history as h
from .errors import NondeterminismError
from .places import UNKNOWN, Place
from .steps import Step, step_of_command, step_of_record

MATCHED_SHOWN: Final = 5
"""Of the commands on which code and history agreed, before a mismatch."""

PATCH: Final = "patch"
"""The name of the markers that `workflow.patched` leaves."""


class Matching:
    """The traces of a history, and what the code has made of them so far."""

    def __init__(self) -> None:
        self._recorded: dict[str, h.Recorded] = {}
        self._stopped: dict[str, h.Event] = {}
        self._closed: set[str] = set()
        self._made: dict[str, Place] = {}
        self._unchecked: dict[str, tuple[c.Named, Place]] = {}
        self._cancels: dict[str, c.CancelTimer | c.CancelActivity] = {}
        self._completions: list[c.CompleteUpdate] = []

    # --- what the history says ----------------------------------------------------------------------------

    def take(self, event: h.Event) -> None:
        recorded = h.recorded(event)
        if recorded is not None:
            self._recorded[event.command_id] = recorded
        elif event.event_type in (h.ACTIVITY_CANCEL_REQUESTED, h.TIMER_CANCELED):
            self._stopped[event.command_id] = event
        elif event.event_type in h.OUTCOMES:
            self._closed.add(event.command_id)

    def recorded_at(self, command_id: str) -> Step | None:
        recorded = self._recorded.get(command_id)
        return None if recorded is None else step_of_record(recorded)

    # --- what the code does -------------------------------------------------------------------------------

    def made(self, command: c.Named, place: Place) -> None:
        self._made[command.id] = place
        self._unchecked[command.id] = (command, place)

    def unmade(self, timer_id: str) -> None:
        """A timer that was stopped in the activation that started it."""
        self._unchecked.pop(timer_id, None)
        if timer_id in self._recorded:
            self._cancels[timer_id] = c.CancelTimer(id=timer_id)

    def canceled(self, command: c.CancelTimer | c.CancelActivity) -> None:
        self._cancels[command.id] = command

    def completed_unrecorded(self, command: c.CompleteUpdate) -> None:
        self._completions.append(command)

    # --- the comparison -------------------------------------------------------------------------------------

    def check_made(self) -> None:
        """At the end of a replayed activation: the history has what the code made."""
        for command_id, (command, source) in self._unchecked.items():
            if not self._has(command):
                was = self.recorded_at(command_id)
                raise self.mismatch(command_id, was, step_of_command(command, source), source)
        self._unchecked.clear()

    def check_all_made(self) -> None:
        """At the end of a replay: the code made what the history has."""
        for command_id, recorded in self._recorded.items():
            if command_id not in self._made and not _is_deprecated(recorded):
                raise self.mismatch(command_id, step_of_record(recorded), None)
        for command_id, event in self._stopped.items():
            if command_id not in self._cancels:
                was = Step(text="its cancel", kind="cancel", place=command_id, event_id=event.event_id)
                now = Step(text="it is not canceled", place=command_id)
                raise self.mismatch(command_id, was, now, self._made.get(command_id))

    def _has(self, command: c.Named) -> bool:
        """Whether the history has this command, by its id."""
        recorded = self._recorded.get(command.id)
        return recorded is not None and recorded.kind is type(command) and recorded.subject == h.subject_of(command)

    def unrecorded_cancels(self) -> list[c.Command]:
        """What a replay stopped or completed and the history knows nothing of: it is to be done now."""
        commands: list[c.Command] = [
            command
            for command_id, command in self._cancels.items()
            if command_id not in self._stopped and command_id not in self._closed
        ]
        return commands + self._completions

    def mismatch(
        self, place: str, was: Step | None, now: Step | None, source: Place | None = None
    ) -> NondeterminismError:
        """Where code and history went apart, with the last commands on which they agreed."""
        until = was.event_id if was is not None and was.event_id else math.inf
        agreed = [
            step_of_record(recorded, line)
            for command_id, line in self._made.items()
            if (recorded := self._recorded.get(command_id)) is not None
            and recorded.event.event_id < until
            and (command_id not in self._unchecked or self._has(self._unchecked[command_id][0]))
        ]
        agreed.sort(key=lambda step: step.event_id)
        known = None if source == UNKNOWN else source
        return NondeterminismError(place, was, now, source=known, matched=tuple(agreed[-MATCHED_SHOWN:]))


def _is_deprecated(recorded: h.Recorded) -> bool:
    """The marker of a patch that the code of its time knew only as deprecated: it may be gone."""
    if recorded.kind is not c.RecordMarker or recorded.subject != PATCH:
        return False
    return bool(recorded.event.get("details", dict).get("deprecated"))
