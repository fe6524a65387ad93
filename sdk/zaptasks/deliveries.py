"""The bodies of what a server pushes to workers. Payloads come as JSON text inside a JSON string, as Go has it."""

from __future__ import annotations

import msgspec


class _Delivery(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    pass


class ActivityDelivery(_Delivery, frozen=True, kw_only=True, gc=False):
    """0xB1: run this. `kind` is "task" for one-shot tasks, whose input is the payload and no array of arguments."""

    task_token: str
    workflow_id: str
    run_id: str
    activity_id: str = ""
    activity_type_name: str
    input: str | None = None
    scheduled_time_ms: int = 0
    start_to_close_timeout_ms: int = 0
    heartbeat_timeout_ms: int = 0
    attempt: int = 1
    maximum_attempts: int = 0
    kind: str = ""
    heartbeat_details: msgspec.Raw = msgspec.Raw(b"")
    headers: dict[str, str] = {}


class WorkflowDelivery(_Delivery, frozen=True, kw_only=True, gc=False):
    """0xB0: run this workflow from its input."""

    task_token: str
    workflow_id: str
    run_id: str
    workflow_type_name: str
    input: str | None = None
    attempt: int = 1
    headers: dict[str, str] = {}


class ResultDelivery(_Delivery, frozen=True, kw_only=True, gc=False):
    """0xB2: an activity that a workflow here asked for is over; one of `result` and `failure` is there."""

    activity_id: str
    result: str | None = None
    failure: str | None = None


class WorkflowCancel(_Delivery, frozen=True, kw_only=True, gc=False):
    """0xB3: stop this run."""

    workflow_id: str = ""
    run_id: str = ""
    reason: str = ""


class QueryDelivery(_Delivery, frozen=True, kw_only=True, gc=False):
    """0xB4: answer this about a run; `args` is base64 of JSON."""

    token: str
    run_id: str = ""
    workflow_id: str = ""
    query_type: str = ""
    args: str = ""


class ActivityCancel(_Delivery, frozen=True, kw_only=True, gc=False):
    """0xB5: stop this attempt."""

    task_token: str
    reason: str = ""
