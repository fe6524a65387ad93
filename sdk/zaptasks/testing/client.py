"""The client of an environment: it does not wait for what never comes, but says what that is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from typing import TypeVar

from zaptasks.client import AsyncClient
from zaptasks.connector import ConnectionCount, Connector
from zaptasks.converters import DataConverter
from zaptasks.records import UpdateAnswer
from zaptasks.workflow.execution import STACK_TRACE
from zapwire.client_link import ReconnectingLink
from zapwire.errors import CallFailed

from .skipping import Skipper, Wait

T = TypeVar("T")


class Stuck(AssertionError):
    """What a test waits for never comes. The message says what it hangs on, and where the workflow's code waits."""


class EnvironmentClient(AsyncClient):
    """An `AsyncClient` whose waits end with `Stuck` when nothing can end them."""

    def __init__(
        self,
        link: ReconnectingLink,
        connector: Connector,
        connections: ConnectionCount,
        skipper: Skipper,
        converter: DataConverter,
    ) -> None:
        super().__init__(link, connector, connections, namespace="default", timeout=10.0, converter=converter)
        self._skipper = skipper

    async def wait(self, opcode: int, request: Mapping[str, object], type: type[T]) -> T:
        with self._waiting(request) as wait:
            return await super().wait(opcode, request, type)
        raise await self._stuck(wait)

    async def wait_updated(self, opcode: int, name: str, request: Mapping[str, object]) -> UpdateAnswer:
        with self._waiting(request) as wait:
            return await super().wait_updated(opcode, name, request)
        raise await self._stuck(wait)

    def _waiting(self, request: Mapping[str, object]) -> AbstractContextManager[Wait]:
        return self._skipper.waiting(str(request.get("workflow_id", "")), str(request.get("run_id", "")))

    async def _stuck(self, wait: Wait) -> Stuck:
        handle = self.get_handle(wait.workflow_id, wait.run_id)
        lines = [f"{wait.workflow_id} never ends: {wait.why_never}"]
        lines += [f"  {waiting.what}: {waiting.reason}" for waiting in await handle.explain()]
        with suppress(CallFailed):  # nobody runs it, or it is of the other kind
            stack = (await handle.query(STACK_TRACE))["stack"]
            lines += [f"  {line}" for line in stack.splitlines()]
        return Stuck("\n".join(lines))


@asynccontextmanager
async def open_environment_client(
    connector: Connector, skipper: Skipper, converter: DataConverter
) -> AsyncIterator[EnvironmentClient]:
    """A client for the length of the block."""
    connections = ConnectionCount()
    async with connector.open(on_connected=connections.add) as link:
        client = EnvironmentClient(link, connector, connections, skipper, converter)
        try:
            yield client
        finally:
            client.mark_closed()
