"""The client for trio: starts work on a server, waits for it, looks at it, and steers it.

    async with zaptasks.open_client("127.0.0.1:9999") as client:
        handle = await client.now("email.send", {"to": "ada@example.org"})
        print(await handle.result())

Calls that are safe to repeat are repeated: after a lost connection the client asks again, within the call's
timeout, and every start carries a request id that makes the repeat harmless. So `OutcomeUnknown` means that the
server stayed away for the whole timeout.
"""

from __future__ import annotations

import math
import os
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Final, TypeAlias, TypeVar

import trio

from zapwire.body import decode_json, encode_json
from zapwire.client_link import Backoff, ReconnectingLink
from zapwire.envelope import Envelope, encode_task_schedule
from zapwire.errors import CallFailed, ConnectionLost, NotSent, OutcomeUnknown
from zapwire.opcodes import Op

from .connector import ZAP_PORT, ConnectionCount, Connector, default_identity, parse_address
from .converters import PLAIN, DataConverter
from .errors import ClientClosed, ServerBusy, UpdateRejected, refusal
from .groups import unwrapped
from .handles import ExecutionHandle, TaskHandle, WorkflowHandle
from .headers import Headers, HeaderSource, headers_of_start
from .options import Durability, RetryPolicy, Seconds, asked, present, to_ms, to_seconds, workflow_timeouts
from .pages import Pages
from .payloads import SMALL_PAYLOAD_BYTES_MAX, encode_optional
from .records import (
    Acknowledged,
    Backfilled,
    ClosedExecution,
    ExecutionInfo,
    ExecutionPage,
    Health,
    MatchingTimes,
    NamespaceInfo,
    NamespaceList,
    ScheduleInfo,
    ScheduleList,
    ScheduleSpec,
    Started,
    StartTask,
    StartWorkflow,
    Triggered,
    UpdateAnswer,
    moment_ms,
    reveal,
    with_receipt,
)
from .spec import Interval, parse_spec
from .submit_reply import read_submit_reply
from .task_request import TaskRequest

T = TypeVar("T")

# Inside the class, `list` is the method.
Executions: TypeAlias = list[ExecutionInfo]
Schedules: TypeAlias = list[ScheduleInfo]
Moments: TypeAlias = list[datetime]
Namespaces: TypeAlias = list[NamespaceInfo]

PAGE_SIZE: Final = 100
"""Executions that one call fetches, unless it is told otherwise."""

ASK_AGAIN_SECONDS: Final = 0.2
"""The pause before a call of unknown outcome is repeated to a server that takes nothing now."""


class AsyncClient:
    """A connection to a server that heals itself, and the calls. Made by `open_client`.

    Any number of trio tasks may use it at once. Every call raises `CallFailed` for an answer that says no (`ServerBusy`
    is one that says "not now"), `NotSent` or `OutcomeUnknown` when the server is away for longer than `timeout`
    seconds, and can be canceled at any time.
    """

    def __init__(
        self,
        link: ReconnectingLink,
        connector: Connector,
        connections: ConnectionCount,
        *,
        namespace: str,
        timeout: float,
        headers: HeaderSource | None = None,
        converter: DataConverter = PLAIN,
    ) -> None:
        self.namespace: Final = namespace
        self.converter: Final = converter
        self.timeout: Final = timeout
        self.connector: Final = connector
        self._header_source: Final = headers
        self._link = link
        self._is_closed = False
        self._connections = connections

    @property
    def identity(self) -> str:
        """Who this client is to people who look at the server."""
        return self.connector.identity

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection now."""
        return self._link.link is not None

    @property
    def peer_is_ours(self) -> bool:
        """Whether the server that we are connected to is of our kind, and not Go's."""
        link = self._link.link
        return link is not None and bool(link.capabilities)

    @property
    def why_disconnected(self) -> str:
        """What happened to the last connection, or to the last attempt at one."""
        return str(self._link.failure or "connecting")

    async def wait_first_attempt(self) -> None:
        """Wait until the first attempt to connect has ended, either way."""
        await self._link.first_attempt.wait()

    async def wait_connection(self, *, after: int) -> int:
        """Wait for a connection later than the `after`-th, and return its number; 0 is before the first."""
        return await self._connections.wait(after)

    # --- tasks ---------------------------------------------------------------------------------------

    async def start_task(
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
        headers: Headers | None = None,
        durability: Durability | None = None,
    ) -> TaskHandle:
        """Start a one-shot task: stored, run by a worker that serves `type`, retried, and its result kept.

        `request_id` names this submission: the same one again, here or from another process, starts nothing new and
        returns the first task. Without one the client makes one, for its own repeats.

        `start_to_close` bounds one attempt, `schedule_to_start` the wait for a worker, `schedule_to_close` all of it,
        and `heartbeat_timeout` the silence of a handler. Without any of them the server's defaults hold: ten minutes
        an attempt, ten attempts. Raises `PayloadError` for a payload that JSON cannot carry.

        `headers` are texts for everything that belongs to the task, at most 4 KiB: every attempt has them as
        `current_task().headers`. They are added to those that `open_client(headers=...)` gives, and win over them.

        `durability` is what the answer waits for; None is the server's own level, the strongest that it has. The
        handle's `durability` says what was reached, which is less on a server that keeps less. So in every call here.
        """
        request = TaskRequest.make(
            type,
            payload,
            identity=self.identity,
            id=id,
            task_queue=task_queue,
            request_id=request_id,
            retry_policy=retry_policy,
            start_to_close=start_to_close,
            schedule_to_start=schedule_to_start,
            schedule_to_close=schedule_to_close,
            heartbeat_timeout=heartbeat_timeout,
            memo=memo,
            headers=headers,
            header_source=self._header_source,
            durability=durability,
            converter=self.converter,
        )
        started = await self.submit(request)
        return TaskHandle(self, started.workflow_id, started.run_id, started.durability)

    now = start_task
    """The short name, as the blocking client has it."""

    async def submit(self, request: TaskRequest, *, repeat: bool = True) -> Started:
        """Send a request that was made before; without `repeat` only once."""
        return await self._call_raw(request.to_zap(self.namespace), Op.TASK_SUBMIT, Started, repeat=repeat)

    async def put_task_schedule(
        self,
        name: str,
        spec: str,
        *,
        task_queue: str = "default",
        retry_policy: RetryPolicy | None = None,
        durability: Durability | None = None,
    ) -> Acknowledged:
        """Create or replace the durable schedule `name`, which starts the task `name` at every time of `spec`.

        `spec` is a Go duration or a cron expression; anything else is a `ValueError` before any call. The same
        definition again changes nothing, so that every process may do this when it starts.
        """
        parsed = parse_spec(spec)
        is_interval = isinstance(parsed, Interval) and not parsed.on_second
        policy = None if retry_policy is None else retry_policy.to_wire()
        options = encode_json(
            present(namespace=self.namespace, identity=self.identity, task_queue=task_queue, retry_policy=policy)
            | asked(durability)
        )
        text = spec.strip()
        message = encode_task_schedule(
            name, interval=text if is_interval else "", cron="" if is_interval else text, options=options
        )
        return await self._call_raw(message, Op.TASK_SCHEDULE, Acknowledged)

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

    # --- workflows -----------------------------------------------------------------------------------

    async def start_workflow(
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
        headers: Headers | None = None,
        durability: Durability | None = None,
    ) -> WorkflowHandle:
        """Start a workflow. An id that is open already is a `CallFailed` with status 409.

        `execution_timeout` spans all runs of it (retries, cron), `run_timeout` one run. With `cron` it runs again and
        again, after each end.

        `headers` are texts for everything that belongs to the workflow, as in `start_task`: its activities, children
        and later runs have them too, as `current_task().headers` and `workflow.info().headers`.
        """
        request = self._start_request(
            type,
            args,
            id=id or f"{type}-{uuid.uuid4().hex}",
            task_queue=task_queue,
            request_id=request_id,
            retry_policy=retry_policy,
            execution_timeout=execution_timeout,
            run_timeout=run_timeout,
            cron=cron,
            memo=memo,
            search_attributes=search_attributes,
            headers=headers,
            durability=durability,
        )
        started = await self.call(Op.START_WORKFLOW, request, Started)
        return WorkflowHandle(self, started.workflow_id, started.run_id, started.durability)

    async def signal_with_start(
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
        headers: Headers | None = None,
        durability: Durability | None = None,
    ) -> WorkflowHandle:
        """Signal the workflow `id`, and start it first if it is not open. One step on the server.

        One that is open keeps the headers with which it was started.
        """
        request = self._start_request(
            type,
            args,
            id=id,
            task_queue=task_queue,
            request_id=request_id,
            retry_policy=retry_policy,
            execution_timeout=execution_timeout,
            run_timeout=run_timeout,
            memo=memo,
            search_attributes=search_attributes,
            headers=headers,
            durability=durability,
        )
        request["signal_name"] = signal
        encoded = self.converter.encode_optional(signal_value, f"the value of signal {signal!r}")
        if encoded is not None:
            request["signal_input"] = encoded
        started = await self.call(Op.SIGNAL_WITH_START, request, Started)
        return WorkflowHandle(self, started.workflow_id, started.run_id, started.durability)

    def _start_request(
        self,
        type: str,
        args: tuple[object, ...],
        *,
        id: str,
        task_queue: str,
        request_id: str,
        retry_policy: RetryPolicy | None,
        execution_timeout: Seconds | None,
        run_timeout: Seconds | None,
        memo: Mapping[str, object] | None,
        search_attributes: Mapping[str, object] | None,
        headers: Headers | None,
        durability: Durability | None,
        cron: str = "",
    ) -> dict[str, object]:
        return present(
            workflow_type=type,
            workflow_id=id,
            task_queue=task_queue,
            input=self.converter.encode_arguments(args, f"the arguments of {type!r}"),
            request_id=request_id or uuid.uuid4().hex,
            retry_policy=None if retry_policy is None else retry_policy.to_wire(),
            timeouts=workflow_timeouts(execution_timeout, run_timeout),
            cron_schedule=cron,
            memo=self.converter.encode_optional(memo, f"the memo of {type!r}", SMALL_PAYLOAD_BYTES_MAX),
            search_attributes=encode_optional(search_attributes, f"the search attributes of {type!r}"),
            headers=headers_of_start(self._header_source, headers),
            identity=self.identity,
            **asked(durability),
        )

    def get_handle(self, id: str, run_id: str = "") -> WorkflowHandle:
        """A handle for an execution that exists already, task or workflow. Makes no call."""
        return WorkflowHandle(self, id, run_id)

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

    # --- schedules -----------------------------------------------------------------------------------

    async def create_schedule(
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
        """Create the schedule `id`, or replace it. `spec` may be a Go duration or a cron expression.

        `overlap` says what happens while the run before is still open: "skip" (the default), "allow", "buffer-one",
        "buffer-all", "cancel-other" or "terminate-other". A time that was missed is made up for as far back as
        `catchup_window` (10 seconds or more) reaches; without one that is a minute, and the latest time at any age.
        `pause_on_failure` pauses it after a run that failed for good, and it acts `remaining_actions` times if given.
        """
        schedule = present(
            id=id,
            spec=_spec_body(spec),
            action=action.to_wire(self.converter),
            overlap_policy=overlap,
            catchup_window_ms=to_ms(catchup_window, "catchup_window"),
            pause_on_failure=pause_on_failure,
        )
        if remaining_actions is not None:
            schedule["remaining_actions"] = _actions(remaining_actions)
        request = {"schedule_id": id, "schedule": schedule | {"paused": paused}} | asked(durability)
        return await self.call(Op.CREATE_SCHEDULE, request, ScheduleInfo)

    async def list_schedules(self) -> Schedules:
        """Every schedule of the namespace, by id."""
        return (await self.call(Op.LIST_SCHEDULES, {}, ScheduleList)).schedules

    async def describe_schedule(self, id: str) -> ScheduleInfo:
        """A schedule, with what it has done and the times to come in `info`."""
        return await self.call(Op.DESCRIBE_SCHEDULE, {"schedule_id": id}, ScheduleInfo)

    async def update_schedule(
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
        """Replace what is given, and keep the rest. To take a limit of actions away, create it again."""
        schedule: dict[str, object] = {"id": id}
        if spec is not None:
            schedule["spec"] = _spec_body(spec)
        if action is not None:
            schedule["action"] = action.to_wire(self.converter)
        if paused is not None:
            schedule["paused"] = paused
        if pause_on_failure is not None:
            schedule["pause_on_failure"] = pause_on_failure
        if remaining_actions is not None:
            schedule["remaining_actions"] = _actions(remaining_actions)
        schedule |= present(overlap_policy=overlap, catchup_window_ms=to_ms(catchup_window, "catchup_window"))
        request = {"schedule_id": id, "schedule": schedule} | asked(durability)
        return await self.call(Op.UNPAUSE_SCHEDULE, request, ScheduleInfo)

    async def pause_schedule(self, id: str, note: str = "", *, durability: Durability | None = None) -> Acknowledged:
        """Fire no more until it is unpaused; the times that pass are not made up for."""
        request = {"schedule_id": id, "paused": True, "note": note} | asked(durability)
        return await self.call(Op.PAUSE_SCHEDULE, request, Acknowledged)

    async def unpause_schedule(self, id: str, note: str = "", *, durability: Durability | None = None) -> Acknowledged:
        """Fire again, from the next time on."""
        request = {"schedule_id": id, "paused": False, "note": note} | asked(durability)
        return await self.call(Op.PAUSE_SCHEDULE, request, Acknowledged)

    async def trigger_schedule(
        self, id: str, *, overlap: str = "", request_id: str = "", durability: Durability | None = None
    ) -> ExecutionHandle | None:
        """Do its action now, paused or not. None if its overlap policy, or `overlap`, says no, or later."""
        request = {"schedule_id": id, "overlap_policy": overlap, "request_id": request_id or uuid.uuid4().hex}
        triggered = await self.call(Op.TRIGGER_SCHEDULE, request | asked(durability), Triggered)
        if not triggered.workflow_id:
            return None
        return ExecutionHandle(self, triggered.workflow_id, triggered.run_id, triggered.durability)

    async def backfill_schedule(
        self, id: str, start: datetime, end: datetime, *, overlap: str = "buffer-all", request_id: str = ""
    ) -> int:
        """Act on every time of the schedule from `start` to `end`, which is past; how many there are.

        By default one run after the other; `overlap` names another policy. At most 1,000 times a call. Whether the
        schedule is paused, and how many actions it has left, does not matter.
        """
        request = {
            "schedule_id": id,
            "start_time_ms": moment_ms(start, "start"),
            "end_time_ms": moment_ms(end, "end"),
            "overlap_policy": overlap,
            "request_id": request_id or uuid.uuid4().hex,
        }
        return (await self.call(Op.BACKFILL_SCHEDULE, request, Backfilled)).slots

    async def schedule_times(self, schedule: str | ScheduleSpec, start: datetime, end: datetime) -> Moments:
        """The times of a schedule, or of a spec that is not saved, from `start` to `end`: the first 1,000."""
        request: dict[str, object] = {"start_time_ms": moment_ms(start, "start"), "end_time_ms": moment_ms(end, "end")}
        if isinstance(schedule, str):
            request["schedule_id"] = schedule
        else:
            request["schedule"] = {"spec": schedule.to_wire()}
        return (await self.call(Op.MATCHING_TIMES, request, MatchingTimes)).matching_times

    async def delete_schedule(self, id: str, *, durability: Durability | None = None) -> Acknowledged:
        """Delete it. Not an error if it is not there."""
        return await self.call(Op.LIST_SCHEDULES, {"schedule_id": id} | asked(durability), Acknowledged)

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

    # --- calls -----------------------------------------------------------------------------------------

    async def call(self, opcode: int, request: Mapping[str, object], type: type[T], *, repeat: bool = True) -> T:
        """One call, in this client's namespace, with its answer and the receipt of it read as `type`.

        Unless `repeat` is False it is made again after a lost connection, until the client's timeout has passed.
        """
        body = encode_json({"namespace": self.namespace, **request})
        envelope = await self._repeatedly(lambda timeout: self._ask(opcode, body, timeout), self.timeout, repeat)
        return reveal(with_receipt(decode_json(envelope.body, type), envelope.receipt), self.converter)

    async def wait_closed(self, workflow_id: str, run_id: str) -> ClosedExecution:
        """Wait, for as long as it takes, until an execution is closed, with every run that follows it."""
        body = encode_json({"namespace": self.namespace, "workflow_id": workflow_id, "run_id": run_id, "follow": True})
        envelope = await self._repeatedly(lambda timeout: self._ask(Op.AWAIT_EXECUTION, body, timeout), None, True)
        return decode_json(envelope.body, ClosedExecution)

    async def wait_updated(self, name: str, request: Mapping[str, object]) -> UpdateAnswer:
        """Ask for an update, and wait, for as long as it takes, until it is done. Raises `UpdateRejected`."""
        body = encode_json({"namespace": self.namespace, "update_name": name, **request})

        async def ask(timeout: float | None) -> Envelope:
            try:
                return await self._ask(Op.UPDATE_WORKFLOW, body, timeout)
            except CallFailed as error:
                if error.status == 400 and error.body.startswith(b"{"):
                    raise UpdateRejected(name, self.converter.decode_failure(error.body)) from None
                raise

        return decode_json((await self._repeatedly(ask, None, True)).body, UpdateAnswer)

    async def _ask(self, opcode: int, body: bytes, timeout: float | None) -> Envelope:
        try:
            return await self._link.call(opcode, body, timeout=timeout)
        except CallFailed as error:
            raise refusal(error.status, error.detail, opcode=opcode, body=error.body) from None

    async def _call_raw(self, message: bytes, opcode: int, type: type[T], *, repeat: bool = True) -> T:
        async def ask(timeout: float | None) -> T:
            return read_submit_reply(await self._link.call_raw(message, timeout=timeout), opcode, type)

        return await self._repeatedly(ask, self.timeout, repeat)

    async def _repeatedly(
        self, attempt: Callable[[float | None], Awaitable[T]], timeout: float | None, repeat: bool
    ) -> T:
        """Every call goes through here: the client for asyncio replaces it, and nothing else."""
        deadline = math.inf if timeout is None else trio.current_time() + timeout
        lost: ConnectionLost | None = None
        while True:
            if self._is_closed:
                raise ClientClosed(f"this client of {self.connector} was closed")
            left = deadline - trio.current_time()
            if left <= 0 and lost is not None:
                raise lost
            try:
                return await attempt(None if timeout is None else max(left, 0.0))
            except OutcomeUnknown as error:
                if not repeat:
                    raise
                lost = error
            except NotSent as error:
                # An earlier attempt may have arrived: that is what the caller has to know.
                lost = lost or error
            except ServerBusy:
                # A no to the repeat of a call that may have arrived is no no to that one.
                if timeout is None or not isinstance(lost, OutcomeUnknown):
                    raise
                await trio.sleep(min(ASK_AGAIN_SECONDS, deadline - trio.current_time()))
            await trio.lowlevel.checkpoint()


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
) -> AsyncIterator[AsyncClient]:
    """Connect to the server at `zap` ("host:port"; by default `TASKS_ZAP`, else this machine's port 9999).

    The block is entered when the server has answered, and `NotSent` or `OutcomeUnknown` raised if it does not within
    `timeout`. With `wait=False` it is entered at once, and the first calls wait instead. After that the connection is
    kept by itself. `timeout` bounds every call; `identity` is who this client is to people, by default host@pid.
    `headers` is called at each start of a task or workflow, in the task that makes it, for the headers of the moment,
    such as the trace id of a request. `converter` encodes and decodes payloads, here and in the workers of this client:
    compression, encryption.
    """
    address = zap or os.environ.get("TASKS_ZAP", "") or f"127.0.0.1:{ZAP_PORT}"
    host, port = parse_address(address)
    connector = Connector(
        host=host, port=port, identity=identity or default_identity(), ssl_context=ssl_context, backoff=backoff
    )
    seconds = to_seconds(timeout, "timeout")
    if not seconds:
        raise ValueError(f"timeout is {timeout!r}: a call needs more than 0 seconds")
    require_trio("open_client")
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
                client._is_closed = True


def require_trio(name: str) -> None:
    """Raise `RuntimeError` where trio does not run."""
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        raise RuntimeError(
            f"zaptasks.{name} runs under trio, and this is not trio: under asyncio use zaptasks.aio.{name}"
        ) from None


def _actions(remaining: int) -> int:
    if remaining < 1:
        raise ValueError(f"remaining_actions is {remaining}: it must be 1 or more; to stop a schedule, pause it")
    return remaining


def _spec_body(spec: ScheduleSpec | str) -> dict[str, object]:
    return (ScheduleSpec.parse(spec) if isinstance(spec, str) else spec).to_wire()
