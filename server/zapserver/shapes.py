"""How executions, events, schedules and namespaces look in answers over ZAP.

Where Go's SDK and Go's server disagree about a shape, the answer carries both.
"""

from __future__ import annotations

from typing import Any

import msgspec

from zapserver.engine.commands import UpdateStage
from zapserver.engine.effects import Closed, UpdateAnswered
from zapserver.engine.executions import rfc3339
from zapserver.engine.explaining import Waiting
from zapserver.engine.records import Event, Execution, Schedule
from zapserver.engine.retry import RetryPolicy
from zapserver.namespaces import ACTIONS_PER_SECOND_DEFAULT, Namespace
from zapwire.failure import Failure, decode_failure, encode_failure

NAMESPACE_REGISTERED = 1
LISTED_FAILURE_BYTES_MAX = 4_096


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
    shape: dict[str, Any] = {"update_id": effect.update_id, "stage": effect.stage.value}
    if effect.failure is not None:
        shape["failure"] = effect.failure
    elif effect.stage is UpdateStage.COMPLETED:
        shape["result"] = effect.result
    return shape


def waiting(item: Waiting) -> dict[str, Any]:
    shape: dict[str, Any] = {"what": item.what, "reason": item.reason, "since": rfc3339(item.since_ms)}
    if item.until_ms is not None:
        shape["until"] = rfc3339(item.until_ms)
    for name in ("activity_id", "identity", "attempt"):
        value = getattr(item, name)
        if value:
            shape[name] = value
    return shape


def schedule(item: Schedule) -> dict[str, Any]:
    """The flat shape of Go's server: {id, spec, action, paused}."""
    spec, action = item.spec, item.action
    spec_shape: dict[str, Any] = {"cron": list(spec.cron) or None}
    for name, value in (
        ("interval_ms", spec.interval_ms),
        ("start_time_ms", spec.start_ms),
        ("end_time_ms", spec.end_ms),
        ("jitter_ms", spec.jitter_ms),
        ("timezone", spec.timezone),
    ):
        if value:
            spec_shape[name] = value
    action_shape: dict[str, Any] = {"workflow_type": action.type, "task_queue": action.task_queue}
    if action.workflow_id:
        action_shape["workflow_id"] = action.workflow_id
    if action.input is not None:
        action_shape["input"] = action.input
    if action.is_task:
        action_shape["is_task"] = True
    if action.retry_policy is not None:
        action_shape["retry_policy"] = retry_policy(action.retry_policy)
    return {
        "id": item.schedule_id,
        "spec": spec_shape,
        "action": action_shape,
        "paused": item.paused,
        "overlap_policy": item.overlap.value,
    }


def described_schedule(item: Schedule, next_slots: list[int]) -> dict[str, Any]:
    """The flat shape and the SDK's {schedule, info} in one."""
    flat = schedule(item)
    running = [run for run in item.running if run.status.is_open]
    details: dict[str, Any] = {
        "action_count": item.action_count,
        "missed_catchup_count": item.missed,
        "overlap_skipped": item.skipped_overlap,
        "buffer_dropped": 0,
        "buffer_size": item.buffered,
        "running_workflows": [{"workflow_id": run.workflow_id, "run_id": run.run_id} for run in running],
        "create_time": rfc3339(item.created_ms),
        "next_action_times": [rfc3339(slot) for slot in next_slots],
    }
    if item.note:
        details["note"] = item.note
    return {**flat, "schedule": flat, "info": details}


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
    created = rfc3339(item.created_ms)
    return {
        "namespaceInfo": {
            "name": item.name,
            "state": "NAMESPACE_STATE_REGISTERED",
            "description": item.description,
            "ownerEmail": item.owner_email,
            "createTime": created,
        },
        "info": {
            "name": item.name,
            "state": NAMESPACE_REGISTERED,
            "description": item.description,
            "owner_email": item.owner_email,
            "id": item.name,
        },
        "config": {
            "workflowExecutionRetentionTtl": f"{item.retention_ms // 3_600_000}h",
            "apsLimit": ACTIONS_PER_SECOND_DEFAULT,
            "retention_ms": item.retention_ms,
        },
        "isActive": True,
    }


def described_namespace(item: Namespace) -> dict[str, Any]:
    shape = namespace(item)
    return {**shape, "namespace": {"info": shape["info"], "config": shape["config"]}}
