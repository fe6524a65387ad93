"""1: what is acknowledged exists after any crash."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import msgspec
from tests.sim.world import World

from zapserver.engine import Engine
from zapserver.engine.errors import NotFound
from zapserver.engine.records import EventType, Execution
from zapwire.envelope import Receipt

NO_RESULT = object()
"""An attempt that failed or was handed back."""
_ANSWERED = {
    EventType.ACTIVITY_RETRYING,
    EventType.ACTIVITY_HANDED_BACK,
    EventType.ACTIVITY_FAILED,
    EventType.ACTIVITY_CANCELED,
}

_decode = msgspec.json.decode


def value(raw: bytes | None) -> Any:
    """What a payload says; none is a null."""
    return None if raw is None else _decode(raw)


@dataclass(slots=True)
class Start:
    workflow_id: str
    run_id: str
    type: str
    input: Any
    level: int
    is_certain: bool = True
    """False once a crash may have taken it: less than a synced disk was asked for."""


class ScheduleState:
    """What a schedule may be: what was acknowledged last, or what was asked for since and not answered."""

    def __init__(self) -> None:
        self._states: list[tuple[int, dict[str, Any] | None]] = [(0, None)]
        """In the order of asking. None: it is not there."""
        self._asked = 0

    @property
    def possible(self) -> list[dict[str, Any] | None]:
        return [state for _, state in self._states]

    def add(self, state: dict[str, Any] | None) -> int:
        self._asked += 1
        self._states.append((self._asked, state))
        return self._asked

    def settle(self, number: int) -> None:
        """That one was acknowledged."""
        self._states = [each for each in self._states if each[0] >= number]


class Kept:
    def __init__(self, world: World) -> None:
        self._world = world
        self.starts: dict[str, Start] = {}
        self._by_request: dict[str, str] = {}
        self.losses = 0
        """Crashes and failures of the store. An answer that was on its way meanwhile may tell of what is gone."""
        self.signals: dict[str, set[int]] = defaultdict(set)
        """The numbers in their inputs, by run."""
        self._details: dict[str, int] = {}
        """The number in the last acknowledged heartbeat, by activity."""
        self._ends: dict[tuple[str, str, int], Any] = {}
        """What an acknowledged answer said of an attempt, by run, activity and attempt: a result, or `NO_RESULT`."""
        self.schedules: dict[str, ScheduleState] = {}

    def started(self, start: Start, request_id: str) -> None:
        known = self.starts.get(self._by_request.get(request_id, "")) if request_id else None
        if known is not None and known.is_certain and known.run_id != start.run_id:
            self._fail(f"request {request_id} started run {known.run_id} and then {start.run_id}")
        if start.run_id not in self.starts or start.level > self.starts[start.run_id].level:
            self.starts[start.run_id] = start
        if request_id:
            self._by_request[request_id] = start.run_id

    def signaled(self, run_id: str, number: int) -> None:
        self.signals[run_id].add(number)

    def beaten(self, activity_id: str, number: int) -> None:
        self._details[activity_id] = max(number, self._details.get(activity_id, 0))

    def ended(self, run_id: str, activity_id: str, attempt: int, result: Any) -> None:
        """An answer that ends this attempt was acknowledged."""
        self._ends[run_id, activity_id, attempt] = result

    def delivered(self, activity_id: str, details: Any) -> None:
        """The next attempt gets the details of the last heartbeat that was acknowledged, or of a later one."""
        expected = self._details.get(activity_id)
        if expected is not None and (not isinstance(details, dict) or details["n"] < expected):
            self._fail(f"heartbeat {expected} of {activity_id} was acknowledged, and the next attempt got {details}")

    def weakened(self, *, is_power: bool) -> None:
        """A crash: what asked for less than that may be gone."""
        self.losses += 1
        for start in self.starts.values():
            if start.level == Receipt.MEMORY or (start.level == Receipt.WRITTEN and is_power):
                start.is_certain = False

    def memory_lost(self) -> None:
        """A failure of the store: what was never written is gone."""
        self.losses += 1
        for start in self.starts.values():
            if start.level == Receipt.MEMORY:
                start.is_certain = False

    def paused(self, schedule_id: str) -> None:
        """Somebody else has paused it."""
        state = self.schedules[schedule_id]
        for known in state.possible:
            if known is not None:
                state.add({**known, "paused": True})

    def check(self, engine: Engine, *, is_deep: bool) -> None:
        for start in self.starts.values():
            if not start.is_certain:
                continue
            try:
                found = engine.views.execution(start.workflow_id, start.run_id)
            except NotFound:
                self._fail(f"the start of {start.workflow_id} (run {start.run_id}) was acknowledged and is gone")
                return
            if found.type != start.type or value(found.input) != start.input:
                self._fail(f"run {start.run_id} is {found.type} of {value(found.input)}, not {start}")
            if is_deep:
                self._check_history(engine, found)
        if is_deep:
            for (run_id, activity_id, attempt), result in self._ends.items():
                self._check_attempt(engine, run_id, activity_id, attempt, result)
        for run_id, numbers in self.signals.items():
            self._check_signals(engine, run_id, numbers)
        for schedule_id, state in self.schedules.items():
            self._check_schedule(engine, schedule_id, state)

    def _check_history(self, engine: Engine, found: Execution) -> None:
        events = engine.views.history(found.workflow_id, found.run_id, limit=10_000)[0]
        if [event.event_id for event in events] != list(range(1, found.history_length + 1)):
            self._fail(f"the history of {found.run_id} has a gap: {[event.event_id for event in events]}")
        elif events[0].type is not EventType.EXECUTION_STARTED:
            self._fail(f"the history of {found.run_id} begins with {events[0].type}")

    def _check_attempt(self, engine: Engine, run_id: str, activity_id: str, attempt: int, result: Any) -> None:
        try:
            events = engine.views.history("", run_id, limit=10_000)[0]
        except NotFound:
            self._fail(f"run {run_id} got an answer to {activity_id} and is gone")
            return
        types = _ANSWERED if result is NO_RESULT else {EventType.ACTIVITY_COMPLETED}
        found = [
            event
            for event in events
            if event.type in types
            and (event.attributes["activityId"], event.attributes["attempt"]) == (activity_id, attempt)
        ]
        if not found:
            self._fail(f"attempt {attempt} of {activity_id} was answered with {result}, and its history has {found}")
        elif result is not NO_RESULT and value(found[0].attributes["result"]) != result:
            self._fail(f"attempt {attempt} of {activity_id} was completed with {result}, and is in {found[0]}")

    def _check_signals(self, engine: Engine, run_id: str, numbers: set[int]) -> None:
        try:
            events = engine.views.history("", run_id, limit=10_000)[0]
        except NotFound:
            self._fail(f"run {run_id} was signaled and is gone")
            return
        signals = [event for event in events if event.type is EventType.EXECUTION_SIGNALED]
        found = [value(event.attributes["input"])["n"] for event in signals]
        if missing := sorted(numbers - set(found)):
            self._fail(f"signals {missing} of run {run_id} were acknowledged and are gone")

    def _check_schedule(self, engine: Engine, schedule_id: str, state: ScheduleState) -> None:
        try:
            found = engine.views.schedule(schedule_id)
        except NotFound:
            if None not in state.possible:
                self._fail(f"the schedule {schedule_id} was acknowledged and is gone")
            return
        seen = {
            "interval_ms": found.spec.interval_ms,
            "cron": list(found.spec.cron),
            "catchup_window_ms": found.catchup_window_ms,
            "overlap": found.overlap.value,
            "paused": found.paused,
            "n": value(found.action.input)["n"],
        }
        if seen not in state.possible:
            self._fail(f"the schedule {schedule_id} is {seen}, it could be {state.possible}")

    def _fail(self, text: str) -> None:
        self._world.fail("1 kept", text)
