"""7: a slow or dead peer never blocks another."""

from __future__ import annotations

from tests.sim.disk import WELL_MS_MAX
from tests.sim.world import World


class Patience:
    """A call on a connection that is well is answered in time while the server and its disk are well."""

    RECOVERY_MS = 2_500
    """What was begun in bad times may take longer: half a commit on a slow disk."""

    def __init__(self, world: World, delay_ms: int) -> None:
        self._world = world
        self.answer_ms_max = 2 * delay_ms + 6 * WELL_MS_MAX + 50
        self._calm_since_ms: int | None = None

    def look(self, *, is_calm: bool) -> None:
        if not is_calm:
            self._calm_since_ms = None
        elif self._calm_since_ms is None:
            self._calm_since_ms = self._world.now_ms + self.RECOVERY_MS

    def waited(self, what: str, name: str, since_ms: int, link_calm_since_ms: int, *, is_answered: bool) -> None:
        calm = self._calm_since_ms
        if calm is None or since_ms < calm or since_ms < link_calm_since_ms:
            return
        self._world.count("answers in calm times")
        took_ms = self._world.now_ms - since_ms
        if took_ms > self.answer_ms_max:
            end = "was answered" if is_answered else "is not answered"
            self._world.fail("7 patience", f"{what!r} of {name} {end} after {took_ms} ms, at most {self.answer_ms_max}")
