"""The promises, one class each. They look at what enters and leaves the server, and at what it has in the end.

Who was promised something tells the checker; the checker believes nobody else. `World.fail` takes the first violation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from tests.sim.disk import WELL_MS_MAX
from tests.sim.network import SimLink
from tests.sim.profile import Profile
from tests.sim.stories import Families, Library, Notes, Stories, Updates
from tests.sim.world import World

from zapserver.engine import Engine
from zapserver.engine.commands import Overlap, Status
from zapserver.engine.errors import NotFound
from zapserver.engine.executions import CANCEL_MS_MAX
from zapserver.engine.records import WORKFLOW_TASK_MS, EventType, Execution, Schedule
from zapwire.envelope import Receipt, decode_envelope, decode_respond, decode_submit_reply, decode_task_submit
from zapwire.opcodes import Op

ORPHAN = "orphan"
"""The type of tasks and workflows that no worker knows."""

TICK_MS_MAX = 1_000
"""An engine that was built again knows the time, and does what is due with its first tick."""

NEVER_MS = 1 << 60

DOWN_MS_MAX = 300_000
"""A server is never down for longer than this."""

CRONS = {"*/20 * * * * *": 20_000, "* * * * *": 60_000}
"""The cron expressions of schedules, and how far apart their slots are, which are multiples of that."""
MISSED_COUNTED_MAX = 100
"""More slots of a cron expression that were missed at once are not all counted."""

_SUBMITS = (Op.TASK_SUBMIT, Op.TASK_SCHEDULE)
_RESPONDS = (
    Op.RESPOND_WORKFLOW_TASK_COMPLETED,
    Op.RESPOND_ACTIVITY_TASK_COMPLETED,
    Op.RESPOND_ACTIVITY_TASK_FAILED,
    Op.RECORD_ACTIVITY_TASK_HEARTBEAT,
    Op.HAND_BACK_TASK,
)
_SUBSCRIBES = {Op.SUBSCRIBE_WORKFLOW_TASKS: "workflow", Op.SUBSCRIBE_ACTIVITY_TASKS: "activity"}

_decode = msgspec.json.decode


def value(raw: bytes | None) -> Any:
    """What a payload says; none is a null."""
    return None if raw is None else _decode(raw)


# --- 1: what is acknowledged exists after any crash -----------------------------------------------------------


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


# --- 2: a reported result never changes -----------------------------------------------------------------------


class Results:
    def __init__(self, world: World) -> None:
        self._world = world
        self._by_run: dict[str, tuple[str, Any, Any]] = {}
        self._by_activity: dict[str, Any] = {}

    def reported(self, run_id: str, status: str, result: Any, failure: Any, how: str) -> None:
        """Somebody outside knows how a run ended."""
        told = (status, result, failure)
        known = self._by_run.setdefault(run_id, told)
        if known != told:
            self._world.fail("2 result", f"run {run_id} ended as {known}, and {how} says {told}")

    def activity(self, activity_id: str, outcome: Any) -> None:
        known = self._by_activity.setdefault(activity_id, outcome)
        if known != outcome:
            self._world.fail("2 result", f"activity {activity_id} ended with {known}, and now with {outcome}")

    def check(self, engine: Engine) -> None:
        for run_id, told in self._by_run.items():
            try:
                found = engine.views.execution("", run_id)
            except NotFound:
                self._world.fail("2 result", f"run {run_id} ended as {told} and is gone")
                return
            now = (found.status.name, value(found.result), value(found.failure))
            if now != told:
                self._world.fail("2 result", f"run {run_id} ended as {told}, and is {now}")


# --- 3: no lease is held by two -------------------------------------------------------------------------------


@dataclass(slots=True)
class Held:
    """A delivery, and what is known of its lease."""

    key: str
    run_id: str
    token: str
    attempt: int
    link: SimLink
    kind: str
    started_ms: int
    beat_ms: int
    start_to_close_ms: int = 0
    heartbeat_ms: int = 0
    is_over: bool = False
    over_ms: int = 0
    is_told_to_stop: bool = False
    is_replayed: bool = False
    """Of a run whose worker replays: it begins things after a cancel, and has one workflow task after another."""
    is_answered: bool = False
    has_updates: bool = False
    is_closed: bool = False
    """Its lease was over when the delivery left, and nobody but the end of the execution can have done that."""

    def is_live(self, now_ms: int) -> bool:
        if self.is_over:
            return False
        if self.start_to_close_ms and now_ms >= self.started_ms + self.start_to_close_ms:
            return False
        return not (self.heartbeat_ms and now_ms >= self.beat_ms + self.heartbeat_ms)


class Leases:
    def __init__(self, world: World) -> None:
        self._world = world
        self.latest: dict[str, Held] = {}
        """By activity id, or run id for a workflow."""
        self.by_token: dict[str, Held] = {}
        self._done: dict[str, str] = {}
        """The token whose answer closed an activity."""
        self.attempts: Counter[tuple[str, int]] = Counter()
        self._slots: Counter[tuple[SimLink, str]] = Counter()
        self.may_repeat = False
        """Power was lost where somebody asked for less than a synced disk: attempts may be counted again."""

    def delivered(self, held: Held, engine: Engine) -> None:
        now_ms = engine.now_ms
        known = self.latest.get(held.key)
        if known is not None:
            if known.is_live(now_ms):
                self._fail(
                    f"{held.key} goes to {held.link.node_id} (attempt {held.attempt}) while attempt {known.attempt} is"
                    f" held by {known.link.node_id}"
                )
            is_next = held.is_replayed and held.kind == "workflow" and known.is_answered
            if held.attempt <= known.attempt and not is_next and not self.may_repeat:
                self._fail(f"attempt {held.attempt} of {held.key} comes after attempt {known.attempt}")
            if known.is_closed and not known.link.is_over:
                self._fail(f"{held.key} was closed while attempt {known.attempt} was on its way, and goes out again")
        if held.key in self._done:
            self._fail(f"{held.key} was completed, and attempt {held.attempt} goes out")
        self.latest[held.key] = self.by_token[held.token] = held
        self.attempts[held.key, held.attempt] += 1
        self._check_slots(held, engine)

    def _check_slots(self, new: Held, engine: Engine) -> None:
        held = sum(
            each.link is new.link
            and each.kind == new.kind
            and each.is_live(engine.now_ms)
            and each.run_id in engine._state.executions
            for each in self.latest.values()
        )
        if held > self._slots[new.link, new.kind]:
            self._fail(
                f"{new.link.node_id} has {self._slots[new.link, new.kind]} slots and got {held} {new.kind} tasks"
            )

    def subscribed(self, link: SimLink, kind: str, slots: int) -> None:
        self._slots[link, kind] += slots

    def over(self, token: str, now_ms: int) -> None:
        held = self.by_token.get(token)
        if held is not None and not held.is_over:
            held.is_over = True
            held.over_ms = now_ms

    def accepted(self, token: str, latest_token: str, *, is_last: bool) -> None:
        """An answer under this token was taken when `latest_token` was the one that had gone out last."""
        held = self.by_token.get(token)
        if held is None:
            return
        if latest_token != token:
            self._fail(f"the answer of attempt {held.attempt} of {held.key} was taken, and a later attempt was out")
        if is_last:
            known = self._done.setdefault(held.key, token)
            if known != token:
                self._fail(f"{held.key} was completed twice")

    def parted(self, link: SimLink, now_ms: int) -> None:
        for held in self.latest.values():
            if held.link is link:
                self.over(held.token, now_ms)

    def restarted(self, now_ms: int) -> None:
        for held in self.latest.values():
            self.over(held.token, now_ms)
            held.is_closed = False

    def rebuilt(self, now_ms: int) -> None:
        """Answers that were not kept did not happen: what they ended may be held again by connections that stand. A
        workflow task that brought updates, which are forgotten, goes out again."""
        for held in self.latest.values():
            if held.is_over and not held.link.is_over:
                held.over_ms = NEVER_MS
            elif held.has_updates:
                self.over(held.token, now_ms)

    def check_attempts(self, engine: Engine) -> None:
        """Whatever reached a worker is in a history."""
        known: set[tuple[str, int]] = set()
        runs = {held.run_id for held in self.latest.values() if held.kind == "activity"}
        for run_id in sorted(runs):
            try:
                events = engine.views.history("", run_id, limit=10_000)[0]
            except NotFound:
                if not self.may_repeat:
                    self._fail(f"run {run_id} was worked on and is gone")
                continue
            known |= {
                (event.attributes["activityId"], event.attributes["attempt"])
                for event in events
                if event.type is EventType.ACTIVITY_STARTED
            }
        for held in self.by_token.values():
            if held.kind == "activity" and (held.key, held.attempt) not in known and not self.may_repeat:
                self._fail(f"attempt {held.attempt} of {held.key} went out and is in no history")

    def _fail(self, text: str) -> None:
        self._world.fail("3 lease", text)


# --- 4: every execution ends, or says what it waits for -------------------------------------------------------


class Endings:
    def __init__(self, world: World) -> None:
        self._world = world

    def still_open(self, engine: Engine) -> list[Execution]:
        """Those that are to end by themselves."""
        return [execution for execution in engine._state.executions.values() if execution.type != ORPHAN]

    def check(self, engine: Engine) -> None:
        for execution in engine._state.executions.values():
            waits_for = engine.views.explain(execution.workflow_id, execution.run_id)
            reasons = [item.reason for item in waits_for]
            if execution.type != ORPHAN:
                self._world.fail("4 end", f"{execution.workflow_id} ({execution.type}) does not end: {reasons}")
            elif not any("that could serve" in reason or "none of the" in reason for reason in reasons):
                self._world.fail("4 end", f"{execution.workflow_id} has no worker and says {reasons}")


# --- 5: a schedule fires each slot once -----------------------------------------------------------------------


@dataclass(slots=True)
class Backfill:
    """A range of the past that was to be filled in."""

    schedule_id: str
    request_id: str
    start_ms: int
    end_ms: int
    slots: int | None = None
    """How many of the first were to be acted on; None before that was answered."""


class Slots:
    def __init__(self, world: World) -> None:
        self._world = world
        self.backfills: dict[str, Backfill] = {}
        """By request id."""
        self.steady: dict[str, int] = {}
        """Schedules that were put once and then left alone, and when it was by the time that was acknowledged."""
        self._triggered: dict[str, str] = {}

    def triggered(self, request_id: str, run_id: str) -> None:
        known = self._triggered.setdefault(request_id, run_id)
        if known != run_id:
            self._fail(f"the trigger {request_id} started run {known} and then {run_id}")

    def backfilled(self, request_id: str, slots: int) -> None:
        backfill = self.backfills[request_id]
        if backfill.slots not in (None, slots):
            self._fail(f"{backfill} has {slots} slots when it is asked for again")
        backfill.slots = slots

    def check(self, engine: Engine, *, is_last: bool) -> None:
        fired: dict[str, Counter[str]] = defaultdict(Counter)
        after = ""
        while True:
            page, after = engine.views.executions(_is_fired, after=after, limit=1_000)
            for execution in page:
                fired[execution.schedule_id][execution.workflow_id] += 1
            if not after:
                break
        for schedule_id, runs in fired.items():
            for workflow_id, count in runs.items():
                if count > 1 + self._backfills_of(schedule_id, workflow_id):
                    self._fail(f"{workflow_id} of schedule {schedule_id} was started {count} times")
        for backfill in self.backfills.values():
            if is_last and backfill.slots:
                self._check_backfill(engine, backfill, fired[backfill.schedule_id])
        for schedule_id, made_ms in self.steady.items():
            self._check_steady(engine, schedule_id, made_ms, fired[schedule_id], is_last=is_last)

    def _backfills_of(self, schedule_id: str, workflow_id: str) -> int:
        mine = [backfill for backfill in self.backfills.values() if backfill.schedule_id == schedule_id]
        if not mine or not workflow_id.endswith("Z"):
            return 0
        slot_ms = _slot_of(schedule_id, workflow_id)
        return sum(backfill.start_ms <= slot_ms <= backfill.end_ms for backfill in mine)

    def _check_backfill(self, engine: Engine, backfill: Backfill, runs: Counter[str]) -> None:
        try:
            schedule = engine.views.schedule(backfill.schedule_id)
        except NotFound:
            return  # nobody fills in what was deleted
        self._world.count("backfills checked")
        assert backfill.slots is not None
        slots = _slots(schedule, backfill.end_ms + 1, after_ms=backfill.start_ms - 1)
        wanted = [slot for slot in slots if slot >= backfill.start_ms][: backfill.slots]
        done = {_slot_of(backfill.schedule_id, name) for name in runs if name.endswith("Z")}
        if len(wanted) < backfill.slots or not done.issuperset(wanted):
            self._fail(f"{backfill} was to act on {wanted}, and there are runs of {sorted(done)}")

    def _check_steady(
        self, engine: Engine, schedule_id: str, made_ms: int, runs: Counter[str], *, is_last: bool
    ) -> None:
        try:
            schedule = engine.views.schedule(schedule_id)
        except NotFound:
            self._fail(f"the schedule {schedule_id} is gone")
            return
        if schedule.anchor_ms > made_ms:
            self._fail(f"{schedule_id} counts from {schedule.anchor_ms}, and was made at {made_ms}")
        slots = _slots_so_far(schedule)
        if strange := [name for name in runs if _slot_of(schedule_id, name) not in slots]:
            self._fail(f"{schedule_id} fired for what is no slot: {strange}")
        accounted = (
            len(runs) + schedule.missed + schedule.skipped_overlap + schedule.buffer_dropped + len(schedule.buffered)
        )
        is_counted_out = not schedule.spec.cron or schedule.missed < MISSED_COUNTED_MAX
        if accounted > len(slots) or (accounted < len(slots) and is_counted_out):
            self._fail(
                f"{schedule_id} ({schedule.overlap}) had {len(slots)} slots: {len(runs)} fired,"
                f" {schedule.missed} missed, {schedule.skipped_overlap} skipped, {schedule.buffer_dropped} dropped,"
                f" {len(schedule.buffered)} wait"
            )
        if schedule.missed and (schedule.catchup_window_ms or 0) > 2 * self._world.jumped_ms + DOWN_MS_MAX:
            self._fail(f"{schedule_id} catches up {schedule.catchup_window_ms} ms and missed {schedule.missed} slots")
        if is_counted_out and schedule.overlap is Overlap.ALLOW and len(runs) + schedule.missed != len(slots):
            self._fail(f"{schedule_id} allows overlaps and left slots out")
        if is_last and not schedule.paused and (schedule.next_ms or 0) < engine.now_ms - 1_000:
            self._fail(f"{schedule_id} is at {schedule.next_ms}, and it is {engine.now_ms}")

    def _fail(self, text: str) -> None:
        self._world.fail("5 slot", text)


def _is_fired(execution: Execution) -> bool:
    """Not a dead letter that somebody runs again."""
    return bool(execution.schedule_id) and execution.identity == "schedule"


def _slots_so_far(schedule: Schedule) -> range:
    """Since it was made."""
    assert schedule.next_ms is not None
    return _slots(schedule, schedule.next_ms, after_ms=schedule.anchor_ms)


def _slots(schedule: Schedule, before_ms: int, after_ms: int = 0) -> range:
    """An interval has slots from its anchor on, a cron expression at all times."""
    if interval_ms := schedule.spec.interval_ms:
        return range(schedule.anchor_ms + interval_ms, before_ms, interval_ms)
    period_ms = CRONS[schedule.spec.cron[0]]
    return range((after_ms // period_ms + 1) * period_ms, before_ms, period_ms)


def _slot_of(schedule_id: str, workflow_id: str) -> int:
    """The slot that the name of a run ends in."""
    return round(datetime.fromisoformat(workflow_id.removeprefix(f"{schedule_id}-")).timestamp() * 1000)


# --- 6: cancel reaches every descendant -----------------------------------------------------------------------


class Cancels:
    """Today the descendants are activities. Children of a workflow join in `check`, by the same rule: closed."""

    def __init__(self, world: World, leases: Leases) -> None:
        self._world = world
        self._leases = leases
        self._acknowledged: dict[str, int] = {}
        """When, by run id."""
        self._overdue: dict[str, int] = {}
        """Since when a run is seen open that was to be ended over everybody's head."""

    def acknowledged(self, run_id: str) -> None:
        self._acknowledged.setdefault(run_id, self._world.now_ms)

    def delivered(self, held: Held) -> None:
        """Nobody is to begin with a canceled run, nor with its activities once nobody runs it."""
        if self._acknowledged.get(held.run_id, self._world.now_ms) == self._world.now_ms:
            return  # what the passing of time did before the cancel, in the same step, leaves behind its answer
        if held.is_replayed:
            return  # it cleans up
        if held.kind == "workflow":
            self._fail(f"the canceled run {held.run_id} goes to {held.link.node_id}")
            return
        if held.is_over:  # while it waited for the disk
            return
        holder = self._leases.latest.get(held.run_id)
        if holder is None or (holder.is_over and held.started_ms > holder.over_ms):
            self._fail(f"activity {held.key} of the canceled run {held.run_id} begins")

    def look(self, engine: Engine) -> None:
        """Nobody hears of a cancel: it is done over everybody's head in time."""
        for execution in engine._state.executions.values():
            due_ms = execution.cancel_due_ms
            if execution.is_task or due_ms is None:
                continue
            if execution.status is not Status.CANCELING or due_ms >= engine.now_ms:
                continue
            if self._world.now_ms > self._overdue.setdefault(execution.run_id, self._world.now_ms) + TICK_MS_MAX:
                self._fail(f"run {execution.run_id} was canceled {CANCEL_MS_MAX} ms ago and is open")

    def check(self, engine: Engine) -> None:
        for run_id in sorted(self._acknowledged):
            try:
                found = engine.views.execution("", run_id)
            except NotFound:
                continue
            if found.status.is_open:
                self._fail(f"run {run_id} ({found.type}) was canceled and is {found.status.name}")
        for held in self._leases.latest.values():
            if held.is_over or held.is_told_to_stop or (held.is_replayed and not held.is_live(engine.now_ms)):
                continue
            if held.run_id not in engine._state.executions:
                self._fail(f"{held.link.node_id} was not told that {held.key} of {held.run_id} is over")

    def _fail(self, text: str) -> None:
        self._world.fail("6 cancel", text)


# --- 7: a slow or dead peer never blocks another --------------------------------------------------------------


class Patience:
    """A call on a connection that is well is answered in time while the server and its disk are well."""

    RECOVERY_MS = 2_500
    """What was begun in bad times may take longer: half a commit on a slow disk."""

    def __init__(self, world: World, delay_ms: int) -> None:
        self._world = world
        self.answer_ms_max = 2 * delay_ms + 6 * WELL_MS_MAX + 50
        self._calm_since_ms: int | None = None

    def look(self, *, is_calm: bool) -> None:
        if not is_calm:
            self._calm_since_ms = None
        elif self._calm_since_ms is None:
            self._calm_since_ms = self._world.now_ms + self.RECOVERY_MS

    def waited(self, what: str, name: str, since_ms: int, link_calm_since_ms: int, *, is_answered: bool) -> None:
        calm = self._calm_since_ms
        if calm is None or since_ms < calm or since_ms < link_calm_since_ms:
            return
        self._world.count("answers in calm times")
        took_ms = self._world.now_ms - since_ms
        if took_ms > self.answer_ms_max:
            end = "was answered" if is_answered else "is not answered"
            self._world.fail("7 patience", f"{what!r} of {name} {end} after {took_ms} ms, at most {self.answer_ms_max}")


# --- all of them ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Call:
    opcode: int
    token: str = ""
    data: bytes = b""
    latest_token: str = ""
    at_ms: int = 0
    """The engine's time when it came."""


class Checkers:
    """Those of one namespace. They know what each message is about."""

    def __init__(self, world: World, profile: Profile) -> None:
        self._world = world
        self._is_weak = profile.weak_rate > 0
        self.kept = Kept(world)
        self.results = Results(world)
        self.leases = Leases(world)
        self.endings = Endings(world)
        self.slots = Slots(world)
        self.cancels = Cancels(world, self.leases)
        self.patience = Patience(world, profile.delay_ms)
        self.stories = Stories(world)
        self.families = Families(world)
        self.notes = Notes(world)
        self.updates = Updates(world)
        self._engine: Engine | None = None
        self._calls: dict[tuple[SimLink, int], _Call] = {}

    @property
    def engine(self) -> Engine:
        assert self._engine is not None
        return self._engine

    # --- what enters and leaves ------------------------------------------------------------------------

    def called(self, link: SimLink, request_id: int, opcode: int, message: bytes) -> None:
        call = _Call(opcode)
        if opcode in _RESPONDS:
            scoped, data = decode_respond(message)
            call.token = bytes(scoped).decode().rpartition("|")[0]
            call.data = bytes(data)
            held = self.leases.by_token.get(call.token)
            if held is not None:
                call.latest_token = self.leases.latest[held.key].token
                call.at_ms = max(self._world.clock(), self.engine.now_ms)
                if opcode == Op.RESPOND_WORKFLOW_TASK_COMPLETED:
                    held.is_answered = True
                if opcode != Op.RECORD_ACTIVITY_TASK_HEARTBEAT:
                    self.leases.over(call.token, self.engine.now_ms)
        elif opcode in _SUBSCRIBES or opcode == Op.CANCEL_WORKFLOW:
            call.data = bytes(decode_envelope(message).body)
        self._calls[link, request_id] = call

    def answering(self, link: SimLink, request_id: int, message: bytes) -> None:
        call = self._calls.pop((link, request_id), None)
        if call is None:
            return
        if call.opcode in _SUBMITS:
            status, error = decode_submit_reply(message)[0], ""
        else:
            envelope = decode_envelope(message)
            status, error = envelope.status, envelope.error
        if status == 500:
            self._world.fail("server", f"0x{call.opcode:02X} of {link.node_id} was answered 500: {error}")
        if status not in (0, 200):
            return
        if call.opcode in _RESPONDS:
            self._answer_taken(call)
        elif call.opcode in _SUBSCRIBES:
            self.leases.subscribed(link, _SUBSCRIBES[Op(call.opcode)], _decode(call.data)["slots"])
        elif call.opcode == Op.CANCEL_WORKFLOW:
            self.cancels.acknowledged(_decode(call.data)["run_id"])

    def _answer_taken(self, call: _Call) -> None:
        held = self.leases.by_token.get(call.token)
        if held is None:
            return
        is_completed = call.opcode == Op.RESPOND_ACTIVITY_TASK_COMPLETED
        self.leases.accepted(call.token, call.latest_token, is_last=is_completed)
        if call.opcode == Op.RECORD_ACTIVITY_TASK_HEARTBEAT:
            held.beat_ms = max(held.beat_ms, call.at_ms)
            self.kept.beaten(held.key, _decode(call.data)["n"])
        elif is_completed:
            self.results.activity(held.key, _decode(call.data))

    def pushing(self, link: SimLink, opcode: int, body: bytes) -> None:
        push = _decode(body)
        about = push.get("activity_id") or push.get("run_id") or push.get("task_token")
        self._world.note("to", link.node_id, Op(opcode).name, about, push.get("attempt", ""))
        match opcode:
            case Op.DELIVER_ACTIVITY_TASK | Op.DELIVER_WORKFLOW_TASK:
                held = self._held(link, opcode, push)
                self.cancels.delivered(held)
                self.leases.delivered(held, self.engine)
                if held.kind == "activity":
                    self.kept.delivered(held.key, push.get("heartbeat_details"))
            case Op.DELIVER_ACTIVITY_RESULT:
                outcome = _decode(push["result"]) if "result" in push else {"failure": push["failure"]}
                self.results.activity(push["activity_id"], outcome)
            case Op.DELIVER_ACTIVITY_CANCEL:
                known = self.leases.by_token.get(push["task_token"].rpartition("|")[0])
                if known is not None:
                    known.is_told_to_stop = True
            case Op.DELIVER_CANCEL_REQUEST:
                holder = self.leases.latest.get(push["run_id"])
                if holder is not None and holder.link is link:
                    holder.is_told_to_stop = True

    def _held(self, link: SimLink, opcode: int, push: dict[str, Any]) -> Held:
        state, now_ms = self.engine._state, self.engine.now_ms
        token = push["task_token"].rpartition("|")[0]
        kind = "activity" if opcode == Op.DELIVER_ACTIVITY_TASK else "workflow"
        task: Any
        if kind == "activity":
            task = state.activities.get(push["activity_id"])
        else:
            run = state.executions.get(push["run_id"])
            task = None if run is None else run.task
        # A lease can end while its delivery waits for the disk.
        lease = task.lease if task is not None and task.lease is not None and task.lease.token == token else None
        is_replay = "history" in push
        limit_ms = push.get("start_to_close_timeout_ms", 0)
        return Held(
            key=push["activity_id"] if kind == "activity" else push["run_id"],
            run_id=push["run_id"],
            token=token,
            attempt=push["attempt"],
            link=link,
            kind=kind,
            started_ms=now_ms if lease is None else lease.started_ms,
            beat_ms=now_ms if lease is None else lease.heartbeat_ms,
            start_to_close_ms=WORKFLOW_TASK_MS if is_replay else limit_ms,
            heartbeat_ms=push.get("heartbeat_timeout_ms", 0),
            is_over=lease is None,
            over_ms=now_ms,
            is_replayed=is_replay or push.get("activity_id", "").startswith(f"act-{push['run_id']}-"),
            has_updates="updates" in push,
            is_closed=lease is None and kind == "workflow" and not is_replay,
        )

    def parted(self, link: SimLink) -> None:
        self.leases.parted(link, self.engine.now_ms)

    # --- what happens to the server --------------------------------------------------------------------

    def crashed(self, *, is_power: bool) -> None:
        self.kept.weakened(is_power=is_power)
        if is_power and self._is_weak:
            self.leases.may_repeat = self.stories.may_change = True

    def store_failed(self) -> None:
        self.kept.memory_lost()

    def restarted(self, engine: Engine) -> None:
        self._engine = engine
        self._calls.clear()
        self.leases.restarted(engine.now_ms)
        self._look(engine)

    def rebuilt(self, engine: Engine) -> None:
        self._engine = engine
        self.leases.rebuilt(engine.now_ms)
        self._look(engine)

    def _look(self, engine: Engine) -> None:
        self.kept.check(engine, is_deep=False)
        self.results.check(engine)
        self.slots.check(engine, is_last=False)

    def stepped(self, *, is_serving: bool, is_disk_well: bool) -> None:
        """After every event."""
        self.patience.look(is_calm=is_serving and is_disk_well)
        if is_serving:
            self.cancels.look(self.engine)

    def check_end(self, engine: Engine) -> None:
        """Faults have stopped, and everything had time to end."""
        self.kept.check(engine, is_deep=True)
        self.results.check(engine)
        self.leases.check_attempts(engine)
        self.cancels.check(engine)
        self.endings.check(engine)
        self.slots.check(engine, is_last=True)
        library = Library(engine)
        self.stories.check(library)
        self.families.check(library)
        self.notes.check(library)
        self.updates.check(engine, library)


class _Scoped(msgspec.Struct):
    """What says in which namespace a message belongs."""

    namespace: str = ""
    task_token: str = ""
    activity_id: str = ""


_read_scope = msgspec.json.Decoder(_Scoped).decode


class Watchers:
    """The checkers of all namespaces. Each looks at what is its own."""

    def __init__(self, world: World, by_namespace: dict[str, Checkers]) -> None:
        self._world = world
        self._by_namespace = by_namespace

    def called(self, link: SimLink, request_id: int, opcode: int, message: bytes) -> None:
        if opcode in _RESPONDS:
            namespace = bytes(decode_respond(message)[0]).decode().rpartition("|")[2]
        elif opcode in _SUBMITS:
            namespace = _read_scope(bytes(decode_task_submit(message).options)).namespace
        else:
            namespace = _read_scope(decode_envelope(message).body).namespace
        self._by_namespace[namespace].called(link, request_id, opcode, message)

    def answering(self, link: SimLink, request_id: int, message: bytes) -> None:
        for checkers in self._by_namespace.values():  # one of them knows the call
            checkers.answering(link, request_id, message)

    def pushing(self, link: SimLink, opcode: int, body: bytes) -> None:
        self._world.count(f"push {Op(opcode).name.lower()}")
        scope = _read_scope(body)
        namespace = scope.namespace or scope.task_token.rpartition("|")[2]
        for name, checkers in self._by_namespace.items():
            if name == namespace or (not namespace and scope.activity_id in checkers.leases.latest):
                checkers.pushing(link, opcode, body)

    def parted(self, link: SimLink) -> None:
        for checkers in self._by_namespace.values():
            checkers.parted(link)
