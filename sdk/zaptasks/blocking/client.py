"""The client: what goes to a server or, without one, runs in this process, beside all that only a server can do."""

from __future__ import annotations

import os
import ssl
import threading
from dataclasses import replace
from types import TracebackType
from typing import Final, Literal, Self

from zaptasks.connector import default_identity, parse_address, parse_url
from zaptasks.converters import PLAIN, DataConverter
from zaptasks.handlers import Function, Handler, Kind, check_name
from zaptasks.handles import TaskHandle
from zaptasks.headers import Headers, HeaderSource
from zaptasks.local_engine import DefaultHandler, LocalEngine
from zaptasks.options import Bodies, Durability, RetryPolicy, Seconds, asked, check_bodies, to_seconds
from zaptasks.spec import parse_spec
from zaptasks.task_request import TaskRequest

from .calls import ServerCalls
from .fallback import FallbackClient, submit_locally
from .handles import BlockingTaskHandle
from .loop import ClientLoop, Settings
from .submission import Placement, Submission

TIMEOUT_SECONDS: Final = 10.0
SHUTDOWN_SECONDS: Final = 10.0
"""What `stop` gives to what runs, unless the client is made with another number."""


class Client(ServerCalls):
    """Runs tasks now and on schedules: on a server if there is one, in this process if there is none.

    `zap` ("host:port") is tried first, then `url` ("http://host:port"), then this process; with `fallback="none"` the
    last step raises `NotSent` instead. What decides, and what happens when an answer is lost, stands in `fallback`.
    If neither is given they are taken from `TASKS_ZAP` and `TASKS_URL`; where those are empty too, or "" was given,
    everything runs here. `handler(type, payload)` runs the tasks that stay here. So it is for `now` and `add`, which go
    to `task_queue`; all other calls are those of `AsyncClient`, and want a server.
    `headers` is called at each start, in the thread that makes it, for the headers of the moment, such as the trace id
    of a request. `converter` encodes and decodes payloads: compression, encryption. `bodies` is as in `open_client`.

    The client connects in the background when it is first used, and goes on trying for as long as it lives. Every
    method may be called from any thread. A client that was used does not survive a fork: make one in each process.
    Call `stop`, or use it as a context manager, so that what runs can end; else the end of the process stops it.
    """

    _loop: ClientLoop

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
        bodies: Bodies = "json",
    ) -> None:
        if fallback not in ("local", "none"):
            raise ValueError(f'fallback is {fallback!r}: it must be "local" or "none"')
        if zap is None and url is None:
            zap, url = os.environ.get("TASKS_ZAP"), os.environ.get("TASKS_URL")
        if zap:
            parse_address(zap)
        settings = Settings(
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
            bodies=check_bodies(bodies),
        )
        super().__init__(ClientLoop(settings, LocalEngine(handler, converter=converter)))

    def __repr__(self) -> str:
        return str(self._loop.settings)

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

        `result()` of what it returns waits for its end, in this process too.

        One request id, yours or a new one, goes along to every place that is asked, so that the same submission never
        starts two tasks on a server. Where the task stays in this process it has one attempt and no timeouts.

        `durability` is what a server's answer waits for: "memory", "written" or "synced"; None is the server's own, the
        strongest that it has. The submission's `durability` says what was reached; in this process that is "memory".

        `headers` are texts that every attempt has as `current_task().headers`, at most 4 KiB, here and on a server.

        Raises `OutcomeUnknown` when a server may have accepted it and stays silent for the whole timeout: it may run,
        and asking again with the same request id is harmless. `CallFailed` is a server's no, `PayloadError` a payload
        that JSON cannot carry, `NoHandler` a task that had to stay here and that nothing here handles.
        """
        settings = self._loop.settings
        request = TaskRequest.make(
            type,
            payload,
            identity=settings.identity or default_identity(),  # now: the process may have been forked
            task_queue=settings.task_queue,
            request_id=request_id,
            retry_policy=retry_policy,
            start_to_close=start_to_close,
            schedule_to_close=schedule_to_close,
            heartbeat_timeout=heartbeat_timeout,
            headers=headers,
            header_source=settings.headers,
            durability=durability,
            converter=settings.converter,
        )
        if not settings.has_server:
            return submit_locally(self._loop.local, request, payload)
        server = self._loop.server if settings.zap else None
        submission = self._loop.call(FallbackClient.now, request, payload)
        if server is None or submission.placement is Placement.LOCAL:
            return submission
        task = TaskHandle(server, submission.workflow_id, submission.run_id, submission.durability)
        return replace(submission, handle=BlockingTaskHandle(self._loop, task))

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
        if self._loop.settings.has_server:
            return self._loop.call(FallbackClient.add, name, spec, fn, durability)
        local = self._loop.local
        local.register(name, fn)
        local.add(name, spec, fn)
        return Placement.LOCAL

    def stop(self) -> None:
        """Take no more work, give what runs `shutdown_timeout` seconds, and close. Calling it again only returns.

        Schedules on a server stay there.
        """
        self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


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
