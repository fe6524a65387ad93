"""What became of a task that was submitted through the blocking client: where it went, and the way to its result."""

from __future__ import annotations

import enum
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

from zaptasks.converters import DataConverter
from zaptasks.errors import ClientClosed, TaskFailed
from zaptasks.failures import failure_of
from zaptasks.options import Durability, Seconds, to_seconds
from zapwire.errors import NotSent

from .handles import BlockingTaskHandle

T = TypeVar("T")


class Placement(enum.Enum):
    """Where a task or schedule went."""

    ZAP = "zap"
    HTTP = "http"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class LocalTask:
    """A task in this process."""

    id: str
    future: Future[Any]
    converter: DataConverter

    def result(self, type: Any, *, timeout: Seconds | None) -> Any:
        """What its handler returned, as a server would hand it out; `TaskFailed` with what it raised."""
        seconds = None if timeout is None else to_seconds(timeout, "timeout")
        try:
            error = self.future.exception(seconds)
        except TimeoutError:
            raise TimeoutError(f"the result of {self.id} did not come within {seconds:g} seconds") from None
        except CancelledError:
            raise ClientClosed(f"{self.id} was dropped: the client was stopped before it began") from None
        if error is not None:
            raise TaskFailed(self.id, "", failure_of(error))
        value = self.future.result()
        return value if type is Any else self.converter.decode(self.converter.encode(value), type)


@dataclass(frozen=True, slots=True)
class Submission:
    """A task that was accepted: where, and under which ids. Tasks in this process have no run id.

    `durability` is how durable it was when it was accepted: "memory" in this process, None if the server does not say.
    """

    placement: Placement
    request_id: str
    workflow_id: str
    run_id: str = ""
    durability: Durability | None = None
    handle: BlockingTaskHandle | None = field(default=None, compare=False, repr=False)
    """To look at it on the server, and to steer it; None for a task in this process, and without a ZAP address."""
    local: LocalTask | None = field(default=None, compare=False, repr=False)

    @overload
    def result(self, *, timeout: Seconds | None = None) -> Any: ...
    @overload
    def result(self, type: type[T], *, timeout: Seconds | None = None) -> T: ...
    def result(self, type: Any = Any, *, timeout: Seconds | None = None) -> Any:
        """Wait for its result, wherever it is: for as long as it takes, or for `timeout` seconds.

        Raises `TimeoutError` after that, and what `BlockingTaskHandle.result` raises: in this process too a handler
        that raised is a `TaskFailed`. With a URL and no ZAP address it raises `NotSent`: HTTP cannot tell a result.
        """
        if self.local is not None:
            return self.local.result(type, timeout=timeout)
        if self.handle is None:
            raise NotSent(
                f"the result of {self.workflow_id} comes over ZAP, and this client has only an HTTP address: give it"
                ' zap="HOST:PORT" too, or TASKS_ZAP'
            )
        return self.handle.result(type, timeout=timeout)
