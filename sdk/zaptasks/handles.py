"""Handles: one execution on the server, to wait for, look at and steer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeVar, overload
from uuid import uuid4

from zapwire.errors import CallFailed
from zapwire.opcodes import Op

from .errors import UpdateFailed, refusal
from .exported import WorkflowHistory
from .options import Durability, asked
from .pages import Pages
from .records import (
    Acknowledged,
    Described,
    ExecutionInfo,
    Explained,
    HistoryEvent,
    HistoryPage,
    QueryAnswer,
    Started,
    Status,
    Waiting,
    error_of,
)
from .workflow.history import EventPage

if TYPE_CHECKING:
    from .client import AsyncClient

T = TypeVar("T")

HISTORY_PAGE_EVENTS = 500


class ExecutionHandle:
    """One run of a task or workflow. Without a run id it means the latest run of the id, whichever that is."""

    def __init__(
        self, client: AsyncClient, workflow_id: str, run_id: str = "", durability: Durability | None = None
    ) -> None:
        self._client = client
        self.workflow_id = workflow_id
        self.run_id = run_id
        self.durability = durability
        """How durable the start was when the server answered it; None if this handle started nothing, or if the server
        does not say."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.workflow_id} run {self.run_id or 'latest'}>"

    @overload
    async def result(self) -> Any: ...
    @overload
    async def result(self, type: type[T]) -> T: ...
    async def result(self, type: Any = Any) -> Any:
        """Wait until it is over and return what it returned, as `type` if one is given.

        The server tells it the moment it happens; nothing polls. A lost connection only makes the client ask again.
        It waits without limit: bound it with `trio.fail_after`; on cancel the server is told that nobody waits.

        Raises `TaskFailed`, `TaskCanceled`, `TaskTerminated` or `TaskTimedOut` for any other end, `CallFailed` with
        status 404 for an execution that the server does not know, `BadBody` for a result that is no `type`, and
        `CodecError` for one whose key is not here.
        """
        run_id = self.run_id
        while True:
            closed = await self._client.wait_closed(self.workflow_id, run_id)
            if closed.status is not Status.CONTINUED_AS_NEW:
                break
            run_id = ""
        converter = self._client.converter
        failure = converter.decode_failure(closed.raw_failure) if closed.raw_failure else None
        error = error_of(closed.workflow_id, closed.run_id, closed.status, failure, closed.reason)
        if error is not None:
            raise error
        return converter.decode(closed.result, type) if closed.result else None

    async def describe(self) -> ExecutionInfo:
        """Where it stands, with its input, and its result or failure once it has one."""
        return (await self._client.call(Op.DESCRIBE_WORKFLOW, self._run(), Described)).info

    def history(self) -> AsyncIterator[HistoryEvent]:
        """Everything that happened to it so far, oldest first, fetched page by page while you iterate."""

        async def fetch(after: int) -> tuple[list[HistoryEvent], int]:
            request = self._run(after_event_id=after, page_size=HISTORY_PAGE_EVENTS)
            page = await self._client.call(Op.GET_WORKFLOW_HISTORY, request, HistoryPage)
            return page.events, page.next_cursor

        return Pages(fetch, 0)

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


class TaskHandle(ExecutionHandle):
    """A one-shot task, as `client.now` returns it."""


class WorkflowHandle(ExecutionHandle):
    """A workflow."""

    async def signal(self, name: str, value: object = None, *, durability: Durability | None = None) -> Acknowledged:
        """Send it a signal. Not repeated by itself: `OutcomeUnknown` means that it may have arrived."""
        request = self._run(signal_name=name, identity=self._client.identity) | asked(durability)
        encoded = self._client.converter.encode_optional(value, f"the value of signal {name!r}")
        if encoded is not None:
            request["input"] = encoded
        return await self._client.call(Op.SIGNAL_WORKFLOW, request, Acknowledged, repeat=False)

    async def query(self, name: str, *args: object) -> Any:
        """Ask the worker that runs it, and return the answer.

        Raises `CallFailed`: status 404 without a worker, 400 with the error of the query, 504 when it takes too long.
        """
        converter = self._client.converter
        timeout_ms = round(self._client.timeout * 1000)
        request = self._run(query_type=name, timeout_ms=timeout_ms)
        if args:
            request["args"] = converter.encode_arguments(args, f"the arguments of query {name!r}")
        try:
            answer = await self._client.call(Op.QUERY_WORKFLOW, request, QueryAnswer)
        except CallFailed as error:
            raise refusal(error.status, converter.find_text(error.detail), opcode=error.opcode) from None
        return converter.decode(answer.query_result) if answer.query_result else None

    async def update(self, name: str, *args: object, id: str = "") -> Any:
        """Have it handle an update, and return what the handler returns.

        It waits without limit, as `result` does. A lost connection only makes the client ask again:
        `id` names the update within the run; a repeat with the same one gets the same answer and nothing is done twice.

        Raises `UpdateRejected` if the workflow did not want it, `UpdateFailed` with what its handler raised, and
        `CallFailed` with status 404 for a workflow that is not open.
        """
        converter = self._client.converter
        request = self._run(update_id=id or uuid4().hex, wait="completed")
        if args:
            request["args"] = converter.encode_arguments(args, f"the arguments of update {name!r}")
        answer = await self._client.wait_updated(name, request)
        if answer.raw_failure:
            raise UpdateFailed(name, converter.decode_failure(answer.raw_failure))
        return converter.decode(answer.result) if answer.result else None

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

    async def reset(self, event_id: int, reason: str = "", *, durability: Durability | None = None) -> WorkflowHandle:
        """End this run and start another from its input, with its history up to `event_id`. Not repeated by itself."""
        request = self._end(reason) | {"event_id": event_id} | asked(durability)
        started = await self._client.call(Op.RESET_WORKFLOW, request, Started, repeat=False)
        return WorkflowHandle(self._client, self.workflow_id, started.run_id, started.durability)
