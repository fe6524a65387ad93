"""What comes from outside while a workflow is explored."""

from __future__ import annotations

from dataclasses import dataclass


class ScriptStep:
    """One of those below."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Signal(ScriptStep):
    """A signal comes from outside."""

    name: str
    value: object = None


@dataclass(frozen=True, slots=True, init=False)
class Update(ScriptStep):
    """Somebody asks for an update."""

    name: str
    args: tuple[object, ...]

    def __init__(self, name: str, *args: object) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "args", args)


@dataclass(frozen=True, slots=True)
class Cancel(ScriptStep):
    """Somebody asks the workflow to stop."""

    reason: str = ""
