"""What a run asks of the server: each struct is the JSON object of docs/wire.md, "workers that replay".

A command that begins something has an id, the place in the task tree where it was made; the events that follow from
it carry that id as `commandId`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

Raw: TypeAlias = msgspec.Raw


class _Command(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    pass


class ScheduleActivity(_Command, frozen=True, kw_only=True, tag="schedule-activity"):
    id: str
    type: str
    task_queue: str = ""
    input: Raw | None = None
    start_to_close_ms: int = 0
    heartbeat_ms: int = 0
    schedule_to_start_ms: int = 0
    schedule_to_close_ms: int = 0
    retry_policy: dict[str, object] | None = None


class CancelActivity(_Command, frozen=True, kw_only=True, tag="cancel-activity"):
    id: str


class StartTimer(_Command, frozen=True, kw_only=True, tag="start-timer"):
    id: str
    fire_after_ms: int


class CancelTimer(_Command, frozen=True, kw_only=True, tag="cancel-timer"):
    id: str


class StartChild(_Command, frozen=True, kw_only=True, tag="start-child"):
    id: str
    type: str
    workflow_id: str = ""
    task_queue: str = ""
    input: Raw | None = None
    timeouts: dict[str, int] | None = None
    retry_policy: dict[str, object] | None = None
    parent_close_policy: str = ""
    memo: Raw | None = None
    search_attributes: dict[str, Any] | None = None
    cron_schedule: str = ""


class CancelExternal(_Command, frozen=True, kw_only=True, tag="cancel-external"):
    id: str
    workflow_id: str
    run_id: str = ""
    reason: str = ""


class SignalExternal(_Command, frozen=True, kw_only=True, tag="signal-external"):
    id: str
    workflow_id: str
    signal_name: str
    run_id: str = ""
    input: Raw | None = None


class RecordMarker(_Command, frozen=True, kw_only=True, tag="record-marker"):
    id: str
    name: str
    details: Raw | None = None


class Upsert(_Command, frozen=True, kw_only=True, tag="upsert"):
    id: str
    memo: Raw | None = None
    search_attributes: dict[str, Any] | None = None


class AcceptUpdate(_Command, frozen=True, kw_only=True, tag="accept-update"):
    update_id: str


class RejectUpdate(_Command, frozen=True, kw_only=True, tag="reject-update"):
    update_id: str
    failure: Raw


class CompleteUpdate(_Command, frozen=True, kw_only=True, tag="complete-update"):
    update_id: str
    result: Raw | None = None
    failure: Raw | None = None


class Complete(_Command, frozen=True, kw_only=True, tag="complete"):
    result: Raw | None = None


class Fail(_Command, frozen=True, kw_only=True, tag="fail"):
    failure: Raw


class Cancel(_Command, frozen=True, kw_only=True, tag="cancel"):
    failure: Raw


class ContinueAsNew(_Command, frozen=True, kw_only=True, tag="continue-as-new"):
    type: str = ""
    task_queue: str = ""
    input: Raw | None = None
    timeouts: dict[str, int] | None = None
    memo: Raw | None = None
    search_attributes: dict[str, Any] | None = None


class FailTask(_Command, frozen=True, kw_only=True, tag="fail-task"):
    """Stands alone: this worker cannot do its task, another is to try."""

    reason: str


class UnknownType(_Command, frozen=True, kw_only=True, tag="unknown-type"):
    """Stands alone: this worker does not have the workflow type."""

    reason: str = ""


End: TypeAlias = Complete | Fail | Cancel | ContinueAsNew
"""They end the run, and come last."""

Named: TypeAlias = ScheduleActivity | StartTimer | StartChild | CancelExternal | SignalExternal | RecordMarker | Upsert
"""They have an id of their own, and leave an event with it."""

Command: TypeAlias = (
    Named | CancelActivity | CancelTimer | AcceptUpdate | RejectUpdate | CompleteUpdate | End | FailTask | UnknownType
)


def describe(command: Command) -> str:
    """A command in words, for a message."""
    match command:
        case ScheduleActivity():
            return f"activity {command.type!r}"
        case StartTimer():
            return f"timer of {command.fire_after_ms / 1000:g} s"
        case StartChild():
            return f"child workflow {command.type!r}"
        case CancelExternal():
            return f"cancel of workflow {command.workflow_id!r}"
        case SignalExternal():
            return f"signal to workflow {command.workflow_id!r}"
        case RecordMarker():
            return f"marker {command.name!r}"
        case Upsert():
            return "change of memo or search attributes"
        case Complete():
            return "the workflow completes"
        case Fail():
            return "the workflow fails"
        case Cancel():
            return "the workflow ends as canceled"
        case ContinueAsNew():
            return "the workflow continues as new"
        case _:
            return type(command).__name__
