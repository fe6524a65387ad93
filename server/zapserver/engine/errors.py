"""What the engine refuses, and the status that each refusal is answered with.

A refused command leaves no trace: the engine checks before it changes anything.
"""

from __future__ import annotations

from typing import ClassVar


class EngineError(Exception):
    """The root of the engine's refusals; `status` is in HTTP's numbering."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "engine_error"


class Invalid(EngineError):
    """The command cannot mean anything: a name is missing or a value is out of range."""

    status = 400
    code = "invalid"


class NotFound(EngineError):
    """What the command names does not exist here."""

    status = 404
    code = "not_found"


class Conflict(EngineError):
    """What the command names exists, in a state that does not allow it."""

    status = 409
    code = "conflict"


class StaleToken(Conflict):
    """A task token that was good once: its lease ended, or the attempt was superseded."""

    code = "stale_token"


class Lost(EngineError):
    """Something that has to be in the store is not there, or is damaged."""

    code = "store_damaged"


class NoWorker(NotFound):
    """Nobody is subscribed who could answer. Go's server uses 404 for it, and so do we."""

    code = "no_worker"


class LimitReached(EngineError):
    """A bound of the server; the message says its value and what helps, and ends in its name.

    `limit` is that name, as `zaptasks limits` lists it; `retry_after_ms` is how long to wait, where that is known.
    """

    status = 429
    code = "limit_reached"

    def __init__(self, message: str, *, limit: str, retry_after_ms: int | None = None) -> None:
        super().__init__(f"{message} (limit {limit})")
        self.limit = limit
        self.retry_after_ms = retry_after_ms


class TooLarge(LimitReached):
    """A payload above its bound; the message names both."""

    status = 413
    code = "too_large"


class QueryFailed(EngineError):
    """The worker answered a query with an error."""

    status = 400
    code = "query_failed"


class QueryTimeout(EngineError):
    """No worker answered a query in time."""

    status = 504
    code = "query_timeout"
