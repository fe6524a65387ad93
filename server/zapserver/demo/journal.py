"""What the workers' handlers say about themselves: one JSON line on stdout for each start, end and progress.

The report takes its times from here, not from the server, so that it shows when a handler really ran and where.
"""

from __future__ import annotations

import functools
import inspect
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
import trio

from zaptasks import TaskContext, current_task

WORKER_VARIABLE = "ZAPTASKS_DEMO_WORKER"
"""How a worker process knows its name."""

READY = "ready"
"""The event of a worker that has subscribed."""

F = TypeVar("F", bound=Callable[..., Any])


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line. Times are seconds since the epoch, which all processes of a machine share."""

    event: str
    """`ready`, or of a handler `started`, `progress`, `completed`, `canceled` or `failed`."""
    worker: str
    at: float
    id: str = ""
    type: str = ""
    attempt: int = 0
    due: float = 0.0
    """When the server took it on: for a schedule's task, its slot."""
    text: str = ""
    fraction: float = 0.0


def journaled(function: F) -> F:
    """Write a line when the handler starts and when it ends. Below the decorator that names it."""

    @functools.wraps(function)
    async def run_async(*args: Any) -> Any:
        with _attempt():
            return await function(*args)

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        with _attempt():
            return function(*args)

    return run_async if inspect.iscoroutinefunction(function) else run  # type: ignore[return-value]


def tell_progress(fraction: float, text: str) -> None:
    """Tell the server, which hands it to whoever asks, and the journal."""
    task = current_task()
    task.progress(fraction, text)
    _write("progress", task, text=text, fraction=fraction)


@contextmanager
def _attempt() -> Iterator[None]:
    task = current_task()
    due = task.scheduled_time.timestamp() if task.scheduled_time else 0.0
    _write("started", task, due=due)
    try:
        yield
    except trio.Cancelled:
        _write("canceled", task, text=task.cancel_reason)
        raise
    except Exception as error:
        _write("failed", task, text=str(error))
        raise
    _write("completed", task)


def tell_ready() -> None:
    """This worker has subscribed."""
    _print(Entry(event=READY, worker=_worker(), at=time.time()))


def read_entry(line: str) -> Entry:
    """A line of a journal."""
    return msgspec.json.decode(line, type=Entry)


def _write(event: str, task: TaskContext, *, due: float = 0.0, text: str = "", fraction: float = 0.0) -> None:
    _print(
        Entry(
            event=event,
            worker=_worker(),
            at=time.time(),
            id=task.workflow_id,
            type=task.type,
            attempt=task.attempt,
            due=due,
            text=text,
            fraction=fraction,
        )
    )


def _print(entry: Entry) -> None:
    # One write, so that the lines of different threads do not mix.
    os.write(1, msgspec.json.encode(entry) + b"\n")


def _worker() -> str:
    return os.environ.get(WORKER_VARIABLE, "worker")
