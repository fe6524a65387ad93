"""Retention: what closed long ago is forgotten with everything that belongs to it, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from tests.helpers.engine_driver import Driver, failure, payload
from trio.testing import MockClock

from zapserver.dispatch import Dispatcher
from zapserver.engine import commands as c
from zapserver.engine.effects import DeliverActivityTask
from zapserver.engine.errors import NotFound
from zapserver.engine.retry import RetryPolicy
from zapserver.engine.tables import Table
from zapserver.namespaces import Namespace, Namespaces
from zapserver.store import Durability, SqliteStore
from zapserver.sweeping import LOOK_SECONDS, SWEEP_EXECUTIONS, Sweeper

ONCE = RetryPolicy(maximum_attempts=1)


def test_what_closed_before_a_moment_is_forgotten_with_its_history_and_requests() -> None:
    d = Driver()
    d.subscribe(1)
    old = d.submit(request_id="old")
    d.complete(d.task())
    dead = d.submit(request_id="dead", retry=ONCE)
    d.fail(d.task())
    still_open = d.submit("other", queue="nobody")
    d.jump(1_000)
    young = d.submit(request_id="young")
    d.complete(d.task())
    assert d.step(c.SweepClosed(closed_before_ms=d.now_ms, limit=10)) == 2
    for gone in (old, dead):
        with pytest.raises(NotFound):
            d.execution(gone)
    assert d.execution(young).run_id == young.run_id
    assert d.execution(still_open).status is c.Status.RUNNING
    assert d.views.counts()["dead_letters"] == 0
    assert d.submit(request_id="young").run_id == young.run_id
    assert d.submit(request_id="old").run_id != old.run_id


def test_a_sweep_is_bounded_and_takes_the_earliest_first() -> None:
    d = Driver()
    d.subscribe(1)
    runs = []
    for _ in range(5):
        runs.append(d.submit())
        d.complete(d.task())
        d.jump(10)
    assert d.step(c.SweepClosed(closed_before_ms=d.now_ms, limit=2)) == 2
    assert [execution.run_id for execution in d.views.executions(lambda _: True)[0]] == [
        run.run_id for run in runs[:1:-1]
    ]
    assert d.step(c.SweepClosed(closed_before_ms=d.now_ms, limit=10)) == 3
    assert d.step(c.SweepClosed(closed_before_ms=d.now_ms, limit=10)) == 0


async def test_a_sweep_that_goes_wrong_is_logged_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    namespaces = Namespaces(now_ms=1)
    namespaces.register("shop", 1)
    swept: list[str] = []

    async def sweep(namespace: Namespace) -> int:
        swept.append(namespace.name)
        raise LookupError("a mistake")

    sweeper = Sweeper(Dispatcher(namespaces, clock=lambda: 1))
    monkeypatch.setattr(sweeper, "sweep", sweep)
    with trio.move_on_after(1.5 * LOOK_SECONDS):
        await sweeper.run()
    assert swept == ["default", "shop"] * 2


async def test_the_sweeper_works_through_a_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """More than one step's worth, without a writer: the store keeps each step at once."""
    store = SqliteStore(tmp_path / "a.db", Table)
    now_ms = 1_800_000_000_000
    namespaces = Namespaces(now_ms=now_ms, open_store=lambda name: (store, None))
    namespace = namespaces.get("")
    namespace.step(c.Subscribe(peer=1, kind=c.QueueKind.ACTIVITY, task_queue="default"), now_ms)
    for number in range(SWEEP_EXECUTIONS + 50):
        namespace.step(c.StartTask(type="a", request_id=str(number), retry_policy=ONCE), now_ms)
        delivery = namespace.engine.take_effects()[0]
        assert isinstance(delivery, DeliverActivityTask)
        if number % 2:
            namespace.step(c.CompleteActivity(token=delivery.task_token, result=payload(1)), now_ms)
        else:
            namespace.step(c.FailActivity(token=delivery.task_token, failure=failure()), now_ms)
        namespace.step(c.ResumePeer(peer=1), now_ms)
    later = now_ms + namespace.about.retention_ms
    dispatcher = Dispatcher(namespaces, clock=lambda: later)
    assert await Sweeper(dispatcher).sweep(namespace) == 0, "the retention is over only behind its last millisecond"
    later += 1
    assert await Sweeper(dispatcher).sweep(namespace) == SWEEP_EXECUTIONS + 50
    left = {table: store.count(table) for table in Table if store.count(table)}
    assert left == {Table.META: 2}
    assert namespace.journal.durability is Durability.SYNCED
    store.close()
