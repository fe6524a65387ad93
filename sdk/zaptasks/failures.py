"""What a handler raised, as the failure that travels."""

from __future__ import annotations

import traceback
from typing import Final

import msgspec

from zapwire.errors import ZapError
from zapwire.failure import CANCELED_ERROR, CAUSE_DEPTH_MAX, Failure

from .converters import PLAIN
from .errors import PayloadError, RemoteError, TaskError

STACK_CHARACTERS_MAX: Final = 16 * 1024
"""The end of a traceback is what is read; a failure as a whole is bounded by the wire."""
MESSAGE_CHARACTERS_MAX: Final = 16 * 1024


def failure_of(error: BaseException, *, non_retryable: bool = False) -> Failure:
    """The failure for an exception, with its causes: its class name as code, its text, and its traceback.

    A `TaskError` chooses its own code. A failure that came from elsewhere keeps the code that it had there. A
    group of exactly one exception is that exception.
    """
    return _failure(sole_error(error), non_retryable, depth=0)


def canceled_failure(reason: str) -> Failure:
    """The failure of a task that stopped because somebody asked for it."""
    return Failure(message=reason or "canceled", code=CANCELED_ERROR, non_retryable=True)


def unreadable_failure(error: ZapError) -> Failure:
    """The failure of a worker that cannot read what it was given. Another one may, so that it is retried.

    It travels in the open, for the people who have to bring the key. So it has nothing but the SDK's own text.
    """
    return Failure(message=str(error), code=type(error).__name__)


def _failure(error: BaseException, non_retryable: bool, depth: int) -> Failure:
    code, details = type(error).__name__, None
    if isinstance(error, TaskError):
        code, non_retryable, details = error.code, non_retryable or error.non_retryable, _details(error.details)
    elif isinstance(error, RemoteError):
        code, non_retryable, details = error.type, non_retryable or error.non_retryable, _details(error.details)
    elif isinstance(error, PayloadError):
        non_retryable = True  # the same handler will return the same kind of thing
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return Failure(
        message=_text(error),
        code=code,
        non_retryable=non_retryable,
        details=details,
        cause=None if cause is None or depth >= CAUSE_DEPTH_MAX else _failure(sole_error(cause), False, depth + 1),
        stack=_stack(error),
    )


def sole_error(error: BaseException) -> BaseException:
    """The exception itself, or the only one in a group, however deep."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _text(error: BaseException) -> str:
    try:
        text = error.message if isinstance(error, RemoteError | TaskError) else str(error)
    except Exception as failure:  # an application's __str__ may do anything
        text = f"<no text: str() of it raised {type(failure).__name__}>"
    text = text or type(error).__name__
    return text[:MESSAGE_CHARACTERS_MAX].encode("utf-8", "backslashreplace").decode()


def _stack(error: BaseException) -> str:
    """Its traceback; below that of where it was first raised, for one that came from elsewhere."""
    try:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__, chain=False))
    except Exception as failure:
        text = f"<no traceback: formatting it raised {type(failure).__name__}>"
    if isinstance(error, RemoteError) and error.stack:
        text = f"{error.stack.rstrip()}\n\nIt came from elsewhere, and was raised again here:\n\n{text}"
    return text[-STACK_CHARACTERS_MAX:].encode("utf-8", "backslashreplace").decode()


def _details(details: tuple[object, ...] | list[object]) -> list[msgspec.Raw] | None:
    return [_detail(item) for item in details] or None


def _detail(item: object) -> msgspec.Raw:
    """A detail as JSON; what JSON cannot carry becomes its text, as in Go."""
    try:
        return msgspec.Raw(PLAIN.encode(item, "a detail"))
    except PayloadError:
        return msgspec.Raw(msgspec.json.encode(repr(item)))
