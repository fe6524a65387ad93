"""What a worker is opened with."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypedDict

from .handlers import NAME_CHARACTERS_MAX, Handlers
from .interceptors import Interceptor
from .metrics import NO_METRICS, MetricsHandler
from .options import Seconds
from .workflow.task_handler import RUNS_MAX

SLOTS: Final = 100
MAX_THREADS: Final = 40
MAX_PROCESSES: Final = os.cpu_count() or 1
SHUTDOWN_SECONDS: Final = 30.0


class WorkerOptions(TypedDict, total=False):
    """The options of `open_worker` and `run_worker`, for trio and for asyncio."""

    tasks: Handlers
    """Functions, or names with their functions; served under the types that they name and no other. A handler is called
    with the payload, or with nothing if it takes nothing."""
    activities: Handlers
    """The same for activities, which are called with their arguments. An object stands for its methods under
    `@activity.defn`. A delivery of one kind finds a handler of the other if there is no own."""
    workflows: Handlers
    """Classes and functions under `@workflow.defn`, which survive their worker, since another one replays them; or
    plain `async def` functions, which start over from the top."""
    slots: int
    """How many `async def` handlers run at once, and as many workflow tasks; by default 100."""
    max_threads: int
    """How many `def` handlers run at once, in threads; `slots` bounds them too. By default 40."""
    max_processes: int
    """The same for handlers under `process=True`; by default one for each processor."""
    max_cached_runs: int
    """Runs of workflows that are kept at hand, of 10 to 50 KiB each; by default 1,000. Others are replayed when they go
    on."""
    identity: str
    """Who the worker is to people who look at the server; by default who its client is."""
    build_id: str
    """Names the code that runs here, such as "2026-11-26.1", for people who read histories and `explain`. No task is
    routed by it."""
    interceptors: Iterable[Interceptor]
    """Called around every attempt at a task or activity, the first one outermost."""
    tasks_per_second: float | None
    """How many activities and tasks a second the server delivers to this worker; a tenth of a second's worth, at least
    one, may come at once. Meanwhile others wait in line, or go to other workers."""
    queue_tasks_per_second: float | None
    """The same for all workers of the task queue together; of several workers that say so the smallest counts."""
    sessions: int
    """How many sessions of workflows (`workflow.open_session`) it has a place for; their activities have as many slots
    again. By default none."""
    metrics: MetricsHandler
    """Takes what workflows and handlers count and measure."""
    shutdown_timeout: Seconds
    """How long what runs may take to finish when the worker leaves; by default 30 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """The same with every default. Raises `ValueError` and `TypeError` for what means nothing."""

    tasks: Handlers = ()
    activities: Handlers = ()
    workflows: Handlers = ()
    slots: int = SLOTS
    max_threads: int = MAX_THREADS
    max_processes: int = MAX_PROCESSES
    max_cached_runs: int = RUNS_MAX
    identity: str = ""
    build_id: str = ""
    interceptors: Iterable[Interceptor] = ()
    tasks_per_second: float | None = None
    queue_tasks_per_second: float | None = None
    sessions: int = 0
    metrics: MetricsHandler = NO_METRICS
    shutdown_timeout: Seconds = SHUTDOWN_SECONDS

    def __post_init__(self) -> None:
        for name in ("slots", "max_threads", "max_processes", "max_cached_runs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if len(self.build_id) > NAME_CHARACTERS_MAX or not self.build_id.isprintable():
            raise ValueError(
                f"build_id is {self.build_id!r}: it must be at most {NAME_CHARACTERS_MAX} printable characters"
            )
