"""Between an asyncio loop and the trio thread: blocks and calls go there, handlers come back.

A hop is one posted function each way. Neither loop ever waits for the other: only tasks do.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import copy_context
from typing import Any, Final, Generic, TypeVar

import trio

from .context import current_task
from .handlers import Function, Handlers, Kind, is_async, table
from .trio_thread import Block, enter_shared_thread

log = logging.getLogger("zaptasks.client")

T = TypeVar("T")

JOIN_SECONDS_MAX: Final = 1.0
"""What the last user gives to the thread to end, once nothing runs on it any more; it takes about a millisecond."""

CLEANUP_SECONDS_MAX: Final = 30.0
"""How long a handler that was canceled may clean up: an asyncio task can swallow a cancel, and would hold up its
worker for ever."""

SHUTDOWN_SECONDS: Final = 1.0
"""How much earlier than its worker a handler may be canceled by an asyncio program that ends: it cancels all its
tasks at once, in any order."""


class Reply(Generic[T]):
    """An asyncio future that is told on another thread. What comes after it was canceled is dropped."""

    __slots__ = ("_loop", "future")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.future: asyncio.Future[T] = loop.create_future()

    def set_result(self, result: T) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._resolve, result)

    def set_exception(self, exception: BaseException) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._fail, exception)

    def _resolve(self, result: T) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def _fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def running_loop() -> asyncio.AbstractEventLoop:
    """The asyncio loop that runs here. Raises `RuntimeError` where none does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "zaptasks.aio runs under asyncio, and this is not asyncio: under trio use zaptasks.open_client and"
            " zaptasks.open_worker, elsewhere zaptasks.Client"
        ) from None


async def call(block: Block[Any], method: Callable[..., Awaitable[T]], *args: object) -> T:
    """Run `method(*args)` on the trio thread, from any asyncio loop; what it raises comes through as it is.

    A cancel is passed on and not waited for; the call is canceled before any later one begins.
    """
    reply: Reply[T] = Reply(running_loop())
    running = block.call(reply, method, *args)
    try:
        return await reply.future
    except asyncio.CancelledError:
        running.cancel()
        raise


@asynccontextmanager
async def hold(manager: AbstractAsyncContextManager[T]) -> AsyncIterator[tuple[Block[T], T]]:
    """Hold a trio block open on the shared thread, for the length of an asyncio block.

    A cancel or an error in the asyncio block cancels the trio block; both wait for its end. If the trio block ends by
    an error of its own, the asyncio block is canceled and raises that error.
    """
    loop = running_loop()
    owner = asyncio.current_task()
    assert owner is not None, "it runs in a task"
    owner_ref = weakref.ref(owner)  # the trio thread must not keep a loop's tasks, with all they hold
    opened: Reply[T] = Reply(loop)
    ended: Reply[None] = Reply(loop)
    block = Block(manager, opened, ended, copy_context())
    abandoned = _Frame()
    # A block that nobody can leave any more, for its loop was closed or the process ends, is canceled.
    weakref.finalize(abandoned, block.cancel)
    thread = enter_shared_thread(block)
    is_broken = False

    def break_off(_: asyncio.Future[None]) -> None:
        nonlocal is_broken
        task = owner_ref()
        if task is not None:
            is_broken = task.cancel()

    error: BaseException | None = None
    try:
        value = await opened.future
        ended.future.add_done_callback(break_off)
        yield block, value
    except BaseException as raised:
        error = raised
        block.cancel()
    else:
        block.leave()
    ended.future.remove_done_callback(break_off)
    try:
        await outlast(ended.future, block.cancel)
    finally:
        thread.join_if_over(JOIN_SECONDS_MAX)
    if is_broken and owner.uncancel() == 0 and isinstance(error, asyncio.CancelledError):
        error = None
    broken_by = ended.future.exception()
    try:
        if error is None:
            error = broken_by
        elif broken_by is not None:
            log.error("what was held for asyncio has ended: %r", broken_by, exc_info=broken_by)
        if error is not None:
            raise error
    finally:
        del error, broken_by, abandoned


class _Frame:
    """Lives as long as the frame that holds it."""

    __slots__ = ("__weakref__",)


async def outlast(future: asyncio.Future[None], cancel: Callable[[], None]) -> None:
    """Wait until it is done, whatever comes; a cancel is passed on by `cancel`, and raised in the end."""
    canceled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            canceled = error
            cancel()
    if canceled is not None:
        raise canceled


# --- handlers -------------------------------------------------------------------------------------------


def on_asyncio(loop: asyncio.AbstractEventLoop, handlers: Handlers, kind: Kind) -> dict[str, Function]:
    """The handlers by name, each `async def` one as a trio function that runs it on the asyncio loop."""

    def carried(function: Function) -> Function:
        if not is_async(function):
            return function

        @functools.wraps(function)
        async def run(*args: object) -> object:
            return await HandlerTask(loop, function, args).run()

        return run

    return {name: carried(handler.function) for name, handler in table(handlers, kind).items()}


class HandlerTask:
    """One call of a handler: a task on the asyncio loop, and the trio task that waits for it.

    The asyncio task runs in a copy of the trio task's context, which holds `current_task()` and what the opener of the
    worker had set.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, function: Function, args: tuple[object, ...]) -> None:
        self._loop = loop
        self._function = function
        self._args = args
        self._context = copy_context()
        self._trio = trio.lowlevel.current_trio_token()
        self._ended = trio.Event()
        self._task: asyncio.Task[None] | None = None
        self._value: object = None
        self._error: BaseException | None = None
        self._is_canceled = False

    async def run(self) -> object:
        """Wait for the handler. A cancel reaches it with its reason; what it returns or raises then still counts."""
        self._tell(self._start)
        try:
            await self._ended.wait()
        except trio.Cancelled:
            pass
        else:
            if not self._is_canceled:
                return self._outcome()
            # Nobody asked for it here. If the program ends, its worker is about to be canceled too.
            await trio.sleep(SHUTDOWN_SECONDS)
            raise asyncio.CancelledError("the handler canceled itself")
        self._tell(self._cancel, current_task().cancel_reason or "the worker was canceled")
        with trio.CancelScope(shield=True, relative_deadline=CLEANUP_SECONDS_MAX):
            await self._ended.wait()
        if not self._ended.is_set():
            log.error("the handler %r runs %g s after its cancel: left behind", self._function, CLEANUP_SECONDS_MAX)
        elif not self._is_canceled:
            return self._outcome()
        await trio.lowlevel.checkpoint()  # raises the cancel again
        raise AssertionError("a cancel stays until its scope ends")

    def _outcome(self) -> object:
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # its traceback has this frame
        return self._value

    def _tell(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            self._error = RuntimeError("the asyncio loop that this worker was opened on is closed")
            self._ended.set()

    # On the asyncio loop:

    def _start(self) -> None:
        self._task = self._loop.create_task(self._call(), context=self._context)
        self._task.add_done_callback(self._finish)

    def _cancel(self, reason: str) -> None:
        if self._task is not None:
            self._task.cancel(reason)

    async def _call(self) -> None:
        try:
            self._value = await self._function(*self._args)
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit ends the handler and not the loop
            self._error = error

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._is_canceled = task.cancelled()
        if not task.cancelled() and task.exception() is not None:
            self._error = task.exception()
        with suppress(trio.RunFinishedError):
            self._trio.run_sync_soon(self._ended.set)
