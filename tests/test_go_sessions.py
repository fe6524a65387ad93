"""Recorded sessions of unmodified Go peers, played against our server.

Go's own server answered several of these calls wrongly (docs/wire.md has the list); here each must
get the right answer.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from tests.helpers.go_session import Player

from zapserver.dispatch import Dispatcher
from zapserver.namespaces import Namespaces
from zapwire.listener import open_listener
from zapwire.opcodes import Op


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@asynccontextmanager
async def playing() -> AsyncIterator[Player]:
    dispatcher = Dispatcher(Namespaces(now_ms=now_ms()), clock=now_ms)
    async with open_listener("127.0.0.1", 0, dispatcher, node_id="tasks-embed") as listener:
        host, port = listener.address
        stream = await trio.open_tcp_stream(host, port)
        async with stream:
            yield Player(stream)


async def test_the_21_calls_of_the_go_sdks_client() -> None:
    async with playing() as player:
        await player.play("go-sdk-client.jsonl")
        for request_id in (22, 23):  # Go's server never answered 22
            await player.answer(request_id)
        answers = player.answers
        refused = {request_id: answer.status for request_id, answer in answers.items() if answer.status != 200}
        # A query that nobody can answer, and a workflow that does not exist.
        assert refused == {9: 404, 14: 404}
        assert len(answers) == 23

        assert answers[2].body["namespace"]["info"]["name"] == "shop"
        assert answers[3].body["namespace"]["info"]["name"] == "default"
        assert answers[3].body["namespaceInfo"]["name"] == "default"
        names = {item["info"]["name"] for item in answers[4].body["namespaces"]}
        assert names == {"default", "shop"}
        described = answers[6].body["info"]
        assert (described["workflow_id"], described["status"], described["history_length"]) == ("order-1", 1, 1)
        assert described["memo"] == {"k": "v"}
        assert [item["workflow_id"] for item in answers[7].body["executions"]] == ["order-1"]
        assert answers[8].body == {"status": "signaled"}
        assert answers[9].error == answers[9].recorded["error"]
        # Signal-with-start: Go's server read it as a history call and lost the signal.
        assert answers[10].body["workflow_id"] == "cart-1"
        assert answers[10].body["run_id"]
        # Nobody works on it: canceled at once, after started, signaled and requested.
        assert (answers[11].body["status"], answers[11].body["history_length"]) == (4, 4)
        assert answers[13].body["status"] == 5
        assert answers[14].error == "workflow not found"
        assert answers[15].body["spec"]["timezone"] == "UTC"
        assert answers[15].body["action"]["input"] == ["full"]
        assert answers[16].body["spec"] == {"cron": None, "interval_ms": 30000, "jitter_ms": 1000}
        # Go's server deleted where its SDK lists, and listed where it deletes.
        assert [item["id"] for item in answers[17].body["schedules"]] == ["nightly", "tick"]
        assert answers[18].body["schedule"]["id"] == "nightly"
        assert answers[18].body["info"]["action_count"] == 0
        assert answers[19].body == {"status": "paused"}
        assert answers[20].body == {"status": "running"}
        assert answers[21].body["spec"]["cron"] == ["0 3 * * *"], "an update with nothing in it keeps what there is"
        assert answers[22].body["status"] == "triggered"
        assert answers[23].body["status"] == "deleted"


async def test_the_go_sdks_worker_runs_workflows_with_activities() -> None:
    async with playing() as player:
        await player.play("go-sdk-worker.jsonl")
        answers = player.answers
        refused = [answer for answer in answers.values() if answer.status not in (0, 200)]
        assert not refused
        heartbeats = [answer for answer in answers.values() if answer.opcode == Op.RECORD_ACTIVITY_TASK_HEARTBEAT]
        # Go's SDK reads any status but 0 as "cancel requested".
        assert [answer.status for answer in heartbeats] == [0]
        described = {
            answer.body["info"]["workflow_id"]: answer.body["info"]
            for answer in answers.values()
            if answer.opcode == Op.DESCRIBE_WORKFLOW
        }
        assert described["w-Hello"]["status"] == 2
        assert described["w-Hello"]["result"] == "hello ada"
        assert described["w-Fails"]["status"] == 3
        assert described["w-Fails"]["failure"]["p"]["code"] == "Payment"
        # Nobody here knows the type: it stays open for a worker that does.
        assert described["w-Unknown"]["status"] == 1


async def test_the_go_add_and_now_client_is_served() -> None:
    async with playing() as player:
        await player.play("go-mini-client.jsonl")
        for request_id in (1, 2, 3):
            answer = await player.answer(request_id)
            assert answer.status == 200
        assert player.answers[1].body["workflow_id"].startswith("webhook.deliver-")
        assert player.answers[2].body["schedule_id"] == "settlement.process"
        assert player.answers[3].body["schedule_id"] == "audit.archive"
