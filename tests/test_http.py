"""The HTTP routes of the fallback and health: answers for good requests, clear refusals for all others, and bounds."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx2
import pytest
import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from zapserver import http as http_module
from zapserver import http_host
from zapserver.dispatch import Dispatcher
from zapserver.engine.commands import ScheduleSpec, StartTask
from zapserver.engine.records import Execution
from zapserver.http import REQUEST_BYTES_MAX
from zapserver.server import Server, open_server
from zapserver.settings import Address, Settings

WORKFLOWS = "/api/v1/namespaces/default/workflows"
SCHEDULES = "/api/v1/namespaces/default/schedules"
JSON = {"content-type": "application/json"}

# What Go's Add/Now client sends.
GO_NOW = {"workflow_type": "email.send", "task_queue": "ats", "input": {"to": "ada"}}
GO_ADD_INTERVAL = {
    "schedule_id": "audit.archive",
    "schedule": {
        "spec": {"interval": [{"every": "1m0s"}]},
        "action": {"start_workflow": {"workflow_type": "audit.archive", "task_queue": "ats"}},
    },
}
GO_ADD_CRON = {
    "schedule_id": "audit.archive",
    "schedule": {
        "spec": {"cron_expressions": ["0 3 * * *"]},
        "action": {"start_workflow": {"workflow_type": "audit.archive", "task_queue": "ats"}},
    },
}


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    loopback = Address("127.0.0.1", 0)
    async with open_server(Settings(zap=loopback, http=loopback)) as server:
        yield server


@pytest.fixture
async def http(server: Server) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=f"http://{server.http_address}") as client:
        yield client


def executions(server: Server) -> list[Execution]:
    found, _ = server.dispatcher.namespaces.get("").engine.views.executions(lambda execution: True)
    return found


def schedule(server: Server, name: str) -> Any:
    return server.dispatcher.namespaces.get("").engine.views.schedule(name)


async def raw(server: Server, data: bytes) -> bytes:
    """Everything that the server answers to these bytes, until it closes the connection."""
    async with await trio.open_tcp_stream(server.http_address.host, server.http_address.port) as stream:
        await stream.send_all(data)
        answer = bytearray()
        async for piece in stream:
            answer += piece
    return bytes(answer)


# --- tasks --------------------------------------------------------------------------------------------


async def test_gos_now_starts_a_task_on_the_default_queue(server: Server, http: httpx2.AsyncClient) -> None:
    answer = await http.post(WORKFLOWS, json=GO_NOW)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.text.endswith("}\n")
    [execution] = executions(server)
    assert answer.json() == {
        "workflow_id": execution.workflow_id,
        "run_id": execution.run_id,
        "is_new": True,
        "durability": "memory",
    }
    assert (execution.type, execution.task_queue, execution.is_task) == ("email.send", "default", True)
    assert bytes(execution.input or b"") == b'{"to":"ada"}'


async def test_our_options_take_effect(server: Server, http: httpx2.AsyncClient) -> None:
    options = {
        "workflow_type": "email.send",
        "workflow_id": "mail-1",
        "task_queue": "mail",
        "request_id": "r1",
        "memo": {"for": "ada"},
        "retry_policy": {"maximum_attempts": 3},
        "schedule_to_close_ms": 5000,
        "some_day": "maybe",
    }
    first = (await http.post(WORKFLOWS, json=options)).json()
    again = (await http.post(WORKFLOWS, json=options)).json()
    assert first == {"workflow_id": "mail-1", "run_id": again["run_id"], "is_new": True, "durability": "memory"}
    assert again["is_new"] is False
    [execution] = executions(server)
    assert (execution.task_queue, bytes(execution.memo or b"")) == ("mail", b'{"for":"ada"}')


async def test_the_digits_of_a_number_survive(server: Server, http: httpx2.AsyncClient) -> None:
    body = b'{"workflow_type":"sum","input":[12345678901234567890, 1.10, 1e+30]}'
    assert (await http.post(WORKFLOWS, content=body, headers=JSON)).status_code == 200
    [execution] = executions(server)
    assert bytes(execution.input or b"") == b"[12345678901234567890, 1.10, 1e+30]"


async def test_a_number_that_no_reader_takes_is_refused(server: Server, http: httpx2.AsyncClient) -> None:
    answer = await http.post(WORKFLOWS, content=b'{"workflow_type":"sum","input":[1e400]}', headers=JSON)
    assert answer.status_code == 400
    assert "out of range" in answer.text
    assert executions(server) == []


# --- schedules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "spec"),
    [(GO_ADD_INTERVAL, ScheduleSpec(interval_ms=60_000)), (GO_ADD_CRON, ScheduleSpec(cron=("0 3 * * *",)))],
    ids=["interval", "cron"],
)
async def test_gos_add_puts_a_schedule(
    server: Server, http: httpx2.AsyncClient, body: dict[str, Any], spec: ScheduleSpec
) -> None:
    answer = await http.post(f"{SCHEDULES}/audit.archive", json=body)
    assert answer.status_code == 200
    assert answer.json() == {"schedule_id": "audit.archive", "status": "scheduled", "durability": "memory"}
    put = schedule(server, "audit.archive")
    assert put.spec == spec
    assert (put.action.type, put.action.task_queue, put.action.is_task) == ("audit.archive", "default", True)


async def test_the_name_may_hold_what_a_path_cannot(server: Server, http: httpx2.AsyncClient) -> None:
    body = {**GO_ADD_CRON, "schedule_id": "billing/daily run?"}
    assert (await http.post(f"{SCHEDULES}/billing/daily%20run?", json=body)).status_code == 200
    assert schedule(server, "billing/daily run?").action.type == "audit.archive"


async def test_the_name_of_the_path_counts_when_the_body_has_none(server: Server, http: httpx2.AsyncClient) -> None:
    body = {"schedule": {"spec": {"interval": [{"every": "1h"}]}}}
    assert (await http.post(f"{SCHEDULES}/a%20b", json=body)).json()["schedule_id"] == "a b"
    assert schedule(server, "a b").action.type == "a b"


# --- health -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
async def test_health_is_as_gos_probes_expect_it(http: httpx2.AsyncClient, method: str) -> None:
    answer = await http.request(method, "/healthz")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {"service": "tasks", "status": "ok", "namespace": "default"}
    assert answer.json().items() <= (await http.request(method, "/v1/tasks/health")).json().items()


async def test_health_counts(server: Server, http: httpx2.AsyncClient) -> None:
    server.dispatcher.submit(StartTask(type="email.send"), server.dispatcher.namespaces.get(""))
    counts = (await http.get("/v1/tasks/health")).json()["counts"]
    assert (counts["open_executions"], counts["waiting_activity_tasks"], counts["dead_letters"]) == (1, 1, 0)


async def test_head_has_no_body(server: Server) -> None:
    answer = await raw(server, b"HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n")


# --- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/nothing"),
        ("GET", WORKFLOWS),
        ("HEAD", WORKFLOWS),
        ("DELETE", f"{SCHEDULES}/x"),
        ("POST", f"{WORKFLOWS}/"),
        ("POST", "/api/v1/namespaces/default"),
        ("PATCH", "/api/v1/namespaces//workflows"),
        ("BREW", "/healthz"),
    ],
)
async def test_no_such_path_or_method_is_a_plain_404(http: httpx2.AsyncClient, method: str, path: str) -> None:
    answer = await http.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "text/plain; charset=utf-8")
    if method != "HEAD":
        assert answer.text == "404 page not found\n"


def spec_of(**spec: Any) -> dict[str, Any]:
    return {"schedule": {"spec": spec}}


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        pytest.param(WORKFLOWS, {}, 400, "task type required", id="no type"),
        pytest.param(WORKFLOWS, {"workflow_type": "a\x00b"}, 400, "control", id="control character"),
        pytest.param(WORKFLOWS, {"workflow_type": "x" * 2000}, 400, "2000 characters", id="long type"),
        pytest.param(WORKFLOWS, {"workflow_type": 7}, 400, "Expected `str`, got `int`", id="type is a number"),
        pytest.param(WORKFLOWS, [], 400, "Expected `object`, got `array`", id="an array"),
        pytest.param(
            WORKFLOWS, {"workflow_type": "a", "schedule_to_close_ms": -1}, 400, "schedule_to_close_ms is -1", id="span"
        ),
        pytest.param(
            "/api/v1/namespaces/ghost/workflows", {"workflow_type": "a"}, 404, '"ghost" not registered', id="namespace"
        ),
        pytest.param(
            "/api/v1/namespaces/..%2fetc/workflows", {"workflow_type": "a"}, 404, "", id="namespace with a slash"
        ),
        pytest.param(
            "/api/v1/namespaces/a%20b/workflows", {"workflow_type": "a"}, 400, "invalid namespace", id="namespace name"
        ),
        pytest.param(f"{SCHEDULES}/x", {}, 400, "could never fire", id="no spec"),
        pytest.param(f"{SCHEDULES}/x", spec_of(interval=[{"every": "0s"}]), 400, "0s", id="zero interval"),
        pytest.param(f"{SCHEDULES}/x", spec_of(interval=[{"every": "-5s"}]), 400, "-5s", id="negative interval"),
        pytest.param(f"{SCHEDULES}/x", spec_of(interval=[{"every": "soon"}]), 400, "'soon'", id="no duration"),
        pytest.param(f"{SCHEDULES}/x", spec_of(interval=[{"every": "0 3 * * *"}]), 400, "cron_expressions", id="cron"),
        pytest.param(f"{SCHEDULES}/x", spec_of(interval=[{"every": "1s"}] * 2), 400, "2 intervals", id="two intervals"),
        pytest.param(f"{SCHEDULES}/x", spec_of(cron_expressions=["0 0 30 2 *"]), 400, "0 0 30 2 *", id="never"),
        pytest.param(f"{SCHEDULES}/x", spec_of(cron_expressions=["TZ=UTC"]), 400, "TZ=UTC", id="zone only"),
    ],
)
async def test_a_mistake_of_the_caller_is_a_4xx_that_names_it(
    server: Server, http: httpx2.AsyncClient, path: str, body: Any, status: int, text: str
) -> None:
    answer = await http.post(path, json=body)
    assert answer.status_code == status
    assert text in answer.text if not text else text in answer.json()["error"]
    if text:
        assert answer.json()["code"] == status
    assert executions(server) == []


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "truncated"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"a":1} trailing', "trailing"),
        (b"[" * 1000 + b"]" * 1000, "nested"),
        (b"null", "Expected `object`, got `null`"),
    ],
)
async def test_a_body_that_cannot_be_read_is_a_400(http: httpx2.AsyncClient, body: bytes, text: str) -> None:
    answer = await http.post(WORKFLOWS, content=body, headers=JSON)
    assert answer.status_code == 400
    assert text in answer.json()["error"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_what_a_page_may_post_without_asking_starts_nothing(
    server: Server, http: httpx2.AsyncClient, content_type: str
) -> None:
    answer = await http.post(WORKFLOWS, content=b'{"workflow_type":"a"}', headers={"content-type": content_type})
    assert (answer.status_code, answer.json()["code"]) == (415, 415)
    assert "application/json" in answer.json()["error"]
    assert executions(server) == []


async def test_json_with_a_charset_is_json(http: httpx2.AsyncClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert (await http.post(WORKFLOWS, content=b'{"workflow_type":"a"}', headers=headers)).status_code == 200


async def test_an_unforeseen_failure_is_a_500_that_tells_no_secrets(
    http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the password is swordfish")

    monkeypatch.setattr(Dispatcher, "submit", fail)
    answer = await http.post(WORKFLOWS, json=GO_NOW)
    assert (answer.status_code, answer.json()) == (500, {"error": "internal error: RuntimeError", "code": 500})
    monkeypatch.undo()
    assert (await http.post(WORKFLOWS, json=GO_NOW)).status_code == 200
    assert [record.name for record in caplog.records] == ["zapserver.http"]


# --- bounds -------------------------------------------------------------------------------------------


async def test_a_body_of_exactly_the_limit_is_taken_and_one_byte_more_is_not(http: httpx2.AsyncClient) -> None:
    def body(size: int) -> bytes:
        start, end = b'{"workflow_type":"a","ignored":"', b'"}'
        return start + b"x" * (size - len(start) - len(end)) + end

    assert (await http.post(WORKFLOWS, content=body(REQUEST_BYTES_MAX), headers=JSON)).status_code == 200
    answer = await http.post(WORKFLOWS, content=body(REQUEST_BYTES_MAX + 1), headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (413, 413)
    assert "10485761 bytes" in answer.json()["error"]


def request_head(*headers: str) -> bytes:
    lines = [f"POST {WORKFLOWS} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


async def test_a_declared_length_over_the_limit_is_refused_before_the_body(server: Server) -> None:
    with trio.fail_after(5):
        answer = await raw(server, request_head("Content-Length: 10485761"))
    assert answer.startswith(b"HTTP/1.1 413")


async def test_a_body_without_a_length_is_counted_while_it_arrives(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_module, "REQUEST_BYTES_MAX", 1000)
    chunk = b"1f4\r\n" + b"x" * 500 + b"\r\n"
    with trio.fail_after(5):  # the last chunk never comes
        answer = await raw(server, request_head("Transfer-Encoding: chunked") + chunk * 3)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"more than 1000 bytes" in answer


async def test_a_client_that_goes_on_sending_what_was_refused_is_let_go(nursery: trio.Nursery) -> None:
    """Its body fills every queue on the way to an app that no longer reads."""
    is_full = trio.Event()

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await is_full.wait()
        await Response("no", 413)(scope, receive, send)

    draining = trio.Event()
    sockets = await http_host.bind_http("127.0.0.1", 0)
    host, port = sockets[0].getsockname()
    await nursery.start(http_host.serve_http, refuse, sockets, draining)
    async with await trio.open_tcp_stream(host, port) as stream:
        await stream.send_all(request_head("Content-Length: 100000000"))
        with trio.move_on_after(0.5):
            while True:
                await stream.send_all(b"x" * 100_000)
        is_full.set()
        with trio.fail_after(5), suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
    draining.set()


async def test_a_body_that_does_not_come_is_a_408(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "REQUEST_SECONDS_MAX", 0.05)
    with trio.fail_after(5):
        answer = await raw(server, request_head("Content-Length: 100") + b'{"workfl')
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"was not complete within 0.05 s" in answer


async def test_a_head_that_does_not_come_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_host, "IDLE_SECONDS_MAX", 0.05)
    loopback = Address("127.0.0.1", 0)
    async with open_server(Settings(zap=loopback, http=loopback)) as server:
        for start in (b"", b"GET /healthz HTTP/1.1\r\nHos"):
            with trio.fail_after(5):
                assert await raw(server, start) == b""


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/one\r\n\r\n",
        b"X" * 70_000,
        b"GET /\xff HTTP/1.1\r\n\r\n",
    ],
    ids=["binary", "no path", "version", "endless line", "path"],
)
async def test_garbage_is_refused_and_disturbs_nobody(server: Server, http: httpx2.AsyncClient, garbage: bytes) -> None:
    with trio.fail_after(5):
        answer = await raw(server, garbage)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))
    assert (await http.get("/healthz")).status_code == 200


async def vanish_in_head(stream: trio.SocketStream) -> None:
    await stream.send_all(request_head("Content-Length: 100")[:-10])


async def vanish_in_body(stream: trio.SocketStream) -> None:
    await stream.send_all(request_head("Content-Length: 100") + b"{")


async def reset_in_body(stream: trio.SocketStream) -> None:
    await vanish_in_body(stream)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


@pytest.mark.parametrize("vanish", [vanish_in_head, vanish_in_body, reset_in_body])
async def test_a_client_that_vanishes_disturbs_nobody(
    server: Server,
    http: httpx2.AsyncClient,
    caplog: pytest.LogCaptureFixture,
    vanish: Callable[[trio.SocketStream], Awaitable[None]],
) -> None:
    for _ in range(3):
        async with await trio.open_tcp_stream(server.http_address.host, server.http_address.port) as stream:
            await vanish(stream)
    assert (await http.post(WORKFLOWS, json=GO_NOW)).status_code == 200
    assert len(executions(server)) == 1
    assert caplog.records == []


async def test_an_idle_connection_does_not_hold_up_the_end() -> None:
    loopback = Address("127.0.0.1", 0)
    with trio.fail_after(2):
        async with open_server(Settings(zap=loopback, http=loopback)) as server:
            idle = await trio.open_tcp_stream(server.http_address.host, server.http_address.port)
            async with httpx2.AsyncClient(base_url=f"http://{server.http_address}") as http:
                await http.get("/healthz")
    await idle.aclose()
