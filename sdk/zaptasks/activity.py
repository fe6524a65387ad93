"""Activities: the functions that workflows have done, and what such a function may ask and say while it runs.

    from zaptasks import activity

    @activity.defn
    async def import_rows(path: str) -> int:
        done = next(iter(activity.heartbeat_details()), 0)
        ...
        activity.heartbeat(done)

The functions here speak for the attempt that the calling code runs for, in `async def` and `def` handlers and in
everything that they call. Each is the method or attribute of that name of `zaptasks.current_task()`, which is there for
one-shot tasks too; outside of a handler they raise `RuntimeError`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from typing import Any, Final, NoReturn, TypeVar, overload

from .context import CancelRequested, TaskContext, current_task
from .handlers import Function, Kind, mark
from .metrics import Metrics

__all__ = [
    "CancelRequested",
    "cancel_reason",
    "cancel_requested",
    "complete_later",
    "defn",
    "emit",
    "heartbeat",
    "heartbeat_details",
    "info",
    "logger",
    "metrics",
    "progress",
    "raise_if_canceled",
]

F = TypeVar("F", bound=Function)


@overload
def defn(function: F, /) -> F: ...
@overload
def defn(*, name: str = "", process: bool = False) -> Callable[[F], F]: ...
def defn(function: F | None = None, /, *, name: str = "", process: bool = False) -> F | Callable[[F], F]:
    """Mark a function or a method as an activity, under `name` or its own.

    It stays what it was. A worker takes `activities=[function]`, `[mailer.send]` for the method of an object, and
    `[mailer]` for all of its decorated methods.

    With `process` a `def` function runs in a process of the worker's own, which can be stopped by force, and whose
    death is a failure of the attempt and of nothing else. The process imports it by its module and name.
    """
    return mark(Kind.ACTIVITY, function, name, process)


def info() -> TaskContext:
    """The attempt that this code runs for: ids, attempt number, timeouts, `task_token`."""
    return current_task()


def heartbeat(*details: object) -> None:
    """Say that the attempt is alive, and keep `details` for the next one. Cheap; see `TaskContext.heartbeat`."""
    current_task().heartbeat(*details)


def heartbeat_details() -> tuple[Any, ...]:
    """What the last attempt that gave details had given; () if none did."""
    return current_task().heartbeat_details


def progress(fraction: float | None, text: str = "") -> None:
    """Say how far the attempt is, from 0 to 1, None if unknown; a heartbeat as well."""
    current_task().progress(fraction, text)


def emit(item: object) -> None:
    """Stream an item to whoever reads `handle.output()`. Never waits; see `TaskContext.emit` for its bounds."""
    current_task().emit(item)


def cancel_requested() -> bool:
    """Whether somebody wants this attempt to stop. An `async def` handler is canceled besides."""
    return current_task().cancel_requested


def cancel_reason() -> str:
    """Why somebody wants it to stop; "" while nobody does."""
    return current_task().cancel_reason


def raise_if_canceled() -> None:
    """For handlers in threads: raise `CancelRequested` once somebody wants this attempt to stop."""
    current_task().raise_if_canceled()


def complete_later() -> NoReturn:
    """End the handler and leave the attempt to whoever has `info().task_token`; see `TaskContext.complete_later`."""
    current_task().complete_later()


metrics: Final = Metrics(lambda: current_task().metrics._find())
"""Counts and measures for the worker's metrics handler, with the type of the activity as a tag."""


class _Logger(logging.LoggerAdapter[logging.Logger]):
    """Finds its attempt when a line is logged, so that one object serves all."""

    def process(self, msg: object, kwargs: MutableMapping[str, Any]) -> tuple[object, MutableMapping[str, Any]]:
        return current_task().logger.process(msg, kwargs)


logger: Final = _Logger(logging.getLogger("zaptasks.task"), {})
"""Logs under `zaptasks.task`, with the type, the workflow's id and the attempt before every message."""
