"""Clients of workflows that replay: they start plays, tell them things, ask them for updates, and reset them."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
from tests.sim.client import QUEUES, TRIES_MAX, Client, Known
from tests.sim.peer import Answer, Surroundings
from tests.sim.plays import HEARD, PLAY, RIDDLE, UPDATES, draw_plan
from tests.sim.promises.headers import headers_of

from zapwire.envelope import encode_request
from zapwire.opcodes import Op

REUSES = ("allow-duplicate", "allow-duplicate-failed-only", "reject-duplicate")
CONFLICTS = ("fail", "use-existing", "terminate-existing")


class Player(Client):
    def __init__(self, around: Surroundings, name: str, namespace: str) -> None:
        super().__init__(around, name, namespace)
        self._asked: list[tuple[Known, dict[str, Any]]] = []
        """Updates, as they were asked for."""

    def act(self, operation: str) -> None:
        plays = [run for run in self.runs if run.type in (PLAY, RIDDLE)]
        match operation:
            case "play":
                self._play()
            case "update with start":
                self.world.count("operation update with start")
                self._update_with_start()
            case "note" | "update" | "start with id" | "reset" if plays:
                self.world.count(f"operation {operation}")
                self._use_play(operation, self.world.random.choice(plays[-3:]))
            case "ask update again" if self._asked:
                self.world.count(f"operation {operation}")
                self._ask(*self.world.random.choice(self._asked), tries=TRIES_MAX)
            case "note" | "update" | "start with id" | "ask update again":
                pass
            case _:
                super().act(operation)

    def _play(self) -> None:
        self.world.count("operation play")
        number = self.world.number()
        type = RIDDLE if self.world.chance(0.1) else PLAY
        self._start(type, f"play-{number}", number, {})

    def _start(self, type: str, workflow_id: str, number: int, policies: dict[str, str]) -> None:
        level = self._level()
        others = list({run.workflow_id: None for run in self.runs if run.type in (PLAY, RIDDLE)})
        input = {"n": number, "plan": draw_plan(self.world, others)}
        body: dict[str, Any] = {
            "namespace": self.namespace,
            "workflow_type": type,
            "task_queue": self.world.random.choice(QUEUES),
            "workflow_id": workflow_id,
            "request_id": f"r{number}",
            "input": input,
            "durability": level,
            "headers": headers_of(number),
            **policies,
        }
        if self.world.chance(0.15):
            body["timeouts"] = {"workflow_run_ms": self.world.between(2_000, 60_000)}
        if self.world.chance(0.3):
            body["retry_policy"] = {"maximum_attempts": 2, "initial_interval_ms": 500}
        message = encode_request(Op.START_WORKFLOW, msgspec.json.encode(body))
        if policies.get("id_conflict_policy") == "use-existing":
            self.call_raw(Op.START_WORKFLOW, message, _ignore)  # whose start it was is another question
        else:
            self._begin(Op.START_WORKFLOW, message, f"r{number}", type, input, level)

    def _update_with_start(self) -> None:
        """One update for one of a few shared workflows, which it starts if it is not open."""
        number = self.world.number()
        others = list({run.workflow_id: None for run in self.runs if run.type in (PLAY, RIDDLE)})
        body: dict[str, Any] = {
            "workflow_type": PLAY,
            "task_queue": self.world.random.choice(QUEUES),
            "workflow_id": f"shared-{self.world.between(1, 3)}",
            "request_id": f"r{number}",
            "input": {"n": number, "plan": draw_plan(self.world, others)},
            "headers": headers_of(number),
            "id_conflict_policy": self.world.random.choice(CONFLICTS),
            "update_name": "change",
            "update_id": f"u{number}",
            "args": {"n": number, "how": self.world.random.choices(list(UPDATES), list(UPDATES.values()))[0]},
            "wait": self.world.random.choice(("accepted", "completed")),
        }
        self._ask_with_start(body, [], tries=TRIES_MAX)

    def _ask_with_start(self, body: dict[str, Any], runs: list[str], *, tries: int) -> None:
        """Ask until the outcome is known, and perhaps once more: it must be the same run each time."""

        def answered(answer: Answer) -> None:
            if answer.ok:
                run_id = answer.body["run_id"]
                runs.append(run_id)
                if run_id != runs[0]:
                    self.world.fail("1 kept", f"{body['request_id']} updated {runs[0]}, and when repeated {run_id}")
                self.checkers.updates.answered(run_id, body["update_id"], answer.body)
                if tries and self.world.chance(self.around.profile.repeat_rate):
                    self.world.count("repeated an answered update with start")
                    self.later(self.world.between(1, 20_000), lambda: self._ask_with_start(body, runs, tries=0))
            elif answer.may_pass and tries:
                self.later(self.world.between(50, 3_000), lambda: self._ask_with_start(body, runs, tries=tries - 1))
            elif not answer.may_pass:
                self.world.count(f"updates with start refused: {answer.status}")
                if runs:
                    self.checkers.updates.refused(runs[0], body["update_id"], answer.error)

        self.call(Op.UPDATE_WITH_START, body, answered)

    def _use_play(self, operation: str, run: Known) -> None:
        match operation:
            case "note":
                for _ in range(self.world.between(1, 4)):  # some come while a worker thinks about the first
                    number = self.world.number()
                    self.later(self.world.between(0, 400), partial(self._tell, run, number, TRIES_MAX))
            case "update":
                how = self.world.random.choices(list(UPDATES), list(UPDATES.values()))[0]
                number = self.world.number()
                body = {
                    **run.names,
                    "update_name": "change",
                    "update_id": f"u{number}",
                    "args": {"n": number, "how": how},
                    "wait": self.world.random.choice(("accepted", "completed")),
                }
                self._asked.append((run, body))
                self._ask(run, body, tries=TRIES_MAX)
            case "start with id":
                policies = {
                    "id_reuse_policy": self.world.random.choice(REUSES),
                    "id_conflict_policy": self.world.random.choice(CONFLICTS),
                }
                self._start(PLAY, run.workflow_id, self.world.number(), policies)
            case "reset":
                place: dict[str, Any] = {**run.names, "event_id": self.world.between(1, 20)}
                self.call(Op.RESET_WORKFLOW, place, lambda answer: self._reset(answer, run))

    def _tell(self, run: Known, number: int, tries: int) -> None:
        """A signal to the workflow, whichever run of it is the last, and again until it is known to be there."""

        def answered(answer: Answer) -> None:
            if answer.ok:
                self.checkers.notes.acknowledged[number] = run.workflow_id
                if tries and self.world.chance(self.around.profile.repeat_rate):
                    self.world.count("repeated an answered signal")
                    self.later(self.world.between(1, 20_000), lambda: self._tell(run, number, 0))
            elif answer.may_pass and tries:
                self.world.count("repeated an unknown signal")
                self.later(self.world.between(50, 3_000), lambda: self._tell(run, number, tries - 1))

        body = {
            "workflow_id": run.workflow_id,
            "signal_name": HEARD,
            "input": {"n": number},
            "request_id": f"s{number}",
        }
        self.call(Op.SIGNAL_WORKFLOW, body, answered)

    def _ask(self, run: Known, body: dict[str, Any], *, tries: int) -> None:
        updates = self.checkers.updates

        def answered(answer: Answer) -> None:
            if answer.ok:
                updates.answered(run.run_id, body["update_id"], answer.body)
            elif answer.may_pass and tries:
                self.later(self.world.between(50, 3_000), lambda: self._ask(run, body, tries=tries - 1))
            elif not answer.may_pass:
                self.world.count(f"updates refused: {answer.status}")
                updates.refused(run.run_id, body["update_id"], answer.error)

        self.call(Op.UPDATE_WORKFLOW, body, answered)


def _ignore(answer: Answer) -> None:
    return None
