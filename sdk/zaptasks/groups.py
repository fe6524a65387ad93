"""Exception groups end here: users of `async with open_x()` catch what was raised, not how trio carried it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise the one exception inside a group instead of the group. A group of several stays one."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, BaseExceptionGroup):
            raise
        context, suppress = error.__context__, error.__suppress_context__
        try:
            raise error
        finally:
            # Raising it here made the group its context; what it had before says more.
            error.__context__, error.__suppress_context__ = context, suppress
            del error, group, context
