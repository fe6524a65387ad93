"""Calls about executions: start, signal, query, cancel, look, wait."""

from __future__ import annotations

import msgspec

from zapserver import requests, shapes
from zapserver.calls.context import DEFERRED, Call, Handler
from zapserver.engine.commands import (
    AwaitEvents,
    AwaitExecution,
    CancelExecution,
    IdConflict,
    Payload,
    QueryExecution,
    ResetExecution,
    SignalExecution,
    StartWorkflow,
    TerminateExecution,
    UpdateExecution,
    UpdateStage,
)
from zapserver.engine.errors import Invalid
from zapserver.engine.limits import SMALL_PAYLOAD_BYTES_MAX
from zapserver.engine.records import Event, Execution
from zapserver.engine.views import PAGE_SIZE_MAX, Views
from zapserver.requests import (
    AwaitRequest,
    EndRequest,
    ExecutionRequest,
    HistoryRequest,
    ListRequest,
    QueryRequest,
    ResetRequest,
    SignalRequest,
    StartRequest,
    UpdateRequest,
    UpdateWithStartRequest,
    payload,
)
from zapserver.visibility import parse_query
from zapwire.body import encode_json
from zapwire.opcodes import Op

PAGE_BYTES_MAX = 4 * 1024 * 1024
"""A page of history ends here, however few events it has: the answer must fit a frame."""


def start(call: Call, request: StartRequest) -> object:
    started = call.step(_start_command(call, request))
    return {"run_id": started.run_id, "workflow_id": started.workflow_id}


def _start_command(call: Call, request: StartRequest, update: UpdateExecution | None = None) -> StartWorkflow:
    reuse, conflict = requests.id_policies(request)
    return StartWorkflow(
        type=request.type,
        task_queue=request.queue,
        workflow_id=request.workflow,
        run_id=request.run,
        input=payload(request.input, "input"),
        request_id=request.request_id,
        retry_policy=None if request.retry_policy is None else request.retry_policy.policy(),
        timeouts=requests.workflow_timeouts(request.timeouts),
        cron_schedule=request.cron_schedule,
        memo=payload(request.memo, "memo", SMALL_PAYLOAD_BYTES_MAX),
        search_attributes=request.search_attributes,
        headers=request.headers,
        identity=request.identity or call.peer_name,
        signal_name=request.signal,
        signal_input=payload(request.signal_input, "signal_input"),
        eager_subscription=request.eager_subscription,
        update=update,
        id_reuse=reuse,
        id_conflict=conflict,
    )


def _start(call: Call, request: StartRequest) -> object:
    request.signal_name = request.signalName = ""
    return start(call, request)


def _signal_with_start(call: Call, request: StartRequest) -> object:
    if not request.signal:
        raise Invalid("signal_name required")
    return start(call, request)


def _signal(call: Call, request: SignalRequest) -> object:
    call.step(
        SignalExecution(
            workflow_id=request.workflow,
            run_id=request.run,
            signal_name=request.signal,
            input=payload(request.input, "input"),
            identity=request.identity,
            request_id=request.request_id,
        )
    )
    return {"status": "signaled"}


def _cancel(call: Call, request: EndRequest) -> object:
    execution = _execution(call, request)
    call.step(
        CancelExecution(
            workflow_id=execution.workflow_id,
            run_id=execution.run_id,
            reason=request.reason,
            identity=request.identity,
        )
    )
    return shapes.info(execution)


def _terminate(call: Call, request: EndRequest) -> object:
    execution = _execution(call, request)
    call.step(
        TerminateExecution(
            workflow_id=execution.workflow_id,
            run_id=execution.run_id,
            reason=request.reason,
            identity=request.identity,
        )
    )
    return shapes.info(execution)


def _reset(call: Call, request: ResetRequest) -> object:
    started = call.step(
        ResetExecution(
            workflow_id=request.workflow,
            run_id=request.run,
            event_id=request.event_id,
            reason=request.reason,
            identity=request.identity,
        )
    )
    return shapes.info(call.namespace.engine.views.execution(started.workflow_id, started.run_id))


def _describe(call: Call, request: ExecutionRequest) -> object:
    return {"info": shapes.full_info(_execution(call, request))}


def _list(call: Call, request: ListRequest) -> object:
    try:
        query = parse_query(request.query) if request.query else None
    except ValueError as error:
        raise Invalid(str(error)) from None

    def matches(execution: Execution) -> bool:
        return query is None or query.matches(shapes.visible_fields(execution))

    page, token = call.namespace.engine.views.executions(
        matches, after=request.next_page_token, limit=requests.page_size(request.page_size)
    )
    return {"executions": [shapes.info(execution) for execution in page], "next_page_token": token}


def _history_or_signal_with_start(call: Call, request: HistoryRequest) -> object:
    if request.signal:
        return start(call, request)
    views = call.namespace.engine.views
    if request.wait:
        return _history_once_it_grew(call, request)
    events, cursor = views.history(
        request.workflow,
        request.run,
        after=request.after_event_id,
        limit=requests.page_size(request.page_size),
        reverse=request.reverse,
    )
    return _history_page(events, cursor)


def _history_once_it_grew(call: Call, request: HistoryRequest) -> object:
    if request.reverse:
        raise Invalid("wait is for the events to come, and reverse for those before: leave one out")
    run = _execution(call, request)
    is_there = call.step(
        AwaitEvents(
            workflow_id=run.workflow_id,
            run_id=run.run_id,
            after=request.after_event_id,
            waiter=call.waiter,
            peer=call.peer,
        )
    )
    if not is_there:
        return DEFERRED
    limit = requests.page_size(request.page_size)
    return followed_history(call.namespace.engine.views, run.run_id, request.after_event_id, limit)


def followed_history(views: Views, run_id: str, after: int, limit: int = PAGE_SIZE_MAX) -> object:
    """A page for a reader that follows a run: which run it is, and whether more can come."""
    execution = views.execution("", run_id)
    page = _history_page(*views.history("", run_id, after=after, limit=limit))
    return {"run_id": run_id, "is_open": execution.status.is_open, **page}


def _history_page(events: list[Event], cursor: int) -> dict[str, object]:
    shown: list[msgspec.Raw] = []
    size = 0
    for item in events:
        encoded = encode_json(shapes.event(item))
        size += len(encoded)
        if shown and size > PAGE_BYTES_MAX:
            return {"events": shown, "next_cursor": events[len(shown) - 1].event_id}
        shown.append(msgspec.Raw(encoded))
    return {"events": shown, "next_cursor": cursor}


def _query(call: Call, request: QueryRequest) -> object:
    answer = call.step(
        QueryExecution(
            workflow_id=request.workflow,
            run_id=request.run,
            query_type=request.type,
            waiter=call.waiter,
            args=payload(request.args, "args") or payload(request.query_args, "query_args"),
            timeout_ms=request.timeout_ms,
        )
    )
    return DEFERRED if answer is None else query_answer(answer)


def query_answer(result: Payload | None) -> object:
    """Both readings: the value itself for Go's server's clients, base64 of its JSON for Go's SDK."""
    return {"query_result": result, "result": requests.base64_text(b"" if result is None else bytes(result))}


def _await(call: Call, request: AwaitRequest) -> object:
    call.step(
        AwaitExecution(
            workflow_id=request.workflow,
            run_id=request.run,
            waiter=call.waiter,
            peer=call.peer,
            follow=request.follow,
        )
    )
    return DEFERRED


def _update(call: Call, request: UpdateRequest) -> object:
    call.step(_update_command(call, request))
    return DEFERRED


def _update_with_start(call: Call, request: UpdateWithStartRequest) -> object:
    if not request.workflow:
        raise Invalid("workflow_id required: without one there is nothing that could be open already")
    request.id_conflict_policy = request.id_conflict_policy or IdConflict.USE_EXISTING
    request.signal_name = request.signalName = ""
    call.step(_start_command(call, request, _update_command(call, request)))
    return DEFERRED


def _update_command(call: Call, request: UpdateRequest | UpdateWithStartRequest) -> UpdateExecution:
    return UpdateExecution(
        workflow_id=request.workflow,
        run_id=request.run,
        name=request.update_name,
        waiter=call.waiter,
        peer=call.peer,
        update_id=request.update_id,
        args=payload(request.args, "args"),
        wait=requests.choice("wait", request.wait, UpdateStage, UpdateStage.COMPLETED),
    )


def _explain(call: Call, request: ExecutionRequest) -> object:
    execution = _execution(call, request)
    waiting = call.namespace.engine.views.explain(execution.workflow_id, execution.run_id)
    return {"info": shapes.info(execution), "waits_for": [shapes.waiting(item) for item in waiting]}


def _execution(call: Call, request: ExecutionRequest) -> Execution:
    return call.namespace.engine.views.execution(request.workflow, request.run)


CALLS: dict[int, Handler] = {
    Op.START_WORKFLOW: Handler(StartRequest, _start),
    Op.SIGNAL_WORKFLOW: Handler(SignalRequest, _signal),
    Op.CANCEL_WORKFLOW: Handler(EndRequest, _cancel),
    Op.TERMINATE_WORKFLOW: Handler(EndRequest, _terminate),
    Op.DESCRIBE_WORKFLOW: Handler(ExecutionRequest, _describe),
    Op.LIST_WORKFLOWS: Handler(ListRequest, _list),
    Op.GET_WORKFLOW_HISTORY: Handler(HistoryRequest, _history_or_signal_with_start),
    Op.QUERY_WORKFLOW: Handler(QueryRequest, _query),
    Op.RESET_WORKFLOW: Handler(ResetRequest, _reset),
    Op.SIGNAL_WITH_START: Handler(StartRequest, _signal_with_start),
    Op.AWAIT_EXECUTION: Handler(AwaitRequest, _await),
    Op.EXPLAIN: Handler(ExecutionRequest, _explain),
    Op.UPDATE_WORKFLOW: Handler(UpdateRequest, _update),
    Op.UPDATE_WITH_START: Handler(UpdateWithStartRequest, _update_with_start),
}
