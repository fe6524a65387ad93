"""Updates: admitted in memory, accepted in the history, answered once."""

from __future__ import annotations

import pytest
from tests.helpers.engine_driver import Driver, failure, payload, value, with_a_holder, with_a_replayed_run

from zapserver.engine import Limits
from zapserver.engine import commands as c
from zapserver.engine.commands import UpdateStage
from zapserver.engine.effects import Answered, UpdateAnswered, UpdateRejected
from zapserver.engine.errors import Conflict, Invalid, LimitReached, StaleToken
from zapserver.engine.updates import DELIVERED_BYTES_MAX

DONE = c.CompleteCommand()
REJECT = c.RejectUpdateCommand(update_id="u", failure=failure("not now"))
ACCEPTED = UpdateStage.ACCEPTED


def answered(d: Driver, waiter: str) -> UpdateAnswered:
    (told,) = d.told(waiter)
    assert isinstance(told, UpdateAnswered)
    return told


def refused(d: Driver, waiter: str) -> str:
    (told,) = d.told(waiter)
    assert isinstance(told, Answered)
    assert isinstance(told.error, Conflict)
    return str(told.error)


def test_an_update_wakes_the_workflow_which_accepts_and_completes_it() -> None:
    d, started = with_a_replayed_run(1)
    d.update(started, "first", id="u", wait=ACCEPTED)
    d.update(started, "second", id="u")
    run = d.run()
    assert [(update.update_id, update.name, value(update.args)) for update in run.updates] == [("u", "set", [1])]
    assert d.told("first") == []
    d.answer(run, c.AcceptUpdateCommand(update_id="u"))
    assert (answered(d, "first").stage, d.told("second")) == (ACCEPTED, [])
    d.signal(started)
    d.answer(d.run(), c.CompleteUpdateCommand(update_id="u", result=payload({"ok": 1})))
    assert value(answered(d, "second").result) == {"ok": 1}
    assert d.history(started)[-3:] == ["SIGNALED", "WORKFLOW_TASK_COMPLETED", "UPDATE_COMPLETED"]
    accepted = next(event for event in d.events(started) if event.type.value.endswith("UPDATE_ACCEPTED"))
    assert (accepted.attributes["updateId"], accepted.attributes["name"]) == ("u", "set")


def test_accepted_and_completed_in_one_answer() -> None:
    d, started = with_a_replayed_run(1)
    d.update(started, "first", id="u", wait=ACCEPTED)
    d.update(started, "second", id="u")
    done = c.CompleteUpdateCommand(update_id="u", failure=failure("no stock"))
    d.answer(d.run(), c.AcceptUpdateCommand(update_id="u"), done)
    assert answered(d, "first").stage is ACCEPTED
    told = answered(d, "second")
    assert told.stage is UpdateStage.COMPLETED
    assert b"no stock" in bytes(told.failure or b"")
    assert len(d.runs()) == 2, "its own answer is no news to the workflow"


def test_the_same_id_again_is_answered_from_what_is_recorded() -> None:
    d, started = with_a_replayed_run(1)
    d.update(started, "first", id="u")
    d.answer(d.run(), c.AcceptUpdateCommand(update_id="u"))
    d.update(started, "again", id="u", wait=ACCEPTED)
    assert answered(d, "again").stage is ACCEPTED
    d.signal(started)
    d.answer(d.run(), c.CompleteUpdateCommand(update_id="u", result=payload(7)))
    d.update(started, "late", id="u", wait=ACCEPTED)
    assert value(answered(d, "late").result) == 7
    d.signal(started)
    d.answer(d.run(), DONE)
    d.update(started, "after the end", id="u")
    assert value(answered(d, "after the end").result) == 7
    assert len(d.runs()) == 4


def test_a_caller_that_lost_its_connection_joins_the_update_that_goes_on() -> None:
    d, started = with_a_replayed_run(1)
    d.update(started, "first", id="u")
    d.answer(d.run(), c.AcceptUpdateCommand(update_id="u"))
    d.lose(9)
    d.update(started, "second", id="u")
    d.signal(started)
    d.answer(d.run(), c.CompleteUpdateCommand(update_id="u", result=payload(7)))
    assert d.told("first") == []
    assert value(answered(d, "second").result) == 7


def test_a_rejected_update_leaves_no_event() -> None:
    d, started = with_a_replayed_run(1)
    before = d.history(started)
    first = d.run()
    for attempt in ("first", "second"):
        d.update(started, attempt, id="u")
        assert d.run().previous_event_id == first.last_event_id, "the run is where it was"
        d.answer(d.run(), c.RejectUpdateCommand(update_id="u", failure=failure("not now")))
        (told,) = d.told(attempt)
        assert isinstance(told, UpdateRejected)
        assert b"not now" in bytes(told.failure)
        assert d.history(started) == before
    d.signal(started)
    assert [event.event_id for event in d.run().history] == [2, 3]
    d.answer(d.run(), DONE)


@pytest.mark.parametrize("live", [(), (1,)])
def test_a_rejected_update_leaves_no_event_after_a_restart_either(live: tuple[int, ...]) -> None:
    d, started = with_a_replayed_run(1)
    before = d.history(started)
    d.restart(live)
    if not live:
        d.subscribe_replaying(1)
    d.update(started, "first", id="u")
    d.answer(d.run(), REJECT)
    assert len(d.told("first")) == 1
    assert d.history(started) == before


def test_an_update_that_is_rejected_beside_news_or_an_accepted_one_leaves_the_answer() -> None:
    d, started = with_a_replayed_run(1)
    d.signal(started)
    d.update(started, "first", id="u")
    d.answer(d.run())
    d.answer(d.run(), REJECT)
    assert d.history(started)[-2:] == ["SIGNALED", "WORKFLOW_TASK_COMPLETED"]
    d.update(started, "late", id="u")
    d.signal(started)
    d.answer(d.run(), REJECT)
    assert d.history(started)[-1] == "SIGNALED"
    d.answer(d.run())
    d.update(started, "second", id="u")
    d.update(started, "third", id="v")
    assert [update.update_id for update in d.run().updates] == ["u"]
    d.answer(d.run(), REJECT)
    d.answer(d.run(), c.AcceptUpdateCommand(update_id="v"))
    assert d.history(started)[-2:] == ["WORKFLOW_TASK_COMPLETED", "UPDATE_ACCEPTED"]


def test_an_update_about_which_a_worker_says_nothing_is_rejected() -> None:
    d, started = with_a_replayed_run(1)
    d.update(started, "first")
    d.answer(d.run())
    (told,) = d.told("first")
    assert isinstance(told, UpdateRejected)
    assert b"neither accepted nor rejected" in bytes(told.failure)


def test_an_update_that_comes_while_a_task_is_out_goes_with_the_next() -> None:
    d = Driver()
    d.subscribe_replaying(1)
    started = d.start()
    d.update(started, "first", id="u")
    d.answer(d.run())
    assert [update.update_id for update in d.run().updates] == ["u"]


def test_a_worker_that_is_lost_leaves_its_updates_to_the_next() -> None:
    d, started = with_a_replayed_run(1)
    d.subscribe_replaying(2)
    d.update(started, "first", id="u")
    d.update(started, "gone", id="v", peer=8)
    d.lose(8)
    d.lose(1)
    assert d.run().peer == 2
    assert [update.update_id for update in d.run().updates] == ["u"], "nobody waits for the other any more"


def test_an_update_that_was_out_when_its_caller_left_is_recorded_all_the_same() -> None:
    d, started = with_a_replayed_run(1)
    d.update(started, "first", id="u")
    d.step(c.AbandonWait(waiter="first", peer=9))
    d.answer(d.run(), c.AcceptUpdateCommand(update_id="u"))
    d.update(started, "again", id="u", wait=ACCEPTED)
    assert answered(d, "again").stage is ACCEPTED
    assert d.told("first") == []


def test_an_update_that_nobody_waits_for_is_not_delivered() -> None:
    d = Driver()
    d.subscribe_replaying(1)
    started = d.start()
    d.update(started, "first")
    d.step(c.AbandonWait(waiter="first", peer=9))
    d.answer(d.run())
    assert len(d.runs()) == 1


def test_the_end_of_a_workflow_answers_its_updates() -> None:
    d, started = with_a_replayed_run(1)
    d.update(started, "accepted", id="u")
    d.answer(d.run(), c.AcceptUpdateCommand(update_id="u"))
    d.update(started, "out")
    d.answer(d.run(), DONE)
    for waiter in ("accepted", "out"):
        assert "closed (COMPLETED)" in refused(d, waiter)
    command = c.UpdateExecution(workflow_id=started.workflow_id, name="set", waiter="w", peer=9)
    assert "not running" in d.refused(command, Conflict)


def test_a_worker_that_holds_its_run_cannot_take_updates() -> None:
    d, started = with_a_holder()
    command = c.UpdateExecution(workflow_id=started.workflow_id, name="set", waiter="w", peer=9)
    assert "signal it instead" in d.refused(command, Conflict)
    e = Driver()
    waits = e.start()
    e.update(waits, "early")
    e.subscribe_workflows(1)
    assert "signal it instead" in refused(e, "early")
    task = e.submit()
    assert "one-shot task" in e.refused(
        c.UpdateExecution(workflow_id=task.workflow_id, name="set", waiter="w", peer=9), Conflict
    )


def test_updates_are_bounded() -> None:
    d = Driver(limits=Limits(pending_updates_max=1, updates_max=1, waits_per_peer_max=2))
    d.subscribe_replaying(1)
    started = d.start()
    d.answer(d.run())

    def update(id: str, waiter: str = "w") -> c.UpdateExecution:
        return c.UpdateExecution(workflow_id=started.workflow_id, name="set", update_id=id, waiter=waiter, peer=9)

    d.refused(update("\0"), Invalid)
    d.update(started, "a", id="u")
    assert "wait to be accepted" in d.refused(update("v"), LimitReached)
    d.refused(update("u", "a"), Conflict)
    d.update(started, "b", id="u")
    assert "as many as" in d.refused(update("u"), LimitReached)
    d.answer(d.run(), c.AcceptUpdateCommand(update_id="u"), c.CompleteUpdateCommand(update_id="u"))
    assert "took 1 updates" in d.refused(update("v"), LimitReached)


def test_large_updates_go_out_one_by_one() -> None:
    d, started = with_a_replayed_run(1)
    d.lose(1)
    for id in ("u", "v"):
        d.step(
            c.UpdateExecution(
                workflow_id=started.workflow_id,
                name="set",
                update_id=id,
                waiter=id,
                peer=9,
                args=payload("x" * DELIVERED_BYTES_MAX),
            )
        )
    d.subscribe_replaying(2)
    assert [update.update_id for update in d.run().updates] == ["u"]
    d.answer(d.run(), c.AcceptUpdateCommand(update_id="u"))
    assert [update.update_id for update in d.run().updates] == ["v"]


def test_an_answer_with_updates_that_the_failure_of_a_store_took_is_late_and_not_wrong() -> None:
    d, started = with_a_replayed_run(1)
    d.update(started, "caller", id="u")
    late = d.run()
    assert [update.update_id for update in late.updates] == ["u"]
    d.restart(live=[1])
    answer = c.CompleteWorkflowTask(token=late.task_token, commands=(c.AcceptUpdateCommand(update_id="u"),))
    d.refused(answer, StaleToken)
    assert "WORKFLOW_TASK_FAILED" not in d.history(started)
    d.update(started, "caller again", id="u", wait=ACCEPTED)
    d.answer(d.run())
    d.answer(d.run(), c.AcceptUpdateCommand(update_id="u"))
    assert answered(d, "caller again").stage is ACCEPTED
