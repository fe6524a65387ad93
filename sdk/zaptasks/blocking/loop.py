"""The trio loop of a blocking client: in a thread of its own, started by the first call that needs it."""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, TypeVar

from zaptasks.converters import DataConverter
from zaptasks.errors import ClientClosed
from zaptasks.headers import HeaderSource
from zaptasks.local_engine import LocalEngine
from zaptasks.options import Bodies, Seconds
from zapwire.errors import NotSent

from .fallback import FallbackClient, open_fallback_client
from .stepping import LoopThread, SteppedClient, run_stepped

log = logging.getLogger("zaptasks.client")

T = TypeVar("T")
_Thread: TypeAlias = LoopThread[FallbackClient]

THREAD_SECONDS_MAX: Final = 10.0
"""What a stop gives to the thread beyond its own time, to hand back what has not ended."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a client was made with; `zap` and `url` are empty where there is none."""

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
    bodies: Bodies

    def __str__(self) -> str:
        return f"<Client of {' then '.join(filter(None, (self.zap, self.url))) or 'this process'}>"

    @property
    def has_server(self) -> bool:
        """Whether there is somewhere to go to."""
        return bool(self.zap or self.url)


class ClientLoop:
    """Makes the calls of a client and of its handles, from any thread. It ends with the last of them, or by `stop`.

    Every call raises `ClientClosed` after `stop`, and in a process that was forked from the one that used it first.
    """

    def __init__(self, settings: Settings, local: LocalEngine) -> None:
        self.settings: Final = settings
        self._lock = threading.Lock()
        self._stopped = False
        self._parts = _Parts(local)
        # One that is dropped, or alive when the process ends, is stopped as well.
        self._stop = weakref.finalize(self, _Parts.stop, self._parts, settings.shutdown_timeout)

    @property
    def is_running(self) -> bool:
        """Whether there is a thread."""
        return self._parts.thread is not None

    @property
    def local(self) -> LocalEngine:
        """What runs tasks in this process. Raises `NotSent` where that is not wanted."""
        with self._lock:
            parts = self._usable()
        if self.settings.fallback == "none":
            raise NotSent(f"{self.settings} has no server to go to: give a ZAP address or a URL")
        return parts.local

    @property
    def server(self) -> SteppedClient:
        """The async client, for coroutines that `run` steps. Raises `NotSent` where no ZAP address is configured."""
        if not self.settings.zap:
            with self._lock:
                self._usable()
            only = "only an HTTP address, and this call goes over ZAP" if self.settings.url else "no server to ask"
            raise NotSent(
                f"{self.settings} has {only}: start one with `zaptasks serve`, and give its address with"
                ' zap="127.0.0.1:9999" or in TASKS_ZAP'
            )
        zap = self._running().value.zap
        assert zap is not None, "a ZAP address was given"
        return SteppedClient(zap)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: Seconds | None = None, what: str = "the call") -> T:
        """Run a coroutine of `server` in this thread, for at most `timeout` seconds; then it raises `TimeoutError`.

        A call that is under way when the time is over, or when this thread gets a `KeyboardInterrupt`, is canceled.
        """
        return run_stepped(coroutine, self._make, timeout, what)

    def _make(self, method: Callable[..., Awaitable[T]], *args: object, deadline: float | None = None) -> T:
        made: T = self._running().call(method, *args, deadline=deadline)
        return made

    def call(self, method: Callable[..., Awaitable[T]], *args: object) -> T:
        """Run a method of the fallback client on the loop, and wait for what it returns or raises."""
        thread = self._running()
        return self._make(method, thread.value, *args)

    def stop(self) -> None:
        """End it, and wait for that. Calling it again only returns."""
        with self._lock:
            self._stopped = True
        self._stop()

    def _usable(self) -> _Parts:
        if self._stopped:
            raise ClientClosed(f"{self.settings} was stopped")
        parts = self._parts
        parts.pid = parts.pid or os.getpid()
        if parts.pid != os.getpid():
            raise ClientClosed(
                f"{self.settings} was used in process {parts.pid} and did not survive the fork into {os.getpid()}:"
                " make a client in each process, after the fork"
            )
        return parts

    def _running(self) -> _Thread:
        with self._lock:
            parts = self._usable()
            if parts.thread is None:
                parts.thread = _open_thread(self.settings, parts.local if self.settings.fallback == "local" else None)
            return parts.thread


class _Parts:
    """What a client is made of once it is used, apart from the client, so that it can be dropped."""

    def __init__(self, local: LocalEngine) -> None:
        self.local = local
        self.thread: _Thread | None = None
        self.pid = 0
        """The process that used it first."""

    def stop(self, seconds: float) -> None:
        """End both, side by side. In a forked child they are not there: only their memory is."""
        if self.pid not in (0, os.getpid()):
            return
        deadline = time.monotonic() + seconds + THREAD_SECONDS_MAX
        if self.thread is not None:
            self.thread.leave()
        left = self.local.stop(seconds)
        if left:
            log.warning("the client was stopped with work left: running %s, dropped %s", left.running, left.dropped)
        if self.thread is not None:
            self.thread.join(max(deadline - time.monotonic(), 0))


def _open_thread(settings: Settings, local: LocalEngine | None) -> _Thread:
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
        headers=settings.headers,
        converter=settings.converter,
        bodies=settings.bodies,
    )
    ended: Future[None] = Future()
    ended.add_done_callback(_log_end)
    return LoopThread("zaptasks-client", manager, ended)


def _log_end(ended: Future[None]) -> None:
    error = ended.exception()
    if error is not None:
        log.error("the client's loop has ended: %r", error, exc_info=error)
