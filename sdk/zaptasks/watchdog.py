"""Tells when code that should be quick holds its thread: a warning with its stack, again and again, and no more.

    watchdog = Watchdog()
    with watchdog.watch("workflow Order (w-1)"):
        commands = handler.handle(task)

A thread looks once in a while; what is watched pays for two attributes. Nothing is killed: a thread cannot be, and
what holds it may be about to finish.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

log = logging.getLogger("zaptasks.worker")

HELD_SECONDS_MAX: Final = 1.0
"""A workflow's step takes a millisecond; a server gives up on one after 10 s."""

STACK_FRAMES_MAX: Final = 30


@dataclass(slots=True)
class _Watched:
    label: str
    thread_id: int
    began: float
    warned: float = 0.0


class Watchdog:
    """Watches one thing at a time, in whichever thread it runs."""

    def __init__(self, seconds: float = HELD_SECONDS_MAX) -> None:
        if not seconds > 0:
            raise ValueError(f"seconds is {seconds!r}: it must be more than 0")
        self._seconds = seconds
        self._watched: _Watched | None = None
        self._is_idle = True
        self._is_closed = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def watch(self, label: str) -> Iterator[None]:
        """Warn when the block takes longer than the limit; and again each time that it has doubled."""
        previous = self._watched
        self._watched = _Watched(label, threading.get_ident(), time.monotonic())
        if self._is_idle:
            self._begin()
        try:
            yield
        finally:
            self._watched = previous

    def close(self, *, wait: bool = True) -> None:
        """End the thread. Waiting for that blocks for at most a quarter of the limit; else it ends by itself then."""
        self._is_closed = True
        self._wake.set()
        if wait and self._thread is not None:
            self._thread.join()

    def _begin(self) -> None:
        if self._thread is None and not self._is_closed:
            self._thread = threading.Thread(target=self._look_around, name="zaptasks-watchdog", daemon=True)
            self._thread.start()
        self._wake.set()

    def _look_around(self) -> None:
        while not self._is_closed:
            self._wake.clear()
            if self._watched is None:
                self._is_idle = True
                if self._watched is None:  # again, for one that came between the two lines
                    self._wake.wait()
            self._is_idle = False
            self._look()
            time.sleep(self._seconds / 4)

    def _look(self) -> None:
        watched = self._watched
        if watched is None:
            return
        held = time.monotonic() - watched.began
        if held < max(self._seconds, 2 * watched.warned):
            return
        watched.warned = held
        frame = sys._current_frames().get(watched.thread_id)
        if frame is None or self._watched is not watched:
            return
        stack = "".join(traceback.format_stack(frame, limit=None)[-STACK_FRAMES_MAX:])
        log.warning(
            "%s has held its thread for %.1f s without waiting for anything, and nothing else runs there. It is"
            " here:\n%s",
            watched.label,
            held,
            stack,
        )
