"""The client for any application: blocking, thread safe, with or without a server.

    client = zaptasks.Client(zap="127.0.0.1:9999")
    client.add("audit.archive", "0 3 * * *", archive)
    client.now("email.send", {"to": "ada@example.org"})

A trio loop in a thread of its own holds the connections; a call hops there and back once, and blocks the thread that
makes it. In an asyncio or trio program call it from a worker thread, or use `open_client`.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Self, TypeVar

from zapwire.errors import NotSent

from .connector import default_identity, parse_address, parse_url
from .converters import PLAIN, DataConverter
from .errors import ClientClosed
from .fallback import FallbackClient, Placement, Submission, local_submission, open_fallback_client
from .handlers import Function, Handler, Kind, check_name
from .headers import Headers, HeaderSource
from .local import DefaultHandler, LocalEngine
from .options import Durability, RetryPolicy, Seconds, asked, to_seconds
from .spec import parse_spec
from .task_request import TaskRequest
from .trio_thread import Block, TrioThread

log = logging.getLogger("zaptasks.client")

T = TypeVar("T")

TIMEOUT_SECONDS: Final = 10.0
SHUTDOWN_SECONDS: Final = 10.0
"""What `stop` gives to what runs, unless the client is made with another number."""

THREAD_SECONDS_MAX: Final = 10.0
"""What `stop` gives to the thread beyond that, to hand back what has not ended."""


@dataclass(frozen=True, slots=True)
class _Settings:
    zap: str
    url: str
    fallback: Literal["local", "none"]
    namespace: str
    task_queue: str
    timeout: float
    identity: str
    ssl_context: ssl.SSLContext | None
    shutdown_timeout: float
    headers: HeaderSource | None
    converter: DataConverter


class Client:
    """Runs tasks now and on schedules: on a server if there is one, in this process if there is none.

    `zap` ("host:port") is tried first, then `url` ("http://host:port"), then this process; with `fallback="none"` the
    last step raises `NotSent` instead. What decides, and what happens when an answer is lost, stands in `fallback`.
    If neither is given they are taken from `TASKS_ZAP` and `TASKS_URL`; where those are empty too, or "" was given,
    everything runs here. `handler(type, payload)` runs the tasks that stay here.
    `headers` is called at each `now`, in the thread that calls it, for the headers of the moment, such as the trace id
    of a request. `converter` encodes and decodes payloads: compression, encryption.

    The client connects in the background when it is first used, and goes on trying for as long as it lives. Every
    method may be called from any thread. A client that was used does not survive a fork: make one in each process.
    Call `stop`, or use it as a context manager, so that what runs can end; else the end of the process stops it.
    """

    def __init__(
        self,
        url: str | None = None,
        zap: str | None = None,
        handler: DefaultHandler | None = None,
        *,
        fallback: Literal["local", "none"] = "local",
        namespace: str = "default",
        task_queue: str = "default",
        timeout: Seconds = TIMEOUT_SECONDS,
        identity: str = "",
        ssl_context: ssl.SSLContext | None = None,
        shutdown_timeout: Seconds = SHUTDOWN_SECONDS,
        headers: HeaderSource | None = None,
        converter: DataConverter = PLAIN,
    ) -> None:
        if fallback not in ("local", "none"):
            raise ValueError(f'fallback is {fallback!r}: it must be "local" or "none"')
        if zap is None and url is None:
            zap, url = os.environ.get("TASKS_ZAP"), os.environ.get("TASKS_URL")
        if zap:
            parse_address(zap)
        self._settings = _Settings(
            zap=zap or "",
            url=parse_url(url) if url else "",
            fallback=fallback,
            namespace=namespace,
            task_queue=check_name(task_queue, Kind.TASK),
            timeout=to_seconds(timeout, "timeout"),
            identity=identity,
            ssl_context=ssl_context,
            shutdown_timeout=to_seconds(shutdown_timeout, "shutdown_timeout"),
            headers=headers,
            converter=converter,
        )
        self._has_server = bool(zap or url)
        self._lock = threading.Lock()
        self._stopped = False
        self._parts = _Parts(LocalEngine(handler, converter=converter))
        # A client that is dropped, or alive when the process ends, is stopped as well.
        self._stop = weakref.finalize(self, _Parts.stop, self._parts, self._settings.shutdown_timeout)

    def __repr__(self) -> str:
        places = [place for place in (self._settings.zap, self._settings.url) if place]
        return f"<Client of {' then '.join(places) or 'this process'}>"

    def now(
        self,
        type: str,
        payload: object = None,
        *,
        request_id: str = "",
        retry_policy: RetryPolicy | None = None,
        start_to_close: Seconds | None = None,
        schedule_to_close: Seconds | None = None,
        heartbeat_timeout: Seconds | None = None,
        headers: Headers | None = None,
        durability: Durability | None = None,
    ) -> Submission:
        """Run a task of this type as soon as a worker is free; returns once it is accepted, and says where.

        One request id, yours or a new one, goes along to every place that is asked, so that the same submission never
        starts two tasks on a server. Where the task stays in this process it has one attempt and no timeouts.

        `durability` is what a server's answer waits for: "memory", "written" or "synced"; None is the server's own, the
        strongest that it has. The submission's `durability` says what was reached; in this process that is "memory".

        `headers` are texts that every attempt has as `current_task().headers`, at most 4 KiB, here and on a server.

        Raises `OutcomeUnknown` when a server may have accepted it and stays silent for the whole timeout: it may run,
        and asking again with the same request id is harmless. `CallFailed` is a server's no, `PayloadError` a payload
        that JSON cannot carry, `NoHandler` a task that had to stay here and that nothing here handles.
        """
        request = TaskRequest.make(
            type,
            payload,
            identity=self._settings.identity or default_identity(),  # now: the process may have been forked
            task_queue=self._settings.task_queue,
            request_id=request_id,
            retry_policy=retry_policy,
            start_to_close=start_to_close,
            schedule_to_close=schedule_to_close,
            heartbeat_timeout=heartbeat_timeout,
            headers=headers,
            header_source=self._settings.headers,
            durability=durability,
            converter=self._settings.converter,
        )
        if self._has_server:
            return self._running().call(FallbackClient.now, request, payload)
        self._local_only().now(type, payload, request_id=request.request_id, headers=request.headers)
        return local_submission(request.request_id)

    def add(self, name: str, spec: str, fn: Function, *, durability: Durability | None = None) -> Placement:
        """Run `fn()` at every time of `spec`, a Go duration ("90s") or a cron expression ("0 3 * * *").

        On a server this is a durable schedule, and this process serves it: each firing runs `fn` in exactly one of the
        processes that added the same name. After a reconnect both are renewed. Adding a name again replaces its spec
        and its function. Without a server, or until one is reached, `fn` fires in this process.

        With only a URL configured the server keeps the schedule and this process never runs `fn`, because firings are
        delivered over ZAP: a worker has to serve `name`. It is logged once.

        `durability` is as in `now`; a server that reaches less is named in the log.

        A plain function runs in a thread, an `async def` one on the client's trio loop; it may take the payload or
        nothing. Raises `ValueError` for a bad spec before anything else, `CallFailed` for a server's no.
        """
        check_name(name, Kind.TASK)
        parse_spec(spec)
        Handler(name, fn)
        asked(durability)
        if self._has_server:
            return self._running().call(FallbackClient.add, name, spec, fn, durability)
        local = self._local_only()
        local.register(name, fn)
        local.add(name, spec, fn)
        return Placement.LOCAL

    def stop(self) -> None:
        """Take no more work, give what runs `shutdown_timeout` seconds, and close. Calling it again only returns.

        Schedules on a server stay there.
        """
        with self._lock:
            self._stopped = True
        self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _usable(self) -> _Parts:
        if self._stopped:
            raise ClientClosed(f"{self!r} was stopped")
        parts = self._parts
        parts.pid = parts.pid or os.getpid()
        if parts.pid != os.getpid():
            raise ClientClosed(
                f"{self!r} was used in process {parts.pid} and did not survive the fork into {os.getpid()}:"
                " make a client in each process, after the fork"
            )
        return parts

    def _running(self) -> _Loop:
        """The client's loop, started by the first call."""
        with self._lock:
            parts = self._usable()
            if parts.loop is None:
                parts.loop = _Loop(self._settings, parts.local if self._settings.fallback == "local" else None)
            return parts.loop

    def _local_only(self) -> LocalEngine:
        with self._lock:
            parts = self._usable()
        if self._settings.fallback == "none":
            raise NotSent(f"{self!r} has no server to go to: give a ZAP address or a URL")
        return parts.local


class _Parts:
    """What a client is made of once it is used, apart from the client, so that it can be dropped."""

    def __init__(self, local: LocalEngine) -> None:
        self.local = local
        self.loop: _Loop | None = None
        self.pid = 0
        """The process that used it first."""

    def stop(self, seconds: float) -> None:
        """End both, side by side. In a forked child they are not there: only their memory is."""
        if self.pid not in (0, os.getpid()):
            return
        deadline = time.monotonic() + seconds + THREAD_SECONDS_MAX
        if self.loop is not None:
            self.loop.leave()
        left = self.local.stop(seconds)
        if left:
            log.warning("the client was stopped with work left: running %s, dropped %s", left.running, left.dropped)
        if self.loop is not None:
            self.loop.join(max(deadline - time.monotonic(), 0))


class _Loop:
    """A trio loop in a thread of the client's own, that holds a `FallbackClient`."""

    def __init__(self, settings: _Settings, local: LocalEngine | None) -> None:
        manager = open_fallback_client(
            zap=settings.zap,
            url=settings.url,
            local=local,
            namespace=settings.namespace,
            task_queue=settings.task_queue,
            timeout=settings.timeout,
            identity=settings.identity,
            ssl_context=settings.ssl_context,
            shutdown_timeout=settings.shutdown_timeout,
            converter=settings.converter,
        )
        opened: Future[FallbackClient] = Future()
        ended: Future[None] = Future()
        ended.add_done_callback(_log_end)
        self._thread = TrioThread("zaptasks-client")
        self._block = Block(manager, opened, ended)
        self._block.enter(self._thread)
        self._client = opened.result()

    def call(self, method: Callable[..., Awaitable[T]], *args: object) -> T:
        """Run a method of the client on the loop and wait for what it returns or raises.

        Not `trio.from_thread.run`: that one refuses to be called from another trio loop, where blocking is the
        caller's choice.
        """
        if self._thread.is_current:
            raise RuntimeError(
                "a blocking call from the client's own loop would wait for itself: in an `async def` function that this"
                " client runs, call it with trio.to_thread.run_sync, or make the function a plain `def`"
            )
        answer: Future[T] = Future()
        self._block.call(answer, method, self._client, *args)
        return answer.result()

    def leave(self) -> None:
        """Have the loop end, in its own time."""
        self._block.leave()

    def join(self, timeout: float) -> None:
        """Wait for the end, unless this is the loop's own thread."""
        self._thread.join(timeout)


def _log_end(ended: Future[None]) -> None:
    error = ended.exception()
    if error is not None:
        log.error("the client's loop has ended: %r", error, exc_info=error)


# --- the client of the process ------------------------------------------------------------------------

_default: Client | None = None
_default_pid = 0
_default_lock = threading.Lock()


def default() -> Client:
    """The client of this process: the one that was set, else one made from `TASKS_URL` and `TASKS_ZAP`.

    In a forked child it is a new one.
    """
    global _default, _default_pid
    with _default_lock:
        if _default is None or _default_pid != os.getpid():
            _default = Client()
            _default_pid = os.getpid()
        return _default


def set_default(client: Client | None) -> None:
    """Make `client` the one that `default` returns; None makes the next call build one. Nothing is stopped."""
    global _default, _default_pid
    with _default_lock:
        _default, _default_pid = client, os.getpid()
