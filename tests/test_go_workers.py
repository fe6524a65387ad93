"""Workers of the Go kind that are killed in the middle: another one ends their workflows, and nothing is done twice.

Real processes on both sides: `zaptasks serve`, and workers that speak raw frames as Go's SDK does and replay nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from tests.helpers.go_worker import QUEUE, go_worker
from tests.helpers.running_server import RunningServer, running_server

from zaptasks import TaskFailed, WorkflowHandle, open_client

PLAN = [("reserve", "tea"), ("charge", 450), ("ship", {"to": "ada"})]
RESULT = ["reserve is done", "charge is done", "ship is done"]
ONCE = {'reserve "tea"': 1, "charge 450": 1, 'ship {"to": "ada"}': 1}

pytestmark = pytest.mark.slow


@asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[tuple[RunningServer, WorkflowHandle]]:
    """A server with a workflow that nobody has begun."""
    with running_server(data=tmp_path / "data") as server:
        async with open_client(server.zap) as client:
            yield server, await client.start_workflow("Order", "tea", task_queue=QUEUE, id="order-1")


async def result_of(handle: WorkflowHandle) -> object:
    with trio.fail_after(20):
        return await handle.result()


async def has(handle: WorkflowHandle, event_type: str, count: int) -> None:
    """Wait until the history has so many events of a type."""
    with trio.fail_after(20):
        while [event.event_type async for event in handle.history()].count(event_type) < count:  # noqa: ASYNC110
            await trio.sleep(0.01)


def counted(runs: Path) -> dict[str, int]:
    """How often each activity ran."""
    return dict(Counter(runs.read_text().splitlines()))


# --- the worker is killed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [("task",), ("asked 1",), ("result 1",), ("asked 2", "result 1", "result 3")])
async def test_a_worker_that_is_killed_anywhere_is_followed_by_another(tmp_path: Path, points: tuple[str, ...]) -> None:
    runs = tmp_path / "runs"
    async with running(tmp_path) as (server, handle):
        with go_worker(server.zap, runs=runs):
            for point in points:
                with go_worker(server.zap, PLAN, stop_at=point) as worker:
                    worker.until(point)
                    worker.kill()
            with go_worker(server.zap, PLAN):
                assert await result_of(handle) == RESULT
    assert counted(runs) == ONCE


async def test_an_activity_goes_on_while_the_worker_of_its_workflow_is_killed(tmp_path: Path) -> None:
    """What it returns while nobody holds the workflow is there for the next who does."""
    runs = tmp_path / "runs"
    async with running(tmp_path) as (server, handle):
        with go_worker(server.zap, runs=runs, stop_at="running charge") as hands:
            with go_worker(server.zap, PLAN) as worker:
                hands.until("running charge")
                worker.kill()
            hands.go_on()
            await has(handle, "ACTIVITY_TASK_COMPLETED", 2)
            with go_worker(server.zap, PLAN):
                assert await result_of(handle) == RESULT
    assert counted(runs) == ONCE


async def test_an_activity_whose_worker_is_killed_does_not_run_again_and_the_workflow_hears_of_it(
    tmp_path: Path,
) -> None:
    """Go's workers name no retry policy, and that is at most once."""
    runs = tmp_path / "runs"
    async with running(tmp_path) as (server, handle):
        with go_worker(server.zap, PLAN, runs=runs, stop_at="running charge") as worker:
            worker.until("running charge")
            worker.kill()
        with go_worker(server.zap, PLAN, runs=runs), pytest.raises(TaskFailed, match="WorkerLost"):
            await result_of(handle)
    assert counted(runs) == {'reserve "tea"': 1, "charge 450": 1}


async def test_with_a_retry_policy_an_activity_whose_worker_is_killed_runs_again_elsewhere(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    async with running(tmp_path) as (server, handle):
        with go_worker(server.zap, PLAN, runs=runs, stop_at="running charge", attempts=2) as worker:
            worker.until("running charge")
            worker.kill()
        with go_worker(server.zap, PLAN, runs=runs, attempts=2):
            assert await result_of(handle) == RESULT
    assert counted(runs) == {**ONCE, "charge 450": 2}


# --- the server is killed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["asked 1", "result 1", "result 3"])
async def test_a_server_that_is_killed_in_between_goes_on_where_it_was(tmp_path: Path, point: str) -> None:
    runs = tmp_path / "runs"
    async with running(tmp_path) as (server, handle):
        with go_worker(server.zap, runs=runs), go_worker(server.zap, PLAN, stop_at=point) as worker:
            worker.until(point)
            await has(handle, "ACTIVITY_TASK_COMPLETED", int(point[-1]))
            server.kill()
    with (
        running_server(data=tmp_path / "data") as server,
        go_worker(server.zap, runs=runs),
        go_worker(server.zap, PLAN),
    ):
        async with open_client(server.zap) as client:
            assert await result_of(client.get_handle("order-1")) == RESULT
    assert counted(runs) == ONCE


# --- another workflow comes back -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ([("reserve", "pot"), *PLAN[1:]], r"activity 1 of run .* was 'reserve' .* with another input"),
        ([("reserve", "tea"), ("bill", 450)], r"activity 2 of run .* was 'charge' .*; now it is 'bill'"),
    ],
    ids=["another input", "another type"],
)
async def test_a_workflow_that_asks_for_something_else_is_told_so(
    tmp_path: Path, other: list[tuple[str, object]], text: str
) -> None:
    runs = tmp_path / "runs"
    async with running(tmp_path) as (server, handle):
        with go_worker(server.zap, runs=runs):
            with go_worker(server.zap, PLAN, stop_at="result 2") as worker:
                worker.until("result 2")
                worker.kill()
            with (
                go_worker(server.zap, other),
                pytest.raises(TaskFailed, match=f"{text}.*the workflow is not deterministic"),
            ):
                await result_of(handle)
    assert counted(runs) == {'reserve "tea"': 1, "charge 450": 1}
