"""What a running handler knows about its task, and how it says that it is alive.

`current_task()` works in `async def` handlers, in everything that they call, and in the threads of `def` handlers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final

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


def current_task() -> TaskContext:
    """The task that this code runs for. Raises `RuntimeError` outside of a handler."""
    try:
        return _current.get()
    except LookupError:
        raise RuntimeError(
            "there is no current task: current_task() works inside a handler that a worker runs"
        ) from None


class TaskContext:
    """One attempt of one task or activity. Every method may be called from any thread.

    `heartbeat_details` are what the last attempt that said something had said. `headers` are what the start of the task
    or workflow gave along. Spans are in seconds, None for none.
    """

    __slots__ = (
        "_cancel_reason",
        "_converter",
        "_details",
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
        self.headers: Final[Headers] = headers or {}
        self._send = send
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
