"""6: a cancel reaches every descendant. Those of workflows that replay: `tests.sim.stories.Families`."""

from __future__ import annotations

from tests.sim.network import SimLink
from tests.sim.promises.leases import Held, Leases
from tests.sim.world import World

from zapserver.engine import Engine
from zapserver.engine.commands import Status
from zapserver.engine.errors import NotFound
from zapserver.engine.executions import CANCEL_MS_MAX

TICK_MS_MAX = 1_000
"""An engine that was built again knows the time, and does what is due with its first tick."""


class Cancels:
    def __init__(self, world: World, leases: Leases) -> None:
        self._world = world
        self._leases = leases
        self._acknowledged: dict[str, int] = {}
        """When, by run id."""
        self._overdue: dict[str, int] = {}
        """Since when a run is seen open that was to be ended over everybody's head."""

    def acknowledged(self, run_id: str) -> None:
        self._acknowledged.setdefault(run_id, self._world.now_ms)

    def delivered(self, held: Held) -> None:
        """Nobody is to begin with a canceled run, nor with its activities once nobody runs it."""
        if self._acknowledged.get(held.run_id, self._world.now_ms) == self._world.now_ms:
            return  # what the passing of time did before the cancel, in the same step, leaves behind its answer
        if held.is_replayed:
            return  # it cleans up
        if held.kind == "workflow":
            self._fail(f"the canceled run {held.run_id} goes to {held.link.node_id}")
            return
        if held.is_over:  # while it waited for the disk
            return
        holder = self._leases.latest.get(held.run_id)
        if holder is None or (holder.is_over and held.started_ms > holder.over_ms):
            self._fail(f"activity {held.key} of the canceled run {held.run_id} begins")

    def told(self, held: Held, link: SimLink) -> None:
        """A connection hears that the code of `held` is to stop."""
        held.is_told_to_stop = True
        if held.is_detached or held.link is not link:
            self._fail(f"{link.node_id} is told to stop {held.key}, and does not run it")

    def look(self, engine: Engine) -> None:
        """Nobody hears of a cancel: it is done over everybody's head in time."""
        for execution in engine._state.executions.values():
            due_ms = execution.cancel_due_ms
            if execution.is_task or due_ms is None:
                continue
            if execution.status is not Status.CANCELING or due_ms >= engine.now_ms:
                continue
            if self._world.now_ms > self._overdue.setdefault(execution.run_id, self._world.now_ms) + TICK_MS_MAX:
                self._fail(f"run {execution.run_id} was canceled {CANCEL_MS_MAX} ms ago and is open")

    def check(self, engine: Engine) -> None:
        for run_id in sorted(self._acknowledged):
            try:
                found = engine.views.execution("", run_id)
            except NotFound:
                continue
            if found.status.is_open:
                self._fail(f"run {run_id} ({found.type}) was canceled and is {found.status.name}")
        for held in self._leases.latest.values():
            if (
                held.is_over
                or held.is_told_to_stop
                or held.is_detached
                or (held.is_replayed and not held.is_live(engine.now_ms))
            ):
                continue
            if held.run_id not in engine._state.executions:
                self._fail(f"{held.link.node_id} was not told that {held.key} of {held.run_id} is over")

    def _fail(self, text: str) -> None:
        self._world.fail("6 cancel", text)
