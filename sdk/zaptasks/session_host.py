"""The places for sessions that a worker has. What a session is stands in `zaptasks.workflow.sessions`."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import trio

from .context import TaskContext, current_task
from .handlers import NAME_CHARACTERS_MAX

PLACES_MAX: Final = 1_000
"""Sessions of one worker at once: each holds a slot at the server and a task here."""

Announce: TypeAlias = Callable[[TaskContext, str, str], Awaitable[None]]
"""Signal a workflow: for the session of this task, under this name, that it is on this queue."""


class SessionHost:
    """The places of one worker. Raises `ValueError` for a number of places that cannot be."""

    def __init__(self, places: int, identity: str, announce: Announce) -> None:
        if not 0 <= places <= PLACES_MAX:
            raise ValueError(f"sessions is {places}: it must be 0 (none) to {PLACES_MAX}")
        self.places: Final = places
        own = f"/{secrets.token_hex(8)}"
        self.task_queue: Final = identity[: NAME_CHARACTERS_MAX - len(own)] + own
        """Served by this worker alone, for as long as it lives."""
        self._announce = announce
        self._leaving = trio.Event()
        self._reason = f"the worker {identity!r} leaves"

    def leave(self) -> None:
        """Let go of all sessions: the worker takes no more work, so they could not go on."""
        self._leaving.set()

    async def hold(self, signal_name: str) -> str:
        """The handler of the activity that holds a place. A cancel, the end of the block, frees it.

        Where the worker leaves it returns why: a hand-back would give the place to another worker. It has no
        checkpoint after `leave`, and so is over before anything that follows could cancel it.
        """
        await self._announce(current_task(), signal_name, self.task_queue)
        await self._leaving.wait()
        return self._reason
