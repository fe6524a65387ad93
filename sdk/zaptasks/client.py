"""The client for trio: starts work on a server, waits for it, looks at it, and steers it.

    async with zaptasks.open_client("127.0.0.1:9999") as client:
        handle = await client.now("email.send", {"to": "ada@example.org"})
        print(await handle.result())

Calls that are safe to repeat are repeated: after a lost connection the client asks again, within the call's
timeout, and every start carries a request id that makes the repeat harmless. So `OutcomeUnknown` means that the
server stayed away for the whole timeout.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeAlias, Unpack

import trio

from zapwire.client_link import Backoff
from zapwire.errors import CallFailed
from zapwire.opcodes import Op

from .activity_handle import ActivityTokenHandle
from .connector import ZAP_PORT, ConnectionCount, Connector, default_identity, parse_address
from .converters import PLAIN, DataConverter
from .groups import unwrapped
from .handles import TaskHandle
from .headers import HeaderSource
from .options import (
    Bodies,
    Durability,
    Seconds,
    asked,
    check_bodies,
    check_options,
    present,
    to_ms,
    to_seconds,
)
from .pages import Pages
from .records import ExecutionInfo, ExecutionPage, Health, NamespaceInfo, NamespaceList, Started
from .schedule_calls import ScheduleCalls
from .task_request import TaskOptions, TaskRequest
from .workflow_calls import WorkflowCalls

# Inside the class, `list` is the method.
Executions: TypeAlias = list[ExecutionInfo]
Namespaces: TypeAlias = list[NamespaceInfo]

PAGE_SIZE: Final = 100
"""Executions that one call fetches, unless it is told otherwise."""


class AsyncClient(WorkflowCalls, ScheduleCalls):
    """A connection to a server that heals itself, and the calls. Made by `open_client`.

    Any number of trio tasks may use it at once. Every call raises `CallFailed` for an answer that says no (`ServerBusy`
    is one that says "not now"), `NotSent` or `OutcomeUnknown` when the server is away for longer than `timeout`
    seconds, and can be canceled at any time.
    """

    # --- tasks ---------------------------------------------------------------------------------------

    async def start_task(self, type: str, payload: object = None, **options: Unpack[TaskOptions]) -> TaskHandle:
        """Start a one-shot task: stored, run by a worker that serves `type`, retried, and its result kept.

        `TaskOptions` says what the options are. Raises `PayloadError` for a payload that JSON cannot carry. An id that
        is open already is a `CallFailed` with status 409, unless `id_conflict_policy` says otherwise.
        """
        check_options(options, TaskOptions, "start_task")
        request = TaskRequest.make(
            type,
            payload,
            identity=self.identity,
            header_source=self._header_source,
            converter=self.converter,
            **options,
        )
        started = await self.submit(request)
        return TaskHandle(self, started.workflow_id, started.run_id, started.durability)

    now = start_task
    """The short name, as the blocking client has it."""

    async def submit(self, request: TaskRequest, *, repeat: bool = True) -> Started:
        """Send a request that was made before; without `repeat` only once."""
        return await self._call_raw(request.to_zap(self.namespace), Op.TASK_SUBMIT, Started, repeat=repeat)

    async def dead_letters(self, limit: int = PAGE_SIZE) -> Executions:
        """The tasks that failed for good, oldest first; at most `limit`, up to 1,000.

        With their failures, of which the longest may be cut off; a handle's `describe` has everything.
        """
        request = {"page_size": limit}
        return (await self.call(Op.LIST_DEAD_LETTERS, request, ExecutionPage)).dead_letters

    async def requeue_dead_letter(
        self, id: str, run_id: str = "", *, durability: Durability | None = None
    ) -> TaskHandle:
        """Run a dead letter again: a new run of the same id and input. Not repeated by itself."""
        request = {"workflow_id": id, "run_id": run_id, "identity": self.identity} | asked(durability)
        started = await self.call(Op.REQUEUE_DEAD_LETTER, request, Started, repeat=False)
        return TaskHandle(self, started.workflow_id, started.run_id, started.durability)

    def list(self, query: str = "", *, page_size: int = PAGE_SIZE) -> AsyncIterator[ExecutionInfo]:
        """Tasks and workflows, newest first, fetched page by page while you iterate.

        `query` is such as `WorkflowType = 'Order' AND ExecutionStatus = 'Running'`, or `Kind = 'task'`; a query that
        cannot be read is a `CallFailed` with status 400.
        """

        async def fetch(token: str) -> tuple[Executions, str]:
            request = {"query": query, "page_size": page_size, "next_page_token": token}
            page = await self.call(Op.LIST_WORKFLOWS, request, ExecutionPage)
            return page.executions, page.next_page_token

        return Pages(fetch, "")

    # --- namespaces and health -------------------------------------------------------------------------

    async def register_namespace(
        self, name: str, *, description: str = "", owner_email: str = "", retention: Seconds | None = None
    ) -> NamespaceInfo:
        """Create a namespace; one that exists keeps its work and takes the new description."""
        request = present(
            name=name, description=description, owner_email=owner_email, retention_ms=to_ms(retention, "retention")
        )
        return await self.call(Op.REGISTER_NAMESPACE, request, NamespaceInfo)

    async def describe_namespace(self, name: str = "") -> NamespaceInfo:
        """A namespace by name, by default the client's own."""
        request = {"name": name or self.namespace, "namespace": name or self.namespace}
        return await self.call(Op.DESCRIBE_NAMESPACE, request, NamespaceInfo)

    async def list_namespaces(self) -> Namespaces:
        """Every namespace of the server."""
        return (await self.call(Op.LIST_NAMESPACES, {}, NamespaceList)).namespaces

    async def health(self) -> Health:
        """Ask the server how it is."""
        return await self.call(Op.HEALTH, {}, Health)

    # --- activities ------------------------------------------------------------------------------------

    def get_activity_handle(self, token: str) -> ActivityTokenHandle:
        """An attempt that was left open with `activity.complete_later()`, to complete or fail it. Makes no call."""
        return ActivityTokenHandle(self, token)


@asynccontextmanager
async def open_client(
    zap: str = "",
    *,
    namespace: str = "default",
    identity: str = "",
    ssl_context: ssl.SSLContext | None = None,
    timeout: Seconds = 10.0,
    wait: bool = True,
    backoff: Backoff | None = None,
    headers: HeaderSource | None = None,
    converter: DataConverter = PLAIN,
    bodies: Bodies = "json",
) -> AsyncIterator[AsyncClient]:
    """Connect to the server at `zap` ("host:port"; by default `TASKS_ZAP`, else this machine's port 9999).

    The block is entered when the server has answered, and `NotSent` or `OutcomeUnknown` raised if it does not within
    `timeout`. With `wait=False` it is entered at once, and the first calls wait instead. After that the connection is
    kept by itself. `timeout` bounds every call; `identity` is who this client is to people, by default host@pid.
    `headers` is called at each start of a task or workflow, in the task that makes it, for the headers of the moment,
    such as the trace id of a request. `converter` encodes and decodes payloads, here and in the workers of this client:
    compression, encryption. With `bodies="cbor"` calls, answers and what its workers are sent travel as CBOR where the
    server can read it.
    """
    address = zap or os.environ.get("TASKS_ZAP", "") or f"127.0.0.1:{ZAP_PORT}"
    host, port = parse_address(address)
    connector = Connector(
        host=host,
        port=port,
        identity=identity or default_identity(),
        ssl_context=ssl_context,
        backoff=backoff,
        bodies=check_bodies(bodies),
    )
    seconds = to_seconds(timeout, "timeout")
    if not seconds:
        raise ValueError(f"timeout is {timeout!r}: a call needs more than 0 seconds")
    require_trio("zaptasks.open_client", "under asyncio use zaptasks.aio.open_client")
    with unwrapped():
        connections = ConnectionCount()
        async with connector.open(on_connected=connections.add) as link:
            client = AsyncClient(
                link,
                connector,
                connections,
                namespace=namespace,
                timeout=seconds,
                headers=headers,
                converter=converter,
            )
            if wait:
                with suppress(CallFailed):  # whatever it says, it is there
                    await client.health()
            try:
                yield client
            finally:
                client.mark_closed()


def require_trio(what: str, instead: str) -> None:
    """Raise `RuntimeError` where trio does not run: which says `what` needs it, and what to do `instead`."""
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        raise RuntimeError(f"{what} runs under trio, and this is not trio: {instead}") from None
