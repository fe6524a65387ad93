"""Child workflows, and other executions that a workflow signals or cancels."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Generic, Literal, TypeAlias, TypedDict, TypeVar, TypeVarTuple, Unpack, overload
from uuid import NAMESPACE_OID, uuid5

from zaptasks.arguments import result_reader
from zaptasks.json_types import Reader
from zaptasks.options import RetryPolicy, Seconds, check_options, workflow_timeouts
from zaptasks.payloads import encode_arguments, encode_memo, encode_optional

from . import commands as c
from . import history as h
from .activities import OnCancel, Outcome, check_on_cancel, decode_result
from .definition import AnyRun, WorkflowClass, handler_name, workflow_function, workflow_name
from .errors import ChildFailed, ChildStartFailed, ExternalFailed
from .execution import Run, current_run
from .scheduler import checkpoint_if_cancelled, current_task

R = TypeVar("R")
V = TypeVar("V")
Ts = TypeVarTuple("Ts")

ParentClosePolicy: TypeAlias = Literal["terminate", "cancel", "abandon"]
"""What becomes of a child that is open when its parent's run ends."""


class ChildOptions(TypedDict, total=False):
    """What a child workflow may be started with."""

    id: str
    """By default one of its own, the same in every replay."""
    task_queue: str
    """By default the parent's own."""
    parent_close_policy: ParentClosePolicy
    """By default "terminate"."""
    execution_timeout: Seconds | None
    """How long it may take, with all the runs that follow."""
    run_timeout: Seconds | None
    """How long one run may take."""
    task_timeout: Seconds | None
    """How long a worker may take for one workflow task, its local activities included: 10 seconds if not given, 10
    minutes at most."""
    retry_policy: RetryPolicy | None
    cron_schedule: str
    memo: Mapping[str, object] | None
    search_attributes: Mapping[str, object] | None
    on_cancel: OnCancel
    """By default "wait"."""


class ExternalWorkflow:
    """Another execution, by its id. Made by `external_workflow`."""

    def __init__(self, workflow_id: str, run_id: str = "") -> None:
        if not workflow_id:
            raise ValueError("a workflow id is needed")
        self.workflow_id = workflow_id
        self.run_id: Final = run_id

    @overload
    async def signal(self, signal: Callable[[Any], Any], /) -> None: ...
    @overload
    async def signal(self, signal: Callable[[Any, V], Any], value: V, /) -> None: ...
    @overload
    async def signal(self, signal: str, value: object = None, /) -> None: ...
    async def signal(self, signal: str | Callable[..., Any], value: object = None, /) -> None:
        """Send it a signal, by name or by its method, and wait until the server has it. Raises `ExternalFailed`."""
        name = handler_name("signal", signal)
        await checkpoint_if_cancelled()
        command = c.SignalExternal(
            id=current_task().next_command_id(),
            workflow_id=self.workflow_id,
            run_id=self.run_id,
            signal_name=name,
            input=encode_optional(value, f"the value of signal {name!r}"),
        )
        await self._ask(command)

    async def cancel(self, reason: str = "") -> None:
        """Ask it to end, and wait until the server has told it. Raises `ExternalFailed`."""
        await checkpoint_if_cancelled()
        command = c.CancelExternal(
            id=current_task().next_command_id(), workflow_id=self.workflow_id, run_id=self.run_id, reason=reason
        )
        await self._ask(command)

    async def _ask(self, command: c.SignalExternal | c.CancelExternal) -> None:
        run, outcome = current_run(), Outcome()

        def told(event: h.Event) -> None:
            run.settle(command.id)
            outcome.settle(event)

        run.add(command)
        run.expect(command.id, told)
        # What was asked for cannot be taken back, and the answer comes at once: no cancel ends this wait.
        event = await outcome.wait(lambda: False)
        if event.event_type.endswith("_FAILED"):
            raise ExternalFailed(self.workflow_id, event.failure)


def external_workflow(workflow_id: str, run_id: str = "") -> ExternalWorkflow:
    """Another execution of the namespace; without a run id, whichever run of it is open."""
    return ExternalWorkflow(workflow_id, run_id)


class ChildHandle(ExternalWorkflow, Generic[R]):
    """A child workflow. Made by `start_child_workflow`."""

    def __init__(self, run: Run, command: c.StartChild, read: Reader, on_cancel: OnCancel) -> None:
        super().__init__(command.workflow_id)
        self.type: Final = command.type
        self.first_run_id: str = ""
        """The run that it began with."""
        self._run = run
        self._id = command.id
        self._read = read
        self._on_cancel = on_cancel
        self._started = Outcome()
        self._closed = Outcome()
        self._is_cancel_requested = False
        run.add(command)
        run.expect(command.id, self._told)

    def _told(self, event: h.Event) -> None:
        if event.event_type == h.CHILD_STARTED:
            self.first_run_id = event.get("runId", str)
            self.workflow_id = event.get("workflowId", str)
            self._started.settle(event)
            return
        self._run.settle(self._id)
        self._started.settle(event)
        self._closed.settle(event)

    @property
    def is_done(self) -> bool:
        return self._closed.event is not None

    async def started(self) -> None:
        event = await self._started.wait(self._cancelled_by_scope)
        if event.event_type == h.CHILD_START_FAILED:
            raise ChildStartFailed(self.type, event.get("workflowId", str), event.failure)

    async def result(self) -> R:
        """Wait for its end, over all of its runs. Raises `ChildFailed`, `ChildStartFailed`."""
        event = await self._closed.wait(self._cancelled_by_scope)
        if event.event_type == "CHILD_WORKFLOW_COMPLETED":
            value: R = decode_result(self._read, event.payload("result"), f"child workflow {self.type!r}")
            return value
        if event.event_type == h.CHILD_START_FAILED:
            raise ChildStartFailed(self.type, event.get("workflowId", str), event.failure)
        if event.event_type == h.CHILD_CANCELED and self._is_cancel_requested:
            await checkpoint_if_cancelled()
        raise ChildFailed(self.type, self.workflow_id, event.failure)

    def _cancelled_by_scope(self) -> bool:
        if self._on_cancel != "abandon" and not self._is_cancel_requested and not self.is_done:
            self._is_cancel_requested = True
            reason = self._run.cancel_reason or "the workflow that waits for it canceled it"
            self._run.add(c.CancelExternal(id=f"{self._id}/cancel", workflow_id=self.workflow_id, reason=reason))
        return self._on_cancel != "wait"


def _start(function: str, workflow: object, args: tuple[object, ...], options: ChildOptions) -> ChildHandle[Any]:
    check_options(options, ChildOptions, function)
    return _ask(workflow, args, **options)


def _ask(
    workflow: object,
    args: tuple[object, ...],
    *,
    id: str = "",
    task_queue: str = "",
    parent_close_policy: ParentClosePolicy = "terminate",
    execution_timeout: Seconds | None = None,
    run_timeout: Seconds | None = None,
    task_timeout: Seconds | None = None,
    retry_policy: RetryPolicy | None = None,
    cron_schedule: str = "",
    memo: Mapping[str, object] | None = None,
    search_attributes: Mapping[str, object] | None = None,
    on_cancel: OnCancel = "wait",
) -> ChildHandle[Any]:
    if parent_close_policy not in ("terminate", "cancel", "abandon"):
        raise ValueError(
            f'parent_close_policy is {parent_close_policy!r}: it must be "terminate", "cancel" or "abandon"'
        )
    check_on_cancel(on_cancel)
    name = workflow_name(workflow)
    run = current_run()
    command_id = current_task().next_command_id()
    command = c.StartChild(
        id=command_id,
        type=name,
        # An id of its own, so that it can be canceled before the server has said how it is called.
        workflow_id=id or f"{name.lower()}-{uuid5(NAMESPACE_OID, f'{run.info.run_id}/{command_id}')}",
        task_queue=task_queue,
        input=encode_arguments(args, f"the arguments of workflow {name!r}"),
        timeouts=workflow_timeouts(execution_timeout, run_timeout, task_timeout) or None,
        retry_policy=None if retry_policy is None else retry_policy.to_wire(),
        parent_close_policy=parent_close_policy,
        memo=encode_memo(memo),
        search_attributes=None if search_attributes is None else dict(search_attributes),
        cron_schedule=cron_schedule,
    )
    return ChildHandle(run, command, result_reader(workflow_function(workflow)), on_cancel)


@overload
async def execute_child_workflow(
    workflow: AnyRun[*Ts, R],
    /,
    *args: *Ts,
    **options: Unpack[ChildOptions],
) -> R: ...
@overload
async def execute_child_workflow(
    workflow: WorkflowClass[*Ts, R],
    /,
    *args: *Ts,
    **options: Unpack[ChildOptions],
) -> R: ...
@overload
async def execute_child_workflow(
    workflow: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]],
    /,
    *args: *Ts,
    **options: Unpack[ChildOptions],
) -> R: ...
@overload
async def execute_child_workflow(
    workflow: str,
    /,
    *args: object,
    **options: Unpack[ChildOptions],
) -> Any: ...
async def execute_child_workflow(
    workflow: Any,
    /,
    *args: *Ts,
    **options: Unpack[ChildOptions],
) -> Any:
    """Start a workflow as a child of this one, and return its result.

    `workflow` is a class, its method under `@workflow.run`, a function, or a name. Raises `ChildFailed` and
    `ChildStartFailed`. When this wait is cancelled, `on_cancel` says what becomes of the child: by default it is asked
    to end, with the reason of the cancel, and its end is waited for.
    """
    await checkpoint_if_cancelled()
    handle = _start("execute_child_workflow", workflow, args, options)
    return await handle.result()


@overload
async def start_child_workflow(
    workflow: AnyRun[*Ts, R],
    /,
    *args: *Ts,
    **options: Unpack[ChildOptions],
) -> ChildHandle[R]: ...
@overload
async def start_child_workflow(
    workflow: WorkflowClass[*Ts, R],
    /,
    *args: *Ts,
    **options: Unpack[ChildOptions],
) -> ChildHandle[R]: ...
@overload
async def start_child_workflow(
    workflow: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]],
    /,
    *args: *Ts,
    **options: Unpack[ChildOptions],
) -> ChildHandle[R]: ...
@overload
async def start_child_workflow(
    workflow: str,
    /,
    *args: object,
    **options: Unpack[ChildOptions],
) -> ChildHandle[Any]: ...
async def start_child_workflow(
    workflow: Any,
    /,
    *args: *Ts,
    **options: Unpack[ChildOptions],
) -> ChildHandle[Any]:
    """Like `execute_child_workflow`, but return once the child has begun; `await handle.result()` waits for its end."""
    await checkpoint_if_cancelled()
    handle = _start("start_child_workflow", workflow, args, options)
    await handle.started()
    return handle
