"""Clients: they start things, look at them, and remember what they were told."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from tests.sim.peer import Answer, OnAnswer, Peer, Surroundings
from tests.sim.profile import FLOW_TYPES, TASK_TYPES
from tests.sim.promises.endings import ORPHAN
from tests.sim.promises.headers import headers_of
from tests.sim.promises.kept import ScheduleState, Start
from tests.sim.promises.slots import CRONS, Backfill

from zapwire.envelope import Receipt, encode_request, encode_task_submit
from zapwire.opcodes import Op

QUEUES = ("alpha", "beta")
TRIES_MAX = 6
SCHEDULES_MAX = 4
"""Of one client; the runs of more would crowd out everything else."""
CATCHUP_MS = 900_000
"""How far back some schedules catch up."""
OVERLAPS = ("allow", "skip", "buffer-one", "buffer-all", "cancel-other", "terminate-other")
LEVELS = {"memory": Receipt.MEMORY, "written": Receipt.WRITTEN, "synced": Receipt.SYNCED}
TIMEOUTS: tuple[dict[str, int], ...] = (
    {"heartbeat_ms": 2_000, "start_to_close_ms": 30_000},
    {"start_to_close_ms": 8_000},
    {"start_to_close_ms": 20_000, "schedule_to_close_ms": 120_000},
)


@dataclass(slots=True)
class Known:
    """An execution that this client started."""

    workflow_id: str
    run_id: str
    is_task: bool
    type: str

    @property
    def names(self) -> dict[str, str]:
        return {"workflow_id": self.workflow_id, "run_id": self.run_id}


class Client(Peer):
    def __init__(self, around: Surroundings, name: str, namespace: str) -> None:
        super().__init__(around, name, namespace)
        self.runs: list[Known] = []
        self._schedules: dict[str, dict[str, Any]] = {}
        """As they were asked for last. Each belongs to one client, so that nobody changes it meanwhile."""
        self._awaited: set[str] = set()

    # --- what to do ----------------------------------------------------------------------------------

    def act(self, operation: str) -> None:
        """One operation, if there is something to do it to."""
        self.world.count(f"operation {operation}")
        match operation:
            case "submit":
                self._submit()
            case "start":
                self._start_flow()
            case "signal with start":
                self._start_flow(signal=True)
            case "requeue":
                self.call(Op.LIST_DEAD_LETTERS, {"page_size": 5}, self._requeue)
            case "list":
                self.call(Op.LIST_WORKFLOWS, {"page_size": 20}, _ignore)
            case "put schedule":
                self._put_schedule()
            case "pause schedule" | "resume schedule" | "trigger schedule" | "backfill schedule" | "delete schedule":
                self._use_schedule(operation)
            case "describe schedule":
                self._use_schedule(operation)
            case _:
                if self.runs:
                    self._use_run(operation, self.world.random.choice(self.runs))

    # --- tasks and workflows ---------------------------------------------------------------------------

    def _level(self) -> str:
        if self.world.chance(self.around.profile.weak_rate):
            return self.world.random.choice(("memory", "written"))
        return "synced"

    def _submit(self) -> None:
        task_type = _draw(self, TASK_TYPES)
        level = self._level()
        number = self.world.number()
        options = {
            "namespace": self.namespace,
            "request_id": f"r{number}",
            "task_queue": self.world.random.choice(QUEUES),
            "durability": level,
            "headers": headers_of(number),
            "retry_policy": {
                "initial_interval_ms": 300,
                "maximum_interval_ms": 5_000,
                "maximum_attempts": self.world.random.choice((3, 6)),
            },
            **(TIMEOUTS[0] if task_type in ("silent", "forever") else self.world.random.choice(TIMEOUTS)),
        }
        if task_type == "forever":
            del options["start_to_close_ms"]
        input = {"n": number, "pad": "x" * self.world.random.choice((0, 0, 200, 5_000))}
        message = encode_task_submit(task_type, msgspec.json.encode(input), msgspec.json.encode(options))
        self._begin(Op.TASK_SUBMIT, message, f"r{number}", task_type, input, level, is_task=True)

    def _start_flow(self, *, signal: bool = False) -> None:
        flow_type = _draw(self, FLOW_TYPES)
        level = self._level()
        number = self.world.number()
        input = {"n": number, "steps": self.world.between(0, 4)}
        body: dict[str, Any] = {
            "namespace": self.namespace,
            "workflow_type": flow_type,
            "task_queue": self.world.random.choice(QUEUES),
            "workflow_id": f"flow-{number}",
            "request_id": f"r{number}",
            "input": input,
            "durability": level,
            "headers": headers_of(number),
        }
        if self.world.chance(0.2):
            body["timeouts"] = {"workflow_run_ms": self.world.between(2_000, 60_000)}
        if self.world.chance(0.2):
            body["retry_policy"] = {"maximum_attempts": 2, "initial_interval_ms": 500}
        opcode = Op.START_WORKFLOW
        if signal:
            opcode = Op.SIGNAL_WITH_START
            body |= {"signal_name": "go", "signal_input": {"n": number}}
        self._begin(
            opcode, _request(opcode, body), f"r{number}", flow_type, input, level, signal=number if signal else 0
        )

    def _begin(
        self,
        opcode: Op,
        message: bytes,
        request_id: str,
        type: str,
        input: dict[str, Any],
        level: str,
        *,
        is_task: bool = False,
        signal: int = 0,
        tries: int = TRIES_MAX,
    ) -> None:
        """Start something, and say it again until the outcome is known."""

        def again(left: int) -> None:
            self._begin(opcode, message, request_id, type, input, level, is_task=is_task, signal=signal, tries=left)

        kept = self.checkers.kept
        losses = kept.losses

        def answered(answer: Answer) -> None:
            if answer.ok:
                run = Known(answer.body["workflow_id"], answer.body["run_id"], is_task, type)
                is_certain = answer.receipt == Receipt.SYNCED or losses == kept.losses
                start = Start(run.workflow_id, run.run_id, type, input, answer.receipt, is_certain)
                if answer.receipt != LEVELS[level]:
                    self.world.fail("1 kept", f"{level} was asked for, and the receipt says {answer.receipt}")
                kept.started(start, request_id)
                if signal and start.level == Receipt.SYNCED:
                    kept.signaled(run.run_id, signal)
                if all(known.run_id != run.run_id for known in self.runs):
                    self.runs.append(run)
                if tries and self.world.chance(self.around.profile.repeat_rate):
                    self.world.count("repeated an answered request")
                    self.later(self.world.between(1, 20_000), lambda: again(0))
            elif answer.may_pass and tries:
                self.world.count("repeated an unknown request")
                self.later(self.world.between(50, 3_000), lambda: again(tries - 1))

        self.call_raw(opcode, message, answered)

    def _use_run(self, operation: str, run: Known) -> None:
        match operation:
            case "signal":
                number = self.world.number()
                body = {**run.names, "signal_name": "poke", "input": {"n": number}}
                self.call(Op.SIGNAL_WORKFLOW, body, lambda answer: self._signaled(answer, run, number))
            case "cancel":
                self.call(Op.CANCEL_WORKFLOW, {**run.names, "reason": "enough"}, _ignore)
            case "terminate":
                self.call(Op.TERMINATE_WORKFLOW, {**run.names, "reason": "enough"}, _ignore)
            case "await":
                self._wait_for(run)
            case "describe":
                self.call(Op.DESCRIBE_WORKFLOW, run.names, lambda answer: self._described(answer, run))
            case "history":
                place = {"after_event_id": self.world.between(0, 12), "wait": self.world.chance(0.5)}
                self.call(Op.GET_WORKFLOW_HISTORY, {**run.names, **place}, _ignore)
            case "explain":
                self.call(Op.EXPLAIN, run.names, _ignore)
            case "reset":
                self.call(Op.RESET_WORKFLOW, {**run.names, "event_id": 1}, lambda answer: self._reset(answer, run))
            case _:
                raise AssertionError(operation)

    def _signaled(self, answer: Answer, run: Known, number: int) -> None:
        if answer.ok:
            self.checkers.kept.signaled(run.run_id, number)

    def _reset(self, answer: Answer, run: Known) -> None:
        if answer.ok:
            self.world.count("runs reset")
            self.runs.append(Known(run.workflow_id, answer.body["run_id"], run.is_task, run.type))

    def _wait_for(self, run: Known) -> None:
        if run.run_id in self._awaited:
            return
        self._awaited.add(run.run_id)

        def answered(answer: Answer) -> None:
            self._awaited.discard(run.run_id)
            if answer.ok:
                self.world.count("results awaited")
                self._report(answer.body, "an answer to await")
            elif answer.may_pass:
                self.later(self.world.between(100, 2_000), lambda: self._wait_for(run))

        self.call(Op.AWAIT_EXECUTION, run.names, answered)

    def _described(self, answer: Answer, run: Known) -> None:
        if answer.ok and answer.body["info"]["status_name"] not in ("RUNNING", "CANCELING"):
            self.world.count("results described")
            self._report(answer.body["info"], "a description")

    def _report(self, body: dict[str, Any], how: str) -> None:
        self.checkers.results.reported(
            body["run_id"], body["status_name"], body.get("result"), body.get("failure"), how
        )

    def _requeue(self, answer: Answer) -> None:
        if answer.ok and answer.body["dead_letters"]:
            letter = self.world.random.choice(answer.body["dead_letters"])
            if letter["workflow_type"] != ORPHAN:
                self.world.count("dead letters requeued")
                self.call(
                    Op.REQUEUE_DEAD_LETTER,
                    {"workflow_id": letter["workflow_id"], "run_id": letter["run_id"]},
                    lambda answer: self._requeued(answer, letter["workflow_type"]),
                )

    def _requeued(self, answer: Answer, type: str) -> None:
        if answer.ok:
            self.runs.append(Known(answer.body["workflow_id"], answer.body["run_id"], True, type))

    # --- schedules -----------------------------------------------------------------------------------

    def _put_schedule(self) -> None:
        if len(self._schedules) >= SCHEDULES_MAX:
            return
        number = self.world.number()
        schedule_id = f"{self.name}-s{number}"
        is_steady = self.world.chance(0.5)
        cron = self.world.random.choice(("", "", *CRONS))
        state = {
            "interval_ms": 0 if cron else self.world.random.choice((3_000, 7_000, 30_000)),
            "cron": [cron] if cron else [],
            "catchup_window_ms": CATCHUP_MS if cron and self.world.chance(0.5) else None,
            "overlap": self.world.random.choice(OVERLAPS),
            "paused": False,
            "n": number,
        }
        self._ask_for(schedule_id, state, is_steady=is_steady, began_ms=self.checkers.engine.now_ms)

    def _ask_for(
        self, schedule_id: str, state: dict[str, Any], *, is_steady: bool, began_ms: int, tries: int = TRIES_MAX
    ) -> None:
        """Put a schedule, and again until it is known to be there: an equal one is left as it is."""
        body = {
            "schedule_id": schedule_id,
            "schedule": {
                "spec": {"interval_ms": state["interval_ms"], "cron": state["cron"]},
                "action": {
                    "workflow_type": "quick" if state["n"] % 2 else "slow",
                    "task_queue": QUEUES[state["n"] % len(QUEUES)],
                    "is_task": True,
                    "input": {"n": state["n"]},
                    "headers": headers_of(state["n"]),
                },
                "overlap_policy": state["overlap"],
                "catchup_window_ms": state["catchup_window_ms"] or 0,
            },
        }
        settle = self._may_become(schedule_id, state)

        def answered(answer: Answer) -> None:
            settle(answer)
            if answer.ok and is_steady:
                # The engine's time, which runs ahead of a clock that was set back.
                self.checkers.slots.steady[schedule_id] = max(began_ms, self.checkers.engine.now_ms)
            elif answer.ok:
                self._schedules[schedule_id] = state
            elif answer.may_pass and tries:
                self.later(
                    self.world.between(100, 2_000),
                    lambda: self._ask_for(schedule_id, state, is_steady=is_steady, began_ms=began_ms, tries=tries - 1),
                )

        self.call(Op.CREATE_SCHEDULE, body, answered)

    def _use_schedule(self, operation: str) -> None:
        if not self._schedules:
            return
        schedule_id = self.world.random.choice(list(self._schedules))
        state = self._schedules[schedule_id]
        if operation == "describe schedule":
            self.call(Op.DESCRIBE_SCHEDULE, {"schedule_id": schedule_id}, _ignore)
        elif operation == "trigger schedule":
            self._trigger(schedule_id, f"t{self.world.number()}", TRIES_MAX)
        elif operation == "backfill schedule":
            end_ms = self.checkers.engine.now_ms
            span_ms = (state["interval_ms"] or CRONS[state["cron"][0]]) * self.world.between(1, 15)
            self._backfill(Backfill(schedule_id, f"b{self.world.number()}", end_ms - span_ms, end_ms), TRIES_MAX)
        elif operation == "delete schedule":
            del self._schedules[schedule_id]
            self.call(Op.DELETE_SCHEDULE, {"schedule_id": schedule_id}, self._may_become(schedule_id, None))
        else:
            is_paused = operation == "pause schedule"
            wanted = {**state, "paused": is_paused}
            self._schedules[schedule_id] = wanted
            body = {"schedule_id": schedule_id, "paused": is_paused}
            self.call(Op.PAUSE_SCHEDULE, body, self._may_become(schedule_id, wanted))

    def _trigger(self, schedule_id: str, request_id: str, tries: int) -> None:
        def answered(answer: Answer) -> None:
            if answer.ok:
                if "run_id" in answer.body:
                    self.checkers.slots.triggered(request_id, answer.body["run_id"])
            elif answer.may_pass and tries:
                self.later(self.world.between(100, 2_000), lambda: self._trigger(schedule_id, request_id, tries - 1))

        body = {"schedule_id": schedule_id, "request_id": request_id, "overlap_policy": "allow"}
        self.call(Op.TRIGGER_SCHEDULE, body, answered)

    def _backfill(self, asked: Backfill, tries: int) -> None:
        slots = self.checkers.slots
        slots.backfills.setdefault(asked.request_id, asked)

        def answered(answer: Answer) -> None:
            if answer.ok:
                slots.backfilled(asked.request_id, answer.body["slots"])
            if (answer.may_pass or self.world.chance(self.around.profile.repeat_rate)) and tries:
                self.later(self.world.between(100, 2_000), lambda: self._backfill(asked, tries - 1))

        body = {
            "schedule_id": asked.schedule_id,
            "request_id": asked.request_id,
            "start_time_ms": asked.start_ms,
            "end_time_ms": asked.end_ms,
            "overlap_policy": "allow",
        }
        self.call(Op.BACKFILL_SCHEDULE, body, answered)

    def _may_become(self, schedule_id: str, state: dict[str, Any] | None) -> OnAnswer:
        """From now on it may be so. An answer that says so rules out what it was before."""
        known = self.checkers.kept.schedules.setdefault(schedule_id, ScheduleState())
        return partial(_settle, known, known.add(state))


def _settle(known: ScheduleState, number: int, answer: Answer) -> None:
    if answer.ok:
        known.settle(number)


def _draw(client: Client, weights: dict[str, int]) -> str:
    return client.world.random.choices(list(weights), list(weights.values()))[0]


def _request(opcode: int, body: object) -> bytes:
    return encode_request(opcode, msgspec.json.encode(body))


def _ignore(answer: Answer) -> None:
    return None
