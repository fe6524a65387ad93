"""Activities of a workflow: 0x6B, 0xB1, the worker's answer, and 0xB2 back to the workflow's worker."""

from __future__ import annotations

import base64
from typing import Any

from zapconform import opcodes as op
from zapconform import wire
from zapconform.case import SHOULD, case, check, equal
from zapconform.peer import same_json
from zapconform.trial import Trial, about


@case("workflow/hello", "The whole round: start, 0xB0, 0x6B, 0xB1, 0xA3, 0xB2, 0xA2, COMPLETED; the activity ran once.")
def hello(trial: Trial) -> None:
    worker = trial.peer()
    execution, task, activity = trial.held_activity(worker, trial.name("queue"), activity_type="Greet", input=["ada"])
    equal("activity_type_name", expected="Greet", actual=activity.body.get("activity_type_name"))
    check(about(execution)(activity.body), expected=f"the ids of {execution}", actual=activity.body)
    worker.complete(activity, "hello ada").succeeded()
    result = worker.push(op.DELIVER_RESULT)
    equal("activity_id", expected=activity.body["activity_id"], actual=result.body.get("activity_id"))
    same_json("the result", "hello ada", result.body.get("result"))
    check("failure" not in result.body, expected="no failure", actual=result.body)
    answer = base64.b64encode(b'"hello ada"').decode()
    worker.commands(task, [{"kind": 0, "result": answer}]).succeeded()
    equal("status", expected=2, actual=trial.describe(worker, execution.workflow_id).get("status"))
    worker.no_push(op.DELIVER_ACTIVITY)


@case("workflow/activity-answer", "0x6B answers activity_task_id and task_token; 0xB1 carries the same id.")
def activity_answer(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    execution, _ = trial.held_workflow(worker, queue)
    worker.subscribe_activities(trial.namespace, queue)
    body = {"namespace": trial.namespace, **execution.key, "task_queue": queue, "activity_type": "A", "input": []}
    answer = worker.call(op.SCHEDULE_ACTIVITY, body).ok()
    check(bool(answer.get("activity_task_id")), expected="an activity_task_id", actual=answer)
    check("task_token" in answer, expected="a task_token", actual=answer)
    delivered = worker.push(op.DELIVER_ACTIVITY)
    equal("activity_id", expected=answer["activity_task_id"], actual=delivered.body.get("activity_id"))


@case(
    "workflow/activity-result-to-its-workflow", "0xB2 goes to the worker that holds the workflow, and to nobody else."
)
def activity_result_to_its_workflow(trial: Trial) -> None:
    workflows, activities = trial.peer("workflows"), trial.peer("activities")
    queue, work = trial.name("queue"), trial.name("work")
    execution, _ = trial.held_workflow(workflows, queue)
    activities.subscribe_activities(trial.namespace, work)
    activity_id = trial.schedule_activity(workflows, execution, work)
    activities.complete(activities.push(op.DELIVER_ACTIVITY)).succeeded()
    equal("activity_id", expected=activity_id, actual=workflows.push(op.DELIVER_RESULT).body.get("activity_id"))
    activities.no_push(op.DELIVER_RESULT)


@case("workflow/activity-result-after-its-answer", "0xB2 never comes before the answer to the 0x6B that it belongs to.")
def activity_result_after_its_answer(trial: Trial) -> None:
    workflows, activities = trial.peer("workflows"), trial.peer("activities")
    queue, work = trial.name("queue"), trial.name("work")
    execution, _ = trial.held_workflow(workflows, queue)
    activities.subscribe_activities(trial.namespace, work)
    body = {"namespace": trial.namespace, **execution.key, "task_queue": work, "activity_type": "A", "input": []}
    for _ in range(20):
        request_id = workflows.send_call(op.SCHEDULE_ACTIVITY, body)
        activities.complete(activities.push(op.DELIVER_ACTIVITY)).succeeded()
        workflows.push(op.DELIVER_RESULT)
        check(workflows.has_reply(request_id), expected="the answer to 0x6B first", actual="the result came first")
        workflows.reply(request_id).ok()


@case(
    "workflow/activities-in-parallel",
    "Many activities of one workflow are out at once; each result finds its activity.",
)
def activities_in_parallel(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    execution, _ = trial.held_workflow(worker, queue)
    worker.subscribe_activities(trial.namespace, queue)
    names = {trial.schedule_activity(worker, execution, queue, input=[n]): n for n in range(20)}
    tasks = [worker.push(op.DELIVER_ACTIVITY) for _ in names]
    for task in reversed(tasks):
        worker.complete(task, task.body["activity_id"]).succeeded()
    for _ in names:
        result = worker.push(op.DELIVER_RESULT).body
        same_json("the result", result["activity_id"], result.get("result"))
        check(result["activity_id"] in names, expected="a scheduled activity", actual=result)


@case(
    "workflow/activity-failure",
    "A failed activity without a retry policy is reported at once: 0xB2 with the worker's failure.",
)
def activity_failure(trial: Trial) -> None:
    worker = trial.peer()
    _, _, activity = trial.held_activity(worker, trial.name("queue"))
    failure = {
        "v": 1,
        "p": {
            "message": "no funds",
            "code": "Payment",
            "details": [7],
            "cause": {"message": "declined", "code": "ApplicationError"},
        },
    }
    worker.answer(op.FAIL_ACTIVITY, activity.token, wire.compact(failure)).succeeded()
    result = worker.push(op.DELIVER_RESULT)
    same_json("the failure", failure, result.body.get("failure"))
    worker.no_push(op.DELIVER_ACTIVITY)


@case(
    "workflow/activity-retry-policy",
    "0x6B's retry_policy takes effect: the activity is tried again, and the last failure is reported.",
)
def activity_retry_policy(trial: Trial) -> None:
    worker = trial.peer()
    policy = {"initial_interval_ms": 30, "backoff_coefficient": 1, "maximum_attempts": 3}
    _, _, activity = trial.held_activity(worker, trial.name("queue"), retry_policy=policy)
    for number in range(3):
        worker.no_push(op.DELIVER_RESULT)
        worker.fail(activity, f"attempt {number + 1}").succeeded()
        if number < 2:
            activity = worker.push(op.DELIVER_ACTIVITY)
    result = worker.push(op.DELIVER_RESULT)
    check("attempt 3" in str(result.body.get("failure")), expected="the last failure", actual=result.body)


@case("workflow/activity-input-base64", "0x6B's input as base64 of JSON, which Go's SDK sends, arrives as that JSON.")
def activity_input_base64(trial: Trial) -> None:
    inputs(trial, base64.b64encode(b'["ada",1]').decode(), ["ada", 1])


@case("workflow/activity-input-json", "0x6B's input as JSON that is no string arrives as it is.")
def activity_input_json(trial: Trial) -> None:
    inputs(trial, [{"n": 2**60, "a": None}], [{"n": 2**60, "a": None}])


@case(
    "workflow/activity-input-text",
    "0x6B's input as text that is not base64 of JSON arrives as that text.",
    severity=SHOULD,
)
def activity_input_text(trial: Trial) -> None:
    inputs(trial, "not base64!", "not base64!")


def inputs(trial: Trial, sent: Any, arrives: object) -> None:
    _, _, activity = trial.held_activity(trial.peer(), trial.name("queue"), input=sent)
    same_json("the input", arrives, activity.body.get("input"))


@case("workflow/activity-type-required", "0x6B without activity_type is refused with 400, on a workflow that exists.")
def activity_type_required(trial: Trial) -> None:
    worker = trial.peer()
    execution, _ = trial.held_workflow(worker, trial.name("queue"))
    for extra in ({}, {"activity_type": ""}):
        worker.call(op.SCHEDULE_ACTIVITY, {"namespace": trial.namespace, **execution.key, **extra}).refused(400)


@case("workflow/activity-of-unknown-workflow", "0x6B for a workflow that does not exist is refused.", severity=SHOULD)
def activity_of_unknown_workflow(trial: Trial) -> None:
    body = {"namespace": trial.namespace, "workflow_id": trial.name("none"), "run_id": "0", "activity_type": "A"}
    trial.peer().call(op.SCHEDULE_ACTIVITY, body).refused(404, 400)


@case("workflow/activity-of-closed-workflow", "0x6B for a workflow that is closed is refused.", severity=SHOULD)
def activity_of_closed_workflow(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = trial.held_workflow(worker, trial.name("queue"))
    worker.commands(task, [{"kind": 0}]).succeeded()
    body = {"namespace": trial.namespace, **execution.key, "activity_type": "A"}
    worker.call(op.SCHEDULE_ACTIVITY, body).refused(400, 404, 409)


@case("workflow/activity-waits-for-a-worker", "An activity scheduled before any worker serves its queue waits for one.")
def activity_waits_for_a_worker(trial: Trial) -> None:
    workflows, later = trial.peer("workflows"), trial.peer("later")
    queue, work = trial.name("queue"), trial.name("work")
    execution, _ = trial.held_workflow(workflows, queue)
    ids = [trial.schedule_activity(workflows, execution, work) for _ in range(10)]
    later.subscribe_activities(trial.namespace, work)
    order = [later.push(op.DELIVER_ACTIVITY).body.get("activity_id") for _ in ids]
    equal("the order", expected=ids, actual=order)


@case(
    "workflow/activities-end-with-their-workflow",
    "When a workflow ends, its activities that wait are not delivered any more.",
    severity=SHOULD,
)
def activities_end_with_their_workflow(trial: Trial) -> None:
    worker = trial.peer()
    queue, work = trial.name("queue"), trial.name("work")
    execution, _ = trial.held_workflow(worker, queue)
    trial.schedule_activity(worker, execution, work)
    worker.call(op.TERMINATE, {"namespace": trial.namespace, **execution.key}).succeeded()
    worker.subscribe_activities(trial.namespace, work)
    worker.no_push(op.DELIVER_ACTIVITY)


@case(
    "workflow/recorded-results-after-worker-death",
    "When the worker of a workflow dies, the next one's repeated 0x6B calls are answered from the recorded results.",
    severity=SHOULD,
)
def recorded_results_after_worker_death(trial: Trial) -> None:
    first, second, activities = trial.peer("first"), trial.peer("second"), trial.peer("activities")
    queue, work = trial.name("queue"), trial.name("work")
    activities.subscribe_activities(trial.namespace, work)
    execution, _ = trial.held_workflow(first, queue)
    trial.schedule_activity(first, execution, work, input=["once"])
    activities.complete(activities.push(op.DELIVER_ACTIVITY), "recorded").succeeded()
    first.push(op.DELIVER_RESULT)
    second.subscribe_workflows(trial.namespace, queue)
    first.close()
    second.push(op.DELIVER_WORKFLOW, about(execution))
    repeated = trial.schedule_activity(second, execution, work, input=["once"])
    result = second.push(op.DELIVER_RESULT, lambda body: body.get("activity_id") == repeated)
    same_json("the recorded result", "recorded", result.body.get("result"))
    activities.no_push(op.DELIVER_ACTIVITY)
