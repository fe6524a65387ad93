"""A history that is followed while its run goes on."""

from __future__ import annotations

import pytest
import trio
from tests.helpers.sdk_servers import Call, open_fake_server, open_real_server
from tests.helpers.workers import QUICK, served

from zaptasks import CallFailed, WithStart, open_client, workflow
from zapwire.handshake import Capability
from zapwire.opcodes import Op


@workflow.defn
class Counts:
    def __init__(self) -> None:
        self.count = 0

    @workflow.run
    async def run(self, count: int) -> int:
        await workflow.wait_condition(lambda: self.count == count)
        return self.count

    @workflow.signal
    def more(self) -> None:
        self.count += 1


async def test_events_come_as_they_happen_until_the_run_is_closed() -> None:
    async with served(workflows=[Counts]) as (client, _):
        handle = await client.start_workflow(Counts, 3)
        types: list[str] = []
        with trio.fail_after(10):
            async for event in client.get_handle(handle.workflow_id).history(follow=True):
                assert event.event_id == len(types) + 1
                types.append(event.event_type)
                if event.event_type == "WORKFLOW_TASK_COMPLETED" and types.count("WORKFLOW_EXECUTION_SIGNALED") < 3:
                    await handle.signal(Counts.more)  # only now, so that each is waited for
        assert types.count("WORKFLOW_EXECUTION_SIGNALED") == 3
        assert types[-1] == "WORKFLOW_EXECUTION_COMPLETED"
        again = [event.event_type async for event in handle.history(follow=True)]
        assert again == types == [event.event_type async for event in handle.history()]


async def test_a_reader_stays_with_its_run_and_with_its_place() -> None:
    async with open_real_server() as server, open_client(server.zap, backoff=QUICK) as client:
        first = await client.start_workflow("nobody", id="o")
        events = client.get_handle("o").history(follow=True)
        assert (await anext(events)).event_type == "WORKFLOW_EXECUTION_STARTED"
        with trio.move_on_after(0.05) as scope:
            await anext(events)
        assert scope.cancelled_caught
        server.drop_connections()
        async with trio.open_nursery() as nursery:
            types: list[str] = []

            async def read() -> None:
                types.extend([event.event_type async for event in events])

            nursery.start_soon(read)
            await trio.sleep(0.05)
            await client.signal_with_start("go", start=WithStart("nobody", id="o"))
            start = WithStart("nobody", id="o", id_conflict_policy="terminate-existing")
            second = await client.signal_with_start("go", start=start)
        assert second.run_id != first.run_id
        assert types == ["WORKFLOW_EXECUTION_SIGNALED", "WORKFLOW_EXECUTION_TERMINATED"]


async def test_a_server_that_does_not_tell_is_named_and_what_cannot_be_is_refused() -> None:
    def answer(call: Call) -> None:
        call.answer({"events": [], "next_cursor": 0})

    async with open_fake_server(capabilities=Capability(0)) as fake, open_client(fake.zap) as client:
        fake.answers[Op.GET_WORKFLOW_HISTORY] = answer
        with pytest.raises(CallFailed, match="does not tell when a history grows") as caught:
            await anext(client.get_handle("o").history(follow=True))
        assert caught.value.status == 501
    async with served(workflows=[]) as (client, _):
        with pytest.raises(CallFailed, match="404"):
            await anext(client.get_handle("o").history(follow=True))
        with pytest.raises(CallFailed, match="wait is for the events to come, and reverse for those before"):
            await client.call(Op.GET_WORKFLOW_HISTORY, {"workflow_id": "o", "wait": True, "reverse": True}, dict)
