"""The two HTTP routes that stand in for 0x50 and 0x51 when ZAP is out of reach.

The errors are those of ZAP: `NotSent` when the server cannot have seen the request, `OutcomeUnknown` when it can,
`CallFailed` when it said no.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TypeVar
from urllib.parse import quote

import httpx2
import msgspec

from zaptasks.errors import refusal
from zaptasks.options import Durability, asked, present
from zaptasks.records import Acknowledged, Started
from zaptasks.spec import Interval, parse_spec
from zaptasks.task_request import TaskRequest
from zapwire.body import decode_json, encode_json
from zapwire.errors import BadBody, CallFailed, NotSent, OutcomeUnknown

T = TypeVar("T")

AMBIGUOUS_STATUSES: Final = (500, 502, 504)
"""A proxy that lost its upstream, or a server that failed somewhere on the way: the task may exist. So may it after a
503 without a reason that a server of ours would give: proxies say that too when they lose a request on its way."""

ANSWER_CHARACTERS_SHOWN: Final = 200


class _Refusal(msgspec.Struct):
    error: str = ""


class HttpFallback:
    """Submits over HTTP. Opened with `open_http_fallback`."""

    def __init__(self, url: str, *, namespace: str, timeout: float) -> None:
        self._http: httpx2.AsyncClient | None = None
        self._timeout = timeout
        self._url = url
        self._base = f"{url}/api/v1/namespaces/{quote(namespace, safe='')}"

    def __str__(self) -> str:
        return self._url

    async def submit(self, request: TaskRequest) -> Started:
        """Start a one-shot task."""
        return await self._post(f"{self._base}/workflows", request.to_http(), Started)

    async def put_task_schedule(
        self, name: str, spec: str, *, task_queue: str, durability: Durability | None = None
    ) -> Acknowledged:
        """Create or replace a durable schedule."""
        text = spec.strip()
        parsed = parse_spec(text)
        is_interval = isinstance(parsed, Interval) and not parsed.on_second
        body = {
            "schedule_id": name,
            "schedule": {
                "spec": {"interval": [{"every": text}]} if is_interval else {"cron_expressions": [text]},
                "action": {"start_workflow": present(workflow_type=name, task_queue=task_queue)},
            },
            **asked(durability),
        }
        return await self._post(f"{self._base}/schedules/{quote(name, safe='')}", encode_json(body), Acknowledged)

    async def _post(self, url: str, body: bytes, answer: type[T]) -> T:
        if self._http is None:
            # Made when it is needed, and without the system's certificates, which take a tenth of a second to read,
            # where there is nothing to verify: redirects are not followed.
            self._http = httpx2.AsyncClient(timeout=self._timeout, verify=self._url.startswith("https:"))
        try:
            response = await self._http.post(url, content=body, headers={"content-type": "application/json"})
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError) as error:
            raise NotSent(f"{self._url} cannot be reached: {error or type(error).__name__}") from error
        except httpx2.HTTPError as error:
            raise OutcomeUnknown(f"no answer from {self._url}: {error or type(error).__name__}") from error
        if response.is_success:
            return decode_json(response.content or b"{}", answer)
        reason = _reason(response)
        text = reason or response.text[:ANSWER_CHARACTERS_SHOWN].strip()
        if response.status_code in AMBIGUOUS_STATUSES or (response.status_code == 503 and not reason):
            raise OutcomeUnknown(f"{self._url} answered {response.status_code}: {text}")
        if response.status_code in (404, 405) and not reason:
            raise CallFailed(501, f"{url} is not served")
        raise refusal(response.status_code, text)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.aclose()


def _reason(response: httpx2.Response) -> str:
    """The error text of a server that looked at the request; "" from one that has no such route."""
    try:
        return decode_json(response.content, _Refusal).error[:ANSWER_CHARACTERS_SHOWN]
    except BadBody:
        return ""


@asynccontextmanager
async def open_http_fallback(url: str, *, namespace: str, timeout: float) -> AsyncIterator[HttpFallback]:
    """`url` is where the server answers HTTP, as `parse_url` gives it. Nothing is connected before it is needed."""
    http = HttpFallback(url, namespace=namespace, timeout=timeout)
    try:
        yield http
    finally:
        await http.aclose()
