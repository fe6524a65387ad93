"""Headers: given at a start, kept in the record, and with whatever belongs to the execution. Build ids beside them."""

from __future__ import annotations

import msgspec
import pytest
from tests.helpers.engine_driver import (
    MINUTE_MS,
    Driver,
    every,
    failure,
    payload,
    with_a_replayed_run,
)

from zapserver.engine import Limits
from zapserver.engine import commands as c
from zapserver.engine.errors import Invalid, TooLarge
from zapserver.engine.limits import HEADER_BYTES_MAX
from zapserver.engine.records import Lease
from zapserver.engine.retry import RetryPolicy
from zapserver.engine.saved import decode_execution, encode_execution
from zapserver.engine.tables import Table

HEADERS = {"trace": "00-4bf9-01", "tenant": "möve"}
TWICE = RetryPolicy(initial_interval_ms=1_000, maximum_attempts=2)


def with_workflow(retry: RetryPolicy | None = None, cron: str = "") -> tuple[Driver, c.Started]:
    """A workflow with headers whose worker replays, as peer 1; activities go to peer 5."""
    d = Driver()
    d.subscribe_replaying(1)
    d.subscribe(5)
    start = c.StartWorkflow(
        type="Order", workflow_id="o", input=payload([1]), headers=HEADERS, retry_policy=retry, cron_schedule=cron
    )
    return d, d.step(start)


def headers_in_history(d: Driver) -> object:
    """What the latest delivery to a replaying worker says in its first event."""
    return d.run(1).history[0].attributes.get("headers")


# --- where they go -----------------------------------------------------------------------------------


def test_a_task_has_them_in_its_record_its_first_event_and_every_attempt() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.step(c.StartTask(type="email", headers=HEADERS, retry_policy=TWICE))
    d.fail(d.task(1))
    d.advance(1_000)
    assert [task.headers for task in d.tasks(1)] == [HEADERS, HEADERS]
    assert d.execution(started).headers == HEADERS
    assert d.events(started)[0].attributes["headers"] == HEADERS


def test_a_requeued_dead_letter_has_those_of_the_first_run() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.step(c.StartTask(type="email", headers=HEADERS))
    d.fail(d.task(1), failure(non_retryable=True))
    d.step(c.RequeueDeadLetter(workflow_id=started.workflow_id))
    assert [task.headers for task in d.tasks(1)] == [HEADERS, HEADERS]


def test_a_workflow_has_them_in_its_history_and_its_activities_get_them() -> None:
    d, _ = with_workflow()
    assert headers_in_history(d) == HEADERS
    assert d.run(1).headers is None, "they are in the history"
    d.answer(d.run(1), c.ScheduleActivityCommand(id="0/1", type="charge"))
    assert d.task(5).headers == HEADERS


def test_a_worker_of_the_go_kind_gets_them_with_its_task_and_its_activities_too() -> None:
    d = Driver()
    d.subscribe_workflows(1)
    d.subscribe(5)
    d.step(c.StartWorkflow(type="Order", headers=HEADERS))
    assert d.run(1).headers == HEADERS
    d.call(d.run(1))
    assert d.task(5).headers == HEADERS


def test_children_and_their_children_have_them() -> None:
    d, _ = with_workflow()
    d.answer(d.run(1), c.StartChildCommand(id="0/1", type="Parcel", workflow_id="p"))
    [child] = [run for run in d.runs(1) if run.workflow_id == "p"]
    d.answer(child, c.StartChildCommand(id="0/1", type="Label", workflow_id="l"))
    [grandchild] = [run for run in d.runs(1) if run.workflow_id == "l"]
    assert [run.history[0].attributes["headers"] for run in (child, grandchild)] == [HEADERS, HEADERS]


def test_a_retry_a_cron_run_and_a_run_continued_as_new_have_them() -> None:
    d, _ = with_workflow(retry=TWICE)
    d.answer(d.run(1), c.FailCommand(failure=c.Payload(failure())))
    d.advance(1_000)
    d.answer(d.run(1), c.ContinueAsNewCommand(input=payload([2])))
    assert [run.history[0].attributes["headers"] for run in d.runs(1)] == [HEADERS] * 3
    d, _ = with_workflow(cron="* * * * *")
    for _ in range(2):
        d.advance(MINUTE_MS)
        d.answer(d.run(1), c.CompleteCommand())
    assert [run.history[0].attributes["headers"] for run in d.runs(1)] == [HEADERS] * 2


def test_a_reset_run_has_them() -> None:
    d, started = with_workflow()
    d.answer(d.run(1))
    again = d.step(c.ResetExecution(workflow_id="o", event_id=2))
    assert again.run_id != started.run_id
    assert d.execution(again).headers == headers_in_history(d) == HEADERS


def test_a_start_that_finds_the_workflow_open_leaves_its_headers() -> None:
    """They belong to the execution, whose activities run with them already."""
    d, started = with_workflow()
    signal = c.StartWorkflow(type="Order", workflow_id="o", headers={"trace": "other"}, signal_name="go")
    assert d.step(signal).run_id == started.run_id
    assert d.execution(started).headers == HEADERS


def test_the_runs_of_a_schedule_have_those_of_its_action() -> None:
    d = Driver()
    d.subscribe(1)
    action = c.Action(type="report", task_queue="default", is_task=True, headers=HEADERS)
    d.schedule(every(1_000), action=action)
    d.restart()
    d.subscribe(1)
    d.advance(1_000)
    assert d.task(1).headers == HEADERS


def test_none_are_nowhere() -> None:
    """A Go peer is never shown a key that it does not know."""
    d = Driver()
    d.subscribe(1)
    started = d.step(c.StartTask(type="email", headers={}))
    assert d.task(1).headers is None
    assert "headers" not in d.events(started)[0].attributes


# --- bounds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{"": "x"}, {"a\n": "x"}, {"a": "x\ny"}, {"a": "\x00"}, {"n" * 1_001: "x"}])
@pytest.mark.parametrize("start", [c.StartTask(type="t"), c.StartWorkflow(type="t")])
def test_what_is_no_short_printable_text_is_refused(start: c.Command[c.Started], headers: dict[str, str]) -> None:
    assert "header" in Driver().refused(msgspec.structs.replace(start, headers=headers), Invalid)


def test_more_than_fit_is_refused_with_how_much_there_is() -> None:
    d = Driver()
    fits = {"a": "x" * (HEADER_BYTES_MAX - len('{"a":""}'))}
    assert d.step(c.StartTask(type="t", headers=fits)).is_new
    text = d.refused(c.StartTask(type="t", headers={"a": fits["a"] + "x"}), TooLarge)
    assert f"{HEADER_BYTES_MAX + 1} bytes" in text
    many = {f"h{number}": "" for number in range(1_000)}
    d.refused(c.StartWorkflow(type="t", headers=many), TooLarge)
    schedule = c.Action(type="t", task_queue="q", is_task=True, headers=many)
    d.refused(c.PutSchedule(schedule_id="s", spec=every(1_000), action=schedule), TooLarge)
    few = Driver(limits=Limits(header_bytes_max=10))
    few.refused(c.StartTask(type="t", headers={"ab": "xyz"}), TooLarge)


def test_they_count_in_what_a_worker_gets_at_once() -> None:
    """A backlog of small tasks with long headers must not overrun the connection."""
    d = Driver(limits=Limits(burst_bytes_max=50_000))
    for _ in range(50):
        d.step(c.StartTask(type="t", headers={"a": "x" * 4_000}))
    d.subscribe(1)
    assert len(d.tasks(1)) < 20


# --- kept --------------------------------------------------------------------------------------------


def test_they_and_the_build_ids_survive_a_restart() -> None:
    d, started = with_workflow()
    d.answer(d.run(1), c.ScheduleActivityCommand(id="0/1", type="charge"))
    d.restart()
    d.subscribe(5)
    assert d.execution(started).headers == d.task(5).headers == HEADERS


def test_records_that_were_written_before_there_were_any_are_read() -> None:
    d = Driver()
    d.step(c.StartTask(type="email"))
    d.subscribe(1)
    [(_, record)] = d.store.scan(Table.OPEN)
    fields = msgspec.json.decode(record)
    assert not {"headers", "build_id"} & fields.keys()
    del fields["activity"]["lease"]["build_id"]
    execution, read = decode_execution(msgspec.json.encode(fields))
    assert (execution.headers, execution.build_id) == (None, "")
    assert read.activity is not None
    assert isinstance(read.activity.lease, Lease)
    assert read.activity.lease.build_id == ""
    execution.headers = HEADERS
    assert decode_execution(encode_execution(execution))[0].headers == HEADERS


# --- build ids ---------------------------------------------------------------------------------------


def subscribe(d: Driver, peer: int, build_id: str, kind: c.QueueKind = c.QueueKind.ACTIVITY) -> None:
    d.step(
        c.Subscribe(
            peer=peer,
            kind=kind,
            task_queue="default",
            identity=f"worker {peer}",
            build_id=build_id,
            replays=kind is c.QueueKind.WORKFLOW,
        )
    )


def builds(d: Driver, started: c.Started) -> list[tuple[str, str]]:
    """The events that name a worker, and its build."""
    return [
        (event.type.value, event.attributes.get("buildId", ""))
        for event in d.events(started)
        if event.attributes.get("identity", "").startswith("worker")
    ]


def test_events_say_which_build_began_a_task_and_which_one_answered() -> None:
    d = Driver()
    started = d.step(c.StartTask(type="email", retry_policy=TWICE))
    subscribe(d, 1, "1.0")
    d.fail(d.task(1))
    d.lose(1)
    subscribe(d, 2, "")
    d.advance(1_000)
    d.complete(d.task(2))
    assert builds(d, started) == [
        ("ACTIVITY_TASK_STARTED", "1.0"),
        ("ACTIVITY_TASK_STARTED", ""),
        ("ACTIVITY_TASK_COMPLETED", ""),
    ]
    assert d.execution(started).build_id == "", "that of the last worker, which names none"


def test_events_say_which_build_answered_a_workflow_task_and_which_one_could_not() -> None:
    d = Driver()
    subscribe(d, 1, "1.0", c.QueueKind.WORKFLOW)
    started = d.start()
    d.answer(d.run(1))
    d.lose(1)
    subscribe(d, 2, "1.1", c.QueueKind.WORKFLOW)
    d.signal(started)
    d.step(c.FailWorkflowTask(token=d.run(2).task_token, reason="it does not fit the history"))
    assert builds(d, started) == [("WORKFLOW_TASK_COMPLETED", "1.0"), ("WORKFLOW_TASK_FAILED", "1.1")]
    assert d.execution(started).build_id == "1.1"
    d.restart()
    assert d.execution(started).build_id == "1.1"


def test_explain_names_the_build() -> None:
    d = Driver()
    started = d.step(c.StartTask(type="email"))
    subscribe(d, 1, "1.0")
    [waiting] = d.views.explain(started.workflow_id)
    assert waiting.build_id == "1.0"
    assert waiting.reason == "the worker 'worker 1' of build '1.0' runs attempt 1"
    workflow = d.start()
    subscribe(d, 1, "1.0", c.QueueKind.WORKFLOW)
    [waiting] = d.views.explain(workflow.workflow_id)
    assert waiting.build_id == "1.0"
    assert "of build '1.0' has its workflow task" in waiting.reason


def test_connections_that_outlive_the_store_keep_their_build() -> None:
    d = Driver()
    subscribe(d, 1, "1.0")
    d.restart(live=[1])
    started = d.step(c.StartTask(type="email"))
    assert builds(d, started) == [("ACTIVITY_TASK_STARTED", "1.0")]


@pytest.mark.parametrize("build_id", ["a\nb", "x" * 1_001])
def test_a_build_id_is_a_short_printable_text(build_id: str) -> None:
    d = Driver()
    command = c.Subscribe(peer=1, kind=c.QueueKind.ACTIVITY, task_queue="q", build_id=build_id)
    assert "build id" in d.refused(command, Invalid)


def test_no_build_decides_who_gets_a_task() -> None:
    """A run goes on with whoever serves its type: changed code is what `patched` is for."""
    d, _ = with_a_replayed_run(1, c.StartTimerCommand(id="0/1", fire_after_ms=1_000))
    subscribe(d, 2, "2.0", c.QueueKind.WORKFLOW)
    d.lose(1)
    d.advance(1_000)
    assert d.run(2).previous_event_id == 0
