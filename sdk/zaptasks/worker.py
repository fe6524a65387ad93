"""The worker: subscribes to a task queue, runs what the server delivers, answers, and leaves without losing anything.

    async with zaptasks.open_client("127.0.0.1:9999") as client:
        async with zaptasks.open_worker(client, "mail", tasks=[send]):
            await trio.sleep_forever()

Work is pushed, never polled: a subscription announces its slots, the server delivers no more than that, and every
answer frees one. A worker has a connection of its own, so that a burst of deliveries never delays its client's
calls. When that connection is lost the server gives what the worker held to others; the worker cancels it, connects
again and subscribes again, by itself.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Unpack

import msgspec
import trio

from zapwire.encodings import with_json
from zapwire.envelope import Envelope
from zapwire.errors import BadBody, ConnectionLost, ZapError
from zapwire.link import Link
from zapwire.link_handler import RefusingHandler
from zapwire.opcodes import Op

from .attempt import Attempt
from .client import AsyncClient, require_trio
from .connector import SDK_NAME, VERSION
from .context import TaskContext
from .deliveries import (
    ActivityCancel,
    ActivityDelivery,
    QueryDelivery,
    ResultDelivery,
    WorkflowCancel,
    WorkflowDelivery,
)
from .groups import unwrapped
from .handlers import Function, Handler, Kind, check_name, table
from .interceptors import checked_interceptors
from .line import Line
from .options import check_options, to_rate, to_seconds
from .plain_workflows import WorkflowRun, WorkflowRunner
from .processes import ProcessPool
from .session_host import SessionHost
from .subscription import Subscription, Subscriptions
from .worker_options import WorkerOptions, WorkerSettings
from .workflow import WorkflowTask
from .workflow.sessions import SESSION
from .workflow_serving import Served, WorkflowServing, split_workflows

log = logging.getLogger("zaptasks.worker")

UNSUBSCRIBE_SECONDS_MAX: Final = 1.0
"""How long a worker that is canceled waits for the end of its subscriptions, before it hands back what runs. Without
that the server would deliver it again to this worker, and charge the attempt when the connection ends."""

HAND_BACK_SECONDS_MAX: Final = 5.0
"""How long a worker that leaves gives its canceled handlers to clean up, and the server to take tasks back."""

_DELIVERIES: Final[dict[int, Any]] = {
    Op.DELIVER_ACTIVITY_TASK: msgspec.json.Decoder(ActivityDelivery),
    Op.DELIVER_WORKFLOW_TASK: msgspec.json.Decoder(WorkflowDelivery),
    Op.DELIVER_ACTIVITY_RESULT: msgspec.json.Decoder(ResultDelivery),
    Op.DELIVER_CANCEL_REQUEST: msgspec.json.Decoder(WorkflowCancel),
    Op.DELIVER_QUERY: msgspec.json.Decoder(QueryDelivery),
    Op.DELIVER_ACTIVITY_CANCEL: msgspec.json.Decoder(ActivityCancel),
}
_workflow_tasks: Final = msgspec.json.Decoder(WorkflowTask)


class Worker(RefusingHandler):
    """A running worker. Made by `open_worker`."""

    def __init__(self, client: AsyncClient, task_queue: str, settings: WorkerSettings) -> None:
        self.task_queue: Final = check_name(task_queue, Kind.TASK)
        self.identity: Final = settings.identity or client.identity
        self.build_id: Final = settings.build_id
        self._interceptors = checked_interceptors(settings.interceptors)
        self._client = client
        self._shutdown_seconds = to_seconds(settings.shutdown_timeout, "shutdown_timeout")
        self._slots = settings.slots
        self._threads = min(settings.slots, settings.max_threads)
        self._max_processes = min(settings.slots, settings.max_processes)
        self._limiter = trio.CapacityLimiter(self._threads)
        self._per_second = to_rate(settings.tasks_per_second, "tasks_per_second")
        self._queue_per_second = to_rate(settings.queue_tasks_per_second, "queue_tasks_per_second")
        self._sessions = SessionHost(settings.sessions, self.identity, self._announce_session)
        self._metrics = settings.metrics
        self._tasks = table(settings.tasks, Kind.TASK)
        self._activities = table(settings.activities, Kind.ACTIVITY)
        replaying, held = split_workflows(settings.workflows)
        workflow_table = table(held, Kind.WORKFLOW)
        self._serving = WorkflowServing(
            replaying,
            namespace=client.namespace,
            task_queue=task_queue,
            converter=client.converter,
            max_threads=settings.max_threads,
            runs_max=settings.max_cached_runs,
            metrics=settings.metrics,
        )
        for name in set(self._serving.types) & workflow_table.keys():
            raise ValueError(f"workflow {name!r} is registered twice: under @workflow.defn, and as a plain function")
        self.serves: Final = sorted({*self._tasks, *self._activities, *self._serving.types, *workflow_table})
        """The names of its tasks, activities and workflows."""
        self._workflows = WorkflowRunner(workflow_table, task_queue=task_queue, converter=client.converter)
        identity = {"identity": self.identity, "sdk_name": SDK_NAME, "sdk_version": VERSION}
        if self.build_id:
            identity["build_id"] = self.build_id
        self._subscriptions = Subscriptions(identity, self._planned(sorted(workflow_table)))
        self._attempts: dict[str, Attempt] = {}
        self._running = 0
        self._idle = trio.Event()
        self._line: Line | None = None
        self._is_draining = False
        self._leaving = trio.Event()
        self._nursery: trio.Nursery  # where handlers run; opened with the connection
        self._processes: ProcessPool

    def _planned(self, workflows: list[str]) -> list[Subscription]:
        """One subscription for each bound, with the types that it holds for."""
        planned: list[Subscription] = []
        served = {**self._activities, **self._tasks}
        asynchronous = sorted(name for name, handler in served.items() if handler.is_async)
        apart = sorted(name for name, handler in served.items() if handler.in_process)
        threaded = sorted(served.keys() - {*asynchronous, *apart})
        queues = [self.task_queue, self._sessions.task_queue] if self._sessions.places else [self.task_queue]
        for task_queue in queues:
            for slots, types in (
                (self._slots, asynchronous),
                (self._threads, threaded),
                (self._max_processes, apart),
            ):
                if types:
                    planned.append(self._to_activities(task_queue, types, slots))
        if self._sessions.places:
            self._activities[SESSION] = Handler(SESSION, self._sessions.hold, Kind.ACTIVITY)
            places = self._sessions.places
            planned.append(Subscription(Op.SUBSCRIBE_ACTIVITY_TASKS, self.task_queue, [SESSION], places))
        for types, replays in ((workflows, False), (self._serving.types, True)):
            if types:
                planned.append(Subscription(Op.SUBSCRIBE_WORKFLOW_TASKS, self.task_queue, types, self._slots, replays))
        return planned

    def _to_activities(self, task_queue: str, types: list[str], slots: int) -> Subscription:
        return Subscription(
            Op.SUBSCRIBE_ACTIVITY_TASKS,
            task_queue,
            types,
            slots,
            per_second=self._per_second,
            queue_per_second=self._queue_per_second if task_queue == self.task_queue else 0.0,
        )

    @property
    def running(self) -> int:
        """How many deliveries are being handled, answers on their way included."""
        return self._running

    @property
    def works_on(self) -> list[str]:
        """The attempts and workflow tasks that are being worked on now, in words.

        A workflow that only waits is not among them, nor is one that starts over from the top.
        """
        return [str(attempt) for attempt in self._attempts.values()] + self._serving.works_on

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection now."""
        return self._line is not None

    async def _hold_connection(self, *, task_status: trio.TaskStatus[None]) -> None:
        """The worker's connection, and what runs over it. Shielded: a worker that is canceled unsubscribes first, and
        then cancels its handlers with a reason and hands back what they held.

        What ends the shield is `_leaving`, which `open_worker` sets after at most `HAND_BACK_SECONDS_MAX`.
        """
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as self._nursery:
                self._processes = ProcessPool(self._max_processes, self._nursery)
                async with self._client.connector.open(self):
                    task_status.started()
                    await self._leaving.wait()
                self._nursery.cancel_scope.cancel()
            self._serving.close()

    # --- subscribing -----------------------------------------------------------------------------------

    async def subscribed(self) -> None:
        """Wait until the server has taken every subscription. Raises `CallFailed` for one that it refuses."""
        await self._subscriptions.granted()

    async def add_task(self, name: str, function: Function, *, slots: int = 1) -> None:
        """Serve one more type of task, with slots of its own; returns once the server knows.

        A name that is served already gets the new function, from the next delivery on, and keeps its slots.
        """
        self._tasks[check_name(name, Kind.TASK)] = Handler(name, function)
        subscription = self._subscriptions.to_task(name)
        if subscription is None:
            subscription = self._to_activities(self.task_queue, [name], slots)
            self._subscriptions.add(subscription, self._nursery)
        await subscription.wait()

    def subscription_for(self, task_queue: str, workflow_type: str) -> str:
        """The subscription that brings it new runs of a workflow under `@workflow.defn`; "" if none does now."""
        return self._subscriptions.to_workflow(task_queue, workflow_type)

    # --- what the connection tells -----------------------------------------------------------------------

    def connected(self, link: Link) -> None:
        self._line = Line(link, namespace=self._client.namespace, timeout=self._client.timeout)
        if not self._is_draining:
            self._subscriptions.begin(self._line, self._nursery)

    def disconnected(self, link: Link, error: ZapError) -> None:
        if self._line is not None:
            self._line.end()
        self._line = None
        self._subscriptions.stop_asking()
        if self._running:
            log.warning("lost the connection with %d tasks running, others get them: %s", self._running, error)
        for attempt in self._attempts.values():
            attempt.lose(f"the connection was lost: {error}")
        self._workflows.lose_all()
        self._serving.lose_all()

    def on_push(self, link: Link, envelope: Envelope) -> None:
        decoder = _DELIVERIES.get(envelope.opcode)
        line = self._line
        if decoder is None or line is None:
            return
        try:
            envelope = with_json(envelope)
            delivery = decoder.decode(envelope.body)
            if isinstance(delivery, WorkflowDelivery) and delivery.workflow_type_name in self._serving.types:
                delivery = _workflow_tasks.decode(bytes(envelope.body))
        except (msgspec.MsgspecError, BadBody, UnicodeDecodeError, RecursionError) as error:
            log.error("a delivery of the server cannot be read: opcode 0x%02X: %s", envelope.opcode, error)
            return
        match delivery:
            case ActivityDelivery() | WorkflowDelivery() | WorkflowTask() if self._is_draining:
                self._running += 1
                self._nursery.start_soon(self._return_unstarted, delivery.task_token, line)
            case ActivityDelivery() | WorkflowDelivery() | WorkflowTask() if self._runs_already(delivery.task_token):
                log.error("the server delivered task %r twice; the second one is ignored", delivery.task_token)
            case ActivityDelivery():
                self._start_attempt(delivery, line)
            case WorkflowDelivery():
                self._running += 1
                self._nursery.start_soon(self._run_workflow, self._workflows.accept(delivery, line))
            case WorkflowTask():
                self._running += 1
                self._nursery.start_soon(self._serve_workflow, self._serving.accept(delivery, line))
            case ResultDelivery():
                self._workflows.on_result(delivery)
            case WorkflowCancel():
                self._workflows.on_cancel(delivery)
            case QueryDelivery() if self._serving.types and not self._workflows.has(delivery.run_id):
                self._nursery.start_soon(self._serving.answer_query, delivery, line)
            case QueryDelivery():
                self._nursery.start_soon(self._workflows.answer_query, delivery, line)
            case ActivityCancel():
                attempt = self._attempts.get(delivery.task_token)
                if attempt is not None:
                    attempt.cancel(delivery.reason)

    def _runs_already(self, token: str) -> bool:
        return token in self._attempts or token in self._workflows or token in self._serving

    # --- running -----------------------------------------------------------------------------------------

    def _start_attempt(self, delivery: ActivityDelivery, line: Line) -> None:
        name = delivery.activity_type_name
        first, second = self._activities, self._tasks
        if delivery.kind == "task":
            first, second = second, first
        attempt = Attempt(
            delivery,
            first.get(name) or second.get(name),
            line=line,
            task_queue=self.task_queue,
            nursery=self._nursery,
            limiter=self._limiter,
            processes=self._processes,
            interceptors=() if name == SESSION else self._interceptors,
            converter=self._client.converter,
            metrics=self._metrics,
        )
        self._attempts[delivery.task_token] = attempt
        self._running += 1
        self._nursery.start_soon(self._run_attempt, attempt)

    async def _announce_session(self, task: TaskContext, signal_name: str, task_queue: str) -> None:
        """Tell a workflow that its session is here. What it raises fails the activity that holds its place."""
        line = self._line
        if line is None:
            raise ConnectionLost("the connection was lost before the session could begin")
        request: dict[str, object] = {
            "workflow_id": task.workflow_id,
            "run_id": task.run_id,
            "signal_name": signal_name,
            "input": self._client.converter.encode_optional(task_queue, "the queue of a session"),
            "identity": self.identity,
            "request_id": f"{task.id}/{task.attempt}",
        }
        await line.call_until_taken(Op.SIGNAL_WORKFLOW, request)

    async def _run_attempt(self, attempt: Attempt) -> None:
        try:
            await attempt.run()
        finally:
            del self._attempts[attempt.token]
            self._ended()

    async def _run_workflow(self, run: WorkflowRun) -> None:
        try:
            await self._workflows.run(run)
        finally:
            self._ended()

    async def _serve_workflow(self, served: Served) -> None:
        try:
            await self._serving.run(served)
        finally:
            self._ended()

    def _ended(self) -> None:
        self._running -= 1
        if not self._running:
            self._idle.set()
            self._idle = trio.Event()

    # --- leaving -----------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Take no more work, and wait until what runs is answered, for at most `shutdown_timeout`.

        What still runs then is handed back when the worker closes. Calling it again only returns.
        """
        if self._is_draining:
            return
        self._is_draining = True
        self._sessions.leave()
        with trio.move_on_after(self._shutdown_seconds) as scope:
            await self._unsubscribe_all()
            while self._running:
                await self._idle.wait()
        if scope.cancelled_caught and self._running:
            log.warning("%d tasks still run after %g s: they are handed back", self._running, self._shutdown_seconds)

    async def _unsubscribe_all(self) -> None:
        self._subscriptions.stop_asking()
        if self._line is not None:
            await self._subscriptions.end_all(self._line)

    async def _hand_back(self) -> None:
        """Cancel what runs and return it to the server."""
        self._is_draining = True
        self._sessions.leave()
        with trio.move_on_after(UNSUBSCRIBE_SECONDS_MAX):
            await self._unsubscribe_all()
        reason = f"the worker {self.identity} shuts down"
        for attempt in self._attempts.values():
            attempt.hand_back(reason)
        self._workflows.hand_back_all(reason)
        self._serving.hand_back_all(reason)
        while self._running:
            await self._idle.wait()

    async def _return_unstarted(self, token: str, line: Line) -> None:
        """A delivery that crossed our leaving."""
        try:
            await line.respond(Op.HAND_BACK_TASK, token, f"the worker {self.identity} shuts down".encode())
        except ZapError as error:
            log.info("a task that came while leaving could not be handed back: %s", error)
        finally:
            self._ended()


@asynccontextmanager
async def open_worker(
    client: AsyncClient, task_queue: str = "default", **options: Unpack[WorkerOptions]
) -> AsyncIterator[Worker]:
    """Serve a task queue of the client's namespace for the length of an `async with` block.

    The block is entered once the server has taken the subscriptions, however long it takes to reach one; a
    subscription that it refuses raises `CallFailed`. `WorkerOptions` says what the options are.

    When the block ends, the worker takes no more work and gives what runs `shutdown_timeout` seconds to finish. What
    has not finished then, and everything that runs if the block raises or is canceled, is canceled and handed back to
    the server, which gives it to another worker and charges no attempt. A thread cannot be canceled: it is left
    behind, and may do its work a second time. A process is killed.
    """
    require_trio("zaptasks.open_worker", "under asyncio use zaptasks.aio.open_worker")
    check_options(options, WorkerOptions, "open_worker")
    settings = WorkerSettings(**options)
    with unwrapped():
        async with trio.open_nursery() as nursery:
            worker = Worker(client, task_queue, settings)
            await nursery.start(worker._hold_connection)
            try:
                await worker.subscribed()
                log.info("task queue %r of %s is served: %s", task_queue, client.connector, ", ".join(worker.serves))
                client.workers.append(worker)
                yield worker
                await worker.drain()
            finally:
                if worker in client.workers:
                    client.workers.remove(worker)
                try:
                    with trio.CancelScope(shield=True, relative_deadline=HAND_BACK_SECONDS_MAX):
                        await worker._hand_back()
                finally:
                    worker._leaving.set()


async def run_worker(client: AsyncClient, task_queue: str = "default", **options: Unpack[WorkerOptions]) -> None:
    """Serve a task queue until SIGTERM or SIGINT, then drain and return. Only from the main thread.

    A second signal ends the draining: what still runs is handed back at once.
    """
    check_options(options, WorkerOptions, "run_worker")
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_worker(client, task_queue, **options) as worker:
            first = await anext(signals)
            log.info("%s: taking no more work; %d tasks run", signal.Signals(first).name, worker.running)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_at_signal, signals, nursery.cancel_scope)
                await worker.drain()
                nursery.cancel_scope.cancel()


async def _cancel_at_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    number = await anext(signals)
    log.info("%s again: handing back what runs", signal.Signals(number).name)
    scope.cancel()
