"""How a run ends, and what of it travels."""

from __future__ import annotations

import msgspec

from zapwire.failure import Failure, encode_failure

from . import commands as c


class ContinueAsNew(BaseException):
    """Ends the run and begins the next. Raised by `workflow.continue_as_new`; let it pass."""

    def __init__(self, command: c.ContinueAsNew) -> None:
        super().__init__("the workflow continues as new")
        self.command = command


def alone(error: BaseException) -> BaseException:
    """The one exception of a group of one, however deep."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def raw_failure(failure: Failure) -> msgspec.Raw:
    """A failure as commands carry it."""
    return msgspec.Raw(encode_failure(failure))
