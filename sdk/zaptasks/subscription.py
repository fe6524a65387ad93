"""What a worker asks the server for: some types of work from a task queue, so many at once and so many a second.

It is asked for on every connection anew, until the server grants it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
import trio

from zapwire.body import decode_json
from zapwire.errors import CallFailed, ConnectionLost, ZapError
from zapwire.opcodes import Op

from .errors import BUSY
from .line import TOO_MANY, Line
from .workflow.sessions import SESSION

log = logging.getLogger("zaptasks.worker")

AGAIN_SECONDS: Final = 5.0
"""After a refusal: often enough for a namespace that is registered late, too seldom to be a load."""


@dataclass(slots=True, eq=False)
class Subscription:
    """One bound of the worker's, and the types that it holds for."""

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


class _Subscribed(msgspec.Struct, frozen=True):
    """The server's answer."""

    subscription_id: str


class Subscriptions:
    """All of a worker's. `identity` is what each call says of the worker."""

    def __init__(self, identity: Mapping[str, object], planned: list[Subscription]) -> None:
        self._identity = dict(identity)
        self._all = planned
        self._line: Line | None = None

    async def granted(self) -> None:
        """Wait until the server has taken every one. Raises `CallFailed` for one that it refuses."""
        for subscription in self._all:
            await subscription.wait()

    def to_task(self, name: str) -> Subscription | None:
        """The one that brings tasks of this type."""
        return next((known for known in self._all if known.serves_task(name)), None)

    def to_workflow(self, task_queue: str, workflow_type: str) -> str:
        """The id of the one that brings new runs of a workflow under `@workflow.defn`; "" if none does now."""
        if self._line is None:
            return ""
        return next(
            (
                each.id
                for each in self._all
                if each.replays and each.task_queue == task_queue and workflow_type in each.types
            ),
            "",
        )

    def begin(self, line: Line, nursery: trio.Nursery) -> None:
        """A connection is there: ask for everything on it."""
        self._line = line
        for subscription in self._all:
            nursery.start_soon(self._ask, subscription, line)

    def add(self, subscription: Subscription, nursery: trio.Nursery) -> None:
        """One more, from now on."""
        self._all.append(subscription)
        if self._line is not None:
            nursery.start_soon(self._ask, subscription, self._line)

    def stop_asking(self) -> None:
        """The connection is over, or the worker takes no more work."""
        self._line = None

    async def _ask(self, subscription: Subscription, line: Line) -> None:
        """Ask until the server grants it or the connection ends."""
        while line is self._line:
            try:
                if subscription.needs_ours and not line.is_ours:
                    raise CallFailed(501, f"this server {subscription.needs_ours}")
                answer = await line.call(subscription.opcode, {**self._identity, **subscription.request()})
                subscription.id = decode_json(answer, _Subscribed).subscription_id
                subscription.refusal = None
                subscription.answered.set()
                return
            except ConnectionLost:
                # With a connection that goes on, whether it delivers here now is unknown. Only a new one makes it sure.
                line.close("a subscription was not answered")
                return
            except CallFailed as error:
                if error.status in BUSY and error.status != TOO_MANY:
                    line.note_status(error.status, error.detail)  # no refusal: it is to be served once it is well
                    await trio.sleep(AGAIN_SECONDS)
                    continue
                log.error(
                    "the server refused to deliver %s from %r: %s", subscription.types, subscription.task_queue, error
                )
                subscription.refusal = error
                subscription.answered.set()
            except ZapError as error:
                log.error("subscribing to %r failed: %s", subscription.task_queue, error)
            await trio.sleep(AGAIN_SECONDS)

    async def end_all(self, line: Line) -> None:
        """Tell the server that no more work is wanted on this connection."""
        async with trio.open_nursery() as nursery:
            for subscription in self._all:
                if subscription.id:
                    nursery.start_soon(_end, subscription, line)


async def _end(subscription: Subscription, line: Line) -> None:
    try:
        await line.call(Op.UNSUBSCRIBE_TASKS, {"subscription_id": subscription.id})
        subscription.id = ""
    except ConnectionLost:
        pass  # the end of a connection ends its subscriptions
    except ZapError as error:
        log.warning(
            "unsubscribing from %r failed, the end of the connection will do: %s", subscription.task_queue, error
        )
