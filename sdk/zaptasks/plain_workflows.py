"""Workflows as Go's worker runs them: each run once, from the top, as a task of this worker.

    async def order(ctx: WorkflowContext, item: str) -> str:
        ctx.on_query("state", lambda: state)
        return await ctx.execute_activity("charge", item, start_to_close=30)

A run that loses its worker starts again elsewhere from its input. There the server answers the activities that it
asks for again from their recorded results, as long as it asks in the same order with the same input.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections import OrderedDict
from typing import Any, Final

import msgspec
import trio

from zapwire.body import decode_json, encode_json
from zapwire.errors import ConnectionLost, ZapError
from zapwire.failure import DECODE_ERROR, Failure, encode_failure
from zapwire.opcodes import Op

from .arguments import ArgumentsError
from .converters import PLAIN, DataConverter
from .deliveries import QueryDelivery, ResultDelivery, WorkflowCancel, WorkflowDelivery
from .errors import ActivityFailed, CodecError
from .failures import canceled_failure, failure_of, unreadable_failure
from .handlers import Function, Handler, name_of
from .headers import Headers
from .line import TOO_LARGE, Line
from .options import RetryPolicy, Seconds, to_ms
from .payloads import result_too_large

log = logging.getLogger("zaptasks.worker")

EARLY_RESULTS_MAX: Final = 10_000
"""Results of activities that nobody waits for yet: a push may overtake the answer that names its activity."""

COMPLETE, FAIL, CANCELED = 0, 1, 3
"""The kinds of commands that end a run."""


class _Scheduled(msgspec.Struct, frozen=True):
    activity_task_id: str


class WorkflowContext:
    """What a workflow function is given first: who it is, its activities and its queries."""

    def __init__(self, delivery: WorkflowDelivery, *, task_queue: str, runner: WorkflowRunner, line: Line) -> None:
        self.workflow_id: Final = delivery.workflow_id
        self.run_id: Final = delivery.run_id
        self.type: Final = delivery.workflow_type_name
        self.attempt: Final = delivery.attempt
        self.headers: Final[Headers] = delivery.headers
        self.namespace: Final = line.namespace
        self.task_queue: Final = task_queue
        self._runner = runner
        self._line = line
        self._queries: dict[str, Function] = {}

    async def execute_activity(
        self,
        activity: str | Function,
        *args: object,
        task_queue: str = "",
        start_to_close: Seconds | None = None,
        schedule_to_start: Seconds | None = None,
        schedule_to_close: Seconds | None = None,
        heartbeat_timeout: Seconds | None = None,
        retry_policy: RetryPolicy | None = None,
    ) -> Any:
        """Run an activity on a worker of `task_queue` (by default this one's) and return its result.

        Without a retry policy it gets one attempt. Raises `ActivityFailed`. Canceling this call gives up waiting; the
        activity itself is stopped when the workflow ends.
        """
        name = name_of(activity)
        request: dict[str, object] = {
            "workflow_id": self.workflow_id,
            "run_id": self.run_id,
            "task_queue": task_queue or self.task_queue,
            "activity_type": name,
            "input": self._runner.converter.encode_arguments(args, f"the arguments of activity {name!r}"),
            "start_to_close_ms": to_ms(start_to_close, "start_to_close"),
            "schedule_to_start_ms": to_ms(schedule_to_start, "schedule_to_start"),
            "schedule_to_close_ms": to_ms(schedule_to_close, "schedule_to_close"),
            "heartbeat_ms": to_ms(heartbeat_timeout, "heartbeat_timeout"),
        }
        if retry_policy is not None:
            request["retry_policy"] = retry_policy.to_wire()
        delivery = await self._runner.execute(self._line, request)
        if delivery.failure:
            raise ActivityFailed(name, self._runner.converter.decode_failure(delivery.failure.encode()))
        return self._runner.converter.decode(delivery.result or "null")

    def on_query(self, name: str, function: Function) -> None:
        """Answer queries of this name with `function(*args)`, while the run lasts. It must be a plain function."""
        self._queries[name] = function


class WorkflowRun:
    """One run on this worker, and how it is stopped."""

    __slots__ = ("cancel_reason", "context", "delivery", "hand_back_reason", "is_lost", "line", "scope")

    def __init__(self, delivery: WorkflowDelivery, context: WorkflowContext, line: Line) -> None:
        self.delivery = delivery
        self.context = context
        self.line = line
        self.scope = trio.CancelScope()
        self.cancel_reason: str | None = None
        self.hand_back_reason = ""
        self.is_lost = False

    def __str__(self) -> str:
        return f"{self.context.type!r} ({self.context.workflow_id}, run {self.context.run_id})"


class WorkflowRunner:
    """The workflow runs of one worker, and the activities that they wait for."""

    def __init__(self, handlers: dict[str, Handler], *, task_queue: str, converter: DataConverter = PLAIN) -> None:
        self.converter: Final = converter
        self._handlers = handlers
        self._task_queue = task_queue
        self._runs: dict[str, WorkflowRun] = {}  # by token: a run that was lost may be here under two for a moment
        self._waiting: dict[str, trio.Event] = {}
        self._results: OrderedDict[str, ResultDelivery] = OrderedDict()

    def __contains__(self, token: str) -> bool:
        return token in self._runs

    def has(self, run_id: str) -> bool:
        """Whether the run is held here."""
        return self._find(run_id) is not None

    # --- what the server pushes ------------------------------------------------------------------------

    def on_result(self, delivery: ResultDelivery) -> None:
        """An activity is over: wake the run that waits, or keep the result until it does."""
        self._results[delivery.activity_id] = delivery
        waiting = self._waiting.get(delivery.activity_id)
        if waiting is not None:
            waiting.set()
        elif len(self._results) > EARLY_RESULTS_MAX:
            self._results.popitem(last=False)

    def on_cancel(self, request: WorkflowCancel) -> None:
        run = self._find(request.run_id)
        if run is not None and run.cancel_reason is None:
            run.cancel_reason = request.reason or "canceled"
            run.scope.cancel()

    async def answer_query(self, query: QueryDelivery, line: Line) -> None:
        """Ask the run, and tell the server what it says."""
        request: dict[str, object] = {"token": query.token}
        try:
            request["result"] = base64.b64encode(self._ask(query)).decode()
        except Exception as error:
            request["error"] = self.converter.hide_text(f"{type(error).__name__}: {error}")
        try:
            await line.call(Op.RESPOND_QUERY, request)
        except ZapError as error:
            log.info("the answer to query %r of %s was not taken: %s", query.query_type, query.workflow_id, error)

    def _ask(self, query: QueryDelivery) -> bytes:
        run = self._find(query.run_id)
        if run is None:
            raise LookupError(f"run {query.run_id} does not run on this worker")
        function = run.context._queries.get(query.query_type)
        if function is None:
            known = ", ".join(sorted(run.context._queries)) or "none"
            raise LookupError(
                f"the workflow {run.context.type!r} answers no query {query.query_type!r}; it has: {known}"
            )
        args = self.converter.decode(_base64(query.args)) if query.args else []
        value = function(*args) if isinstance(args, list) else function(args)
        return self.converter.encode(value, f"the answer to query {query.query_type!r}")

    def _find(self, run_id: str) -> WorkflowRun | None:
        """The newest delivery of a run: an older one may still be waiting for its acknowledgement."""
        return next((run for run in reversed(self._runs.values()) if run.context.run_id == run_id), None)

    # --- runs ------------------------------------------------------------------------------------------

    def accept(self, delivery: WorkflowDelivery, line: Line) -> WorkflowRun:
        """Take note of a run before it starts: a cancel or query may come right behind its delivery."""
        context = WorkflowContext(delivery, task_queue=self._task_queue, runner=self, line=line)
        run = self._runs[delivery.task_token] = WorkflowRun(delivery, context, line)
        return run

    async def run(self, run: WorkflowRun) -> None:
        """Run one workflow to its end and answer. Raises nothing but `trio.Cancelled` and `KeyboardInterrupt`."""
        try:
            handler = self._handlers.get(run.context.type)
            if handler is None:
                commands: list[dict[str, object]] | None = []  # which is how Go says: not here
            else:
                commands = await self._perform(run, handler, run.delivery.input)
            await self._finish(run, commands)
        except (trio.Cancelled, KeyboardInterrupt):
            run.hand_back_reason = "the worker was canceled"
            await self._finish(run, None)
            raise
        finally:
            del self._runs[run.delivery.task_token]

    async def _finish(self, run: WorkflowRun, commands: list[dict[str, object]] | None) -> None:
        token = run.delivery.task_token
        if run.is_lost:
            log.info("the lease of %s ended before it did: its outcome is dropped", run)
        elif commands is not None:
            body = encode_json({"v": 1, "cmds": commands})
            status = await run.line.answer(Op.RESPOND_WORKFLOW_TASK_COMPLETED, token, body, what=run)
            if status == TOO_LARGE:
                failure = failure_of(result_too_large(run.context.type))
                body = encode_json({"v": 1, "cmds": [self._failed(failure)]})
                await run.line.answer(Op.RESPOND_WORKFLOW_TASK_COMPLETED, token, body, what=run)
        else:
            await run.line.answer(Op.HAND_BACK_TASK, token, run.hand_back_reason.encode(), what=run)

    async def _perform(self, run: WorkflowRun, handler: Handler, input: str | None) -> list[dict[str, object]] | None:
        """The commands that end the run; None if it was stopped for reasons of this worker."""
        try:
            opened = None if input is None else self.converter.open(input)
        except CodecError as error:
            log.warning("workflow %s cannot be run here: %s", run, error)
            return [_command(FAIL, "failure", encode_failure(unreadable_failure(error)))]
        try:
            with run.scope:
                args = handler.parameters.from_array(opened)
                result = await handler.function(run.context, *args)
                return [_command(COMPLETE, "result", self.converter.encode(result, f"the result of {handler.name!r}"))]
        except (trio.Cancelled, KeyboardInterrupt):
            raise
        except ArgumentsError as error:
            text = f"{handler.name!r} cannot be called: {error}"
            return [self._failed(Failure(message=text, code=DECODE_ERROR, non_retryable=True))]
        except BaseException as error:
            if run.is_lost:
                return None
            log.warning("workflow %s failed: %s", run, type(error).__name__, exc_info=error)
            if not run.hand_back_reason:  # else it only failed to clean up
                return [self._failed(failure_of(error))]
        if run.cancel_reason is None:
            return None
        return [_command(CANCELED, "failure", encode_failure(canceled_failure(run.cancel_reason)))]

    def _failed(self, failure: Failure) -> dict[str, object]:
        return _command(FAIL, "failure", self.converter.encode_failure(failure))

    async def execute(self, line: Line, request: dict[str, object]) -> ResultDelivery:
        """Schedule an activity and wait for its result."""
        try:
            answer = await line.call_until_taken(Op.SCHEDULE_ACTIVITY, request)
        except ConnectionLost:
            # Whether the server has recorded the activity is unknown, so that neither a repeat nor a failure would be
            # right. With its connection the run ends here, and starts over from what was recorded.
            line.close("the outcome of an activity's scheduling is unknown")
            await trio.sleep_forever()
        activity_id = decode_json(answer, _Scheduled).activity_task_id
        waiting = self._waiting[activity_id] = trio.Event()
        try:
            if activity_id not in self._results:
                await waiting.wait()
            return self._results.pop(activity_id)
        finally:
            del self._waiting[activity_id]

    # --- ends ------------------------------------------------------------------------------------------

    def lose_all(self) -> None:
        """The connection is gone, and with it every lease: stop, another worker starts over."""
        for run in self._runs.values():
            run.is_lost = True
            run.scope.cancel()
        self._results.clear()

    def hand_back_all(self, reason: str) -> None:
        for run in self._runs.values():
            run.hand_back_reason = reason
            run.scope.cancel()


def _command(kind: int, name: str, payload: bytes) -> dict[str, object]:
    return {"kind": kind, name: base64.b64encode(payload).decode()}


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"the arguments are not base64: {text[:60]!r}") from None
