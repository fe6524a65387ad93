"""Calls of workers: subscribe, schedule an activity, answer a task, heartbeat, answer a query."""

from __future__ import annotations

import contextlib

from zapserver.calls.context import BinaryCall, Call, CallOpener, Handler
from zapserver.engine.commands import (
    AnswerQuery,
    CompleteActivity,
    FailActivity,
    FailWorkflowTask,
    HandBackTask,
    HeartbeatActivity,
    QueueKind,
    ScheduleActivity,
    SetSlots,
    Subscribe,
    Unsubscribe,
)
from zapserver.engine.errors import EngineError, Invalid, LimitReached, NotFound
from zapserver.engine.limits import SMALL_PAYLOAD_BYTES_MAX
from zapserver.requests import (
    AnswerQueryRequest,
    ScheduleActivityRequest,
    SubscribeRequest,
    SubscriptionRequest,
    activity_timeouts,
    base64_or_json,
    json_payload,
)
from zapserver.task_commands import read_answer
from zapwire.envelope import decode_respond, encode_ack
from zapwire.errors import BadBody
from zapwire.frame import Buffer
from zapwire.opcodes import Op


def _subscribe(kind: QueueKind, call: Call, request: SubscribeRequest) -> object:
    subscribed = call.step(
        Subscribe(
            peer=call.peer,
            kind=kind,
            task_queue=request.queue,
            identity=request.identity or call.peer_name,
            slots=request.slots,
            types=None if request.types is None else frozenset(request.types),
            build_id=request.build_id,
            replays=request.replays,
            per_second=request.per_second,
            queue_per_second=request.queue_per_second,
        )
    )
    return {"subscription_id": subscribed.subscription_id}


def _subscribe_workflow_tasks(call: Call, request: SubscribeRequest) -> object:
    return _subscribe(QueueKind.WORKFLOW, call, request)


def _subscribe_activity_tasks(call: Call, request: SubscribeRequest) -> object:
    return _subscribe(QueueKind.ACTIVITY, call, request)


def _unsubscribe(call: Call, request: SubscriptionRequest) -> object:
    call.step(Unsubscribe(peer=call.peer, subscription_id=request.id))
    return {"ok": True}


def _set_slots(call: Call, request: SubscriptionRequest) -> object:
    call.step(SetSlots(peer=call.peer, subscription_id=request.id, slots=request.slots))
    return {"ok": True}


def _schedule_activity(call: Call, request: ScheduleActivityRequest) -> object:
    scheduled = call.step(
        ScheduleActivity(
            peer=call.peer,
            workflow_id=request.workflow,
            run_id=request.run,
            type=request.activity_type,
            task_queue=request.task_queue,
            input=base64_or_json(request.input, "input"),
            timeouts=activity_timeouts(request),
            retry_policy=None if request.retry_policy is None else request.retry_policy.policy(),
        )
    )
    return {"activity_task_id": scheduled.activity_id, "task_token": scoped_token(scheduled.task_token, call)}


def scoped_token(token: str, call: Call) -> str:
    """A task token as it goes out: it names its namespace, because the answer to it names nothing else."""
    return f"{token}|{call.namespace.name}" if token else ""


def _answer_query(call: Call, request: AnswerQueryRequest) -> object:
    if not request.token:
        raise Invalid("token required")
    result = base64_or_json(request.result, "result")
    call.step(AnswerQuery(peer=call.peer, token=request.token, result=result, error=request.error))
    return {"ok": True}


_ACKNOWLEDGED = encode_ack(200)

# --- respond frames --------------------------------------------------------------------------------


def _workflow_task_completed(open_call: CallOpener, message: bytes) -> bytes:
    call, token, data = _respond(open_call, message)
    try:
        call.step(read_answer(token, data))
    except (BadBody, Invalid, LimitReached) as error:
        # The same answer would be refused again: a replaying worker has failed its task. One of the Go kind keeps it.
        with contextlib.suppress(EngineError):
            call.step(FailWorkflowTask(token=token, reason=f"its answer was refused: {error}"))
        raise
    return _ACKNOWLEDGED


def _activity_task_completed(open_call: CallOpener, message: bytes) -> bytes:
    call, token, data = _respond(open_call, message)
    call.step(CompleteActivity(token=token, result=json_payload(data, "result")))
    return _ACKNOWLEDGED


def _activity_task_failed(open_call: CallOpener, message: bytes) -> bytes:
    call, token, data = _respond(open_call, message)
    call.step(FailActivity(token=token, failure=bytes(data)))
    return _ACKNOWLEDGED


def _heartbeat(open_call: CallOpener, message: bytes) -> bytes:
    call, token, data = _respond(open_call, message)
    beaten = call.step(HeartbeatActivity(token=token, details=json_payload(data, "details", SMALL_PAYLOAD_BYTES_MAX)))
    # Go's SDK reads the status byte as "cancel requested", so that "no" has to be status 0.
    return encode_ack(200 if beaten.cancel_requested else 0)


def _hand_back(open_call: CallOpener, message: bytes) -> bytes:
    call, token, data = _respond(open_call, message)
    call.step(HandBackTask(token=token, reason=bytes(data[:1024]).decode("utf-8", "replace")))
    return _ACKNOWLEDGED


def _respond(open_call: CallOpener, message: bytes) -> tuple[Call, str, Buffer]:
    """The call in the namespace that the token belongs to, the engine's own token, and what came with it."""
    scoped, data = decode_respond(message)
    try:
        text = bytes(scoped).decode("utf-8")
    except UnicodeDecodeError:
        raise BadBody("the task token is not UTF-8") from None
    token, _, namespace = text.rpartition("|")
    try:
        return open_call(namespace), token, data
    except (Invalid, NotFound):
        raise NotFound("task token not found") from None


CALLS: dict[int, Handler] = {
    Op.SCHEDULE_ACTIVITY: Handler(ScheduleActivityRequest, _schedule_activity),
    Op.SUBSCRIBE_WORKFLOW_TASKS: Handler(SubscribeRequest, _subscribe_workflow_tasks),
    Op.SUBSCRIBE_ACTIVITY_TASKS: Handler(SubscribeRequest, _subscribe_activity_tasks),
    Op.UNSUBSCRIBE_TASKS: Handler(SubscriptionRequest, _unsubscribe),
    Op.GRANT_CREDITS: Handler(SubscriptionRequest, _set_slots),
    Op.RESPOND_QUERY: Handler(AnswerQueryRequest, _answer_query),
}

BINARY_CALLS: dict[int, BinaryCall] = {
    Op.RESPOND_WORKFLOW_TASK_COMPLETED: _workflow_task_completed,
    Op.RESPOND_ACTIVITY_TASK_COMPLETED: _activity_task_completed,
    Op.RESPOND_ACTIVITY_TASK_FAILED: _activity_task_failed,
    Op.RECORD_ACTIVITY_TASK_HEARTBEAT: _heartbeat,
    Op.HAND_BACK_TASK: _hand_back,
}
