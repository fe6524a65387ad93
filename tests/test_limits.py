"""The limits of a server: one table behind flag, command and page; each holds over the wire and is counted."""

from __future__ import annotations

import ast
import json
import re
import socket
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from click.testing import CliRunner
from tests.helpers.processes import ANY_PORTS, serving, zaptasks

from zapserver.cli import main
from zapserver.engine import Limits
from zapserver.limits import LimitsError, ServerLimits, known_limits, parse_limits
from zapserver.server import Server, open_server
from zapserver.settings import Address, Settings
from zaptasks.client import open_client
from zapwire.errors import CallFailed, ZapError
from zapwire.link import Link
from zapwire.opcodes import Op

ROOT = Path(__file__).parent.parent
ANY_PORT = Address("127.0.0.1", 0)


def settings(*texts: str) -> Settings:
    limits, server_limits = parse_limits(texts)
    return Settings(zap=ANY_PORT, http=ANY_PORT, limits=limits, server_limits=server_limits)


async def counts(server: Server) -> dict[str, int]:
    """What the limits refused, as HTTP and ZAP tell it."""
    async with httpx2.AsyncClient(base_url=f"http://{server.http_address}") as http:
        over_http: dict[str, int] = (await http.get("/v1/tasks/health")).json()["counts"]["refused"]
    return over_http


# --- the table -----------------------------------------------------------------------------------------


def test_every_limit_has_a_name_a_unit_and_a_reason() -> None:
    rows = list(known_limits())
    assert (
        len({row.name for row in rows})
        == len(rows)
        == len(Limits.__struct_fields__) + len(ServerLimits.__struct_fields__)
    )
    for row in rows:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", row.name)
        assert row.unit
        assert row.reason.endswith(".")
        assert row.default >= row.least
        assert row.most is None or row.default <= row.most


def test_every_refusal_names_a_limit_that_there_is() -> None:
    known = {row.name for row in known_limits()}
    found = set()
    for path in (ROOT / "server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "limit":
                found |= {part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant)}
    names = {name for name in found if isinstance(name, str) and name}
    assert names <= known
    assert "open-executions" in names


def test_every_limit_is_the_reason_of_a_refusal() -> None:
    """One was on the page, could be set, and bounded nothing."""
    named = {
        node.value
        for folder in ("server", "zap")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    refusing = {row.name for row in known_limits() if "nothing is refused" not in row.reason.lower()}
    assert refusing - named == {"id-chars", "backfill-slots"}, "these two are mistakes of the caller, status 400"


def test_the_page_lists_every_limit_as_it_is() -> None:
    page = (ROOT / "docs/limits.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| ([0-9]+) \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    assert rows == [(row.name, str(row.default), row.unit, row.reason) for row in known_limits()]


def test_settings_are_read_by_name_and_the_last_one_wins() -> None:
    limits, server_limits = parse_limits(
        ["open-executions=7", " schedules = 1_000 ", "open-executions=8", "namespaces=3"]
    )
    assert limits == Limits(open_executions_max=8, schedules_max=1_000)
    assert server_limits == ServerLimits(namespaces_max=3)
    assert parse_limits([]) == (Limits(), ServerLimits())
    assert parse_limits(["actions-per-second=0"])[0].actions_per_second == 0


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("open_executions=1", "the limits are id-chars, payload-bytes"),
        ("nothing=1", "no limit is called 'nothing'"),
        ("open-executions", "is not NAME=VALUE"),
        ("", "is not NAME=VALUE"),
        ("open-executions=0", "a number of executions must be at least 1"),
        ("open-executions=-5", "open-executions=-5: a number"),
        ("open-executions=many", "open-executions=many: a number"),
        ("open-executions=1.5", "must be at least 1"),
        ("open-executions=٣", "must be at least 1"),
        ("open-executions=" + "9" * 5_000, "must be at least 1"),
        ("payload-bytes=4194305", "at least 1 and at most 4194304"),
        ("burst-bytes=10000000", "at most 2097152"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_with_advice(text: str, advice: str) -> None:
    with pytest.raises(LimitsError) as refusal:
        parse_limits([text])
    assert advice in str(refusal.value)
    assert len(str(refusal.value)) < 1_000


def test_the_command_lists_the_limits() -> None:
    shown = CliRunner().invoke(main, ["limits"])
    as_json = CliRunner().invoke(main, ["limits", "--json"])
    assert (shown.exit_code, as_json.exit_code) == (0, 0)
    rows = json.loads(as_json.stdout)
    assert [row["name"] for row in rows] == [row.name for row in known_limits()]
    assert rows[0]["default"] == 1_000
    for row in known_limits():
        assert re.search(rf"^{row.name} +{row.default} +{row.unit} ", shown.stdout, re.MULTILINE)


def test_serve_takes_limits_and_the_flag_wins_over_the_environment() -> None:
    environment = {"TASKSD_LIMITS": "open-executions=5, schedules=1"}
    with serving(*ANY_PORTS, "--limit", "open-executions=1", "--limit=schedules=2", environment=environment) as server:

        def run(*args: str) -> tuple[int, str]:
            result = zaptasks(*args, "--zap", server.zap)
            return result.status, result.stdout or result.stderr

        assert run("now", "t")[0] == 0
        status, text = run("now", "t")
        assert status == 1
        assert "429" in text
        assert "1 open executions" in text
        assert run("add", "a", "1h")[0] == run("add", "b", "1h")[0] == 0
        assert "(limit schedules)" in run("add", "c", "1h")[1]
        assert json.loads(run("health", "--json")[1])["refused"] == {"open-executions": 1, "schedules": 1}
        assert re.search(r"^LIMIT +REFUSED *\nopen-executions +1 *\n", run("health")[1], re.MULTILINE)


@pytest.mark.parametrize("arguments", [["--limit", "nothing=1"], ["--limit", "schedules=no"], ["--limit", "schedules"]])
def test_a_bad_limit_is_a_mistake_of_usage(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, ["serve", *arguments])
    assert result.exit_code == 2
    assert "Error: " in result.output


def test_a_bad_limit_in_the_environment_is_one_too() -> None:
    result = CliRunner().invoke(main, ["serve"], env={"TASKSD_LIMITS": "schedules=1,nothing=1"})
    assert result.exit_code == 2
    assert "the limits are id-chars" in result.output


# --- over the wire -------------------------------------------------------------------------------------


async def test_a_refusal_is_429_over_zap_and_http_and_both_are_counted() -> None:
    async with (
        open_server(settings("queue-backlog=1", "payload-bytes=1000")) as server,
        open_client(str(server.zap_address)) as client,
        httpx2.AsyncClient(base_url=f"http://{server.http_address}") as http,
    ):
        await client.start_task("email")
        with pytest.raises(CallFailed) as refusal:
            await client.start_task("email")
        assert refusal.value.status == 429
        assert "add workers" in refusal.value.detail
        answer = await http.post("/api/v1/namespaces/default/workflows", json={"workflow_type": "email"})
        assert (answer.status_code, answer.json()["code"]) == (429, 429)
        assert "(limit queue-backlog)" in answer.json()["error"]
        with pytest.raises(CallFailed) as refusal:
            await client.start_task("email", "x" * 1_000, task_queue="other")
        assert refusal.value.status == 413
        assert await counts(server) == {"queue-backlog": 2, "payload-bytes": 1}
        assert (await client.health()).refused == {"queue-backlog": 2, "payload-bytes": 1}


async def test_http_says_when_to_come_again() -> None:
    now_ms = 1_000_000
    async with (
        open_server(settings("actions-per-second=2"), clock=lambda: now_ms) as server,
        httpx2.AsyncClient(base_url=f"http://{server.http_address}") as http,
    ):
        body = {"workflow_type": "email"}
        answers = [await http.post("/api/v1/namespaces/default/workflows", json=body) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[2].json()["retry_after_ms"] == 500
        assert answers[2].headers["retry-after"] == "1"
        now_ms += 500
        assert (await http.post("/api/v1/namespaces/default/workflows", json=body)).status_code == 200


async def test_namespaces_are_bounded() -> None:
    async with open_server(settings("namespaces=2")) as server, open_client(str(server.zap_address)) as client:
        await client.register_namespace("shop")
        with pytest.raises(CallFailed, match=r"\(limit namespaces\)"):
            await client.register_namespace("stock")
        await client.register_namespace("shop", description="again")
        assert await counts(server) == {"namespaces": 1}


@pytest.mark.parametrize(
    ("texts", "limit"),
    [(["connections=2"], "connections"), (["connections-per-address=2"], "connections-per-address")],
)
async def test_connections_are_bounded_and_room_is_given_back(texts: list[str], limit: str) -> None:
    async with open_server(settings(*texts)) as server, open_client(str(server.zap_address)) as first:
        address = (server.zap_address.host, server.zap_address.port)
        with socket.create_connection(address):
            await trio.to_thread.run_sync(_is_closed_at_once, address)
            assert await counts(server) == {limit: 1}
            assert (await first.health()).status == "ok"
        async with open_client(str(server.zap_address), timeout=5) as second:
            assert (await second.health()).refused[limit] >= 1


def _is_closed_at_once(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=5) as sock:
        assert sock.recv(1) == b""


async def test_calls_in_flight_of_one_connection_are_bounded() -> None:
    async with open_server(settings("calls-in-flight=2")) as server, open_client(str(server.zap_address)) as client:
        handle = await client.start_task("nobody.serves")
        statuses: list[Any] = []
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(handle.result)
            await trio.testing.wait_all_tasks_blocked(0.05)
            link = client._link.link
            assert isinstance(link, Link)
            try:
                await link.call(Op.HEALTH, timeout=5)
            except ZapError as error:
                statuses.append((error.status, str(error)))
            nursery.cancel_scope.cancel()
        [(status, text)] = statuses
        assert status == 429
        assert "(limit calls-in-flight)" in text
        assert await counts(server) == {"calls-in-flight": 1}
        assert (await client.health()).status == "ok"
