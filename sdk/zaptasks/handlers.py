"""The functions that a worker serves: decorators that name them, and the tables that hold them.

    @zaptasks.task(name="email.send")
    async def send(mail: Mail) -> None: ...

    open_worker(client, tasks=[send, resize], activities={"greet": say_hello})

A decorated function stays what it was; it only remembers its name. A plain function goes by its `__name__`. An object
stands for its decorated methods.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, TypeAlias, TypeVar, overload

from .arguments import Parameters

Function: TypeAlias = Callable[..., Any]
"""A handler: `async def` or `def`. What it takes and returns is its own affair and JSON's."""

Handlers: TypeAlias = Iterable[object] | Mapping[str, Function]
"""Functions that know their names, objects with decorated methods, or names with their functions."""

NAME_CHARACTERS_MAX: Final = 1_000
_MARK: Final = "__zaptasks__"

F = TypeVar("F", bound=Function)


class Kind(Enum):
    TASK = "task"
    ACTIVITY = "activity"
    WORKFLOW = "workflow"


@dataclass(frozen=True, slots=True)
class Registration:
    """What a decorator leaves on a function."""

    kind: Kind
    name: str
    process: bool = False
    """It runs in a process of the worker's own."""


@overload
def task(function: F, /) -> F: ...
@overload
def task(*, name: str = "", process: bool = False) -> Callable[[F], F]: ...
def task(function: F | None = None, /, *, name: str = "", process: bool = False) -> F | Callable[[F], F]:
    """Mark a function or a method as the handler of one-shot tasks, under `name` or its own.

    With `process` it runs in a process of the worker's own: a `def` function of a module, see `activity.defn`.
    """
    return mark(Kind.TASK, function, name, process)


def mark(kind: Kind, function: F | None, name: str, process: bool) -> F | Callable[[F], F]:
    """What the decorators do: `function` with a note of its kind and name, or a decorator that makes it."""

    def decorate(target: F) -> F:
        own = check_name(name or _own_name(target), kind)
        if process and is_async(target):
            raise TypeError(f"{kind.value} {own!r} is `async def`: with process=True it must be a `def` function")
        setattr(target, _MARK, Registration(kind, own, process))
        return target

    return decorate if function is None else decorate(function)


class Handler:
    """A function under its name, ready to be called with what was delivered."""

    __slots__ = ("function", "in_process", "is_async", "name", "parameters")

    def __init__(self, name: str, function: Function, kind: Kind = Kind.TASK) -> None:
        self.name = name
        self.function = function
        self.is_async = is_async(function)
        registration = getattr(function, _MARK, None)
        self.in_process = isinstance(registration, Registration) and registration.process
        _check_bound(name, function, kind)
        if self.in_process:
            _check_importable(name, function, kind)
        if kind is Kind.WORKFLOW and not self.is_async:
            raise TypeError(f"workflow {name!r} is {function!r}: a workflow is an `async def` function")
        # A workflow's first parameter is its context.
        self.parameters = Parameters(function, skip=1 if kind is Kind.WORKFLOW else 0)
        if kind is Kind.TASK and self.parameters.required > 1:
            raise TypeError(
                f"task {name!r} is {function!r}, which needs {self.parameters.required} arguments: a task handler is"
                " called with the payload, or with nothing"
            )


def _check_bound(name: str, function: Function, kind: Kind) -> None:
    """Refuse a method without its object: it would be called with the payload as `self`."""
    owner = getattr(function, "__qualname__", "").rpartition(".")[0]
    if inspect.isfunction(function) and owner and not owner.endswith("<locals>"):
        first = next(iter(inspect.signature(function).parameters), "")
        if first == "self":
            raise TypeError(
                f"{kind.value} {name!r} is {function.__qualname__}, a method without its object: pass the method of an"
                f" instance, such as {owner}().{function.__name__}, or the instance itself"
            )


def _check_importable(name: str, function: Function, kind: Kind) -> None:
    """Refuse what a fresh process could not find again by its module and its name."""
    module, path = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    found: object = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    problem = ""
    if found is not function or not inspect.isfunction(function):
        problem = f"and {module}.{path} is not it: it must be a function at the top of a module"
    elif module == "__main__":
        problem = "in the main script, which no other process can import without running it: move it to a module"
    if problem:
        raise TypeError(f"{kind.value} {name!r} with process=True is {function!r}, {problem}")


def is_async(function: Function) -> bool:
    """Whether calling `function` gives a coroutine; callable objects and partials included."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def table(handlers: Handlers, kind: Kind) -> dict[str, Handler]:
    """The handlers by name. Raises `ValueError` for a name used twice, `TypeError` for what cannot be called so."""
    if callable(handlers):
        raise TypeError(f"{handlers!r} is one function: pass a list of functions, or a dict of names to functions")
    pairs = handlers.items() if isinstance(handlers, Mapping) else named(handlers, kind)
    found: dict[str, Handler] = {}
    for name, function in pairs:
        check_name(name, kind)
        if not callable(function):
            raise TypeError(f"{kind.value} {name!r} is {function!r}, which cannot be called")
        if name in found and found[name].function != function:
            raise ValueError(f"{kind.value} {name!r} is registered twice: {found[name].function!r} and {function!r}")
        found[name] = Handler(name, function, kind)
    return found


def named(targets: Iterable[object], kind: Kind) -> Iterator[tuple[str, Function]]:
    """The functions with their names; for an object that is none, its methods that are decorated as `kind`."""
    for target in targets:
        methods = methods_of(target, kind)
        if methods:
            yield from methods
        elif callable(target):
            yield name_of(target), target
        else:
            raise TypeError(f"{target!r} holds no {kind.value}: it is no function, and no method of it is decorated")


def methods_of(target: object, kind: Kind) -> list[tuple[str, Function]]:
    """The methods of an object that are decorated as `kind`, bound to it, with their names; none of a function."""
    if inspect.isroutine(target) or inspect.isclass(target):
        return []
    methods = [getattr(target, name) for name in dir(type(target)) if _is_marked(type(target), name, kind)]
    return [(name_of(method), method) for method in methods]


def _is_marked(owner: type, name: str, kind: Kind) -> bool:
    found = inspect.getattr_static(owner, name, None)
    return kind_of(getattr(found, "__func__", found)) is kind


def name_of(activity: str | Function) -> str:
    """The name that a function is registered under; a text is a name already."""
    if isinstance(activity, str):
        return activity
    mark = getattr(activity, _MARK, None)
    return mark.name if isinstance(mark, Registration) else _own_name(activity)


def _own_name(function: object) -> str:
    name = getattr(function, "__name__", "")
    if not callable(function) or not name or name == "<lambda>":
        raise TypeError(f"{function!r} has no name of its own: pass a dict of names to functions, or decorate it")
    return str(name)


def kind_of(target: object) -> Kind | None:
    """What a decorator of this package made of it, if one did."""
    mark = getattr(target, _MARK, None)
    return mark.kind if isinstance(mark, Registration) else None


def check_name(name: str, kind: Kind) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARACTERS_MAX or not name.isprintable():
        raise ValueError(f"{kind.value} name {name!r}: it must be 1 to {NAME_CHARACTERS_MAX} printable characters")
    return name
