"""A worker of a real server, of one in virtual time, or of a fake one, in one line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from tests.helpers.sdk_servers import FakeServer, open_real_server

from zaptasks import (
    AsyncClient,
    RetryPolicy,
    TaskFailed,
    Worker,
    open_client,
    open_worker,
)
from zaptasks.testing import WorkflowEnvironment
from zaptasks.trio_thread import Block, TrioThread
from zapwire.client_link import Backoff

QUICK = Backoff(seconds_min=0.01, seconds_max=0.02)
NO_RETRY = RetryPolicy(maximum_attempts=1)
THREAD_SECONDS_MAX = 20.0
AT_ONCE = RetryPolicy(initial_interval=0.001, maximum_attempts=5)


@asynccontextmanager
async def served(**handlers: Any) -> AsyncIterator[tuple[AsyncClient, Worker]]:
    """A real server with one worker."""
    async with (
        open_real_server() as server,
        open_client(server.zap, backoff=QUICK) as client,
        open_worker(client, **handlers) as worker,
    ):
        yield client, worker


@asynccontextmanager
async def in_virtual_time(**handlers: Any) -> AsyncIterator[tuple[AsyncClient, Worker]]:
    """The same in a `WorkflowEnvironment`: retries and timers take no time. What sleeps in real time is not for it."""
    async with WorkflowEnvironment() as env, open_worker(env.client, **handlers) as worker:
        yield env.client, worker


@asynccontextmanager
async def at_fake(fake: FakeServer, **handlers: Any) -> AsyncIterator[Worker]:
    """A worker of a fake server."""
    async with open_client(fake.zap, backoff=QUICK) as client, open_worker(client, **handlers) as worker:
        yield worker


async def failure_of(handler: Callable[..., Any], payload: object = None) -> TaskFailed:
    """What the caller gets to see of a handler that fails."""
    async with in_virtual_time(tasks={"x": handler}) as (client, _):
        with pytest.raises(TaskFailed) as caught:
            await (await client.now("x", payload, retry_policy=NO_RETRY)).result()
    return caught.value


@contextmanager
def worker_in_a_thread(zap: str, task_queue: str, **handlers: Any) -> Iterator[None]:
    """A worker beside a test that blocks."""

    @asynccontextmanager
    async def opened_worker() -> AsyncIterator[None]:
        async with open_client(zap, backoff=QUICK) as client, open_worker(client, task_queue, **handlers):
            yield

    opened: Future[None] = Future()
    ended: Future[None] = Future()
    block = Block(opened_worker(), opened, ended)
    block.enter(TrioThread("test-worker"))
    opened.result(THREAD_SECONDS_MAX)
    try:
        yield
    finally:
        block.leave()
        ended.result(THREAD_SECONDS_MAX)
