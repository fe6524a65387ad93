"""One-shot tasks (0x50) and the life of a delivery: answer, retry, refusal of what is old, credits.

Most cases put their task on a queue of their own, which needs the options of zaptasks in the spare
bytes of 0x50. Those that need nothing but v1 say so by not being an extension.
"""

from __future__ import annotations

from zapconform import opcodes as op
from zapconform import wire
from zapconform.case import SHOULD, case, check, equal
from zapconform.peer import same_json
from zapconform.trial import Trial, about

DEFAULT_QUEUE = "default"
QUICK_RETRY = {"initial_interval_ms": 50, "backoff_coefficient": 1, "maximum_attempts": 5}


@case("tasks/submit-reply-layout", "0x50 is answered with a u32 status at 0 and Bytes at 4, not with the envelope.")
def submit_reply_layout(trial: Trial) -> None:
    peer = trial.peer()
    reply = trial.submit(peer, trial.name("job"), {"n": 1}).succeeded()
    check(reply.status in (0, 200), expected="u32 status 0 or 200 at 0", actual=reply.status)
    answer = wire.parse_json(reply.envelope.body or b"{}")
    if isinstance(answer, dict) and answer.get("workflow_id"):
        trial.terminate_later({"workflow_id": answer["workflow_id"]})


@case("tasks/submit-reply-names-execution", "The answer to 0x50 is JSON with workflow_id and run_id.", severity=SHOULD)
def submit_reply_names_execution(trial: Trial) -> None:
    peer = trial.peer()
    execution = trial.submitted(peer, trial.name("job"), {"n": 1})
    equal("run id", expected=execution.run_id, actual=trial.describe(peer, execution.workflow_id).get("run_id"))


@case(
    "tasks/submit-delivers",
    "A task of Go's mini client is delivered as 0xB1 to an activity worker of queue `default`, payload and all.",
    exclusive=DEFAULT_QUEUE,
)
def submit_delivers(trial: Trial) -> None:
    worker, client = trial.peer("worker"), trial.peer("client")
    task_type = trial.name("job")
    worker.subscribe_activities(trial.namespace, DEFAULT_QUEUE, types=[task_type])
    payload = {"url": "https://example.test/hook", "n": 3, "big": 2**53 + 1}
    trial.submit(client, task_type, payload).succeeded()
    task = worker.push(op.DELIVER_ACTIVITY, lambda body: body.get("activity_type_name") == task_type)
    same_json("the input", payload, task.body.get("input"))
    worker.complete(task).succeeded()


@case(
    "tasks/delivery-fields", "A delivery names its execution, its activity, its type, its token and when it was made."
)
def delivery_fields(trial: Trial) -> None:
    worker = trial.peer()
    execution, _, activity = trial.held_activity(worker, trial.name("queue"))
    body = activity.body
    for field in ("task_token", "workflow_id", "run_id", "activity_id", "activity_type_name"):
        check(bool(body.get(field)), expected=f"a non-empty `{field}` in 0xB1", actual=body)
    check(about(execution)(body), expected=f"the ids of {execution}", actual=body)
    check(
        isinstance(body.get("scheduled_time_ms"), int) and body["scheduled_time_ms"] > 1_600_000_000_000,
        expected="scheduled_time_ms as milliseconds since 1970",
        actual=body,
    )


@case("tasks/options-queue", "The option task_queue chooses a task's queue.", extension=True)
def options_queue(trial: Trial) -> None:
    worker = trial.peer()
    _, task = trial.held_task(worker, trial.name("queue"))
    same_json("the input", {"n": 1}, task.body.get("input"))


@case(
    "tasks/delivery-marked",
    "A one-shot task's delivery says kind `task` and attempt 1.",
    extension=True,
    severity=SHOULD,
)
def delivery_marked(trial: Trial) -> None:
    _, task = trial.held_task(trial.peer(), trial.name("queue"))
    equal("kind and attempt", expected=("task", 1), actual=(task.body.get("kind"), task.body.get("attempt")))


@case(
    "tasks/complete",
    "A completed task's execution is COMPLETED; the ack is a 24-byte root with the status at 8.",
    extension=True,
)
def complete(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = trial.held_task(worker, trial.name("queue"))
    reply = worker.complete(task, {"sent": True}).succeeded()
    equal("error text of the ack", expected="", actual=reply.envelope.error)
    info = trial.status_becomes(worker, execution.workflow_id, 2)
    check(bool(info.get("close_time")), expected="a close_time", actual=info)


@case(
    "tasks/history",
    "A task is an execution with a history like any other: STARTED first, COMPLETED last, no gaps.",
    extension=True,
)
def history(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = trial.held_task(worker, trial.name("queue"))
    worker.complete(task).succeeded()
    trial.status_becomes(worker, execution.workflow_id, 2)
    events = trial.history(worker, execution)["events"]
    kinds = [event.get("eventType") for event in events]
    equal("the first event", expected="WORKFLOW_EXECUTION_STARTED", actual=kinds[0])
    equal("the last event", expected="WORKFLOW_EXECUTION_COMPLETED", actual=kinds[-1])
    equal("event ids", expected=list(range(1, len(events) + 1)), actual=[event.get("eventId") for event in events])


@case("tasks/complete-twice", "A second answer for a finished task is refused.", extension=True)
def complete_twice(trial: Trial) -> None:
    worker = trial.peer()
    _, task = trial.held_task(worker, trial.name("queue"))
    worker.complete(task).succeeded()
    worker.complete(task).refused()
    worker.fail(task).refused()
    worker.heartbeat(task).refused()


@case(
    "tasks/payloads",
    "Any JSON value is a payload: null, text, numbers, lists; none at all reads as null.",
    extension=True,
)
def payloads(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    worker.subscribe_activities(trial.namespace, queue)
    for payload in (None, "text", 0, -1.5, True, [], {}, [1, [2, [3]]], {"k": None}):
        execution = trial.submitted(worker, "job", payload, task_queue=queue)
        task = worker.push(op.DELIVER_ACTIVITY, about(execution))
        same_json("the input", payload, task.body.get("input", "null"))
        worker.complete(task).succeeded()


# --- failure and retry -----------------------------------------------------------------------------------


@case(
    "tasks/failure-retries",
    "A failed task is delivered again under its retry policy, with a new token.",
    extension=True,
)
def failure_retries(trial: Trial) -> None:
    worker = trial.peer()
    execution, first = trial.held_task(worker, trial.name("queue"), retry_policy=QUICK_RETRY)
    worker.fail(first).succeeded()
    second = worker.push(op.DELIVER_ACTIVITY, about(execution))
    check(second.token != first.token, expected="a new token", actual=second.token)
    worker.complete(second).succeeded()
    trial.status_becomes(worker, execution.workflow_id, 2)


@case("tasks/attempts-counted", "A delivery says which attempt it is.", extension=True)
def attempts_counted(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = trial.held_task(worker, trial.name("queue"), retry_policy=QUICK_RETRY)
    for attempt in (1, 2, 3):
        equal("attempt", expected=attempt, actual=task.body.get("attempt"))
        worker.fail(task).succeeded()
        task = worker.push(op.DELIVER_ACTIVITY, about(execution))


@case(
    "tasks/old-token-refused-after-failure",
    "When a task is out again, the token of the earlier attempt is refused.",
    extension=True,
)
def old_token_refused_after_failure(trial: Trial) -> None:
    worker = trial.peer()
    execution, first = trial.held_task(worker, trial.name("queue"), retry_policy=QUICK_RETRY)
    worker.fail(first).succeeded()
    second = worker.push(op.DELIVER_ACTIVITY, about(execution))
    worker.complete(first, "late").refused()
    worker.fail(first, final=True).refused()
    worker.heartbeat(first).refused()
    worker.complete(second).succeeded()


@case(
    "tasks/non-retryable-failure",
    "A failure marked nonRetryable ends the task at once: FAILED, no second delivery.",
    extension=True,
)
def non_retryable_failure(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = trial.held_task(worker, trial.name("queue"), retry_policy=QUICK_RETRY)
    worker.fail(task, final=True).succeeded()
    trial.status_becomes(worker, execution.workflow_id, 3)
    worker.no_push(op.DELIVER_ACTIVITY)


@case(
    "tasks/non-retryable-code",
    "A failure whose code the policy lists in non_retryable_error_types ends the task.",
    extension=True,
)
def non_retryable_code(trial: Trial) -> None:
    worker = trial.peer()
    policy = {**QUICK_RETRY, "non_retryable_error_types": ["Declined"]}
    execution, task = trial.held_task(worker, trial.name("queue"), retry_policy=policy)
    worker.fail(task, code="Other").succeeded()
    second = worker.push(op.DELIVER_ACTIVITY, about(execution))
    worker.fail(second, code="Declined").succeeded()
    trial.status_becomes(worker, execution.workflow_id, 3)


@case(
    "tasks/maximum-attempts",
    "A policy of two attempts allows two deliveries, and then the task has FAILED.",
    extension=True,
)
def maximum_attempts(trial: Trial) -> None:
    worker = trial.peer()
    policy = {**QUICK_RETRY, "maximum_attempts": 2}
    execution, task = trial.held_task(worker, trial.name("queue"), retry_policy=policy)
    worker.fail(task).succeeded()
    worker.fail(worker.push(op.DELIVER_ACTIVITY, about(execution))).succeeded()
    trial.status_becomes(worker, execution.workflow_id, 3)
    worker.no_push(op.DELIVER_ACTIVITY)


# --- workers that go away --------------------------------------------------------------------------------


@case("tasks/disconnect-redelivers", "When a worker's connection ends, what it held goes to another worker at once.")
def disconnect_redelivers(trial: Trial) -> None:
    lost_worker(trial, reset=False)


@case("tasks/reset-redelivers", "A TCP reset is a lost worker too: its task goes to another at once.")
def reset_redelivers(trial: Trial) -> None:
    lost_worker(trial, reset=True)


def lost_worker(trial: Trial, *, reset: bool) -> None:
    scheduler, worker, other = trial.peer("scheduler"), trial.peer("worker"), trial.peer("other")
    queue, activities = trial.name("queue"), trial.name("activities")
    execution, _ = trial.held_workflow(scheduler, queue)
    worker.subscribe_activities(trial.namespace, activities)
    # Far longer than this case waits: the redelivery is the disconnect's doing, not a timeout's.
    trial.schedule_activity(
        scheduler, execution, activities, start_to_close_ms=600_000, retry_policy={"maximum_attempts": 5}
    )
    first = worker.push(op.DELIVER_ACTIVITY)
    other.subscribe_activities(trial.namespace, activities)
    if reset:
        worker.connection.reset()
    else:
        worker.close()
    second = other.push(op.DELIVER_ACTIVITY)
    equal("activity_id", expected=first.body["activity_id"], actual=second.body["activity_id"])
    check(second.token != first.token, expected="a new token", actual=second.token)
    other.complete(second).succeeded()
    scheduler.push(op.DELIVER_RESULT)


@case(
    "tasks/late-answer-refused",
    "A worker that lost its connection cannot answer with its old token when it is back.",
    extension=True,
)
def late_answer_refused(trial: Trial) -> None:
    node_id, queue = trial.name("worker"), trial.name("queue")
    worker, other = trial.peer("worker", node_id), trial.peer("other")
    execution, first = trial.held_task(worker, queue)
    other.subscribe_activities(trial.namespace, queue)
    worker.close()
    second = other.push(op.DELIVER_ACTIVITY, about(execution))
    back = trial.peer("back", node_id)
    back.complete(first, "late").refused()
    other.complete(second, "in time").succeeded()
    trial.status_becomes(other, execution.workflow_id, 2)


@case(
    "tasks/waits-for-the-next-worker",
    "A task whose worker is gone waits for the next one that subscribes.",
    extension=True,
)
def waits_for_the_next_worker(trial: Trial) -> None:
    queue = trial.name("queue")
    worker = trial.peer("worker")
    execution, _ = trial.held_task(worker, queue)
    worker.close()
    later = trial.peer("later")
    later.subscribe_activities(trial.namespace, queue)
    later.push(op.DELIVER_ACTIVITY, about(execution))


@case("tasks/unsubscribe-stops", "After 0xA6 nothing more is delivered to that subscription; others go on.")
def unsubscribe_stops(trial: Trial) -> None:
    worker, other = trial.peer("worker"), trial.peer("other")
    queue = trial.name("queue")
    subscription = worker.subscribe_workflows(trial.namespace, queue)
    answer = worker.call(op.UNSUBSCRIBE, {"subscription_id": subscription}).ok()
    equal("ok", expected=True, actual=answer.get("ok"))
    other.subscribe_workflows(trial.namespace, queue)
    for _ in range(4):
        execution = trial.start(other, queue)
        other.push(op.DELIVER_WORKFLOW, about(execution))
    worker.no_push(op.DELIVER_WORKFLOW)


@case("tasks/unsubscribed-worker-may-finish", "What a worker holds when it unsubscribes it may still complete.")
def unsubscribed_worker_may_finish(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    subscription = worker.subscribe_workflows(trial.namespace, queue)
    execution = trial.start(worker, queue)
    task = worker.push(op.DELIVER_WORKFLOW)
    worker.call(op.UNSUBSCRIBE, {"subscription_id": subscription}).ok()
    worker.commands(task, [{"kind": 0, "result": "MQ=="}]).succeeded()
    trial.status_becomes(worker, execution.workflow_id, 2)


@case("tasks/not-another-peers-subscription", "A peer cannot end another peer's subscription.", severity=SHOULD)
def not_another_peers_subscription(trial: Trial) -> None:
    worker, stranger = trial.peer("worker"), trial.peer("stranger")
    queue = trial.name("queue")
    subscription = worker.subscribe_workflows(trial.namespace, queue)
    stranger.call(op.UNSUBSCRIBE, {"subscription_id": subscription})
    trial.start(stranger, queue)
    worker.push(op.DELIVER_WORKFLOW)


# --- backlog, credits, types ----------------------------------------------------------------------------


@case("tasks/backlog-in-order", "Tasks that waited are handed to the next worker whole and in order.", extension=True)
def backlog_in_order(trial: Trial) -> None:
    client, worker = trial.peer("client"), trial.peer("worker")
    queue = trial.name("queue")
    for number in range(60):
        trial.submitted(client, "job", number, task_queue=queue)
    worker.subscribe_activities(trial.namespace, queue)
    order = [worker.push(op.DELIVER_ACTIVITY).body.get("input") for _ in range(60)]
    equal("the order", expected=[str(number) for number in range(60)], actual=order)


@case(
    "tasks/credits-never-exceeded",
    "A worker with three slots never holds more than three tasks; finishing one brings the next.",
    extension=True,
)
def credits_never_exceeded(trial: Trial) -> None:
    client, worker = trial.peer("client"), trial.peer("worker")
    queue = trial.name("queue")
    for number in range(12):
        trial.submitted(client, "job", number, task_queue=queue)
    worker.subscribe_activities(trial.namespace, queue, slots=3)
    held = [worker.push(op.DELIVER_ACTIVITY) for _ in range(3)]
    done = []
    while held:
        worker.no_push(op.DELIVER_ACTIVITY)
        task = held.pop(0)
        worker.complete(task).succeeded()
        done.append(task.body.get("input"))
        if len(done) + len(held) < 12:
            held.append(worker.push(op.DELIVER_ACTIVITY))
    equal("the order", expected=[str(number) for number in range(12)], actual=done)


@case("tasks/credit-returned-by-failure", "A failed attempt gives its slot back like a completed one.", extension=True)
def credit_returned_by_failure(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    worker.subscribe_activities(trial.namespace, queue, slots=1)
    first = trial.submitted(worker, "job", 1, task_queue=queue)
    second = trial.submitted(worker, "job", 2, task_queue=queue)
    worker.fail(worker.push(op.DELIVER_ACTIVITY, about(first)), final=True).succeeded()
    worker.push(op.DELIVER_ACTIVITY, about(second))


@case(
    "tasks/credits-of-subscriptions-apart",
    "Slots belong to a subscription: a full one does not stop the worker's other queue.",
    extension=True,
)
def credits_of_subscriptions_apart(trial: Trial) -> None:
    worker = trial.peer()
    full, free = trial.name("full"), trial.name("free")
    worker.subscribe_activities(trial.namespace, full, slots=1)
    worker.subscribe_activities(trial.namespace, free, slots=1)
    for number in range(2):
        trial.submitted(worker, "job", number, task_queue=full)
    execution = trial.submitted(worker, "job", 3, task_queue=free)
    worker.push(op.DELIVER_ACTIVITY, about(execution))


@case(
    "tasks/full-worker-does-not-starve-queue",
    "A full worker does not hold up a queue that another, idle one serves.",
    extension=True,
)
def full_worker_does_not_starve_queue(trial: Trial) -> None:
    full, idle = trial.peer("full"), trial.peer("idle")
    queue = trial.name("queue")
    full.subscribe_activities(trial.namespace, queue, slots=1)
    trial.submitted(full, "job", 0, task_queue=queue)
    full.push(op.DELIVER_ACTIVITY)
    idle.subscribe_activities(trial.namespace, queue, slots=10)
    for number in range(1, 6):
        execution = trial.submitted(full, "job", number, task_queue=queue)
        idle.push(op.DELIVER_ACTIVITY, about(execution))


@case(
    "tasks/slots-refused",
    "Slots below zero, or that are no whole number, are refused with 400.",
    extension=True,
    severity=SHOULD,
)
def slots_refused(trial: Trial) -> None:
    peer = trial.peer()
    for slots in (-1, "many", 1.5):
        body = {"namespace": trial.namespace, "task_queue": trial.name("queue"), "slots": slots}
        peer.call(op.SUBSCRIBE_ACTIVITIES, body).refused(400)


@case(
    "tasks/types-filter",
    "A worker that names its types gets those only; tasks of other types wait for other workers.",
    extension=True,
)
def types_filter(trial: Trial) -> None:
    picky, other = trial.peer("picky"), trial.peer("other")
    queue = trial.name("queue")
    picky.subscribe_activities(trial.namespace, queue, types=["wanted"])
    unwanted = trial.submitted(picky, "unwanted", 1, task_queue=queue)
    wanted = trial.submitted(picky, "wanted", 2, task_queue=queue)
    picky.push(op.DELIVER_ACTIVITY, about(wanted))  # not held up behind the one before it
    picky.no_push(op.DELIVER_ACTIVITY)
    other.subscribe_activities(trial.namespace, queue, types=["unwanted"])
    other.push(op.DELIVER_ACTIVITY, about(unwanted))


@case(
    "tasks/types-refused",
    "A list of types that is no list of text is refused with 400.",
    extension=True,
    severity=SHOULD,
)
def types_refused(trial: Trial) -> None:
    peer = trial.peer()
    for types in ("wanted", [1], {"a": 1}):
        body = {"namespace": trial.namespace, "task_queue": trial.name("queue"), "types": types}
        peer.call(op.SUBSCRIBE_ACTIVITIES, body).refused(400)


# --- request ids ----------------------------------------------------------------------------------------


@case(
    "tasks/request-id-makes-repeat-harmless",
    "A task submitted again with the same request id is the same task, delivered once.",
    extension=True,
)
def request_id_makes_repeat_harmless(trial: Trial) -> None:
    worker, again = trial.peer("worker"), trial.peer("again")
    queue, request_id = trial.name("queue"), trial.name("request")
    worker.subscribe_activities(trial.namespace, queue)
    first = trial.submitted(worker, "job", 1, task_queue=queue, request_id=request_id)
    for peer in (worker, again, worker):
        repeat = trial.submitted(peer, "job", 1, task_queue=queue, request_id=request_id)
        equal("the execution of the repeat", expected=first, actual=repeat)
    task = worker.push(op.DELIVER_ACTIVITY)
    worker.no_push(op.DELIVER_ACTIVITY)
    worker.complete(task).succeeded()
    after = trial.submitted(again, "job", 1, task_queue=queue, request_id=request_id)
    equal("the execution of a repeat after the end", expected=first, actual=after)
    worker.no_push(op.DELIVER_ACTIVITY)


@case("tasks/request-ids-differ", "Tasks with different request ids, or none, are different tasks.", extension=True)
def request_ids_differ(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    worker.subscribe_activities(trial.namespace, queue)
    for options in ({"request_id": trial.name("r")}, {"request_id": trial.name("r")}, {}, {}):
        trial.submitted(worker, "job", 1, task_queue=queue, **options)
    executions = {worker.push(op.DELIVER_ACTIVITY).body["run_id"] for _ in range(4)}
    equal("executions", expected=4, actual=len(executions))


# --- bad submissions ------------------------------------------------------------------------------------


@case("tasks/type-required", "A task without a type is refused with 400.")
def type_required(trial: Trial) -> None:
    trial.submit(trial.peer(), "", {"n": 1}).refused(400)


@case("tasks/type-not-text", "A task type that is not UTF-8 is refused with 400.")
def type_not_text(trial: Trial) -> None:
    peer = trial.peer()
    message = wire.task_submit("job-xxxx", b"{}").replace(b"job-xxxx", b"job\xff\xfe\xc3\x28x")
    peer.reply(peer.send_message(message, op.TASK_SUBMIT)).refused(400)


@case("tasks/payload-must-be-json", "A payload that is not JSON is refused with 400, and no task is made.")
def payload_must_be_json(trial: Trial) -> None:
    peer = trial.peer()
    for payload in (b"{", b"nope", b"{} {}", b'"\xff"', b"NaN"):
        message = wire.task_submit(trial.name("job"), payload)
        peer.reply(peer.send_message(message, op.TASK_SUBMIT)).refused(400)


@case(
    "tasks/bad-options", "Options that are no JSON object, or hold wrong types, are refused with 400.", extension=True
)
def bad_options(trial: Trial) -> None:
    peer = trial.peer()
    for options in (b"{", b"[]", b'{"task_queue":5}', b'{"retry_policy":"often"}', b'{"request_id":[]}'):
        message = wire.task_submit(trial.name("job"), b"{}", options)
        peer.reply(peer.send_message(message, op.TASK_SUBMIT)).refused(400)


@case("tasks/unknown-options-ignored", "Unknown options are ignored.", extension=True)
def unknown_options_ignored(trial: Trial) -> None:
    peer = trial.peer()
    trial.submitted(peer, "job", 1, task_queue=trial.name("queue"), x_unknown={"a": [1]})


@case("tasks/many", "Five hundred tasks go through one worker, each once.", extension=True)
def many(trial: Trial) -> None:
    client, worker = trial.peer("client"), trial.peer("worker")
    queue = trial.name("queue")
    worker.subscribe_activities(trial.namespace, queue, slots=50)
    options = wire.compact({"task_queue": queue})
    ids = [
        client.send_message(wire.task_submit("job", wire.compact(number), options), op.TASK_SUBMIT)
        for number in range(500)
    ]
    seen = set()
    for _ in ids:
        task = worker.push(op.DELIVER_ACTIVITY)
        seen.add(task.body.get("input"))
        worker.complete(task).succeeded()
    for request_id in ids:
        client.reply(request_id).succeeded()
    equal("different tasks", expected=500, actual=len(seen))
    worker.no_push(op.DELIVER_ACTIVITY)
