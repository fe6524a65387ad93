"""Workers: they take tasks and runs, and do with them what workers do: well, badly, late, twice, or not at all."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from tests.sim.client import QUEUES
from tests.sim.peer import Answer, Peer, Surroundings
from tests.sim.promises.endings import ORPHAN
from tests.sim.world import Timer

from zapwire.envelope import encode_respond
from zapwire.failure import CANCELED_ERROR, Failure, encode_failure
from zapwire.opcodes import Op

STEP_TYPES = ("quick", "slow", "flaky", "later")
"""The activities of workflows, in turn."""
STOPPED = encode_failure(Failure(message="stopped", code=CANCELED_ERROR, non_retryable=True))


@dataclass(slots=True)
class Work:
    """An activity that this worker runs."""

    token: str
    type: str
    heartbeat_ms: int
    timers: list[Timer] = field(default_factory=list)
    is_answered: bool = False


@dataclass(slots=True)
class Run:
    """A workflow that this worker holds. It asks for its steps in a fixed order, and ends when it has all results."""

    token: str
    workflow_id: str
    run_id: str
    type: str
    number: int
    steps: int
    outcomes: dict[str, Any] = field(default_factory=dict)
    """By activity id. A result may come again."""
    asked: list[str] = field(default_factory=list)
    is_asking: bool = False
    is_answered: bool = False


class Worker(Peer):
    replays = False

    def __init__(self, around: Surroundings, name: str, namespace: str, *, slots: int, knows: tuple[str, ...]) -> None:
        super().__init__(around, name, namespace)
        self._slots = slots
        self._knows = knows
        """The workflow types that it does not refuse."""
        self._work: dict[str, Work] = {}
        self._runs: dict[str, Run] = {}
        self._old_tokens: list[str] = []

    def _misbehaves(self, how: str) -> bool:
        profile = self.around.profile
        if self.around.is_calm or how not in profile.misbehaviours or not self.world.chance(profile.misbehaviour_rate):
            return False
        self.world.count(f"worker: {how}")
        return True

    # --- the connection ------------------------------------------------------------------------------

    def connected(self) -> None:
        profile = self.around.profile
        types = [*STEP_TYPES, "doomed", "forever", "silent"]
        for queue in QUEUES:
            asked = {"task_queue": queue, "slots": self._slots}
            self._subscribe(Op.SUBSCRIBE_WORKFLOW_TASKS, {**asked, "replays": self.replays})
            rates = {"per_second": profile.worker_rate, "queue_per_second": profile.queue_rate}
            for namespace in self.around.checkers:  # one connection serves the activities of all of them
                wanted = {**asked, **rates, "types": types, "namespace": namespace}
                self._subscribe(Op.SUBSCRIBE_ACTIVITY_TASKS, wanted)
        old, self._old_tokens = self._old_tokens, []
        for token in old:
            if self._misbehaves("answer late"):
                self._respond(Op.RESPOND_ACTIVITY_TASK_COMPLETED, token, {"n": self.world.number()}, _ignore)

    def _subscribe(self, opcode: Op, body: dict[str, Any]) -> None:
        cable = self.cable

        def answered(answer: Answer) -> None:
            if not answer.ok and self.cable is cable:
                self.later(1_000, again)

        def again() -> None:
            if self.cable is cable:
                self._subscribe(opcode, body)

        self.call(opcode, body, answered)

    def disconnected(self) -> None:
        self._old_tokens += [work.token for work in self._work.values()]
        del self._old_tokens[:-20]
        self._drop_everything()

    def forget(self) -> None:
        self._old_tokens.clear()
        self._drop_everything()

    def _drop_everything(self) -> None:
        for work in self._work.values():
            _stop_timers(work)
        self._work.clear()
        self._runs.clear()

    def pushed(self, opcode: int, body: Any) -> None:
        match opcode:
            case Op.DELIVER_ACTIVITY_TASK:
                self._begin(body)
            case Op.DELIVER_ACTIVITY_CANCEL:
                self._stop(body["task_token"])
            case Op.DELIVER_WORKFLOW_TASK:
                self._hold(body)
            case Op.DELIVER_ACTIVITY_RESULT:
                self._take_result(body)
            case Op.DELIVER_CANCEL_REQUEST:
                self._cancel_run(body)

    def _respond(self, opcode: Op, token: str, body: object, on_answer: Callable[[Answer], None]) -> None:
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        message = encode_respond(opcode, token.encode(), data)
        self.call_raw(opcode, message, on_answer, namespace=token.rpartition("|")[2])

    def _insist(self, opcode: Op, token: str, body: object) -> None:
        """Answer, and again while the server takes nothing now."""
        cable = self.cable

        def again() -> None:
            if self.cable is cable:
                self._insist(opcode, token, body)

        def answered(answer: Answer) -> None:
            if answer.may_pass and self.cable is cable:
                self.later(self.world.between(100, 1_500), again)
            elif answer.status == 409:
                self.world.count("old attempt refused")

        self._respond(opcode, token, body, answered)

    # --- activities ----------------------------------------------------------------------------------

    def _begin(self, body: dict[str, Any]) -> None:
        token, task_type = body["task_token"], body["activity_type_name"]
        work = self._work[token] = Work(token, task_type, body.get("heartbeat_timeout_ms", 0))
        self.world.note(self.name, "begins", body["activity_id"], body["attempt"])
        if self._misbehaves("silent") or (task_type == "silent" and not self.around.is_calm):
            return
        if work.heartbeat_ms and task_type != "later":  # whoever has the token is heard then
            self._plan(work, self.world.between(1, work.heartbeat_ms // 2), partial(self._beat, work))
        if self._misbehaves("hand back"):
            self._plan(work, self.world.between(1, 500), partial(self._hand_back, work))
            return
        match task_type:
            case "quick" | "silent":
                self._plan(work, self.world.between(0, 300), partial(self._complete, work))
            case "slow":
                self._plan(work, self.world.between(500, 6_000), partial(self._complete, work))
            case "flaky":
                end = self._complete if self.world.chance(0.5) else self._fail
                self._plan(work, self.world.between(0, 1_000), partial(end, work))
            case "doomed":
                self._plan(work, self.world.between(0, 300), partial(self._fail, work))
            case "later":
                self._plan(work, self.world.between(0, 300), partial(self._detach, work))
            case "forever":
                pass
            case _:
                self.world.fail("wire", f"{self.name} got a task of type {task_type!r}, which it did not ask for")

    def _plan(self, work: Work, ms: int, action: Callable[[], None]) -> None:
        def unless_over() -> None:
            if work.token in self._work and not work.is_answered:
                action()

        work.timers.append(self.later(ms, unless_over))

    def _beat(self, work: Work) -> None:
        def answered(answer: Answer) -> None:
            if answer.status in (404, 409):
                self._end(work)
            elif answer.status == 200 and work.token in self._work:  # a cancel was asked for
                self._stop(work.token)

        self._respond(Op.RECORD_ACTIVITY_TASK_HEARTBEAT, work.token, {"n": self.world.number()}, answered)
        self._plan(work, work.heartbeat_ms // 3, partial(self._beat, work))

    def _complete(self, work: Work) -> None:
        self._end(work)
        result = {"n": self.world.number()}
        self._insist(Op.RESPOND_ACTIVITY_TASK_COMPLETED, work.token, result)
        if self._misbehaves("answer twice"):
            self._respond(Op.RESPOND_ACTIVITY_TASK_COMPLETED, work.token, {"n": self.world.number()}, _ignore)

    def _fail(self, work: Work) -> None:
        self._end(work)
        failure = Failure(message=f"no {self.world.number()}", code="Boom", non_retryable=work.type == "doomed")
        self._insist(Op.RESPOND_ACTIVITY_TASK_FAILED, work.token, encode_failure(failure))

    def _detach(self, work: Work) -> None:
        """Somebody else ends it, and may be quicker than the server's answer."""
        self._end(work)
        self.around.leave_token(work.token, work.heartbeat_ms)
        self._insist(Op.DETACH_TASK, work.token, b"")

    def _hand_back(self, work: Work) -> None:
        self._end(work)
        self._insist(Op.HAND_BACK_TASK, work.token, b"draining")

    def _stop(self, token: str) -> None:
        work = self._work.get(token)
        if work is None or self._misbehaves("ignore stop"):
            return
        self._end(work)
        self._old_tokens.append(token)
        self._insist(Op.RESPOND_ACTIVITY_TASK_FAILED, token, STOPPED)

    def _end(self, work: Work) -> None:
        work.is_answered = True
        _stop_timers(work)
        self._work.pop(work.token, None)

    # --- workflows -----------------------------------------------------------------------------------

    def _hold(self, body: dict[str, Any]) -> None:
        if body["workflow_type_name"] not in self._knows:
            self.world.count("workflow type refused")
            self._insist(Op.RESPOND_WORKFLOW_TASK_COMPLETED, body["task_token"], {"v": 1, "cmds": None})
            return
        input = msgspec.json.decode(body["input"])
        run = Run(
            body["task_token"],
            body["workflow_id"],
            body["run_id"],
            body["workflow_type_name"],
            input["n"],
            input["steps"],
        )
        self._runs[run.token] = run
        self.world.note(self.name, "holds", run.run_id, body["attempt"])
        if not self._misbehaves("idle holder"):
            self.later(self.world.between(0, 50), partial(self._go_on, run))
        else:
            self.later(self.world.between(2_000, 20_000), partial(self._go_on, run))

    def _is_mine(self, run: Run) -> bool:
        return self._runs.get(run.token) is run and not run.is_answered

    def _go_on(self, run: Run) -> None:
        """Ask for the next step: a fan asks for all of them at once, a chain after each result."""
        if not self._is_mine(run) or run.is_asking:
            return
        waits = [activity_id for activity_id in run.asked if activity_id not in run.outcomes]
        if len(run.asked) < run.steps and (run.type == "fan" or not waits):
            self._ask(run)
        elif len(run.asked) == run.steps and not waits:
            self._finish(run)

    def _ask(self, run: Run) -> None:
        run.is_asking = True
        position = len(run.asked)
        body: dict[str, Any] = {
            "workflow_id": run.workflow_id,
            "run_id": run.run_id,
            "activity_type": STEP_TYPES[(run.number + position) % len(STEP_TYPES)],
            "task_queue": QUEUES[(run.number + position) % len(QUEUES)],
            "input": {"n": run.number, "step": position},
            "start_to_close_ms": 15_000,
            "heartbeat_ms": 3_000 if position % 2 else 0,
            "retry_policy": {"initial_interval_ms": 200, "maximum_interval_ms": 2_000, "maximum_attempts": 4},
        }

        def answered(answer: Answer) -> None:
            run.is_asking = False
            if not self._is_mine(run):
                return
            if answer.ok:
                run.asked.append(answer.body["activity_task_id"])
                self._go_on(run)
            elif answer.may_pass:
                self.later(self.world.between(100, 1_000), partial(self._go_on, run))
            else:  # it is closed, or somebody else's
                del self._runs[run.token]
                if "not deterministic" in answer.error:
                    self.world.fail("3 lease", f"{run.run_id}: {answer.error}")

        self.call(Op.SCHEDULE_ACTIVITY, body, answered)

    def _take_result(self, body: dict[str, Any]) -> None:
        activity_id = body["activity_id"]
        outcome = {"ok": msgspec.json.decode(body["result"])} if "result" in body else {"failure": body["failure"]}
        for run in list(self._runs.values()):
            # A result can come before the answer to the call that asked for it.
            if activity_id in run.asked or run.is_asking:
                run.outcomes[activity_id] = outcome
                self._go_on(run)

    def _finish(self, run: Run) -> None:
        outcomes = [run.outcomes[activity_id] for activity_id in run.asked]
        failures = [outcome for outcome in outcomes if "failure" in outcome]
        if failures:
            failure = encode_failure(Failure(message=f"run {run.number}: a step failed", code="Boom"))
            self._answer_run(run, {"kind": 1, "failure": base64.b64encode(failure).decode()})
        else:
            result = msgspec.json.encode({"n": run.number, "steps": outcomes})
            self._answer_run(run, {"kind": 0, "result": base64.b64encode(result).decode()})

    def _cancel_run(self, body: dict[str, Any]) -> None:
        for run in list(self._runs.values()):
            if run.run_id == body["run_id"] and not self._misbehaves("ignore stop"):
                self._answer_run(run, {"kind": 3})

    def _answer_run(self, run: Run, command: dict[str, Any]) -> None:
        run.is_answered = True
        del self._runs[run.token]
        self._insist(Op.RESPOND_WORKFLOW_TASK_COMPLETED, run.token, {"v": 1, "cmds": [command]})


def _stop_timers(work: Work) -> None:
    for timer in work.timers:
        timer.cancel()


def _ignore(answer: Answer) -> None:
    return None


KNOWN_FLOWS = ("chain", "fan")
assert ORPHAN not in KNOWN_FLOWS
