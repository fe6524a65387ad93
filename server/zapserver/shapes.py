"""How executions, events, schedules and namespaces look in answers over ZAP.

Where Go's SDK and Go's server disagree about a shape, the answer carries both.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import msgspec

from zapserver.engine.commands import Action, ScheduleSpec, UpdateStage
from zapserver.engine.effects import Closed, UpdateAnswered
from zapserver.engine.executions import rfc3339
from zapserver.engine.explaining import Waiting
from zapserver.engine.records import Event, Execution, RecentAction, Schedule
from zapserver.engine.retry import RetryPolicy
from zapserver.namespaces import ACTIONS_PER_SECOND_DEFAULT, Namespace
from zapwire.failure import Failure, decode_failure, encode_failure

NAMESPACE_REGISTERED = 1
LISTED_FAILURE_BYTES_MAX = 4_096
RUNNING_SHOWN_MAX = 1_000
"""A schedule that allows overlaps may have more open runs than fit an answer; `running_count` says how many."""


def info(execution: Execution) -> dict[str, Any]:
    """What Go's peers read of an execution, and ours beside it."""
    shape: dict[str, Any] = {
        "workflow_id": execution.workflow_id,
        "run_id": execution.run_id,
        "workflow_type": execution.type,
        "status": execution.status.wire,
        "status_name": execution.status.name,
        "history_length": execution.history_length,
        "task_queue": execution.task_queue,
        "start_time": rfc3339(execution.start_ms),
        "kind": "task" if execution.is_task else "workflow",
    }
    if execution.close_ms is not None:
        shape["close_time"] = rfc3339(execution.close_ms)
    if execution.attempt > 1:
        shape["attempt"] = execution.attempt
    if execution.memo is not None:
        shape["memo"] = execution.memo
    if execution.search_attributes:
        shape["search_attributes"] = execution.search_attributes
    if execution.schedule_id:
        shape["schedule_id"] = execution.schedule_id
    if execution.is_dead_letter:
        shape["dead_letter"] = True
    return shape


def full_info(execution: Execution) -> dict[str, Any]:
    """With the payloads: input, result and failure."""
    shape = info(execution)
    if execution.headers:
        shape["headers"] = execution.headers
    if execution.build_id:
        shape["build_id"] = execution.build_id
    for name in ("input", "result", "failure"):
        value = getattr(execution, name)
        if value is not None:
            shape[name] = value
    if execution.cancel_reason:
        shape["cancel_reason"] = execution.cancel_reason
    if execution.close_reason:
        shape["close_reason"] = execution.close_reason
    return shape


def dead_letter(execution: Execution) -> dict[str, Any]:
    """With its failure, shortened: a list of a thousand must fit one answer. `full_info` has all of it."""
    shape = info(execution)
    if execution.failure is not None:
        shape["failure"] = execution.failure
        if len(execution.failure) > LISTED_FAILURE_BYTES_MAX:
            read = decode_failure(execution.failure)
            short = Failure(message=read.message[:500], code=read.code[:100], non_retryable=read.non_retryable)
            shape["failure"] = msgspec.Raw(encode_failure(short))
    return shape


def visible_fields(execution: Execution) -> dict[str, object]:
    """What a list query can ask about."""
    fields: dict[str, object] = {
        **(execution.search_attributes or {}),
        "WorkflowId": execution.workflow_id,
        "WorkflowType": execution.type,
        "RunId": execution.run_id,
        "TaskQueue": execution.task_queue,
        "ExecutionStatus": execution.status.long_name,
        "StartTime": rfc3339(execution.start_ms),
        "Kind": "task" if execution.is_task else "workflow",
    }
    if execution.close_ms is not None:
        fields["CloseTime"] = rfc3339(execution.close_ms)
    return fields


def event(item: Event) -> dict[str, Any]:
    return {
        "eventId": item.event_id,
        "eventTime": rfc3339(item.time_ms),
        "eventType": item.type.value,
        "attributes": item.attributes,
    }


def closed(effect: Closed) -> dict[str, Any]:
    """The answer to a call that waited for an execution to close."""
    shape: dict[str, Any] = {
        "workflow_id": effect.workflow_id,
        "run_id": effect.run_id,
        "status": effect.status.wire,
        "status_name": effect.status.name,
    }
    for name in ("result", "failure", "reason", "new_run_id"):
        value = getattr(effect, name)
        if value:
            shape[name] = value
    return shape


def updated(effect: UpdateAnswered) -> dict[str, Any]:
    """The answer to a call that asked for an update."""
    shape: dict[str, Any] = {
        "workflow_id": effect.workflow_id,
        "run_id": effect.run_id,
        "update_id": effect.update_id,
        "stage": effect.stage.value,
    }
    if effect.failure is not None:
        shape["failure"] = effect.failure
    elif effect.stage is UpdateStage.COMPLETED:
        shape["result"] = effect.result
    return shape


def waiting(item: Waiting) -> dict[str, Any]:
    shape: dict[str, Any] = {"what": item.what, "reason": item.reason, "since": rfc3339(item.since_ms)}
    if item.until_ms is not None:
        shape["until"] = rfc3339(item.until_ms)
    for name in ("activity_id", "identity", "build_id", "attempt"):
        value = getattr(item, name)
        if value:
            shape[name] = value
    return shape


def schedule(item: Schedule) -> dict[str, Any]:
    """The flat shape of Go's server: {id, spec, action, paused}."""
    shape: dict[str, Any] = {
        "id": item.schedule_id,
        "spec": _spec(item.spec),
        "action": _action(item.action),
        "paused": item.paused,
        "overlap_policy": item.overlap.value,
    }
    for name, value in (
        ("catchup_window_ms", item.catchup_window_ms),
        ("pause_on_failure", item.pause_on_failure),
        ("remaining_actions", item.remaining_actions),
    ):
        if value or (value == 0 and value is not False):
            shape[name] = value
    return shape


def _spec(spec: ScheduleSpec) -> dict[str, Any]:
    shape: dict[str, Any] = {"cron": list(spec.cron) or None}
    for name, value in (
        ("interval_ms", spec.interval_ms),
        ("intervals", [_interval(*interval) for interval in spec.intervals]),
        ("start_time_ms", spec.start_ms),
        ("end_time_ms", spec.end_ms),
        ("jitter_ms", spec.jitter_ms),
        ("timezone", spec.timezone),
    ):
        if value:
            shape[name] = value
    if spec.phase_ms is not None:
        shape["phase_ms"] = spec.phase_ms
    return shape


def _interval(interval_ms: int, phase_ms: int | None) -> dict[str, int]:
    return {"interval_ms": interval_ms} if phase_ms is None else {"interval_ms": interval_ms, "phase_ms": phase_ms}


def _action(action: Action) -> dict[str, Any]:
    shape: dict[str, Any] = {"workflow_type": action.type, "task_queue": action.task_queue}
    if action.is_task:
        shape["is_task"] = True
    for name in ("workflow_id", "input", "memo", "search_attributes", "headers"):
        value = getattr(action, name)
        if value:
            shape[name] = value
    if action.retry_policy is not None:
        shape["retry_policy"] = retry_policy(action.retry_policy)
    spans = {
        "workflow_execution_ms": action.timeouts.execution_ms,
        "workflow_run_ms": action.timeouts.run_ms,
    }
    if any(spans.values()):
        shape["timeouts"] = {name: ms for name, ms in spans.items() if ms}
    if action.task_timeouts is not None:
        shape.update((name, ms) for name, ms in msgspec.structs.asdict(action.task_timeouts).items() if ms)
    return shape


def described_schedule(item: Schedule, next_slots: list[int]) -> dict[str, Any]:
    """The flat shape and the SDK's {schedule, info} in one."""
    flat = schedule(item)
    details: dict[str, Any] = {
        "state": item.state,
        "action_count": item.action_count,
        "missed_catchup_count": item.missed,
        "overlap_skipped": item.skipped_overlap,
        "buffer_dropped": item.buffer_dropped,
        "buffer_size": len(item.buffered),
        "running_workflows": [
            {"workflow_id": workflow_id, "run_id": run_id}
            for run_id, workflow_id in islice(item.open_runs.items(), RUNNING_SHOWN_MAX)
        ],
        "running_count": len(item.open_runs),
        "recent_actions": [_recent_action(action) for action in item.recent_actions],
        "backfill_slots": sum(len(backfill.slots) for backfill in item.backfills),
        "create_time": rfc3339(item.created_ms),
        "update_time": rfc3339(item.updated_ms),
        "next_action_times": [rfc3339(slot) for slot in next_slots],
    }
    if item.remaining_actions is not None:
        details["remaining_actions"] = item.remaining_actions
    if item.note:
        details["note"] = item.note
    return {**flat, "schedule": flat, "info": details}


def _recent_action(action: RecentAction) -> dict[str, Any]:
    return {
        "schedule_time": rfc3339(action.slot_ms),
        "start_time": rfc3339(action.started_ms),
        "workflow_id": action.workflow_id,
        "run_id": action.run_id,
    }


def retry_policy(policy: RetryPolicy) -> dict[str, Any]:
    return {
        "initial_interval_ms": policy.initial_interval_ms,
        "backoff_coefficient": policy.backoff_coefficient,
        "maximum_interval_ms": policy.maximum_interval_ms,
        "maximum_attempts": policy.maximum_attempts,
        "non_retryable_error_types": list(policy.non_retryable_error_types),
    }


def namespace(item: Namespace) -> dict[str, Any]:
    """The shape of Go's server (namespaceInfo) and of its SDK (info), with one config for both."""
    created = rfc3339(item.about.created_ms)
    return {
        "namespaceInfo": {
            "name": item.name,
            "state": "NAMESPACE_STATE_REGISTERED",
            "description": item.about.description,
            "ownerEmail": item.about.owner_email,
            "createTime": created,
        },
        "info": {
            "name": item.name,
            "state": NAMESPACE_REGISTERED,
            "description": item.about.description,
            "owner_email": item.about.owner_email,
            "id": item.name,
        },
        "config": {
            "workflowExecutionRetentionTtl": f"{item.about.retention_ms // 3_600_000}h",
            "apsLimit": ACTIONS_PER_SECOND_DEFAULT,
            "retention_ms": item.about.retention_ms,
        },
        "isActive": True,
    }


def described_namespace(item: Namespace) -> dict[str, Any]:
    shape = namespace(item)
    return {**shape, "namespace": {"info": shape["info"], "config": shape["config"]}}
