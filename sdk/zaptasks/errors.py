"""What the client raises, and what a handler may raise on purpose.

Everything that zaptasks and zapwire raise is a `ZapError`, so one `except` catches it:

    ZapError
    ├── RemoteError          something failed elsewhere: its type, message, details, stack and cause
    │   ├── ExecutionError   an execution ended otherwise than by completing
    │   │   ├── TaskFailed, TaskCanceled, TaskTerminated, TaskTimedOut
    │   ├── ActivityFailed   an activity that a workflow asked for
    │   └── UpdateFailed     what a workflow's handler of an update raised
    │       └── UpdateRejected   what its validator raised
    ├── CallFailed           the server answered no, with a status and a text
    │   └── ServerBusy       it takes nothing now: overloaded, or its disk is full or fails
    ├── NotSent              the call never left this process
    ├── OutcomeUnknown       it left, and no answer came
    ├── CodecError           an encoded payload that cannot be read here: no key, or it was changed
    └── LocalProtocolError   a mistake of the caller's
        ├── PayloadError     a value that JSON cannot carry
        └── ClientClosed     a client used after its end

`TaskError` is not among them: it belongs to the application, which raises it in a handler to choose
what the failure says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

import msgspec

from zapwire.errors import CallFailed, LocalProtocolError, ZapError
from zapwire.failure import APPLICATION_ERROR, Failure


class TaskError(Exception):
    """Raise it in a handler to say how the task failed.

    `code` is the type of the failure, which retry policies name and callers read as `TaskFailed.type`.
    With `non_retryable` no other attempt is made. `details` are values that JSON can carry.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = APPLICATION_ERROR,
        non_retryable: bool = False,
        details: Sequence[object] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.non_retryable = non_retryable
        self.details = tuple(details)


class PayloadError(LocalProtocolError):
    """A value cannot be encoded; `path` leads to the part that cannot, such as `$.items[3].owner`."""

    code: ClassVar[str] = "payload_error"

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


class CodecError(ZapError):
    """A compressed or encrypted payload that cannot be read here: its key is missing, or it was changed."""

    code: ClassVar[str] = "codec_error"
    status = 422


class ClientClosed(LocalProtocolError):
    """The client was stopped, or belongs to another process."""

    code: ClassVar[str] = "client_closed"


_ADVICE: Final = {
    429: "try again later, or do less at a time",
    503: "the server cannot take it now: try again later",
    507: "the disk of the server is full: it takes requests again once somebody has freed space",
}


class ServerBusy(CallFailed):
    """The server is there and takes nothing now. Nothing was begun, here or there; try again later.

    `status` is 429 for a limit of the server, 503 for a disk that fails or is too slow, 507 for one that is full, and
    `detail` the server's own text. With a `request_id` of your own a repeat is harmless in any case.
    """

    code: ClassVar[str] = "server_busy"

    def __init__(self, status: int, detail: str, *, opcode: int | None = None, body: bytes = b"") -> None:
        super().__init__(status, detail, opcode=opcode, body=body)
        self.args = (f"{self}; {_ADVICE[status]}",)


BUSY: Final = frozenset(_ADVICE)
"""The statuses of a server that takes nothing now."""


def refusal(status: int, detail: str, *, opcode: int | None = None, body: bytes = b"") -> CallFailed:
    """The error for an answer that says no."""
    return (ServerBusy if status in BUSY else CallFailed)(status, detail, opcode=opcode, body=body)


class RemoteError(ZapError):
    """A failure that arrived over the wire.

    `type` is its code: the class name of a Python exception, or what `TaskError` or a Go peer says.
    `stack` is text. The cause, if any, is `__cause__`, again a `RemoteError`.
    """

    code: ClassVar[str] = "remote_error"

    def __init__(self, failure: Failure, *, subject: str = "") -> None:
        text = f"{failure.message} ({failure.code})" if failure.message else failure.code
        super().__init__(f"{subject}: {text}" if subject else text)
        self.type = failure.code
        self.message = failure.message
        self.non_retryable = failure.non_retryable
        self.details: list[object] = [msgspec.json.decode(raw) for raw in failure.details or ()]
        self.stack = failure.stack
        if failure.cause is not None:
            self.__cause__ = RemoteError(failure.cause)


class ExecutionError(RemoteError):
    """A task or workflow is over and has no result."""

    code: ClassVar[str] = "execution_error"
    verb: ClassVar[str] = "ended"

    def __init__(self, workflow_id: str, run_id: str, failure: Failure) -> None:
        super().__init__(failure, subject=f"{workflow_id} {self.verb}")
        self.workflow_id = workflow_id
        self.run_id = run_id


class TaskFailed(ExecutionError):
    """It failed: its handler raised, and no attempt is left."""

    code: ClassVar[str] = "task_failed"
    verb: ClassVar[str] = "failed"


class TaskCanceled(ExecutionError):
    """It was canceled; `message` is the reason given."""

    code: ClassVar[str] = "task_canceled"
    verb: ClassVar[str] = "was canceled"


class TaskTerminated(ExecutionError):
    """It was terminated; nothing of it ran to an end of its own."""

    code: ClassVar[str] = "task_terminated"
    verb: ClassVar[str] = "was terminated"


class TaskTimedOut(ExecutionError):
    """One of its timeouts passed; `message` says which."""

    code: ClassVar[str] = "task_timed_out"
    verb: ClassVar[str] = "timed out"


class UpdateFailed(RemoteError):
    """The handler of an update raised; what it had done until then stays done."""

    code: ClassVar[str] = "update_failed"
    verb: ClassVar[str] = "failed"

    def __init__(self, name: str, failure: Failure) -> None:
        super().__init__(failure, subject=f"update {name} {self.verb}")


class UpdateRejected(UpdateFailed):
    """The workflow did not want the update: nothing of it happened, and nothing is in the history."""

    code: ClassVar[str] = "update_rejected"
    verb: ClassVar[str] = "was rejected"


class ActivityFailed(RemoteError):
    """An activity that this workflow asked for failed, timed out or was canceled: see `type`."""

    code: ClassVar[str] = "activity_failed"

    def __init__(self, activity_type: str, failure: Failure) -> None:
        super().__init__(failure, subject=f"activity {activity_type}")
        self.activity_type = activity_type
