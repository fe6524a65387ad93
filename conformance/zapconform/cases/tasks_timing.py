"""Time: heartbeats, the timeouts of an attempt, backoff.

Lower bounds are exact but for the clock's grain; upper bounds are the case's own patience, since a
busy machine is late and never early.
"""

from __future__ import annotations

import time

from zapconform import opcodes as op
from zapconform.case import SHOULD, case, check, equal
from zapconform.peer import same_json
from zapconform.trial import Trial, about

TIMEOUT_MS = 400
"""Long enough not to strike by accident on a busy machine, short enough to wait for."""

EARLY_SECONDS = 0.02
"""A timer may be early by the grain of the clocks on both sides."""

QUICK_RETRY = {"initial_interval_ms": 20, "backoff_coefficient": 1, "maximum_attempts": 5}


@case(
    "tasks/heartbeat-ack",
    "A heartbeat is acknowledged with status 0, not 200: Go reads that byte as `cancel requested`.",
)
def heartbeat_ack(trial: Trial) -> None:
    worker = trial.peer()
    _, _, activity = trial.held_activity(worker, trial.name("queue"), heartbeat_ms=60_000)
    for details in ([], ["half", 50], [{"deep": [1]}]):
        reply = worker.heartbeat(activity, details)
        equal("u32 status at 8", expected=0, actual=reply.status)
        equal("byte 8", expected=0, actual=reply.envelope.byte_8)


@case(
    "tasks/heartbeat-bad-details",
    "Heartbeat details that are not JSON are refused with 400 or ignored; the lease goes on.",
)
def heartbeat_bad_details(trial: Trial) -> None:
    worker = trial.peer()
    _, _, activity = trial.held_activity(worker, trial.name("queue"), heartbeat_ms=60_000)
    reply = worker.answer(op.HEARTBEAT, activity.token, b"{not json")
    check(reply.status in (0, 400), expected="status 0 or 400", actual=str(reply))
    worker.complete(activity).succeeded()


@case(
    "tasks/heartbeat-timeout",
    "A worker that is silent for heartbeat_ms loses the task: another attempt, and the old token is refused.",
    seconds=1,
)
def heartbeat_timeout(trial: Trial) -> None:
    worker = trial.peer()
    _, _, first = trial.held_activity(
        worker, trial.name("queue"), heartbeat_ms=TIMEOUT_MS, start_to_close_ms=60_000, retry_policy=QUICK_RETRY
    )
    second = worker.push(op.DELIVER_ACTIVITY)
    equal("activity_id", expected=first.body["activity_id"], actual=second.body["activity_id"])
    worker.heartbeat(first).refused()
    worker.complete(first, "late").refused()
    worker.complete(second).succeeded()
    worker.push(op.DELIVER_RESULT)


@case(
    "tasks/heartbeat-keeps-the-lease",
    "A task whose worker heartbeats in time stays with it, however long it takes.",
    seconds=1.5,
)
def heartbeat_keeps_the_lease(trial: Trial) -> None:
    worker = trial.peer()
    _, _, activity = trial.held_activity(
        worker, trial.name("queue"), heartbeat_ms=TIMEOUT_MS, start_to_close_ms=60_000, retry_policy=QUICK_RETRY
    )
    until = time.monotonic() + 3 * TIMEOUT_MS / 1000
    while time.monotonic() < until:
        worker.heartbeat(activity).succeeded()
        worker.connection.wait_ended(TIMEOUT_MS / 1000 / 8)
    worker.no_push(op.DELIVER_ACTIVITY)
    worker.complete(activity).succeeded()


@case("tasks/heartbeat-details-handed-on", "The next attempt gets the details of the last heartbeat.", extension=True)
def heartbeat_details_handed_on(trial: Trial) -> None:
    worker = trial.peer()
    execution, first = trial.held_task(worker, trial.name("queue"), retry_policy=QUICK_RETRY)
    details = [{"done": 17, "big": 2**60}]
    worker.heartbeat(first, ["earlier"]).succeeded()
    worker.heartbeat(first, details).succeeded()
    worker.fail(first).succeeded()
    second = worker.push(op.DELIVER_ACTIVITY, about(execution))
    got = second.body.get("heartbeat_details")
    if isinstance(got, str):
        same_json("heartbeat_details", details, got)
    else:
        equal("heartbeat_details", expected=details, actual=got)


@case(
    "tasks/start-to-close-timeout",
    "An attempt that takes longer than start_to_close_ms is over: the next one begins.",
    seconds=1,
)
def start_to_close_timeout(trial: Trial) -> None:
    worker = trial.peer()
    started = time.monotonic()
    _, _, first = trial.held_activity(
        worker, trial.name("queue"), start_to_close_ms=TIMEOUT_MS, retry_policy=QUICK_RETRY
    )
    second = worker.push(op.DELIVER_ACTIVITY)
    waited = time.monotonic() - started
    check(
        waited > TIMEOUT_MS / 1000 - EARLY_SECONDS,
        expected=f"no timeout before {TIMEOUT_MS} ms",
        actual=f"{waited:.3f} s",
    )
    worker.complete(first, "late").refused()
    worker.complete(second).succeeded()


@case("tasks/heartbeat-does-not-extend-start-to-close", "Heartbeats do not extend start_to_close_ms.", seconds=1)
def heartbeat_does_not_extend_start_to_close(trial: Trial) -> None:
    worker = trial.peer()
    _, _, first = trial.held_activity(
        worker, trial.name("queue"), start_to_close_ms=TIMEOUT_MS, heartbeat_ms=TIMEOUT_MS, retry_policy=QUICK_RETRY
    )
    deadline = time.monotonic() + trial.timeout
    while worker.heartbeat(first).is_success():
        check(time.monotonic() < deadline, expected=f"the attempt to end after {TIMEOUT_MS} ms", actual="it goes on")
        worker.connection.wait_ended(TIMEOUT_MS / 1000 / 8)
    worker.push(op.DELIVER_ACTIVITY)


@case(
    "tasks/timeout-of-the-last-attempt",
    "When the last attempt times out, the workflow hears of the failure.",
    seconds=1,
)
def timeout_of_the_last_attempt(trial: Trial) -> None:
    worker = trial.peer()
    _, _, activity = trial.held_activity(
        worker, trial.name("queue"), start_to_close_ms=TIMEOUT_MS, retry_policy={"maximum_attempts": 1}
    )
    result = worker.push(op.DELIVER_RESULT)
    equal("activity_id", expected=activity.body["activity_id"], actual=result.body.get("activity_id"))
    check("Timeout" in str(result.body.get("failure")), expected="a failure that says TimeoutError", actual=result.body)


@case(
    "tasks/backoff",
    "Attempts wait initial_interval_ms, then backoff_coefficient times as long each, up to maximum_interval_ms.",
    extension=True,
    seconds=1,
)
def backoff(trial: Trial) -> None:
    worker = trial.peer()
    policy = {"initial_interval_ms": 100, "backoff_coefficient": 2, "maximum_interval_ms": 200, "maximum_attempts": 4}
    execution, task = trial.held_task(worker, trial.name("queue"), retry_policy=policy)
    for least in (0.1, 0.2, 0.2):
        failed = time.monotonic()
        worker.fail(task).succeeded()
        task = worker.push(op.DELIVER_ACTIVITY, about(execution))
        waited = time.monotonic() - failed
        check(
            least - EARLY_SECONDS <= waited < least + trial.timeout / 2,
            expected=f"the next attempt after {least:g} s",
            actual=f"after {waited:.3f} s",
        )


@case(
    "tasks/schedule-to-start-timeout",
    "A task that no worker takes within schedule_to_start_ms ends as timed out.",
    extension=True,
    seconds=1,
)
def schedule_to_start_timeout(trial: Trial) -> None:
    client = trial.peer()
    execution = trial.submitted(client, "job", 1, task_queue=trial.name("queue"), schedule_to_start_ms=TIMEOUT_MS)
    trial.status_becomes(client, execution.workflow_id, 3, 7)


@case(
    "tasks/schedule-to-close-timeout",
    "A task is over after schedule_to_close_ms, retries included.",
    extension=True,
    seconds=1,
)
def schedule_to_close_timeout(trial: Trial) -> None:
    worker = trial.peer()
    policy = {"initial_interval_ms": 60_000, "maximum_attempts": 5}
    execution, task = trial.held_task(worker, trial.name("queue"), schedule_to_close_ms=TIMEOUT_MS, retry_policy=policy)
    worker.fail(task)
    trial.status_becomes(worker, execution.workflow_id, 3, 7)


@case(
    "tasks/timeouts-of-options",
    "The options start_to_close_ms and heartbeat_ms bound an attempt of a one-shot task.",
    extension=True,
    seconds=1,
)
def timeouts_of_options(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    worker.subscribe_activities(trial.namespace, queue)
    for timeouts in ({"start_to_close_ms": TIMEOUT_MS}, {"start_to_close_ms": 60_000, "heartbeat_ms": TIMEOUT_MS}):
        execution = trial.submitted(worker, "job", 1, task_queue=queue, retry_policy=QUICK_RETRY, **timeouts)
        first = worker.push(op.DELIVER_ACTIVITY, about(execution))
        second = worker.push(op.DELIVER_ACTIVITY, about(execution))
        worker.complete(first).refused()
        worker.complete(second).succeeded()


@case(
    "tasks/delivery-names-timeouts", "A delivery tells its worker start_to_close_timeout_ms and heartbeat_timeout_ms."
)
def delivery_names_timeouts(trial: Trial) -> None:
    worker = trial.peer()
    _, _, activity = trial.held_activity(worker, trial.name("queue"), start_to_close_ms=5000, heartbeat_ms=2000)
    equal(
        "start_to_close_timeout_ms and heartbeat_timeout_ms",
        expected=(5000, 2000),
        actual=(activity.body.get("start_to_close_timeout_ms"), activity.body.get("heartbeat_timeout_ms")),
    )


@case("tasks/negative-timeouts-refused", "Timeouts below zero are refused with 400.", severity=SHOULD)
def negative_timeouts_refused(trial: Trial) -> None:
    worker = trial.peer()
    execution, _ = trial.held_workflow(worker, trial.name("queue"))
    for field in ("start_to_close_ms", "heartbeat_ms"):
        body = {"namespace": trial.namespace, **execution.key, "activity_type": "A", "task_queue": "q", field: -1}
        worker.call(op.SCHEDULE_ACTIVITY, body).refused(400)
