"""Ending a workflow from outside: cancel, which asks, and terminate, which does not."""

from __future__ import annotations

import base64
import time

from zapconform import opcodes as op
from zapconform.case import SHOULD, case, check, equal
from zapconform.cases.workflow import CANCELED, CANCELING, RUNNING, TERMINATED, event_types
from zapconform.peer import Json, Peer
from zapconform.trial import Execution, Trial, about


def cancel(trial: Trial, peer: Peer, execution: Execution, reason: str = "enough") -> Json:
    return peer.call(op.CANCEL, {"namespace": trial.namespace, **execution.key, "reason": reason}).ok()


@case("workflow/cancel-with-no-worker", "Cancel with nobody subscribed: CANCELED at once, with a history of 3 events.")
def cancel_with_no_worker(trial: Trial) -> None:
    peer = trial.peer()
    execution = trial.start(peer, trial.name("queue"))
    info = cancel(trial, peer, execution)
    equal("status and history_length", expected=(CANCELED, 3), actual=(info.get("status"), info.get("history_length")))
    events = trial.history(peer, execution)["events"]
    equal("events", expected=["STARTED", "CANCEL_REQUESTED", "CANCELED"], actual=event_types(events))


@case("workflow/cancel-never-delivered-later", "A workflow canceled before any worker came is never delivered.")
def cancel_never_delivered_later(trial: Trial) -> None:
    peer = trial.peer()
    queue = trial.name("queue")
    cancel(trial, peer, trial.start(peer, queue))
    peer.subscribe_workflows(trial.namespace, queue)
    peer.no_push(op.DELIVER_WORKFLOW)


@case(
    "workflow/cancel-asks-its-worker",
    "Cancel of a workflow that a worker holds: CANCELING, and 0xB3 with ids and reason.",
)
def cancel_asks_its_worker(trial: Trial) -> None:
    worker, client = trial.peer("worker"), trial.peer("client")
    execution, _ = trial.held_workflow(worker, trial.name("queue"))
    info = cancel(trial, client, execution, "too late")
    check(info.get("status") in (CANCELING, RUNNING), expected="status 0 (CANCELING)", actual=info)
    push = worker.push(op.DELIVER_CANCEL)
    check(about(execution)(push.body), expected=f"the ids of {execution}", actual=push.body)
    equal("reason", expected="too late", actual=push.body.get("reason"))


@case("workflow/cancel-acknowledged", "Command kind 3 after a cancel ends the workflow as CANCELED.")
def cancel_acknowledged(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = trial.held_workflow(worker, trial.name("queue"))
    cancel(trial, worker, execution)
    worker.push(op.DELIVER_CANCEL)
    why = base64.b64encode(b"stopped cleanly").decode()
    worker.commands(task, [{"kind": 3, "failure": why}]).succeeded()
    equal("status", expected=CANCELED, actual=trial.describe(worker, execution.workflow_id).get("status"))
    events = trial.history(worker, execution)["events"]
    equal("events", expected=["STARTED", "CANCEL_REQUESTED", "CANCELED"], actual=event_types(events))


@case("workflow/cancel-is-a-request", "A worker may complete a workflow whose cancellation was asked for.")
def cancel_is_a_request(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = trial.held_workflow(worker, trial.name("queue"))
    cancel(trial, worker, execution)
    worker.commands(task, [{"kind": 0, "result": "MQ=="}]).succeeded()
    equal("status", expected=2, actual=trial.describe(worker, execution.workflow_id).get("status"))


@case("workflow/cancel-twice-adds-nothing", "A second cancel while CANCELING adds no event to the history.")
def cancel_twice_adds_nothing(trial: Trial) -> None:
    worker = trial.peer()
    execution, _ = trial.held_workflow(worker, trial.name("queue"))
    first = cancel(trial, worker, execution)
    second = cancel(trial, worker, execution)
    equal("history_length", expected=first.get("history_length"), actual=second.get("history_length"))
    equal("history_length", expected=2, actual=second.get("history_length"))


@case("workflow/cancel-closed-changes-nothing", "Cancel of a closed workflow answers its record, unchanged.")
def cancel_closed_changes_nothing(trial: Trial) -> None:
    peer = trial.peer()
    execution = trial.start(peer, trial.name("queue"))
    peer.call(op.TERMINATE, {"namespace": trial.namespace, **execution.key}).succeeded()
    before = trial.describe(peer, execution.workflow_id)
    equal("info", expected=before, actual=cancel(trial, peer, execution))


@case(
    "workflow/cancel-survives-worker-death",
    "A cancel that its worker did not live to answer reaches the next worker, or ends the workflow.",
)
def cancel_survives_worker_death(trial: Trial) -> None:
    worker, other = trial.peer("worker"), trial.peer("other")
    queue = trial.name("queue")
    execution, _ = trial.held_workflow(worker, queue)
    cancel(trial, worker, execution)
    worker.push(op.DELIVER_CANCEL)
    other.subscribe_workflows(trial.namespace, queue)
    worker.close()
    deadline = time.monotonic() + trial.timeout
    while not any(push.opcode == op.DELIVER_WORKFLOW for push in other.pushes):
        info = trial.describe(other, execution.workflow_id)
        if info.get("status") == CANCELED:
            return
        check(time.monotonic() < deadline, expected="CANCELED, or a delivery to the other worker", actual=info)
        other.pump(time.monotonic() + 0.05)
    task = other.push(op.DELIVER_WORKFLOW, about(execution))
    other.push(op.DELIVER_CANCEL, about(execution))
    other.commands(task, [{"kind": 3}]).succeeded()
    equal("status", expected=CANCELED, actual=trial.describe(other, execution.workflow_id).get("status"))


@case("workflow/cancel-latest-run", "Cancel without a run id is about the latest run.")
def cancel_latest_run(trial: Trial) -> None:
    peer = trial.peer()
    workflow_id, queue = trial.name("wf"), trial.name("queue")
    first = trial.start(peer, queue, workflow_id=workflow_id)
    peer.call(op.TERMINATE, {"namespace": trial.namespace, **first.key}).succeeded()
    second = trial.start(peer, queue, workflow_id=workflow_id)
    answer = peer.call(op.CANCEL, {"namespace": trial.namespace, "workflow_id": workflow_id}).ok()
    equal("run", expected=second.run_id, actual=answer.get("run_id"))
    equal("status", expected=CANCELED, actual=answer.get("status"))


@case("workflow/terminate", "Terminate ends a workflow at once: status 5, a last event TERMINATED with the reason.")
def terminate(trial: Trial) -> None:
    peer = trial.peer()
    execution = trial.start(peer, trial.name("queue"))
    body = {"namespace": trial.namespace, **execution.key, "reason": "because", "identity": "someone"}
    info = peer.call(op.TERMINATE, body).ok()
    equal(
        "status and history_length", expected=(TERMINATED, 2), actual=(info.get("status"), info.get("history_length"))
    )
    last = trial.history(peer, execution)["events"][-1]
    equal("the last event", expected=["TERMINATED"], actual=event_types([last]))
    equal("its reason", expected="because", actual=last.get("attributes", {}).get("reason"))


@case("workflow/terminate-twice", "Terminate of a closed workflow answers its record, unchanged.")
def terminate_twice(trial: Trial) -> None:
    peer = trial.peer()
    execution = trial.start(peer, trial.name("queue"))
    body = {"namespace": trial.namespace, **execution.key}
    first = peer.call(op.TERMINATE, body).ok()
    equal("info", expected=first, actual=peer.call(op.TERMINATE, body).ok())


@case("workflow/terminate-refuses-its-worker", "The token of a terminated workflow's task is refused.")
def terminate_refuses_its_worker(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = trial.held_workflow(worker, trial.name("queue"))
    worker.call(op.TERMINATE, {"namespace": trial.namespace, **execution.key}).succeeded()
    worker.commands(task, [{"kind": 0, "result": "MQ=="}]).refused()
    equal("status", expected=TERMINATED, actual=trial.describe(worker, execution.workflow_id).get("status"))


@case("workflow/terminate-withdraws-its-task", "A workflow terminated before any worker came is never delivered.")
def terminate_withdraws_its_task(trial: Trial) -> None:
    peer = trial.peer()
    queue = trial.name("queue")
    execution = trial.start(peer, queue)
    peer.call(op.TERMINATE, {"namespace": trial.namespace, **execution.key}).succeeded()
    peer.subscribe_workflows(trial.namespace, queue)
    peer.no_push(op.DELIVER_WORKFLOW)


@case(
    "workflow/terminate-refuses-its-activities",
    "The token of an activity whose workflow was terminated is refused.",
    severity=SHOULD,
)
def terminate_refuses_its_activities(trial: Trial) -> None:
    worker = trial.peer()
    execution, _, activity = trial.held_activity(worker, trial.name("queue"))
    worker.call(op.TERMINATE, {"namespace": trial.namespace, **execution.key}).succeeded()
    worker.complete(activity).refused()
