"""Queries: asked by a client, answered by the worker, and never waited for without end."""

from __future__ import annotations

import base64
from typing import Any

from zapconform import opcodes as op
from zapconform import wire
from zapconform.case import SHOULD, case, check, equal
from zapconform.peer import Json, Peer, Push
from zapconform.trial import Execution, Trial, about

QUERY_SECONDS = 5.0
"""The server waits so long for a worker's answer."""


def ask(trial: Trial, peer: Peer, execution: Execution, query: str = "state", **fields: Any) -> int:
    body = {"namespace": trial.namespace, **execution.key, "query_type": query, **fields}
    return peer.send_call(op.QUERY, body)


def asked(trial: Trial, **fields: Any) -> tuple[Peer, Peer, int, Push]:
    """A query that has reached its worker: client, worker, request id and the push."""
    client, worker = trial.peer("client"), trial.peer("worker")
    execution, _ = trial.held_workflow(worker, trial.name("queue"))
    request_id = ask(trial, client, execution, **fields)
    push = worker.push(op.DELIVER_QUERY)
    check(about(execution)(push.body), expected=f"the ids of {execution}", actual=push.body)
    return client, worker, request_id, push


def base64_json(field: object) -> object:
    return wire.parse_json(base64.b64decode(field)) if isinstance(field, str) else field


@case(
    "workflow/query", "A query reaches the worker as 0xB4; its 0xC4 is the answer, as query_result and base64 result."
)
def query(trial: Trial) -> None:
    client, worker, request_id, push = asked(trial, args=[1])
    equal("query_type", expected="state", actual=push.body.get("query_type"))
    result = base64.b64encode(b'{"answer":42}').decode()
    equal(
        "ok", expected=True, actual=worker.call(op.ANSWER_QUERY, {"token": push.token, "result": result}).ok().get("ok")
    )
    answer = client.reply(request_id).ok()
    equal("query_result", expected={"answer": 42}, actual=answer.get("query_result"))
    equal("result", expected={"answer": 42}, actual=base64_json(answer.get("result")))


@case("workflow/query-result-as-json", "0xC4's result may be plain JSON instead of base64.")
def query_result_as_json(trial: Trial) -> None:
    client, worker, request_id, push = asked(trial)
    worker.call(op.ANSWER_QUERY, {"token": push.token, "result": {"answer": [1, None]}}).succeeded()
    equal("query_result", expected={"answer": [1, None]}, actual=client.reply(request_id).ok().get("query_result"))


@case("workflow/query-args", "A query's arguments arrive as base64 JSON, whether sent under args or query_args.")
def query_args(trial: Trial) -> None:
    for name in ("args", "query_args"):
        _, _, _, push = asked(trial, **{name: [1, "two", {"n": 2**60}]})
        equal(f"args sent as {name}", expected=[1, "two", {"n": 2**60}], actual=base64_json(push.body.get("args")))


@case("workflow/query-error", "A worker's error answers the query with an error that carries its text.")
def query_error(trial: Trial) -> None:
    client, worker, request_id, push = asked(trial)
    worker.call(op.ANSWER_QUERY, {"token": push.token, "error": "no such query"}).succeeded()
    reply = client.reply(request_id).refused()
    check("no such query" in reply.envelope.error, expected="the worker's text in the error", actual=reply)


@case("workflow/query-token-used-up", "A query is answered once; a second 0xC4 is refused.")
def query_token_used_up(trial: Trial) -> None:
    client, worker, request_id, push = asked(trial)
    worker.call(op.ANSWER_QUERY, {"token": push.token, "result": "MQ=="}).succeeded()
    worker.call(op.ANSWER_QUERY, {"token": push.token, "result": "Mg=="}).refused(404)
    equal("query_result", expected=1, actual=client.reply(request_id).ok().get("query_result"))


@case("workflow/query-answer-of-a-stranger", "A peer that was not asked cannot answer a query.", severity=SHOULD)
def query_answer_of_a_stranger(trial: Trial) -> None:
    client, worker, request_id, push = asked(trial)
    trial.peer("stranger").call(op.ANSWER_QUERY, {"token": push.token, "result": "Mg=="}).refused()
    worker.call(op.ANSWER_QUERY, {"token": push.token, "result": "MQ=="}).succeeded()
    equal("query_result", expected=1, actual=client.reply(request_id).ok().get("query_result"))


@case(
    "workflow/query-on-one-connection", "A client and its worker may share a connection: its query is answered on it."
)
def query_on_one_connection(trial: Trial) -> None:
    peer = trial.peer()
    execution, _ = trial.held_workflow(peer, trial.name("queue"))
    request_id = ask(trial, peer, execution)
    push = peer.push(op.DELIVER_QUERY)
    peer.call(op.ANSWER_QUERY, {"token": push.token, "result": "MQ=="}).succeeded()
    equal("query_result", expected=1, actual=peer.reply(request_id).ok().get("query_result"))


@case("workflow/query-without-worker", "A query of a workflow that no worker serves is an error at once.")
def query_without_worker(trial: Trial) -> None:
    peer = trial.peer()
    execution = trial.start(peer, trial.name("queue"))
    peer.reply(ask(trial, peer, execution)).refused(404, 503)


@case(
    "workflow/query-of-a-lost-worker",
    "A query whose worker is lost is an error, without the wait of a silent one.",
    severity=SHOULD,
)
def query_of_a_lost_worker(trial: Trial) -> None:
    client, worker, request_id, _ = asked(trial)
    worker.close()
    client.reply(request_id, QUERY_SECONDS / 2).refused()


@case(
    "workflow/query-of-a-silent-worker",
    "A query whose worker says nothing is an error after five seconds.",
    seconds=QUERY_SECONDS,
)
def query_of_a_silent_worker(trial: Trial) -> None:
    client, _, request_id, _ = asked(trial)
    client.reply(request_id, QUERY_SECONDS * 2).refused()


@case(
    "workflow/query-metadata", "`__workflow_metadata` is answered by the server: workflowType, status and historyLen."
)
def query_metadata(trial: Trial) -> None:
    peer = trial.peer()
    execution = trial.start(peer, trial.name("queue"))
    answer: Json = peer.reply(ask(trial, peer, execution, "__workflow_metadata")).ok()
    result = answer.get("query_result")
    check(isinstance(result, dict), expected="an object under query_result", actual=answer)
    assert isinstance(result, dict)
    equal("workflowType", expected="Conform", actual=result.get("workflowType"))
    equal("historyLen", expected=1, actual=result.get("historyLen"))
    check("status" in result, expected="a status", actual=result)


@case("workflow/query-stack-trace", "`__stack_trace` is answered by the server, with a worker or without.")
def query_stack_trace(trial: Trial) -> None:
    peer = trial.peer()
    execution = trial.start(peer, trial.name("queue"))
    answer = peer.reply(ask(trial, peer, execution, "__stack_trace")).ok()
    check(isinstance(answer.get("query_result"), dict), expected="an object under query_result", actual=answer)


@case("workflow/query-changes-nothing", "A query adds no event to the history.")
def query_changes_nothing(trial: Trial) -> None:
    client, worker, request_id, push = asked(trial)
    worker.call(op.ANSWER_QUERY, {"token": push.token, "result": "MQ=="}).succeeded()
    client.reply(request_id).ok()
    info = trial.describe(client, push.body["workflow_id"])
    equal("history_length", expected=1, actual=info.get("history_length"))
