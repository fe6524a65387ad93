"""Handles: one execution on the server, to wait for, look at and steer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, TypeVar, TypeVarTuple, Unpack, overload
from uuid import uuid4

from zapwire.errors import CallFailed
from zapwire.opcodes import Op

from .arguments import result_type
from .caller import Caller
from .converters import DataConverter
from .errors import UpdateFailed, refusal
from .exported_history import WorkflowHistory
from .options import Durability, asked
from .output import OutputItem, read_output
from .pages import Pages
from .records import (
    Acknowledged,
    ClosedExecution,
    Described,
    ExecutionInfo,
    Explained,
    HistoryEvent,
    HistoryPage,
    QueryAnswer,
    Started,
    Status,
    UpdateAnswer,
    Waiting,
    error_of,
)
from .workflow.definition import handler_name
from .workflow.history import EventPage

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    R = TypeVarWithDefault("R", default=Any)
    """What an execution returns. `WorkflowHandle` alone says nothing of it."""
else:
    R = TypeVar("R")
T = TypeVar("T")
V = TypeVar("V")
Ts = TypeVarTuple("Ts")

HISTORY_PAGE_EVENTS = 500


class ExecutionHandle(Generic[R]):
    """One run of a task or workflow. Without a run id it means the latest run of the id, whichever that is."""

    def __init__(
        self,
        client: Caller,
        workflow_id: str,
        run_id: str = "",
        durability: Durability | None = None,
        *,
        result_type: Any = Any,
    ) -> None:
        self._client = client
        self.workflow_id = workflow_id
        self.run_id = run_id
        self.durability = durability
        """How durable the start was when the server answered it; None if this handle started nothing, or if the server
        does not say."""
        self._result_type = result_type

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.workflow_id} run {self.run_id or 'latest'}>"

    @overload
    async def result(self) -> R: ...
    @overload
    async def result(self, type: type[T]) -> T: ...
    async def result(self, type: Any = None) -> Any:
        """Wait until it is over and return what it returned, as `type` if one is given.

        Without one it is read as what the workflow that the handle was made for is annotated with, and is plain JSON
        where only its name is known.

        The server tells it the moment it happens; nothing polls. A lost connection only makes the client ask again.
        It waits without limit: bound it with `trio.fail_after`; on cancel the server is told that nobody waits.

        Raises `TaskFailed`, `TaskCanceled`, `TaskTerminated` or `TaskTimedOut` for any other end, `CallFailed` with
        status 404 for an execution that the server does not know, `BadBody` for a result that is no `type`, and
        `CodecError` for one whose key is not here.
        """
        run_id = self.run_id
        while True:
            request = {"workflow_id": self.workflow_id, "run_id": run_id, "follow": True}
            closed = await self._client.wait(Op.AWAIT_EXECUTION, request, ClosedExecution)
            if closed.status is not Status.CONTINUED_AS_NEW:
                break
            run_id = ""
        converter = self._client.converter
        failure = converter.decode_failure(closed.raw_failure) if closed.raw_failure else None
        error = error_of(closed.workflow_id, closed.run_id, closed.status, failure, closed.reason)
        if error is not None:
            raise error
        return converter.decode(closed.result, type or self._result_type) if closed.result else None

    async def describe(self) -> ExecutionInfo:
        """Where it stands, with its input, and its result or failure once it has one."""
        return (await self._client.call(Op.DESCRIBE_WORKFLOW, self._run(), Described)).info

    def history(self, *, follow: bool = False) -> AsyncIterator[HistoryEvent]:
        """Everything that happened to it so far, oldest first, fetched page by page while you iterate.

        With `follow` it goes on with what happens, as it happens, until the run is closed; it waits without limit, as
        `result` does, and stays with the run that it began with. With a server that cannot do that, as Go's, it is a
        `CallFailed` with status 501.
        """
        if not follow:
            return Pages(self._page, 0)
        return Pages[HistoryEvent, tuple[int, str] | None](self._follow, (0, self.run_id))

    async def _page(self, after: int) -> tuple[list[HistoryEvent], int]:
        request = self._run(after_event_id=after, page_size=HISTORY_PAGE_EVENTS)
        page = await self._client.call(Op.GET_WORKFLOW_HISTORY, request, HistoryPage)
        return page.events, page.next_cursor

    async def _follow(self, place: tuple[int, str] | None) -> tuple[list[HistoryEvent], tuple[int, str] | None]:
        assert place is not None, "None ends the list"
        after, run_id = place
        request = self._run(run_id=run_id, after_event_id=after, page_size=HISTORY_PAGE_EVENTS, wait=True)
        page = await self._client.wait(Op.GET_WORKFLOW_HISTORY, request, HistoryPage)
        if page.is_open is None:
            raise CallFailed(501, "this server does not tell when a history grows", opcode=Op.GET_WORKFLOW_HISTORY)
        if page.is_open or page.next_cursor:
            return page.events, (page.events[-1].event_id if page.events else after, page.run_id)
        return page.events, None

    @overload
    def output(self, type: type[T], *, after: int = 0) -> AsyncIterator[OutputItem[T]]: ...
    @overload
    def output(self, *, after: int = 0) -> AsyncIterator[OutputItem[Any]]: ...
    def output(self, type: Any = Any, *, after: int = 0) -> AsyncIterator[OutputItem[Any]]:
        """What its activities emit, as it comes, from the first item past the number `after` that the server still has.

        It ends when the execution is closed, with every run that follows it; what was emitted before can be read for a
        minute after that. Values are read as `type`. Nothing is durable: items may be missing, and `is_after_gap` of
        the next one says so. Waits without limit, and may be canceled. Raises `CallFailed` with status 404 for an
        execution that the server does not know, and 501 for a server that has no output.
        """
        return read_output(self._client, self.workflow_id, self.run_id, after, type)

    async def explain(self) -> list[Waiting]:
        """What it waits for: a worker, a retry, a timer, and how its workflow task failed. Empty once it is closed."""
        return (await self._client.call(Op.EXPLAIN, self._run(), Explained)).waits_for

    async def cancel(self, reason: str = "", *, durability: Durability | None = None) -> Acknowledged:
        """Ask it to stop: what runs is canceled and may clean up, what waits never starts. No error if it is over."""
        return await self._client.call(Op.CANCEL_WORKFLOW, self._end(reason) | asked(durability), Acknowledged)

    async def terminate(self, reason: str = "", *, durability: Durability | None = None) -> Acknowledged:
        """End it at once, without asking it. No error if it is over."""
        return await self._client.call(Op.TERMINATE_WORKFLOW, self._end(reason) | asked(durability), Acknowledged)

    def _run(self, **more: object) -> dict[str, object]:
        return {"workflow_id": self.workflow_id, "run_id": self.run_id, **more}

    def _end(self, reason: str) -> dict[str, object]:
        return self._run(reason=reason, identity=self._client.identity)


class TaskHandle(ExecutionHandle[Any]):
    """A one-shot task, as `client.now` returns it."""


class WorkflowHandle(ExecutionHandle[R]):
    """A workflow.

    Signals, queries and updates are named by their methods, from which type checkers know what they take and return
    (`handle.query(Order.state)`), or by text.
    """

    @overload
    async def signal(
        self, signal: Callable[[Any], Any], /, *, durability: Durability | None = None
    ) -> Acknowledged: ...
    @overload
    async def signal(
        self, signal: Callable[[Any, V], Any], value: V, /, *, durability: Durability | None = None
    ) -> Acknowledged: ...
    @overload
    async def signal(
        self, signal: str, value: object = None, /, *, durability: Durability | None = None
    ) -> Acknowledged: ...
    async def signal(
        self, signal: str | Callable[..., Any], value: object = None, /, *, durability: Durability | None = None
    ) -> Acknowledged:
        """Send it a signal. Not repeated by itself: `OutcomeUnknown` means that it may have arrived."""
        request = self._run(identity=self._client.identity) | asked(durability)
        request |= signal_body(self._client.converter, signal, value, "input")
        return await self._client.call(Op.SIGNAL_WORKFLOW, request, Acknowledged, repeat=False)

    @overload
    async def query(self, query: Callable[[Any, Unpack[Ts]], T], /, *args: *Ts) -> T: ...
    @overload
    async def query(self, query: str, /, *args: object) -> Any: ...
    async def query(self, query: Any, /, *args: *Ts) -> Any:
        """Ask the worker that runs it, and return the answer, read as the method is annotated.

        Raises `CallFailed`: status 404 without a worker, 400 with the error of the query, 504 when it takes too long;
        and `BadBody` for an answer of another type.
        """
        converter = self._client.converter
        name = handler_name("query", query)
        timeout_ms = round(self._client.timeout * 1000)
        request = self._run(query_type=name, timeout_ms=timeout_ms)
        if args:
            request["args"] = converter.encode_arguments(args, f"the arguments of query {name!r}")
        try:
            answer = await self._client.call(Op.QUERY_WORKFLOW, request, QueryAnswer)
        except CallFailed as error:
            raise refusal(error.status, converter.find_text(error.detail), opcode=error.opcode) from None
        return converter.decode(answer.query_result, _answer_type(query)) if answer.query_result else None

    @overload
    async def update(
        self, update: Callable[[Any, Unpack[Ts]], Coroutine[Any, Any, T]], /, *args: *Ts, id: str = ""
    ) -> T: ...
    @overload
    async def update(self, update: Callable[[Any, Unpack[Ts]], T], /, *args: *Ts, id: str = "") -> T: ...
    @overload
    async def update(self, update: str, /, *args: object, id: str = "") -> Any: ...
    async def update(self, update: Any, /, *args: *Ts, id: str = "") -> Any:
        """Have it handle an update, and return what the handler returns, read as the method is annotated.

        It waits without limit, as `result` does. A lost connection only makes the client ask again:
        `id` names the update within the run; a repeat with the same one gets the same answer and nothing is done twice.

        Raises `UpdateRejected` if the workflow did not want it, `UpdateFailed` with what its handler raised,
        `CallFailed` with status 404 for a workflow that is not open, and `BadBody` for an answer of another type.
        """
        converter = self._client.converter
        name, body = update_body(converter, update, args, id)
        answer = await self._client.wait_updated(Op.UPDATE_WORKFLOW, name, self._run(**body))
        return update_outcome(converter, update, name, answer)

    async def export_history(self) -> WorkflowHistory:
        """Its whole history as it stands now, for a file and for `Replayer`; payloads stay as the server has them."""
        info = await self.describe()
        request = {"workflow_id": info.workflow_id, "run_id": info.run_id, "page_size": HISTORY_PAGE_EVENTS}
        page = await self._client.call(Op.GET_WORKFLOW_HISTORY, request, EventPage)
        events = page.events
        while page.next_cursor:
            request["after_event_id"] = page.next_cursor
            page = await self._client.call(Op.GET_WORKFLOW_HISTORY, request, EventPage)
            events += page.events
        return WorkflowHistory(
            namespace=self._client.namespace,
            workflow_id=info.workflow_id,
            run_id=info.run_id,
            workflow_type=info.type,
            events=events,
        )

    async def reset(
        self, event_id: int, reason: str = "", *, durability: Durability | None = None
    ) -> WorkflowHandle[R]:
        """End this run and start another from its input, with its history up to `event_id`. Not repeated by itself."""
        request = self._end(reason) | {"event_id": event_id} | asked(durability)
        started = await self._client.call(Op.RESET_WORKFLOW, request, Started, repeat=False)
        return WorkflowHandle(
            self._client, self.workflow_id, started.run_id, started.durability, result_type=self._result_type
        )


def signal_body(
    converter: DataConverter, signal: str | Callable[..., Any], value: object, key: str
) -> dict[str, object]:
    """What says in a request which signal it is, and its value under `key`."""
    name = handler_name("signal", signal)
    encoded = converter.encode_optional(value, f"the value of signal {name!r}")
    return {"signal_name": name} if encoded is None else {"signal_name": name, key: encoded}


def update_body(
    converter: DataConverter, update: object, args: tuple[object, ...], id: str
) -> tuple[str, dict[str, object]]:
    """The name of an update, and what says in a request which it is."""
    name = handler_name("update", update)
    body: dict[str, object] = {"update_name": name, "update_id": id or uuid4().hex, "wait": "completed"}
    if args:
        body["args"] = converter.encode_arguments(args, f"the arguments of update {name!r}")
    return name, body


def update_outcome(converter: DataConverter, update: object, name: str, answer: UpdateAnswer) -> Any:
    """What an update came to. Raises `UpdateFailed`."""
    if answer.raw_failure:
        raise UpdateFailed(name, converter.decode_failure(answer.raw_failure))
    return converter.decode(answer.result, _answer_type(update)) if answer.result else None


def _answer_type(method: object) -> Any:
    return result_type(method) if callable(method) else Any
