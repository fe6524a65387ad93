"""Questions to workflows: asked of the right worker, answered once, by nobody else, and bounded in time."""

from __future__ import annotations

import pytest
from tests.helpers.engine_driver import Driver, payload, value, with_a_holder

from zapserver.engine import Limits
from zapserver.engine import commands as c
from zapserver.engine.effects import Answered
from zapserver.engine.errors import EngineError, Invalid, LimitReached, NotFound, NoWorker, QueryFailed, QueryTimeout


def _answer(d: Driver, waiter: str = "asker") -> Answered:
    (told,) = d.told(waiter)
    assert isinstance(told, Answered)
    return told


def _error(d: Driver, waiter: str = "asker") -> EngineError:
    error = _answer(d, waiter).error
    assert error is not None
    return error


def test_the_holder_is_asked_and_its_answer_reaches_the_asker() -> None:
    d, started = with_a_holder(1)
    d.subscribe_workflows(2)
    assert d.ask(started) is None
    (question,) = d.questions()
    assert (question.peer, question.query_type, question.run_id) == (1, "progress", started.run_id)
    d.step(c.AnswerQuery(peer=1, token=question.token, result=payload({"answer": 42})))
    assert value(_answer(d).result) == {"answer": 42}
    assert _answer(d).error is None
    d.refused(c.AnswerQuery(peer=1, token=question.token, result=payload(43)), NotFound)


def test_a_closed_workflow_is_asked_of_any_worker_that_knows_its_type() -> None:
    d, started = with_a_holder(1)
    d.finish(d.run())
    d.lose(1)
    d.subscribe_workflows(2, types=["Other"])
    d.subscribe_workflows(3)
    d.ask(started)
    assert d.questions()[0].peer == 3


def test_with_nobody_to_ask_the_refusal_says_so() -> None:
    d = Driver()
    started = d.start()
    query = c.QueryExecution(workflow_id=started.workflow_id, query_type="progress", waiter="w")
    assert d.refused(query, NoWorker) == "no workers subscribed to task queue"
    d.refused(c.QueryExecution(workflow_id="ghost", query_type="progress", waiter="w"), NotFound)
    d.refused(c.QueryExecution(workflow_id=started.workflow_id, query_type="", waiter="w"), Invalid)


def test_a_one_shot_task_answers_nothing_but_the_built_in_queries() -> None:
    d = Driver()
    d.subscribe_workflows(1)
    task = d.submit()
    d.refused(c.QueryExecution(workflow_id=task.workflow_id, query_type="progress", waiter="w"), NoWorker)
    assert value(d.ask(task, type="__stack_trace")) == {"stack": ""}


def test_the_built_in_queries_are_answered_at_once() -> None:
    d = Driver()
    started = d.start("Order")
    assert value(d.ask(started, type="__workflow_metadata")) == {
        "workflowType": "Order",
        "status": "WORKFLOW_EXECUTION_STATUS_RUNNING",
        "historyLen": 1,
    }
    assert value(d.ask(started, type="__stack_trace")) == {"stack": ""}
    d.subscribe_workflows(1)
    assert d.ask(started, type="__stack_trace") is None, "a worker knows its stack"
    assert d.questions(1)[0].query_type == "__stack_trace"


def test_a_workers_error_reaches_the_asker() -> None:
    d, started = with_a_holder()
    d.ask(started)
    d.step(c.AnswerQuery(peer=1, token=d.questions()[0].token, error="no such query"))
    assert isinstance(_error(d), QueryFailed)
    assert str(_error(d)) == "query failed: no such query"


def test_another_peer_cannot_answer() -> None:
    d, started = with_a_holder(1)
    d.ask(started)
    d.refused(c.AnswerQuery(peer=2, token=d.questions()[0].token, result=payload("forged")), NotFound)
    d.refused(c.AnswerQuery(peer=1, token="guess", result=payload("forged")), NotFound)
    assert d.told("asker") == []


def test_a_silent_worker_runs_into_the_time_limit_to_the_millisecond() -> None:
    d, started = with_a_holder()
    d.ask(started)
    d.advance(4_999)
    assert d.told("asker") == []
    d.advance(1)
    assert isinstance(_error(d), QueryTimeout)
    d.refused(c.AnswerQuery(peer=1, token=d.questions()[0].token, result=payload(1)), NotFound)


@pytest.mark.parametrize(("asked_ms", "given_ms"), [(10**12, 60_000), (-5, 0)])
def test_the_time_limit_has_a_limit(asked_ms: int, given_ms: int) -> None:
    d, started = with_a_holder()
    query = c.QueryExecution(workflow_id=started.workflow_id, query_type="q", waiter="asker", timeout_ms=asked_ms)
    d.step(query)
    assert d.engine.next_deadline_ms() == d.now_ms + given_ms
    d.advance(given_ms)
    assert isinstance(_error(d), QueryTimeout)


def test_a_worker_that_is_lost_ends_its_queries_at_once() -> None:
    d, started = with_a_holder()
    d.ask(started)
    d.lose(1)
    assert isinstance(_error(d), NoWorker)
    assert d.engine.next_deadline_ms() is None


def test_who_gave_up_is_not_told() -> None:
    d, started = with_a_holder()
    d.ask(started, "gave up")
    d.ask(started, "stays")
    d.step(c.AbandonWait(waiter="gave up", peer=9))
    for question in d.questions():
        command = c.AnswerQuery(peer=1, token=question.token, result=payload(1))
        if question is d.questions()[0]:
            d.refused(command, NotFound)
        else:
            d.step(command)
    assert [len(d.told(waiter)) for waiter in ("gave up", "stays")] == [0, 1]


def test_queries_that_wait_are_bounded_and_the_newest_is_refused() -> None:
    d = Driver(limits=Limits(pending_queries_max=2))
    d.subscribe_workflows(1)
    started = d.start()
    d.ask(started, "a")
    d.ask(started, "b")
    d.refused(c.QueryExecution(workflow_id=started.workflow_id, query_type="q", waiter="c"), LimitReached)
    d.step(c.AnswerQuery(peer=1, token=d.questions()[0].token, result=payload(1)))
    d.ask(started, "c")
    assert [len(d.told(waiter)) for waiter in "abc"] == [1, 0, 0]
