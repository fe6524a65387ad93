"""Whoever works for an execution gets its headers: with each attempt, in each child and in each later run."""

from __future__ import annotations

from tests.sim.promises.kept import value
from tests.sim.world import World

from zapserver.engine import Engine

Seen = dict[str, str] | None


def headers_of(number: int) -> Seen:
    """Those of everything that is started with this number in its input, and of all that comes of it."""
    return {"trace": f"t{number}", "tenant": "ä"} if number % 3 else None


class Headers:
    def __init__(self, world: World) -> None:
        self._world = world

    def delivered(self, what: str, number: int, headers: Seen) -> None:
        self._world.count("deliveries with headers" if headers else "deliveries without headers")
        self._compare(f"the delivery of {what}", number, headers)

    def check(self, engine: Engine) -> None:
        """Of every execution, and where its history says so."""
        after = ""
        while True:
            page, after = engine.views.executions(lambda _: True, after=after, limit=1_000)
            for execution in page:
                number = value(execution.input)["n"]
                self._compare(f"run {execution.run_id}", number, execution.headers)
                started = engine.views.history("", execution.run_id, limit=1)[0][0]
                self._compare(f"the history of run {execution.run_id}", number, started.attributes.get("headers"))
            if not after:
                break

    def _compare(self, what: str, number: int, headers: Seen) -> None:
        if headers != headers_of(number):
            self._world.fail("headers", f"{what} has {headers}, and was started with {headers_of(number)}")
