"""One-shot tasks: 0x50 and 0x51 of the Add/Now client, with our options in their spare slots; dead letters."""

from __future__ import annotations

import msgspec

from zapserver import requests, shapes
from zapserver.calls.context import BinaryCall, Call, CallOpener, Handler
from zapserver.engine.commands import Action, PutSchedule, RequeueDeadLetter, ScheduleSpec, Started, StartTask
from zapserver.engine.errors import Invalid
from zapserver.engine.limits import SMALL_PAYLOAD_BYTES_MAX
from zapserver.requests import DeadLetterRequest, TaskOptions, fallback_queue, json_payload, payload
from zaptasks.spec import Interval, parse_spec
from zapwire.body import decode_json
from zapwire.envelope import decode_task_schedule, decode_task_submit, encode_submit_reply
from zapwire.frame import Buffer
from zapwire.opcodes import Op


def start_task(call: Call, task_type: str, body: msgspec.Raw | None, options: TaskOptions) -> Started:
    """A one-shot task, however it was asked for."""
    reuse, conflict = requests.id_policies(options)
    return call.step(
        StartTask(
            type=task_type,
            input=body,
            task_queue=fallback_queue(options.task_queue),
            workflow_id=options.workflow_id,
            request_id=options.request_id,
            retry_policy=None if options.retry_policy is None else options.retry_policy.policy(),
            timeouts=options.timeouts(),
            memo=payload(options.memo, "memo", SMALL_PAYLOAD_BYTES_MAX),
            headers=options.headers,
            identity=options.identity or call.peer_name,
            id_reuse=reuse,
            id_conflict=conflict,
        )
    )


def put_schedule(call: Call, name: str, spec_text: str, options: TaskOptions) -> None:
    """A durable schedule of a one-shot task of the same name, from a duration or a cron expression."""
    try:
        spec = parse_spec(spec_text)
    except ValueError as error:
        raise Invalid(str(error)) from None
    if isinstance(spec, Interval) and not spec.on_second:
        when = ScheduleSpec(interval_ms=round(spec.seconds * 1000))
    else:
        when = ScheduleSpec(cron=(spec_text.strip(),))
    call.step(
        PutSchedule(
            schedule_id=name,
            spec=when,
            action=Action(
                type=name,
                task_queue=fallback_queue(options.task_queue),
                is_task=True,
                retry_policy=None if options.retry_policy is None else options.retry_policy.policy(),
                memo=payload(options.memo, "memo", SMALL_PAYLOAD_BYTES_MAX),
                task_timeouts=options.timeouts(),
            ),
        )
    )


def _submit(open_call: CallOpener, message: bytes) -> bytes:
    request = decode_task_submit(message)
    options = _options(request.options)
    body = json_payload(request.payload, "payload")
    started = start_task(_open(open_call, options), request.task_type, body, options)
    return encode_submit_reply(200, _started(started))


def _schedule(open_call: CallOpener, message: bytes) -> bytes:
    request = decode_task_schedule(message)
    options = _options(request.options)
    if bool(request.interval) == bool(request.cron):
        raise Invalid(f"schedule {request.name!r} must have an interval or a cron expression, one of them")
    put_schedule(_open(open_call, options), request.name, request.interval or request.cron, options)
    return encode_submit_reply(200, msgspec.json.encode({"schedule_id": request.name, "status": "scheduled"}))


def _open(open_call: CallOpener, options: TaskOptions) -> Call:
    call = open_call(options.namespace)
    if options.durability:
        call.ask_for(options.durability)
    return call


def _options(data: Buffer) -> TaskOptions:
    return decode_json(data, TaskOptions) if data else TaskOptions()


def _started(started: Started) -> bytes:
    return msgspec.json.encode({"workflow_id": started.workflow_id, "run_id": started.run_id, "is_new": started.is_new})


def _list_dead_letters(call: Call, request: DeadLetterRequest) -> object:
    letters, token = call.namespace.engine.views.dead_letters(
        after=request.next_page_token, limit=requests.page_size(request.page_size)
    )
    return {"dead_letters": [shapes.dead_letter(execution) for execution in letters], "next_page_token": token}


def _requeue_dead_letter(call: Call, request: DeadLetterRequest) -> object:
    started = call.step(
        RequeueDeadLetter(workflow_id=request.workflow, run_id=request.run, identity=request.identity or call.peer_name)
    )
    return {"workflow_id": started.workflow_id, "run_id": started.run_id}


CALLS: dict[int, Handler] = {
    Op.LIST_DEAD_LETTERS: Handler(DeadLetterRequest, _list_dead_letters),
    Op.REQUEUE_DEAD_LETTER: Handler(DeadLetterRequest, _requeue_dead_letter),
}

BINARY_CALLS: dict[int, BinaryCall] = {Op.TASK_SUBMIT: _submit, Op.TASK_SCHEDULE: _schedule}
