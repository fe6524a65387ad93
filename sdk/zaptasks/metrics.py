"""Metrics of the application: what workflows and handlers count and measure, given to whoever keeps it.

class Kept:                                # any object with these three methods
    def counter(self, name, amount, tags): ...
    def gauge(self, name, value, tags): ...
    def timer(self, name, seconds, tags): ...

open_worker(client, metrics=Kept(), ...)
workflow.metrics.counter("orders", region="eu")            # in a workflow: silent in a replay
zaptasks.current_task().metrics.timer("render", 0.2)       # in an activity or a task
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeAlias

log = logging.getLogger("zaptasks.worker")

Tags: TypeAlias = Mapping[str, str]


class MetricsHandler(Protocol):
    """Takes what is measured. Called from the worker's loop and from the threads of `def` handlers: it must be quick
    and safe in threads. What it raises is logged and harms nobody."""

    def counter(self, name: str, amount: float, tags: Tags, /) -> None:
        """So many more of something."""

    def gauge(self, name: str, value: float, tags: Tags, /) -> None:
        """How much of something there is."""

    def timer(self, name: str, seconds: float, tags: Tags, /) -> None:
        """How long something took."""


class _Nobody:
    def counter(self, name: str, amount: float, tags: Tags, /) -> None:
        pass

    def gauge(self, name: str, value: float, tags: Tags, /) -> None:
        pass

    def timer(self, name: str, seconds: float, tags: Tags, /) -> None:
        pass


NO_METRICS: Final[MetricsHandler] = _Nobody()

Source: TypeAlias = tuple[MetricsHandler, Tags]


class Metrics:
    """Counts and measures, with tags that say of what. The worker adds `namespace`, `task_queue`, and `workflow_type`
    or `activity_type`; a tag of the same name that is given stands in its place."""

    __slots__ = ("_find",)

    def __init__(self, find: Callable[[], Source | None]) -> None:
        self._find = find

    def counter(self, name: str, amount: float = 1, /, **tags: str) -> None:
        """So many more of something. Raises `ValueError` for less than 0."""
        if not amount >= 0:
            raise ValueError(f"counter {name!r} by {amount!r}: a counter only grows; a gauge goes up and down")
        source = self._find()
        if source is not None:
            _give(source[0].counter, name, amount, {**source[1], **tags})

    def gauge(self, name: str, value: float, /, **tags: str) -> None:
        """How much of something there is now."""
        source = self._find()
        if source is not None:
            _give(source[0].gauge, name, value, {**source[1], **tags})

    def timer(self, name: str, seconds: float, /, **tags: str) -> None:
        """How long something took. Raises `ValueError` for less than 0."""
        if not seconds >= 0:
            raise ValueError(f"timer {name!r} of {seconds!r} s: a span of time is 0 or more")
        source = self._find()
        if source is not None:
            _give(source[0].timer, name, seconds, {**source[1], **tags})


def _give(take: Callable[[str, float, Tags], None], name: str, value: float, tags: Tags) -> None:
    try:
        take(name, value, tags)
    except Exception as error:  # a fault of the handler's must not be one of the workflow's
        log.error("the metrics handler failed at %r: %s", name, type(error).__name__, exc_info=error)
