"""What a worker asks the server for: some types of work from a task queue, so many at once and so many a second."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import trio

from zapwire.errors import CallFailed
from zapwire.opcodes import Op

from .workflow.sessions import SESSION


@dataclass(slots=True, eq=False)
class Subscription:
    """Asked for on every connection anew."""

    opcode: int
    task_queue: str
    types: list[str]
    slots: int
    replays: bool = False
    per_second: float = 0.0
    queue_per_second: float = 0.0
    id: str = ""
    refusal: CallFailed | None = None
    answered: trio.Event = field(default_factory=trio.Event)

    def serves_task(self, name: str) -> bool:
        return self.opcode == Op.SUBSCRIBE_ACTIVITY_TASKS and name in self.types

    @property
    def needs_ours(self) -> str:
        """What a server of the Go kind lacks for it; empty for nothing."""
        if self.replays:
            return "keeps no histories for workflows under @workflow.defn to replay"
        if self.per_second or self.queue_per_second:
            return "knows no rates: leave tasks_per_second and queue_tasks_per_second out"
        return "has no sessions: leave sessions out" if self.types == [SESSION] else ""

    def request(self) -> dict[str, object]:
        """Its part of the call."""
        request: dict[str, object] = {"task_queue": self.task_queue, "slots": self.slots, "types": self.types}
        if self.replays:
            request["replays"] = True
        if self.per_second:
            request["per_second"] = self.per_second
        if self.queue_per_second:
            request["queue_per_second"] = self.queue_per_second
        return request

    async def wait(self) -> None:
        """Wait until the server has taken it, or raise the refusal."""
        await self.answered.wait()
        if self.refusal is not None:
            raise self.refusal


class Subscribed(msgspec.Struct, frozen=True):
    """The server's answer."""

    subscription_id: str
