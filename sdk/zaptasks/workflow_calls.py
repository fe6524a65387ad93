"""The client's calls that start workflows, and handles for those that run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, TypeVarTuple, Unpack, overload

from zapwire.opcodes import Op

from .arguments import result_type as result_type_of
from .caller import Caller
from .handles import WorkflowHandle, signal_body, update_body, update_outcome
from .options import check_options, present
from .plain_workflows import WorkflowContext
from .records import Started
from .workflow.definition import AnyRun, WorkflowClass, workflow_function
from .workflow_start import StartOptions, WithStart, start_request

R = TypeVar("R")
T = TypeVar("T")
V = TypeVar("V")
Ts = TypeVarTuple("Ts")


class WorkflowCalls(Caller):
    """Start workflows, with signals and updates too, and get handles."""

    @overload
    async def start_workflow(
        self, workflow: AnyRun[*Ts, R], /, *args: *Ts, **options: Unpack[StartOptions]
    ) -> WorkflowHandle[R]: ...
    @overload
    async def start_workflow(
        self, workflow: WorkflowClass[*Ts, R], /, *args: *Ts, **options: Unpack[StartOptions]
    ) -> WorkflowHandle[R]: ...
    @overload
    async def start_workflow(
        self,
        workflow: Callable[[WorkflowContext, Unpack[Ts]], Coroutine[Any, Any, R]],
        /,
        *args: *Ts,
        **options: Unpack[StartOptions],
    ) -> WorkflowHandle[R]: ...
    @overload
    async def start_workflow(
        self,
        workflow: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]],
        /,
        *args: *Ts,
        **options: Unpack[StartOptions],
    ) -> WorkflowHandle[R]: ...
    @overload
    async def start_workflow(
        self, workflow: str, /, *args: object, **options: Unpack[StartOptions]
    ) -> WorkflowHandle[Any]: ...
    async def start_workflow(
        self, workflow: Any, /, *args: *Ts, **options: Unpack[StartOptions]
    ) -> WorkflowHandle[Any]:
        """Start a workflow: a class under `@workflow.defn`, its method under `@workflow.run`, a function, or a name.

        From all but a name, type checkers know its arguments, and the handle the type of its result. `StartOptions`
        says what the options are. An id that is open already is a `CallFailed` with status 409, unless
        `id_conflict_policy` says otherwise; one that was used before is none, unless `id_reuse_policy` says so.
        """
        check_options(options, StartOptions, "start_workflow")
        request = self._start_request(workflow, args, **options)
        return self._handle(workflow, await self.call(Op.START_WORKFLOW, request, Started))

    @overload
    async def execute_workflow(self, workflow: AnyRun[*Ts, R], /, *args: *Ts, **options: Unpack[StartOptions]) -> R: ...
    @overload
    async def execute_workflow(
        self, workflow: WorkflowClass[*Ts, R], /, *args: *Ts, **options: Unpack[StartOptions]
    ) -> R: ...
    @overload
    async def execute_workflow(
        self,
        workflow: Callable[[WorkflowContext, Unpack[Ts]], Coroutine[Any, Any, R]],
        /,
        *args: *Ts,
        **options: Unpack[StartOptions],
    ) -> R: ...
    @overload
    async def execute_workflow(
        self,
        workflow: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]],
        /,
        *args: *Ts,
        **options: Unpack[StartOptions],
    ) -> R: ...
    @overload
    async def execute_workflow(self, workflow: str, /, *args: object, **options: Unpack[StartOptions]) -> Any: ...
    async def execute_workflow(self, workflow: Any, /, *args: *Ts, **options: Unpack[StartOptions]) -> Any:
        """Start a workflow as `start_workflow` does, and wait for its result as a handle does.

        A cancel of the wait leaves the workflow alone.
        """
        check_options(options, StartOptions, "execute_workflow")
        return await (await self.start_workflow(workflow, *args, **options)).result()

    @overload
    async def signal_with_start(self, signal: Callable[[Any], Any], /, *, start: WithStart[R]) -> WorkflowHandle[R]: ...
    @overload
    async def signal_with_start(
        self, signal: Callable[[Any, V], Any], value: V, /, *, start: WithStart[R]
    ) -> WorkflowHandle[R]: ...
    @overload
    async def signal_with_start(
        self, signal: str, value: object = None, /, *, start: WithStart[R]
    ) -> WorkflowHandle[R]: ...
    async def signal_with_start(
        self, signal: str | Callable[..., Any], value: object = None, /, *, start: WithStart[R]
    ) -> WorkflowHandle[R]:
        """Signal a workflow, by name or by the signal's method, and start it first if it is not open.

        One step on the server. With `id_conflict_policy="terminate-existing"` one that is open is ended, and a new one
        started and signaled; "fail" is a `ValueError`, since to signal what is open is what this is for.
        """
        if start.options.get("id_conflict_policy") == "fail":
            raise ValueError('id_conflict_policy="fail" and signal_with_start exclude each other: use start_workflow')
        request = self._with_start(start) | signal_body(self.converter, signal, value, "signal_input")
        return self._handle(start.workflow, await self.call(Op.SIGNAL_WITH_START, request, Started))

    @overload
    async def update_with_start(
        self,
        update: Callable[[Any, Unpack[Ts]], Coroutine[Any, Any, T]],
        /,
        *args: *Ts,
        start: WithStart[R],
        id: str = "",
    ) -> tuple[WorkflowHandle[R], T]: ...
    @overload
    async def update_with_start(
        self, update: Callable[[Any, Unpack[Ts]], T], /, *args: *Ts, start: WithStart[R], id: str = ""
    ) -> tuple[WorkflowHandle[R], T]: ...
    @overload
    async def update_with_start(
        self, update: str, /, *args: object, start: WithStart[R], id: str = ""
    ) -> tuple[WorkflowHandle[R], Any]: ...
    async def update_with_start(
        self, update: Any, /, *args: *Ts, start: WithStart[Any], id: str = ""
    ) -> tuple[WorkflowHandle[Any], Any]:
        """Have a workflow handle an update, and start it first if it is not open; its handle, and what came of it.

        One step on the server: if it refuses the start or the update, neither has happened. It waits and raises as
        `handle.update` does, and with `id_conflict_policy="fail"` `CallFailed` with status 409 for a workflow that is
        open. A workflow that was started for an update which it then rejects stays: `get_handle` has it. The answer
        waits for the server's own durability, and the handle's is None.
        """
        name, body = update_body(self.converter, update, args, id)
        answer = await self.wait_updated(Op.UPDATE_WITH_START, name, self._with_start(start) | body)
        outcome = update_outcome(self.converter, update, name, answer)
        return self._handle(start.workflow, Started(workflow_id=answer.workflow_id, run_id=answer.run_id)), outcome

    def _with_start(self, start: WithStart[Any]) -> dict[str, object]:
        return self._start_request(start.workflow, start.args, id=start.id, **start.options)

    def _start_request(
        self, workflow: object, args: tuple[object, ...], **options: Unpack[StartOptions]
    ) -> dict[str, object]:
        request = start_request(self.converter, self.identity, self._header_source, workflow, args, **options)
        queue, type = str(request["task_queue"]), str(request["workflow_type"])
        subscriptions = (worker.subscription_for(queue, type) for worker in self.workers)
        return request | present(eager_subscription=next(filter(None, subscriptions), ""))

    def _handle(self, workflow: object, started: Started) -> WorkflowHandle[Any]:
        return WorkflowHandle(
            self,
            started.workflow_id,
            started.run_id,
            started.durability,
            result_type=result_type_of(workflow_function(workflow)),
        )

    @overload
    def get_handle(self, id: str, run_id: str = "") -> WorkflowHandle[Any]: ...
    @overload
    def get_handle(self, id: str, run_id: str = "", *, result_type: type[R]) -> WorkflowHandle[R]: ...
    def get_handle(self, id: str, run_id: str = "", *, result_type: Any = Any) -> WorkflowHandle[Any]:
        """A handle for an execution that exists already, task or workflow. Makes no call.

        `result_type` is what its `result` is read as. Without a run id it means the latest run.
        """
        return WorkflowHandle(self, id, run_id, result_type=result_type)

    @overload
    def get_handle_for(self, workflow: AnyRun[*Ts, R], id: str, run_id: str = "") -> WorkflowHandle[R]: ...
    @overload
    def get_handle_for(self, workflow: WorkflowClass[*Ts, R], id: str, run_id: str = "") -> WorkflowHandle[R]: ...
    @overload
    def get_handle_for(
        self, workflow: Callable[..., Coroutine[Any, Any, R]], id: str, run_id: str = ""
    ) -> WorkflowHandle[R]: ...
    def get_handle_for(self, workflow: Any, id: str, run_id: str = "") -> WorkflowHandle[Any]:
        """The same with the result of this workflow: a class, its run method, or a function."""
        return WorkflowHandle(self, id, run_id, result_type=result_type_of(workflow_function(workflow)))
