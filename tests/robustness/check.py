"""Whether everything that was acknowledged is there, once, and as it was reported: asked over ZAP when all is quiet."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from tests.robustness.journal import BEGUN, KEPT, SIDE_EFFECTS, read
from tests.robustness.load import FAILED, UNSERVED_SECONDS, Load, Scheduled, Started

from zaptasks import AsyncClient, CallFailed, ExecutionInfo, HistoryEvent, Status

LOOKS_AT_ONCE = 32
PAGE_SIZE = 500
TIMER_LATE_SECONDS_MAX = 20.0
"""A server that is killed again and again while it starts is away for some seconds."""


@dataclass
class Claim:
    """One promise: how often it was checked, and where it was broken."""

    text: str
    checked: int = 0
    broken: list[str] = field(default_factory=list)

    def check(self, holds: bool, problem: str) -> None:
        self.checked += 1
        if not holds:
            self.broken.append(problem)


@dataclass
class Findings:
    """What the check found."""

    claims: list[Claim]
    counts: dict[str, int]
    """`executions`, `completed`, `side effects`, `duplicates`, ..."""
    lost_attempts: dict[str, int]
    """Why the attempts ended whose side effects are duplicates."""

    @property
    def is_good(self) -> bool:
        return not any(claim.broken for claim in self.claims)


class Check:
    """One look at everything. `client` goes to the server by the straight way."""

    def __init__(self, client: AsyncClient, load: Load, folder: Path) -> None:
        self._client = client
        self._load = load
        self._folder = folder
        self._claims: dict[str, Claim] = {}
        self._listed: dict[str, ExecutionInfo] = {}
        self._described: dict[str, ExecutionInfo] = {}
        self._histories: dict[str, list[HistoryEvent]] = {}
        self._effects: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._counts: Counter[str] = Counter()
        self._lost_attempts: Counter[str] = Counter()

    def claim(self, text: str) -> Claim:
        return self._claims.setdefault(text, Claim(text))

    async def run(self) -> Findings:
        for effect in read(self._folder, SIDE_EFFECTS):
            self._effects[effect["run"]].append(effect)
        async for info in self._client.list(page_size=PAGE_SIZE):
            self.claim("no execution is listed twice").check(info.run_id not in self._listed, info.run_id)
            self._listed[info.run_id] = info
        await self._look_closer()
        self._check_starts()
        self._check_timers()
        await self._check_open()
        self._check_results()
        self._check_signals()
        self._check_side_effects()
        self._check_heartbeats()
        await self._check_schedules()
        answers = self.claim("a repeated request names the run that it started")
        answers.checked = self._load.counts["acknowledged"]
        answers.broken = list(self._load.contradictions)
        unknown = self._listed.keys() - self._load.started.keys()
        self._counts |= {
            "executions": len(self._listed),
            "completed": sum(info.status is Status.COMPLETED for info in self._listed.values()),
            "of schedules": sum(bool(info.schedule_id) for info in self._listed.values()),
            "started without an acknowledgement": sum(not self._listed[run].schedule_id for run in unknown),
        }
        return Findings(list(self._claims.values()), dict(self._counts), dict(self._lost_attempts))

    async def _look_closer(self) -> None:
        """Describe everything, and read the histories that are needed."""
        limiter = trio.CapacityLimiter(LOOKS_AT_ONCE)
        async with trio.open_nursery() as nursery:
            for run_id, info in self._listed.items():
                await limiter.acquire_on_behalf_of(run_id)
                nursery.start_soon(self._look, run_id, info, limiter)

    async def _look(self, run_id: str, info: ExecutionInfo, limiter: trio.CapacityLimiter) -> None:
        try:
            handle = self._client.get_handle(info.workflow_id, run_id)
            self._described[run_id] = await handle.describe()
            lines = self._effects.get(run_id, [])
            if info.kind == "workflow" or len(lines) > 1 or self._is_stopped(run_id):
                self._histories[run_id] = [event async for event in handle.history()]
            self.claim("what is listed can be looked at").checked += 1
        except CallFailed as error:
            self.claim("what is listed can be looked at").check(False, f"{info.workflow_id}: {error}")
        finally:
            limiter.release_on_behalf_of(run_id)

    def _is_stopped(self, run_id: str) -> bool:
        started = self._load.started.get(run_id)
        return started is not None and bool(started.stops)

    # --- starts and ends -------------------------------------------------------------------------------

    def _check_starts(self) -> None:
        exists = self.claim("every acknowledged start exists")
        ends = self.claim("every execution ended as it had to")
        canceled = self.claim("every acknowledged cancel or termination was done, or came after the end")
        for run_id, started in self._load.started.items():
            info = self._listed.get(run_id)
            exists.check(info is not None, f"{started.kind} {started.id} run {run_id}")
            if info is None or info.status.is_open:
                continue
            allowed = _allowed_ends(started)
            ends.check(info.status.name in allowed, f"{started.kind} {started.id} is {info.status.name}")
            if started.kind == "poison" and not started.stops:
                ends.check(info.is_dead_letter, f"{started.id} failed for good and is no dead letter")
            if started.canceled:
                self._check_stopped(canceled, started, info)

    def _check_stopped(self, claim: Claim, started: Started, info: ExecutionInfo) -> None:
        types = {event.event_type for event in self._histories.get(started.run_id, [])}
        was_asked = types & {"WORKFLOW_EXECUTION_CANCEL_REQUESTED", "WORKFLOW_EXECUTION_TERMINATED"}
        claim.check(bool(was_asked) or info.status is Status.COMPLETED, f"{started.id} is {info.status.name}")

    def _check_timers(self) -> None:
        """Tasks that nobody serves end by a timer, and no earlier; late only by as long as the server may be away."""
        fired = self.claim("a timer that came due fired, neither early nor late")
        for run_id, started in self._load.started.items():
            info = self._listed.get(run_id)
            if started.kind != "unserved" or started.stops or info is None:
                continue
            if info.start_time is None or info.close_time is None:
                fired.check(False, f"{started.id} is {info.status.name}")
                continue
            seconds = (info.close_time - info.start_time).total_seconds()
            in_time = UNSERVED_SECONDS <= seconds <= UNSERVED_SECONDS + TIMER_LATE_SECONDS_MAX
            fired.check(in_time, f"{started.id} ended after {seconds:.3f} s, due after {UNSERVED_SECONDS:g} s")

    async def _check_open(self) -> None:
        closed = self.claim("every execution ended once the faults had stopped")
        for run_id, info in self._listed.items():
            if info.status.is_open:
                reasons = await self._client.get_handle(info.workflow_id, run_id).explain()
                why = "; ".join(f"{each.what}: {each.reason}" for each in reasons) or "it says not why"
                closed.check(False, f"{info.type} {info.workflow_id} is open: {why}")
            else:
                closed.checked += 1

    def _check_results(self) -> None:
        """By every way on which somebody heard of a result: a client that waited, a worker that delivered."""
        reported = self.claim("a result that was reported is the result")
        for run_id, started in self._load.started.items():
            info = self._described.get(run_id)
            if started.outcome is None or info is None:
                continue
            told, now = started.outcome, _outcome(info)
            reported.check(told == now, f"{started.id}: told {str(told)[:90]}, now {str(now)[:90]}")
        taken = self.claim("a result that was taken from a worker is there")
        for line in read(self._folder, KEPT):
            if line["what"] == "result":
                there = self._results_of(line["run"])
                taken.check(line["by"] in there, f"run {line['run']} activity {line['activity']}: {line['by']}")

    def _results_of(self, run_id: str) -> set[str]:
        """The marks of the results that an execution, or the activities of a workflow, have."""
        info = self._described.get(run_id)
        if info is None:
            return set()
        if info.kind == "task":
            return {info.result["by"]} if info.result else set()
        results = (event.attributes.get("result") for event in self._completed(run_id))
        return {result["by"] for result in results if result}

    def _completed(self, run_id: str) -> list[HistoryEvent]:
        return [event for event in self._histories.get(run_id, []) if event.event_type == "ACTIVITY_TASK_COMPLETED"]

    def _check_signals(self) -> None:
        once = self.claim("every acknowledged signal is in the history, once")
        values: dict[str, Counter[str]] = {}
        for signal in self._load.signals:
            if signal.run_id not in values:
                events = self._histories.get(signal.run_id, [])
                values[signal.run_id] = Counter(
                    str(event.attributes.get("input"))
                    for event in events
                    if event.event_type == "WORKFLOW_EXECUTION_SIGNALED"
                )
            count = values[signal.run_id][signal.value]
            once.check(count == 1, f"{signal.value} of {signal.id}: {count} times")

    # --- side effects ------------------------------------------------------------------------------------

    def _check_side_effects(self) -> None:
        """At least one for each result, and more only for attempts that the history knows to have been lost."""
        at_least = self.claim("what completed had its side effect, by the attempt whose result it has")
        one_attempt = self.claim("no attempt was run twice")
        explained = self.claim("every duplicate is of an attempt that was lost")
        for run_id, info in self._described.items():
            lines = self._effects.get(run_id, [])
            marks = {line["by"] for line in lines}
            results = self._results_of(run_id)
            if info.kind == "workflow" or info.status is Status.COMPLETED:
                at_least.check(results <= marks and (bool(results) or info.kind == "workflow"), info.workflow_id)
            if info.kind == "workflow" and info.status is Status.COMPLETED:
                at_least.check(set(info.result[1:]) <= results, f"{info.workflow_id} returned what no activity did")
            by_activity: dict[str, list[dict[str, Any]]] = defaultdict(list)
            for line in lines:
                by_activity[line["activity"]].append(line)
            self._counts["side effects"] += len(lines)
            for activity_id, of_activity in by_activity.items():
                attempts = [line["attempt"] for line in of_activity]
                one_attempt.check(len(set(attempts)) == len(attempts), f"{info.workflow_id}: attempts {attempts}")
                if len(of_activity) > 1:
                    self._counts["duplicates"] += len(of_activity) - 1
                    self._explain(explained, info, activity_id, of_activity, results)
        orphans = self._effects.keys() - self._described.keys()
        self.claim("no side effect is of an execution that does not exist").check(
            not orphans, f"{len(orphans)} runs, such as {next(iter(orphans), '')}"
        )

    def _explain(
        self, claim: Claim, info: ExecutionInfo, activity_id: str, lines: list[dict[str, Any]], results: set[str]
    ) -> None:
        lost = {
            event.attributes["attempt"]: _why_lost(event)
            for event in self._histories.get(info.run_id, [])
            if event.event_type in ("ACTIVITY_TASK_RETRYING", "ACTIVITY_TASK_HANDED_BACK")
            and event.attributes["activityId"] == activity_id
        }
        for line in lines:
            if line["by"] in results:
                continue
            why = lost.get(line["attempt"], "")
            if not why and info.status is not Status.COMPLETED:
                why = f"{info.status.name.lower()} while it ran"
            self._lost_attempts[why] += 1
            claim.check(bool(why), f"{info.type} {info.workflow_id}: attempt {line['attempt']} by {line['worker']}")

    def _check_heartbeats(self) -> None:
        """An attempt goes on no earlier than where the server had acknowledged the ones before it to be."""
        kept = self.claim("an acknowledged heartbeat is what the next attempt begins with")
        steps: dict[str, dict[int, int]] = defaultdict(dict)
        for line in read(self._folder, KEPT):
            if line["what"] == "heartbeat":
                attempts = steps[line["run"]]
                attempts[line["attempt"]] = max(line["step"], attempts.get(line["attempt"], 0))
        self._counts["heartbeats acknowledged"] = sum(len(attempts) for attempts in steps.values())
        for line in read(self._folder, BEGUN):
            before = [step for attempt, step in steps[line["run"]].items() if attempt < line["attempt"]]
            if before:
                problem = f"run {line['run']} attempt {line['attempt']} began at {line['step']}, not {max(before)}"
                kept.check(line["step"] >= max(before), problem)

    # --- schedules -----------------------------------------------------------------------------------------

    async def _check_schedules(self) -> None:
        exists = self.claim("every acknowledged schedule exists, and no deleted one")
        there = {schedule.id for schedule in await self._client.list_schedules()}
        runs: dict[str, list[str]] = defaultdict(list)
        for info in self._listed.values():
            if info.schedule_id:
                runs[info.schedule_id].append(info.workflow_id)
        for schedule in self._load.schedules.values():
            if schedule.is_doubtful:
                continue
            exists.check((schedule.id in there) is not schedule.is_deleted, schedule.id)
            slots = runs[schedule.id]
            self.claim("no slot of a schedule fired twice").check(len(set(slots)) == len(slots), schedule.id)
            if schedule.id in there and schedule.paused_ms:
                await self._check_slots(schedule, len(slots))

    async def _check_slots(self, schedule: Scheduled, runs: int) -> None:
        """Each slot since the schedule was made is a run, or stands in one of its counters."""
        info = (await self._client.describe_schedule(schedule.id)).info
        left_out = info.overlap_skipped + info.missed_catchup_count + info.buffer_dropped + info.buffer_size
        fewest = schedule.pausing_ms // schedule.interval_ms - schedule.made_ms // schedule.interval_ms
        most = schedule.paused_ms // schedule.interval_ms - schedule.asked_ms // schedule.interval_ms
        counts = f"{schedule.id} ({schedule.overlap}): {runs} runs, {left_out} left out, {fewest} to {most} slots"
        accounted = self.claim("every slot of a schedule is a run or counted as left out")
        accounted.check(fewest - 1 <= runs + left_out <= most, counts)
        if schedule.overlap == "allow":
            self.claim("a schedule that allows overlap leaves no slot out").check(left_out == 0, counts)
        self._counts["slots fired"] += runs
        self._counts["slots left out by their policy"] += left_out


def _allowed_ends(started: Started) -> set[str]:
    """What it was to end as, or what somebody wanted meanwhile; a failure while a cancel is asked for is the last."""
    ends = {started.ends}
    if "terminate" in started.stops:
        ends.add("TERMINATED")
    if "cancel" in started.stops:
        ends |= {"CANCELED", FAILED} if started.kind == "flaky" else {"CANCELED"}
    return ends


def _outcome(info: ExecutionInfo) -> tuple[str, Any]:
    """What somebody is told who asks for the result."""
    error = info.error
    return (info.status.name, info.result) if error is None else (type(error).__name__, error.message)


_REASONS = (
    (re.compile("restarted"), "the server was killed or restarted"),
    (re.compile("heartbeat timeout"), "its heartbeats stopped"),
    (re.compile("was lost"), "its worker or connection was lost"),
    (re.compile("shuts down|was canceled"), "its worker left"),
)


def _why_lost(event: HistoryEvent) -> str:
    failure = event.attributes.get("failure")
    text = str(event.attributes.get("reason") or failure)
    return next((reason for pattern, reason in _REASONS if pattern.search(text)), text[:80])
