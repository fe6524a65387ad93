"""The bodies of pushes: what workers get, in the fields that Go's workers read and ours beside them."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from zapserver import shapes
from zapserver.engine.commands import Payload
from zapserver.engine.effects import (
    DeliverActivityCancel,
    DeliverActivityResult,
    DeliverActivityTask,
    DeliverCancelRequest,
    DeliverQuery,
    DeliverWorkflowTask,
    Delivery,
)
from zapwire.opcodes import Op

_encode = msgspec.json.Encoder().encode


def delivery_body(effect: Delivery, namespace: str) -> tuple[int, bytes]:
    """The opcode and the JSON body of a delivery. Absent keys mean zero or nothing, as Go reads them."""
    match effect:
        case DeliverActivityTask():
            return Op.DELIVER_ACTIVITY_TASK, _encode(_activity_task(effect, namespace))
        case DeliverWorkflowTask():
            body: dict[str, Any] = {
                "task_token": f"{effect.task_token}|{namespace}",
                "workflow_id": effect.workflow_id,
                "run_id": effect.run_id,
                "workflow_type_name": effect.workflow_type,
                "attempt": effect.attempt,
            }
            if effect.headers:
                body["headers"] = effect.headers
            if effect.replays:
                body.update(_replayed_task(effect))
            elif effect.input is not None:
                body["input"] = _text(effect.input)
            return Op.DELIVER_WORKFLOW_TASK, _encode(body)
        case DeliverActivityResult():
            body = {"activity_id": effect.activity_id}
            if effect.failure is not None:
                body["failure"] = _text(effect.failure)
            else:
                body["result"] = "null" if effect.result is None else _text(effect.result)
            return Op.DELIVER_ACTIVITY_RESULT, _encode(body)
        case DeliverCancelRequest():
            body = {"namespace": namespace, "workflow_id": effect.workflow_id, "run_id": effect.run_id}
            if effect.reason:
                body["reason"] = effect.reason
            if effect.identity:
                body["identity"] = effect.identity
            return Op.DELIVER_CANCEL_REQUEST, _encode(body)
        case DeliverActivityCancel():
            body = {"task_token": f"{effect.task_token}|{namespace}", "reason": effect.reason}
            return Op.DELIVER_ACTIVITY_CANCEL, _encode(body)
        case DeliverQuery():
            body = {
                "token": effect.token,
                "namespace": namespace,
                "workflow_id": effect.workflow_id,
                "run_id": effect.run_id,
                "query_type": effect.query_type,
            }
            if effect.args is not None:
                body["args"] = base64.b64encode(effect.args).decode()
            return Op.DELIVER_QUERY, _encode(body)


def _replayed_task(effect: DeliverWorkflowTask) -> dict[str, Any]:
    """What a replaying worker reads instead of the input, which is in the first event."""
    body: dict[str, Any] = {
        "history": [shapes.event(event) for event in effect.history],
        "previous_event_id": effect.previous_event_id,
        "last_event_id": effect.last_event_id,
        "task_timeout_ms": effect.task_timeout_ms,
    }
    if effect.next_event_id:
        body["next_event_id"] = effect.next_event_id
    if effect.updates:
        body["updates"] = [
            {"update_id": update.update_id, "name": update.name, "args": update.args} for update in effect.updates
        ]
    return body


def _activity_task(effect: DeliverActivityTask, namespace: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "task_token": f"{effect.task_token}|{namespace}",
        "workflow_id": effect.workflow_id,
        "run_id": effect.run_id,
        "activity_id": effect.activity_id,
        "activity_type_name": effect.activity_type,
        "scheduled_time_ms": effect.scheduled_ms,
        "attempt": effect.attempt,
    }
    if effect.input is not None:
        body["input"] = _text(effect.input)
    if effect.start_to_close_ms:
        body["start_to_close_timeout_ms"] = effect.start_to_close_ms
    if effect.heartbeat_ms:
        body["heartbeat_timeout_ms"] = effect.heartbeat_ms
    if effect.maximum_attempts:
        body["maximum_attempts"] = effect.maximum_attempts
    if effect.is_task:
        body["kind"] = "task"
    if effect.heartbeat_details is not None:
        body["heartbeat_details"] = effect.heartbeat_details
    if effect.headers:
        body["headers"] = effect.headers
    return body


def _text(payload: Payload | bytes) -> str:
    """Payloads travel to workers as JSON text inside a JSON string: that is Go's shape."""
    return bytes(payload).decode()
