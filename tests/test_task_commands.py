"""The JSON of workflow commands: every kind arrives as the engine's command, and what cannot be read says why."""

from __future__ import annotations

import msgspec
import pytest
from tests.helpers.engine_driver import payload, value

from zapserver import task_commands
from zapserver.engine import commands as c
from zapserver.engine.commands import ActivityTimeouts, WorkflowCommandKind
from zapserver.engine.errors import Invalid, TooLarge
from zapserver.engine.limits import SMALL_PAYLOAD_BYTES_MAX
from zapserver.engine.retry import RetryPolicy
from zapwire.errors import BadBody
from zapwire.specification import specification


def read(*commands: object) -> c.CompleteWorkflowTask | c.FailWorkflowTask:
    return task_commands.read_answer("token", msgspec.json.encode({"v": 1, "cmds": list(commands)}))


def read_one(**fields: object) -> object:
    answer = read(fields)
    assert isinstance(answer, c.CompleteWorkflowTask)
    (command,) = answer.commands
    return command


def test_every_kind_is_on_the_wire_page() -> None:
    kinds = [info.__struct_config__.tag for info in task_commands._Ours.__args__]
    assert len(kinds) == 18
    for kind in kinds:
        assert f"| `{kind}` |" in specification()


@pytest.mark.parametrize(
    ("fields", "command"),
    [
        ({"kind": "cancel-activity", "id": "1"}, c.CancelActivityCommand(id="1")),
        ({"kind": "start-timer", "id": "1", "fire_after_ms": 5}, c.StartTimerCommand(id="1", fire_after_ms=5)),
        ({"kind": "cancel-timer", "id": "1"}, c.CancelTimerCommand(id="1")),
        (
            {"kind": "cancel-external", "id": "1", "workflow_id": "w", "run_id": "r", "reason": "x"},
            c.CancelExternalCommand(id="1", workflow_id="w", run_id="r", reason="x"),
        ),
        (
            {"kind": "signal-external", "id": "1", "workflow_id": "w", "signal_name": "go", "input": [1]},
            c.SignalExternalCommand(id="1", workflow_id="w", name="go", input=payload([1])),
        ),
        (
            {"kind": "record-marker", "id": "1", "name": "m", "details": None},
            c.RecordMarkerCommand(id="1", name="m", details=payload(None)),
        ),
        (
            {"kind": "upsert", "id": "1", "memo": {"a": 1}, "search_attributes": {"s": None}},
            c.UpsertCommand(id="1", memo=payload({"a": 1}), search_attributes={"s": None}),
        ),
        ({"kind": "accept-update", "update_id": "u"}, c.AcceptUpdateCommand(update_id="u")),
        (
            {"kind": "reject-update", "update_id": "u", "failure": {"v": 1}},
            c.RejectUpdateCommand(update_id="u", failure=b'{"v":1}'),
        ),
        (
            {"kind": "complete-update", "update_id": "u", "result": 0},
            c.CompleteUpdateCommand(update_id="u", result=payload(0)),
        ),
        ({"kind": "complete", "result": False}, c.CompleteCommand(result=payload(False))),
        ({"kind": "fail", "failure": {"v": 1}}, c.FailCommand(failure=payload({"v": 1}))),
        ({"kind": "cancel"}, c.CancelCommand()),
        (
            {"kind": "continue-as-new", "input": 1, "timeouts": {"workflow_task_ms": 10**9}},
            c.ContinueAsNewCommand(input=payload(1), timeouts=c.WorkflowTimeouts(task_ms=600_000)),
        ),
        (
            {"kind": 0, "result": "MQ=="},
            c.WorkflowCommand(kind=WorkflowCommandKind.COMPLETE, payload=payload(1)),
        ),
    ],
)
def test_a_command_arrives_as_it_was_sent(fields: dict[str, object], command: object) -> None:
    assert read_one(**fields) == command


def test_an_activity_with_everything() -> None:
    command = read_one(
        kind="schedule-activity",
        id="0.1",
        type="charge",
        task_queue="q",
        input={"n": 1},
        start_to_close_ms=1,
        heartbeat_ms=2,
        schedule_to_start_ms=3,
        schedule_to_close_ms=4,
        retry_policy={"maximum_attempts": 5},
    )
    assert isinstance(command, c.ScheduleActivityCommand)
    assert (command.id, command.type, command.task_queue, value(command.input)) == ("0.1", "charge", "q", {"n": 1})
    assert command.timeouts == ActivityTimeouts(
        start_to_close_ms=1, heartbeat_ms=2, schedule_to_start_ms=3, schedule_to_close_ms=4
    )
    assert command.retry_policy is not None
    assert command.retry_policy.maximum_attempts == RetryPolicy(maximum_attempts=5).maximum_attempts


def test_a_child_with_a_policy() -> None:
    command = read_one(kind="start-child", id="1", type="Kid", parent_close_policy="abandon", cron_schedule="@hourly")
    assert isinstance(command, c.StartChildCommand)
    assert (command.parent_close_policy, command.cron_schedule) == (c.ParentClosePolicy.ABANDON, "@hourly")


def test_a_task_that_failed_stands_alone() -> None:
    timer = {"kind": "start-timer", "id": "1", "fire_after_ms": 5}
    assert read(timer, {"kind": "fail-task", "reason": "x"}) == c.FailWorkflowTask(token="token", reason="x")
    unknown = c.FailWorkflowTask(token="token", reason="", unknown_type=True)
    assert read({"kind": "unknown-type"}) == unknown


def test_no_commands_is_an_answer() -> None:
    assert read() == task_commands.read_answer("token", b"") == c.CompleteWorkflowTask(token="token", commands=())


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "missing required field `kind`"),
        ({"kind": 4}, "not one of 0 to 3"),
        ({"kind": 0, "result": "?"}, "not base64"),
        ({"kind": "sleep"}, "sleep"),
        ({"kind": "start-timer", "id": "1"}, "fire_after_ms"),
        ({"kind": "start-timer", "id": "1", "fire_after_ms": "soon"}, "fire_after_ms"),
        ({"kind": "start-child", "id": "1", "type": "K", "parent_close_policy": "adopt"}, "terminate, cancel, abandon"),
        ({"kind": "schedule-activity", "id": "1", "type": "a", "heartbeat_ms": -1}, "heartbeat_ms is -1"),
    ],
)
def test_what_cannot_be_read_says_why(fields: dict[str, object], text: str) -> None:
    with pytest.raises(Invalid) as refusal:
        read(fields)
    assert text in str(refusal.value)


def test_bounds() -> None:
    with pytest.raises(Invalid, match="at most 10000"):
        read(*[{"kind": "cancel"}] * (task_commands.COMMANDS_MAX + 1))
    with pytest.raises(TooLarge):
        read({"kind": "upsert", "id": "1", "memo": "x" * SMALL_PAYLOAD_BYTES_MAX})
    with pytest.raises(BadBody):
        task_commands.read_answer("token", b"[")
