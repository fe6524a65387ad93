"""Workflows as their authors write them: a class or a function, and what a worker has to know of it.

@workflow.defn
class Order:
    def __init__(self) -> None:
        self.is_paid = False

    @workflow.run
    async def run(self, item: str) -> str: ...

    @workflow.signal
    def paid(self) -> None:
        self.is_paid = True

    @workflow.query
    def state(self) -> str: ...

    @workflow.update
    async def rename(self, name: str) -> str: ...

    @rename.validator
    def check_name(self, name: str) -> None: ...

@workflow.defn
async def greet(name: str) -> str: ...
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import (
    Any,
    Concatenate,
    Final,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    TypeVarTuple,
    Unpack,
    cast,
    overload,
)

from zaptasks.arguments import Parameters
from zaptasks.handlers import Kind, check_name, is_async

C = TypeVar("C", bound=type[Any])
F = TypeVar("F", bound=Callable[..., Any])
AF = TypeVar("AF", bound=Callable[..., Coroutine[Any, Any, Any]])
P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Ts = TypeVarTuple("Ts")
S = TypeVar("S")

_MARK: Final = "__zaptasks_workflow__"
_ROLE: Final = "__zaptasks_role__"

RESERVED: Final = "__"
"""Names that begin so are the server's own queries."""


class WorkflowInstance:
    """What type checkers take for the `self` of a method under `@workflow.run`, so that it cannot be mistaken for an
    argument when the method is named through its class. Nothing at run time."""


class RunMethod(Generic[P, R]):
    """What type checkers see of a method under `@workflow.run`."""

    def __call__(self, instance: WorkflowInstance, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        raise NotImplementedError  # only for type checkers: at run time the method stays what it was

    @overload
    def __get__(self, instance: None, owner: type[Any], /) -> RunMethod[P, R]: ...
    @overload
    def __get__(self, instance: object, owner: type[Any], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
    def __get__(self, instance: object, owner: type[Any], /) -> Any:
        raise NotImplementedError


AnyRun: TypeAlias = Callable[[WorkflowInstance, Unpack[Ts]], Coroutine[Any, Any, R]]
"""A method under `@workflow.run`, named through its class."""


class WorkflowClass(Protocol[*Ts, R_co]):
    """What type checkers see of a class under `@workflow.defn` whose main method is called `run`."""

    def run(self, instance: WorkflowInstance, /, *args: *Ts) -> Coroutine[Any, Any, R_co]: ...


class UpdateMethod(Generic[P, R]):
    """What type checkers see of a method under `@workflow.update`."""

    def __call__(self, instance: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        raise NotImplementedError  # only for type checkers: at run time the method stays what it was

    @overload
    def __get__(self, instance: None, owner: type[Any], /) -> UpdateMethod[P, R]: ...
    @overload
    def __get__(self, instance: object, owner: type[Any], /) -> Callable[P, R]: ...
    def __get__(self, instance: object, owner: type[Any], /) -> Any:
        raise NotImplementedError

    def validator(self, function: Callable[Concatenate[Any, P], None], /) -> Callable[Concatenate[Any, P], None]:
        """Decorates the method that is called before the update: what it raises rejects it, and nothing is kept."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class _Role:
    kind: str
    name: str
    validates: Callable[..., Any] | None = None


class Bound:
    """A function of the user's, and how it is called with what travelled."""

    __slots__ = ("function", "is_async", "is_method", "name", "parameters", "validator")

    def __init__(self, name: str, function: Callable[..., Any], *, is_method: bool) -> None:
        self.name = name
        self.function = function
        self.is_method = is_method
        self.is_async = is_async(function)
        self.parameters = Parameters(function, skip=1 if is_method else 0)
        self.validator: Callable[..., Any] | None = None

    def call(self, instance: object, args: tuple[object, ...]) -> Any:
        return self.function(instance, *args) if self.is_method else self.function(*args)

    def validate(self, instance: object, args: tuple[object, ...]) -> None:
        if self.validator is not None:
            _ = self.validator(instance, *args) if self.is_method else self.validator(*args)


@dataclass(frozen=True, slots=True)
class Definition:
    """One workflow type."""

    name: str
    cls: type[Any] | None
    """None for a plain function."""
    main: Bound
    signals: Mapping[str, Bound] = field(default_factory=dict)
    queries: Mapping[str, Bound] = field(default_factory=dict)
    updates: Mapping[str, Bound] = field(default_factory=dict)


# --- decorators --------------------------------------------------------------------------------------------


@overload
def defn(target: C, /) -> C: ...
@overload
def defn(target: AF, /) -> AF: ...
@overload
def defn(*, name: str) -> Callable[[F], F]: ...
def defn(target: Any = None, /, *, name: str = "") -> Any:
    """Mark a class with a `@workflow.run` method, or an `async def` function, as a workflow, under `name` or its own.

    Raises `TypeError` for what could not be run.
    """

    def mark(target: Any) -> Any:
        own = name or getattr(target, "__name__", "")
        definition = _of_class(own, target) if isinstance(target, type) else _of_function(own, target)
        setattr(target, _MARK, definition)
        return target

    return mark if target is None else mark(target)


def run(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> RunMethod[P, R]:
    """Mark the method that is the workflow."""
    if not is_async(method):
        raise TypeError(f"{method!r} under @workflow.run: it must be `async def`")
    setattr(method, _ROLE, _Role("run", ""))
    return cast("RunMethod[P, R]", method)


@overload
def signal(method: F, /) -> F: ...
@overload
def signal(*, name: str) -> Callable[[F], F]: ...
def signal(method: Any = None, /, *, name: str = "") -> Any:
    """Mark a method, async or not, that is called for each signal of its name, with the signal's value."""
    return _with_role("signal", method, name)


@overload
def query(method: F, /) -> F: ...
@overload
def query(*, name: str) -> Callable[[F], F]: ...
def query(method: Any = None, /, *, name: str = "") -> Any:
    """Mark a plain method that answers queries of its name. It must only look: it makes no commands, wakes nobody."""
    return _with_role("query", method, name)


@overload
def update(method: Callable[Concatenate[Any, P], R], /) -> UpdateMethod[P, R]: ...
@overload
def update(*, name: str) -> Callable[[Callable[Concatenate[Any, P], R]], UpdateMethod[P, R]]: ...
def update(method: Any = None, /, *, name: str = "") -> Any:
    """Mark a method, async or not, that callers ask to change the workflow; what it returns or raises is their answer.

    `@that_method.validator` decorates a plain method that sees the arguments first and may refuse by raising.
    """

    def mark(method: Any) -> Any:
        marked = _with_role("update", method, name)

        def validator(function: Any) -> Any:
            setattr(function, _ROLE, _Role("validator", "", validates=marked))
            return function

        marked.validator = validator
        return marked

    return mark if method is None else mark(method)


def _with_role(kind: str, method: Any, name: str) -> Any:
    def mark(method: Any) -> Any:
        own = check_name(name or getattr(method, "__name__", ""), Kind.WORKFLOW)
        if own.startswith(RESERVED):
            raise ValueError(f"{kind} name {own!r}: names that begin with {RESERVED!r} are the server's")
        if kind == "query" and is_async(method):
            raise TypeError(f"query {own!r} is {method!r}: a query only looks, so it must be a plain `def`")
        setattr(method, _ROLE, _Role(kind, own))
        return method

    return mark if method is None else mark(method)


# --- reading them -------------------------------------------------------------------------------------------


def is_definition(target: object) -> bool:
    """Whether it is a class or function under `@workflow.defn`."""
    found = vars(target).get(_MARK) if isinstance(target, type) else getattr(target, _MARK, None)
    return isinstance(found, Definition)


def definition_of(target: object) -> Definition:
    """What `@workflow.defn` left on a class or function; an undecorated `async def` function is a workflow too."""
    found = vars(target).get(_MARK) if isinstance(target, type) else getattr(target, _MARK, None)
    if isinstance(found, Definition):
        return found
    if not isinstance(target, type) and callable(target) and is_async(target):
        return _of_function(getattr(target, "__name__", ""), target)
    if inspect.iscoroutine(target):
        target.close()  # else Python warns too that it was never awaited
        raise TypeError(
            f"{target.__qualname__}(...) was called, and what it gave is no workflow: name the function, and give its"
            f" arguments after it, as in start_workflow({target.__qualname__}, ...)"
        )
    raise TypeError(f"{target!r} is no workflow: decorate a class or an `async def` function with @workflow.defn")


def workflow_name(target: object) -> str:
    """The name of the workflow that `target` is: a text, a class, a function, or a method under `@workflow.run`."""
    if isinstance(target, str):
        return check_name(target, Kind.WORKFLOW)
    return workflow_definition(target).name


def workflow_definition(target: object) -> Definition:
    """The same as a whole, for a target that is code."""
    role = getattr(target, _ROLE, None)
    return _owner(target) if isinstance(role, _Role) and role.kind == "run" else definition_of(target)


def workflow_function(target: object) -> Callable[..., Any] | None:
    """The function that the workflow `target` runs; None where all that is known is its name."""
    if isinstance(target, str):
        return None
    return definition_of(target).main.function if isinstance(target, type) else cast("Callable[..., Any]", target)


def handler_name(kind: Literal["signal", "query", "update"], target: object) -> str:
    """The name of a signal, query or update: a text, or a method under the decorator of that kind."""
    if isinstance(target, str):
        return target
    role = getattr(target, _ROLE, None)
    if isinstance(role, _Role) and role.kind == kind:
        return role.name
    raise TypeError(f"{target!r} is no {kind}: give a name, or a method under @workflow.{kind}")


_owners: dict[Any, list[Definition]] = {}
"""By run method, which classes may inherit from one another. As many as there are workflow classes."""


def _owner(method: object) -> Definition:
    owners = _owners.get(getattr(method, "__func__", method), [])
    if len(owners) != 1:
        names = ", ".join(owner.name for owner in owners) or "none under @workflow.defn"
        raise TypeError(f"{method!r} does not say which workflow is meant, it belongs to: {names}; give the name")
    return owners[0]


def _of_function(name: str, function: Any) -> Definition:
    if not callable(function) or not is_async(function):
        raise TypeError(f"workflow {name!r} is {function!r}: a workflow is a class or an `async def` function")
    check_name(name, Kind.WORKFLOW)
    return Definition(name, None, Bound(name, function, is_method=False))


def _of_class(name: str, cls: type[Any]) -> Definition:
    check_name(name, Kind.WORKFLOW)
    found: dict[str, dict[str, Bound]] = {"run": {}, "signal": {}, "query": {}, "update": {}}
    by_function: dict[Any, Bound] = {}
    validators: list[tuple[Any, Any]] = []
    for attribute in dir(cls):
        function = inspect.getattr_static(cls, attribute)
        role = getattr(function, _ROLE, None)
        if not isinstance(role, _Role):
            continue
        if role.kind == "validator":
            validators.append((function, role.validates))
            continue
        bound = Bound(role.name or name, function, is_method=True)
        if role.kind == "signal" and bound.parameters.required > 1:
            raise TypeError(
                f"signal {role.name!r} of {cls!r} needs {bound.parameters.required} arguments: a signal has one value"
            )
        if bound.name in found[role.kind]:
            raise TypeError(f"{cls!r} has two methods under @workflow.{role.kind} with the name {bound.name!r}")
        found[role.kind][bound.name] = by_function[function] = bound
    for function, validates in validators:
        update = by_function.get(validates)
        if update is None:
            raise TypeError(f"{function!r} of {cls!r} validates an update that the class does not have")
        if is_async(function):
            raise TypeError(f"validator {function!r} of {cls!r} is async: it only looks, so it must be a plain `def`")
        update.validator = function
    if not found["run"]:
        raise TypeError(f"{cls!r} has no method under @workflow.run")
    try:
        signature = inspect.signature(cls)
    except ValueError:
        signature = inspect.Signature()  # a class that does not say
    try:
        signature.bind()
    except TypeError as error:
        raise TypeError(f"{cls!r} cannot be made without arguments, as a worker makes it: {error}") from None
    (main,) = found["run"].values()
    definition = Definition(name, cls, main, found["signal"], found["query"], found["update"])
    owners = _owners.setdefault(main.function, [])
    owners[:] = [*(owner for owner in owners if owner.cls is not cls), definition]
    return definition
