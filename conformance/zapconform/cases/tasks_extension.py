"""The additions of zaptasks to tasks: waiting for a result, cancellation, dead letters, handing back."""

from __future__ import annotations

import time

from zapconform import opcodes as op
from zapconform import wire
from zapconform.case import SHOULD, case, check, equal, shown
from zapconform.peer import Json, payload_value
from zapconform.trial import Execution, Trial, about


def wait_body(trial: Trial, execution: Execution) -> Json:
    return {"namespace": trial.namespace, **execution.key}


# --- cancellation (v1 can ask for it; the answer to the next heartbeat tells the worker) -------------------


@case(
    "tasks/cancel-reaches-heartbeat",
    "When a task's execution is canceled, its next heartbeat is answered with byte 8 set.",
    extension=True,
)
def cancel_reaches_heartbeat(trial: Trial) -> None:
    worker, client = trial.peer("worker"), trial.peer("client")
    execution, task = trial.held_task(worker, trial.name("queue"))
    equal("byte 8 before", expected=0, actual=worker.heartbeat(task).envelope.byte_8)
    client.call(op.CANCEL, {"namespace": trial.namespace, **execution.key, "reason": "enough"}).succeeded()
    reply = worker.heartbeat(task).succeeded()
    check(reply.envelope.byte_8 != 0, expected="byte 8 set: cancel requested", actual=str(reply))


@case(
    "tasks/cancel-pushed",
    "The worker that holds a canceled task is told at once, with the token and the reason (0xB5).",
    extension=True,
)
def cancel_pushed(trial: Trial) -> None:
    worker, client = trial.peer("worker"), trial.peer("client")
    execution, task = trial.held_task(worker, trial.name("queue"))
    client.call(op.CANCEL, {"namespace": trial.namespace, **execution.key, "reason": "enough"}).succeeded()
    push = worker.push(op.DELIVER_ACTIVITY_CANCEL)
    equal("task_token", expected=task.token, actual=push.body.get("task_token"))
    equal("reason", expected="enough", actual=push.body.get("reason"))


@case(
    "tasks/cancel-acknowledged",
    "A worker that answers a cancel with a CanceledError ends the task as CANCELED, without a retry.",
    extension=True,
)
def cancel_acknowledged(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = trial.held_task(worker, trial.name("queue"))
    worker.call(op.CANCEL, {"namespace": trial.namespace, **execution.key}).succeeded()
    worker.fail(task, "canceled", code="CanceledError", final=True).succeeded()
    trial.status_becomes(worker, execution.workflow_id, 4)
    worker.no_push(op.DELIVER_ACTIVITY)


@case(
    "tasks/cancel-of-a-waiting-task",
    "A task that nobody holds is CANCELED at once and never delivered.",
    extension=True,
)
def cancel_of_a_waiting_task(trial: Trial) -> None:
    client = trial.peer()
    queue = trial.name("queue")
    execution = trial.submitted(client, "job", 1, task_queue=queue)
    client.call(op.CANCEL, {"namespace": trial.namespace, **execution.key}).succeeded()
    trial.status_becomes(client, execution.workflow_id, 4)
    client.subscribe_activities(trial.namespace, queue)
    client.no_push(op.DELIVER_ACTIVITY)


@case("tasks/terminate-of-a-held-task", "A terminated task's token is refused.", extension=True)
def terminate_of_a_held_task(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = trial.held_task(worker, trial.name("queue"))
    worker.call(op.TERMINATE, {"namespace": trial.namespace, **execution.key, "reason": "no"}).succeeded()
    worker.complete(task).refused()
    equal("status", expected=5, actual=trial.describe(worker, execution.workflow_id).get("status"))


# --- 0x91 AwaitExecution ------------------------------------------------------------------------------------


@case(
    "tasks/await-result", "0x91 is answered when the execution closes, with its status and its result.", extension=True
)
def await_result(trial: Trial) -> None:
    worker, client = trial.peer("worker"), trial.peer("client")
    execution, task = trial.held_task(worker, trial.name("queue"))
    waiting = client.send_call(op.AWAIT_EXECUTION, wait_body(trial, execution))
    client.settle()
    check(not client.has_reply(waiting), expected="no answer before the task is done", actual="an answer")
    result = {"sent": True, "big": 2**60}
    worker.complete(task, result).succeeded()
    answer = client.reply(waiting).ok()
    equal("the result", expected=result, actual=payload_value(answer.get("result")))
    equal("the run", expected=execution.run_id, actual=answer.get("run_id"))
    check(answer.get("status") in (2, "COMPLETED"), expected="status 2", actual=answer)


@case("tasks/await-closed", "0x91 for an execution that is closed already is answered at once.", extension=True)
def await_closed(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = trial.held_task(worker, trial.name("queue"))
    worker.complete(task, [1, 2]).succeeded()
    answer = worker.call(op.AWAIT_EXECUTION, wait_body(trial, execution)).ok()
    equal("the result", expected=[1, 2], actual=payload_value(answer.get("result")))


@case(
    "tasks/await-failure",
    "0x91 carries the failure of an execution that failed, with its message and code.",
    extension=True,
)
def await_failure(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = trial.held_task(worker, trial.name("queue"))
    worker.fail(task, "card declined", code="Payment", final=True).succeeded()
    answer = worker.call(op.AWAIT_EXECUTION, wait_body(trial, execution)).ok()
    words = shown(answer.get("failure"))
    check("card declined" in words and "Payment" in words, expected="message and code of the failure", actual=answer)


@case("tasks/await-unknown", "0x91 for an execution that does not exist is answered 404 at once.", extension=True)
def await_unknown(trial: Trial) -> None:
    body = {"namespace": trial.namespace, "workflow_id": trial.name("none")}
    trial.peer().call(op.AWAIT_EXECUTION, body).refused(404)


@case("tasks/await-many", "Many callers may wait for one execution, and one caller for many.", extension=True)
def await_many(trial: Trial) -> None:
    worker, clients = trial.peer("worker"), [trial.peer(f"client {n}") for n in range(3)]
    execution, task = trial.held_task(worker, trial.name("queue"))
    waiting = [
        (client, client.send_call(op.AWAIT_EXECUTION, wait_body(trial, execution)))
        for client in clients
        for _ in range(20)
    ]
    worker.complete(task, "x").succeeded()
    for client, request_id in waiting:
        equal("the result", expected="x", actual=payload_value(client.reply(request_id).ok().get("result")))


@case(
    "tasks/await-survives-retry", "0x91 waits through retries and reports the attempt that succeeded.", extension=True
)
def await_survives_retry(trial: Trial) -> None:
    worker = trial.peer()
    policy = {"initial_interval_ms": 20, "maximum_attempts": 3}
    execution, task = trial.held_task(worker, trial.name("queue"), retry_policy=policy)
    waiting = worker.send_call(op.AWAIT_EXECUTION, wait_body(trial, execution))
    worker.fail(task).succeeded()
    worker.complete(worker.push(op.DELIVER_ACTIVITY, about(execution)), "second").succeeded()
    equal("the result", expected="second", actual=payload_value(worker.reply(waiting).ok().get("result")))


@case(
    "tasks/abandoned-call",
    "0x92 gives up a pending call; the connection and other waiting calls go on.",
    extension=True,
)
def abandoned_call(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = trial.held_task(worker, trial.name("queue"))
    given_up = worker.send_call(op.AWAIT_EXECUTION, wait_body(trial, execution))
    kept = worker.send_call(op.AWAIT_EXECUTION, wait_body(trial, execution))
    worker.connection.send_frame(wire.request(op.ABANDON_CALL, wire.compact({"request_id": given_up})))
    worker.settle()
    worker.complete(task, "x").succeeded()
    worker.reply(kept).ok()


# --- dead letters, handing back, explaining, credits -----------------------------------------------------------


@case(
    "tasks/dead-letters",
    "A task that failed for good is listed by 0x93, and 0x94 puts it back with the same input.",
    extension=True,
)
def dead_letters(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = trial.held_task(worker, trial.name("queue"))
    worker.fail(task, final=True).succeeded()
    trial.status_becomes(worker, execution.workflow_id, 3)
    listed = worker.call(op.LIST_DEAD_LETTERS, {"namespace": trial.namespace, "page_size": 1000}).ok()
    check(
        execution.workflow_id in str(listed), expected=f"{execution.workflow_id} among the dead letters", actual=listed
    )
    again = worker.call(op.REQUEUE_DEAD_LETTER, wait_body(trial, execution)).ok()
    trial.terminate_later({"workflow_id": execution.workflow_id})
    redelivery = worker.push(op.DELIVER_ACTIVITY)
    equal("the input", expected=task.body.get("input"), actual=redelivery.body.get("input"))
    check(bool(again.get("run_id")), expected="the run id of the new run", actual=again)
    worker.complete(redelivery).succeeded()


@case("tasks/dead-letter-unknown", "0x94 for a task that is no dead letter is refused.", extension=True)
def dead_letter_unknown(trial: Trial) -> None:
    body = {"namespace": trial.namespace, "workflow_id": trial.name("none")}
    trial.peer().call(op.REQUEUE_DEAD_LETTER, body).refused(404, 400, 409)


@case(
    "tasks/handed-back",
    "A task handed back by 0x95 goes to another worker at once, and no attempt is charged.",
    extension=True,
)
def handed_back(trial: Trial) -> None:
    draining, other = trial.peer("draining"), trial.peer("other")
    queue = trial.name("queue")
    execution, first = trial.held_task(draining, queue, retry_policy={"maximum_attempts": 1})
    other.subscribe_activities(trial.namespace, queue)
    draining.answer(op.HAND_BACK_TASK, first.token, b'"draining"').succeeded()
    holder, second = trial.first_push([other, draining], op.DELIVER_ACTIVITY)
    check(about(execution)(second.body), expected="the same task, of which one attempt is allowed", actual=second)
    draining.complete(first, "late").refused()
    holder.complete(second).succeeded()
    trial.status_becomes(holder, execution.workflow_id, 2)


@case("tasks/explain", "0x96 says what an open task waits for.", extension=True, severity=SHOULD)
def explain(trial: Trial) -> None:
    client = trial.peer()
    execution = trial.submitted(client, "job", 1, task_queue=trial.name("queue"))
    answer = client.call(op.EXPLAIN, wait_body(trial, execution)).ok()
    check("worker" in str(answer).lower(), expected="a word about the missing worker", actual=answer)


@case(
    "tasks/credits-granted",
    "0x97 changes a subscription's slots: more of them bring more tasks at once.",
    extension=True,
)
def credits_granted(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    subscription = worker.subscribe_activities(trial.namespace, queue, slots=1)
    for number in range(4):
        trial.submitted(worker, "job", number, task_queue=queue)
    worker.push(op.DELIVER_ACTIVITY)
    worker.no_push(op.DELIVER_ACTIVITY)
    grant = wire.compact({"subscription_id": subscription, "slots": 3})
    worker.connection.send_frame(wire.request(op.GRANT_CREDITS, grant))
    for _ in range(2):
        worker.push(op.DELIVER_ACTIVITY)
    worker.no_push(op.DELIVER_ACTIVITY)


@case(
    "tasks/rate-of-a-worker",
    "`per_second` of 0xA1 spaces the deliveries of its subscription out; another worker gets what waits at once.",
    extension=True,
)
def rate_of_a_worker(trial: Trial) -> None:
    slow, other = trial.peer("slow"), trial.peer("other")
    queue = trial.name("queue")
    slow.subscribe_activities(trial.namespace, queue, per_second=2)
    for number in range(3):
        trial.submitted(slow, "job", number, task_queue=queue)
    slow.push(op.DELIVER_ACTIVITY)
    first = time.monotonic()
    slow.push(op.DELIVER_ACTIVITY)
    waited = time.monotonic() - first
    check(waited >= 0.4, expected="half a second between two deliveries at 2 a second", actual=f"{waited:.3f} s")
    other.subscribe_activities(trial.namespace, queue)
    other.push(op.DELIVER_ACTIVITY)


@case(
    "tasks/rate-of-a-queue",
    "`queue_per_second` of 0xA1 holds for all workers of the queue, for as long as its subscription is there.",
    extension=True,
)
def rate_of_a_queue(trial: Trial) -> None:
    stating, other = trial.peer("stating"), trial.peer("other")
    queue = trial.name("queue")
    subscription = stating.subscribe_activities(trial.namespace, queue, slots=0, queue_per_second=0.01)
    other.subscribe_activities(trial.namespace, queue)
    for number in range(2):
        trial.submitted(other, "job", number, task_queue=queue)
    other.push(op.DELIVER_ACTIVITY)
    other.no_push(op.DELIVER_ACTIVITY)
    stating.call(op.UNSUBSCRIBE, {"subscription_id": subscription, "namespace": trial.namespace}).succeeded()
    other.push(op.DELIVER_ACTIVITY)


@case(
    "tasks/rate-refused",
    "A rate that is negative, or that workflow tasks are to have, is refused with 400.",
    extension=True,
)
def rate_refused(trial: Trial) -> None:
    worker = trial.peer()
    body = {"namespace": trial.namespace, "task_queue": trial.name("queue")}
    for name in ("per_second", "queue_per_second"):
        worker.call(op.SUBSCRIBE_ACTIVITIES, {**body, name: -1}).refused(400)
        worker.call(op.SUBSCRIBE_WORKFLOWS, {**body, name: 1}).refused(400)
