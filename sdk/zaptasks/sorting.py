"""What a module holds for a worker: its tasks, its activities and its workflows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import NamedTuple, cast

from .handlers import Function, Kind, kind_of, name_of
from .workflow.definition import definition_of, is_definition


class Sorted(NamedTuple):
    """By name, as `open_worker` takes them."""

    tasks: dict[str, Function]
    activities: dict[str, Function]
    workflows: dict[str, Function]


def sort_handlers(source: object) -> Sorted:
    """What `source` holds, for a command that runs a worker for `module:object`.

    `source` is a module (what is decorated in it), one function or workflow, a list of them, or a dict of names to
    them. What is not decorated counts as a task. Raises `TypeError` for anything else.
    """
    if isinstance(source, ModuleType):
        source = [item for item in vars(source).values() if kind_of(item) is not None or is_definition(item)]
    elif callable(source):
        source = [source]
    if isinstance(source, Mapping):
        pairs = [(str(name), target) for name, target in source.items()]
    elif isinstance(source, Iterable) and not isinstance(source, str | bytes):
        pairs = [(_name_of(target), target) for target in source]
    else:
        raise TypeError(f"{source!r} holds no handlers: give a module, a function, a list of functions, or a dict")
    found = Sorted({}, {}, {})
    for name, target in pairs:
        if is_definition(target):
            found.workflows[name] = cast(Function, target)
        elif kind_of(target) is Kind.ACTIVITY:
            found.activities[name] = cast(Function, target)
        else:
            found.tasks[name] = target
    return found


def _name_of(target: object) -> str:
    return definition_of(target).name if is_definition(target) else name_of(cast(Function, target))
