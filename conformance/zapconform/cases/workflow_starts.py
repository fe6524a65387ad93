"""Starts that bring more along: an update, or a worker of the starter's own; and histories that are followed. Ours."""

from __future__ import annotations

from zapconform import opcodes as op
from zapconform.case import case, check, equal
from zapconform.cases.workflow_replay import signal
from zapconform.peer import Json, Peer, failure, payload_value
from zapconform.trial import Execution, Trial, about


def start_body(trial: Trial, queue: str, workflow_id: str, **fields: object) -> Json:
    return {
        "namespace": trial.namespace,
        "workflow_id": workflow_id,
        "workflow_type": "Conform",
        "task_queue": queue,
        "update_name": "set",
        "update_id": "u1",
        "args": [1],
        **fields,
    }


@case(
    "workflow/update-with-start",
    "0x9E starts the workflow and gives the update to its first task; the next one finds the same run.",
    extension=True,
)
def update_with_start(trial: Trial) -> None:
    worker, client = trial.peer("worker"), trial.peer("client")
    queue, id = trial.name("queue"), trial.name("cart")
    worker.subscribe_workflows(trial.namespace, queue, replays=True, slots=10)
    trial.terminate_queue_later(queue)
    asked = client.send_call(op.UPDATE_WITH_START, start_body(trial, queue, id))
    task = worker.push(op.DELIVER_WORKFLOW)
    updates = [{"update_id": "u1", "name": "set", "args": [1]}]
    equal("updates", expected=updates, actual=task.body.get("updates"))
    commands = [
        {"kind": "accept-update", "update_id": "u1"},
        {"kind": "complete-update", "update_id": "u1", "result": 2},
    ]
    worker.commands(task, commands).succeeded()
    answer = client.reply(asked).ok()
    equal("the outcome", expected=("completed", 2), actual=(answer.get("stage"), answer.get("result")))
    equal("the run", expected=task.body.get("run_id"), actual=answer.get("run_id"))
    equal(
        "the same again", expected=answer, actual=client.call(op.UPDATE_WITH_START, start_body(trial, queue, id)).ok()
    )
    asked = client.send_call(op.UPDATE_WITH_START, start_body(trial, queue, id, update_id="u2"))
    task = worker.push(op.DELIVER_WORKFLOW)
    equal("the run of the second", expected=answer.get("run_id"), actual=task.body.get("run_id"))
    reason = payload_value(failure("not now").decode())
    worker.commands(task, [{"kind": "reject-update", "update_id": "u2", "failure": reason}]).succeeded()
    refused = client.reply(asked).refused(400)
    check("not now" in refused.envelope.error, expected="the reason", actual=refused.envelope.error)


@case(
    "workflow/update-with-start-refused",
    "0x9E that is refused starts nothing, and one whose id is open under the policy `fail` is refused.",
    extension=True,
)
def update_with_start_refused(trial: Trial) -> None:
    peer = trial.peer()
    queue, id = trial.name("queue"), trial.name("cart")
    for wrong in ({"update_name": ""}, {"workflow_type": ""}, {"workflow_id": ""}, {"wait": "perhaps"}):
        peer.call(op.UPDATE_WITH_START, {**start_body(trial, queue, id), **wrong}).refused(400)
    query = {"namespace": trial.namespace, "query": f"TaskQueue = '{queue}'"}
    equal("executions", expected=[], actual=peer.call(op.LIST, query).ok().get("executions"))
    trial.start(peer, queue, workflow_id=id)
    peer.call(op.UPDATE_WITH_START, start_body(trial, queue, id, id_conflict_policy="fail")).refused(409)


@case(
    "workflow/eager-start",
    "A start that names a subscription of its queue has its first task delivered there; other names do nothing.",
    extension=True,
)
def eager_start(trial: Trial) -> None:
    first, second, client = trial.peer("first"), trial.peer("second"), trial.peer("client")
    queue = trial.name("queue")
    first.subscribe_workflows(trial.namespace, queue, replays=True, slots=10)
    mine = second.subscribe_workflows(trial.namespace, queue, replays=True, slots=10)
    other = second.subscribe_workflows(trial.namespace, trial.name("other"), replays=True, slots=10)
    for number in range(3):
        execution = trial.start(client, queue, workflow_id=trial.name(f"eager-{number}"), eager_subscription=mine)
        second.push(op.DELIVER_WORKFLOW, about(execution))
    second.call(op.UNSUBSCRIBE, {"namespace": trial.namespace, "subscription_id": mine}).succeeded()
    for number, name in enumerate((mine, other, "x" * 10_000, "\x00")):
        execution = trial.start(client, queue, workflow_id=trial.name(f"odd-{number}"), eager_subscription=name)
        first.push(op.DELIVER_WORKFLOW, about(execution))


@case(
    "workflow/history-wait",
    "0x66 with wait is answered once there is an event past after_event_id, and at once when the run is closed.",
    extension=True,
)
def history_wait(trial: Trial) -> None:
    peer, reader = trial.peer(), trial.peer("reader")
    execution = trial.start(peer, trial.name("queue"))
    equal("at once", expected=1, actual=len(followed(trial, execution, 0, reader)["events"]))
    waiting = reader.send_call(op.HISTORY, follow_body(trial, execution, 1))
    reader.settle()
    check(not reader.has_reply(waiting), expected="no answer before there is an event", actual="an answer")
    signal(trial, peer, execution)
    page = reader.reply(waiting).ok()
    equal("the events", expected=[2], actual=[event.get("eventId") for event in page["events"]])
    equal("is_open", expected=True, actual=page.get("is_open"))
    equal("run_id", expected=execution.run_id, actual=page.get("run_id"))
    waiting = reader.send_call(op.HISTORY, follow_body(trial, execution, 2))
    peer.call(op.TERMINATE, {"namespace": trial.namespace, **execution.key}).succeeded()
    page = reader.reply(waiting).ok()
    equal("is_open", expected=False, actual=page.get("is_open"))
    after_the_end = followed(trial, execution, 3, reader)
    equal("after the end", expected=([], False), actual=(after_the_end["events"], after_the_end["is_open"]))
    reader.call(op.HISTORY, {**follow_body(trial, execution, 0), "reverse": True}).refused(400)


def follow_body(trial: Trial, execution: Execution, after: int) -> Json:
    return {"namespace": trial.namespace, **execution.key, "after_event_id": after, "wait": True}


def followed(trial: Trial, execution: Execution, after: int, peer: Peer) -> Json:
    return peer.call(op.HISTORY, follow_body(trial, execution, after)).ok()
