"""Where a task or schedule goes: ZAP first, then HTTP, then this process.

What decides is whether a server can have seen the request:

    it cannot (`NotSent`), or it does not serve such requests   the next place is tried
    it can (`OutcomeUnknown`)                                   the same request id is asked again, over ZAP and HTTP,
                                                                and nothing runs here: it might run twice
    it said no (`CallFailed`), also only for now (`ServerBusy`)   the caller is told; nothing runs here, for a server
                                                                that is there decides

A schedule that a server has, or may have, never fires here as well. One that had to stay here moves to the server as
soon as there is one.
"""

from __future__ import annotations

import logging
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from zaptasks.client import AsyncClient, open_client
from zaptasks.converters import PLAIN, DataConverter
from zaptasks.errors import ServerBusy
from zaptasks.handlers import Function
from zaptasks.headers import HeaderSource
from zaptasks.local_engine import LocalEngine
from zaptasks.options import DURABILITIES, Bodies, Durability
from zaptasks.records import Acknowledged, Started
from zaptasks.task_request import TaskRequest
from zaptasks.worker import Worker, open_worker
from zapwire.errors import CallFailed, ConnectionLost, NotSent, OutcomeUnknown, ZapError

from .submission import LocalTask, Placement, Submission

if TYPE_CHECKING:
    from .http_fallback import HttpFallback

T = TypeVar("T")

log = logging.getLogger("zaptasks.client")

FIRST_CONNECT_SECONDS: Final = 1.0
"""How long the first requests wait for a connection that is being made. After that, being disconnected means the
next place at once: a request never stalls on a server that is known to be away."""

ASK_AGAIN_SECONDS: Final = (0.1, 0.3, 1.0)
"""The pauses before a request of unknown outcome is made again over HTTP."""

PLACE_AGAIN_SECONDS: Final = 5.0
"""How often a schedule that a connected server refused is offered to it again."""

NOT_SERVED: Final = 501
"""The status of a server that does not take such requests. Nothing was started."""


@dataclass(slots=True, eq=False)
class _Added:
    """One name that was added: what is wanted, and where it is."""

    name: str
    spec: str
    function: Function
    durability: Durability | None = None
    is_durable: bool = False
    """A server has it, or may have it."""
    refusal: str = ""
    """What the server said when it was offered in vain."""


class FallbackClient:
    """Add and now with the fallback, for one trio loop. Made by `open_fallback_client`."""

    def __init__(
        self,
        zap: AsyncClient | None,
        http: HttpFallback | None,
        local: LocalEngine | None,
        *,
        task_queue: str,
        shutdown_timeout: float,
        workers: trio.Nursery,
    ) -> None:
        self.zap: Final = zap
        """None without a ZAP address."""
        self._http = http
        self._local = local
        self._task_queue = task_queue
        self._shutdown_timeout = shutdown_timeout
        self._workers = workers
        self._patient_until = trio.current_time() + FIRST_CONNECT_SECONDS
        self._added: dict[str, _Added] = {}
        self._locks: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)  # one placing of a name at a time
        self._worker: Worker | None = None
        self._worker_lock = trio.Lock()
        self._leaving = trio.Event()
        self._reached = Placement.ZAP if zap is not None else Placement.HTTP

    # --- tasks ---------------------------------------------------------------------------------------

    async def now(self, request: TaskRequest, payload: object) -> Submission:
        """Submit a task to the first place that takes it; `payload` is what the request was made from.

        Raises `OutcomeUnknown` when a server may have it and stays silent, `CallFailed` when one says no, `NotSent`
        when none is reachable and nothing may run here, and what `LocalEngine.now` raises.
        """
        away: ZapError | None = None
        for submit in (self._submit_over_zap, self._submit_over_http):
            try:
                submission = await submit(request)
            except (NotSent, CallFailed) as error:
                if not _is_away(error):
                    raise
                away = error
            else:
                if submission is not None:
                    self._note(submission.placement, away)
                    return submission
        if self._local is None:
            raise away or NotSent("there is no server to send tasks to: give a ZAP address or a URL")
        self._note(Placement.LOCAL, away)
        return submit_locally(self._local, request, payload)

    async def _submit_over_zap(self, request: TaskRequest) -> Submission | None:
        if self.zap is None:
            return None
        await self._check_zap(self.zap)
        try:
            started = await self.zap.submit(request, repeat=False)
        except OutcomeUnknown as unknown:
            return await self._ask_again(self.zap, request, unknown)
        return _submission(Placement.ZAP, request, started)

    async def _ask_again(self, zap: AsyncClient, request: TaskRequest, unknown: OutcomeUnknown) -> Submission:
        """The server may have the task: find out, by the same request id, whichever way answers first."""
        try:
            submission = await self._submit_over_http(request)
            if submission is not None:
                return submission
        except (ConnectionLost, CallFailed):
            pass  # what HTTP says about a task that went over ZAP counts only when it is a yes
        try:
            started = await zap.submit(request)
        except (ConnectionLost, ServerBusy):
            raise unknown from None
        return _submission(Placement.ZAP, request, started)

    async def _submit_over_http(self, request: TaskRequest) -> Submission | None:
        http = self._http
        if http is None:
            return None
        started = await _until_known(lambda: http.submit(request))
        return _submission(Placement.HTTP, request, started)

    # --- schedules -----------------------------------------------------------------------------------

    async def add(self, name: str, spec: str, function: Function, durability: Durability | None = None) -> Placement:
        """Have `function` run at every time of `spec`, by whichever process serves the firing. Errors as `now`.

        An `OutcomeUnknown` of a server is not raised: what is wanted is kept and offered again, until one has it.
        """
        if self._local is not None:
            self._local.register(name, function)  # for a `now` that has to stay here
        async with self._locks[name]:
            before = self._added.get(name)
            wanted = _Added(name, spec, function, durability, before is not None and before.is_durable)
            self._added[name] = wanted
            try:
                return await self._place(wanted)
            except BaseException:
                if before is None:
                    del self._added[name]
                else:
                    self._added[name] = before
                raise

    async def _place(self, wanted: _Added) -> Placement:
        away: ZapError | None = None
        for placement, place in self._servers():
            try:
                await place(wanted)
            except (ConnectionLost, CallFailed) as error:
                if not _is_away(error):
                    raise
                away = error
                wanted.is_durable = wanted.is_durable or isinstance(error, OutcomeUnknown)
            else:
                self._note(placement, away)
                return placement
        if wanted.is_durable and self.zap is not None:
            log.warning("schedule %r may be on the server already and is not run here: %s", wanted.name, away)
            return Placement.ZAP
        if self._local is None or wanted.is_durable:
            raise away or NotSent("there is no server to keep schedules: give a ZAP address or a URL")
        self._note(Placement.LOCAL, away)
        self._local.add(wanted.name, wanted.spec, wanted.function)
        return Placement.LOCAL

    def _servers(self) -> Iterator[tuple[Placement, Callable[[_Added], Awaitable[None]]]]:
        """How a schedule gets to each server that is configured, in the order in which they are tried."""
        if self.zap is not None:
            yield Placement.ZAP, partial(self._place_first_on_zap, self.zap)
        if self._http is not None:
            yield Placement.HTTP, partial(self._place_over_http, self._http)

    async def _place_first_on_zap(self, zap: AsyncClient, wanted: _Added) -> None:
        await self._check_zap(zap)
        await self._place_on_zap(zap, wanted)

    async def _place_over_http(self, http: HttpFallback, wanted: _Added) -> None:
        name = wanted.name
        kept = await _until_known(
            lambda: http.put_task_schedule(name, wanted.spec, task_queue=self._task_queue, durability=wanted.durability)
        )
        self._moved_to_server(wanted, kept)
        if self.zap is None:
            log.warning(
                "the server has schedule %r, and this process cannot run it: firings are delivered over ZAP, and no ZAP"
                " address is configured. A worker that serves %r runs them",
                name,
                name,
            )

    async def _place_on_zap(self, zap: AsyncClient, wanted: _Added) -> None:
        kept = await zap.put_task_schedule(
            wanted.name, wanted.spec, task_queue=self._task_queue, durability=wanted.durability
        )
        self._moved_to_server(wanted, kept)
        worker = await self._start_worker(zap)
        with trio.move_on_after(zap.timeout):  # the worker goes on trying
            await worker.add_task(wanted.name, wanted.function)

    def _moved_to_server(self, wanted: _Added, kept: Acknowledged) -> None:
        if _is_less(kept.durability, wanted.durability):
            log.warning(
                "schedule %r is kept with durability %r, and %r was asked for: the server keeps no more",
                wanted.name,
                kept.durability,
                wanted.durability,
            )
        wanted.is_durable = True
        if self._local is not None and self._local.remove(wanted.name):
            log.info("schedule %r has moved from this process to the server", wanted.name)

    async def keep_placed(self, zap: AsyncClient) -> None:
        """Offer every name to the server again on each new connection: it may have come late, or forgotten."""
        connection = 0
        while True:
            connection = await zap.wait_connection(after=connection)
            if not zap.peer_is_ours:
                continue
            names = list(self._added)
            while names:
                names = [name for name in names if not await self._offer(zap, name)]
                if names:
                    await trio.sleep(PLACE_AGAIN_SECONDS)

    async def _offer(self, zap: AsyncClient, name: str) -> bool:
        """True when nothing is left to do for a name on this connection."""
        async with self._locks[name]:
            wanted = self._added.get(name)
            if wanted is None:
                return True
            try:
                await self._place_on_zap(zap, wanted)
            except ConnectionLost:
                return True  # the next connection begins anew
            except ZapError as error:
                if str(error) != wanted.refusal:
                    wanted.refusal = str(error)
                    log.warning("the server does not take schedule %r: %s", name, error)
                return False
        return True

    # --- the worker that serves what was added -----------------------------------------------------------

    async def _start_worker(self, zap: AsyncClient) -> Worker:
        async with self._worker_lock:
            if self._worker is None:
                self._worker = await self._workers.start(self._run_worker, zap)
            return self._worker

    async def _run_worker(
        self, zap: AsyncClient, *, task_status: trio.TaskStatus[Worker] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with open_worker(zap, self._task_queue, shutdown_timeout=self._shutdown_timeout) as worker:
            task_status.started(worker)
            await self._leaving.wait()

    def leave(self) -> None:
        """Take no more firings; the worker ends when those that run have ended."""
        self._leaving.set()

    # --- where things go ---------------------------------------------------------------------------------

    async def _check_zap(self, zap: AsyncClient) -> None:
        """Return when there is a connection to a server that takes tasks."""
        if not zap.is_connected:
            with trio.move_on_at(self._patient_until):
                await zap.wait_first_attempt()
        if not zap.is_connected:
            raise NotSent(f"there is no connection to {zap.connector}: {zap.why_disconnected}")
        if not zap.peer_is_ours:
            raise CallFailed(501, f"{zap.connector} is a Go server, which takes no tasks over ZAP")

    def _note(self, placement: Placement, away: ZapError | None) -> None:
        """Log where requests go, once for each change."""
        if placement is self._reached:
            return
        self._reached = placement
        if placement is Placement.ZAP:
            log.info("requests go to the server over ZAP again")
        elif placement is Placement.HTTP:
            log.warning("requests go to %s over HTTP: %s", self._http, away or "the answer over ZAP was lost")
        else:
            log.warning("requests stay in this process: %s", away or "no server is configured")


async def _until_known(request: Callable[[], Awaitable[T]]) -> T:
    """Make a request over HTTP that is harmless to repeat; again, a few times, while its outcome is unknown."""
    unknown: OutcomeUnknown | None = None
    for pause in (0.0, *ASK_AGAIN_SECONDS):
        await trio.sleep(pause)
        try:
            return await request()
        except OutcomeUnknown as error:
            unknown = error
        except (NotSent, ServerBusy):
            if unknown is None:
                raise
    assert unknown is not None
    raise unknown


def submit_locally(local: LocalEngine, request: TaskRequest, payload: object) -> Submission:
    """Start a task that stays in this process. Raises what `LocalEngine.now` raises."""
    id = request.request_id
    task = LocalTask(id, local.now(request.type, payload, request_id=id, headers=request.headers), local.converter)
    return Submission(Placement.LOCAL, id, id, durability="memory", local=task)


def _submission(placement: Placement, request: TaskRequest, started: Started) -> Submission:
    return Submission(placement, request.request_id, started.workflow_id, started.run_id, started.durability)


def _is_less(reached: Durability | None, asked: Durability | None) -> bool:
    """Whether a server says that it reached less than was asked for."""
    return reached is not None and asked is not None and DURABILITIES.index(reached) < DURABILITIES.index(asked)


def _is_away(error: ZapError) -> bool:
    """Whether the next place may be tried: the server cannot have started anything."""
    if isinstance(error, CallFailed):
        return error.status == NOT_SERVED
    return isinstance(error, ConnectionLost)


@asynccontextmanager
async def open_fallback_client(
    *,
    zap: str,
    url: str,
    local: LocalEngine | None,
    namespace: str,
    task_queue: str,
    timeout: float,
    identity: str,
    ssl_context: ssl.SSLContext | None,
    shutdown_timeout: float,
    headers: HeaderSource | None = None,
    converter: DataConverter = PLAIN,
    bodies: Bodies = "json",
) -> AsyncIterator[FallbackClient]:
    """Open what is configured; nothing is waited for. `local` is None where nothing may run in this process."""
    zap_client: AsyncClient | None = None
    http: HttpFallback | None = None
    async with AsyncExitStack() as stack:
        if zap:
            zap_client = await stack.enter_async_context(
                open_client(
                    zap,
                    namespace=namespace,
                    identity=identity,
                    ssl_context=ssl_context,
                    timeout=timeout,
                    wait=False,
                    headers=headers,
                    converter=converter,
                    bodies=bodies,
                )
            )
        if url:
            from .http_fallback import open_http_fallback  # 45 ms that a program without a URL need not wait

            http = await stack.enter_async_context(open_http_fallback(url, namespace=namespace, timeout=timeout))
        async with trio.open_nursery() as workers, trio.open_nursery() as background:
            client = FallbackClient(
                zap_client, http, local, task_queue=task_queue, shutdown_timeout=shutdown_timeout, workers=workers
            )
            if zap_client is not None:
                background.start_soon(client.keep_placed, zap_client)
            yield client
            client.leave()
            background.cancel_scope.cancel()
