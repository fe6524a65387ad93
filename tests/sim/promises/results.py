"""2: a reported result never changes."""

from __future__ import annotations

from typing import Any

from tests.sim.promises.kept import value
from tests.sim.world import World

from zapserver.engine import Engine
from zapserver.engine.errors import NotFound


class Results:
    def __init__(self, world: World) -> None:
        self._world = world
        self._by_run: dict[str, tuple[str, Any, Any]] = {}
        self._by_activity: dict[str, Any] = {}

    def reported(self, run_id: str, status: str, result: Any, failure: Any, how: str) -> None:
        """Somebody outside knows how a run ended."""
        told = (status, result, failure)
        known = self._by_run.setdefault(run_id, told)
        if known != told:
            self._world.fail("2 result", f"run {run_id} ended as {known}, and {how} says {told}")

    def activity(self, activity_id: str, outcome: Any) -> None:
        known = self._by_activity.setdefault(activity_id, outcome)
        if known != outcome:
            self._world.fail("2 result", f"activity {activity_id} ended with {known}, and now with {outcome}")

    def check(self, engine: Engine) -> None:
        for run_id, told in self._by_run.items():
            try:
                found = engine.views.execution("", run_id)
            except NotFound:
                self._world.fail("2 result", f"run {run_id} ended as {told} and is gone")
                return
            now = (found.status.name, value(found.result), value(found.failure))
            if now != told:
                self._world.fail("2 result", f"run {run_id} ended as {told}, and is {now}")
