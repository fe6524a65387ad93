"""Coroutines of the async client, stepped by a thread that blocks: only the calls in them hop to a trio loop.

The calling thread encodes arguments and decodes answers, as for asyncio. docs/decisions/0023 says why.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from zaptasks.client import AsyncClient
from zaptasks.options import Seconds, to_seconds
from zaptasks.trio_thread import Answer, Block, TrioThread

T = TypeVar("T")


class Loop(Protocol):
    """What makes the calls of blocking clients and handles."""

    @property
    def server(self) -> SteppedClient:
        """The async client, for coroutines that `run` steps."""

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: Seconds | None = None, what: str = "the call") -> T:
        """Run a coroutine of `server` in this thread, for at most `timeout` seconds; then it raises `TimeoutError`."""


class MakeCall(Protocol):
    """Makes one call on a loop, and waits for what it returns or raises, or until `deadline` (`time.monotonic`)."""

    def __call__(self, method: Callable[..., Awaitable[T]], *args: object, deadline: float | None = None) -> T: ...


def run_stepped(
    coroutine: Coroutine[Any, Any, T], call: MakeCall, timeout: Seconds | None = None, what: str = "the call"
) -> T:
    """Run a coroutine of a `SteppedClient` in this thread; `call` makes the calls that it waits for.

    A call that is under way when the time is over, or when this thread gets a `KeyboardInterrupt`, is canceled.
    """
    try:
        seconds = None if timeout is None else to_seconds(timeout, "timeout")
        deadline = None if seconds is None else time.monotonic() + seconds

        def make(hop: Hop[Any]) -> Any:
            try:
                return call(hop.method, *hop.args, deadline=deadline)
            except _TimeIsOver:
                raise TimeoutError(f"{what} did not come within {seconds:g} seconds") from None

        return step(coroutine, make)
    finally:
        coroutine.close()


class _TimeIsOver(Exception):
    """The time of the caller, and not that of a call."""


class LoopThread(Generic[T]):
    """A thread with a trio loop that holds one `async with` block open, for callers that block."""

    def __init__(self, name: str, manager: AbstractAsyncContextManager[T], ended: Answer[None]) -> None:
        """Returns when the block is open, or raises what it raised. `ended` is told of its end."""
        opened: Future[T] = Future()
        self._thread = TrioThread(name)
        self._block = Block(manager, opened, ended)
        self._block.enter(self._thread)
        self.value: Final = opened.result()
        """What the block gave."""

    def call(self, method: Callable[..., Awaitable[Any]], *args: object, deadline: float | None = None) -> Any:
        """Run `method(*args)` on the loop and wait for what it returns or raises, or until the deadline.

        Not `trio.from_thread.run`: that one refuses to be called from another trio loop, where blocking is the
        caller's choice.
        """
        if self._thread.is_current:
            raise RuntimeError(
                "a blocking call from the client's own loop would wait for itself: in an `async def` function that this"
                " client runs, call it with trio.to_thread.run_sync, or make the function a plain `def`"
            )
        answer: Future[Any] = Future()
        call = self._block.call(answer, method, *args)
        try:
            answer.exception(None if deadline is None else max(deadline - time.monotonic(), 0))
        except TimeoutError:
            call.cancel()
            raise _TimeIsOver from None
        except BaseException:  # KeyboardInterrupt: nobody waits any more
            call.cancel()
            raise
        return answer.result()

    def leave(self) -> None:
        """Have the loop end, in its own time."""
        self._block.leave()

    def join(self, timeout: float) -> None:
        """Wait for the end, unless this is the loop's own thread."""
        self._thread.join(timeout)


@dataclass(frozen=True, slots=True)
class Hop(Generic[T]):
    """A call that a coroutine wants made. Who steps the coroutine makes it, and sends or throws what comes of it."""

    method: Callable[..., Awaitable[T]]
    args: tuple[object, ...]

    def __await__(self) -> Generator[Hop[T], T, T]:
        return (yield self)


class SteppedClient(AsyncClient):
    """The async client, with its methods and handles, for coroutines that no loop runs: their calls come out as hops.

    As for asyncio, one method is replaced; docs/decisions/0017 says what that asks of the others.
    """

    def __init__(self, inner: AsyncClient) -> None:
        vars(self).update(vars(inner))  # the same connection, and the same settings

    async def _repeatedly(
        self, attempt: Callable[[float | None], Awaitable[T]], timeout: float | None, repeat: bool
    ) -> T:
        hop: Hop[T] = Hop(super()._repeatedly, (attempt, timeout, repeat))
        return await hop


def step(coroutine: Coroutine[Any, Any, T], make: Callable[[Hop[Any]], Any]) -> T:
    """Run a coroutine from its beginning to its end; `make` makes the calls that it waits for."""
    try:
        hop = coroutine.send(None)
        while True:
            try:
                outcome = make(hop)
            except BaseException as error:
                hop = coroutine.throw(error)
            else:
                hop = coroutine.send(outcome)
    except StopIteration as end:
        value: T = end.value
        return value
