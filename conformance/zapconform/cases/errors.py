"""What is wrong with a request gets a clear error in the right place, and costs nobody else anything."""

from __future__ import annotations

from typing import Any

from zapconform import opcodes as op
from zapconform import wire
from zapconform.case import SHOULD, Failed, case, check
from zapconform.peer import Json, Reply
from zapconform.trial import Trial, about

UNREADABLE: tuple[bytes, ...] = (
    b"{",
    b"nope",
    b'{"workflow_id":}',
    b"{'workflow_id':'x'}",
    b'{"workflow_id":"x"} trailing',
    b'{"workflow_id":"\xff\xfe"}',
    b'{"workflow_id":"x",}',
    b"\x00",
    b"\xef\xbb\xbf{",
)
"""Bodies that no JSON reader takes."""

NOT_OBJECTS: tuple[bytes, ...] = (b"[]", b"[1,2]", b'"text"', b"12", b"true")

READS_NO_BODY = frozenset({op.HEALTH, op.LIST_NAMESPACES, op.UNSUBSCRIBE})
"""Calls that can do without a body: they may ignore one that cannot be read."""


def register_body_cases() -> None:
    """A case for every call whose body is a JSON object."""
    for opcode in sorted(op.JSON_CALLS - READS_NO_BODY):
        name = op.NAMES[opcode]

        def unreadable(trial: Trial, opcode: int = opcode) -> None:
            refuses_each(trial, opcode, UNREADABLE)

        def not_an_object(trial: Trial, opcode: int = opcode) -> None:
            refuses_each(trial, opcode, NOT_OBJECTS)

        number = f"0x{opcode:02X}"
        case(f"errors/unreadable-body-{name}", f"A call {number} whose body is not JSON is refused with 400.")(
            unreadable
        )
        case(f"errors/body-not-an-object-{name}", f"A call {number} whose JSON is no object is refused with 400.")(
            not_an_object
        )


def refuses_each(trial: Trial, opcode: int, bodies: tuple[bytes, ...]) -> None:
    peer = trial.peer()
    ids = [(body, peer.send_call(opcode, body)) for body in bodies]
    wrong = []
    for body, request_id in ids:
        reply = peer.reply(request_id)
        if reply.status != 400:
            wrong.append(f"{body!r}: {reply}")
    check(not wrong, expected=f"status 400 for {op.name_of(opcode)} with each of these bodies", actual="; ".join(wrong))
    peer.settle()


register_body_cases()


@case(
    "errors/health-ignores-or-refuses-bad-body",
    "Health with an unreadable body is answered: 200 or 400, never silence.",
)
def health_bad_body(trial: Trial) -> None:
    peer = trial.peer()
    for opcode in sorted(READS_NO_BODY):
        for body in UNREADABLE + NOT_OBJECTS:
            reply = peer.call(opcode, body)
            check(reply.status in (0, 200, 400), expected="status 200 or 400", actual=str(reply))


@case("errors/empty-body", "A call without a body is one with an empty object: what needs a field says which.")
def empty_body(trial: Trial) -> None:
    peer = trial.peer()
    peer.call(op.HEALTH, b"").succeeded()
    for opcode in (op.DESCRIBE, op.SIGNAL, op.START, op.SUBSCRIBE_ACTIVITIES, op.ANSWER_QUERY):
        peer.call(opcode, b"").refused(400, 404)


@case("errors/error-reply-layout", "An error reply has its status at 8 and a UTF-8 text at 12 that says something.")
def error_reply_layout(trial: Trial) -> None:
    reply = trial.peer().call(op.DESCRIBE, {"namespace": trial.namespace, "workflow_id": trial.name("none")})
    reply.refused(404)
    check(len(reply.envelope.error) > 3, expected="an error text", actual=reply)
    check(reply.envelope.body in (b"", b"null"), expected="no body, or `null`", actual=reply.envelope.body)


@case("errors/unknown-fields-ignored", "Unknown fields of a request are ignored, whatever they hold.")
def unknown_fields_ignored(trial: Trial) -> None:
    extra: Json = {"x_unknown": {"deep": [1, 2, {"a": None}]}, "X-Other": 1e3, "": [], "WORKFLOW_ID": 5}
    peer = trial.peer()
    execution = trial.start(peer, trial.name("queue"), **extra)
    peer.call(op.DESCRIBE, {"namespace": trial.namespace, **execution.key, **extra}).ok()


@case(
    "errors/camel-case-accepted",
    "Where Go's server reads workflowId, runId, taskQueue and signalName, so does every server.",
)
def camel_case_accepted(trial: Trial) -> None:
    peer = trial.peer()
    workflow_id, queue = trial.name("wf"), trial.name("queue")
    trial.terminate_later({"workflow_id": workflow_id})
    body = {
        "namespace": trial.namespace,
        "workflowId": workflow_id,
        "workflowType": {"name": "W"},
        "taskQueue": {"name": queue},
    }
    started = peer.call(op.START, body).ok()
    check(started.get("workflow_id") == workflow_id, expected=f"workflow_id {workflow_id}", actual=started)
    info = trial.describe(peer, workflow_id)
    check(
        info.get("workflow_type") == "W" and info.get("task_queue") == queue,
        expected=f"type W on queue {queue}",
        actual=info,
    )
    signal = {"namespace": trial.namespace, "workflowId": workflow_id, "runId": started["run_id"], "signalName": "s"}
    peer.call(op.SIGNAL, signal).ok()


WRONG_TYPES: tuple[tuple[str, int, Json], ...] = (
    ("start", op.START, {"workflow_type": 5}),
    ("start", op.START, {"workflow_type": "W", "workflow_id": ["x"]}),
    ("start", op.START, {"workflow_type": "W", "timeouts": "soon"}),
    ("start", op.START, {"workflow_type": "W", "retry_policy": 7}),
    ("start", op.START, {"workflow_type": "W", "retry_policy": {"maximum_attempts": "many"}}),
    ("describe", op.DESCRIBE, {"workflow_id": 12}),
    ("describe", op.DESCRIBE, {"workflow_id": "w", "namespace": {}}),
    ("signal", op.SIGNAL, {"workflow_id": "w", "signal_name": {"a": 1}}),
    ("history", op.HISTORY, {"workflow_id": "w", "page_size": "ten"}),
    ("history", op.HISTORY, {"workflow_id": "w", "after_event_id": "1"}),
    ("history", op.HISTORY, {"workflow_id": "w", "reverse": "yes"}),
    ("list", op.LIST, {"page_size": []}),
    ("list", op.LIST, {"query": 5}),
    ("reset", op.RESET, {"workflow_id": "w", "event_id": "first"}),
    ("activity", op.SCHEDULE_ACTIVITY, {"activity_type": "A", "workflow_id": "w", "start_to_close_ms": "1s"}),
    ("activity", op.SCHEDULE_ACTIVITY, {"activity_type": 1, "workflow_id": "w"}),
    ("schedule", op.CREATE_SCHEDULE, {"schedule_id": "s", "schedule": "daily"}),
    ("schedule", op.CREATE_SCHEDULE, {"schedule_id": "s", "schedule": {"spec": {"cron": "0 3 * * *"}, "action": []}}),
    ("schedule", op.CREATE_SCHEDULE, {"schedule_id": "s", "schedule": {"spec": {"cron": [1]}, "action": {}}}),
    ("schedule", op.CREATE_SCHEDULE, {"schedule_id": "s", "schedule": {"spec": {"interval_ms": "1s"}, "action": {}}}),
    ("pause", op.PAUSE_SCHEDULE, {"schedule_id": "s", "paused": "no"}),
    ("namespace", op.REGISTER_NAMESPACE, {"name": 1}),
    ("subscribe", op.SUBSCRIBE_ACTIVITIES, {"task_queue": 1}),
    ("subscribe", op.SUBSCRIBE_WORKFLOWS, {"task_queue": ["a"]}),
    ("answer", op.ANSWER_QUERY, {"token": 5}),
)


@case("errors/wrong-types", "A field of the wrong JSON type is refused with 400, and nothing is started.")
def wrong_types(trial: Trial) -> None:
    peer = trial.peer()
    wrong = []
    for what, opcode, fields in WRONG_TYPES:
        reply = peer.call(opcode, fields)
        if reply.status != 400:
            wrong.append(f"{what} {fields!r}: {reply}")
    check(not wrong, expected="status 400 for each", actual="; ".join(wrong))


@case(
    "errors/numbers-out-of-range",
    "Numbers that are negative, huge or fractional where a count is meant are answered.",
    hostile=True,
)
def numbers_out_of_range(trial: Trial) -> None:
    peer = trial.peer()
    execution = trial.start(peer, trial.name("queue"))
    numbers = (b"-1", b"1e400", b"9223372036854775808", b"1.5", b"-9223372036854775809", b"1" * 400)
    head = wire.compact({"namespace": trial.namespace, **execution.key})[:-1]
    for opcode, field in (
        (op.HISTORY, b"page_size"),
        (op.HISTORY, b"after_event_id"),
        (op.LIST, b"page_size"),
        (op.RESET, b"event_id"),
        (op.SCHEDULE_ACTIVITY, b"start_to_close_ms"),
    ):
        for number in numbers:
            peer.call(opcode, head + b',"activity_type":"A","' + field + b'":' + number + b"}")
    peer.settle()


@case("errors/deep-nesting", "A body nested a hundred thousand deep is refused with 400.", hostile=True)
def deep_nesting(trial: Trial) -> None:
    peer = trial.peer()
    depth = 100_000
    for body in (b"[" * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth, b'{"a":' * depth + b"1" + b"}" * depth):
        peer.call(op.DESCRIBE, body).refused(400)
    peer.settle()


@case(
    "errors/deeply-nested-input",
    "An input nested a hundred thousand deep is refused with 400 or carried as it is, and disturbs nobody.",
    hostile=True,
)
def deeply_nested_input(trial: Trial) -> None:
    peer = trial.peer()
    workflow_id = trial.name("wf")
    trial.terminate_later({"workflow_id": workflow_id})
    head = wire.compact({"namespace": trial.namespace, "workflow_id": workflow_id, "workflow_type": "W"})[:-1]
    reply = peer.call(op.START, head + b',"input":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    check(reply.status in (0, 200, 400), expected="status 200 or 400", actual=str(reply))
    peer.settle()


@case("errors/huge-unknown-field", "A body of nine megabytes in a field that nobody reads is answered.", hostile=True)
def huge_unknown_field(trial: Trial) -> None:
    peer = trial.peer()
    peer.call(op.DESCRIBE, {"workflow_id": trial.name("none"), "pad": "x" * 9_000_000}).refused()
    peer.settle()


@case("errors/unknown-workflow", "Calls about a workflow that does not exist are refused with 404 (Go: some with 400).")
def unknown_workflow(trial: Trial) -> None:
    peer = trial.peer()
    body = {"namespace": trial.namespace, "workflow_id": trial.name("none")}
    extra: dict[int, Json] = {
        op.SIGNAL: {"signal_name": "s"},
        op.QUERY: {"query_type": "q"},
        op.RESET: {"event_id": 1},
    }
    for opcode in (op.DESCRIBE, op.HISTORY, op.QUERY):
        peer.call(opcode, {**body, **extra.get(opcode, {})}).refused(404)
    for opcode in (op.SIGNAL, op.CANCEL, op.TERMINATE, op.RESET):
        peer.call(opcode, {**body, **extra.get(opcode, {})}).refused(404, 400)


@case("errors/unknown-run", "Calls about a run that does not exist are refused, also when the workflow id does.")
def unknown_run(trial: Trial) -> None:
    peer = trial.peer()
    execution = trial.start(peer, trial.name("queue"))
    body = {"namespace": trial.namespace, "workflow_id": execution.workflow_id, "run_id": "0" * 32}
    for opcode in (op.DESCRIBE, op.HISTORY):
        peer.call(opcode, body).refused(404)
    for opcode in (op.CANCEL, op.TERMINATE):
        peer.call(opcode, body).refused(404, 400)


REQUIRED: tuple[tuple[str, int, Json], ...] = (
    ("workflow_type", op.START, {"workflow_id": "w", "task_queue": "q"}),
    ("workflow_type", op.START, {"workflow_id": "w", "task_queue": "q", "workflow_type": ""}),
    ("signal_name", op.SIGNAL_WITH_START, {"workflow_id": "w", "workflow_type": "W", "task_queue": "q"}),
    ("activity_type", op.SCHEDULE_ACTIVITY, {"workflow_id": "w", "task_queue": "q"}),
    ("schedule_id", op.CREATE_SCHEDULE, {"schedule": {"spec": {"cron": ["@daily"]}, "action": {"workflow_type": "W"}}}),
    ("task_queue", op.SUBSCRIBE_WORKFLOWS, {"task_queue": ""}),
    ("task_queue", op.SUBSCRIBE_ACTIVITIES, {}),
    ("token", op.ANSWER_QUERY, {"result": "e30="}),
)


@case("errors/required-fields", "A request without a field that it needs is refused with 400.")
def required_fields(trial: Trial) -> None:
    peer = trial.peer()
    wrong = []
    for missing, opcode, fields in REQUIRED:
        reply = peer.call(opcode, {"namespace": trial.namespace, **fields})
        if reply.status != 400:
            wrong.append(f"{op.name_of(opcode)} without {missing}: {reply}")
    check(not wrong, expected="status 400 for each", actual="; ".join(wrong))


@case("errors/required-field-named", "The error for a missing field names the field.", severity=SHOULD)
def required_field_named(trial: Trial) -> None:
    peer = trial.peer()
    silent = []
    for missing, opcode, fields in REQUIRED:
        error = peer.call(opcode, {"namespace": trial.namespace, **fields}).refused().envelope.error
        if missing.replace("_", " ") not in error.replace("_", " "):
            silent.append(f"{op.name_of(opcode)}: {error!r} does not name {missing}")
    check(not silent, expected="the field's name in each error", actual="; ".join(silent))


@case("errors/signal-needs-a-name", "A signal or a query without a name is refused, on a workflow that exists.")
def signal_needs_a_name(trial: Trial) -> None:
    peer = trial.peer()
    execution = trial.start(peer, trial.name("queue"))
    for opcode, field in ((op.SIGNAL, "signal_name"), (op.QUERY, "query_type")):
        for extra in ({}, {field: ""}):
            peer.call(opcode, {"namespace": trial.namespace, **execution.key, **extra}).refused(400)


# --- tokens ----------------------------------------------------------------------------------------------


@case(
    "errors/unknown-token", "A worker's answer with a token that nobody gave out is refused with 404, in an ack frame."
)
def unknown_token(trial: Trial) -> None:
    peer = trial.peer()
    for opcode, payload in (
        (op.COMPLETE_WORKFLOW_TASK, b'{"v":1,"cmds":[]}'),
        (op.COMPLETE_ACTIVITY, b'"done"'),
        (op.FAIL_ACTIVITY, b'{"v":1,"p":{"message":"m","code":"c"}}'),
        (op.HEARTBEAT, b"[]"),
    ):
        for token in ("act|act-000000000000000000000000|" + "0" * 64, "wf|a|b|c|d", "nonsense", "µ"):
            peer.answer(opcode, token, payload).refused(404)


@case("errors/empty-token", "A worker's answer without a token is refused.")
def empty_token(trial: Trial) -> None:
    peer = trial.peer()
    for opcode in sorted(op.WORKER_ANSWERS):
        peer.answer(opcode, "", b"{}").refused(400, 404)


@case(
    "errors/hostile-tokens", "Tokens of a megabyte, of random bytes or of control characters are refused.", hostile=True
)
def hostile_tokens(trial: Trial) -> None:
    peer = trial.peer()
    for token in (b"x" * 1_000_000, trial.random.randbytes(97), b"\x00" * 40, b"act|" + b"|" * 500):
        message = wire.worker_answer(op.COMPLETE_ACTIVITY, token, b'"done"')
        peer.reply(peer.send_message(message, op.COMPLETE_ACTIVITY)).refused(400, 404)


@case(
    "errors/token-of-another-kind",
    "A workflow task's token completes no activity and the other way round; both stay valid.",
)
def token_of_another_kind(trial: Trial) -> None:
    worker = trial.peer()
    execution, task, activity = trial.held_activity(worker, trial.name("queue"))
    worker.answer(op.COMPLETE_ACTIVITY, task.token, b'"done"').refused()
    worker.answer(op.FAIL_ACTIVITY, task.token, b'{"v":1,"p":{"message":"m","code":"c"}}').refused()
    worker.answer(op.COMPLETE_WORKFLOW_TASK, activity.token, b'{"v":1,"cmds":[{"kind":0}]}').refused()
    worker.complete(activity).succeeded()
    worker.push(op.DELIVER_RESULT)
    worker.commands(task, [{"kind": 0}]).succeeded()
    trial.status_becomes(worker, execution.workflow_id, 2)


@case("errors/token-used-up", "A token is good for one answer: the second is refused and changes nothing.")
def token_used_up(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = trial.held_workflow(worker, trial.name("queue"))
    worker.commands(task, [{"kind": 0, "result": "MQ=="}]).succeeded()
    worker.commands(task, [{"kind": 1, "failure": "MQ=="}]).refused()
    info = trial.describe(worker, execution.workflow_id)
    check(info.get("status") == 2, expected="status 2, as first reported", actual=info)


@case("errors/unknown-query-token", "An answer to a query that nobody asked is refused with 404.")
def unknown_query_token(trial: Trial) -> None:
    trial.peer().call(op.ANSWER_QUERY, {"token": "nobody-asked", "result": "e30="}).refused(404)


@case("errors/unsubscribe-unknown", "Ending a subscription that does not exist is answered with ok.")
def unsubscribe_unknown(trial: Trial) -> None:
    answer = trial.peer().call(op.UNSUBSCRIBE, {"subscription_id": "0" * 24}).ok()
    check(answer.get("ok") is True, expected='{"ok":true}', actual=answer)


# --- workers that answer badly ------------------------------------------------------------------------


BAD_COMMANDS: tuple[bytes, ...] = (
    b"nope",
    b"[]",
    b'{"v":1,"cmds":"all"}',
    b'{"v":1,"cmds":[5]}',
    b'{"v":1,"cmds":[{"kind":"complete"}]}',
    b'{"v":1,"cmds":[{"kind":99}]}',
    b'{"v":1,"cmds":[{"kind":-1}]}',
    b'{"v":1,"cmds":[{"kind":0,"result":"***"}]}',
    b'{"v":1,"cmds":[{"kind":0,"result":5}]}',
)


@case("errors/bad-commands", "Commands that cannot be read are refused with 400, and the workflow task is not lost.")
def bad_commands(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = trial.held_workflow(worker, trial.name("queue"))
    wrong = []
    for payload in BAD_COMMANDS:
        reply = worker.answer(op.COMPLETE_WORKFLOW_TASK, task.token, payload)
        if reply.status != 400:
            wrong.append(f"{payload!r}: {reply}")
            task = redelivered(trial, worker, execution.workflow_id, task.token, reply)
    check(not wrong, expected="status 400 for each of these commands", actual="; ".join(wrong))
    worker.commands(task, [{"kind": 0, "result": "MQ=="}]).succeeded()
    trial.status_becomes(worker, execution.workflow_id, 2)


def redelivered(trial: Trial, worker: Any, workflow_id: str, old: str, reply: Reply) -> Any:
    """The task again, after an answer that used its token up."""
    try:
        return worker.push(op.DELIVER_WORKFLOW, lambda body: body.get("task_token") != old, 1.0)
    except Failed:
        status = trial.describe(worker, workflow_id).get("status")
        raise Failed(
            expected="bad commands to be refused with 400",
            actual=f"{reply}; the execution has status {status} now, and its task is gone",
        ) from None


@case("errors/bad-result", "A result that is not JSON is refused with 400 or carried as it is; the task is not lost.")
def bad_result(trial: Trial) -> None:
    worker = trial.peer()
    execution, _, activity = trial.held_activity(worker, trial.name("queue"))
    reply = worker.answer(op.COMPLETE_ACTIVITY, activity.token, b"{not json")
    if not reply.is_success():
        reply.refused(400)
        worker.complete(activity).succeeded()
    worker.push(op.DELIVER_RESULT, lambda body: body.get("activity_id") == activity.body["activity_id"])
    check(about(execution)(activity.body), expected="the activity of this execution", actual=activity.body)


@case("errors/bad-failure", "A failure that is not JSON still fails the activity, or is refused with 400.")
def bad_failure(trial: Trial) -> None:
    worker = trial.peer()
    _, _, activity = trial.held_activity(worker, trial.name("queue"))
    reply = worker.answer(op.FAIL_ACTIVITY, activity.token, b"\xff not json")
    if not reply.is_success():
        reply.refused(400)
        worker.fail(activity, final=True).succeeded()
    result = worker.push(op.DELIVER_RESULT)
    check("failure" in result.body, expected="a failure in the result", actual=result.body)


@case("errors/long-ids", "Ids of a hundred thousand characters are refused with 400.", severity=SHOULD)
def long_ids(trial: Trial) -> None:
    peer = trial.peer()
    long = "x" * 100_000
    for field in ("workflow_id", "workflow_type", "task_queue"):
        body = {"namespace": trial.namespace, "workflow_id": trial.name("w"), "workflow_type": "W", "task_queue": "q"}
        trial.terminate_later({"workflow_id": body["workflow_id"]})
        peer.call(op.START, {**body, field: long}).refused(400)
