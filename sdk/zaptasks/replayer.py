"""Replays exported histories against the code of workflows, without a server: does this code fit the runs there are?

replayer = zaptasks.Replayer(workflows=[Order])
replayer.replay(Path("order-17.json").read_bytes())     # raises NondeterminismError where it does not
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from zapwire.errors import ZapError
from zapwire.frame import Buffer

from .converters import PLAIN, DataConverter
from .exported_history import HistoryError, WorkflowHistory
from .workflow import Run, WorkflowInfo, WorkflowTaskError
from .workflow import commands as c
from .workflow.definition import Definition, workflow_definition
from .workflow.places import raised_at
from .workflow.task_handler import definitions_by_name
from .workflow_payloads import opened_events

History: TypeAlias = WorkflowHistory | Buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What came of one history."""

    history: WorkflowHistory | None
    """None for one that could not be read."""
    error: ZapError | None = None
    """Why the code does not fit: `NondeterminismError` and other `WorkflowTaskError`s, `HistoryError`, `CodecError`."""
    next: tuple[str, ...] = ()
    """What the code would do now, in words: commands that no event answers for yet. Empty for a run that is over."""

    @property
    def fits(self) -> bool:
        """Whether the code does what the history says."""
        return self.error is None


class Replayer:
    """Workflows whose code is held against histories. `workflows` is what `open_worker` takes."""

    def __init__(self, workflows: Iterable[object] | Mapping[str, object], *, converter: DataConverter = PLAIN) -> None:
        self._definitions: Final = definitions_by_name(workflows)
        self._converter: Final = converter

    def replay(self, history: History, *, workflow: object = None) -> Replayed:
        """Replay one history: a `WorkflowHistory`, or its JSON or CBOR.

        The code is that of the workflow whose type the history names, or `workflow`. It goes through every answer that
        is recorded, and then does what it would do next with the events behind the last one; nothing of that leaves,
        but functions given to `side_effect` are called. Code that does not come to an end blocks the caller.

        Raises `NondeterminismError` where it does something else than is recorded, other `WorkflowTaskError`s where it
        cannot go on, such as `ForeignAwait`, `HistoryError` for what is no history or is of a type that is not here,
        and `CodecError` for payloads whose key is not here.
        """
        read = history if isinstance(history, WorkflowHistory) else WorkflowHistory.read(history)
        read.check()
        definition = self._definition(read) if workflow is None else workflow_definition(workflow)
        return Replayed(history=read, next=self._run(read, definition))

    def replay_all(self, histories: Iterable[History]) -> list[Replayed]:
        """Replay each, and return what came of it, in order; `error` has what `replay` would raise."""
        return [self._tried(history) for history in histories]

    def _tried(self, history: History) -> Replayed:
        try:
            read = history if isinstance(history, WorkflowHistory) else WorkflowHistory.read(history)
        except ZapError as error:
            return Replayed(history=None, error=error)
        try:
            return self.replay(read)
        except ZapError as error:
            return Replayed(history=read, error=error)

    def _definition(self, history: WorkflowHistory) -> Definition:
        definition = self._definitions.get(history.workflow_type)
        if definition is None:
            known = ", ".join(sorted(self._definitions)) or "none"
            raise HistoryError(f"{history} is of no type that is known here; these are: {known}")
        return definition

    def _run(self, history: WorkflowHistory, definition: Definition) -> tuple[str, ...]:
        info = WorkflowInfo(
            workflow_id=history.workflow_id,
            run_id=history.run_id,
            type=history.workflow_type,
            namespace=history.namespace,
        )
        run = Run(definition, info)
        try:
            _check_replays(history)
            return tuple(map(c.describe, run.feed(opened_events(self._converter, history.events))))
        except ZapError:
            raise
        except SystemExit as error:
            raise WorkflowTaskError(f"{raised_at(error)}: the workflow's code raised SystemExit") from error
        except Exception as error:  # never of the workflow's own, which end the run
            raise HistoryError(f"{history} is broken: {type(error).__name__}: {error}") from error
        finally:
            run.close()


def _check_replays(history: WorkflowHistory) -> None:
    """Raise for a run of a worker that holds its runs, as Go's do: it leaves no trace of what its code did."""
    for event in history.events:
        if event.event_type == "ACTIVITY_TASK_SCHEDULED" and not event.command_id:
            raise HistoryError(
                f"{history} was not run by a worker that replays: event {event.event_id} has no command id"
            )
