"""The blocking client has what the async one has: the same methods, with the same parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import zaptasks
from zaptasks import blocking

PLUMBING = {
    "call",  # what the other methods are made of
    "mark_closed",  # the blocking one has `stop`
    "submit",
    "put_task_schedule",
    "respond",
    "wait",
    "wait_updated",
    "wait_connection",  # what workers and the fallback watch
    "wait_first_attempt",
}
"""Methods of `AsyncClient` that are for the rest of the SDK."""

OTHERWISE = {"now": "it goes to the first place that takes it, and returns a `Submission`"}
"""Methods of the blocking client that are there and differ on purpose."""

UNBOUNDED = {"result", "output", "history", "update", "execute_workflow", "update_with_start"}
"""Methods that wait for as long as it takes: the blocking ones have a `timeout` beside."""


def async_handles() -> list[str]:
    return [name for name in zaptasks.__all__ if name.endswith("Handle") and not name.startswith("Blocking")]


def public(cls: type) -> dict[str, Callable[..., Any]]:
    """The methods for everybody, those of base classes included."""
    found = inspect.getmembers(cls, inspect.isfunction)
    return {name: method for name, method in found if not name.startswith("_")}


def mirrored() -> Iterator[tuple[str, type, type]]:
    yield "AsyncClient", zaptasks.AsyncClient, zaptasks.Client
    for name in async_handles():
        yield name, getattr(zaptasks, name), getattr(blocking, f"Blocking{name}", object)


PAIRS = list(mirrored())


def test_there_are_handles_to_compare() -> None:
    assert {"ExecutionHandle", "TaskHandle", "WorkflowHandle"} <= set(async_handles())


@pytest.mark.parametrize(("name", "original", "mirror"), PAIRS, ids=[pair[0] for pair in PAIRS])
def test_no_method_is_missing_and_parameters_are_the_same(name: str, original: type, mirror: type) -> None:
    assert mirror is not object, f"zaptasks.blocking has no Blocking{name}"
    wanted, given = public(original), public(mirror)
    assert wanted, "nothing was compared"
    missing = wanted.keys() - given.keys() - PLUMBING
    assert not missing, f"{mirror.__name__} lacks {sorted(missing)}"
    for method in wanted.keys() & given.keys() - OTHERWISE.keys():
        expected, actual = parameters(wanted[method]), parameters(given[method])
        timeout = actual.pop("timeout", None)
        assert (timeout is not None) == (method in UNBOUNDED), f"{mirror.__name__}.{method}: `timeout`"
        assert list(actual.items()) == list(expected.items()), f"{mirror.__name__}.{method}"


def parameters(method: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Names with kinds and defaults."""
    found = inspect.signature(method).parameters.values()
    return {parameter.name: (parameter.kind, parameter.default) for parameter in found}


@pytest.mark.parametrize(("name", "original", "mirror"), PAIRS, ids=[pair[0] for pair in PAIRS])
def test_every_method_says_what_it_does(name: str, original: type, mirror: type) -> None:
    for method, function in public(mirror).items():
        assert function.__doc__, f"{mirror.__name__}.{method}"
        assert "trio" not in function.__doc__ or method == "add", f"{mirror.__name__}.{method} speaks of trio"


def test_the_comparison_notices_what_is_missing() -> None:
    class Less(blocking.BlockingWorkflowHandle):
        signal = None  # type: ignore[assignment]

    class Other(blocking.BlockingWorkflowHandle):
        def cancel(self, why: str = "") -> Any: ...  # type: ignore[override]

    for broken in (Less, Other):
        with pytest.raises(AssertionError, match=r"signal|cancel"):
            test_no_method_is_missing_and_parameters_are_the_same("WorkflowHandle", zaptasks.WorkflowHandle, broken)
