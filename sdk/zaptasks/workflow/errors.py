"""What the workflow API raises.

    BaseException
    ├── Cancelled            a cancel scope around this code was cancelled; let it pass
    └── ContinueAsNew        (execution.py) ends the run and begins the next; let it pass

    ZapError
    ├── RemoteError
    │   ├── ActivityFailed   (zaptasks.ActivityFailed)
    │   ├── ChildFailed      a child workflow failed, was canceled or terminated, or timed out
    │   ├── ChildStartFailed it never began
    │   └── ExternalFailed   a signal to, or a cancel of, another execution was refused
    ├── SessionNotOpened     no worker had a place for a session
    ├── SessionLost          the worker of a session is gone, or leaves
    └── WorkflowTaskError    this worker cannot go on with the run; the run stays open and is tried again
        ├── NondeterminismError
        └── ForeignAwait

The rest has trio's names and meaning: TooSlowError, WouldBlock, EndOfChannel, ClosedResourceError, BrokenResourceError.
"""

from __future__ import annotations

from typing import ClassVar

from zaptasks.errors import RemoteError
from zapwire.errors import ZapError
from zapwire.failure import Failure

from .places import Place
from .steps import Step


class Cancelled(BaseException):
    """Raised where a task waits inside a cancelled scope. `reason` is what the canceler said, or empty."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "cancelled")
        self.reason = reason


class TooSlowError(Exception):
    """`fail_after` or `fail_at` ran out of time."""


class WouldBlock(Exception):
    """A `_nowait` method would have had to wait."""


class EndOfChannel(Exception):
    """There are no more senders, and nothing is left."""


class ClosedResourceError(Exception):
    """Used after this task, or another one, closed it."""


class BrokenResourceError(Exception):
    """The other side is gone."""


class NotInWorkflow(RuntimeError):
    """A function of the workflow API was called by code that no workflow runs."""


class ReadOnlyError(RuntimeError):
    """A query, a validator or a condition tried to change something."""


class ChildFailed(RemoteError):
    """A child workflow ended otherwise than by completing: see `type`."""

    code: ClassVar[str] = "child_failed"

    def __init__(self, workflow_type: str, workflow_id: str, failure: Failure) -> None:
        super().__init__(failure, subject=f"child workflow {workflow_type} ({workflow_id})")
        self.workflow_type = workflow_type
        self.workflow_id = workflow_id


class ChildStartFailed(ChildFailed):
    """A child workflow could not be started: its id is taken, or there is no room."""

    code: ClassVar[str] = "child_start_failed"


class ExternalFailed(RemoteError):
    """Another execution could not be signaled or canceled; mostly because there is none of that id."""

    code: ClassVar[str] = "external_failed"

    def __init__(self, workflow_id: str, failure: Failure) -> None:
        super().__init__(failure, subject=f"workflow {workflow_id}")
        self.workflow_id = workflow_id


class SessionNotOpened(ZapError):
    """No worker had a place for a session in time."""

    code: ClassVar[str] = "session_not_opened"


class SessionLost(ZapError):
    """The worker of a session is gone or leaves; what its activities left there is out of reach."""

    code: ClassVar[str] = "session_lost"


class WorkflowTaskError(ZapError):
    """The worker cannot go on with a run, and the run is not to blame: it stays open and another try is made."""

    code: ClassVar[str] = "workflow_task_failed"


class NondeterminismError(WorkflowTaskError):
    """The code does not do what the history says that it did.

    `place` is where in the task tree they went apart (`0.2/3`), or which end or update it is about. `recorded` is what
    the history has there and `new` what the code does, None for nothing. `source` is the line of the code, None where
    none is known. `matched` are the last few commands before that which both have, each with the line that makes it.
    """

    code: ClassVar[str] = "nondeterminism"

    def __init__(
        self,
        place: str,
        recorded: Step | None,
        new: Step | None,
        *,
        source: Place | None = None,
        matched: tuple[Step, ...] = (),
    ) -> None:
        line = "" if source is None else f"{source}: "
        super().__init__(
            f"{line}the workflow's code does not do what its history says that it did, at {place}:\n"
            f"  recorded: {recorded or 'nothing under this id'}\n"
            f"  new:      {new or 'nothing: the code did not come to it'}\n"
            "Put the old code back, or keep it beside the new for runs that have begun: `if workflow.patched(...)`."
        )
        self.place = place
        self.recorded = recorded
        self.new = new
        self.source = source
        self.matched = matched


class ForeignAwait(WorkflowTaskError):
    """The code awaits something that only trio, asyncio or another loop could wake."""

    code: ClassVar[str] = "foreign_await"


class Broken(BaseException):
    """Unwinds a run that this worker cannot go on with. Not part of the API: there is nothing to catch."""


class Evicted(BaseException):
    """What code that still runs while its run is dropped gets from the workflow API."""
