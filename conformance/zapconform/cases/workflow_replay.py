"""Workers that replay: they subscribe with `replays`, get histories, and answer with named commands. Ours."""

from __future__ import annotations

from typing import Any

from zapconform import opcodes as op
from zapconform.case import case, check, equal
from zapconform.peer import Json, Peer, Push, failure, payload_value
from zapconform.trial import Execution, Trial, about


def replayed(trial: Trial, worker: Peer, **fields: Any) -> tuple[Execution, Push]:
    """A workflow whose first task this worker has; it subscribes for that."""
    queue = trial.name("queue")
    worker.subscribe_workflows(trial.namespace, queue, replays=True, slots=10)
    worker.subscribe_activities(trial.namespace, queue)
    execution = trial.start(worker, queue, **fields)
    return execution, worker.push(op.DELIVER_WORKFLOW, about(execution))


def types_of(task: Push) -> list[object]:
    history = task.body.get("history")
    check(isinstance(history, list), expected="a list under `history`", actual=task.body)
    return [event.get("eventType") for event in task.body["history"]]


def ids_of(task: Push) -> list[object]:
    return [event.get("eventId") for event in task.body["history"]]


def signal(trial: Trial, peer: Peer, execution: Execution, **fields: Any) -> None:
    body = {"namespace": trial.namespace, **execution.key, "signal_name": "go", **fields}
    peer.call(op.SIGNAL, body).succeeded()


def last_attributes(task: Push) -> Json:
    found = task.body["history"][-1]["attributes"]
    assert isinstance(found, dict)
    return found


@case(
    "workflow/replay-hello",
    "The whole round: the history, a command, an activity, what is new, and the end.",
    extension=True,
)
def replay_hello(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = replayed(trial, worker, input=["ada"])
    equal("the events", expected=["WORKFLOW_EXECUTION_STARTED"], actual=types_of(task))
    equal("the input", expected=["ada"], actual=payload_value(last_attributes(task).get("input")))
    equal("previous_event_id", expected=0, actual=task.body.get("previous_event_id"))
    check("input" not in task.body, expected="no input beside the history", actual=task.body)
    command = {"kind": "schedule-activity", "id": "0.1", "type": "Greet", "input": ["ada"]}
    worker.commands(task, [command]).succeeded()
    worker.complete(worker.push(op.DELIVER_ACTIVITY), "hello ada").succeeded()
    task = worker.push(op.DELIVER_WORKFLOW, about(execution))
    equal("previous_event_id", expected=1, actual=task.body.get("previous_event_id"))
    equal("the ids", expected=[2, 3, 4, 5], actual=ids_of(task))
    equal("the last event", expected="ACTIVITY_TASK_COMPLETED", actual=types_of(task)[-1])
    equal("commandId", expected="0.1", actual=last_attributes(task).get("commandId"))
    equal("the result", expected="hello ada", actual=payload_value(last_attributes(task).get("result")))
    worker.commands(task, [{"kind": "complete", "result": {"n": 1}}]).succeeded()
    answer = worker.call(op.AWAIT_EXECUTION, {"namespace": trial.namespace, **execution.key}).ok()
    equal("status", expected=2, actual=answer.get("status"))
    equal("result", expected={"n": 1}, actual=payload_value(answer.get("result")))


@case(
    "workflow/replay-timer", "A timer that a command started fires, and its event wakes the workflow.", extension=True
)
def replay_timer(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = replayed(trial, worker)
    worker.commands(task, [{"kind": "start-timer", "id": "0.1", "fire_after_ms": 50}]).succeeded()
    task = worker.push(op.DELIVER_WORKFLOW, about(execution))
    equal("the last event", expected="TIMER_FIRED", actual=types_of(task)[-1])
    equal("commandId", expected="0.1", actual=last_attributes(task).get("commandId"))


@case(
    "workflow/replay-signal-once",
    "A signal wakes the workflow; the same request id a second time is the same signal.",
    extension=True,
)
def replay_signal_once(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = replayed(trial, worker)
    worker.commands(task, []).succeeded()
    signal(trial, worker, execution, request_id="r1", input={"n": 1})
    task = worker.push(op.DELIVER_WORKFLOW, about(execution))
    equal("the last event", expected="WORKFLOW_EXECUTION_SIGNALED", actual=types_of(task)[-1])
    worker.commands(task, []).succeeded()
    signal(trial, worker, execution, request_id="r1", input={"n": 1})
    worker.no_push(op.DELIVER_WORKFLOW)


@case(
    "workflow/replay-elsewhere",
    "A worker that is lost leaves the run to another one, which gets the whole history.",
    extension=True,
)
def replay_elsewhere(trial: Trial) -> None:
    first, second = trial.peer("first"), trial.peer("second")
    execution, task = replayed(trial, first)
    queue = trial.describe(first, execution.workflow_id)["task_queue"]
    first.commands(task, [{"kind": "record-marker", "id": "0", "name": "side-effect", "details": 7}]).succeeded()
    signal(trial, first, execution)
    first.push(op.DELIVER_WORKFLOW, about(execution))
    first.close()
    second.subscribe_workflows(trial.namespace, queue, replays=True)
    task = second.push(op.DELIVER_WORKFLOW, about(execution))
    equal("previous_event_id", expected=0, actual=task.body.get("previous_event_id"))
    equal("the ids", expected=list(range(1, int(task.body["last_event_id"]) + 1)), actual=ids_of(task))
    check("MARKER_RECORDED" in types_of(task), expected="the marker in the history", actual=types_of(task))


@case(
    "workflow/replay-bad-answer",
    "An answer with a bad command is refused as a whole with 400, and the task goes out again.",
    extension=True,
)
def replay_bad_answer(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = replayed(trial, worker)
    good = {"kind": "start-timer", "id": "1", "fire_after_ms": 1}
    for bad in ({"kind": "start-timer", "id": "1", "fire_after_ms": 2}, {"kind": "no-such-kind"}):
        worker.commands(task, [good, bad]).refused(400)
        task = worker.push(op.DELIVER_WORKFLOW, about(execution))
        check("TIMER_STARTED" not in types_of(task), expected="no timer", actual=types_of(task))
    worker.commands(task, [{"kind": "fail-task", "reason": "my code is broken"}]).succeeded()
    worker.commands(worker.push(op.DELIVER_WORKFLOW, about(execution)), [{"kind": "complete"}]).succeeded()


@case("workflow/replay-child", "A child runs, and its parent gets its result.", extension=True)
def replay_child(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = replayed(trial, worker)
    kid = trial.name("kid")
    worker.commands(task, [{"kind": "start-child", "id": "0.1", "type": "Kid", "workflow_id": kid}]).succeeded()
    child = worker.push(op.DELIVER_WORKFLOW, lambda body: body.get("workflow_id") == kid)
    task = worker.push(op.DELIVER_WORKFLOW, about(execution))
    equal("the last event", expected="CHILD_WORKFLOW_STARTED", actual=types_of(task)[-1])
    worker.commands(task, []).succeeded()
    worker.commands(child, [{"kind": "complete", "result": "grown"}]).succeeded()
    task = worker.push(op.DELIVER_WORKFLOW, about(execution))
    equal("the last event", expected="CHILD_WORKFLOW_COMPLETED", actual=types_of(task)[-1])
    equal("the result", expected="grown", actual=payload_value(last_attributes(task).get("result")))


@case(
    "workflow/replay-update",
    "An update is delivered, accepted and completed; a rejected one is answered with 400 and the reason.",
    extension=True,
)
def replay_update(trial: Trial) -> None:
    worker, client = trial.peer("worker"), trial.peer("client")
    execution, task = replayed(trial, worker)
    worker.commands(task, []).succeeded()
    body = {"namespace": trial.namespace, **execution.key, "update_name": "set", "args": [1]}
    asked = client.send_call(op.UPDATE, {**body, "update_id": "u1"})
    task = worker.push(op.DELIVER_WORKFLOW, about(execution))
    expected = [{"update_id": "u1", "name": "set", "args": [1]}]
    equal("updates", expected=expected, actual=task.body.get("updates"))
    commands = [
        {"kind": "accept-update", "update_id": "u1"},
        {"kind": "complete-update", "update_id": "u1", "result": 2},
    ]
    worker.commands(task, commands).succeeded()
    answer = client.reply(asked).ok()
    outcome = {"update_id": "u1", "stage": "completed", "result": 2}
    equal("the outcome", expected=outcome, actual={name: answer.get(name) for name in outcome})
    equal("the run", expected=execution.run_id, actual=answer.get("run_id"))
    again = client.call(op.UPDATE, {**body, "update_id": "u1"}).ok()
    equal("the same again", expected=answer, actual=again)
    asked = client.send_call(op.UPDATE, {**body, "update_id": "u2"})
    task = worker.push(op.DELIVER_WORKFLOW, about(execution))
    reason = payload_value(failure("not now").decode())
    worker.commands(task, [{"kind": "reject-update", "update_id": "u2", "failure": reason}]).succeeded()
    refused = client.reply(asked).refused(400)
    check("not now" in refused.envelope.error, expected="the reason", actual=refused.envelope.error)


@case(
    "workflow/replay-continue-as-new",
    "A run that continues as new is followed by the next one, and a caller that follows waits for that.",
    extension=True,
)
def replay_continue_as_new(trial: Trial) -> None:
    worker, client = trial.peer("worker"), trial.peer("client")
    execution, task = replayed(trial, worker)
    key = {"namespace": trial.namespace, **execution.key}
    following = client.send_call(op.AWAIT_EXECUTION, {**key, "follow": True})
    waiting = client.send_call(op.AWAIT_EXECUTION, key)
    client.settle()
    worker.commands(task, [{"kind": "continue-as-new", "input": ["next"]}]).succeeded()
    told = client.reply(waiting).ok()
    equal("status_name", expected="CONTINUED_AS_NEW", actual=told.get("status_name"))
    task = worker.push(op.DELIVER_WORKFLOW, lambda body: body.get("workflow_id") == execution.workflow_id)
    equal("new_run_id", expected=task.body.get("run_id"), actual=told.get("new_run_id"))
    equal("the input", expected=["next"], actual=payload_value(last_attributes(task).get("input")))
    worker.commands(task, [{"kind": "complete", "result": "end"}]).succeeded()
    equal("the result", expected="end", actual=payload_value(client.reply(following).ok().get("result")))


@case(
    "workflow/id-policies", "An open id is refused, joined or taken over, as id_conflict_policy says.", extension=True
)
def id_policies(trial: Trial) -> None:
    peer = trial.peer()
    queue, id = trial.name("queue"), trial.name("wf")
    first = trial.start(peer, queue, workflow_id=id)
    body = {"namespace": trial.namespace, "workflow_id": id, "workflow_type": "Conform", "task_queue": queue}
    peer.call(op.START, body).refused(409)
    peer.call(op.START, {**body, "id_conflict_policy": "perhaps"}).refused(400)
    joined = trial.start(peer, queue, workflow_id=id, id_conflict_policy="use-existing")
    equal("the run", expected=first.run_id, actual=joined.run_id)
    second = trial.start(peer, queue, workflow_id=id, id_conflict_policy="terminate-existing")
    equal("the first run's status", expected=5, actual=trial.describe(peer, id, first.run_id).get("status"))
    peer.call(op.TERMINATE, {"namespace": trial.namespace, **second.key}).succeeded()
    peer.call(op.START, {**body, "id_reuse_policy": "reject-duplicate"}).refused(409)
