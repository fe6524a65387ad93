"""5: a schedule fires each slot once."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime

from tests.sim.world import World

from zapserver.engine import Engine
from zapserver.engine.commands import Overlap
from zapserver.engine.errors import NotFound
from zapserver.engine.records import Execution, Schedule

DOWN_MS_MAX = 300_000
"""A server is never down for longer than this."""

CRONS = {"*/20 * * * * *": 20_000, "* * * * *": 60_000}
"""The cron expressions of schedules, and how far apart their slots are, which are multiples of that."""
MISSED_COUNTED_MAX = 100
"""More slots of a cron expression that were missed at once are not all counted."""


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
