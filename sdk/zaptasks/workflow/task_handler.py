"""From a workflow task as it was delivered to the commands that answer it. Pure: the worker fetches and sends.

handler = WorkflowTaskHandler([Order, greet])
after = handler.first_event_needed(task)     # the worker reads pages of the history up to there, if it has to
commands = handler.handle(task)
body = answer_body(commands)                 # of 0xA2
"""

from __future__ import annotations

import logging
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from zaptasks.metrics import NO_METRICS, MetricsHandler

from . import commands as c
from . import history as h
from .definition import Definition, definition_of
from .errors import WorkflowTaskError
from .execution import Run, WorkflowInfo
from .inbox import UpdateRequest
from .local_calls import LocalCall
from .suspects import suspects

log = logging.getLogger("zaptasks.workflow")

RUNS_MAX: Final = 1_000
"""Runs that are kept at hand, of 10 to 50 KiB each; the one that was used longest ago goes first."""

REASON_CHARACTERS_MAX: Final = 2_000


class WorkflowTask(msgspec.Struct, frozen=True, kw_only=True):
    """0xB0 for a worker that replays. `history` has the events past `previous_event_id`, all that are needed."""

    task_token: str
    workflow_id: str
    run_id: str
    workflow_type_name: str
    attempt: int = 1
    history: list[h.Event] = []
    previous_event_id: int = 0
    last_event_id: int = 0
    next_event_id: int = 0
    """The first event that is missing of what was to come along; 0 for none."""
    task_timeout_ms: int = 10_000
    """How long the server waits for the answer."""
    updates: list[UpdateRequest] = []


class WorkflowTaskHandler:
    """The runs that one worker has at hand, and the workflows that it knows."""

    def __init__(
        self,
        workflows: Iterable[object] | Mapping[str, object],
        *,
        namespace: str = "",
        task_queue: str = "",
        runs_max: int = RUNS_MAX,
        metrics: MetricsHandler = NO_METRICS,
    ) -> None:
        self._definitions = definitions_by_name(workflows)
        for definition in self._definitions.values():
            for suspect in suspects(definition):
                log.warning("%s", suspect)
        self._namespace = namespace
        self._task_queue = task_queue
        self._runs_max = runs_max
        self._metrics = metrics
        self._runs: OrderedDict[str, Run] = OrderedDict()

    @property
    def types(self) -> list[str]:
        """The workflow types that it knows, sorted."""
        return sorted(self._definitions)

    def has(self, run_id: str) -> bool:
        """Whether the run is at hand."""
        return run_id in self._runs

    def first_event_needed(self, task: WorkflowTask) -> int:
        """The first event that `handle` has to find in the task's history: 1 for a run that is not at hand."""
        run = self._at_hand(task)
        return 1 if run is None else task.previous_event_id + 1

    def handle(self, task: WorkflowTask) -> list[c.Command]:
        """The commands that answer a task. Never raises for what workflow code does; it is `fail-task` then.

        Raises `ValueError` when the history has not all the events that are needed, from `first_event_needed` to
        the task's `last_event_id`.
        """
        definition = self._definitions.get(task.workflow_type_name)
        if definition is None:
            return [c.UnknownType(reason=f"this worker has {', '.join(self.types) or 'no workflows'}")]
        at_hand = self._at_hand(task)
        _check_complete(task, 1 if at_hand is None else task.previous_event_id + 1)
        if at_hand is None:
            self.evict(task.run_id)
        run = at_hand or self._fresh(task, definition)
        return self._step(
            run, task.run_id, lambda: run.feed(task.history, task.updates, last_event_id=task.last_event_id)
        )

    def local_calls(self, run_id: str) -> list[LocalCall]:
        """What the worker is to do before it answers: until this is empty, commands follow from each `local_done`."""
        run = self._runs.get(run_id)
        return [] if run is None else list(run.local_calls.open.values())

    def local_done(
        self, run_id: str, call_id: str, result: object = None, error: BaseException | None = None
    ) -> list[c.Command]:
        """The commands that follow from a local call, to be appended to those before. `fail-task` stands for all."""
        run = self._runs[run_id]
        return self._step(run, run_id, lambda: run.local_done(call_id, result, error))

    def _step(self, run: Run, run_id: str, step: Callable[[], list[c.Command]]) -> list[c.Command]:
        try:
            commands = step()
        except WorkflowTaskError as error:
            return self._give_up(run, run_id, str(error))
        except Exception as error:
            # A fault of the runner or of a broken history: never of the workflow's, whose exceptions end it.
            last = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} (at {last.filename}:{last.lineno})"
            return self._give_up(run, run_id, text)
        except BaseException:
            self._give_up(run, run_id, "")
            raise
        if run.end is not None:
            run.close()
            self._runs.pop(run_id, None)
            return commands
        self._runs[run_id] = run
        self._runs.move_to_end(run_id)
        while len(self._runs) > self._runs_max and (idle := self._longest_idle()):
            self.evict(idle)
        return commands

    def _longest_idle(self) -> str:
        """The run that was used longest ago, but for those in the middle of a task."""
        return next((run_id for run_id, run in self._runs.items() if not run.local_calls.open), "")

    def query(self, run_id: str, name: str, args: bytes | None = None) -> bytes:
        """The answer of a run at hand, as JSON. Raises `LookupError` without one, and what the query raises."""
        run = self._runs.get(run_id)
        if run is None:
            raise LookupError(f"run {run_id} is not at hand")
        return run.query(name, args)

    def replay_for_query(self, task: WorkflowTask) -> Run:
        """A run from its whole history, to ask and to close: as it was after its last answer."""
        run = self._fresh(task, self._definitions[task.workflow_type_name])
        run.replay(task.history)
        return run

    def evict(self, run_id: str) -> None:
        """Forget a run: it is replayed when it is needed again."""
        run = self._runs.pop(run_id, None)
        if run is not None:
            run.close()

    def evict_all(self) -> None:
        """Forget everything: the connection is gone, and the server sends whole histories from now on."""
        while self._runs:
            self.evict(next(iter(self._runs)))

    def _fresh(self, task: WorkflowTask, definition: Definition) -> Run:
        info = WorkflowInfo(
            workflow_id=task.workflow_id,
            run_id=task.run_id,
            type=task.workflow_type_name,
            task_queue=self._task_queue,
            namespace=self._namespace,
        )
        run = Run(definition, info)
        run.metrics = self._metrics
        return run

    def _at_hand(self, task: WorkflowTask) -> Run | None:
        run = self._runs.get(task.run_id)
        is_good = run is not None and 0 < task.previous_event_id == run.seen_event_id
        return run if is_good else None

    def _give_up(self, run: Run, run_id: str, reason: str) -> list[c.Command]:
        run.close()
        self._runs.pop(run_id, None)
        return [c.FailTask(reason=reason[:REASON_CHARACTERS_MAX])]


def answer_body(commands: Sequence[c.Command]) -> bytes:
    """The JSON of an answer (0xA2)."""
    return msgspec.json.encode({"v": 1, "cmds": commands})


def _check_complete(task: WorkflowTask, first: int) -> None:
    ids = [event.event_id for event in task.history]
    if ids != list(range(first, task.last_event_id + 1)):
        has = f"{ids[0]} to {ids[-1]}" if ids else "none"
        raise ValueError(f"the task needs the events {first} to {task.last_event_id}, and has {has}")


def definitions_by_name(workflows: Iterable[object] | Mapping[str, object]) -> dict[str, Definition]:
    """What a worker serves, by the types that it goes by. Raises `TypeError` and `ValueError` for what it cannot."""
    if isinstance(workflows, Mapping):
        return {name: definition_of(target) for name, target in workflows.items()}
    found: dict[str, Definition] = {}
    for target in workflows:
        definition = definition_of(target)
        known = found.get(definition.name)
        if known is not None and known is not definition:
            raise ValueError(
                f"workflow {definition.name!r} is registered twice: {known.main.function!r} and {target!r}"
            )
        found[definition.name] = definition
    return found
