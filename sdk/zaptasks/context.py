"""What a running handler knows about its task, and how it says that it is alive.

`current_task()` works in `async def` handlers, in everything that they call, and in the threads of `def` handlers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final, NoReturn

import msgspec

from zapwire.errors import ZapError

from .converters import PLAIN, DataConverter
from .headers import Headers
from .metrics import NO_METRICS, Metrics, MetricsHandler
from .payloads import SMALL_PAYLOAD_BYTES_MAX

_current: ContextVar[TaskContext] = ContextVar("zaptasks.current_task")


class CancelRequested(ZapError):
    """Raised by `TaskContext.raise_if_canceled`; left alone, it ends the task as canceled."""

    code = "cancel_requested"
    status = 499


class CompleteLater(BaseException):
    """Raised by `TaskContext.complete_later`. Like `trio.Cancelled` it is no `Exception`, so that no handler's own
    `except` takes it for an error."""


def current_task() -> TaskContext:
    """The task that this code runs for. Raises `RuntimeError` outside of a handler."""
    try:
        return _current.get()
    except LookupError:
        raise RuntimeError(
            "there is no current task: current_task() works inside a handler that a worker runs"
        ) from None


@contextmanager
def as_current(context: TaskContext) -> Iterator[None]:
    """Have `current_task()` return `context`, in this task or thread and in everything that is started from it."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


class TaskContext:
    """One attempt of one task or activity. Every method may be called from any thread.

    `heartbeat_details` are what the last attempt that said something had said. `headers` are what the start of the task
    or workflow gave along. `task_token` names this attempt for `client.get_activity_handle`; "" where there is no
    server. Spans are in seconds, None for none.
    """

    __slots__ = (
        "_cancel_reason",
        "_converter",
        "_details",
        "_emit",
        "_metrics",
        "_progress",
        "_send",
        "attempt",
        "headers",
        "heartbeat_details",
        "heartbeat_timeout",
        "id",
        "maximum_attempts",
        "namespace",
        "run_id",
        "scheduled_time",
        "start_to_close",
        "task_queue",
        "task_token",
        "type",
        "workflow_id",
    )

    def __init__(
        self,
        *,
        id: str,
        type: str,
        attempt: int,
        maximum_attempts: int,
        namespace: str,
        task_queue: str,
        workflow_id: str,
        run_id: str,
        scheduled_time: datetime | None,
        start_to_close: float | None,
        heartbeat_timeout: float | None,
        heartbeat_details: tuple[Any, ...],
        send: Callable[[bytes], None],
        emit: Callable[[bytes], None],
        task_token: str = "",
        headers: Headers | None = None,
        converter: DataConverter = PLAIN,
        metrics: MetricsHandler = NO_METRICS,
    ) -> None:
        self.id: Final = id
        self.type: Final = type
        self.attempt: Final = attempt
        self.maximum_attempts: Final = maximum_attempts
        self.namespace: Final = namespace
        self.task_queue: Final = task_queue
        self.workflow_id: Final = workflow_id
        self.run_id: Final = run_id
        self.scheduled_time: Final = scheduled_time
        self.start_to_close: Final = start_to_close
        self.heartbeat_timeout: Final = heartbeat_timeout
        self.heartbeat_details: Final = heartbeat_details
        self.task_token: Final = task_token
        self.headers: Final[Headers] = headers or {}
        self._send = send
        self._emit = emit
        self._converter = converter
        self._metrics = metrics
        self._details: tuple[object, ...] = heartbeat_details
        self._progress: dict[str, object] | None = None
        self._cancel_reason: str | None = None

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """Logs under `zaptasks.task`, with the task's type, id and attempt before every message.

        The records have `headers`, for formatters and filters.
        """
        about = {"task": f"{self.type} {self.workflow_id} attempt {self.attempt}", "headers": self.headers}
        return _TaskLogger(logging.getLogger("zaptasks.task"), about)

    @property
    def metrics(self) -> Metrics:
        """What this handler counts and measures, for the worker's metrics handler."""
        tags = {"namespace": self.namespace, "task_queue": self.task_queue, "activity_type": self.type}
        return Metrics(lambda: (self._metrics, tags))

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody wants this attempt to stop. An `async def` handler is canceled besides."""
        return self._cancel_reason is not None

    @property
    def cancel_reason(self) -> str:
        """Why; "" while nobody asked."""
        return self._cancel_reason or ""

    def raise_if_canceled(self) -> None:
        """For handlers in threads: raise `CancelRequested` once somebody wants this attempt to stop."""
        if self._cancel_reason is not None:
            raise CancelRequested(self._cancel_reason)

    def emit(self, item: object) -> None:
        """Stream an item to whoever reads `handle.output()` of the task or the workflow.

        Never waits. An item is a payload as any other, of at most 256 KiB; else it raises `PayloadError`. Not durable:
        the server keeps the newest 1 MiB of an execution in memory. Where more is emitted than the connection takes the
        oldest unsent items are dropped, past 1 MiB, and readers see the gap. Nobody sees what comes after the lease has
        ended, and a server of Go's takes none.
        """
        self._emit(self._converter.encode(item, f"an item that {self.type!r} emits", SMALL_PAYLOAD_BYTES_MAX))

    def complete_later(self) -> NoReturn:
        """End this attempt's code, and leave the attempt open: whoever has `task_token` completes or fails it.

        It raises what the worker waits for; let it through. The slot is free from here on, and the worker may end, and
        the server too. What ends an attempt that nobody completes are its timeouts, of which the heartbeat timeout
        wants to be fed with the handle's `heartbeat`. Raises `RuntimeError` for a task that no server knows.
        """
        if not self.task_token:
            raise RuntimeError("complete_later() needs a server that keeps the task, and no server knows this one")
        raise CompleteLater

    def heartbeat(self, *details: object) -> None:
        """Say that this attempt is alive, and remember `details` for the next attempt.

        Cheap: the worker sends the latest one as often as the heartbeat timeout needs, at most once a second without
        one. Without details the earlier ones stand. Raises `PayloadError` for details that JSON cannot carry, and
        for more than 256 KiB of it.
        """
        self._beat(details or self._details, self._progress)

    def progress(self, fraction: float | None, text: str = "") -> None:
        """Say how far this attempt is: a fraction from 0 to 1 (None if unknown), and what it is doing.

        It is a heartbeat as well, whose details end in `{"progress": fraction, "text": text}`. Fractions outside
        0 to 1 are cut off to it; NaN is a `ValueError`.
        """
        if fraction is not None:
            if math.isnan(fraction):
                raise ValueError("the fraction is NaN: it must be 0 to 1, or None if unknown")
            fraction = min(max(float(fraction), 0.0), 1.0)
        self._beat(self._details, {"progress": fraction, "text": text})

    def _beat(self, details: tuple[object, ...], progress: dict[str, object] | None) -> None:
        said = list(details) if progress is None else [*details, progress]
        encoded = self._converter.encode(said, f"the heartbeat of {self.type!r}", SMALL_PAYLOAD_BYTES_MAX)
        self._details, self._progress = details, progress
        self._send(encoded)

    def _cancel(self, reason: str) -> None:
        if self._cancel_reason is None:
            self._cancel_reason = reason or "canceled"


def said_before(details: msgspec.Raw | None, converter: DataConverter = PLAIN) -> tuple[Any, ...]:
    """The heartbeat details of an earlier attempt, without the progress that it had made. Raises `CodecError`."""
    if not details:
        return ()
    said = converter.decode(details)
    if not isinstance(said, list):
        return (said,)
    if said and isinstance(said[-1], dict) and said[-1].keys() == {"progress", "text"}:
        said.pop()
    return tuple(said)


class _TaskLogger(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: object, kwargs: MutableMapping[str, Any]) -> tuple[object, MutableMapping[str, Any]]:
        about = self.extra or {}
        kwargs["extra"] = {"headers": about["headers"], **(kwargs.get("extra") or {})}
        return f"[{about['task']}] {msg}", kwargs
