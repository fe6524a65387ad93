"""4: every execution ends, or says what it waits for."""

from __future__ import annotations

from tests.sim.world import World

from zapserver.engine import Engine
from zapserver.engine.records import Execution

ORPHAN = "orphan"
"""The type of tasks and workflows that no worker knows."""


class Endings:
    def __init__(self, world: World) -> None:
        self._world = world

    def still_open(self, engine: Engine) -> list[Execution]:
        """Those that are to end by themselves."""
        return [execution for execution in engine._state.executions.values() if execution.type != ORPHAN]

    def check(self, engine: Engine) -> None:
        for execution in engine._state.executions.values():
            waits_for = engine.views.explain(execution.workflow_id, execution.run_id)
            reasons = [item.reason for item in waits_for]
            if execution.type != ORPHAN:
                self._world.fail("4 end", f"{execution.workflow_id} ({execution.type}) does not end: {reasons}")
            elif not any("that could serve" in reason or "none of the" in reason for reason in reasons):
                self._world.fail("4 end", f"{execution.workflow_id} has no worker and says {reasons}")
