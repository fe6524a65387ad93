"""The blocking client's calls that start workflows, and handles for those that run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, TypeVarTuple, Unpack, overload

from zaptasks.options import Seconds
from zaptasks.plain_workflows import WorkflowContext
from zaptasks.workflow.definition import AnyRun, WorkflowClass
from zaptasks.workflow_calls import WorkflowCalls
from zaptasks.workflow_start import StartOptions, WithStart

from .handles import BlockingWorkflowHandle, documented_by
from .stepping import Loop

R = TypeVar("R")
T = TypeVar("T")
V = TypeVar("V")
Ts = TypeVarTuple("Ts")


@documented_by(WorkflowCalls)
class BlockingWorkflowCalls:
    """Start workflows, with signals and updates too, and get handles."""

    _loop: Loop

    @overload
    def start_workflow(
        self, workflow: AnyRun[*Ts, R], /, *args: *Ts, **options: Unpack[StartOptions]
    ) -> BlockingWorkflowHandle[R]: ...
    @overload
    def start_workflow(
        self, workflow: WorkflowClass[*Ts, R], /, *args: *Ts, **options: Unpack[StartOptions]
    ) -> BlockingWorkflowHandle[R]: ...
    @overload
    def start_workflow(
        self,
        workflow: Callable[[WorkflowContext, Unpack[Ts]], Coroutine[Any, Any, R]],
        /,
        *args: *Ts,
        **options: Unpack[StartOptions],
    ) -> BlockingWorkflowHandle[R]: ...
    @overload
    def start_workflow(
        self,
        workflow: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]],
        /,
        *args: *Ts,
        **options: Unpack[StartOptions],
    ) -> BlockingWorkflowHandle[R]: ...
    @overload
    def start_workflow(
        self, workflow: str, /, *args: object, **options: Unpack[StartOptions]
    ) -> BlockingWorkflowHandle[Any]: ...
    def start_workflow(
        self, workflow: Any, /, *args: *Ts, **options: Unpack[StartOptions]
    ) -> BlockingWorkflowHandle[Any]:
        started = self._loop.run(self._loop.server.start_workflow(workflow, *args, **options))
        return BlockingWorkflowHandle(self._loop, started)

    @overload
    def execute_workflow(
        self, workflow: AnyRun[*Ts, R], /, *args: *Ts, timeout: Seconds | None = None, **options: Unpack[StartOptions]
    ) -> R: ...
    @overload
    def execute_workflow(
        self,
        workflow: WorkflowClass[*Ts, R],
        /,
        *args: *Ts,
        timeout: Seconds | None = None,
        **options: Unpack[StartOptions],
    ) -> R: ...
    @overload
    def execute_workflow(
        self,
        workflow: Callable[[WorkflowContext, Unpack[Ts]], Coroutine[Any, Any, R]],
        /,
        *args: *Ts,
        timeout: Seconds | None = None,
        **options: Unpack[StartOptions],
    ) -> R: ...
    @overload
    def execute_workflow(
        self,
        workflow: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]],
        /,
        *args: *Ts,
        timeout: Seconds | None = None,
        **options: Unpack[StartOptions],
    ) -> R: ...
    @overload
    def execute_workflow(
        self, workflow: str, /, *args: object, timeout: Seconds | None = None, **options: Unpack[StartOptions]
    ) -> Any: ...
    def execute_workflow(
        self, workflow: Any, /, *args: *Ts, timeout: Seconds | None = None, **options: Unpack[StartOptions]
    ) -> Any:
        """Start a workflow as `start_workflow` does, and wait for its result as a handle does: for at most `timeout`
        seconds if that is given. The workflow goes on after a `TimeoutError`.
        """
        executed = self._loop.server.execute_workflow(workflow, *args, **options)
        return self._loop.run(executed, timeout, "the result of the workflow")

    @overload
    def signal_with_start(
        self, signal: Callable[[Any], Any], /, *, start: WithStart[R]
    ) -> BlockingWorkflowHandle[R]: ...
    @overload
    def signal_with_start(
        self, signal: Callable[[Any, V], Any], value: V, /, *, start: WithStart[R]
    ) -> BlockingWorkflowHandle[R]: ...
    @overload
    def signal_with_start(
        self, signal: str, value: object = None, /, *, start: WithStart[R]
    ) -> BlockingWorkflowHandle[R]: ...
    def signal_with_start(
        self, signal: str | Callable[..., Any], value: object = None, /, *, start: WithStart[R]
    ) -> BlockingWorkflowHandle[R]:
        started = self._loop.run(self._loop.server.signal_with_start(signal, value, start=start))
        return BlockingWorkflowHandle(self._loop, started)

    @overload
    def update_with_start(
        self,
        update: Callable[[Any, Unpack[Ts]], Coroutine[Any, Any, T]],
        /,
        *args: *Ts,
        start: WithStart[R],
        id: str = "",
        timeout: Seconds | None = None,
    ) -> tuple[BlockingWorkflowHandle[R], T]: ...
    @overload
    def update_with_start(
        self,
        update: Callable[[Any, Unpack[Ts]], T],
        /,
        *args: *Ts,
        start: WithStart[R],
        id: str = "",
        timeout: Seconds | None = None,
    ) -> tuple[BlockingWorkflowHandle[R], T]: ...
    @overload
    def update_with_start(
        self, update: str, /, *args: object, start: WithStart[R], id: str = "", timeout: Seconds | None = None
    ) -> tuple[BlockingWorkflowHandle[R], Any]: ...
    def update_with_start(
        self, update: Any, /, *args: *Ts, start: WithStart[Any], id: str = "", timeout: Seconds | None = None
    ) -> tuple[BlockingWorkflowHandle[Any], Any]:
        """Have a workflow handle an update, and start it first if it is not open; its handle, and what came of it.

        One step on the server: if it refuses the start or the update, neither has happened. It waits and raises as
        `handle.update` does, `timeout` included, and with `id_conflict_policy="fail"` `CallFailed` with status 409 for
        a workflow that is open. A workflow that was started for an update which it then rejects stays: `get_handle` has
        it. The answer waits for the server's own durability, and the handle's is None.
        """
        updated = self._loop.server.update_with_start(update, *args, start=start, id=id)
        handle, outcome = self._loop.run(updated, timeout, "the answer to the update")
        return BlockingWorkflowHandle(self._loop, handle), outcome

    @overload
    def get_handle(self, id: str, run_id: str = "") -> BlockingWorkflowHandle[Any]: ...
    @overload
    def get_handle(self, id: str, run_id: str = "", *, result_type: type[R]) -> BlockingWorkflowHandle[R]: ...
    def get_handle(self, id: str, run_id: str = "", *, result_type: Any = Any) -> BlockingWorkflowHandle[Any]:
        return BlockingWorkflowHandle(self._loop, self._loop.server.get_handle(id, run_id, result_type=result_type))

    @overload
    def get_handle_for(self, workflow: AnyRun[*Ts, R], id: str, run_id: str = "") -> BlockingWorkflowHandle[R]: ...
    @overload
    def get_handle_for(
        self, workflow: WorkflowClass[*Ts, R], id: str, run_id: str = ""
    ) -> BlockingWorkflowHandle[R]: ...
    @overload
    def get_handle_for(
        self, workflow: Callable[..., Coroutine[Any, Any, R]], id: str, run_id: str = ""
    ) -> BlockingWorkflowHandle[R]: ...
    def get_handle_for(self, workflow: Any, id: str, run_id: str = "") -> BlockingWorkflowHandle[Any]:
        return BlockingWorkflowHandle(self._loop, self._loop.server.get_handle_for(workflow, id, run_id))
