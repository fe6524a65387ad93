"""An attempt that waits for whoever has its token: from any process, over any connection.

    handle = client.get_activity_handle(token)     # what the handler read from activity.info().task_token
    await handle.complete({"approved": True})

The attempt is one whose handler ended with `activity.complete_later()`. It stays open, over the end of its worker and
of the server, until one of these calls or one of its timeouts ends it.
"""

from __future__ import annotations

from zapwire.opcodes import Op

from .caller import Caller
from .failures import canceled_failure, failure_of
from .payloads import SMALL_PAYLOAD_BYTES_MAX


class ActivityTokenHandle:
    """One attempt of an activity or task, by its token. Made by `client.get_activity_handle`.

    Every call raises `CallFailed` for an attempt that is over: with status 409 where a later one runs or waits, with
    404 where nothing is open any more, or the token never was one. Calls that end the attempt are not repeated by
    themselves: after `OutcomeUnknown` call again; a 404 then may mean that the first one had arrived.
    """

    def __init__(self, client: Caller, token: str) -> None:
        if not token:
            raise ValueError("the token is empty: hand over activity.info().task_token of the attempt")
        self._client = client
        self.token = token

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.token}>"

    async def complete(self, result: object = None) -> None:
        """End it with a result, as if the handler had returned it. Raises `PayloadError` for what JSON cannot carry."""
        payload = self._client.converter.encode(result, "the result of an activity")
        await self._client.respond(Op.RESPOND_ACTIVITY_TASK_COMPLETED, self.token, payload)

    async def fail(self, error: BaseException) -> None:
        """End this attempt as if the handler had raised `error`: it is retried or not by the same rules."""
        failure = self._client.converter.encode_failure(failure_of(error))
        await self._client.respond(Op.RESPOND_ACTIVITY_TASK_FAILED, self.token, failure)

    async def report_canceled(self, reason: str = "") -> None:
        """End it as canceled, once `heartbeat` has told of a cancel; else it is a failure that is not retried."""
        failure = self._client.converter.encode_failure(canceled_failure(reason))
        await self._client.respond(Op.RESPOND_ACTIVITY_TASK_FAILED, self.token, failure)

    async def heartbeat(self, *details: object) -> bool:
        """Say that somebody works on it, and keep `details` for the next attempt; True once it is to stop.

        Without details the earlier ones stand. Each call is one message: call it a few times within the heartbeat
        timeout. Raises `PayloadError` for details of more than 256 KiB.
        """
        encode = self._client.converter.encode
        payload = encode(list(details), "the heartbeat of an activity", SMALL_PAYLOAD_BYTES_MAX) if details else b""
        answer = await self._client.respond(Op.RECORD_ACTIVITY_TASK_HEARTBEAT, self.token, payload, repeat=True)
        return answer.status == 200
