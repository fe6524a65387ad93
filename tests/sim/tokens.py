"""Task tokens outside of workers: where they are left, and the one who does with them what people do, later.

What is left in the box is as durable as a database of the application's: it outlives every process here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import msgspec
from tests.sim.peer import Answer, Peer, Surroundings

from zapwire.envelope import encode_respond
from zapwire.failure import Failure, encode_failure
from zapwire.opcodes import Op

PLANS = {"complete": 6, "fail": 2, "hand back": 1, "forget": 2}
"""What becomes of a token, with their weights."""
WAIT_MS_MAX = (300, 6_000, 25_000)
"""How long somebody takes at most; the last is longer than most leases."""


@dataclass(slots=True)
class LeftToken:
    """What somebody has to do with a token, and the number in all that they say of it."""

    token: str
    plan: str
    number: int
    wait_ms: int
    heartbeat_ms: int
    is_done: bool = False

    @property
    def namespace(self) -> str:
        return self.token.rpartition("|")[2]


class TokenHolder(Peer):
    """A process that finishes what workers have detached, over a connection of its own."""

    def __init__(self, around: Surroundings, name: str, namespace: str) -> None:
        super().__init__(around, name, namespace)
        self._box: list[LeftToken] = []
        around.leave_token = self._left

    def _left(self, token: str, heartbeat_ms: int) -> None:
        """A worker has left a token in the box."""
        random = self.world.random
        plan = random.choices(list(PLANS), list(PLANS.values()))[0]
        if self.around.is_calm and plan == "forget":
            plan = "complete"
        wait_ms = self.world.between(0, random.choice(WAIT_MS_MAX))
        left = LeftToken(token, plan, self.world.number(), wait_ms, heartbeat_ms)
        self.world.count(f"tokens left: {plan}")
        self._box.append(left)
        if self.is_connected:
            self._take_up(left)

    def connected(self) -> None:
        """Whatever was not done before this connection is done over it."""
        self._box = [left for left in self._box if not left.is_done]
        for left in self._box:
            self._take_up(left)

    def _take_up(self, left: LeftToken) -> None:
        cable = self.cable

        def unless_done(action: Callable[[], None]) -> None:
            if self.cable is cable and not left.is_done:
                action()

        if left.heartbeat_ms:
            self._beat(left, unless_done)
        if left.plan != "forget":
            self.later(left.wait_ms, lambda: unless_done(partial(self._finish, left)))

    def _beat(self, left: LeftToken, unless_done: Callable[[Callable[[], None]], None]) -> None:
        def answered(answer: Answer) -> None:
            self.world.count(f"heartbeats by token: {answer.status}")
            if answer.status in (404, 409):
                left.is_done = True
            elif answer.status == 200:  # a cancel was asked for
                unless_done(partial(self._finish, left))

        number = self.world.number()
        self._say(Op.RECORD_ACTIVITY_TASK_HEARTBEAT, left, {"n": number}, answered)
        if left.plan != "forget":
            self.later(left.heartbeat_ms // 3, lambda: unless_done(partial(self._beat, left, unless_done)))

    def _finish(self, left: LeftToken) -> None:
        """Say it until the answer is known: taken, or too late."""
        cable = self.cable

        def again() -> None:
            if self.cable is cable and not left.is_done:
                self._finish(left)

        def answered(answer: Answer) -> None:
            if answer.may_pass:
                self.later(self.world.between(100, 1_500), again)
                return
            left.is_done = True
            self.world.count(f"by token: {left.plan} {answer.status}")
            if answer.ok and self.world.chance(self.around.profile.repeat_rate):
                self._use_again(left)

        match left.plan:
            case "fail":
                failure = Failure(message=f"nobody wants {left.number}", code="Boom")
                self._say(Op.RESPOND_ACTIVITY_TASK_FAILED, left, encode_failure(failure), answered)
            case "hand back":
                self._say(Op.HAND_BACK_TASK, left, b"not mine", answered)
            case _:
                self._say(Op.RESPOND_ACTIVITY_TASK_COMPLETED, left, {"n": left.number}, answered)

    def _use_again(self, left: LeftToken) -> None:
        """A token that is over: the checker of leases sees whether it is refused."""
        opcode = self.world.random.choice(
            (
                Op.RESPOND_ACTIVITY_TASK_COMPLETED,
                Op.RECORD_ACTIVITY_TASK_HEARTBEAT,
                Op.HAND_BACK_TASK,
                Op.DETACH_TASK,
            )
        )

        def answered(answer: Answer) -> None:
            self.world.count(f"token used again: {answer.status}")

        def use() -> None:
            self._say(opcode, left, {"n": self.world.number()}, answered)

        self.later(self.world.between(0, 5_000), use)

    def _say(self, opcode: Op, left: LeftToken, body: object, on_answer: Callable[[Answer], None]) -> None:
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        message = encode_respond(opcode, left.token.encode(), data)
        self.call_raw(opcode, message, on_answer, namespace=left.namespace)
