"""ZAP, then HTTP, then this process: where requests go, and that nothing runs twice where that can be known."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing
from tests.helpers.sdk_servers import Call, FakeServer, open_fake_http, open_fake_server, open_real_server

from zaptasks import (
    CallFailed,
    LocalEngine,
    NoHandler,
    NotSent,
    OutcomeUnknown,
    Placement,
    ServerBusy,
    Submission,
    open_client,
)
from zaptasks.blocking.fallback import FallbackClient, open_fallback_client
from zaptasks.task_request import TaskRequest
from zapwire.envelope import decode_task_schedule, decode_task_submit, encode_response, encode_submit_reply
from zapwire.handshake import Capability
from zapwire.opcodes import Op

NOBODY = "127.0.0.1:1"
"""Nothing listens there: a connection is refused at once."""


class Local:
    """What stays in the process."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, Any]] = []
        self.engine = LocalEngine(self._run)

    def _run(self, type: str, payload: object) -> None:
        self.ran.append((type, payload))

    def finish(self) -> None:
        """Let what was accepted run, so that `ran` has all of it."""
        assert not self.engine.stop(5)


@asynccontextmanager
async def fallback(
    zap: str = "", url: str = "", local: Local | None = None, timeout: float = 10.0
) -> AsyncIterator[FallbackClient]:
    async with open_fallback_client(
        zap=zap,
        url=url,
        local=local.engine if local else None,
        namespace="default",
        task_queue="default",
        timeout=timeout,
        identity="test",
        ssl_context=None,
        shutdown_timeout=1.0,
    ) as client:
        try:
            yield client
        finally:
            if local is not None:
                local.finish()


async def submit(client: FallbackClient, payload: object = None, request_id: str = "id-1") -> Submission:
    request = TaskRequest.make("mail", payload, identity="test", request_id=request_id)
    return await client.now(request, payload)


def accept(path: str, body: Any) -> tuple[int, str]:
    return 200, json.dumps({"workflow_id": "w-http", "run_id": "r-http"})


# --- tasks --------------------------------------------------------------------------------------------


async def test_zap_is_first() -> None:
    async with open_fake_server({Op.TASK_SUBMIT: Call.started}) as fake, open_fake_http(accept) as http:
        local = Local()
        async with fallback(fake.zap, http.url, local) as client:
            assert await submit(client, {"n": 1}) == Submission(Placement.ZAP, "id-1", "w-1", "r-1")
        [call] = fake.calls_of(Op.TASK_SUBMIT)
        message = decode_task_submit(call.message)
        assert (message.task_type, json.loads(bytes(message.payload))) == ("mail", {"n": 1})
        assert call.options == {
            "namespace": "default",
            "request_id": "id-1",
            "identity": "test",
            "task_queue": "default",
        }
        assert (http.posts, local.ran) == ([], [])


async def test_http_is_second_with_the_bodies_of_the_go_client_and_the_request_id() -> None:
    async with open_fake_http(accept) as http:
        local = Local()
        async with fallback(NOBODY, http.url, local) as client:
            assert await submit(client, {"n": 1}) == Submission(Placement.HTTP, "id-1", "w-http", "r-http")
            assert await client.add("audit", "0 3 * * *", print) is Placement.HTTP
            assert await client.add("a/b c", "90s", print) is Placement.HTTP
        path, body = http.posts[0]
        assert path == "/api/v1/namespaces/default/workflows"
        assert (body["workflow_type"], body["input"], body["request_id"]) == ("mail", {"n": 1}, "id-1")
        assert http.posts[1] == (
            "/api/v1/namespaces/default/schedules/audit",
            {
                "schedule_id": "audit",
                "schedule": {
                    "spec": {"cron_expressions": ["0 3 * * *"]},
                    "action": {"start_workflow": {"workflow_type": "audit", "task_queue": "default"}},
                },
            },
        )
        assert http.posts[2][0] == "/api/v1/namespaces/default/schedules/a%2Fb%20c"
        assert http.posts[2][1]["schedule"]["spec"] == {"interval": [{"every": "90s"}]}
        assert local.ran == []


async def test_the_process_itself_is_last() -> None:
    local = Local()
    async with fallback(NOBODY, f"http://{NOBODY}", local) as client:
        submission = await submit(client, {"n": 1})
    assert submission == Submission(Placement.LOCAL, "id-1", "id-1", durability="memory")
    assert local.ran == [("mail", {"n": 1})]


async def test_a_task_that_stays_and_that_nobody_handles_is_an_error() -> None:
    local = Local()
    local.engine = LocalEngine()
    async with fallback(NOBODY, "", local) as client:
        with pytest.raises(NoHandler, match="mail"):
            await submit(client)


async def test_where_nothing_may_stay_an_unreachable_server_is_an_error() -> None:
    async with fallback(NOBODY, f"http://{NOBODY}") as client:
        with pytest.raises(NotSent):
            await submit(client)
        with pytest.raises(NotSent):
            await client.add("audit", "90s", print)


async def test_a_lost_answer_is_asked_for_over_http_with_the_same_request_id() -> None:
    async with open_fake_server() as fake, open_fake_http(accept) as http:
        fake.answers[Op.TASK_SUBMIT] = lambda call: fake.drop_connections()
        local = Local()
        async with fallback(fake.zap, http.url, local) as client:
            assert (await submit(client)).placement is Placement.HTTP
        assert [body["request_id"] for _, body in http.posts] == ["id-1"]
        assert local.ran == []


async def test_a_lost_answer_is_asked_for_over_zap_when_the_server_is_back() -> None:
    async with open_fake_server() as fake:

        def lose_the_first(call: Call) -> None:
            if len(fake.calls_of(Op.TASK_SUBMIT)) == 1:
                fake.drop_connections()
            else:
                call.started()

        fake.answers[Op.TASK_SUBMIT] = lose_the_first
        local = Local()
        async with fallback(fake.zap, f"http://{NOBODY}", local) as client:
            assert (await submit(client)).placement is Placement.ZAP
        assert [call.options["request_id"] for call in fake.calls_of(Op.TASK_SUBMIT)] == ["id-1", "id-1"]
        assert local.ran == []


async def test_what_may_have_been_accepted_never_runs_here(autojump_clock: trio.testing.MockClock) -> None:
    async with open_fake_server({Op.TASK_SUBMIT: lambda call: None}) as fake:
        local = Local()
        async with fallback(fake.zap, f"http://{NOBODY}", local, timeout=4) as client:
            start = trio.current_time()
            with pytest.raises(OutcomeUnknown):
                await submit(client)
            assert trio.current_time() - start < 9  # the call and the asking again, no more
        assert local.ran == []


@pytest.mark.parametrize("status", [400, 404, 409, 429, 500])
async def test_a_no_over_zap_is_told_and_nothing_else_is_tried(status: int) -> None:
    refusal = encode_submit_reply(status, b'{"error":"no","code":1}')
    answers = {Op.TASK_SUBMIT: lambda call: call.answer_raw(refusal)}
    async with open_fake_server(answers) as fake, open_fake_http(accept) as http:
        local = Local()
        async with fallback(fake.zap, http.url, local) as client:
            with pytest.raises(CallFailed) as caught:
                await submit(client)
        assert caught.value.status == status
        assert (http.posts, local.ran) == ([], [])


@pytest.mark.parametrize("status", [429, 503, 507])
@pytest.mark.parametrize("layout", ["submit reply", "envelope"])
async def test_a_server_that_takes_nothing_now_is_an_error_and_no_reason_to_run_elsewhere(
    status: int, layout: str
) -> None:
    reply = encode_submit_reply(status, b'{"error":"disk full","code":507}')
    refusal = reply if layout == "submit reply" else encode_response(status, b"null", "disk full")
    answers = {op: lambda call: call.answer_raw(refusal) for op in (Op.TASK_SUBMIT, Op.TASK_SCHEDULE)}
    async with open_fake_server(answers) as fake, open_fake_http(accept) as http:
        local = Local()
        async with fallback(fake.zap, http.url, local) as client:
            with pytest.raises(ServerBusy, match="disk full") as caught:
                await submit(client)
            assert (caught.value.status, caught.value.code, caught.value.detail) == (status, "server_busy", "disk full")
            assert isinstance(caught.value, CallFailed)
            with pytest.raises(ServerBusy):
                await client.add("tick", "1h", print)
        assert (http.posts, local.ran) == ([], [])
        assert not local.engine.remove("tick")


@pytest.mark.parametrize("status", [429, 503, 507])
async def test_the_same_over_http(status: int) -> None:
    answer = status, json.dumps({"error": "the disk is full", "code": status})
    local = Local()
    async with open_fake_http(lambda path, body: answer) as http, fallback("", http.url, local) as client:
        with pytest.raises(ServerBusy, match="the disk is full") as caught:
            await submit(client)
        assert caught.value.status == status
        with pytest.raises(ServerBusy):
            await client.add("tick", "1h", print)
        assert len(http.posts) == 2
    assert local.ran == []
    assert not local.engine.remove("tick")


async def test_an_outcome_that_is_unknown_stays_so_when_the_repeat_is_refused_for_now(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The first request may have been taken before the disk was full."""

    def lose_the_first(call: Call) -> None:
        if len(fake.calls_of(Op.TASK_SUBMIT)) == 1:
            call.link.close("the test cut it")
        else:
            call.answer_raw(encode_submit_reply(507, b'{"error":"disk full"}'))

    local = Local()
    async with (
        open_fake_server({Op.TASK_SUBMIT: lose_the_first}) as fake,
        fallback(fake.zap, "", local, timeout=3) as client,
    ):
        with pytest.raises(OutcomeUnknown):
            await submit(client)
    assert len({call.options["request_id"] for call in fake.calls_of(Op.TASK_SUBMIT)}) == 1
    assert local.ran == []


async def test_an_unknown_outcome_over_http_stays_so_when_the_repeat_is_refused_for_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zaptasks.blocking.fallback.ASK_AGAIN_SECONDS", (0.001, 0.001))
    busy = 429, '{"error":"slow down","code":429}'
    answers = iter([None, busy, busy])
    local = Local()
    async with open_fake_http(lambda path, body: next(answers)) as http, fallback("", http.url, local) as client:
        with pytest.raises(OutcomeUnknown):
            await submit(client)
        assert len(http.posts) == 3
    assert local.ran == []


async def test_a_server_that_takes_no_tasks_is_passed_over() -> None:
    answer = encode_response(501, b"null", "not served")
    answers = {Op.TASK_SUBMIT: lambda call: call.answer_raw(answer)}
    async with (
        open_fake_server(answers) as fake,
        open_fake_http(accept) as http,
        fallback(fake.zap, http.url) as client,
    ):
        assert (await submit(client)).placement is Placement.HTTP


async def test_a_go_server_is_passed_over_without_a_call_because_it_would_not_answer() -> None:
    async with open_fake_server(capabilities=Capability(0)) as fake, open_fake_http(accept) as http:
        async with fallback(fake.zap, http.url) as client:
            await fake.until(lambda: fake.connections)
            assert (await submit(client)).placement is Placement.HTTP
            assert (await client.add("audit", "90s", print)) is Placement.HTTP
        assert fake.calls_of(Op.TASK_SUBMIT) == fake.calls_of(Op.TASK_SCHEDULE) == []


@pytest.mark.parametrize(
    ("answer", "placement"),
    [((404, "404 page not found"), Placement.LOCAL), ((405, ""), Placement.LOCAL)],
)
async def test_an_http_server_that_takes_no_tasks_is_passed_over(answer: tuple[int, str], placement: Placement) -> None:
    async with open_fake_http(lambda path, body: answer) as http, fallback(NOBODY, http.url, Local()) as client:
        assert (await submit(client)).placement is placement


@pytest.mark.parametrize("status", [400, 401, 404, 413])
async def test_a_no_over_http_is_told(status: int) -> None:
    no = status, json.dumps({"error": "no such thing", "code": status})
    async with open_fake_http(lambda path, body: no) as http, fallback("", http.url, Local()) as client:
        with pytest.raises(CallFailed, match="no such thing") as caught:
            await submit(client)
        assert caught.value.status == status


@pytest.mark.parametrize(
    "answer", [(502, "bad gateway"), (503, "no upstream"), (500, '{"error":"oops","code":500}'), None]
)
async def test_an_http_answer_that_leaves_it_open_is_asked_for_again_with_the_same_request_id(
    answer: tuple[int, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zaptasks.blocking.fallback.ASK_AGAIN_SECONDS", (0.001, 0.001))
    local = Local()
    async with open_fake_http(lambda path, body: answer) as http, fallback("", http.url, local) as client:
        with pytest.raises(OutcomeUnknown):
            await submit(client)
        assert [body["request_id"] for _, body in http.posts] == ["id-1"] * 3
    assert local.ran == []

    answers = iter([answer, (200, "{}")])
    async with open_fake_http(lambda path, body: next(answers)) as http, fallback("", http.url, local) as client:
        assert (await submit(client)).placement is Placement.HTTP


async def test_only_the_first_request_waits_for_a_connection_and_not_for_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")  # takes connections and says nothing
    async with listener, fallback(f"127.0.0.1:{listener.socket.getsockname()[1]}", "", Local()) as client:
        start = trio.current_time()
        assert (await submit(client)).placement is Placement.LOCAL
        assert trio.current_time() - start == pytest.approx(1.0, abs=0.1)
        start = trio.current_time()
        assert (await submit(client)).placement is Placement.LOCAL
        assert trio.current_time() - start < 0.01


async def test_a_server_that_comes_back_is_used_again_and_each_change_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "zaptasks.client")
    async with open_real_server() as server:
        address = server.zap
    async with fallback(address, "", Local()) as client:
        for number in range(3):
            assert (await submit(client, request_id=str(number))).placement is Placement.LOCAL
        async with open_real_server(port=int(address.rpartition(":")[2])):
            assert client.zap is not None
            await client.zap.wait_connection(after=0)
            assert (await submit(client)).placement is Placement.ZAP
            await submit(client, request_id="another")
    messages = [record.getMessage() for record in caplog.records if record.name == "zaptasks.client"]
    assert len(messages) == 2, messages
    assert messages[0].startswith("requests stay in this process: there is no connection to ")
    assert messages[1] == "requests go to the server over ZAP again"


async def test_what_http_says_no_to_may_still_be_a_yes_over_zap() -> None:
    no = 401, '{"error":"who are you?","code":401}'
    async with open_fake_server() as fake, open_fake_http(lambda path, body: no) as http:

        def lose_the_first(call: Call) -> None:
            if len(fake.calls_of(Op.TASK_SUBMIT)) == 1:
                fake.drop_connections()
            else:
                call.started()

        fake.answers[Op.TASK_SUBMIT] = lose_the_first
        async with fallback(fake.zap, http.url) as client:
            assert (await submit(client)).placement is Placement.ZAP


async def test_a_function_that_was_added_runs_a_task_that_has_to_stay() -> None:
    ran = threading.Event()
    local = Local()
    local.engine = LocalEngine()
    async with open_fake_server({Op.TASK_SCHEDULE: scheduled}) as fake, fallback(fake.zap, "", local) as client:
        assert await client.add("mail", "1h", ran.set) is Placement.ZAP
        fake.answers[Op.TASK_SUBMIT] = lambda call: call.answer_raw(encode_submit_reply(501))
        assert (await submit(client)).placement is Placement.LOCAL
        assert await trio.to_thread.run_sync(ran.wait, 5)


# --- schedules ----------------------------------------------------------------------------------------


def scheduled(call: Call) -> None:
    call.answer_raw(encode_submit_reply(200, b'{"status":"scheduled"}'))


async def test_what_is_added_is_a_durable_schedule_and_is_served_here() -> None:
    ran = trio.Event()

    async def run() -> None:
        ran.set()

    async with open_fake_server({Op.TASK_SCHEDULE: scheduled}) as fake, fallback(fake.zap, "", Local()) as client:
        assert await client.add("audit", " 0 3 * * * ", run) is Placement.ZAP
        message = decode_task_schedule(fake.calls_of(Op.TASK_SCHEDULE)[-1].message)
        assert (message.name, message.interval, message.cron) == ("audit", "", "0 3 * * *")
        subscription = await fake.call_of(Op.SUBSCRIBE_ACTIVITY_TASKS)
        assert (subscription.body["types"], subscription.body["task_queue"]) == (["audit"], "default")
        fake.deliver("audit")
        await ran.wait()
        await fake.call_of(Op.RESPOND_ACTIVITY_TASK_COMPLETED)


async def test_adding_a_name_again_replaces_the_function() -> None:
    async with open_fake_server({Op.TASK_SCHEDULE: scheduled}) as fake, fallback(fake.zap) as client:
        await client.add("audit", "90s", lambda: "first")
        await client.add("audit", "30s", lambda: "second")
        assert decode_task_schedule(fake.calls_of(Op.TASK_SCHEDULE)[-1].message).interval == "30s"
        fake.deliver("audit")
        assert (await fake.call_of(Op.RESPOND_ACTIVITY_TASK_COMPLETED)).payload == "second"
        assert len(fake.calls_of(Op.SUBSCRIBE_ACTIVITY_TASKS)) == 1


async def test_after_a_reconnect_everything_is_added_and_subscribed_to_again() -> None:
    async with open_fake_server({Op.TASK_SCHEDULE: scheduled}) as fake, fallback(fake.zap) as client:
        await client.add("a", "90s", print)
        await client.add("b", "90s", print)
        before = len(fake.calls)
        fake.drop_connections()
        await fake.until(lambda: _names(fake, before) == ({"a", "b"}, {"a", "b"}))


def _names(fake: FakeServer, after: int) -> tuple[set[str], set[str]]:
    """What was added and what was subscribed to, in the calls after this many."""
    calls = fake.calls[after:]
    added = {decode_task_schedule(call.message).name for call in calls if call.opcode == Op.TASK_SCHEDULE}
    served = {name for call in calls if call.opcode == Op.SUBSCRIBE_ACTIVITY_TASKS for name in call.body["types"]}
    return added, served


async def test_a_schedule_that_had_to_stay_moves_to_the_server_when_there_is_one() -> None:
    fired = threading.Event()
    local = Local()
    async with open_fake_server() as fake:
        address = fake.zap
    async with fallback(address, "", local) as client:
        assert await client.add("tick", "2ms", fired.set) is Placement.LOCAL
        await trio.to_thread.run_sync(fired.wait, 5)
        port = int(address.rpartition(":")[2])
        async with open_fake_server({Op.TASK_SCHEDULE: scheduled}, port=port) as fake:
            await fake.call_of(Op.SUBSCRIBE_ACTIVITY_TASKS)
            assert not local.engine.remove("tick"), "it fires here and on the server"


async def test_a_schedule_that_a_server_may_have_does_not_fire_here(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    local = Local()
    answers = {Op.TASK_SCHEDULE: lambda call: None}
    async with open_fake_server(answers) as fake, fallback(fake.zap, "", local, timeout=2) as client:
        assert await client.add("tick", "1h", print) is Placement.ZAP
        assert "may be on the server already" in caplog.text
        assert not local.engine.remove("tick")
        fake.answers[Op.TASK_SCHEDULE] = scheduled
        fake.drop_connections()
        await fake.call_of(Op.SUBSCRIBE_ACTIVITY_TASKS)


async def test_a_schedule_that_is_on_a_server_does_not_fire_here_when_the_server_is_away() -> None:
    local = Local()
    async with trio.open_nursery() as nursery:
        leave = trio.Event()

        async def serve(*, task_status: trio.TaskStatus[str]) -> None:
            async with open_fake_server({Op.TASK_SCHEDULE: scheduled}) as fake:
                task_status.started(fake.zap)
                await leave.wait()

        address: str = await nursery.start(serve)
        async with fallback(address, "", local) as client:
            await client.add("tick", "1h", print)
            leave.set()
            while await _is_connected(client):
                await trio.lowlevel.checkpoint()
            assert await client.add("tick", "2h", print) is Placement.ZAP
            assert not local.engine.remove("tick")


async def _is_connected(client: FallbackClient) -> bool:
    assert client.zap is not None
    return client.zap.is_connected


async def test_a_schedule_that_the_server_refuses_is_told_and_forgotten() -> None:
    refusal = encode_submit_reply(400, b'{"error":"too often"}')
    local = Local()
    answers = {Op.TASK_SCHEDULE: lambda call: call.answer_raw(refusal)}
    async with open_fake_server(answers) as fake, fallback(fake.zap, "", local) as client:
        with pytest.raises(CallFailed, match="too often"):
            await client.add("tick", "1ms", print)
        fake.drop_connections()
        await fake.until(lambda: fake.connections == 2)
        await client.zap.health()  # type: ignore[union-attr]
        assert [call.opcode for call in fake.calls if call.link is fake.links[-1]] == [Op.HEALTH]
    assert not local.engine.remove("tick")


async def test_over_http_alone_a_schedule_of_unknown_outcome_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zaptasks.blocking.fallback.ASK_AGAIN_SECONDS", (0.001,))
    local = Local()
    async with open_fake_http(lambda path, body: None) as http, fallback("", http.url, local) as client:
        with pytest.raises(OutcomeUnknown):
            await client.add("audit", "90s", print)
        assert len(http.posts) == 2
    assert not local.engine.remove("audit")


async def test_a_schedule_that_stays_because_it_is_refused_is_offered_again_and_said_once(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_fake_server() as fake:
        address = fake.zap
    local = Local()
    async with fallback(address, "", local) as client:
        assert await client.add("audit", "1h", print) is Placement.LOCAL
        refusal = encode_submit_reply(404, b'{"error":"namespace not registered"}')
        answers = {Op.TASK_SCHEDULE: lambda call: call.answer_raw(refusal)}
        async with open_fake_server(answers, port=int(address.rpartition(":")[2])) as fake:
            await fake.call_of(Op.TASK_SCHEDULE, 3)
            fake.answers[Op.TASK_SCHEDULE] = scheduled
            await fake.call_of(Op.SUBSCRIBE_ACTIVITY_TASKS)
    assert len([message for message in caplog.messages if "does not take schedule" in message]) == 1


async def test_over_http_alone_the_schedule_is_made_and_it_is_said_who_has_to_run_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    local = Local()
    async with open_fake_http(lambda path, body: (200, "{}")) as http, fallback("", http.url, local) as client:
        assert await client.add("audit", "90s", print) is Placement.HTTP
    assert "A worker that serves 'audit' runs them" in caplog.text
    assert not local.engine.remove("audit")


async def test_several_processes_that_added_the_same_name_share_its_firings() -> None:
    ran: list[str] = []

    def note(who: str) -> Callable[[], None]:
        return lambda: ran.append(who)

    async with (
        open_real_server() as server,
        open_client(server.zap) as client,
        fallback(server.zap) as one,
        fallback(server.zap) as two,
    ):
        await one.add("tick", "1h", note("one"))
        await two.add("tick", "1h", note("two"))
        handles = [await client.trigger_schedule("tick", overlap="allow") for _ in range(10)]
        for handle in handles:
            assert handle is not None
            await handle.result()
    assert len(ran) == 10
    assert set(ran) == {"one", "two"}
