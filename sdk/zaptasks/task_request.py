"""One submission of a one-shot task, the same over ZAP and over HTTP: the request id is what makes it one."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

import msgspec

from zapwire.body import encode_json
from zapwire.envelope import encode_task_submit

from .converters import PLAIN, DataConverter
from .handlers import Kind, check_name
from .headers import Headers, HeaderSource, headers_of_start
from .options import (
    Durability,
    IdConflictPolicy,
    IdReusePolicy,
    RetryPolicy,
    Seconds,
    asked,
    id_policies,
    present,
    to_ms,
)
from .payloads import SMALL_PAYLOAD_BYTES_MAX


class TaskOptions(TypedDict, total=False):
    """What a one-shot task may be started with."""

    id: str
    """By default one of its own."""
    task_queue: str
    """Whose workers run it; by default "default"."""
    request_id: str
    """Names this submission: the same one again, here or from another process, starts nothing new and returns the first
    task. By default one of the client's own, for its repeats."""
    retry_policy: RetryPolicy | None
    """Without one the server's own: ten attempts."""
    start_to_close: Seconds | None
    """How long one attempt may take: ten minutes if none of these four times is given."""
    schedule_to_start: Seconds | None
    """How long it may wait for a worker."""
    schedule_to_close: Seconds | None
    """How long all of it may take."""
    heartbeat_timeout: Seconds | None
    """How long a handler may be silent."""
    memo: Mapping[str, object] | None
    headers: Headers | None
    """Texts for everything that belongs to the task, at most 4 KiB: every attempt has them as `current_task().headers`.
    They are added to those that `open_client(headers=...)` gives, and win over them."""
    id_reuse_policy: IdReusePolicy | None
    """By default "allow-duplicate"."""
    id_conflict_policy: IdConflictPolicy | None
    """By default "fail"."""
    durability: Durability | None
    """What the answer waits for; None is the server's own level, the strongest that it has. The handle's `durability`
    says what was reached, which is less on a server that keeps less. So in every call of a client."""


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """What a server is asked for. `payload` is JSON, or empty for none; `options` are what our servers read besides,
    the headers among them."""

    type: str
    payload: bytes
    request_id: str
    headers: Headers
    options: dict[str, object]

    @classmethod
    def make(
        cls,
        type: str,
        payload: object = None,
        *,
        identity: str,
        id: str = "",
        task_queue: str = "default",
        request_id: str = "",
        retry_policy: RetryPolicy | None = None,
        start_to_close: Seconds | None = None,
        schedule_to_start: Seconds | None = None,
        schedule_to_close: Seconds | None = None,
        heartbeat_timeout: Seconds | None = None,
        memo: Mapping[str, object] | None = None,
        headers: Headers | None = None,
        header_source: HeaderSource | None = None,
        id_reuse_policy: IdReusePolicy | None = None,
        id_conflict_policy: IdConflictPolicy | None = None,
        durability: Durability | None = None,
        converter: DataConverter = PLAIN,
    ) -> TaskRequest:
        """Check and encode everything, before anything is sent. Raises `PayloadError`, `ValueError`, `TypeError`."""
        check_name(type, Kind.TASK)
        sent_headers = headers_of_start(header_source, headers)
        request_id = request_id or uuid.uuid4().hex
        options = present(
            request_id=request_id,
            identity=identity,
            workflow_id=id,
            task_queue=task_queue,
            retry_policy=None if retry_policy is None else retry_policy.to_wire(),
            start_to_close_ms=to_ms(start_to_close, "start_to_close"),
            schedule_to_start_ms=to_ms(schedule_to_start, "schedule_to_start"),
            schedule_to_close_ms=to_ms(schedule_to_close, "schedule_to_close"),
            heartbeat_ms=to_ms(heartbeat_timeout, "heartbeat_timeout"),
            memo=converter.encode_optional(memo, f"the memo of {type!r}", SMALL_PAYLOAD_BYTES_MAX),
            headers=sent_headers,
            **id_policies(id_reuse_policy, id_conflict_policy),
        )
        body = b"" if payload is None else converter.encode(payload, f"the payload of {type!r}")
        return cls(type, body, request_id, sent_headers, options | asked(durability))

    def to_zap(self, namespace: str) -> bytes:
        """The message of 0x50, with the options in its spare slot."""
        return encode_task_submit(self.type, self.payload, encode_json({"namespace": namespace, **self.options}))

    def to_http(self) -> bytes:
        """The body of the HTTP route, Go's three fields and the options beside them."""
        return encode_json({"workflow_type": self.type, "input": msgspec.Raw(self.payload or b"null"), **self.options})
