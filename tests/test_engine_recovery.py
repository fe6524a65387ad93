"""What recovery makes of damaged records, of an engine that went wrong, and of a thousand things due at once."""

from __future__ import annotations

from typing import Any

import pytest
from tests.helpers.engine_driver import Driver, payload, value

from zapserver.engine import activities, changes, executions
from zapserver.engine import commands as c
from zapserver.engine.commands import Status
from zapserver.engine.engine import DUE_PER_STEP_MAX
from zapserver.engine.errors import NotFound
from zapserver.engine.retry import RetryPolicy
from zapserver.engine.tables import Table
from zapserver.namespaces import Namespace, Namespaces
from zapserver.store import Batch, Damaged, StoreError
from zapserver.store.keys import Key

NOW_MS = 1_800_000_000_000


# --- damage ----------------------------------------------------------------------------------------


def overwrite(d: Driver, table: Table, at: int = 0, data: bytes = b'{"half":') -> None:
    """Make one record of a table unreadable."""
    key = [key for key, _ in d.store.scan(table)][at]
    batch = Batch()
    batch.put(table, key, data)
    d.store.commit(batch)


@pytest.mark.parametrize("data", [b"", b"\xff", b'{"half":', b"[]", b'{"number":"one"}', b"null"])
def test_an_open_execution_that_cannot_be_read_is_named_and_the_others_are_served(data: bytes) -> None:
    d = Driver(watch=False)
    first, second = d.submit(), d.submit()
    overwrite(d, Table.OPEN, 0, data)
    d.engine = d._new_engine()
    (damage,) = d.engine.recover(d.now_ms)
    assert (damage.table, "left out" in str(damage)) == ("open", True)
    with pytest.raises(NotFound):
        d.execution(first)
    d.subscribe(1)
    assert [task.run_id for task in d.tasks(1)] == [second.run_id]


def test_a_workflow_of_which_an_activity_is_damaged_is_left_out_as_a_whole() -> None:
    """Served without it, it would wait for ever."""
    d = Driver(watch=False)
    d.subscribe_workflows(1)
    kept, lost = d.start(), d.start()
    for run in d.runs(1):
        d.call(run)
    overwrite(d, Table.ACTIVITIES, 1)
    d.engine = d._new_engine()
    (damage,) = d.engine.recover(d.now_ms)
    assert damage.table == "activities"
    assert d.status(kept) is Status.RUNNING
    with pytest.raises(NotFound):
        d.execution(lost)
    assert d.engine._state.activities.keys() == {d.engine._state.executions[kept.run_id].calls[0].activity_id}


def test_a_run_whose_calls_cannot_be_read_is_left_out_too() -> None:
    d = Driver(watch=False)
    d.subscribe_workflows(1)
    d.start()
    d.call(d.run(1))
    for at in range(len(list(d.store.scan(Table.HISTORY)))):
        overwrite(d, Table.HISTORY, at)
    d.engine = d._new_engine()
    assert [damage.table for damage in d.engine.recover(d.now_ms)] == ["open"]
    assert d.views.counts()["open_executions"] == 0


def test_a_schedule_that_cannot_be_read_is_named() -> None:
    d = Driver(watch=False)
    for name in ("a", "b"):
        d.schedule(c.ScheduleSpec(interval_ms=60_000), id=name)
    overwrite(d, Table.SCHEDULES, 0)
    d.engine = d._new_engine()
    assert [damage.table for damage in d.engine.recover(d.now_ms)] == ["schedules"]
    assert [schedule.schedule_id for schedule in d.views.schedules()] == ["b"]


def test_a_workflow_hears_that_what_it_signals_is_damaged_and_its_answer_is_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half an answer was applied: the signal was the second of three commands."""
    d = Driver(watch=False)
    closed = d.start(workflow_id="closed")
    d.step(c.TerminateExecution(workflow_id="closed"))
    d.subscribe_replaying(1)
    started = d.start(workflow_id="open")
    get = d.store.get

    def damaged(table: Table, key: Key) -> bytes | None:
        if table is Table.CLOSED:
            raise Damaged("the record is damaged", table=table)
        return get(table, key)

    monkeypatch.setattr(d.store, "get", damaged)
    d.answer(
        d.run(1),
        c.StartTimerCommand(id="1", fire_after_ms=1_000),
        c.SignalExternalCommand(id="2", workflow_id=closed.workflow_id, name="go"),
        c.StartTimerCommand(id="3", fire_after_ms=1_000),
    )
    assert d.history(started)[2:5] == ["TIMER_STARTED", "EXTERNAL_WORKFLOW_SIGNAL_FAILED", "TIMER_STARTED"]


def test_a_copied_history_that_is_longer_than_a_record_is_kept_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "RECORD_BYTES_MAX", 3_000)
    d = Driver()
    d.subscribe_workflows(1)
    started = d.start()
    for number in range(12):
        d.signal(started, input=str(number) * 1_000)
    again = d.step(c.ResetExecution(workflow_id=started.workflow_id, event_id=13))
    number = d.execution(again).number
    assert len([key for key, _ in d.store.scan(Table.HISTORY, prefix=(number,))]) > 4
    d.restart()
    events = d.events(again)
    assert [event.event_id for event in events] == list(range(1, len(events) + 1))
    assert [value(event.attributes["input"]) for event in events[1:4]] == [str(number) * 1_000 for number in range(3)]


@pytest.mark.parametrize("data", [b"", b"x"])
def test_a_next_number_that_cannot_be_read_is_made_again_past_every_execution(data: bytes) -> None:
    d = Driver(watch=False)
    first = d.submit()
    d.submit()
    used = [key[0] for key, _ in d.store.scan(Table.HISTORY)]
    overwrite(d, Table.META, 0, data)
    d.engine = d._new_engine()
    assert [damage.table for damage in d.engine.recover(d.now_ms)] == ["meta"]
    d.submit()
    assert [key[0] for key, _ in d.store.scan(Table.HISTORY)] == [*used, 3]
    d.restart()
    assert d.status(first) is Status.RUNNING


def test_a_replaying_worker_is_told_of_a_damaged_history_by_reading_it() -> None:
    d = Driver(watch=False)
    d.subscribe_replaying(1)
    d.start()
    d.answer(d.run(1), c.StartTimerCommand(id="1", fire_after_ms=1_000))
    d.lose(1)
    overwrite(d, Table.HISTORY, 0)
    d.restart()
    d.subscribe_replaying(2)
    d.advance(2_000)
    delivery = d.run(2)
    assert (delivery.history, delivery.next_event_id) == ((), 1)
    for _ in range(4):
        d.step(c.FailWorkflowTask(token=d.run(2).task_token, reason="event 1 cannot be read"))
    assert "event 1 cannot be read" in str(d.views.explain(delivery.workflow_id))


# --- an engine that goes wrong ---------------------------------------------------------------------


@pytest.fixture
def namespace() -> Namespace:
    return Namespaces(now_ms=NOW_MS).get("")


def test_a_step_that_fails_in_the_middle_is_void_and_the_engine_is_built_again(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace.step(c.Subscribe(peer=1, kind=c.QueueKind.ACTIVITY, task_queue="default"), NOW_MS)
    before = namespace.step(c.StartTask(type="a", workflow_id="before"), NOW_MS)
    failed: list[str] = []
    namespace.journal.on_failure = lambda: failed.append("void")
    with monkeypatch.context() as patch:
        patch.setattr(activities, "schedule", _breaks)
        with pytest.raises(ZeroDivisionError):
            namespace.step(c.StartTask(type="a", workflow_id="half"), NOW_MS)
    assert failed == ["void"]
    with pytest.raises(StoreError, match="a step of the engine failed: ZeroDivisionError"):
        namespace.step(c.Tick(), NOW_MS)
    namespace.journal.recover(lambda error: failed.append(str(error)))
    namespace.rebuild(NOW_MS, live=[1])
    assert failed == ["void", "None"]
    with pytest.raises(NotFound):
        namespace.engine.views.execution("half")
    assert namespace.engine.views.execution("before").run_id == before.run_id
    assert namespace.step(c.StartTask(type="a", workflow_id="half"), NOW_MS).is_new


def _breaks(*args: Any, **more: Any) -> None:
    raise ZeroDivisionError


def test_what_is_due_and_breaks_does_not_end_the_server(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    from zapserver.dispatch import Dispatcher

    now = [NOW_MS]
    namespaces = Namespaces(now_ms=NOW_MS)
    dispatcher = Dispatcher(namespaces, clock=lambda: now[0])
    target = namespaces.get("")
    dispatcher.submit(c.StartWorkflow(type="W", timeouts=c.WorkflowTimeouts(run_ms=1_000)), target)
    now[0] += 1_000
    with monkeypatch.context() as patch:
        patch.setattr(executions, "fire", _breaks)
        dispatcher.tick()
    assert target.journal.failure is not None
    assert dispatcher.next_deadline_ms() is None
    target.journal.recover(lambda error: None)
    dispatcher.rebuild(target)
    dispatcher.tick()
    assert target.engine.views.counts()["open_executions"] == 0


# --- much at once ------------------------------------------------------------------------------------


def test_what_is_due_at_once_is_done_in_several_steps_and_all_of_it() -> None:
    d = Driver(watch=False)
    count = DUE_PER_STEP_MAX * 2 + 10
    timeouts = c.ActivityTimeouts(schedule_to_start_ms=1_000)
    once = RetryPolicy(maximum_attempts=1)
    for _ in range(count):
        d.step(c.StartTask(type="a", timeouts=timeouts, retry_policy=once))
    d.jump(5_000)
    assert d.views.counts()["open_executions"] == count - DUE_PER_STEP_MAX
    due_ms = d.engine.next_deadline_ms()
    assert due_ms is not None
    assert due_ms <= d.now_ms
    d.advance(0)
    assert d.views.counts()["open_executions"] == 0


def test_long_payloads_come_back_from_the_history() -> None:
    d = Driver()
    d.subscribe_workflows(1)
    long = ["x" * 10_000]
    task = d.submit("big", input=long, queue="later")
    flow = d.start()
    d.call(d.run(1), input=long)
    d.restart()
    d.subscribe(2)
    d.subscribe(2, queue="later")
    assert sorted(str(value(each.input)) for each in d.tasks(2)) == [str(long), str(long)]
    d.complete(next(each for each in d.tasks(2) if each.run_id == task.run_id), long)
    d.restart()
    assert value(d.execution(task).result) == value(d.execution(task).input) == long
    assert value(d.events(task)[-1].attributes["result"]) == long
    d.subscribe_workflows(3)
    d.subscribe(3)
    d.complete(d.task(3), long)
    assert value(d.events(flow)[-1].attributes["result"]) == long
    assert payload(long) == d.execution(task).result
