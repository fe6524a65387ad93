"""The HTTP routes that the client's fallback and health checks use."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from urllib.parse import urlsplit

from zapconform import opcodes as op
from zapconform.case import SHOULD, Failed, case, check, equal
from zapconform.peer import Json, same_json
from zapconform.trial import Trial

DEFAULT_QUEUE = "default"
WORKFLOWS = "/api/v1/namespaces/default/workflows"
SCHEDULES = "/api/v1/namespaces/default/schedules/"


@dataclass(frozen=True)
class Answer:
    status: int
    kind: str
    body: bytes

    def json(self) -> Json:
        try:
            value = json.loads(self.body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise Failed(expected="a JSON object", actual=str(self))
        return value

    def __str__(self) -> str:
        return f"HTTP {self.status} {self.kind} {self.body[:300]!r}"


def ask(trial: Trial, method: str, path: str, body: Json | bytes | None = None) -> Answer:
    url = urlsplit(trial.http_url)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname or "127.0.0.1", url.port, timeout=trial.timeout)
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    trial.log.add("http", "sent", data or b"", f"{method} {path}")
    try:
        connection.request(method, url.path.rstrip("/") + path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = Answer(response.status, response.headers.get_content_type(), response.read())
    except (OSError, http.client.HTTPException) as reason:
        raise Failed(expected=f"an answer to {method} {path}", actual=repr(reason)) from None
    finally:
        connection.close()
    trial.log.add("http", "received", answer.body, str(answer))
    return answer


def refused(trial: Trial, path: str, body: Json | bytes) -> None:
    answer = ask(trial, "POST", path, body)
    check(400 <= answer.status < 500, expected=f"a 4xx for {body!r}", actual=str(answer))
    error = answer.json()
    equal("code", expected=answer.status, actual=error.get("code"))
    check(bool(error.get("error")), expected="a text under `error`", actual=error)


@case("http/healthz", "GET /healthz answers 200 with service, status and namespace.", http=True)
def healthz(trial: Trial) -> None:
    healthy(trial, "/healthz")


@case("http/health", "GET /v1/tasks/health answers 200 with service, status and namespace.", http=True)
def health(trial: Trial) -> None:
    healthy(trial, "/v1/tasks/health")


def healthy(trial: Trial, path: str) -> None:
    answer = ask(trial, "GET", path)
    equal("HTTP status", expected=200, actual=answer.status)
    equal("content type", expected="application/json", actual=answer.kind)
    body = answer.json()
    equal("service and status", expected=("tasks", "ok"), actual=(body.get("service"), body.get("status")))
    check(bool(body.get("namespace")), expected="a namespace", actual=body)


@case("http/unknown-path", "An unknown path is answered 404.", http=True)
def unknown_path(trial: Trial) -> None:
    equal("HTTP status", expected=404, actual=ask(trial, "GET", "/no/such/path").status)


@case(
    "http/now-delivers",
    "What the mini client posts as `Now` is delivered over ZAP.",
    http=True,
    exclusive=DEFAULT_QUEUE,
)
def now_delivers(trial: Trial) -> None:
    worker = trial.peer()
    task_type = trial.name("job")
    worker.subscribe_activities(trial.namespace, DEFAULT_QUEUE, types=[task_type])
    payload = {"n": 3, "big": 2**53 + 1}
    answer = ask(trial, "POST", WORKFLOWS, {"workflow_type": task_type, "task_queue": "ats", "input": payload})
    check(answer.status // 100 == 2, expected="a 2xx", actual=str(answer))
    task = worker.push(op.DELIVER_ACTIVITY, lambda body: body.get("activity_type_name") == task_type)
    same_json("the input", payload, task.body.get("input"))
    worker.complete(task).succeeded()


@case(
    "http/now-request-id",
    "`Now` repeated with its request id is one task.",
    http=True,
    exclusive=DEFAULT_QUEUE,
    severity=SHOULD,
)
def now_request_id(trial: Trial) -> None:
    worker = trial.peer()
    task_type = trial.name("job")
    worker.subscribe_activities(trial.namespace, DEFAULT_QUEUE, types=[task_type])
    body = {"workflow_type": task_type, "task_queue": "ats", "input": {}, "request_id": trial.name("request")}
    for _ in range(3):
        answer = ask(trial, "POST", WORKFLOWS, body)
        check(answer.status // 100 == 2, expected="a 2xx", actual=str(answer))
    worker.complete(worker.push(op.DELIVER_ACTIVITY)).succeeded()
    worker.no_push(op.DELIVER_ACTIVITY)


@case(
    "http/now-refused",
    "`Now` without a type, or with a body that is no JSON object, is a 4xx with a JSON error.",
    http=True,
)
def now_refused(trial: Trial) -> None:
    for body in (b"{", b"[]", b"nope", b"", {}, {"workflow_type": ""}, {"workflow_type": 5}):
        refused(trial, WORKFLOWS, body)


@case(
    "http/add-fires",
    "What the mini client posts as `Add` fires, and its task is delivered over ZAP.",
    http=True,
    exclusive=DEFAULT_QUEUE,
    seconds=2,
)
def add_fires(trial: Trial) -> None:
    worker = trial.peer()
    name = trial.name("tick")
    trial.delete_later(name)
    worker.subscribe_activities(trial.namespace, DEFAULT_QUEUE, types=[name])
    answer = ask(trial, "POST", SCHEDULES + name, add_body(name, {"interval": [{"every": "1s"}]}))
    check(answer.status // 100 == 2, expected="a 2xx", actual=str(answer))
    task = worker.push(op.DELIVER_ACTIVITY, lambda body: body.get("activity_type_name") == name)
    worker.complete(task).succeeded()


@case("http/add-cron", "`Add` with a cron expression makes a schedule that 0x76 describes.", http=True)
def add_cron(trial: Trial) -> None:
    name = trial.name("tick")
    trial.delete_later(name)
    answer = ask(trial, "POST", SCHEDULES + name, add_body(name, {"cron_expressions": ["0 3 * * *"]}))
    check(answer.status // 100 == 2, expected="a 2xx", actual=str(answer))
    body = {"namespace": trial.namespace, "schedule_id": name}
    spec = trial.peer().call(op.DESCRIBE_SCHEDULE, body).ok().get("spec")
    check(isinstance(spec, dict) and spec.get("cron") == ["0 3 * * *"], expected="the expression", actual=spec)


@case("http/add-refused", "`Add` with a rule that cannot be is a 4xx with a JSON error.", http=True)
def add_refused(trial: Trial) -> None:
    for spec in (
        {},
        {"interval": [{"every": "0s"}]},
        {"interval": [{"every": "-5s"}]},
        {"interval": [{"every": "soon"}]},
        {"cron_expressions": ["nope"]},
        {"cron_expressions": ["TZ=UTC"]},
        {"cron_expressions": ["0 0 30 2 *"]},
    ):
        name = trial.name("tick")
        trial.delete_later(name)
        refused(trial, SCHEDULES + name, add_body(name, spec))
    refused(trial, SCHEDULES + trial.name("tick"), b"not json")


def add_body(name: str, spec: Json) -> Json:
    action = {"start_workflow": {"workflow_type": name, "task_queue": "ats"}}
    return {"schedule_id": name, "schedule": {"spec": spec, "action": action}}
