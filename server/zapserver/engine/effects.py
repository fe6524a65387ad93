"""What the engine wants done outside: messages to workers, and answers to calls that wait.

A shell performs them in order, after what they depend on is as safe as the store makes it.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from zapserver.engine.commands import Headers, Payload, PeerKey, Status, UpdateStage, Waiter
from zapserver.engine.errors import EngineError
from zapserver.engine.records import Event


class _Effect(msgspec.Struct, frozen=True, kw_only=True):
    pass


class UpdateRequest(msgspec.Struct, frozen=True):
    """An update that a worker is to accept or reject with its answer."""

    update_id: str
    name: str
    args: Payload | None


class DeliverWorkflowTask(_Effect, frozen=True):
    """To a worker of the Go kind, which reads the input; or, `replays`, to one that reads the history.

    A replaying worker gets the events past `previous_event_id`: zero for one that does not have the run. Where they are
    too many for one delivery it reads those from `next_event_id` up to `last_event_id` itself.
    """

    peer: PeerKey
    task_token: str
    workflow_id: str
    run_id: str
    workflow_type: str
    input: Payload | None
    attempt: int
    headers: Headers | None = None
    """To a worker of the Go kind; a replaying one reads them in the history."""
    replays: bool = False
    history: tuple[Event, ...] = ()
    previous_event_id: int = 0
    last_event_id: int = 0
    next_event_id: int = 0
    """Zero: the history is all here."""
    task_timeout_ms: int = 0
    """How long a replaying worker has for it."""
    updates: tuple[UpdateRequest, ...] = ()


class DeliverActivityTask(_Effect, frozen=True):
    peer: PeerKey
    task_token: str
    workflow_id: str
    run_id: str
    activity_id: str
    activity_type: str
    input: Payload | None
    scheduled_ms: int
    start_to_close_ms: int
    heartbeat_ms: int
    attempt: int
    maximum_attempts: int
    is_task: bool
    heartbeat_details: Payload | None
    headers: Headers | None


class DeliverActivityResult(_Effect, frozen=True):
    """To the worker that runs the workflow: one of `result` and `failure` is given."""

    peer: PeerKey
    activity_id: str
    result: Payload | None = None
    failure: bytes | None = None


class DeliverCancelRequest(_Effect, frozen=True):
    """To the worker that runs the workflow."""

    peer: PeerKey
    workflow_id: str
    run_id: str
    reason: str
    identity: str


class DeliverActivityCancel(_Effect, frozen=True):
    """To the worker that runs the activity: stop, the answer is no longer wanted."""

    peer: PeerKey
    task_token: str
    reason: str


class DeliverQuery(_Effect, frozen=True):
    peer: PeerKey
    token: str
    workflow_id: str
    run_id: str
    query_type: str
    args: Payload | None


class PeerFull(_Effect, frozen=True):
    """Deliver nothing more to this peer until `ResumePeer` says that it has taken what it got."""

    peer: PeerKey


class Closed(_Effect, frozen=True):
    """For a call that waited until an execution closed."""

    waiter: Waiter
    workflow_id: str
    run_id: str
    status: Status
    result: Payload | None
    failure: Payload | None
    reason: str
    """Why it was canceled or terminated."""
    new_run_id: str = ""
    """The run that follows it in a chain of retries, cron runs and continue-as-new."""


class HistoryGrew(_Effect, frozen=True):
    """For a call that waited for an event past `after`: there is one."""

    waiter: Waiter
    workflow_id: str
    run_id: str
    after: int


class UpdateAnswered(_Effect, frozen=True):
    """For a call that asked for an update: how far it is, and with `completed` its outcome."""

    waiter: Waiter
    workflow_id: str
    run_id: str
    update_id: str
    stage: UpdateStage
    result: Payload | None = None
    failure: Payload | None = None


class UpdateRejected(_Effect, frozen=True):
    """For a call whose update the workflow does not want; nothing of it is recorded."""

    waiter: Waiter
    update_id: str
    failure: Payload


class Answered(_Effect, frozen=True):
    """For a query that waited for a worker: a result or an error."""

    waiter: Waiter
    result: Payload | None = None
    error: EngineError | None = None


Delivery: TypeAlias = (
    DeliverWorkflowTask
    | DeliverActivityTask
    | DeliverActivityResult
    | DeliverCancelRequest
    | DeliverActivityCancel
    | DeliverQuery
)
Effect: TypeAlias = Delivery | PeerFull | Closed | Answered | HistoryGrew | UpdateAnswered | UpdateRejected
