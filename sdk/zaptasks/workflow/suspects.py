"""Calls in a workflow's own code that a replay would not repeat, found in its bytecode before it runs.

What is found is told in the log of the worker and not refused: this reads the methods of the class, or the function,
and not what they call; and a lambda is taken for the argument of `side_effect`.
"""

from __future__ import annotations

import builtins
import datetime
import dis
import os
import random
import secrets
import time
import uuid
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple

from .definition import Definition
from .places import Place

_CLOCK: Final = "workflow.now() or workflow.current_time()"
_CHANCE: Final = "workflow.random()"
_INSTEAD: Final[dict[object, str]] = {
    time.time: _CLOCK,
    time.time_ns: _CLOCK,
    time.monotonic: _CLOCK,
    time.perf_counter: _CLOCK,
    time.sleep: "`await workflow.sleep(...)`",
    datetime.datetime.now: _CLOCK,
    datetime.datetime.utcnow: _CLOCK,
    datetime.datetime.today: _CLOCK,
    datetime.date.today: _CLOCK,
    uuid.uuid1: "workflow.uuid4()",
    uuid.uuid4: "workflow.uuid4()",
    os.urandom: _CHANCE,
    os.getenv: "workflow.side_effect(...)",
    builtins.open: "an activity",
    builtins.input: "a signal",
    **{getattr(random, name): _CHANCE for name in ("random", "randint", "randrange", "uniform", "choice", "shuffle")},
    **{getattr(random, name): _CHANCE for name in ("choices", "sample", "gauss", "getrandbits", "SystemRandom")},
    **{
        getattr(secrets, name): _CHANCE for name in ("token_hex", "token_bytes", "token_urlsafe", "randbelow", "choice")
    },
}


class Suspect(NamedTuple):
    place: Place
    call: str
    instead: str

    def __str__(self) -> str:
        return f"{self.place}: {self.call} is not the same in a replay; use {self.instead}"


def suspects(definition: Definition) -> list[Suspect]:
    """What looks wrong in the code of a workflow, in the order of its lines."""
    if definition.cls is None:
        functions = [definition.main.function]
    else:
        functions = [value for kind in definition.cls.__mro__[:-1] for value in vars(kind).values()]
    found = [
        suspect
        for function in functions
        if isinstance(function, FunctionType)
        for suspect in _of_code(function.__code__, function.__globals__)
    ]
    return sorted(set(found))


def _of_code(code: CodeType, namespace: dict[str, Any]) -> Iterator[Suspect]:
    nothing: Final = object()
    value: object = nothing
    name, line = "", code.co_firstlineno
    for instruction in dis.get_instructions(code):
        if instruction.starts_line:
            line = _line(instruction, line)
        match instruction.opname:
            case "LOAD_GLOBAL" | "LOAD_NAME":
                name = str(instruction.argval)
                value = namespace.get(name, vars(builtins).get(name, nothing))
            case "LOAD_ATTR" | "LOAD_METHOD" if isinstance(value, ModuleType | type):
                name = f"{name}.{instruction.argval}"
                value = getattr(value, str(instruction.argval), nothing)
            case "CACHE" | "PRECALL" | "PUSH_NULL":
                continue
            case _:
                value = nothing
        try:
            instead = _INSTEAD.get(value)
        except TypeError:
            continue  # a global that cannot be hashed
        if instead is not None:
            yield Suspect(Place(code.co_filename, line, code.co_qualname), f"{name}()", instead)
    for constant in code.co_consts:
        if isinstance(constant, CodeType) and constant.co_name != "<lambda>":
            yield from _of_code(constant, namespace)


def _line(instruction: dis.Instruction, line: int) -> int:
    """Python 3.13 says where a line starts in another attribute."""
    number = getattr(instruction, "line_number", None) or instruction.starts_line
    return line if number is None or number is True else int(number)
