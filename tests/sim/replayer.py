"""Workers that replay: they keep runs at hand, read what they lack page by page, and answer as `plays` decides."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.sim.peer import Answer, Surroundings
from tests.sim.plays import Command, Event, decide
from tests.sim.worker import Worker

from zapwire.opcodes import Op

RUNS_MAX = 8
"""At hand; the longest unused one goes."""


@dataclass(slots=True)
class Turn:
    """A workflow task that this worker has."""

    token: str
    body: dict[str, Any]
    events: list[Event]
    """As many of the first as are known."""

    @property
    def run_id(self) -> str:
        return str(self.body["run_id"])

    @property
    def last_event_id(self) -> int:
        return int(self.body["last_event_id"])


class Replayer(Worker):
    replays = True

    def __init__(self, around: Surroundings, name: str, namespace: str, *, slots: int, knows: tuple[str, ...]) -> None:
        super().__init__(around, name, namespace, slots=slots, knows=knows)
        self._at_hand: dict[str, list[Event]] = {}
        """Their events, by run, the longest unused first."""
        self._turns: dict[str, Turn] = {}

    def _drop_everything(self) -> None:
        super()._drop_everything()
        self._turns.clear()
        if self.is_alive and self.world.chance(0.5):
            return  # what it has at hand outlives the connection
        self._at_hand.clear()

    # --- a task --------------------------------------------------------------------------------------

    def _hold(self, body: dict[str, Any]) -> None:
        token = body["task_token"]
        if body["workflow_type_name"] not in self._knows:
            self.world.count("workflow type unknown")
            self._answer_turn(token, [{"kind": "unknown-type", "reason": "never heard of it"}])
            return
        if self._misbehaves("evict"):
            self._at_hand.clear()
        known = self._at_hand.pop(body["run_id"], [])
        previous = body["previous_event_id"]
        turn = Turn(token, body, known[:previous])
        if len(turn.events) == previous:
            turn.events = [*turn.events, *body["history"]]
        else:
            self.world.count("runs not at hand")
        self._turns[token] = turn
        self.world.note(self.name, "plays", turn.run_id, previous, turn.last_event_id, body["attempt"])
        self._read_on(turn)

    def _is_at_work_on(self, turn: Turn) -> bool:
        return self._turns.get(turn.token) is turn

    def _read_on(self, turn: Turn) -> None:
        """Read what is missing of the history, then think."""
        if not self._is_at_work_on(turn):
            return
        if len(turn.events) >= turn.last_event_id:
            self.later(self._think_ms(), partial(self._play, turn))
            return

        def answered(answer: Answer) -> None:
            if answer.ok:
                self.world.count("pages of history read")
                turn.events = [*turn.events, *answer.body["events"]][: turn.last_event_id]
                self._read_on(turn)
            elif answer.may_pass:
                self.later(self.world.between(100, 1_000), partial(self._read_on, turn))
            else:
                self._turns.pop(turn.token, None)

        body = {
            "workflow_id": turn.body["workflow_id"],
            "run_id": turn.run_id,
            "after_event_id": len(turn.events),
            "page_size": self.world.between(2, 12),
        }
        self.call(Op.GET_WORKFLOW_HISTORY, body, answered)

    def _think_ms(self) -> int:
        if self._misbehaves("slow replay"):
            return self.world.between(3_000, 20_000)
        return self.world.between(0, 1_500 if self.world.chance(0.3) else 50)  # a long look, while other things happen

    def _play(self, turn: Turn) -> None:
        if not self._is_at_work_on(turn):
            return
        self.checkers.stories.told(turn.run_id, turn.events)
        if self._misbehaves("fail task"):
            self._answer_turn(turn.token, [{"kind": "fail-task", "reason": "on purpose"}])
            return
        commands = decide(turn.events, turn.body.get("updates", []))
        if self._misbehaves("torn answer"):
            torn = [*commands, {"kind": "complete"}, {"kind": "start-timer", "id": "torn", "fire_after_ms": 1}]
            self._answer_turn(turn.token, torn, is_torn=True)
            return
        self._answer_turn(turn.token, commands, turn)
        if self._misbehaves("answer twice"):
            self._answer_turn(turn.token, commands)

    # --- its answer ----------------------------------------------------------------------------------

    def _answer_turn(
        self, token: str, commands: list[Command], turn: Turn | None = None, *, is_torn: bool = False
    ) -> None:
        cable = self.cable

        def again() -> None:
            if self.cable is cable:
                self._answer_turn(token, commands, turn, is_torn=is_torn)

        def answered(answer: Answer) -> None:
            if answer.may_pass and self.cable is cable:
                self.later(self.world.between(100, 1_500), again)
                return
            self._turns.pop(token, None)
            if answer.status == 409:
                self.world.count("old attempt refused")
            elif answer.status == 400 and not is_torn:
                self.world.fail("story", f"the answer {commands} to {token} was refused: {answer.error}")
            elif answer.ok and is_torn:
                self.world.fail("story", f"the torn answer {commands} to {token} was taken")
            elif answer.ok and turn is not None:
                for command in commands:
                    self.world.count(f"command {command['kind']}")
                self._keep_at_hand(turn)

        self._respond(Op.RESPOND_WORKFLOW_TASK_COMPLETED, token, {"v": 1, "cmds": commands}, answered)

    def _keep_at_hand(self, turn: Turn) -> None:
        known = self._at_hand.pop(turn.run_id, [])
        self._at_hand[turn.run_id] = max(known, turn.events, key=len)
        if len(self._at_hand) > RUNS_MAX:
            del self._at_hand[next(iter(self._at_hand))]
