"""What the blocking client asks of a server: the calls of `AsyncClient`, by the same names and with the same meaning.

Where a call starts something it returns the blocking handle of it, and where the async one gives an async iterator this
one gives an iterator.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

from zaptasks.client import PAGE_SIZE, AsyncClient, Executions, Namespaces
from zaptasks.options import Durability, Seconds
from zaptasks.records import ExecutionInfo, Health, NamespaceInfo
from zaptasks.task_request import TaskOptions

from .handles import BlockingActivityTokenHandle, BlockingTaskHandle, Items, documented_by
from .schedule_calls import BlockingScheduleCalls
from .stepping import Loop
from .workflow_calls import BlockingWorkflowCalls


@documented_by(AsyncClient)
class ServerCalls(BlockingWorkflowCalls, BlockingScheduleCalls):
    """The calls that only a server can answer. They go over ZAP and never run anything in this process.

    Each raises `NotSent` at once where no ZAP address is configured, `NotSent` or `OutcomeUnknown` where the server is
    away for longer than the client's `timeout`, and `CallFailed` for an answer that says no.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    # --- tasks ---------------------------------------------------------------------------------------

    def start_task(self, type: str, payload: object = None, **options: Unpack[TaskOptions]) -> BlockingTaskHandle:
        started = self._loop.server.start_task(type, payload, **options)
        return BlockingTaskHandle(self._loop, self._loop.run(started))

    def dead_letters(self, limit: int = PAGE_SIZE) -> Executions:
        return self._loop.run(self._loop.server.dead_letters(limit))

    def requeue_dead_letter(
        self, id: str, run_id: str = "", *, durability: Durability | None = None
    ) -> BlockingTaskHandle:
        requeued = self._loop.server.requeue_dead_letter(id, run_id, durability=durability)
        return BlockingTaskHandle(self._loop, self._loop.run(requeued))

    def list(self, query: str = "", *, page_size: int = PAGE_SIZE) -> Iterator[ExecutionInfo]:
        return Items(self._loop, self._loop.server.list(query, page_size=page_size))

    # --- namespaces and health -------------------------------------------------------------------------

    def register_namespace(
        self, name: str, *, description: str = "", owner_email: str = "", retention: Seconds | None = None
    ) -> NamespaceInfo:
        registered = self._loop.server.register_namespace(
            name, description=description, owner_email=owner_email, retention=retention
        )
        return self._loop.run(registered)

    def describe_namespace(self, name: str = "") -> NamespaceInfo:
        return self._loop.run(self._loop.server.describe_namespace(name))

    def get_activity_handle(self, token: str) -> BlockingActivityTokenHandle:
        return BlockingActivityTokenHandle(self._loop, self._loop.server.get_activity_handle(token))

    def list_namespaces(self) -> Namespaces:
        return self._loop.run(self._loop.server.list_namespaces())

    def health(self) -> Health:
        return self._loop.run(self._loop.server.health())
