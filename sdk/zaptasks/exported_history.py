"""The history of one run as a file, to replay it later against other code.

    history = await handle.export_history()
    Path("order-17.json").write_bytes(history.to_json())
    history = WorkflowHistory.read(Path("order-17.json").read_bytes())

The form is the same in JSON and in CBOR:

    {"version": 1, "namespace": "default", "workflow_id": "order-17", "run_id": "...", "workflow_type": "Order",
     "events": [
       {"eventId": 1, "eventTime": "...", "eventType": "WORKFLOW_EXECUTION_STARTED", "attributes": {...}},
       ...]}

Payloads stand in it as the server has them. What codecs have encrypted stays so, and a `Replayer` opens it.
"""

from __future__ import annotations

from typing import ClassVar, Final, TypeAlias

import msgspec

from zapwire.body import decode_cbor, decode_json, encode_cbor, encode_json
from zapwire.errors import BadBody, ZapError
from zapwire.frame import Buffer

from .workflow.history import STARTED, Event

VERSION: Final = 1
HISTORY_BYTES_MAX: Final = 128 * 1024 * 1024
"""Of a file. A server lets a history grow to 50 MiB unless it is told otherwise."""

_FIRST_OF_CBOR: Final = range(0xA0, 0xC0)
"""A map begins with one of these bytes, and no JSON does."""

Events: TypeAlias = list[Event]


class HistoryError(ZapError):
    """What was given is no history of a run, or one that cannot be replayed."""

    code: ClassVar[str] = "bad_history"
    status = 400


class _Head(msgspec.Struct, frozen=True):
    version: int


class WorkflowHistory(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that happened to one run of a workflow, with what it takes to replay it."""

    version: int = VERSION
    namespace: str = ""
    workflow_id: str
    run_id: str
    workflow_type: str
    events: Events

    def to_json(self) -> bytes:
        """As JSON, one event to a line, so that two of them can be compared line by line."""
        head = encode_json({**self._head(), "events": []}).removesuffix(b"]}")
        lines = b",\n".join(msgspec.json.encode(event) for event in self.events)
        return head + b"\n" + lines + b"\n]}\n"

    def to_cbor(self) -> bytes:
        """As CBOR. Raises `LocalProtocolError` for a number in a payload that CBOR peers do not take."""
        return encode_cbor(decode_json(self.to_json(), bytes_max=HISTORY_BYTES_MAX), bytes_max=HISTORY_BYTES_MAX)

    @classmethod
    def read(cls, data: Buffer) -> WorkflowHistory:
        """One from JSON or CBOR, whichever it is. Raises `HistoryError`, which says what is wrong with it.

        At most `HISTORY_BYTES_MAX` bytes, nested at most 200 levels deep.
        """
        try:
            body = data
            if data and data[0] in _FIRST_OF_CBOR:
                body = msgspec.json.encode(decode_cbor(data, bytes_max=HISTORY_BYTES_MAX))
            version = decode_json(body, _Head, bytes_max=HISTORY_BYTES_MAX).version
            if version != VERSION:
                raise HistoryError(f"this history is of version {version}, and this code reads version {VERSION}")
            history = decode_json(body, cls, bytes_max=HISTORY_BYTES_MAX)
        except BadBody as error:
            raise HistoryError(
                f"this is no history as `zaptasks workflow history ID --json` writes it: {error}"
            ) from None
        history.check()
        return history

    def check(self) -> None:
        """Raise `HistoryError` where events are missing, or the first is not the start of the run."""
        for position, event in enumerate(self.events, 1):
            if event.event_id != position:
                raise HistoryError(f"event {position} of {self} has the id {event.event_id}: events are missing")
        if not self.events or self.events[0].event_type != STARTED:
            first = self.events[0].event_type if self.events else "nothing"
            raise HistoryError(f"{self} begins with {first}: the first event of a run is {STARTED}")

    def _head(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__struct_fields__ if name != "events"}

    def __str__(self) -> str:
        return f"workflow {self.workflow_type!r} ({self.workflow_id}, run {self.run_id})"
