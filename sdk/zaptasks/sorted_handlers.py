"""What a module holds for a worker: its tasks, its activities and its workflows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import NamedTuple, cast

from .handlers import Function, Kind, kind_of, methods_of, name_of
from .workflow.definition import definition_of, is_definition


class Sorted(NamedTuple):
    """By name, as `open_worker` takes them."""

    tasks: dict[str, Function]
    activities: dict[str, Function]
    workflows: dict[str, Function]


def sort_handlers(source: object) -> Sorted:
    """What `source` holds, for a command that runs a worker for `module:object`.

    `source` is a module (what is decorated in it), one function or workflow, a list of them and of objects with
    decorated methods, or a dict of names to functions and workflows. What is not decorated counts as a task. Raises
    `TypeError` for anything else.
    """
    if isinstance(source, ModuleType):
        source = [item for item in vars(source).values() if kind_of(item) is not None or is_definition(item)]
    elif callable(source):
        source = [source]
    if isinstance(source, Mapping):
        pairs = [(str(name), target) for name, target in source.items()]
    elif isinstance(source, Iterable) and not isinstance(source, str | bytes):
        pairs = [pair for target in source for pair in _named(target)]
    else:
        raise TypeError(f"{source!r} holds no handlers: give a module, a function, a list of functions, or a dict")
    found = Sorted({}, {}, {})
    for name, target in pairs:
        if is_definition(target):
            found.workflows[name] = cast(Function, target)
        elif kind_of(target) is Kind.ACTIVITY:
            found.activities[name] = cast(Function, target)
        else:
            found.tasks[name] = cast(Function, target)
    return found


def _named(target: object) -> list[tuple[str, object]]:
    if is_definition(target):
        return [(definition_of(target).name, target)]
    methods = [*methods_of(target, Kind.TASK), *methods_of(target, Kind.ACTIVITY)]
    return list(methods) or [(name_of(cast(Function, target)), target)]
