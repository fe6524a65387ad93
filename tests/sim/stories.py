"""What histories have to say: each is a correct story, and together they tell of one another what happened.

These look at all runs of a namespace when everything has ended. What somebody outside was told tells the checker.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import msgspec
from tests.sim.plays import HEARD
from tests.sim.world import World

from zapserver.engine import Engine
from zapserver.engine.commands import Status
from zapserver.engine.errors import NotFound
from zapserver.engine.records import Event, EventType, Execution

_COMMANDS = {
    EventType.ACTIVITY_SCHEDULED: "scheduledEventId",
    EventType.TIMER_STARTED: "startedEventId",
    EventType.CHILD_STARTED: "startedEventId",
    EventType.CHILD_START_FAILED: "",
    EventType.EXTERNAL_SIGNALED: "",
    EventType.EXTERNAL_SIGNAL_FAILED: "",
    EventType.EXTERNAL_CANCEL_REQUESTED: "",
    EventType.EXTERNAL_CANCEL_FAILED: "",
    EventType.MARKER_RECORDED: "",
    EventType.UPSERTED: "",
}
"""Events with a command id that a run has once, and where their ends name them."""
_CLOSES = {
    EventType.ACTIVITY_COMPLETED,
    EventType.ACTIVITY_FAILED,
    EventType.ACTIVITY_TIMED_OUT,
    EventType.ACTIVITY_CANCELED,
    EventType.TIMER_FIRED,
    EventType.TIMER_CANCELED,
}
_CHILD_CLOSES = {
    EventType.CHILD_COMPLETED,
    EventType.CHILD_FAILED,
    EventType.CHILD_CANCELED,
    EventType.CHILD_TERMINATED,
    EventType.CHILD_TIMED_OUT,
}
_RUN_CLOSES = {
    EventType.EXECUTION_COMPLETED,
    EventType.EXECUTION_FAILED,
    EventType.EXECUTION_CANCELED,
    EventType.EXECUTION_TERMINATED,
    EventType.EXECUTION_TIMED_OUT,
    EventType.EXECUTION_CONTINUED_AS_NEW,
}

_decode = msgspec.json.decode


@dataclass(slots=True)
class Run:
    """A run with its history."""

    execution: Execution
    events: list[Event]

    @property
    def name(self) -> str:
        return f"{self.execution.workflow_id} (run {self.execution.run_id})"

    @property
    def reset(self) -> Event | None:
        """Where the events end that it has from another run."""
        return next((event for event in self.events if event.type is EventType.EXECUTION_RESET), None)

    def of(self, *types: EventType) -> list[Event]:
        return [event for event in self.events if event.type in types]


class Library:
    """All workflow runs of a namespace."""

    def __init__(self, engine: Engine) -> None:
        self.runs: dict[str, Run] = {}
        self.by_workflow: dict[str, list[Run]] = defaultdict(list)
        after = ""
        while True:
            page, after = engine.views.executions(lambda execution: not execution.is_task, after=after, limit=1_000)
            for execution in page:
                events = engine.views.history("", execution.run_id, limit=10_000)[0]
                run = self.runs[execution.run_id] = Run(execution, events)
                self.by_workflow[execution.workflow_id].append(run)
            if not after:
                break

    def last_of_chain(self, run: Run) -> Run:
        while run.execution.new_run_id in self.runs:
            run = self.runs[run.execution.new_run_id]
        return run


class Stories:
    """A history is a correct story, and what a worker was told of it stays so."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._told: dict[str, list[dict[str, Any]]] = {}
        self.may_change = False
        """Power was lost where somebody asked for less than a synced disk."""

    def told(self, run_id: str, events: list[dict[str, Any]]) -> None:
        """A worker has these events before it, from the first on."""
        if [event["eventId"] for event in events] != list(range(1, len(events) + 1)):
            self._fail(f"a worker has the events {[event['eventId'] for event in events]} of run {run_id}")
        known = self._told.get(run_id, [])
        for one, other in zip(known, events, strict=False):
            if one != other and not self.may_change:
                self._fail(f"run {run_id} told {one} and now {other}")
        if len(events) > len(known):
            self._told[run_id] = events

    def check(self, library: Library) -> None:
        for run in library.runs.values():
            self._check_order(run)
            self._check_commands(run)
            self._check_timers(run)
            self._check_tasks(run)
        if self.may_change:
            return
        for run_id, events in self._told.items():
            found = library.runs.get(run_id)
            if found is None:
                self._fail(f"run {run_id} went to a worker and is gone")
                continue
            now = [(event.event_id, event.type.value) for event in found.events[: len(events)]]
            if now != [(event["eventId"], event["eventType"]) for event in events]:
                self._fail(f"{found.name} told a worker other events than it has")

    def _check_order(self, run: Run) -> None:
        ids = [event.event_id for event in run.events]
        if ids != list(range(1, run.execution.history_length + 1)):
            self._fail(f"the history of {run.name} has a gap: {ids}")
        times = [event.time_ms for event in run.events]
        if times != sorted(times):
            self._fail(f"time runs back in the history of {run.name}: {times}")
        if not run.events or run.events[0].type is not EventType.EXECUTION_STARTED:
            self._fail(f"the history of {run.name} does not begin with its start")
            return
        if len(run.of(EventType.EXECUTION_STARTED)) != 1:
            self._fail(f"{run.name} starts twice")
        ends = run.of(*_RUN_CLOSES)
        if run.execution.status.is_open == bool(ends) or len(ends) > 1 or (ends and run.events[-1] is not ends[0]):
            self._fail(f"{run.name} is {run.execution.status.name} and has the ends {ends}")

    def _check_commands(self, run: Run) -> None:
        begun: dict[int, Event] = {}
        ids: Counter[str] = Counter()
        closed: Counter[int] = Counter()
        for event in run.events:
            of = event.attributes
            if event.type in _COMMANDS:
                ids[of.get("commandId", f"call {event.event_id}")] += 1
                begun[event.event_id] = event
            elif event.type in _CLOSES or event.type in _CHILD_CLOSES:
                began_id = of.get("scheduledEventId", of.get("startedEventId", 0))
                began = begun.get(began_id)
                closed[began_id] += 1
                if began is None:
                    self._fail(f"{run.name}: {event} ends what never began")
                elif began.attributes.get("commandId") != of.get("commandId"):
                    self._fail(f"{run.name}: {event} says that it ends {began}")
        if twice := [id for id, count in ids.items() if count > 1]:
            self._fail(f"{run.name} has the commands {twice} more than once")
        if twice_closed := [began_id for began_id, count in closed.items() if count > 1]:
            self._fail(f"{run.name} ends {[begun.get(began_id) for began_id in twice_closed]} more than once")

    def _check_timers(self, run: Run) -> None:
        for fired in run.of(EventType.TIMER_FIRED):
            started = run.events[fired.attributes["startedEventId"] - 1]
            waited_ms = fired.time_ms - started.time_ms
            if waited_ms < started.attributes["fireAfterMs"]:
                self._fail(f"{run.name}: the timer of {started} fired after {waited_ms} ms")

    def _check_tasks(self, run: Run) -> None:
        seen_id = 0
        for event in run.of(EventType.WORKFLOW_TASK_COMPLETED):
            now_id = event.attributes["seenEventId"]
            if not seen_id <= now_id < event.event_id:
                self._fail(f"{run.name}: a worker had seen event {seen_id}, and then {event}")
            seen_id = now_id

    def _fail(self, text: str) -> None:
        self._world.fail("story", text)


class Families:
    """No child outlives its parent but by `abandon`, and a parent hears of the end of each child once."""

    def __init__(self, world: World) -> None:
        self._world = world

    def check(self, library: Library) -> None:
        inherited = {
            (reset.attributes["baseRunId"], started.attributes["runId"])
            for run in library.runs.values()
            if (reset := run.reset) is not None
            for started in run.of(EventType.CHILD_STARTED)
        }
        for parent in library.runs.values():
            ended = {event.attributes["commandId"] for event in parent.of(*_CHILD_CLOSES)}
            for started in parent.of(EventType.CHILD_STARTED):
                run_id = started.attributes["runId"]
                if started.attributes["commandId"] in ended or (parent.execution.run_id, run_id) in inherited:
                    continue
                first = library.runs.get(run_id)
                if first is None:
                    self._fail(f"{parent.name} started a child that is not there: {started}")
                else:
                    self._check_untold(library, parent, started.attributes["parentClosePolicy"], first)

    def _check_untold(self, library: Library, parent: Run, policy: str, first: Run) -> None:
        """The parent has not heard of the end of this child: then it ended first itself."""
        child = library.last_of_chain(first)
        parent_end, child_end = parent.execution.close_ms, child.execution.close_ms
        if parent_end is None:
            if child_end is not None:
                self._fail(f"{parent.name} was not told that its child {child.name} is {child.execution.status.name}")
            return
        if child_end is not None and child_end < parent_end:
            self._fail(f"{parent.name} ended at {parent_end} and never heard that {child.name} ended at {child_end}")
        self._world.count(f"children of ended parents: {policy}")
        asked = [
            event
            for run in library.by_workflow[child.execution.workflow_id]
            for event in run.of(EventType.EXECUTION_CANCEL_REQUESTED, EventType.EXECUTION_TERMINATED)
            if event.time_ms == parent_end and event.attributes["identity"] == "server"
        ]
        is_ended_otherwise = child_end == parent_end
        if policy == "abandon":
            if asked and parent.execution.workflow_id in str(asked[0].attributes["reason"]):
                self._fail(f"{child.name} was to be left alone, and the end of {parent.name} led to {asked[0]}")
        elif policy == "terminate" and child_end != parent_end:
            self._fail(f"{child.name} (end at {child_end}) outlives its parent {parent.name} (end at {parent_end})")
        elif policy == "cancel" and not asked and not is_ended_otherwise and not self._was_canceled(child, parent_end):
            self._fail(f"{child.name} was not canceled with the end of its parent {parent.name} at {parent_end}")

    @staticmethod
    def _was_canceled(child: Run, by_ms: int) -> bool:
        """It was asked to end before its parent did: that is not said twice."""
        return any(event.time_ms <= by_ms for event in child.of(EventType.EXECUTION_CANCEL_REQUESTED))

    def _fail(self, text: str) -> None:
        self._world.fail("6 cancel", text)


class Notes:
    """An acknowledged signal with a request id is seen by its workflow exactly once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.acknowledged: dict[int, str] = {}
        """The workflow id, by the number in the input."""

    def check(self, library: Library) -> None:
        places: dict[int, list[tuple[Run, Event]]] = defaultdict(list)
        sent: Counter[tuple[str, str]] = Counter()
        got: Counter[tuple[str, str]] = Counter()
        for run in library.runs.values():
            for event in run.of(EventType.EXECUTION_SIGNALED):
                if event.attributes["signalName"] == HEARD:
                    places[_number(event)].append((run, event))
                    got[event.attributes["identity"], run.execution.workflow_id] += 1
            copied = 0 if run.reset is None else run.reset.event_id
            for event in run.of(EventType.EXTERNAL_SIGNALED):
                if event.event_id > copied:
                    sent[run.execution.workflow_id, event.attributes["workflowId"]] += 1
        for number, workflow_id in self.acknowledged.items():
            here = [(run, event) for run, event in places[number] if run.execution.workflow_id == workflow_id]
            if not here:
                self._fail(f"the signal {number} of {workflow_id} was acknowledged and is in no history")
            self._check_once(library, number, here)
        for (sender, receiver), count in sent.items():
            if got[sender, receiver] < count:
                self._fail(f"{sender} sent {count} signals to {receiver}, which has {got[sender, receiver]} of them")

    def _check_once(self, library: Library, number: int, here: list[tuple[Run, Event]]) -> None:
        counts = Counter(run.execution.run_id for run, _ in here)
        for run, event in here:
            if counts[run.execution.run_id] > 1:
                self._fail(f"{run.name} has the signal {number} more than once")
            if run.execution.status is not Status.CONTINUED_AS_NEW:
                continue
            tasks = run.of(EventType.WORKFLOW_TASK_COMPLETED)
            was_seen = event.event_id <= tasks[-1].attributes["seenEventId"]
            goes_on = run.execution.new_run_id in counts
            if was_seen and goes_on:
                self._fail(f"{run.name} has seen the signal {number}, and so will the run after it")
            elif not was_seen:
                self._world.count("signals carried over")
                if not goes_on and run.execution.new_run_id in library.runs:
                    self._fail(f"{run.name} has not seen the signal {number}, and the run after it does not have it")

    def _fail(self, text: str) -> None:
        self._world.fail("1 kept", text)


def _number(event: Event) -> int:
    return int(_decode(event.attributes["input"])["n"])


class Updates:
    """What was said of an update stays true: that it was accepted, and its outcome."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._accepted: set[tuple[str, str]] = set()
        self._outcomes: dict[tuple[str, str], Any] = {}

    def answered(self, run_id: str, update_id: str, body: dict[str, Any]) -> None:
        self._world.count(f"updates {body['stage']}")
        self._accepted.add((run_id, update_id))
        if body["stage"] == "completed":
            outcome = {name: body[name] for name in ("result", "failure") if name in body}
            known = self._outcomes.setdefault((run_id, update_id), outcome)
            if known != outcome:
                self._fail(f"update {update_id} of run {run_id} ended with {known}, and now with {outcome}")

    def refused(self, run_id: str, update_id: str, error: str) -> None:
        """Asked again, and refused."""
        if (run_id, update_id) in self._outcomes:
            self._fail(f"update {update_id} of run {run_id} has an outcome, and is refused: {error}")

    def check(self, engine: Engine, library: Library) -> None:
        for run_id, update_id in sorted(self._accepted):
            run = library.runs.get(run_id)
            if run is None:
                self._fail(f"run {run_id} took update {update_id} and is gone")
                continue
            for kind in (EventType.UPDATE_ACCEPTED, EventType.UPDATE_COMPLETED):
                found = [event for event in run.of(kind) if event.attributes["updateId"] == update_id]
                if len(found) > 1 or (not found and kind is EventType.UPDATE_ACCEPTED):
                    self._fail(f"{run.name} accepted update {update_id}, and has {len(found)} of {kind}")
            if (run_id, update_id) in self._outcomes:
                self._check_outcome(engine, run, update_id)

    def _check_outcome(self, engine: Engine, run: Run, update_id: str) -> None:
        try:
            known = engine.views.execution("", run.execution.run_id).updates[update_id]
            event = run.events[known.completed_event_id - 1]
        except (NotFound, LookupError):
            self._fail(f"{run.name} has forgotten update {update_id}")
            return
        now = {name: _decode(event.attributes[name]) for name in ("result", "failure") if event.attributes.get(name)}
        told = self._outcomes[run.execution.run_id, update_id]
        if event.attributes.get("updateId") != update_id or now != told:
            self._fail(f"update {update_id} of {run.name} ended with {told}, and its history says {event}")

    def _fail(self, text: str) -> None:
        self._world.fail("1 kept", text)
