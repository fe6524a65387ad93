"""Calls that wait for the next event of a history."""

from __future__ import annotations

from collections.abc import Hashable

from tests.helpers.engine_driver import Driver, with_a_replayed_run

from zapserver.engine import Limits
from zapserver.engine import commands as c
from zapserver.engine.effects import HistoryGrew
from zapserver.engine.errors import Conflict, LimitReached, NotFound


def watch(started: c.Started, after: int, waiter: Hashable = "w", peer: int = 9) -> c.AwaitEvents:
    return c.AwaitEvents(workflow_id=started.workflow_id, run_id=started.run_id, waiter=waiter, peer=peer, after=after)


def test_a_watcher_is_told_once_when_there_is_an_event_past_what_it_knows() -> None:
    d, started = with_a_replayed_run(1)
    length = len(d.events(started))
    assert d.step(watch(started, length - 1, "behind"))
    assert not d.step(watch(started, length))
    assert d.told("behind") == d.told("w") == []
    d.signal(started)
    d.signal(started)
    (told,) = d.told("w")
    assert told == HistoryGrew(waiter="w", workflow_id=started.workflow_id, run_id=started.run_id, after=length)


def test_the_end_of_a_run_is_an_event_and_none_comes_after_it() -> None:
    d, started = with_a_replayed_run(1)
    assert not d.step(watch(started, len(d.events(started))))
    d.step(c.TerminateExecution(workflow_id=started.workflow_id))
    assert len(d.told("w")) == 1
    assert d.step(watch(started, 1_000, "late"))


def test_who_is_gone_or_waits_no_longer_is_not_told() -> None:
    d, started = with_a_replayed_run(1)
    length = len(d.events(started))
    for waiter, peer in (("stays", 9), ("abandoned", 9), ("lost", 8)):
        d.step(watch(started, length, waiter, peer))
    d.step(c.AbandonWait(waiter="abandoned", peer=9))
    d.lose(8)
    d.signal(started)
    assert [len(d.told(waiter)) for waiter in ("stays", "abandoned", "lost")] == [1, 0, 0]


def test_after_a_failure_of_the_store_a_watcher_waits_on_or_is_told_what_it_missed() -> None:
    d, started = with_a_replayed_run(1)
    length = len(d.events(started))
    d.step(watch(started, length))
    d.restart(live=[1, 9])
    assert [effect for effect in d.told("w") if not isinstance(effect, HistoryGrew)] == []
    d.signal(started)
    assert len(d.told("w")) == 1


def test_watching_is_bounded() -> None:
    d = Driver(limits=Limits(waits_per_peer_max=1))
    started = d.start()
    d.refused(watch(c.Started(workflow_id="x", run_id=""), 0), NotFound)
    d.step(watch(started, 1))
    assert "waits for something already" in d.refused(watch(started, 1), Conflict)
    assert "as many as it may" in d.refused(watch(started, 1, "other"), LimitReached)
    d.refused(c.AwaitExecution(workflow_id=started.workflow_id, waiter="w", peer=9), Conflict)
