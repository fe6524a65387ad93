"""The JSON with which a worker answers a workflow task: Go's commands, and ours beside them.

    {"v":1,"cmds":[{"kind":0,"result":"<base64>"}]}
    {"v":1,"cmds":[{"kind":"start-timer","id":"0.1","fire_after_ms":1000},{"kind":"complete","result":{"n":1}}]}

Go's kinds are numbers and their payloads base64; ours are names and their payloads plain JSON. Ours are for workers
that subscribed with `replays`.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, TypeAlias

import msgspec

from zapserver.engine import commands as c
from zapserver.engine.commands import Payload, WorkflowCommand, WorkflowCommandKind
from zapserver.engine.errors import Invalid
from zapserver.engine.limits import SMALL_PAYLOAD_BYTES_MAX
from zapserver.requests import (
    ABSENT,
    RetryPolicyBody,
    WorkflowTimeoutsBody,
    activity_timeouts,
    choice,
    failure_payload,
    json_payload,
    payload,
    workflow_timeouts,
)
from zapwire.body import decode_json
from zapwire.frame import Buffer

COMMANDS_MAX = 10_000


class _GoCommand(msgspec.Struct):
    kind: int
    result: str | None = None
    failure: str | None = None

    def command(self) -> WorkflowCommand:
        try:
            kind = WorkflowCommandKind(self.kind)
        except ValueError:
            raise Invalid(f"command kind {self.kind} is not one of 0 to 3") from None
        if kind is WorkflowCommandKind.COMPLETE:
            return WorkflowCommand(kind=kind, payload=json_payload(_base64(self.result, "result"), "result"))
        failure = _base64(self.failure, "failure")
        return WorkflowCommand(kind=kind, payload=Payload(failure) if failure else None)


class _Complete(msgspec.Struct, tag_field="kind", tag="complete"):
    result: msgspec.Raw = ABSENT

    def command(self) -> c.CompleteCommand:
        return c.CompleteCommand(result=payload(self.result, "result"))


class _Fail(msgspec.Struct, tag_field="kind", tag="fail"):
    failure: msgspec.Raw = ABSENT

    def command(self) -> c.FailCommand:
        return c.FailCommand(failure=failure_payload(self.failure))


class _Cancel(msgspec.Struct, tag_field="kind", tag="cancel"):
    failure: msgspec.Raw = ABSENT

    def command(self) -> c.CancelCommand:
        return c.CancelCommand(failure=failure_payload(self.failure))


class _ScheduleActivity(msgspec.Struct, tag_field="kind", tag="schedule-activity"):
    id: str
    type: str
    task_queue: str = ""
    input: msgspec.Raw = ABSENT
    start_to_close_ms: int = 0
    heartbeat_ms: int = 0
    schedule_to_close_ms: int = 0
    schedule_to_start_ms: int = 0
    retry_policy: RetryPolicyBody | None = None

    def command(self) -> c.ScheduleActivityCommand:
        return c.ScheduleActivityCommand(
            id=self.id,
            type=self.type,
            task_queue=self.task_queue,
            input=payload(self.input, "input"),
            timeouts=activity_timeouts(self),
            retry_policy=None if self.retry_policy is None else self.retry_policy.policy(),
        )


class _CancelActivity(msgspec.Struct, tag_field="kind", tag="cancel-activity"):
    id: str

    def command(self) -> c.CancelActivityCommand:
        return c.CancelActivityCommand(id=self.id)


class _StartTimer(msgspec.Struct, tag_field="kind", tag="start-timer"):
    id: str
    fire_after_ms: int

    def command(self) -> c.StartTimerCommand:
        return c.StartTimerCommand(id=self.id, fire_after_ms=self.fire_after_ms)


class _CancelTimer(msgspec.Struct, tag_field="kind", tag="cancel-timer"):
    id: str

    def command(self) -> c.CancelTimerCommand:
        return c.CancelTimerCommand(id=self.id)


class _StartChild(msgspec.Struct, tag_field="kind", tag="start-child"):
    id: str
    type: str
    workflow_id: str = ""
    task_queue: str = ""
    input: msgspec.Raw = ABSENT
    timeouts: WorkflowTimeoutsBody | None = None
    retry_policy: RetryPolicyBody | None = None
    parent_close_policy: str = ""
    memo: msgspec.Raw = ABSENT
    search_attributes: dict[str, Any] | None = None
    cron_schedule: str = ""

    def command(self) -> c.StartChildCommand:
        return c.StartChildCommand(
            id=self.id,
            type=self.type,
            workflow_id=self.workflow_id,
            task_queue=self.task_queue,
            input=payload(self.input, "input"),
            timeouts=workflow_timeouts(self.timeouts),
            retry_policy=None if self.retry_policy is None else self.retry_policy.policy(),
            parent_close_policy=choice(
                "parent_close_policy", self.parent_close_policy, c.ParentClosePolicy, c.ParentClosePolicy.TERMINATE
            ),
            memo=payload(self.memo, "memo", SMALL_PAYLOAD_BYTES_MAX),
            search_attributes=self.search_attributes,
            cron_schedule=self.cron_schedule,
        )


class _CancelExternal(msgspec.Struct, tag_field="kind", tag="cancel-external"):
    id: str
    workflow_id: str
    run_id: str = ""
    reason: str = ""

    def command(self) -> c.CancelExternalCommand:
        return c.CancelExternalCommand(id=self.id, workflow_id=self.workflow_id, run_id=self.run_id, reason=self.reason)


class _SignalExternal(msgspec.Struct, tag_field="kind", tag="signal-external"):
    id: str
    workflow_id: str
    signal_name: str
    run_id: str = ""
    input: msgspec.Raw = ABSENT

    def command(self) -> c.SignalExternalCommand:
        return c.SignalExternalCommand(
            id=self.id,
            workflow_id=self.workflow_id,
            name=self.signal_name,
            run_id=self.run_id,
            input=payload(self.input, "input"),
        )


class _RecordMarker(msgspec.Struct, tag_field="kind", tag="record-marker"):
    id: str
    name: str
    details: msgspec.Raw = ABSENT

    def command(self) -> c.RecordMarkerCommand:
        return c.RecordMarkerCommand(id=self.id, name=self.name, details=payload(self.details, "details"))


class _Upsert(msgspec.Struct, tag_field="kind", tag="upsert"):
    id: str
    memo: msgspec.Raw = ABSENT
    search_attributes: dict[str, Any] | None = None

    def command(self) -> c.UpsertCommand:
        memo = payload(self.memo, "memo", SMALL_PAYLOAD_BYTES_MAX)
        return c.UpsertCommand(id=self.id, memo=memo, search_attributes=self.search_attributes)


class _AcceptUpdate(msgspec.Struct, tag_field="kind", tag="accept-update"):
    update_id: str

    def command(self) -> c.AcceptUpdateCommand:
        return c.AcceptUpdateCommand(update_id=self.update_id)


class _RejectUpdate(msgspec.Struct, tag_field="kind", tag="reject-update"):
    update_id: str
    failure: msgspec.Raw = ABSENT

    def command(self) -> c.RejectUpdateCommand:
        failure = failure_payload(self.failure)
        return c.RejectUpdateCommand(update_id=self.update_id, failure=b"" if failure is None else bytes(failure))


class _CompleteUpdate(msgspec.Struct, tag_field="kind", tag="complete-update"):
    update_id: str
    result: msgspec.Raw = ABSENT
    failure: msgspec.Raw = ABSENT

    def command(self) -> c.CompleteUpdateCommand:
        failure = failure_payload(self.failure)
        return c.CompleteUpdateCommand(
            update_id=self.update_id,
            result=payload(self.result, "result"),
            failure=None if failure is None else bytes(failure),
        )


class _ContinueAsNew(msgspec.Struct, tag_field="kind", tag="continue-as-new"):
    type: str = ""
    task_queue: str = ""
    input: msgspec.Raw = ABSENT
    timeouts: WorkflowTimeoutsBody | None = None
    memo: msgspec.Raw = ABSENT
    search_attributes: dict[str, Any] | None = None

    def command(self) -> c.ContinueAsNewCommand:
        return c.ContinueAsNewCommand(
            type=self.type,
            task_queue=self.task_queue,
            input=payload(self.input, "input"),
            timeouts=None if self.timeouts is None else workflow_timeouts(self.timeouts),
            memo=payload(self.memo, "memo", SMALL_PAYLOAD_BYTES_MAX),
            search_attributes=self.search_attributes,
        )


class _FailTask(msgspec.Struct, tag_field="kind", tag="fail-task"):
    reason: str = ""


class _UnknownType(msgspec.Struct, tag_field="kind", tag="unknown-type"):
    reason: str = ""


_Ours: TypeAlias = (
    _Complete
    | _Fail
    | _Cancel
    | _ScheduleActivity
    | _CancelActivity
    | _StartTimer
    | _CancelTimer
    | _StartChild
    | _CancelExternal
    | _SignalExternal
    | _RecordMarker
    | _Upsert
    | _AcceptUpdate
    | _RejectUpdate
    | _CompleteUpdate
    | _ContinueAsNew
    | _FailTask
    | _UnknownType
)


class _Kind(msgspec.Struct):
    kind: int | str


class _Body(msgspec.Struct):
    cmds: list[msgspec.Raw] | None = None


_read_kind = msgspec.json.Decoder(_Kind).decode
_read_go_command = msgspec.json.Decoder(_GoCommand).decode
_read_ours: msgspec.json.Decoder[_Ours] = msgspec.json.Decoder(_Ours)


def read_answer(token: str, data: Buffer) -> c.CompleteWorkflowTask | c.FailWorkflowTask:
    """The engine's command for the answer to a workflow task. Raises `BadBody`, `Invalid`, `TooLarge`."""
    items = (decode_json(data, _Body).cmds or []) if data else []
    if len(items) > COMMANDS_MAX:
        raise Invalid(f"{len(items)} commands in one answer; at most {COMMANDS_MAX} are allowed")
    commands: list[c.TaskCommand] = []
    for position, item in enumerate(items):
        try:
            body = _read_ours.decode(item) if isinstance(_read_kind(item).kind, str) else _read_go_command(item)
        except msgspec.MsgspecError as error:
            raise Invalid(f"command {position + 1} of {len(items)} cannot be read: {error}") from None
        if isinstance(body, _FailTask | _UnknownType):
            return c.FailWorkflowTask(token=token, reason=body.reason, unknown_type=isinstance(body, _UnknownType))
        commands.append(body.command())
    return c.CompleteWorkflowTask(token=token, commands=tuple(commands))


def _base64(text: str | None, what: str) -> bytes:
    try:
        return base64.b64decode(text or "", validate=True)
    except (binascii.Error, ValueError):
        raise Invalid(f"the {what} is not base64: {(text or '')[:60]!r}") from None
