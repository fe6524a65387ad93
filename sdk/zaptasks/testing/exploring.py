"""Runs of one workflow under many orders of events and many faults, each of them told by its seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgspec

from zapserver.engine.records import Execution
from zaptasks.arguments import result_reader
from zaptasks.errors import ExecutionError
from zaptasks.handlers import Handlers, Kind, table
from zaptasks.records import Status, error_of
from zaptasks.workflow import WorkflowTask, WorkflowTaskError, WorkflowTaskHandler
from zaptasks.workflow import commands as wc
from zaptasks.workflow.definition import is_definition, workflow_definition
from zapwire.failure import decode_failure

from .environment import START
from .play import Call, Play, Unexpected
from .pure_worker import Waits, read_events
from .script import ScriptStep

TRACE_LINES_MAX: Final = 60
"""Of what happened last, in a report."""

EXECUTIONS_MAX: Final = 10_000
"""Executions of one run whose histories are replayed at its end: all that there are, but for a flood."""

Check: TypeAlias = Callable[["Outcome"], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a workflow ended under one seed."""

    seed: int
    status: Status
    result: Any
    """What it returned, read as its annotation says; None if it did not complete."""
    error: ExecutionError | None
    """What `handle.result()` would raise, for another end."""
    calls: list[Call]
    """Every call of an activity's function, with its name and arguments; those that came to nothing are among them."""
    updates: list[object]
    """What each update of the script came to: its result, or the `Failure`."""
    seconds: float
    """How long it took, in its own time."""
    faults: Counter[str]
    """What was done to it: "activity failed", "worker lost"."""
    trace: list[str]
    """What happened, line by line."""


class CounterExample(AssertionError):
    """Under some seed the workflow does what it must not. The message says what, and how to run that seed alone."""

    def __init__(self, seed: int, reason: str, trace: Sequence[str]) -> None:
        lines = [f"seed {seed}: {reason}", "what happened:"]
        if len(trace) > TRACE_LINES_MAX:
            lines.append(f"  ... {len(trace) - TRACE_LINES_MAX} lines before")
        lines += [f"  {line}" for line in trace[-TRACE_LINES_MAX:]]
        lines.append(f"to run it alone: explore(..., seeds=[{seed}])")
        super().__init__("\n".join(lines))
        self.seed = seed


def explore(
    workflow: object,
    *args: object,
    activities: Handlers | Callable[[], Handlers] = (),
    workflows: Iterable[object] = (),
    script: Sequence[ScriptStep] = (),
    seeds: Iterable[int] = range(100),
    check: Check | None = None,
) -> list[Outcome]:
    """Run a workflow once for each seed, and raise `CounterExample` for the first that ends badly.

        testing.explore(Order, "tea", 450, activities=[charge, ship], script=[testing.Signal("approve", "ada")])

    The seed decides what happens when: in which order activities are done and time passes, when the steps of `script`
    come (in their order, from the beginning on), which attempts fail, before or after their work, when workers die or
    forget what they had at hand. Faults are those that the retry policies absorb. The same seed does the same again,
    for as long as the code is the same.

    Every run must end; no workflow task may fail; the history of every execution must replay to the same commands and
    the same result; and `check(outcome)` must neither raise nor return False. Without a `check` it must complete.

    Everything happens in one step and in no real time: `activities` (functions, or a function that makes new ones for
    each seed) must not wait; take `mock` for those that do. `workflows` are the types of children.
    """
    definition = workflow_definition(workflow)
    targets = [definition.cls or workflow, *workflows]
    for target in targets:
        if not is_definition(target):
            raise TypeError(f"{target!r} is not under @workflow.defn: only workflows that replay can be explored")
    types = WorkflowTaskHandler(targets)
    read = result_reader(definition.main.function)
    outcomes: list[Outcome] = []
    for seed in seeds:
        handlers = table(activities() if callable(activities) else activities, Kind.ACTIVITY)
        play = Play(seed, types, handlers, script, start_ms=round(START.timestamp() * 1000))
        try:
            execution = play.run(definition.name, args)
            _check_replays(play)
            outcome = _outcome(seed, play, execution, read)
            _check(outcome, check)
        except Waits as error:
            raise TypeError(str(error)) from error
        except Unexpected as error:
            raise CounterExample(seed, str(error), play.trace) from error.__cause__
        except Exception as error:
            raise CounterExample(seed, f"{type(error).__name__}: {error}", play.trace) from error
        finally:
            play.close()
        outcomes.append(outcome)
    if not outcomes:
        raise ValueError("no seeds were given: nothing was explored")
    return outcomes


def _check(outcome: Outcome, check: Check | None) -> None:
    if check is not None:
        if check(outcome) is False:
            raise Unexpected(f"the check says no to {outcome.error or outcome.result!r}")
    elif outcome.error is not None:
        raise Unexpected(f"it did not complete: {type(outcome.error).__name__}: {outcome.error}")


def _outcome(seed: int, play: Play, execution: Execution, read: Callable[[bytes], Any]) -> Outcome:
    status = Status[execution.status.name]
    failure = decode_failure(execution.failure) if execution.failure else None
    return Outcome(
        seed=seed,
        status=status,
        result=None if execution.result is None else read(bytes(execution.result)),
        error=error_of(execution.workflow_id, execution.run_id, status, failure, execution.close_reason),
        calls=play.calls,
        updates=play.updates,
        seconds=play.seconds,
        faults=play.faults,
        trace=play.trace,
    )


def _check_replays(play: Play) -> None:
    """The history of every execution leads the code to the same commands, and to the same result."""
    for execution in play.engine.views.executions(lambda _: True, limit=EXECUTIONS_MAX)[0]:
        history = read_events(play.events(execution.workflow_id, execution.run_id))
        task = WorkflowTask(
            task_token="",
            workflow_id=execution.workflow_id,
            run_id=execution.run_id,
            workflow_type_name=execution.type,
            history=history,
            last_event_id=len(history),
        )
        try:
            run = play.worker.handler.replay_for_query(task)
        except WorkflowTaskError as error:
            raise Unexpected(f"the history of {execution.workflow_id} does not replay: {error}") from error
        run.close()
        if isinstance(run.end, wc.Complete) and execution.result is not None:
            again, before = msgspec.json.encode(run.end.result), bytes(execution.result)
            if again != before:
                raise Unexpected(
                    f"a replay of {execution.workflow_id} returns {again!r}, and it had returned {before!r}"
                )
