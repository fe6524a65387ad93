"""A trio loop in a thread, for callers that have none of their own: plain threads and asyncio loops.

    thread = TrioThread("zaptasks-client")
    block = Block(open_fallback_client(...), opened, ended)   # two `Future`s, or anything like them
    block.enter(thread)
    client = opened.result()
    block.call(answer, client.now, request)                   # any number, from any thread
    block.leave()

The thread runs for as long as it holds a block.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import Context
from typing import Any, Generic, Protocol, TypeVar

import trio

from .errors import ClientClosed

log = logging.getLogger("zaptasks.client")

T = TypeVar("T")
Told = TypeVar("Told", contravariant=True)


class Answer(Protocol[Told]):
    """Where an outcome goes; it is told once, on the trio thread. A `concurrent.futures.Future` is one."""

    def set_result(self, result: Told) -> object: ...
    def set_exception(self, exception: BaseException) -> object: ...


class TrioThread:
    """A thread with a trio loop. It starts at once, and ends when the last of the blocks that entered it has ended."""

    def __init__(self, name: str) -> None:
        self._lock = threading.Lock()
        self._held = 0
        self._is_over = False
        self._empty = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._started: Future[trio.lowlevel.TrioToken] = Future()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()
        self._token = self._started.result()

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on it."""
        return threading.get_ident() == self._thread.ident

    def post(self, function: Callable[..., object], *args: object) -> None:
        """Have the loop call a function that does not wait. Functions are called in the order they were posted in.

        Raises `trio.RunFinishedError` after the thread's end.
        """
        self._token.run_sync_soon(function, *args)

    def join(self, timeout: float) -> None:
        """Wait for its end, for at most `timeout` seconds, unless this is the thread itself."""
        if not self.is_current:
            self._thread.join(timeout)
            if self._thread.is_alive():
                log.warning("the thread %s did not end within %g s; it is left behind", self._thread.name, timeout)

    def join_if_over(self, timeout: float) -> None:
        """Wait for its end if nothing holds it any more."""
        if self._is_over:
            self.join(timeout)

    def _hold(self) -> bool:
        """Keep it running; False if it ends already."""
        with self._lock:
            self._held += not self._is_over
            return not self._is_over

    def _release(self) -> None:
        """On the thread: one block less."""
        with self._lock:
            self._held -= 1
            self._is_over = not self._held
        if self._is_over:
            self._empty.set()

    def _main(self) -> None:
        try:
            trio.run(self._run)
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)
            else:
                log.error("the trio loop of %s has ended: %r", self._thread.name, error, exc_info=error)
        finally:
            self._is_over = True

    async def _run(self) -> None:
        async with trio.open_nursery() as self._nursery:
            self._started.set_result(trio.lowlevel.current_trio_token())
            await self._empty.wait()


class Block(Generic[T]):
    """An `async with` block on a trio thread, held open for a caller outside, and the calls that he makes in it.

    `opened` is told what the manager gave, or what it raised; `ended` always follows: with an error if the block ended
    by one after it was open. The manager, and everything that it starts, runs in `context`, by default an empty one.
    """

    def __init__(
        self,
        manager: AbstractAsyncContextManager[T],
        opened: Answer[T],
        ended: Answer[None],
        context: Context | None = None,
    ) -> None:
        self._manager = manager
        self._opened = opened
        self._ended = ended
        self._context = context or Context()
        self._scope = trio.CancelScope()
        self._leave = trio.Event()
        self._calls: trio.Nursery | None = None  # None before the beginning and after the end
        self._thread: TrioThread | None = None

    def enter(self, thread: TrioThread) -> bool:
        """Open the block on this thread; False if the thread is about to end."""
        if not thread._hold():
            return False
        self._thread = thread
        thread.post(self._start)
        return True

    def leave(self) -> None:
        """End the block as at the end of its lines. Waits for nothing; calls that are under way get `ClientClosed`."""
        self._post(self._leave.set)

    def cancel(self) -> None:
        """End the block as by a cancel. Waits for nothing."""
        self._post(self._scope.cancel)

    def call(self, answer: Answer[Any], method: Callable[..., Awaitable[Any]], *args: object) -> Call:
        """Run `method(*args)` on the thread and tell `answer` its outcome: `ClientClosed` if the block is not open."""
        call = Call(self, answer, method, args)
        assert self._thread is not None, "a block is entered before it is used"
        try:
            self._thread.post(call._start)
        except trio.RunFinishedError:
            answer.set_exception(ClientClosed("the client was closed"))
        return call

    def _post(self, function: Callable[[], object]) -> None:
        if self._thread is not None:
            with suppress(trio.RunFinishedError):
                self._thread.post(function)

    def _start(self) -> None:
        assert self._thread is not None
        nursery = self._thread._nursery
        assert nursery is not None, "the loop of a thread that is held runs"
        self._context.run(nursery.start_soon, self._run)

    async def _run(self) -> None:
        is_open = False
        error: BaseException | None = None
        try:
            with self._scope:
                async with self._manager as value, trio.open_nursery() as self._calls:
                    is_open = True
                    self._opened.set_result(value)
                    try:
                        await self._leave.wait()
                    finally:
                        self._calls.cancel_scope.cancel()
                        self._calls = None
        except BaseException as raised:
            error = raised
        if not is_open:
            self._opened.set_exception(error or ClientClosed("it was canceled before it was open"))
            error = None
        assert self._thread is not None
        self._thread._release()
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)


class Call:
    """One call in a block."""

    __slots__ = ("_answer", "_args", "_block", "_method", "_scope")

    def __init__(
        self,
        block: Block[Any],
        answer: Answer[Any],
        method: Callable[..., Awaitable[Any]],
        args: tuple[object, ...],
    ) -> None:
        self._block = block
        self._answer = answer
        self._method = method
        self._args = args
        self._scope = trio.CancelScope()

    def cancel(self) -> None:
        """Cancel it; waits for nothing. It is canceled before any call that is made after this."""
        self._block._post(self._scope.cancel)

    def _start(self) -> None:
        if self._block._calls is None:
            self._answer.set_exception(ClientClosed("the client was closed"))
        else:
            self._block._calls.start_soon(self._run)

    async def _run(self) -> None:
        with self._scope:
            try:
                value = await self._method(*self._args)
            except trio.Cancelled:
                self._answer.set_exception(ClientClosed("the client was closed while this call waited"))
                raise
            except Exception as error:
                self._answer.set_exception(error)
            except BaseException as error:
                self._answer.set_exception(error)
                raise
            else:
                self._answer.set_result(value)


# --- the thread that all asyncio loops share ------------------------------------------------------------

_shared: TrioThread | None = None
_shared_lock = threading.Lock()


def enter_shared_thread(block: Block[Any]) -> TrioThread:
    """Open a block on the thread of this process, which starts with the first block and ends with the last.

    Waits about a millisecond for a thread that has to be started.
    """
    global _shared
    with _shared_lock:
        if _shared is None or not block.enter(_shared):
            _shared = TrioThread("zaptasks-trio")
            block.enter(_shared)
        return _shared


def _forget_shared_thread() -> None:
    """In a forked child: the thread is not there, and its lock may be held by nobody."""
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_shared_thread)
