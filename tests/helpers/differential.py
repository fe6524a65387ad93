"""The same small program on trio and on the workflow runner, with the same trace.

A program is `async def program(t, log)`: `t` is trio or what `zaptasks.workflow` has of it, `log(who, what)` notes
something at the present time. What is compared is what each `who` did and when, and how the program ended; the order in
which different tasks run at one and the same moment is trio's to choose, and not compared.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, TypeAlias

import trio
import trio.testing
from tests.helpers.workflow_world import World

from zaptasks import workflow

Log: TypeAlias = Callable[[str, object], None]
Program: TypeAlias = Callable[[Any, Log], Awaitable[object]]
Trace: TypeAlias = dict[str, list[tuple[float, str]]]

SECONDS_MAX = 100_000
"""No program takes longer."""


def on_trio(program: Program) -> Trace:
    trace: Trace = {}

    async def main() -> None:
        start = trio.current_time()
        await _traced(program, TRIO, trace, lambda: trio.current_time() - start)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return trace


def on_workflow(program: Program, *, forgetful: bool = False) -> Trace:
    """With `forgetful`, the run is evicted after every step and replayed: the trace of the last replay counts."""
    trace: Trace = {}

    async def main() -> None:
        trace.clear()
        start = workflow.current_time()
        await _traced(program, workflow, trace, lambda: workflow.current_time() - start)

    world = World(main, forgetful=forgetful)
    started = world.start()
    world.advance(SECONDS_MAX)
    assert not world.reasons
    world.result(started)
    return trace


TRIO = SimpleNamespace(**{name: getattr(trio, name) for name in dir(trio) if not name.startswith("_")})
TRIO.checkpoint = trio.lowlevel.checkpoint
TRIO.checkpoint_if_cancelled = trio.lowlevel.checkpoint_if_cancelled


async def _traced(program: Program, t: Any, trace: Trace, time: Callable[[], float]) -> None:
    def log(who: str, what: object) -> None:
        trace.setdefault(who, []).append((round(time(), 3), shape(what)))

    try:
        log("end", await program(t, log))
    except BaseException as error:
        if isinstance(error, GeneratorExit):
            raise
        log("end", error)


def shape(what: object) -> str:
    """A value, or the types and texts of an exception and those in it."""
    if isinstance(what, BaseExceptionGroup):
        return f"group({', '.join(sorted(shape(error) for error in what.exceptions))})"
    if isinstance(what, BaseException):
        text = "" if type(what).__name__ in ("Cancelled", "RuntimeError") else f" {what}"
        return type(what).__name__ + text
    return repr(what)
