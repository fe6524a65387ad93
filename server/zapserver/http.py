"""HTTP: the two routes that the client's fallback uses, and health. A starlette app; it owns no state.

    POST /api/v1/namespaces/{ns}/workflows           start a one-shot task
    POST /api/v1/namespaces/{ns}/schedules/{name}    put a schedule of one
    any  /healthz                                    the process serves
    any  /v1/tasks/health                            it takes work: 503 while the default namespace's store fails

Answers are JSON and end with a newline; a refusal is {"error", "code"} with `code` as its status. A path or
method that does not exist is a plain 404, as Go's server has it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec
import trio
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from zapserver import requests
from zapserver.calls.tasks import start_task
from zapserver.dispatch import Dispatcher
from zapserver.engine.commands import Action, Command, PeerKey, PutSchedule, ScheduleSpec, Waiter
from zapserver.engine.errors import EngineError, Invalid, LimitReached
from zapserver.engine.limits import SMALL_PAYLOAD_BYTES_MAX
from zapserver.health import health
from zapserver.namespaces import Namespace, Namespaces
from zapserver.store import Durability, StoreError
from zaptasks.duration import MILLISECOND
from zaptasks.spec import Interval, parse_spec
from zapwire.body import BODY_BYTES_MAX, decode_json
from zapwire.errors import ZapError

REQUEST_BYTES_MAX: Final = BODY_BYTES_MAX
"""The same as over ZAP. It is counted while the body arrives, so that no more is ever held."""

REQUEST_SECONDS_MAX: Final = 30.0
"""For the whole of a body: a client that sends a byte a second is answered 408, not waited for."""

ANY_METHOD: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
JSON_TYPE: Final = "application/json"

R = TypeVar("R")
BodyT = TypeVar("BodyT")


class TaskBody(requests.TaskOptions):
    """What starts a task: Go's three fields, and our options beside them."""

    workflow_type: str = ""
    input: msgspec.Raw = msgspec.Raw(b"")


class EveryBody(msgspec.Struct):
    every: str = ""


class SpecBody(msgspec.Struct):
    interval: list[EveryBody] | None = None
    cron_expressions: list[str] | None = None
    timezone: str = ""


class ActionBody(msgspec.Struct):
    start_workflow: TaskBody = msgspec.field(default_factory=TaskBody)


class ScheduleBody(msgspec.Struct):
    spec: SpecBody = msgspec.field(default_factory=SpecBody)
    action: ActionBody = msgspec.field(default_factory=ActionBody)


class PutScheduleBody(msgspec.Struct):
    schedule_id: str = ""
    durability: str = ""
    schedule: ScheduleBody = msgspec.field(default_factory=ScheduleBody)


class HttpError(Exception):
    """A request that is refused before anybody looks at what it asks for."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def make_app(dispatcher: Dispatcher) -> Starlette:
    """The routes, over this dispatcher."""
    routes = _Routes(dispatcher)
    app = Starlette(
        routes=[
            Route("/api/v1/namespaces/{namespace}/workflows", routes.start_task, methods=["POST"]),
            Route("/api/v1/namespaces/{namespace}/schedules/{name:path}", routes.put_schedule, methods=["POST"]),
            Route("/healthz", routes.health, methods=ANY_METHOD),
            Route("/v1/tasks/health", routes.detailed_health, methods=ANY_METHOD),
        ],
        exception_handlers={
            404: _not_found,
            405: _not_found,
            HttpError: _refused,
            EngineError: _refused,
            ZapError: _refused,
            StoreError: _refused,
            ClientDisconnect: _disconnected,
            Exception: _failed,
        },
    )
    app.router.redirect_slashes = False
    app.state.namespaces = dispatcher.namespaces
    return app


class _Routes:
    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def start_task(self, request: Request) -> Response:
        body = await _read_body(request, TaskBody)
        call = self._call(request, body.durability)
        async with call.refusals_kept():
            started = start_task(call, body.workflow_type, requests.payload(body.input, "input"), body)
        answer = {"workflow_id": started.workflow_id, "run_id": started.run_id, "is_new": started.is_new}
        return _json(answer | {"durability": await call.kept()})

    async def put_schedule(self, request: Request) -> Response:
        body = await _read_body(request, PutScheduleBody)
        # The path is what is left after a proxy has cleaned it; the body's name is exact.
        name = body.schedule_id or request.path_params["name"]
        task = body.schedule.action.start_workflow
        call = self._call(request, body.durability)
        call.step(
            PutSchedule(
                schedule_id=name,
                spec=_spec(body.schedule.spec),
                action=Action(
                    type=task.workflow_type or name,
                    task_queue=requests.fallback_queue(task.task_queue),
                    is_task=True,
                    workflow_id=task.workflow_id,
                    input=requests.payload(task.input, "input"),
                    retry_policy=None if task.retry_policy is None else task.retry_policy.policy(),
                    memo=requests.payload(task.memo, "memo", SMALL_PAYLOAD_BYTES_MAX),
                ),
            )
        )
        return _json({"schedule_id": name, "status": "scheduled", "durability": await call.kept()})

    async def health(self, request: Request) -> Response:
        return _json({"service": "tasks", "status": "ok", "namespace": self._dispatcher.namespaces.default})

    async def detailed_health(self, request: Request) -> Response:
        counts: Counter[str] = Counter()
        for namespace in self._dispatcher.namespaces:
            counts.update(namespace.engine.views.counts())
        namespaces = self._dispatcher.namespaces
        answer = health(namespaces)
        more = {"namespaces": len(namespaces), "counts": {**counts, "refused": namespaces.refused}}
        return _json(answer | more, 200 if answer["status"] == "ok" else 503)

    def _call(self, request: Request, durability: str) -> _HttpCall:
        namespaces = self._dispatcher.namespaces
        namespace = namespaces.get(request.path_params["namespace"])
        call = _HttpCall(self._dispatcher, namespace, namespaces, self._dispatcher.clock())
        if durability:
            call.ask_for(durability)
        return call


@dataclass(slots=True)
class _HttpCall:
    """A `calls.Call` without a connection."""

    _dispatcher: Dispatcher
    namespace: Namespace
    namespaces: Namespaces
    now_ms: int
    peer: PeerKey = 0
    peer_name: str = "http"
    durability: Durability = Durability.SYNCED

    @property
    def waiter(self) -> Waiter:
        raise AssertionError("no HTTP route waits for an effect")

    def step(self, command: Command[R]) -> R:
        return self._dispatcher.submit(command, self.namespace, self.durability)

    def ask_for(self, durability: str) -> None:
        self.durability = requests.read_durability(durability)

    def changes(self, namespace: Namespace) -> None:
        raise AssertionError("no HTTP route changes a namespace itself")

    @asynccontextmanager
    async def refusals_kept(self) -> AsyncIterator[None]:
        """A refusal tells of others' work, such as a workflow id that is in use: it waits for that like any answer."""
        try:
            yield
        except EngineError:
            await self.kept()
            raise

    async def kept(self) -> str:
        """Wait until the answer may leave, and return the level that is reached then. Raises `StoreError`."""
        if self.durability is not Durability.MEMORY:
            await self._dispatcher.kept(self.namespace, self.durability)
        return min(self.durability, self.namespace.journal.durability).name.lower()


def _spec(body: SpecBody) -> ScheduleSpec:
    intervals = body.interval or []
    if len(intervals) > 1:
        raise Invalid(f"{len(intervals)} intervals in one schedule: give one, or cron expressions")
    milliseconds = 0
    for item in intervals:
        try:
            interval = parse_spec(item.every)
        except ValueError as error:
            raise Invalid(str(error)) from None
        if not isinstance(interval, Interval):
            raise Invalid(f"{item.every[:80]!r} is a cron expression; put it under `cron_expressions`")
        milliseconds = -(-interval.ns // MILLISECOND)
    return ScheduleSpec(cron=tuple(body.cron_expressions or ()), interval_ms=milliseconds, timezone=body.timezone)


# --- requests and answers -----------------------------------------------------------------------------


async def _read_body(request: Request, body_type: type[BodyT]) -> BodyT:
    """The JSON body; an empty one is {}, as Go's server reads it.

    A content type other than JSON is refused. A page in a browser can post plain text to a server on
    its user's own machine, without being asked; JSON it can not.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != JSON_TYPE:
        raise HttpError(415, f"content type {content_type[:80]!r}: send {JSON_TYPE}")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > REQUEST_BYTES_MAX:
        raise HttpError(413, f"a body of {declared} bytes: at most {REQUEST_BYTES_MAX} are allowed")
    data = bytearray()
    with trio.move_on_after(REQUEST_SECONDS_MAX) as scope:
        async with aclosing(request.stream()) as pieces:
            async for piece in pieces:
                data += piece
                if len(data) > REQUEST_BYTES_MAX:
                    raise HttpError(413, f"a body of more than {REQUEST_BYTES_MAX} bytes, which is all that is allowed")
    if scope.cancelled_caught:
        raise HttpError(408, f"the body was not complete within {REQUEST_SECONDS_MAX:g} s")
    return decode_json(data or b"{}", body_type)


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value) + b"\n", status, headers, media_type=JSON_TYPE)


def _error(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json({"error": text, "code": status}, status, headers)


def _refused(request: Request, error: Exception) -> Response:
    status = getattr(error, "status", 500)
    request.app.state.namespaces.count_refusal(error)
    if isinstance(error, LimitReached) and error.retry_after_ms is not None:
        body = {"error": str(error), "code": status, "retry_after_ms": error.retry_after_ms}
        return _json(body, status, {"retry-after": str(-(-error.retry_after_ms // 1000))})
    # What was not read of a body would be taken for the next request.
    return _error(status, str(error), {"connection": "close"} if status in (408, 413, 415) else None)


def _not_found(request: Request, error: Exception) -> Response:
    return PlainTextResponse("404 page not found\n", 404)


def _disconnected(request: Request, error: Exception) -> Response:
    return _error(400, "the client closed the connection before its body was complete")


def _failed(request: Request, error: Exception) -> Response:
    """The server logs the exception itself; its text may hold what no client should see."""
    return _error(500, f"internal error: {type(error).__name__}")
