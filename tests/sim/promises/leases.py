"""3: no lease is held by two, and an old attempt is refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tests.sim.network import SimLink
from tests.sim.world import World

from zapserver.engine import Engine
from zapserver.engine.errors import NotFound
from zapserver.engine.records import EventType

NEVER_MS = 1 << 60


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
    is_detaching: bool = False
    """Its worker says that it has no more to do with it."""
    is_detached: bool = False
    """That was acknowledged: it ends by its token, a timeout or the end of the execution."""
    is_settled: bool = False
    """An answer that ends it was acknowledged."""
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
            and not each.is_detaching
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

    def taken_too_late(self, held: Held, at_ms: int, *, was_settled: bool) -> None:
        """An answer that came at `at_ms` was taken: its token was to be good then."""
        if was_settled:
            self._fail(f"attempt {held.attempt} of {held.key} was over, and its token was taken again")
        if held.kind == "activity" and held.start_to_close_ms and at_ms >= held.started_ms + held.start_to_close_ms:
            self._fail(f"attempt {held.attempt} of {held.key} had its time, and its token was taken at {at_ms}")

    def stands_again(self, held: Held) -> None:
        """What was to end it was refused. Only of a detached lease is it known that nothing else did."""
        if held.is_detached:
            held.is_over = False

    def parted(self, link: SimLink, now_ms: int) -> None:
        for held in self.latest.values():
            if held.link is link and not held.is_detached:
                self.over(held.token, now_ms)

    def restarted(self, now_ms: int) -> None:
        for held in self.latest.values():
            if not held.is_detached:
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
