"""What codecs do to the payloads of workflows that replay: opened before the code sees them, sealed before they leave.

The workflow package itself knows nothing but JSON. Here are the two doors: a task comes in, commands go out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from zapwire.failure import decode_failure

from .converters import DataConverter
from .workflow import WorkflowTask
from .workflow import commands as c
from .workflow.history import Event

_PAYLOADS: Final = ("input", "result", "details", "args", "memo")
"""The attributes of events that hold what an application sends; those of commands have the same names."""

_FAILURE: Final = "failure"

HIDDEN_REASON_BYTES_MAX: Final = 1_000
"""Of a reason that is encrypted, which needs half as much again; a part of that could not be read."""


def opened_task(converter: DataConverter, task: WorkflowTask) -> WorkflowTask:
    """A task with its payloads in the open. Raises `CodecError` for one whose codec or key is not here."""
    history = opened_events(converter, task.history)
    updates = [
        msgspec.structs.replace(update, args=msgspec.Raw(open_json(converter, update.args))) for update in task.updates
    ]
    return msgspec.structs.replace(task, history=history, updates=updates)


def opened_events(converter: DataConverter, events: Sequence[Event]) -> list[Event]:
    """Events with their payloads in the open. Raises `CodecError`."""
    return [_opened_event(converter, event) for event in events]


def _opened_event(converter: DataConverter, event: Event) -> Event:
    changed: dict[str, msgspec.Raw] = {}
    for name in _PAYLOADS:
        if name in event.attributes:
            changed[name] = msgspec.Raw(open_json(converter, event.attributes[name]))
    if _FAILURE in event.attributes:
        changed[_FAILURE] = msgspec.Raw(converter.open_failure_json(bytes(event.attributes[_FAILURE])))
    return msgspec.structs.replace(event, attributes=event.attributes | changed) if changed else event


def open_json(converter: DataConverter, payload: bytes | msgspec.Raw) -> bytes:
    """The JSON in a payload. Raises `CodecError`."""
    opened = converter.open(bytes(payload))
    return opened.encode() if isinstance(opened, str) else opened


def hidden_reason(converter: DataConverter, reason: str) -> str:
    """Why a task failed, for a server that keeps 2,000 characters: it may tell of the data."""
    if converter.hide_text(reason) == reason:
        return reason
    return converter.hide_text(reason.encode()[:HIDDEN_REASON_BYTES_MAX].decode(errors="ignore"))


def sealed_commands(converter: DataConverter, commands: Sequence[c.Command]) -> list[c.Command]:
    """Commands as they leave. Raises `CodecError`, and `PayloadError` for what the codecs have made too large."""
    return [_sealed_command(converter, command) for command in commands]


def _sealed_command(converter: DataConverter, command: c.Command) -> c.Command:
    if isinstance(command, c.FailTask):
        return c.FailTask(reason=hidden_reason(converter, command.reason))
    changed: dict[str, msgspec.Raw] = {}
    for name in _PAYLOADS:
        payload = getattr(command, name, None)
        if payload is not None:
            changed[name] = msgspec.Raw(converter.seal(bytes(payload), f"the {name} of {c.describe(command)}"))
    failure = getattr(command, _FAILURE, None)
    if failure is not None:
        changed[_FAILURE] = msgspec.Raw(converter.encode_failure(decode_failure(bytes(failure))))
    return msgspec.structs.replace(command, **changed) if changed else command
