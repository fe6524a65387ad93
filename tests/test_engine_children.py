"""Child workflows: what their parents hear, and what becomes of them when their parents end."""

from __future__ import annotations

import pytest
from tests.helpers.engine_driver import DAY_MS, Driver, failure, payload, value

from zapserver.engine import Limits
from zapserver.engine import commands as c
from zapserver.engine.commands import Status
from zapserver.engine.effects import DeliverWorkflowTask
from zapserver.engine.records import Event
from zapserver.engine.retry import RetryPolicy

DONE = c.CompleteCommand()
KID = c.StartChildCommand(id="0.1", type="Kid", workflow_id="kid", input=payload(["toy"]))


def family(*commands: c.TaskCommand) -> tuple[Driver, c.Started]:
    """A parent at worker 1 that answered its first task with these, and worker 2 for children."""
    d = Driver()
    d.subscribe_replaying(1, types=["Parent"])
    d.subscribe_replaying(2, types=["Kid"])
    started = d.start("Parent", workflow_id="parent")
    d.answer(d.run(1), *(commands or (KID,)))
    return d, started


def kid(d: Driver) -> c.Started:
    run = d.run(2)
    return c.Started(workflow_id=run.workflow_id, run_id=run.run_id)


def latest(run: DeliverWorkflowTask) -> Event:
    return run.history[-1]


def test_a_child_runs_with_what_its_parent_gave_it_and_the_parent_hears_that_it_began() -> None:
    d, parent = family()
    run = d.run(2)
    assert (run.workflow_id, run.workflow_type) == ("kid", "Kid")
    assert value(run.history[0].attributes["input"]) == ["toy"]
    assert run.history[0].attributes["parentWorkflowId"] == "parent"
    assert run.history[0].attributes["parentRunId"] == parent.run_id
    started = latest(d.run(1))
    assert started.type.value == "CHILD_WORKFLOW_STARTED"
    assert (started.attributes["commandId"], started.attributes["runId"]) == ("0.1", run.run_id)


def test_a_child_without_an_id_gets_one() -> None:
    d, _ = family(c.StartChildCommand(id="1", type="Kid"), c.StartChildCommand(id="2", type="Kid"))
    first, second = d.runs(2)
    assert first.workflow_id != second.workflow_id
    assert first.workflow_id.startswith("kid-")


@pytest.mark.parametrize(
    ("how", "event"),
    [
        ("complete", "CHILD_WORKFLOW_COMPLETED"),
        ("fail", "CHILD_WORKFLOW_FAILED"),
        ("cancel", "CHILD_WORKFLOW_CANCELED"),
        ("terminate", "CHILD_WORKFLOW_TERMINATED"),
        ("time out", "CHILD_WORKFLOW_TIMED_OUT"),
    ],
)
def test_a_parent_hears_how_its_child_ended(how: str, event: str) -> None:
    command = c.StartChildCommand(id="0.1", type="Kid", timeouts=c.WorkflowTimeouts(run_ms=5_000))
    d, parent = family(command)
    d.answer(d.run(1))
    run = d.run(2)
    if how == "complete":
        d.finish(run, {"n": 1})
    elif how == "fail":
        d.fail_run(run, failure("broken toy"))
    elif how == "cancel":
        d.cancel(kid(d))
        d.answer(run)
        d.answer(d.run(2), c.CancelCommand())
    elif how == "terminate":
        d.terminate(kid(d))
    else:
        d.advance(5_000)
    told = latest(d.run(1))
    assert told.type.value == event
    assert told.attributes["commandId"] == "0.1"
    assert told.attributes["startedEventId"] == 3
    if how == "complete":
        assert value(told.attributes["result"]) == {"n": 1}
    else:
        assert value(told.attributes["failure"])
    assert d.execution(parent).children == {}


def test_a_parent_hears_only_of_the_last_run_of_its_child() -> None:
    command = c.StartChildCommand(
        id="0.1", type="Kid", retry_policy=RetryPolicy(initial_interval_ms=10, maximum_attempts=2)
    )
    d, parent = family(command)
    d.answer(d.run(1))
    before = d.execution(parent).history_length
    d.answer(d.run(2), c.ContinueAsNewCommand())
    d.fail_run(d.run(2))
    d.advance(10)
    assert d.execution(parent).history_length == before
    d.finish(d.run(2), "at last")
    assert value(latest(d.run(1)).attributes["result"]) == "at last"
    assert latest(d.run(1)).attributes["runId"] == d.run(2).run_id


def test_a_child_that_cannot_start_is_told_to_its_parent() -> None:
    d = Driver(limits=Limits(open_executions_max=2))
    d.subscribe_replaying(1, types=["Parent"])
    d.start("Parent", workflow_id="parent")
    taken = d.start("Other", workflow_id="kid")
    d.answer(d.run(1), KID, c.StartChildCommand(id="0.2", type="Kid"))
    first, second = d.run(1).history[-2:]
    assert first.type.value == second.type.value == "CHILD_WORKFLOW_START_FAILED"
    assert b"open already" in bytes(first.attributes["failure"])
    assert b"as many as it may" in bytes(second.attributes["failure"])
    assert d.status(taken) is Status.RUNNING


@pytest.mark.parametrize("end", ["complete", "terminate", "time out", "continue as new"])
def test_open_children_are_reached_when_their_parent_ends(end: str) -> None:
    d = Driver()
    d.subscribe_replaying(1, types=["Parent"])
    parent = d.start("Parent", timeouts=c.WorkflowTimeouts(run_ms=1_000))
    policies = {policy.value: policy for policy in c.ParentClosePolicy}
    commands = [
        c.StartChildCommand(id=name, type="Kid", workflow_id=name, parent_close_policy=policy)
        for name, policy in policies.items()
    ]
    d.answer(d.run(1), *commands)
    match end:
        case "complete":
            d.answer(d.run(1), DONE)
        case "terminate":
            d.terminate(parent)
        case "time out":
            d.advance(1_000)
        case _:
            d.answer(d.run(1), c.ContinueAsNewCommand())
    assert d.views.execution("terminate").status is Status.TERMINATED
    assert "its parent" in d.views.execution("terminate").close_reason
    assert d.views.execution("cancel").status is Status.CANCELED
    assert d.views.execution("abandon").status is Status.RUNNING
    assert d.views.execution("abandon").parent is None


def test_an_end_reaches_a_thousand_generations() -> None:
    d = Driver(watch=False)
    d.subscribe_replaying(1, slots=10_000)
    parent = d.start()
    for _ in range(1_000):
        newest = next(run for run in reversed(d.runs()) if not run.previous_event_id)
        d.answer(newest, c.StartChildCommand(id="heir", type="Order"))
    d.terminate(parent)
    assert d.views.counts()["open_executions"] == 0


def test_a_child_reports_once() -> None:
    d, parent = family()
    d.finish(d.run(2))
    events = [event.type.value for event in d.events(parent)]
    assert events.count("CHILD_WORKFLOW_COMPLETED") == 1
    d.advance(DAY_MS)
    assert d.status(parent) is Status.RUNNING


def test_a_child_of_a_parent_that_is_gone_ends_quietly() -> None:
    d, parent = family(c.StartChildCommand(id="1", type="Kid", parent_close_policy=c.ParentClosePolicy.CANCEL))
    child = kid(d)
    d.answer(d.run(2))
    d.terminate(parent)
    assert d.status(child) is Status.CANCELING
    length = d.execution(parent).history_length
    d.finish(d.run(2))
    assert (d.status(child), d.execution(parent).history_length) == (Status.COMPLETED, length)
