"""What the blocking client asks of a server: the calls of `AsyncClient`, by the same names and with the same meaning.

Where a call starts something it returns the blocking handle of it, and where the async one gives an async iterator this
one gives an iterator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime

from zaptasks.client import PAGE_SIZE, AsyncClient, Executions, Moments, Namespaces, Schedules
from zaptasks.options import Durability, RetryPolicy, Seconds
from zaptasks.records import (
    Acknowledged,
    ExecutionInfo,
    Health,
    NamespaceInfo,
    ScheduleInfo,
    ScheduleSpec,
    StartTask,
    StartWorkflow,
)

from .handles import BlockingExecutionHandle, BlockingTaskHandle, BlockingWorkflowHandle, Items, documented_by
from .loop import ClientLoop


@documented_by(AsyncClient)
class ServerCalls:
    """The calls that only a server can answer. They go over ZAP and never run anything in this process.

    Each raises `NotSent` at once where no ZAP address is configured, `NotSent` or `OutcomeUnknown` where the server is
    away for longer than the client's `timeout`, and `CallFailed` for an answer that says no.
    """

    def __init__(self, loop: ClientLoop) -> None:
        self._loop = loop

    # --- tasks ---------------------------------------------------------------------------------------

    def start_task(
        self,
        type: str,
        payload: object = None,
        *,
        id: str = "",
        task_queue: str = "default",
        request_id: str = "",
        retry_policy: RetryPolicy | None = None,
        start_to_close: Seconds | None = None,
        schedule_to_start: Seconds | None = None,
        schedule_to_close: Seconds | None = None,
        heartbeat_timeout: Seconds | None = None,
        memo: Mapping[str, object] | None = None,
        durability: Durability | None = None,
    ) -> BlockingTaskHandle:
        started = self._loop.server.start_task(
            type,
            payload,
            id=id,
            task_queue=task_queue,
            request_id=request_id,
            retry_policy=retry_policy,
            start_to_close=start_to_close,
            schedule_to_start=schedule_to_start,
            schedule_to_close=schedule_to_close,
            heartbeat_timeout=heartbeat_timeout,
            memo=memo,
            durability=durability,
        )
        return BlockingTaskHandle(self._loop, self._loop.run(started))

    def dead_letters(self, limit: int = PAGE_SIZE) -> Executions:
        return self._loop.run(self._loop.server.dead_letters(limit))

    def requeue_dead_letter(
        self, id: str, run_id: str = "", *, durability: Durability | None = None
    ) -> BlockingTaskHandle:
        requeued = self._loop.server.requeue_dead_letter(id, run_id, durability=durability)
        return BlockingTaskHandle(self._loop, self._loop.run(requeued))

    # --- workflows -----------------------------------------------------------------------------------

    def start_workflow(
        self,
        type: str,
        *args: object,
        id: str = "",
        task_queue: str = "default",
        request_id: str = "",
        retry_policy: RetryPolicy | None = None,
        execution_timeout: Seconds | None = None,
        run_timeout: Seconds | None = None,
        cron: str = "",
        memo: Mapping[str, object] | None = None,
        search_attributes: Mapping[str, object] | None = None,
        durability: Durability | None = None,
    ) -> BlockingWorkflowHandle:
        started = self._loop.server.start_workflow(
            type,
            *args,
            id=id,
            task_queue=task_queue,
            request_id=request_id,
            retry_policy=retry_policy,
            execution_timeout=execution_timeout,
            run_timeout=run_timeout,
            cron=cron,
            memo=memo,
            search_attributes=search_attributes,
            durability=durability,
        )
        return BlockingWorkflowHandle(self._loop, self._loop.run(started))

    def signal_with_start(
        self,
        type: str,
        *args: object,
        id: str,
        signal: str,
        signal_value: object = None,
        task_queue: str = "default",
        request_id: str = "",
        retry_policy: RetryPolicy | None = None,
        execution_timeout: Seconds | None = None,
        run_timeout: Seconds | None = None,
        memo: Mapping[str, object] | None = None,
        search_attributes: Mapping[str, object] | None = None,
        durability: Durability | None = None,
    ) -> BlockingWorkflowHandle:
        started = self._loop.server.signal_with_start(
            type,
            *args,
            id=id,
            signal=signal,
            signal_value=signal_value,
            task_queue=task_queue,
            request_id=request_id,
            retry_policy=retry_policy,
            execution_timeout=execution_timeout,
            run_timeout=run_timeout,
            memo=memo,
            search_attributes=search_attributes,
            durability=durability,
        )
        return BlockingWorkflowHandle(self._loop, self._loop.run(started))

    def get_handle(self, id: str, run_id: str = "") -> BlockingWorkflowHandle:
        return BlockingWorkflowHandle(self._loop, self._loop.server.get_handle(id, run_id))

    def list(self, query: str = "", *, page_size: int = PAGE_SIZE) -> Iterator[ExecutionInfo]:
        return Items(self._loop, self._loop.server.list(query, page_size=page_size))

    # --- schedules -----------------------------------------------------------------------------------

    def create_schedule(
        self,
        id: str,
        spec: ScheduleSpec | str,
        action: StartTask | StartWorkflow,
        *,
        paused: bool = False,
        overlap: str = "",
        catchup_window: Seconds | None = None,
        pause_on_failure: bool = False,
        remaining_actions: int | None = None,
        durability: Durability | None = None,
    ) -> ScheduleInfo:
        created = self._loop.server.create_schedule(
            id,
            spec,
            action,
            paused=paused,
            overlap=overlap,
            catchup_window=catchup_window,
            pause_on_failure=pause_on_failure,
            remaining_actions=remaining_actions,
            durability=durability,
        )
        return self._loop.run(created)

    def list_schedules(self) -> Schedules:
        return self._loop.run(self._loop.server.list_schedules())

    def describe_schedule(self, id: str) -> ScheduleInfo:
        return self._loop.run(self._loop.server.describe_schedule(id))

    def update_schedule(
        self,
        id: str,
        *,
        spec: ScheduleSpec | str | None = None,
        action: StartTask | StartWorkflow | None = None,
        paused: bool | None = None,
        overlap: str = "",
        catchup_window: Seconds | None = None,
        pause_on_failure: bool | None = None,
        remaining_actions: int | None = None,
        durability: Durability | None = None,
    ) -> ScheduleInfo:
        updated = self._loop.server.update_schedule(
            id,
            spec=spec,
            action=action,
            paused=paused,
            overlap=overlap,
            catchup_window=catchup_window,
            pause_on_failure=pause_on_failure,
            remaining_actions=remaining_actions,
            durability=durability,
        )
        return self._loop.run(updated)

    def pause_schedule(self, id: str, note: str = "", *, durability: Durability | None = None) -> Acknowledged:
        return self._loop.run(self._loop.server.pause_schedule(id, note, durability=durability))

    def unpause_schedule(self, id: str, note: str = "", *, durability: Durability | None = None) -> Acknowledged:
        return self._loop.run(self._loop.server.unpause_schedule(id, note, durability=durability))

    def trigger_schedule(
        self, id: str, *, overlap: str = "", request_id: str = "", durability: Durability | None = None
    ) -> BlockingExecutionHandle | None:
        triggered = self._loop.server.trigger_schedule(
            id, overlap=overlap, request_id=request_id, durability=durability
        )
        handle = self._loop.run(triggered)
        return None if handle is None else BlockingExecutionHandle(self._loop, handle)

    def backfill_schedule(
        self, id: str, start: datetime, end: datetime, *, overlap: str = "buffer-all", request_id: str = ""
    ) -> int:
        filled = self._loop.server.backfill_schedule(id, start, end, overlap=overlap, request_id=request_id)
        return self._loop.run(filled)

    def schedule_times(self, schedule: str | ScheduleSpec, start: datetime, end: datetime) -> Moments:
        return self._loop.run(self._loop.server.schedule_times(schedule, start, end))

    def delete_schedule(self, id: str, *, durability: Durability | None = None) -> Acknowledged:
        return self._loop.run(self._loop.server.delete_schedule(id, durability=durability))

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

    def list_namespaces(self) -> Namespaces:
        return self._loop.run(self._loop.server.list_namespaces())

    def health(self) -> Health:
        return self._loop.run(self._loop.server.health())
