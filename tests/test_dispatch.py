"""From calls to replies and pushes, without a socket: what the wire rulings ask of the server's answers."""

from __future__ import annotations

import json

import pytest
from tests.helpers.dispatching import DispatchedServer as Server
from tests.helpers.dispatching import FakeLink, answer

from zapserver.engine.limits import PAYLOAD_BYTES_MAX
from zapwire.body import encode_cbor
from zapwire.envelope import (
    FLAG_CBOR,
    decode_envelope,
    decode_submit_reply,
    encode_request,
    encode_task_schedule,
)
from zapwire.errors import ConnectionLost
from zapwire.failure import Failure, encode_failure
from zapwire.frame import FRAME_BYTES_MAX
from zapwire.opcodes import OPCODES, Op


@pytest.fixture
def server() -> Server:
    return Server()


def test_every_opcode_that_the_registry_calls_served_is_served_and_no_other(server: Server) -> None:
    link = server.connect("any")
    for opcode in OPCODES:
        if opcode.direction == "client->server" and opcode.kind == "call":
            if opcode.layout != "envelope":
                continue
            status, _, error = server.call(link, opcode.number, {})
            if opcode.op is Op.AWAIT_EXECUTION:
                assert status == 404
            assert (status != 501) is opcode.served, f"{opcode.name}: {status} {error}"
    for number in set(range(1, 256)) - {opcode.number for opcode in OPCODES}:
        status, _, error = server.call(link, number, {})
        assert status == 501
        assert f"0x{number:02X}" in error


def test_a_task_goes_to_a_waiting_worker_and_its_result_to_whoever_waits(server: Server) -> None:
    worker, client = server.connect("worker"), server.connect("client")
    server.subscribe(worker, slots=1)
    status, started = server.submit(client, "email.send", b'{"to":"ada","big":12345678901234567890.5e3}')
    assert status == 200
    waiting = server.send(client, encode_request(Op.AWAIT_EXECUTION, json.dumps(started).encode()))
    assert waiting not in client.replies
    [(opcode, task)] = worker.pushes
    assert opcode == Op.DELIVER_ACTIVITY_TASK
    assert task["activity_type_name"] == "email.send"
    assert task["input"] == '{"to":"ada","big":12345678901234567890.5e3}', "a payload passes through untouched"
    assert (task["kind"], task["attempt"]) == ("task", 1)
    assert server.respond(worker, Op.RESPOND_ACTIVITY_TASK_COMPLETED, task["task_token"], b'{"sent":true}')[0] == 200
    status, body, _ = answer(client, waiting)
    assert (status, body["status_name"], body["result"]) == (200, "COMPLETED", {"sent": True})


def test_the_same_request_id_starts_one_task(server: Server) -> None:
    client = server.connect("client")
    first = server.submit(client, "pay", b"{}", request_id="r-1")[1]
    again = server.submit(client, "pay", b"{}", request_id="r-1")[1]
    assert again["run_id"] == first["run_id"]
    assert (first["is_new"], again["is_new"]) == (True, False)


def test_a_vanished_worker_gives_its_task_to_the_next_and_its_late_answer_is_refused(server: Server) -> None:
    client, first, second = server.connect("client"), server.connect("first"), server.connect("second")
    server.subscribe(first, slots=1)
    server.submit(client, "email.send")
    server.subscribe(second, slots=1)
    old_token = first.pushes[0][1]["task_token"]
    server.dispatcher.disconnected(first, ConnectionLost("gone"))  # type: ignore[arg-type]
    assert second.pushes[0][1]["attempt"] == 2
    status, error = server.respond(second, Op.RESPOND_ACTIVITY_TASK_COMPLETED, old_token, b"1")
    assert status == 409
    assert "attempt 1" in error
    new_token = second.pushes[0][1]["task_token"]
    assert server.respond(second, Op.RESPOND_ACTIVITY_TASK_COMPLETED, new_token, b"1")[0] == 200


@pytest.mark.parametrize("token", ["", "x", "act|a|1|b|default", "act|a|1|b|ghost", "wf|a|b|c|d|default", "\x00|\x00"])
def test_an_unknown_token_is_a_404(server: Server, token: str) -> None:
    link = server.connect("worker")
    for opcode in (*range(Op.RESPOND_WORKFLOW_TASK_COMPLETED, 0xA6), Op.HAND_BACK_TASK, Op.DETACH_TASK):
        payload = b'{"v":1,"cmds":null}' if opcode == Op.RESPOND_WORKFLOW_TASK_COMPLETED else b"{}"
        status, error = server.respond(link, opcode, token, payload)
        assert (status, error[:20]) == (404, "task token not found")


def test_a_heartbeat_is_answered_0_and_200_once_a_cancel_was_asked_for(server: Server) -> None:
    worker, client = server.connect("worker"), server.connect("client")
    server.subscribe(worker)
    started = server.submit(client, "import")[1]
    token = worker.pushes[0][1]["task_token"]
    assert server.respond(worker, Op.RECORD_ACTIVITY_TASK_HEARTBEAT, token, b"[1]") == (0, "")
    assert server.call(client, Op.CANCEL_WORKFLOW, {**started, "reason": "enough"})[0] == 200
    assert worker.pushes[1] == (Op.DELIVER_ACTIVITY_CANCEL, {"task_token": token, "reason": "enough"})
    assert server.respond(worker, Op.RECORD_ACTIVITY_TASK_HEARTBEAT, token, b"[2]") == (200, "")
    canceled = encode_failure(Failure(message="stopped", code="CanceledError", non_retryable=True))
    assert server.respond(worker, Op.RESPOND_ACTIVITY_TASK_FAILED, token, canceled)[0] == 200
    info = server.call(client, Op.DESCRIBE_WORKFLOW, started)[1]["info"]
    assert info["status_name"] == "CANCELED"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "cannot be read"),
        (b"[]", "Expected `object`"),
        (b'"text"', "Expected `object`"),
        (b'{"workflow_id": 5}', "Expected `str`"),
        (b'{"workflow_id": "a\xff"}', "not UTF-8"),
        (b"[" * 10_000 + b"]" * 10_000, "nested"),
    ],
)
def test_a_body_that_cannot_be_read_is_a_400_with_the_reason(server: Server, body: bytes, reason: str) -> None:
    status, _, error = server.call(server.connect("client"), Op.DESCRIBE_WORKFLOW, body)
    assert status == 400
    assert reason in error


def test_a_body_with_unknown_keys_or_none_at_all_is_read(server: Server) -> None:
    link = server.connect("client")
    assert server.call(link, Op.HEALTH, {"from": "the future", "n": [1]})[1]["status"] == "ok"
    assert server.call(link, Op.HEALTH, b"")[1]["status"] == "ok"


def test_a_cbor_call_gets_a_cbor_answer(server: Server) -> None:
    link = server.connect("client")
    status, body, _ = server.call(link, Op.HEALTH, encode_cbor({}), FLAG_CBOR)
    assert (status, body["service"]) == (200, "tasks")
    assert decode_envelope(link.replies[1]).flags & FLAG_CBOR


@pytest.mark.parametrize(
    ("payload", "status"), [(b"{", 400), (b"\xff", 400), (b"NaN", 400), (b"null", 200), (b"", 200)]
)
def test_a_payload_must_be_json(server: Server, payload: bytes, status: int) -> None:
    assert server.submit(server.connect("client"), "t", payload)[0] == status


def test_a_payload_is_bounded_so_that_its_delivery_fits_a_frame(server: Server) -> None:
    worker, client = server.connect("worker"), server.connect("client")
    server.subscribe(worker)
    # Quotes double on their way into the JSON string of a delivery: this is the longest delivery there is.
    payload = b'"' + b'\\"' * ((PAYLOAD_BYTES_MAX - 2) // 2) + b'"'
    assert server.submit(client, "big", payload)[0] == 200
    assert len(json.dumps(worker.pushes[0][1])) < FRAME_BYTES_MAX
    status, body = server.submit(client, "bigger", b'"' + b"x" * PAYLOAD_BYTES_MAX + b'"')
    assert status == 413
    assert "4194304" in body["error"]
    token = worker.pushes[0][1]["task_token"]
    result = b'"' + b"x" * PAYLOAD_BYTES_MAX + b'"'
    assert server.respond(worker, Op.RESPOND_ACTIVITY_TASK_COMPLETED, token, result)[0] == 413
    assert server.respond(worker, Op.RESPOND_ACTIVITY_TASK_COMPLETED, token, b"1")[0] == 200


async def test_a_backlog_of_large_payloads_goes_out_as_the_worker_reads(server: Server) -> None:
    worker, client = server.connect("worker"), server.connect("client")
    for _ in range(20):
        server.submit(client, "big", b'"' + b"x" * 1_000_000 + b'"')
    worker.outbox_bytes = 10_000_000  # it does not read
    server.subscribe(worker)
    assert len(worker.pushes) == 3
    assert (
        "have yet to read"
        in server.call(client, Op.EXPLAIN, {"workflow_id": last_open(server, client)})[1]["waits_for"][0]["reason"]
    )
    server.subscribe(worker, types=["big"])  # another subscription of the same connection is no way around
    assert len(worker.pushes) == 3
    worker.outbox_bytes = 0
    [(function, args)] = worker.when_read
    await function(*args)
    assert len(worker.pushes) == 20
    tokens = {push["task_token"] for _, push in worker.pushes}
    assert len(tokens) == 20


def last_open(server: Server, link: FakeLink) -> str:
    executions = server.call(link, Op.LIST_WORKFLOWS, {})[1]["executions"]
    identity: str = executions[0]["workflow_id"]
    return identity


def test_a_page_of_history_ends_before_it_outgrows_a_frame(server: Server) -> None:
    client = server.connect("client")
    run = {"workflow_type": "T", "workflow_id": "w"}
    server.call(client, Op.START_WORKFLOW, run)
    for _ in range(4):
        assert server.call(client, Op.SIGNAL_WORKFLOW, {**run, "signal_name": "s", "input": "x" * 3_000_000})[0] == 200
    seen, cursor = 0, 0
    while True:
        status, page, _ = server.call(client, Op.GET_WORKFLOW_HISTORY, {**run, "after_event_id": cursor})
        assert status == 200
        seen += len(page["events"])
        cursor = page["next_cursor"]
        if not cursor:
            break
    assert seen == 5


@pytest.mark.parametrize("task_type", ["", "a" * 1001, "a\nb", "a\x00"])
def test_a_bad_task_type_is_a_400(server: Server, task_type: str) -> None:
    status, body = server.submit(server.connect("client"), task_type)
    assert status == 400
    assert body["code"] == 400
    assert "task type" in body["error"]


@pytest.mark.parametrize(
    "spec", ["0", "0s", "-5s", "", "nonsense", "0 0 30 2 *", "TZ=UTC", "* * * *", "60 * * * *", "1ns", ", * * * *"]
)
def test_a_spec_that_can_never_fire_is_a_400(server: Server, spec: str) -> None:
    link = server.connect("client")
    request_id = server.send(link, encode_task_schedule("nightly", cron=spec))
    assert decode_submit_reply(link.replies[request_id])[0] == 400


def test_a_schedule_fires_once_for_all_who_added_it(server: Server) -> None:
    first, second = server.connect("first"), server.connect("second")
    for link in (first, second):
        server.subscribe(link, types=["tick"], slots=1)
        request_id = server.send(link, encode_task_schedule("tick", interval="30s"))
        assert decode_submit_reply(link.replies[request_id])[0] == 200
    server.now_ms += 29_999
    server.dispatcher.tick()
    assert not first.pushes
    assert not second.pushes
    server.now_ms += 1
    server.dispatcher.tick()
    assert len(first.pushes) + len(second.pushes) == 1


def test_the_next_deadline_is_announced_only_when_it_moves_forward(server: Server) -> None:
    announced: list[int | None] = []
    server.dispatcher.on_deadline_moved = lambda: announced.append(server.dispatcher.next_deadline_ms())
    link = server.connect("client")
    server.send(link, encode_task_schedule("slow", interval="60s"))
    server.send(link, encode_task_schedule("slower", interval="90s"))
    server.send(link, encode_task_schedule("fast", interval="30s"))
    assert announced == [server.now_ms + 60_000, server.now_ms + 30_000]


def test_namespaces_are_apart_and_must_be_registered(server: Server) -> None:
    link = server.connect("client")
    status, _, error = server.call(link, Op.START_WORKFLOW, {"namespace": "ghost", "workflow_type": "T"})
    assert (status, error) == (404, 'namespace "ghost" not registered')
    for name in ("..", "a/b", "a b", "x" * 65, "a\x00"):
        assert server.call(link, Op.REGISTER_NAMESPACE, {"name": name})[0] == 400
    assert server.call(link, Op.REGISTER_NAMESPACE, {"namespaceInfo": {"name": "shop"}})[0] == 200
    start = {"workflow_type": "T", "workflow_id": "same"}
    assert server.call(link, Op.START_WORKFLOW, start)[0] == 200
    assert server.call(link, Op.START_WORKFLOW, {**start, "namespace": "shop"})[0] == 200
    assert server.call(link, Op.START_WORKFLOW, start)[0] == 409


def test_an_abandoned_wait_is_forgotten(server: Server) -> None:
    client = server.connect("client")
    started = server.submit(client, "slow")[1]
    waiting = server.send(client, encode_request(Op.AWAIT_EXECUTION, json.dumps(started).encode()))
    message = encode_request(Op.ABANDON_CALL, json.dumps({"request_id": waiting}).encode())
    server.dispatcher.on_push(client, decode_envelope(message))  # type: ignore[arg-type]
    assert answer(client, waiting)[0] == 499
    assert server.call(client, Op.TERMINATE_WORKFLOW, started)[0] == 200


def test_a_one_way_message_that_means_nothing_is_ignored(server: Server) -> None:
    link = server.connect("go-worker")
    for opcode in (Op.DELIVER_ACTIVITY_TASK, Op.HEALTH, Op.ABANDON_CALL, Op.GRANT_CREDITS, 0xEE):
        for body in (b"", b"{", b'{"subscription_id": "nope", "slots": -1}'):
            server.dispatcher.on_push(link, decode_envelope(encode_request(opcode, body)))  # type: ignore[arg-type]
    assert server.call(link, Op.HEALTH, {})[0] == 200


def test_explain_says_what_is_missing(server: Server) -> None:
    worker, client = server.connect("worker"), server.connect("client")
    started = server.submit(client, "email.send")[1]

    def reason() -> str:
        text: str = server.call(client, Op.EXPLAIN, started)[1]["waits_for"][0]["reason"]
        return text

    assert reason() == "no worker is subscribed to task queue 'default' for activities and tasks"
    server.subscribe(worker, types=["other"])
    assert "serves 'email.send'" in reason()
    server.subscribe(worker, types=["email.send"], slots=1)
    assert reason() == "the worker 'worker' runs attempt 1"


def test_list_follows_query_and_pages(server: Server) -> None:
    client = server.connect("client")
    for number in range(5):
        body = {"workflow_type": "Odd" if number % 2 else "Even", "workflow_id": f"w-{number}"}
        assert server.call(client, Op.START_WORKFLOW, body)[0] == 200
    query = {"query": "WorkflowType = 'Even'", "page_size": 2}
    first = server.call(client, Op.LIST_WORKFLOWS, query)[1]
    assert [item["workflow_id"] for item in first["executions"]] == ["w-4", "w-2"]
    second = server.call(client, Op.LIST_WORKFLOWS, {**query, "next_page_token": first["next_page_token"]})[1]
    assert [item["workflow_id"] for item in second["executions"]] == ["w-0"]
    assert second["next_page_token"] == ""
    assert server.call(client, Op.LIST_WORKFLOWS, {"query": "WorkflowType ="})[0] == 400
