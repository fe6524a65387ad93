"""A clock that is set back must neither make time run back nor stop it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import trio

from zapserver.clock import CATCH_UP_RATE, SteadyClock
from zapserver.engine.commands import StartTask
from zapserver.server import open_server
from zapserver.settings import Address, Settings

SECOND = 1_000_000_000
HOUR = 3_600 * SECOND


class Machine:
    """Two clocks that are moved by hand."""

    def __init__(self) -> None:
        self.wall = 1_000_000 * SECOND
        self.monotonic = 77 * SECOND
        self.clock = SteadyClock(lambda: self.wall, lambda: self.monotonic)

    def passes(self, ns: int) -> int:
        self.wall += ns
        self.monotonic += ns
        return self.clock()


def test_it_is_the_machines_clock_while_that_goes_forward() -> None:
    machine = Machine()
    assert machine.clock() == machine.wall // 1_000_000
    for ns in (1, 999_999, SECOND, 12 * HOUR):
        assert machine.passes(ns) == machine.wall // 1_000_000
    machine.wall += 30 * HOUR  # set ahead, or the machine slept
    assert machine.clock() == machine.wall // 1_000_000


def test_after_a_jump_back_it_goes_on_slowly_until_it_is_met_again() -> None:
    machine = Machine()
    before = machine.clock()
    machine.wall -= HOUR
    assert machine.clock() == before, "time ran back"
    times = [machine.passes(60 * SECOND) for _ in range(120)]
    steps = {later - earlier for earlier, later in pairwise(times)}
    assert steps == {int(60_000 * CATCH_UP_RATE)}, "time stood still, or ran at another speed"
    assert times[-1] == machine.wall // 1_000_000
    assert machine.passes(SECOND) == machine.wall // 1_000_000


def test_it_goes_on_from_where_the_store_says_that_time_had_come() -> None:
    machine = Machine()
    ahead = machine.clock() + 5_000
    machine.clock.not_before(ahead)
    assert machine.clock() == ahead
    assert machine.passes(2 * SECOND) == ahead + 1_000
    machine.clock.not_before(0)
    assert machine.passes(2 * SECOND) == ahead + 2_000


@pytest.mark.slow
def test_timers_fire_after_a_restart_with_a_clock_that_was_set_back(tmp_path: Path) -> None:
    """A day back: without care, nothing would be due for a day."""
    settings = Settings(zap=Address("127.0.0.1", 0), http=Address("127.0.0.1", 0), data=str(tmp_path / "data"))

    async def run(ahead_ms: int, wait: bool) -> int:
        wall = SteadyClock()
        async with open_server(settings, clock=None if not ahead_ms else lambda: wall() + ahead_ms) as server:
            namespace = server.dispatcher.namespaces.get("")
            if wait:
                before = namespace.engine.now_ms
                with trio.fail_after(10):
                    while namespace.engine.now_ms < before + 50:
                        server.dispatcher.submit(StartTask(type="a"), namespace)
                        await trio.sleep(0.02)
                return namespace.engine.now_ms
            server.dispatcher.submit(StartTask(type="a"), namespace)
            await server.dispatcher.kept(namespace)
            return namespace.engine.now_ms

    first = trio.run(run, 24 * 3_600_000, False)
    assert trio.run(run, 0, True) >= first + 50
