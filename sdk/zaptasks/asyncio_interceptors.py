"""Interceptors of an asyncio worker: they run on the asyncio loop, around a handler that the trio thread calls.

    trio task        asyncio task of the interceptors        trio task        asyncio task or thread of the handler
    the attempt ---> around, around, proceed --------------> proceed -------> the handler
                <--- result, error <------------------------ <--------------- result, error

All interceptors of an attempt share one asyncio task, so that it costs two hops, however many they are. The handler
sees the context variables that they set.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextvars import Context, copy_context
from typing import Any

import trio

from .asyncio_bridge import HandlerTask, Reply, outlast
from .context import current_task
from .groups import unwrapped
from .interceptors import Call, Interceptor, Proceed, call_through, checked_interceptors


def interceptors_on_asyncio(
    loop: asyncio.AbstractEventLoop, interceptors: Iterable[Interceptor]
) -> tuple[Interceptor, ...]:
    """One interceptor for trio that runs these on the asyncio loop; none for none."""
    found = checked_interceptors(interceptors)

    async def around(call: Call, proceed: Proceed) -> Any:
        with unwrapped():
            async with trio.open_nursery() as nursery:
                return await _Interception(loop, nursery, found, call, proceed).run()

    return (around,) if found else ()


class _Interception(HandlerTask):
    """The interceptors of one attempt, as a task on the asyncio loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        nursery: trio.Nursery,
        interceptors: tuple[Interceptor, ...],
        call: Call,
        proceed: Proceed,
    ) -> None:
        super().__init__(loop, self._intercept, call.args)
        self._nursery = nursery
        self._interceptors = interceptors
        self._name = call.name
        self._proceed = proceed
        self._inside = 0

    # On the asyncio loop:

    async def _intercept(self, *args: object) -> object:
        return await call_through(self._interceptors, self._name, self._go_on, *args)

    def _cancel(self, reason: str) -> None:
        if not self._inside:  # else it comes from the handler, which is canceled where it runs
            super()._cancel(reason)

    async def _go_on(self, *args: object) -> object:
        """Have the trio thread go on, and wait for the end of that, also when this is canceled."""
        reply: Reply[Any] = Reply(self._loop)
        scope = trio.CancelScope()
        self._inside += 1
        try:
            self._trio.run_sync_soon(self._begin, copy_context(), scope, reply, args)
            await outlast(reply.future, lambda: self._trio.run_sync_soon(scope.cancel))
        finally:
            self._inside -= 1
            if reply.future.done():
                reply.future.exception()  # or asyncio would say that nobody saw it
        return reply.future.result()

    # On the trio thread:

    def _begin(self, context: Context, scope: trio.CancelScope, reply: Reply[Any], args: tuple[object, ...]) -> None:
        try:
            context.run(self._nursery.start_soon, self._run_inside, scope, reply, args)
        except RuntimeError:
            reply.set_exception(RuntimeError(f"the attempt at {self._name!r} is over: it cannot be gone on with"))

    async def _run_inside(self, scope: trio.CancelScope, reply: Reply[Any], args: tuple[object, ...]) -> None:
        try:
            with scope:
                reply.set_result(await self._proceed(*args))
            if scope.cancelled_caught:
                reply.set_exception(asyncio.CancelledError("the interceptor was canceled"))
        except trio.Cancelled:
            reply.set_exception(asyncio.CancelledError(current_task().cancel_reason or "the worker was canceled"))
            raise
        except BaseException as error:
            reply.set_exception(error)
