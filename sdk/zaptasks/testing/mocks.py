"""Activities that only say what they were told to say."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, ParamSpec, Protocol, cast, overload

from zaptasks.errors import TaskError
from zaptasks.handlers import Function, Kind, check_name, kind_of, mark, name_of

P = ParamSpec("P")

_UNSET = object()


class Mock(Protocol[P]):
    """What `mock` makes: an `async def` activity, and what it was called with."""

    __name__: str
    __signature__: inspect.Signature
    calls: list[tuple[Any, ...]]
    """The arguments of each call, oldest first, retries included."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Any]: ...


@overload
def mock(
    activity: Callable[P, Any],
    *,
    returns: object = ...,
    raises: BaseException | type[BaseException] | None = ...,
    side_effect: Function | Iterable[object] | None = ...,
) -> Mock[P]: ...
@overload
def mock(
    activity: str,
    *,
    returns: object = ...,
    raises: BaseException | type[BaseException] | None = ...,
    side_effect: Function | Iterable[object] | None = ...,
) -> Mock[...]: ...
def mock(
    activity: Function | str,
    *,
    returns: object = _UNSET,
    raises: BaseException | type[BaseException] | None = None,
    side_effect: Function | Iterable[object] | None = None,
) -> Mock[...]:
    """An activity with the name, the parameters and the types of `activity`, which does nothing.

    It returns `returns` (None if nothing is said), or raises `raises`, or does what `side_effect` says: a function
    (`def` or `async def`) that is called with the arguments, or the outcomes of one call after the other, of which
    exceptions are raised. `mock(...).calls` has the arguments of each call. A method may be given through its class.

    Raises `ValueError` if more than one of the three is given. Arguments that do not fit are a `TypeError` in the
    call; a call for which `side_effect` has no outcome left is a failure that is not retried.
    """
    if (returns is not _UNSET) + (raises is not None) + (side_effect is not None) > 1:
        raise ValueError("a mock does one thing: give returns, raises or side_effect")
    function: Function = _named(activity) if isinstance(activity, str) else activity
    signature = _signature(function)
    calls: list[tuple[Any, ...]] = []
    outcomes: Iterator[object] | None = None
    if side_effect is not None and not callable(side_effect):
        outcomes = iter(side_effect)

    @functools.wraps(function)
    async def mocked(*args: Any) -> object:
        signature.bind(*args)
        calls.append(args)
        if raises is not None:
            raise raises
        if outcomes is not None:
            return _outcome(outcomes, mocked.__name__, len(calls))
        if callable(side_effect):
            answer = side_effect(*args)
            return await answer if inspect.isawaitable(answer) else answer
        return None if returns is _UNSET else returns

    if kind := kind_of(function):
        mark(kind, mocked, name_of(function), process=False)
    made = cast("Mock[...]", mocked)
    made.__signature__ = signature
    made.calls = calls
    return made


def _signature(function: Function) -> inspect.Signature:
    """What a call has to give: of a method, all but the object."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    is_method = inspect.isfunction(function) and bool(parameters) and parameters[0].name == "self"
    return signature.replace(parameters=parameters[1:]) if is_method else signature


def _named(name: str) -> Function:
    def activity(*args: Any) -> Any: ...

    activity.__name__ = check_name(name, Kind.ACTIVITY)
    return activity


def _outcome(outcomes: Iterator[object], name: str, number: int) -> object:
    try:
        outcome = next(outcomes)
    except StopIteration:
        raise TaskError(
            f"the mock of {name!r} is called {number} times, and its side_effect has {number - 1} outcomes",
            non_retryable=True,
        ) from None
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome
