"""An update that starts its workflow if it is not open: one step, all of it or nothing."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import msgspec
import pytest
from tests.helpers.engine_driver import Driver, failure, payload, value, with_a_replayed_run

from zapserver.engine import Limits
from zapserver.engine import commands as c
from zapserver.engine.commands import IdConflict, UpdateStage
from zapserver.engine.effects import Answered, UpdateAnswered, UpdateRejected
from zapserver.engine.errors import Conflict, Invalid, LimitReached

DONE = c.CompleteCommand()


def asked(
    waiter: Hashable = "w", *, id: str = "u", name: str = "set", wait: UpdateStage = UpdateStage.COMPLETED, **start: Any
) -> c.StartWorkflow:
    update = c.UpdateExecution(
        workflow_id="o", name=name, update_id=id, args=payload([1]), waiter=waiter, peer=9, wait=wait
    )
    settings: dict[str, Any] = {"type": "Order", "id_conflict": IdConflict.USE_EXISTING, **start}
    return c.StartWorkflow(workflow_id="o", update=update, **settings)


def test_it_starts_the_workflow_and_goes_with_its_first_task() -> None:
    d = Driver()
    d.subscribe_replaying(1)
    started = d.step(asked())
    assert started.is_new
    (run,) = d.runs()
    assert [(update.update_id, value(update.args)) for update in run.updates] == [("u", [1])]
    d.answer(run, c.AcceptUpdateCommand(update_id="u"), c.CompleteUpdateCommand(update_id="u", result=payload(7)))
    (told,) = d.told("w")
    assert isinstance(told, UpdateAnswered)
    assert (told.workflow_id, told.run_id, value(told.result)) == ("o", started.run_id, 7)


def test_it_waits_with_its_run_for_a_worker_or_for_its_time() -> None:
    d = Driver()
    d.step(asked(cron_schedule="@every 1m"))
    d.advance(10_000)
    d.subscribe_replaying(1)
    assert d.runs() == []
    d.advance(60_000)
    assert [update.update_id for update in d.run().updates] == ["u"]


def test_one_that_is_open_is_updated_and_woken() -> None:
    d, _ = with_a_replayed_run(1)
    d.step(asked("first", id="1"))
    d.answer(d.run())
    joined = d.step(asked("second", id="2"))
    assert not joined.is_new
    assert joined.run_id == d.run().run_id
    assert [update.update_id for update in d.run().updates] == ["2"]


def test_policies_refuse_what_is_open_or_end_it_first() -> None:
    d = Driver()
    d.subscribe_replaying(1)
    first = d.step(asked("first"))
    assert "is open already" in d.refused(asked("second", id_conflict=IdConflict.FAIL), Conflict)
    second = d.step(asked("second", id_conflict=IdConflict.TERMINATE_EXISTING))
    assert second.run_id != first.run_id
    (told,) = d.told("first")
    assert isinstance(told, Answered)
    assert d.told("second") == []
    assert d.run().run_id == second.run_id


def test_a_repeat_finds_the_same_run_and_the_same_update() -> None:
    d = Driver()
    d.subscribe_replaying(1)
    started = d.step(asked("first", request_id="r"))
    d.lose(9)
    assert d.step(asked("second", request_id="r")).run_id == started.run_id
    d.answer(d.run())
    d.step(asked("third", request_id="r"))
    run = d.run()
    assert [update.update_id for update in run.updates] == ["u"]
    d.answer(run, c.AcceptUpdateCommand(update_id="u"), c.CompleteUpdateCommand(update_id="u"), DONE)
    assert d.step(asked("late", request_id="r")).run_id == started.run_id
    (told,) = d.told("late")
    assert isinstance(told, UpdateAnswered)
    assert len({event.run_id for event in d.runs()}) == 1
    assert "not running" in d.refused(asked("other", id="v", request_id="r"), Conflict)


def test_after_a_restart_the_start_is_there_and_a_repeat_asks_again() -> None:
    d = Driver()
    started = d.step(asked("first", request_id="r"))
    d.restart()
    d.subscribe_replaying(1)
    assert d.run().updates == (), "what was not accepted is forgotten"
    d.answer(d.run())
    assert d.step(asked("second", request_id="r")).run_id == started.run_id
    assert [update.update_id for update in d.run().updates] == ["u"]


def test_a_rejected_update_leaves_the_run_that_was_started_for_it() -> None:
    d = Driver()
    d.subscribe_replaying(1)
    started = d.step(asked())
    d.answer(d.run(), c.RejectUpdateCommand(update_id="u", failure=failure("not now")))
    (told,) = d.told("w")
    assert isinstance(told, UpdateRejected)
    assert d.views.execution("o").status.is_open
    assert d.history(started) == ["STARTED", "WORKFLOW_TASK_COMPLETED"]


def test_a_worker_that_cannot_take_updates_gets_the_run_and_the_caller_is_told() -> None:
    d = Driver()
    d.subscribe_workflows(1)
    d.step(asked())
    (told,) = d.told("w")
    assert isinstance(told, Answered)
    assert "signal it instead" in str(told.error)
    assert d.views.execution("o").status.is_open
    assert "signal it instead" in d.refused(asked("again", id="v"), Conflict)


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"name": ""}, Invalid),
        ({"id": "\0"}, Invalid),
        ({"type": ""}, Invalid),
        ({"request_id": "\0"}, Invalid),
        ({"waiter": "taken"}, Conflict),
    ],
)
def test_what_is_refused_leaves_no_trace(wrong: dict[str, Any], error: type[Any], is_open: bool) -> None:
    d = Driver()
    other = d.start()
    d.update(other, "taken")
    if is_open:
        d.start(workflow_id="o")
    d.refused(asked(**wrong), error)


def test_bounds_hold_for_what_is_started_and_what_is_found() -> None:
    d = Driver(limits=Limits(waits_per_peer_max=1, open_executions_max=2, payload_bytes_max=8))
    task = c.StartTask(type="mail", workflow_id="o")
    d.step(task)
    assert "one-shot task" in d.refused(asked(request_id="r"), Conflict)
    d.step(msgspec.structs.replace(task, workflow_id="p"))
    full = asked(id_conflict=IdConflict.USE_EXISTING)
    assert full.update is not None
    elsewhere = msgspec.structs.replace(full, workflow_id="q")
    assert "as many as it may" in d.refused(elsewhere, LimitReached)
    long = msgspec.structs.replace(full, update=msgspec.structs.replace(full.update, args=payload("x" * 9)))
    with pytest.raises(Exception, match="the args has 11 bytes"):
        d.engine.step(long, d.now_ms)
    e = Driver(limits=Limits(waits_per_peer_max=1))
    e.step(asked())
    assert "as many as it may" in e.refused(msgspec.structs.replace(asked("v"), workflow_id="q"), LimitReached)
