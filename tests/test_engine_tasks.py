"""One-shot tasks: their life, request ids, retries, dead letters, and how many there may be."""

from __future__ import annotations

import msgspec
import pytest
from tests.helpers.engine_driver import START_MS, Driver, failure, value

from zapserver.engine import Limits
from zapserver.engine import commands as c
from zapserver.engine.commands import Status
from zapserver.engine.effects import Closed
from zapserver.engine.errors import Conflict, Invalid, LimitReached, NotFound
from zapserver.engine.records import EventType
from zapserver.engine.retry import RetryPolicy

FEW = RetryPolicy(initial_interval_ms=1_000, maximum_interval_ms=4_000, maximum_attempts=3)
ENDLESS = RetryPolicy(initial_interval_ms=1, maximum_interval_ms=1, maximum_attempts=0)


# --- life ----------------------------------------------------------------------------------------------


def test_a_task_is_stored_delivered_completed_and_its_history_can_be_read() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit("email.send", input={"to": "ada"})
    task = d.task(1)
    assert (task.activity_type, value(task.input), task.attempt, task.is_task) == ("email.send", {"to": "ada"}, 1, True)
    assert (task.workflow_id, task.run_id) == (started.workflow_id, started.run_id)
    assert d.status(started) is Status.RUNNING
    d.now_ms += 7
    d.complete(task, {"sent": 1})
    execution = d.execution(started)
    assert (execution.status, value(execution.result), execution.close_ms) == (
        Status.COMPLETED,
        {"sent": 1},
        START_MS + 7,
    )
    assert d.history(started) == [
        "STARTED",
        "ACTIVITY_SCHEDULED",
        "ACTIVITY_STARTED",
        "ACTIVITY_COMPLETED",
        "COMPLETED",
    ]
    assert [value(event.attributes["result"]) for event in d.events(started)[3:]] == [{"sent": 1}] * 2


def test_a_payload_keeps_its_digits_and_its_order_of_keys() -> None:
    text = b'{"z":12345678901234567890.10,"a":1e400}'
    d = Driver()
    d.subscribe(1)
    started = d.step(c.StartTask(type="t", input=c.Payload(text)))
    assert bytes(d.task().input or b"") == text
    d.step(c.CompleteActivity(token=d.task().task_token, result=c.Payload(text)))
    assert bytes(d.execution(started).result or b"") == text


def test_a_task_without_a_payload_has_none_and_may_end_with_none() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.step(c.StartTask(type="t"))
    assert d.task().input is None
    d.step(c.CompleteActivity(token=d.task().task_token, result=None))
    assert d.execution(started).result is None
    assert d.status(started) is Status.COMPLETED


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (c.StartTask(type=""), "task type required"),
        (c.StartTask(type="a\nb"), "control"),
        (c.StartTask(type="x" * 1_001), "1001 characters"),
        (c.StartTask(type="t", task_queue=""), "task queue required"),
        (c.StartTask(type="t", workflow_id="\0"), "control"),
        (c.StartTask(type="t", request_id="\x7f"), "request id"),
        (c.StartTask(type="t", request_id="r" * 1_001), "request id"),
        (c.StartTask(type="t", timeouts=c.ActivityTimeouts(start_to_close_ms=-1)), "start_to_close_ms is -1"),
        (
            c.StartTask(type="t", timeouts=c.ActivityTimeouts(heartbeat_ms=10**18)),
            "heartbeat_ms is 1000000000000000000",
        ),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_a_task_that_makes_no_sense_is_refused_with_the_value(command: c.StartTask, text: str) -> None:
    d = Driver()
    assert text in d.refused(command, Invalid)


def test_a_name_of_the_greatest_length_is_allowed() -> None:
    d = Driver(limits=Limits(id_chars_max=30))
    d.submit("x" * 30, workflow_id="w" * 30)
    d.refused(c.StartTask(type="x" * 31), Invalid)


def test_an_id_of_an_open_execution_is_taken_and_free_again_when_it_closed() -> None:
    d = Driver()
    d.subscribe(1)
    first = d.submit(workflow_id="nightly")
    text = d.refused(c.StartTask(type="email", workflow_id="nightly"), Conflict)
    assert first.run_id in text
    d.complete(d.task())
    second = d.submit(workflow_id="nightly")
    assert second.run_id != first.run_id
    assert d.views.execution("nightly").run_id == second.run_id
    assert d.views.execution("nightly", first.run_id).status is Status.COMPLETED


# --- request ids ---------------------------------------------------------------------------------------


def test_a_repeated_request_starts_nothing_also_after_the_end() -> None:
    d = Driver()
    d.subscribe(1)
    first = d.submit(request_id="r1")
    again = d.submit(request_id="r1")
    assert (again.run_id, again.workflow_id, again.is_new) == (first.run_id, first.workflow_id, False)
    d.complete(d.task())
    assert d.submit(request_id="r1").run_id == first.run_id
    assert len(d.tasks()) == 1


def test_request_ids_of_other_types_and_kinds_are_other_requests() -> None:
    d = Driver()
    runs = {
        d.submit("email", request_id="r1").run_id,
        d.submit("audit", request_id="r1").run_id,
        d.start("Order", workflow_id="email", request_id="r1").run_id,
        d.start("email", request_id="r1").run_id,
    }
    assert len(runs) == 4


def test_without_a_request_id_nothing_is_a_repeat() -> None:
    d = Driver()
    assert d.submit().run_id != d.submit().run_id


# --- retries -------------------------------------------------------------------------------------------


def test_retries_wait_one_two_four_seconds_up_to_the_maximum() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit(retry=RetryPolicy(initial_interval_ms=1_000, maximum_interval_ms=5_000, maximum_attempts=6))
    waits = []
    for attempt in range(1, 6):
        assert d.task().attempt == attempt
        d.fail(d.task())
        failed_ms = d.now_ms
        due_ms = d.engine.next_deadline_ms()
        assert due_ms is not None
        d.advance(due_ms - d.now_ms - 1)
        assert len(d.tasks()) == attempt, "a retry came a millisecond early"
        d.advance(1)
        waits.append(d.now_ms - failed_ms)
    assert waits == [1_000, 2_000, 4_000, 5_000, 5_000]
    told = [event.attributes.get("retryInMs") for event in d.events(started)]
    assert [wait for wait in told if wait is not None] == waits
    d.complete(d.task())
    assert d.status(started) is Status.COMPLETED


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        (RetryPolicy(initial_interval_ms=0), (1_000, 2.0, 100_000)),
        (RetryPolicy(initial_interval_ms=-5, backoff_coefficient=0.5), (1_000, 2.0, 100_000)),
        (RetryPolicy(initial_interval_ms=50, backoff_coefficient=float("nan")), (50, 2.0, 5_000)),
        (RetryPolicy(initial_interval_ms=50, maximum_interval_ms=60), (50, 2.0, 60)),
        (RetryPolicy(initial_interval_ms=10**15), (31_536_000_000, 2.0, 31_536_000_000)),
    ],
)
def test_a_retry_policy_without_sense_is_read_as_go_normalizes_it(
    given: RetryPolicy, normal: tuple[int, float, int]
) -> None:
    policy = given.normalized()
    assert (policy.initial_interval_ms, policy.backoff_coefficient, policy.maximum_interval_ms) == normal


@pytest.mark.parametrize("coefficient", [1e308, float("inf"), 2.0])
def test_a_backoff_never_overflows(coefficient: float) -> None:
    policy = RetryPolicy(initial_interval_ms=1_000, backoff_coefficient=coefficient, maximum_interval_ms=7_000)
    assert [policy.normalized().interval_ms(failures) for failures in (1, 5_000)] == [1_000, 7_000]


def test_the_last_attempt_makes_a_dead_letter_with_its_failure() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit(retry=FEW)
    for _ in range(3):
        d.fail(d.task(), failure("disk full", "DiskError"))
        d.advance(10_000)
    assert len(d.tasks()) == 3
    assert d.status(started) is Status.FAILED
    assert (d.failure(started)["message"], d.failure(started)["code"]) == ("disk full", "DiskError")
    assert [letter.run_id for letter in d.views.dead_letters()[0]] == [started.run_id]
    assert d.history(started)[-4:] == ["ACTIVITY_RETRYING", "ACTIVITY_STARTED", "ACTIVITY_FAILED", "FAILED"]


def test_a_failure_that_says_so_is_not_retried() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit(retry=FEW)
    d.fail(d.task(), failure(non_retryable=True))
    assert d.status(started) is Status.FAILED
    assert d.views.execution(started.workflow_id).is_dead_letter


def test_a_type_that_the_policy_names_is_not_retried_and_others_are() -> None:
    d = Driver()
    d.subscribe(1)
    policy = RetryPolicy(maximum_attempts=5, non_retryable_error_types=("Payment", "Fraud"))
    other = d.submit(retry=policy)
    d.fail(d.task(), failure(code="Network"))
    assert d.status(other) is Status.RUNNING
    named = d.submit(retry=policy)
    d.fail(d.task(), failure(code="Fraud"))
    assert d.status(named) is Status.FAILED


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b'{"v":2,"p":{"message":"x","code":"y"}}',
        b'{"v":1,"p":{"message":7}}',
        b"[" * 100_000,
        b'{"v":1,"p":{"message":"x","code":"y"}}trailing',
    ],
    ids=["empty", "binary", "null", "version", "types", "deep", "trailing"],
)
def test_a_failure_that_cannot_be_read_ends_the_task_and_is_kept_readable(garbage: bytes) -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit(retry=FEW)
    d.wait(started)
    d.fail(d.task(), garbage)
    assert d.status(started) is Status.FAILED
    assert d.failure(started)["code"] == "DecodeError"
    (told,) = d.told("waiter")
    assert isinstance(told, Closed)
    msgspec.json.decode(msgspec.json.encode(told.failure))


def test_broken_letters_inside_a_failure_are_replaced_not_passed_on() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit(retry=FEW)
    d.fail(d.task(), b'{"v":1,"p":{"message":"no","code":"Boom","nonRetryable":true,"details":["\xff"],"x":"\xc3"}}')
    assert d.failure(started)["message"] == "no"
    assert d.failure(started)["details"] == ["\ufffd"]


def test_a_failure_that_can_be_read_is_kept_byte_for_byte() -> None:
    data = b'{ "p": {"message": "no", "code": "Boom", "nonRetryable": true, "extra": 1.50}, "v": 1 }'
    d = Driver()
    d.subscribe(1)
    started = d.submit()
    d.fail(d.task(), data)
    assert bytes(d.execution(started).failure or b"") == data


def test_an_enormous_failure_is_cut_to_its_message() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit(retry=FEW)
    stack = "x" * 1_000_000
    d.fail(d.task(), msgspec.json.encode({"v": 1, "p": {"message": "no", "code": "Boom", "stack": stack}}))
    event = d.events(started)[-1]
    assert event.type is EventType.ACTIVITY_RETRYING
    kept = event.attributes["failure"]
    assert len(kept) < 1_000
    assert b'"no"' in bytes(kept)


def test_a_full_history_makes_a_failed_attempt_the_last_one() -> None:
    d = Driver(limits=Limits(history_events_max=30))
    d.subscribe(1)
    started = d.submit(retry=ENDLESS)
    for _ in range(30):
        if d.status(started).is_open:
            d.fail(d.task())
            d.advance(1)
    assert d.status(started) is Status.FAILED
    assert len(d.events(started)) <= 33


def test_handing_back_for_ever_ends_in_a_dead_letter_not_in_endless_history() -> None:
    d = Driver(limits=Limits(history_events_max=30))
    d.subscribe(1)
    started = d.submit(retry=ENDLESS)
    for _ in range(30):
        if d.status(started).is_open:
            d.hand_back(d.task())
    assert d.failure(started)["code"] == "HistoryFull"
    assert d.execution(started).is_dead_letter


def test_losing_workers_for_ever_ends_in_a_dead_letter_not_in_endless_history() -> None:
    d = Driver(limits=Limits(history_events_max=30))
    started = d.submit(retry=ENDLESS)
    for peer in range(1, 31):
        if d.status(started).is_open:
            d.subscribe(peer)
            d.lose(peer)
    assert d.failure(started)["code"] == "WorkerLost"


# --- dead letters --------------------------------------------------------------------------------------


def test_dead_letters_are_listed_oldest_first_and_run_again_as_new_runs() -> None:
    d = Driver()
    d.subscribe(1)
    letters = []
    for number in range(3):
        letters.append(d.submit(input=number, retry=FEW))
        d.fail(d.task(), failure(non_retryable=True))
        d.now_ms += 1
    assert [run.run_id for run in d.views.dead_letters()[0]] == [letter.run_id for letter in letters]
    assert len(d.views.dead_letters(limit=2)[0]) == 2
    again = d.step(c.RequeueDeadLetter(workflow_id=letters[1].workflow_id, identity="operator"))
    assert again.workflow_id == letters[1].workflow_id
    assert again.run_id != letters[1].run_id
    assert d.events(again)[0].attributes["identity"] == "operator"
    assert "identity" not in d.events(letters[1])[0].attributes
    assert (value(d.task().input), d.task().attempt) == (1, 1)
    assert [run.run_id for run in d.views.dead_letters()[0]] == [letters[0].run_id, letters[2].run_id]
    d.complete(d.task())
    assert d.status(again) is Status.COMPLETED
    assert d.status(letters[1]) is Status.FAILED


def test_only_dead_letters_can_be_run_again_and_only_once_at_a_time() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit()
    assert "RUNNING" in d.refused(c.RequeueDeadLetter(workflow_id=started.workflow_id), Conflict)
    d.fail(d.task(), failure(non_retryable=True))
    requeue = c.RequeueDeadLetter(workflow_id=started.workflow_id, run_id=started.run_id)
    d.step(requeue)
    d.refused(requeue, Conflict)


def test_a_dead_letter_waits_while_its_id_is_in_use() -> None:
    d = Driver()
    d.subscribe(1)
    started = d.submit(workflow_id="one")
    d.fail(d.task(), failure(non_retryable=True))
    d.submit(workflow_id="one")
    requeue = c.RequeueDeadLetter(workflow_id="one", run_id=started.run_id)
    d.refused(requeue, Conflict)
    d.complete(d.task())
    d.step(requeue)


def test_successes_do_not_push_dead_letters_out() -> None:
    d = Driver(limits=Limits(closed_executions_max=3, dead_letters_max=2))
    d.subscribe(1)
    letter = d.submit()
    d.fail(d.task(), failure(non_retryable=True))
    for _ in range(10):
        d.submit()
        d.complete(d.task())
    assert [run.run_id for run in d.views.dead_letters()[0]] == [letter.run_id]
    assert d.views.counts()["closed_executions"] == 3


# --- bounds --------------------------------------------------------------------------------------------


def test_open_executions_are_bounded() -> None:
    d = Driver(limits=Limits(open_executions_max=2))
    d.subscribe(1)
    d.submit()
    d.submit()
    assert "2 open executions" in d.refused(c.StartTask(type="t"), LimitReached)
    d.complete(d.tasks()[0])
    d.submit()


def test_the_oldest_closed_executions_are_forgotten_with_all_their_traces() -> None:
    d = Driver(limits=Limits(closed_executions_max=2, dead_letters_max=1))
    d.subscribe(1)
    runs = []
    for number in range(4):
        runs.append(d.submit(request_id=f"r{number}"))
        d.complete(d.task())
    for number in range(4, 6):
        runs.append(d.submit(request_id=f"r{number}"))
        d.fail(d.task(), failure(non_retryable=True))
    known = [number for number in range(6) if _is_known(d, runs[number])]
    assert known == [2, 3, 5]
    assert d.submit(request_id="r0").is_new, "a request is remembered as long as what it started"
    assert not d.submit(request_id="r3").is_new


def _is_known(d: Driver, started: c.Started) -> bool:
    try:
        d.views.execution(started.workflow_id)
    except NotFound:
        return False
    return True


def test_runs_of_one_id_are_forgotten_one_by_one() -> None:
    d = Driver(limits=Limits(closed_executions_max=2))
    d.subscribe(1)
    runs = []
    for _ in range(4):
        runs.append(d.submit(workflow_id="same").run_id)
        d.complete(d.task())
    assert d.views.execution("same").run_id == runs[3]
    assert d.views.execution("same", runs[2]).run_id == runs[2]
    with pytest.raises(NotFound):
        d.views.execution("same", runs[1])


def test_a_memory_of_one_is_possible() -> None:
    d = Driver(limits=Limits(closed_executions_max=1, dead_letters_max=1))
    d.subscribe(1)
    first = d.submit(request_id="r")
    d.complete(d.task())
    d.submit()
    d.complete(d.task())
    assert d.submit(request_id="r").run_id != first.run_id, "what is forgotten answers nothing"
    d.fail(d.task(), failure(non_retryable=True))
    d.submit()
    d.fail(d.task(), failure(non_retryable=True))
    assert d.views.counts()["closed_executions"] == d.views.counts()["dead_letters"] == 1
