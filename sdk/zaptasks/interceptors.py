"""Interceptors: code around every attempt at the tasks and activities of a worker.

    async def traced(call: Call, proceed: Proceed) -> Any:
        with tracer.span(call.name, parent=current_task().headers.get("trace")):
            return await proceed(*call.args)

    open_worker(client, tasks=[send], interceptors=[traced])

The first one is outermost. Each may go on with other arguments, return another result, raise, or not go on at all; to
the server, that is what the handler did. `current_task()` works in it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from .handlers import is_async


@dataclass(frozen=True, slots=True)
class Call:
    """The handler that is about to run: the type that it serves, and its arguments, decoded.

    A task handler has its payload as the only one, or none if it takes none.
    """

    name: str
    args: tuple[Any, ...]


Proceed: TypeAlias = Callable[..., Awaitable[Any]]
"""Runs what is inside, in the end the handler, with these arguments; returns and raises what it does."""

Interceptor: TypeAlias = Callable[[Call, Proceed], Awaitable[Any]]
"""An `async def` that runs around an attempt, on the worker's loop: what it returns and raises is the outcome. It is
canceled with its handler, or where it waits by itself."""


def checked_interceptors(interceptors: Iterable[Interceptor]) -> tuple[Interceptor, ...]:
    """The interceptors, outermost first. Raises `TypeError` for what is none."""
    if callable(interceptors):
        raise TypeError(f"interceptors is {interceptors!r}, which is one function: pass a list of them")
    found = tuple(interceptors)
    for interceptor in found:
        if not is_async(interceptor):
            raise TypeError(f"interceptor {interceptor!r}: it must be an `async def` that takes (call, proceed)")
    return found


async def call_through(interceptors: tuple[Interceptor, ...], name: str, innermost: Proceed, *args: Any) -> Any:
    """Call `innermost(*args)`, with the interceptors around it."""
    if not interceptors:
        return await innermost(*args)

    async def proceed(*args: Any) -> Any:
        return await call_through(interceptors[1:], name, innermost, *args)

    return await interceptors[0](Call(name, args), proceed)
