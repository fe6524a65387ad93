"""Metrics of the application: what reaches the handler, with which tags, and what does not."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from tests.helpers.workers import served
from tests.helpers.workflow_world import World

import zaptasks
from zaptasks import workflow
from zaptasks.metrics import Metrics
from zaptasks.workflow import Run, WorkflowInfo, definition_of


class Kept:
    """A handler that keeps everything."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str, float, dict[str, str]]] = []

    def counter(self, name: str, amount: float, tags: Mapping[str, str]) -> None:
        self.all.append(("counter", name, amount, dict(tags)))

    def gauge(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        self.all.append(("gauge", name, value, dict(tags)))

    def timer(self, name: str, seconds: float, tags: Mapping[str, str]) -> None:
        self.all.append(("timer", name, seconds, dict(tags)))


async def render(page: str) -> str:
    zaptasks.current_task().metrics.timer("render", 0.25, page=page)
    return page


def shrink(page: str) -> str:
    zaptasks.current_task().metrics.gauge("size", 7)
    return page


@workflow.defn
async def report() -> None:
    workflow.metrics.counter("reports", region="eu")
    await workflow.execute_activity(render, "one", start_to_close=10)
    await workflow.execute_activity(shrink, "one", start_to_close=10)
    workflow.metrics.counter("pages", 2, task_queue="mine")


async def test_workflows_and_handlers_count_with_tags_of_where_they_are() -> None:
    kept = Kept()
    async with served(workflows=[report], activities=[render, shrink], metrics=kept) as (client, _):
        await (await client.start_workflow("report")).result()
    here = {"namespace": "default", "task_queue": "default"}
    assert kept.all == [
        ("counter", "reports", 1, here | {"workflow_type": "report", "region": "eu"}),
        ("timer", "render", 0.25, here | {"activity_type": "render", "page": "one"}),
        ("gauge", "size", 7, here | {"activity_type": "shrink"}),
        ("counter", "pages", 2, here | {"workflow_type": "report", "task_queue": "mine"}),
    ]


def test_a_replay_counts_nothing_again() -> None:
    world = World(report, render=lambda page: page, shrink=lambda page: page)
    started = world.start()
    history = world.history(started)
    kept = Kept()
    run = Run(definition_of(report), WorkflowInfo(workflow_id="w", run_id=started.run_id, type="report"))
    run.metrics = kept
    run.replay(history)
    assert run.end is not None
    assert kept.all == []
    run.close()


async def test_without_a_handler_nothing_happens_and_outside_of_a_workflow_there_is_none() -> None:
    async with served(workflows=[report], activities=[render, shrink]) as (client, _):
        assert await (await client.start_workflow("report")).result() is None
    with pytest.raises(workflow.NotInWorkflow):
        workflow.metrics.counter("reports")


def test_a_handler_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Kept):
        def counter(self, name: str, amount: float, tags: Mapping[str, str]) -> None:
            raise ConnectionError("no statsd")

    Metrics(lambda: (Broken(), {})).counter("orders")
    assert "the metrics handler failed at 'orders': ConnectionError" in caplog.text


@pytest.mark.parametrize("value", [-1, math.nan])
def test_counters_only_grow_and_spans_are_not_negative(value: float) -> None:
    kept = Kept()
    metrics = Metrics(lambda: (kept, {}))
    with pytest.raises(ValueError, match="a counter only grows"):
        metrics.counter("x", value)
    with pytest.raises(ValueError, match="a span of time is 0 or more"):
        metrics.timer("x", value)
    assert kept.all == []
