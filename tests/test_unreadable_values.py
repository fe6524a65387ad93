"""Values that are JSON and that no reader of a page, a history or a delivery could read: whoever sends one is refused.

Kept, it would break everybody to whom it is passed on: a listing of the whole namespace, a workflow's replay.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.helpers.dispatching import DispatchedServer, FakeLink, answer

from zapserver.engine.validation import FAILURE_DEPTH_MAX
from zaptasks import PayloadError
from zaptasks.payloads import encode_arguments
from zapwire.body import PAYLOAD_DEPTH_MAX, decode_json, encode_json, unreadable
from zapwire.envelope import decode_envelope, encode_request
from zapwire.failure import FAILURE_VERSION, decode_failure
from zapwire.opcodes import Op


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


UNREADABLE = {
    "deep": deep(PAYLOAD_DEPTH_MAX + 1),
    "a float past 64 bits": b'{"rate":1e999}',
    "a float with a sign": b"[-1.5E+309]",
    "a float of many digits": b"9" * 310 + b".0",
    "an integer of 4,301 digits": b"9" * 4301,
    "zeros before the exponent": b"1e0000400",
    "many digits and a short exponent": b"1" + b"0" * 250 + b"e99",
}
READABLE = {
    "just not too deep": deep(PAYLOAD_DEPTH_MAX),
    "brackets in a text": b'"' + b"[" * 500 + b'"',
    "looks like a number": b'"1e999"',
    "a hash": b'{"sha":"93e000c4e5e0001f"}',
    "the largest float": b"1.7e308",
    "the smallest float": b"1e-999",
    "an integer of 4,300 digits": b"9" * 4300,
}


@pytest.mark.parametrize("value", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_cannot_be_read_inside_a_body_is_found_out(value: bytes) -> None:
    assert unreadable(value)


@pytest.mark.parametrize("value", READABLE.values(), ids=READABLE.keys())
def test_what_is_unusual_but_can_be_read_passes(value: bytes) -> None:
    assert unreadable(value) == ""
    decode_json(b'{"events":[{"attributes":{"details":[' + value + b"]}}]}")


class Wire(DispatchedServer):
    """A worker that runs one task and has one workflow task, and a client."""

    def __init__(self) -> None:
        super().__init__()
        self.worker, self.client = self.connect("worker"), self.connect("client")
        self.subscribe(self.worker)
        self.call(self.worker, Op.SUBSCRIBE_WORKFLOW_TASKS, {"task_queue": "default", "replays": True})
        self.call(self.client, Op.START_WORKFLOW, {"workflow_type": "Order", "workflow_id": "order"})
        self.task = self.submit(self.client, "import")[1]
        tokens = {opcode: body["task_token"] for opcode, body in self.worker.pushes}
        self.token = tokens[Op.DELIVER_ACTIVITY_TASK]
        self.workflow_token = tokens[Op.DELIVER_WORKFLOW_TASK]

    def body(self, link: FakeLink, opcode: int, body: dict[str, Any]) -> Any:
        """The answer's body as its reader decodes it."""
        assert self.call(link, opcode, body)[0] == 200
        return decode_json(decode_envelope(link.replies[self._request_id]).body)


def enveloped(opcode: int, body: str) -> Callable[[Wire, bytes], tuple[int, str]]:
    def send(server: Wire, value: bytes) -> tuple[int, str]:
        status, _, error = server.call(server.client, opcode, body.encode().replace(b"VALUE", value))
        return status, error

    return send


def responded(opcode: int) -> Callable[[Wire, bytes], tuple[int, str]]:
    return lambda server, value: server.respond(server.worker, opcode, server.token, value)


def decided(commands: str) -> Callable[[Wire, bytes], tuple[int, str]]:
    def send(server: Wire, value: bytes) -> tuple[int, str]:
        text = b'{"v":1,"cmds":[' + commands.encode().replace(b"VALUE", value) + b"]}"
        return server.respond(server.worker, Op.RESPOND_WORKFLOW_TASK_COMPLETED, server.workflow_token, text)

    return send


WAYS_IN = {
    "input": enveloped(Op.START_WORKFLOW, '{"workflow_type":"W","input":VALUE}'),
    "memo": enveloped(Op.START_WORKFLOW, '{"workflow_type":"W","memo":{"a":VALUE}}'),
    "search attributes": enveloped(Op.START_WORKFLOW, '{"workflow_type":"W","search_attributes":{"a":VALUE}}'),
    "signal": enveloped(Op.SIGNAL_WORKFLOW, '{"workflow_id":"order","signal_name":"s","input":VALUE}'),
    "update": enveloped(Op.UPDATE_WORKFLOW, '{"workflow_id":"order","update_name":"u","args":[VALUE]}'),
    "update with start": enveloped(
        Op.UPDATE_WITH_START, '{"workflow_type":"W","workflow_id":"w","update_name":"u","args":[VALUE]}'
    ),
    "query": enveloped(Op.QUERY_WORKFLOW, '{"workflow_id":"order","query_type":"q","args":[VALUE]}'),
    "schedule": enveloped(
        Op.CREATE_SCHEDULE,
        '{"schedule_id":"s","schedule":{"spec":{"interval_ms":1000},"action":{"workflow_type":"W","input":VALUE}}}',
    ),
    "attributes of a schedule": enveloped(
        Op.CREATE_SCHEDULE,
        '{"schedule_id":"s","schedule":{"spec":{"interval_ms":1000},"action":{"workflow_type":"W",'
        '"search_attributes":{"a":VALUE}}}}',
    ),
    "result": responded(Op.RESPOND_ACTIVITY_TASK_COMPLETED),
    "heartbeat": responded(Op.RECORD_ACTIVITY_TASK_HEARTBEAT),
    "decision": decided('{"kind":"complete","result":VALUE}'),
    "marker": decided('{"kind":"record-marker","id":"0.1","name":"m","details":VALUE}'),
}


@pytest.mark.parametrize("value", [UNREADABLE["deep"], UNREADABLE["a float past 64 bits"]], ids=["deep", "float"])
@pytest.mark.parametrize("way", WAYS_IN.values(), ids=WAYS_IN.keys())
def test_no_call_takes_it(way: Callable[[Wire, bytes], tuple[int, str]], value: bytes) -> None:
    server = Wire()
    status, error = way(server, value)
    assert status == 400
    assert "levels deep" in error or "out of range" in error
    listed = server.body(server.client, Op.LIST_WORKFLOWS, {})
    assert len(listed["executions"]) == 2
    assert server.body(server.client, Op.DELETE_SCHEDULE, {})["schedules"] == []


def test_the_deepest_values_that_are_taken_can_be_read_wherever_they_are_shown() -> None:
    server, most = Wire(), json.loads(deep(PAYLOAD_DEPTH_MAX))
    start = {"workflow_type": "W", "workflow_id": "w", "input": most, "memo": most, "search_attributes": {"a": most[0]}}
    assert server.call(server.client, Op.START_WORKFLOW, start)[0] == 200
    plan = {"spec": {"interval_ms": 1000}, "action": {"workflow_type": "W", "input": most, "memo": most}}
    server.body(server.client, Op.CREATE_SCHEDULE, {"schedule_id": "s", "schedule": plan})
    server.body(server.client, Op.LIST_WORKFLOWS, {})
    server.body(server.client, Op.DELETE_SCHEDULE, {})
    server.body(server.client, Op.DESCRIBE_SCHEDULE, {"schedule_id": "s"})
    server.body(server.client, Op.DESCRIBE_WORKFLOW, {"workflow_id": "w"})
    events = server.body(server.client, Op.GET_WORKFLOW_HISTORY, {"workflow_id": "w"})["events"]
    assert events[0]["attributes"]["input"] == most


def failed(details: bytes, causes: int) -> bytes:
    cause = b'{"message":"inner","details":[' + details + b"]}"
    for _ in range(causes):
        cause = b'{"message":"outer","code":"Bank","cause":' + cause + b"}"
    return b'{"v":%d,"p":%s}' % (FAILURE_VERSION, cause)


@pytest.mark.parametrize(
    ("failure", "is_whole"),
    [
        (failed(deep(PAYLOAD_DEPTH_MAX), 16), True),
        (failed(deep(FAILURE_DEPTH_MAX), 1), False),
        (failed(b"1e999", 1), False),
    ],
    ids=["deepest", "too deep", "out of range"],
)
def test_of_a_failure_what_cannot_be_read_is_left_out_and_the_rest_stays(failure: bytes, is_whole: bool) -> None:
    server = Wire()
    assert server.respond(server.worker, Op.RESPOND_ACTIVITY_TASK_FAILED, server.token, failure)[0] == 200
    events = server.body(server.client, Op.GET_WORKFLOW_HISTORY, server.task)["events"]
    [told] = [event["attributes"]["failure"] for event in events if "failure" in event["attributes"]]
    read = decode_failure(encode_json(told))
    assert (read.message, read.code) == ("outer", "Bank")
    assert (read.cause is not None) is is_whole


def test_an_item_of_output_that_cannot_be_read_is_a_gap_and_its_neighbors_are_there() -> None:
    server = Wire()
    items = b",".join([b"1", *UNREADABLE.values(), b"2"])
    server.push(
        server.worker,
        Op.EMIT_OUTPUT,
        b'{"task_token":%s,"items":[%s]}' % (json.dumps(server.token).encode(), items),
    )
    page = server.body(server.client, Op.READ_OUTPUT, server.task)
    assert [(item["number"], item["item"]) for item in page["items"]] == [(1, 1), (2 + len(UNREADABLE), 2)]


def test_a_query_that_is_answered_with_it_is_refused_and_can_be_answered_again() -> None:
    server = Wire()
    asked = server.send(server.client, _query())
    [token] = [body["token"] for opcode, body in server.worker.pushes if opcode == Op.DELIVER_QUERY]
    text = b'{"token":%s,"result":1e999}' % json.dumps(token).encode()
    assert server.call(server.worker, Op.RESPOND_QUERY, text)[0] == 400
    assert server.call(server.worker, Op.RESPOND_QUERY, {"token": token, "result": 7})[0] == 200
    assert answer(server.client, asked)[1]["query_result"] == 7


def _query() -> bytes:
    return encode_request(Op.QUERY_WORKFLOW, b'{"workflow_id":"order","query_type":"q"}')


def test_the_sdk_says_so_before_it_sends() -> None:
    value: list[Any] = []
    for _ in range(PAYLOAD_DEPTH_MAX):
        value = [value]
    with pytest.raises(PayloadError, match=f"the arguments of 'W' .*nested more than {PAYLOAD_DEPTH_MAX} levels"):
        encode_arguments((value,), "the arguments of 'W'")
