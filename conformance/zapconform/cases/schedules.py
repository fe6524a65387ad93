"""Schedules: 0x51 of the mini client, 0x70 to 0x76 as Go's SDK and Go's server read them, and firing."""

from __future__ import annotations

import time

from zapconform import opcodes as op
from zapconform import wire
from zapconform.case import SHOULD, case, check, equal
from zapconform.peer import Json, Peer, Reply, same_json
from zapconform.trial import Trial

DEFAULT_QUEUE = "default"
NEVER: Json = {"cron": ["0 3 1 1 *"]}
"""Due once a year: a schedule that a case can look at without it firing."""

FAST: Json = {"interval_ms": 300}


def action(queue: str, **fields: object) -> Json:
    return {"workflow_type": "Scheduled", "task_queue": queue, **fields}


def scheduled_runs(trial: Trial, worker: Peer, queue: str) -> None:
    """Be the worker for what a schedule of this queue starts."""
    worker.subscribe_workflows(trial.namespace, queue)
    trial.terminate_queue_later(queue)


def take_run(trial: Trial, worker: Peer) -> Json:
    """The next run that a schedule started, completed at once so that no overlap policy matters."""
    task = worker.push(op.DELIVER_WORKFLOW)
    trial.terminate_later({"workflow_id": task.body["workflow_id"], "run_id": task.body["run_id"]})
    worker.commands(task, [{"kind": 0, "result": "MQ=="}]).succeeded()
    return task.body


def key(trial: Trial, schedule_id: str) -> Json:
    return {"namespace": trial.namespace, "schedule_id": schedule_id}


def describe(trial: Trial, peer: Peer, schedule_id: str) -> Json:
    return peer.call(op.DESCRIBE_SCHEDULE, key(trial, schedule_id)).ok()


# --- firing ------------------------------------------------------------------------------------------------


@case(
    "schedules/interval-fires",
    "A schedule with interval_ms starts its workflow again and again, an interval apart.",
    seconds=1,
)
def interval_fires(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    scheduled_runs(trial, worker, queue)
    created = time.monotonic()
    trial.create_schedule(worker, FAST, action(queue))
    runs = [take_run(trial, worker)["run_id"] for _ in range(3)]
    passed = time.monotonic() - created
    equal("different runs", expected=3, actual=len(set(runs)))
    check(passed > 0.55, expected="three runs 300 ms apart", actual=f"three within {passed:.3f} s")


@case(
    "schedules/interval-uses-type-and-input",
    "What a schedule starts has the action's type, queue and input.",
    seconds=1,
)
def interval_uses_type_and_input(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    scheduled_runs(trial, worker, queue)
    trial.create_schedule(worker, FAST, action(queue, input=["full", {"n": 2**60}]))
    body = take_run(trial, worker)
    equal("type", expected="Scheduled", actual=body.get("workflow_type_name"))
    same_json("the input", ["full", {"n": 2**60}], body.get("input"))


@case(
    "schedules/cron-every-second-descriptor", "`@every 1s` is a cron expression of Go's grammar, and fires.", seconds=2
)
def cron_every(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    scheduled_runs(trial, worker, queue)
    trial.create_schedule(worker, {"cron": ["@every 1s"]}, action(queue))
    take_run(trial, worker)


@case(
    "schedules/mini-interval-fires",
    "0x51 with an interval makes a task of that name on queue `default`, again and again.",
    exclusive=DEFAULT_QUEUE,
    seconds=2,
)
def mini_interval_fires(trial: Trial) -> None:
    worker = trial.peer()
    name = trial.name("tick")
    trial.delete_later(name)
    worker.subscribe_activities(trial.namespace, DEFAULT_QUEUE, types=[name])
    mini(worker, name, interval="1s").succeeded()
    task = worker.push(op.DELIVER_ACTIVITY, lambda body: body.get("activity_type_name") == name)
    worker.complete(task).succeeded()


@case("schedules/one-worker-for-each-firing", "Each firing goes to exactly one of the workers that wait.", seconds=1.5)
def one_worker_for_each_firing(trial: Trial) -> None:
    workers = [trial.peer("first"), trial.peer("second")]
    queue = trial.name("queue")
    for worker in workers:
        scheduled_runs(trial, worker, queue)
    schedule_id = trial.create_schedule(workers[0], FAST, action(queue))
    runs = []
    for _ in range(3):
        holder, task = trial.first_push(workers, op.DELIVER_WORKFLOW)
        holder.commands(task, [{"kind": 0, "result": "MQ=="}]).succeeded()
        runs.append(task.body["run_id"])
    workers[0].call(op.LIST_OR_DELETE_SCHEDULES, key(trial, schedule_id)).succeeded()
    equal("different runs", expected=3, actual=len(set(runs)))


@case("schedules/paused-does-not-fire", "A schedule created paused does not fire until it is unpaused.", seconds=2)
def paused_does_not_fire(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    scheduled_runs(trial, worker, queue)
    schedule_id = trial.create_schedule(worker, FAST, action(queue), paused=True)
    worker.quiet_for(1.0, op.DELIVER_WORKFLOW)
    worker.call(op.PAUSE_SCHEDULE, {**key(trial, schedule_id), "paused": False}).succeeded()
    take_run(trial, worker)


@case(
    "schedules/pause-stops-firing", "A schedule that is paused stops firing; its runs so far are untouched.", seconds=2
)
def pause_stops_firing(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    scheduled_runs(trial, worker, queue)
    schedule_id = trial.create_schedule(worker, FAST, action(queue))
    take_run(trial, worker)
    worker.call(op.PAUSE_SCHEDULE, {**key(trial, schedule_id), "paused": True}).succeeded()
    worker.settle()
    worker.pushes.clear()  # a firing may have crossed our call
    worker.quiet_for(1.0, op.DELIVER_WORKFLOW)


@case("schedules/delete-stops-firing", "A schedule that is deleted stops firing.", seconds=2)
def delete_stops_firing(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    scheduled_runs(trial, worker, queue)
    schedule_id = trial.create_schedule(worker, FAST, action(queue))
    take_run(trial, worker)
    worker.call(op.LIST_OR_DELETE_SCHEDULES, key(trial, schedule_id)).succeeded()
    worker.settle()
    worker.pushes.clear()
    worker.quiet_for(1.0, op.DELIVER_WORKFLOW)


@case(
    "schedules/start-time-respected",
    "A schedule does not fire before start_time_ms, nor after end_time_ms.",
    severity=SHOULD,
    seconds=1,
)
def start_time_respected(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    scheduled_runs(trial, worker, queue)
    now_ms = int(time.time() * 1000)
    trial.create_schedule(worker, {**FAST, "start_time_ms": now_ms + 3_600_000}, action(queue))
    worker.call(
        op.CREATE_SCHEDULE,
        trial.schedule_body(ended := trial.name("sched"), {**FAST, "end_time_ms": now_ms - 1000}, action(queue)),
    )
    trial.delete_later(ended)
    worker.quiet_for(1.0, op.DELIVER_WORKFLOW)


@case("schedules/trigger", "0x75 starts the action at once, also on a paused schedule, and counts it.")
def trigger(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    scheduled_runs(trial, worker, queue)
    schedule_id = trial.create_schedule(worker, NEVER, action(queue), paused=True)
    worker.call(op.TRIGGER_SCHEDULE, key(trial, schedule_id)).succeeded()
    equal("type", expected="Scheduled", actual=take_run(trial, worker).get("workflow_type_name"))
    info = describe(trial, worker, schedule_id).get("info")
    equal("info.action_count", expected=1, actual=info.get("action_count") if isinstance(info, dict) else info)


@case("schedules/trigger-as-the-sdk-does", "0x75 takes overlap_policy: skip, allow, buffer-one or none.")
def trigger_as_the_sdk_does(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    scheduled_runs(trial, worker, queue)
    schedule_id = trial.create_schedule(worker, NEVER, action(queue))
    for policy in ("skip", "allow", "buffer-one", ""):
        worker.call(op.TRIGGER_SCHEDULE, {**key(trial, schedule_id), "overlap_policy": policy}).succeeded()
        take_run(trial, worker)


@case("schedules/trigger-request-id", "A trigger repeated with its request id starts nothing more.", severity=SHOULD)
def trigger_request_id(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    scheduled_runs(trial, worker, queue)
    schedule_id = trial.create_schedule(worker, NEVER, action(queue))
    for _ in range(3):
        worker.call(op.TRIGGER_SCHEDULE, {**key(trial, schedule_id), "request_id": "once"}).succeeded()
    take_run(trial, worker)
    worker.no_push(op.DELIVER_WORKFLOW)


@case("schedules/trigger-unknown", "0x75 for a schedule that does not exist is refused.")
def trigger_unknown(trial: Trial) -> None:
    trial.peer().call(op.TRIGGER_SCHEDULE, key(trial, trial.name("none"))).refused(404, 400)


# --- what is accepted -----------------------------------------------------------------------------------------


ACCEPTED_CRONS = (
    "0 3 * * *",
    "*/5 * * * *",
    "0 12 * * MON-FRI",
    "0 0 5 1,4,7,10 *",
    "15,45 8-18/2 * * *",
    "0 0 ? * *",
    "0 0 1 JAN-mar *",
    "@yearly",
    "@daily",
    "@hourly",
    "@every 1h30m",
    "TZ=UTC 0 3 * * *",
    "CRON_TZ=Europe/Berlin @daily",
    "  0   3  *  * *  ",
)

REFUSED_CRONS = (
    "",
    " ",
    "nope",
    "* * * *",
    "60 * * * *",
    "* 24 * * *",
    "* * 0 * *",
    "* * 32 * *",
    "* * * 13 *",
    "* * * * foo",
    "5-1 * * * *",
    "-1 * * * *",
    "*/0 * * * *",
    "**/5 * * * *",
    "0 9 15W * *",
    "@reboot",
    "@every",
    "@every soon",
    "TZ=Nowhere/City 0 0 * * *",
)


@case("schedules/cron-accepted", "0x70 accepts the cron expressions of Go's grammar.")
def cron_accepted(trial: Trial) -> None:
    peer = trial.peer()
    for expression in ACCEPTED_CRONS:
        trial.create_schedule(peer, {"cron": [expression]}, action(trial.name("queue")), paused=True)
    trial.create_schedule(peer, {"cron": ["0 3 * * *", "@hourly"]}, action(trial.name("queue")), paused=True)


@case("schedules/cron-refused", "0x70 refuses with 400 what is no cron expression.")
def cron_refused(trial: Trial) -> None:
    refuses_each(trial, [{"cron": [expression]} for expression in REFUSED_CRONS])


@case(
    "schedules/cron-one-bad-of-many",
    "One bad expression among good ones is refused with 400, not skipped.",
    severity=SHOULD,
)
def cron_one_bad_of_many(trial: Trial) -> None:
    refuses_each(trial, [{"cron": ["0 3 * * *", "nope"]}])


@case(
    "schedules/cron-zone-without-expression",
    "`TZ=UTC` alone is refused with 400 (it kills Go's server).",
    hostile=True,
)
def cron_zone_without_expression(trial: Trial) -> None:
    refuses_each(trial, [{"cron": [expression]} for expression in ("TZ=UTC", "CRON_TZ=UTC", "TZ=", "TZ= ")])


@case("schedules/cron-impossible", "An expression that can never match (30 February) is refused with 400.")
def cron_impossible(trial: Trial) -> None:
    refuses_each(trial, [{"cron": ["0 0 30 2 *"]}, {"cron": ["0 0 31 4,6,9,11 *"]}])


@case("schedules/interval-refused", "An interval of zero or below, or no rule at all, is refused with 400.")
def interval_refused(trial: Trial) -> None:
    refuses_each(trial, [{"interval_ms": 0}, {"interval_ms": -1}, {"interval_ms": -60_000}, {}, {"cron": []}])


@case("schedules/timezone-refused", "A time zone that nobody knows is refused with 400.", severity=SHOULD)
def timezone_refused(trial: Trial) -> None:
    refuses_each(trial, [{"cron": ["0 3 * * *"], "timezone": "Nowhere/City"}])


def refuses_each(trial: Trial, specs: list[Json]) -> None:
    peer = trial.peer()
    wrong = []
    for spec in specs:
        schedule_id = trial.name("sched")
        reply = peer.call(op.CREATE_SCHEDULE, trial.schedule_body(schedule_id, spec, action("nobody"), paused=True))
        if reply.status != 400:
            trial.delete_later(schedule_id)
            wrong.append(f"{spec!r}: {reply}")
    check(not wrong, expected="status 400 for each", actual="; ".join(wrong))


@case("schedules/id-and-type-required", "A schedule without an id, or whose action has no type, is refused with 400.")
def id_and_type_required(trial: Trial) -> None:
    peer = trial.peer()
    nameless = {"namespace": trial.namespace, "schedule": {"spec": NEVER, "action": action("q")}}
    peer.call(op.CREATE_SCHEDULE, nameless).refused(400)
    schedule_id = trial.name("sched")
    trial.delete_later(schedule_id)
    for bad in ({}, {"task_queue": "q"}, {"workflow_type": "", "task_queue": "q"}):
        peer.call(op.CREATE_SCHEDULE, trial.schedule_body(schedule_id, NEVER, bad)).refused(400)


@case("schedules/mini-accepted", "0x51 takes Go durations and cron expressions, and answers u32 status at 0.")
def mini_accepted(trial: Trial) -> None:
    peer = trial.peer()
    accepted = (("1h30m0s", ""), ("90m", ""), ("+2h", ""), ("1.5h", ""), ("", "0 3 * * *"), ("", "@daily"))
    for interval, cron in accepted:
        name = trial.name("tick")
        trial.delete_later(name)
        mini(peer, name, interval=interval, cron=cron).succeeded()


@case("schedules/mini-refused", "0x51 refuses with 400 zero, negative and unreadable rules, none at all, and no name.")
def mini_refused(trial: Trial) -> None:
    peer = trial.peer()
    refused = [("0s", ""), ("-5s", ""), ("0", ""), ("5", ""), ("1d", ""), ("soon", ""), ("5 s", "")]
    refused += [("", "nope"), ("", "0 0 30 2 *"), ("", "TZ=UTC"), ("", "* * * *"), ("", "")]
    wrong = []
    for interval, cron in refused:
        name = trial.name("tick")
        reply = mini(peer, name, interval=interval, cron=cron)
        if reply.status != 400:
            trial.delete_later(name)
            wrong.append(f"interval {interval!r} cron {cron!r}: {reply}")
    check(not wrong, expected="status 400 for each", actual="; ".join(wrong))
    mini(peer, "", interval="1h").refused(400)


@case(
    "schedules/mini-is-a-schedule",
    "What 0x51 makes is a schedule of that name like any other: it is described and deleted.",
)
def mini_is_a_schedule(trial: Trial) -> None:
    peer = trial.peer()
    name = trial.name("tick")
    mini(peer, name, interval="1h").succeeded()
    equal("id", expected=name, actual=describe(trial, peer, name).get("id"))
    peer.call(op.LIST_OR_DELETE_SCHEDULES, key(trial, name)).succeeded()
    peer.call(op.DESCRIBE_SCHEDULE, key(trial, name)).refused(404)


@case("schedules/mini-again-replaces", "0x51 with a name that exists replaces that schedule.")
def mini_again_replaces(trial: Trial) -> None:
    peer = trial.peer()
    name = trial.name("tick")
    trial.delete_later(name)
    mini(peer, name, interval="1h").succeeded()
    mini(peer, name, cron="0 3 * * *").succeeded()
    spec = describe(trial, peer, name).get("spec")
    check(isinstance(spec, dict) and spec.get("cron") == ["0 3 * * *"], expected="the new rule", actual=spec)


def mini(peer: Peer, name: str, *, interval: str = "", cron: str = "") -> Reply:
    message = wire.task_schedule(name, interval=interval, cron=cron)
    return peer.reply(peer.send_message(message, op.TASK_SCHEDULE))


# --- reading and changing -------------------------------------------------------------------------------------


@case("schedules/create-answer", "0x70 answers with the schedule: id, spec, action and paused.")
def create_answer(trial: Trial) -> None:
    peer = trial.peer()
    schedule_id, queue = trial.name("sched"), trial.name("queue")
    trial.delete_later(schedule_id)
    body = trial.schedule_body(schedule_id, NEVER, action(queue), paused=True)
    flat_shape(peer.call(op.CREATE_SCHEDULE, body).ok(), schedule_id, queue)


def flat_shape(answer: Json, schedule_id: str, queue: str) -> None:
    """The schedule as Go's server shows it."""
    equal("id", expected=schedule_id, actual=answer.get("id"))
    spec, act = answer.get("spec"), answer.get("action")
    check(isinstance(spec, dict) and spec.get("cron") == NEVER["cron"], expected=f"spec {NEVER}", actual=answer)
    check(
        isinstance(act, dict) and act.get("workflow_type") == "Scheduled" and act.get("task_queue") == queue,
        expected=f"action Scheduled on {queue}",
        actual=answer,
    )
    equal("paused", expected=True, actual=answer.get("paused"))


@case("schedules/describe-both-shapes", "0x76 answers {id, spec, action, paused} and {schedule, info} in one object.")
def describe_both_shapes(trial: Trial) -> None:
    peer = trial.peer()
    queue = trial.name("queue")
    schedule_id = trial.create_schedule(peer, NEVER, action(queue), paused=True)
    answer = describe(trial, peer, schedule_id)
    flat_shape(answer, schedule_id, queue)
    nested = answer.get("schedule")
    check(isinstance(nested, dict), expected="an object under `schedule`", actual=answer)
    assert isinstance(nested, dict)
    flat_shape(nested, schedule_id, queue)
    info = answer.get("info")
    check(isinstance(info, dict) and info.get("action_count") == 0, expected="info.action_count 0", actual=answer)


@case(
    "schedules/describe-keeps-everything",
    "Nothing of a spec is lost: interval_ms, jitter_ms, timezone, start, end and input.",
)
def describe_keeps_everything(trial: Trial) -> None:
    peer = trial.peer()
    start_ms = int(time.time() * 1000) + 3_600_000
    spec: Json = {
        "interval_ms": 1_800_000,
        "jitter_ms": 1000,
        "timezone": "Europe/Berlin",
        "start_time_ms": start_ms,
        "end_time_ms": start_ms + 86_400_000,
    }
    fields = {"workflow_id": trial.name("fixed"), "input": ["full"]}
    schedule_id = trial.create_schedule(peer, spec, action(trial.name("queue"), **fields), paused=True)
    nested = describe(trial, peer, schedule_id).get("schedule", {})
    for name, value in spec.items():
        equal(f"spec.{name}", expected=value, actual=nested.get("spec", {}).get(name))
    for name, wanted in fields.items():
        equal(f"action.{name}", expected=wanted, actual=nested.get("action", {}).get(name))


@case("schedules/describe-unknown", "0x76 for a schedule that does not exist is answered 404.")
def describe_unknown(trial: Trial) -> None:
    trial.peer().call(op.DESCRIBE_SCHEDULE, key(trial, trial.name("none"))).refused(404)


@case("schedules/list-as-the-sdk-does", "0x71 without schedule_id lists the schedules.")
def list_as_the_sdk_does(trial: Trial) -> None:
    lists(trial, op.DELETE_OR_LIST_SCHEDULES)


@case("schedules/list-as-the-server-does", "0x72 without schedule_id lists the schedules.")
def list_as_the_server_does(trial: Trial) -> None:
    lists(trial, op.LIST_OR_DELETE_SCHEDULES)


def lists(trial: Trial, opcode: int) -> None:
    peer = trial.peer()
    made = {trial.create_schedule(peer, NEVER, action("q"), paused=True) for _ in range(3)}
    listed: set[object] = set()
    token = ""
    while True:
        answer = peer.call(opcode, {"namespace": trial.namespace, "page_size": 100, "next_page_token": token}).ok()
        schedules = answer.get("schedules")
        check(isinstance(schedules, list), expected="a list under `schedules`", actual=answer)
        listed |= {entry.get("id") for entry in schedules or []}
        token = answer.get("next_page_token") or ""
        if not token:
            break
    check(made <= listed, expected=f"{sorted(made)} in the list", actual=f"{len(listed)} others")


@case("schedules/delete-as-the-sdk-does", "0x72 with schedule_id deletes the schedule.")
def delete_as_the_sdk_does(trial: Trial) -> None:
    deletes(trial, op.LIST_OR_DELETE_SCHEDULES)


@case("schedules/delete-as-the-server-does", "0x71 with schedule_id deletes the schedule.")
def delete_as_the_server_does(trial: Trial) -> None:
    deletes(trial, op.DELETE_OR_LIST_SCHEDULES)


def deletes(trial: Trial, opcode: int) -> None:
    peer = trial.peer()
    schedule_id = trial.create_schedule(peer, NEVER, action("q"))
    equal("status", expected="deleted", actual=peer.call(opcode, key(trial, schedule_id)).ok().get("status"))
    peer.call(op.DESCRIBE_SCHEDULE, key(trial, schedule_id)).refused(404)


@case("schedules/delete-unknown", "Deleting a schedule that does not exist is answered: deleted, or 404.")
def delete_unknown(trial: Trial) -> None:
    reply = trial.peer().call(op.LIST_OR_DELETE_SCHEDULES, key(trial, trial.name("none")))
    check(reply.status in (0, 200, 404), expected="status 200 or 404", actual=str(reply))


@case(
    "schedules/pause-and-unpause", "0x73 pauses by default, with a note, and unpauses with paused false; 0x76 shows it."
)
def pause_and_unpause(trial: Trial) -> None:
    peer = trial.peer()
    schedule_id = trial.create_schedule(peer, NEVER, action("q"))
    for extra, says, paused in (
        ({}, "paused", True),
        ({"paused": False}, "running", False),
        ({"paused": True, "note": "holiday"}, "paused", True),
    ):
        answer = peer.call(op.PAUSE_SCHEDULE, {**key(trial, schedule_id), **extra}).ok()
        equal("status", expected=says, actual=answer.get("status"))
        equal("paused", expected=paused, actual=describe(trial, peer, schedule_id).get("paused"))


@case("schedules/unpause-as-the-server-does", "0x74 without `schedule` unpauses.")
def unpause_as_the_server_does(trial: Trial) -> None:
    peer = trial.peer()
    schedule_id = trial.create_schedule(peer, NEVER, action("q"), paused=True)
    answer = peer.call(op.UPDATE_OR_UNPAUSE_SCHEDULE, key(trial, schedule_id)).ok()
    equal("status", expected="running", actual=answer.get("status"))
    equal("paused", expected=False, actual=describe(trial, peer, schedule_id).get("paused"))


@case("schedules/update-as-the-sdk-does", "0x74 with `schedule` replaces spec and action and keeps the id.")
def update_as_the_sdk_does(trial: Trial) -> None:
    peer = trial.peer()
    schedule_id = trial.create_schedule(peer, NEVER, action("q"))
    body = trial.schedule_body(schedule_id, {"cron": ["30 4 * * *"]}, {"workflow_type": "Other", "task_queue": "q2"})
    peer.call(op.UPDATE_OR_UNPAUSE_SCHEDULE, body).succeeded()
    answer = describe(trial, peer, schedule_id)
    equal("id", expected=schedule_id, actual=answer.get("id"))
    equal("spec.cron", expected=["30 4 * * *"], actual=answer.get("spec", {}).get("cron"))
    equal("action.workflow_type", expected="Other", actual=answer.get("action", {}).get("workflow_type"))


@case("schedules/update-refused", "0x74 refuses with 400 a spec that 0x70 refuses, and leaves the schedule as it was.")
def update_refused(trial: Trial) -> None:
    peer = trial.peer()
    schedule_id = trial.create_schedule(peer, NEVER, action("q"))
    bad = trial.schedule_body(schedule_id, {"cron": ["nope"]}, action("q"))
    peer.call(op.UPDATE_OR_UNPAUSE_SCHEDULE, bad).refused(400)
    equal("spec.cron", expected=NEVER["cron"], actual=describe(trial, peer, schedule_id).get("spec", {}).get("cron"))


@case("schedules/change-unknown", "Pausing, unpausing or updating a schedule that does not exist is refused.")
def change_unknown(trial: Trial) -> None:
    peer = trial.peer()
    schedule_id = trial.name("none")
    peer.call(op.PAUSE_SCHEDULE, key(trial, schedule_id)).refused(404, 400)
    peer.call(op.UPDATE_OR_UNPAUSE_SCHEDULE, key(trial, schedule_id)).refused(404, 400)
    body = trial.schedule_body(schedule_id, NEVER, action("q"))
    peer.call(op.UPDATE_OR_UNPAUSE_SCHEDULE, body).refused(404, 400)


@case("schedules/create-again-replaces", "0x70 with an id that exists replaces the schedule.")
def create_again_replaces(trial: Trial) -> None:
    peer = trial.peer()
    schedule_id = trial.create_schedule(peer, NEVER, action("q"))
    body = trial.schedule_body(schedule_id, {"cron": ["@daily"]}, action("q2"))
    peer.call(op.CREATE_SCHEDULE, body).succeeded()
    answer = describe(trial, peer, schedule_id)
    equal("spec.cron", expected=["@daily"], actual=answer.get("spec", {}).get("cron"))
    equal("action.task_queue", expected="q2", actual=answer.get("action", {}).get("task_queue"))


# --- ours ---------------------------------------------------------------------------------------------------------


@case(
    "schedules/overlap-spellings", "A policy may be written as Go or Temporal write it; others get 400.", extension=True
)
def overlap_spellings(trial: Trial) -> None:
    peer = trial.peer()
    spellings = {
        "skip": ("skip", "Skip", "SKIP"),
        "allow": ("allow", "allow_all", "allow-all", "AllowAll"),
        "buffer-one": ("buffer-one", "buffer_one", "BufferOne"),
        "buffer-all": ("buffer-all", "BUFFER_ALL", "BufferAll"),
        "cancel-other": ("cancel-other", "cancel_other", "CancelOther"),
        "terminate-other": ("terminate-other", "terminate_other", "TerminateOther"),
    }
    for policy, names in spellings.items():
        for name in names:
            schedule_id = trial.create_schedule(peer, NEVER, action("q"), paused=True, overlap_policy=name)
            equal(name, expected=policy, actual=describe(trial, peer, schedule_id).get("overlap_policy"))
    body = trial.schedule_body(trial.name("sched"), NEVER, action("q"), overlap_policy="sometimes")
    peer.call(op.CREATE_SCHEDULE, body).refused(400)


@case("schedules/describe-keeps-our-fields", "Nothing of what is ours in a schedule is lost.", extension=True)
def describe_keeps_our_fields(trial: Trial) -> None:
    peer = trial.peer()
    spec: Json = {
        "interval_ms": 3_600_000,
        "phase_ms": 900_000,
        "intervals": [{"interval_ms": 7_200_000, "phase_ms": 0}, {"interval_ms": 86_400_000}],
    }
    fields: Json = {"catchup_window_ms": 600_000, "pause_on_failure": True, "remaining_actions": 7}
    more: Json = {
        "timeouts": {"workflow_run_ms": 60_000},
        "memo": {"team": "a"},
        "search_attributes": {"Customer": "ada"},
    }
    schedule_id = trial.create_schedule(peer, spec, action("q", **more), paused=True, **fields)
    answer = describe(trial, peer, schedule_id)
    for name, value in spec.items():
        equal(f"spec.{name}", expected=value, actual=answer.get("spec", {}).get(name))
    for name, value in fields.items():
        equal(name, expected=value, actual=answer.get(name))
    for name, value in more.items():
        equal(f"action.{name}", expected=value, actual=answer.get("action", {}).get(name))


@case(
    "schedules/our-fields-refused", "A phase, window or limit that means nothing is refused with 400.", extension=True
)
def our_fields_refused(trial: Trial) -> None:
    hour: Json = {"interval_ms": 3_600_000}
    refuses_each(
        trial,
        [
            {**hour, "phase_ms": 3_600_000},
            {**hour, "phase_ms": -1},
            {"cron": ["@daily"], "phase_ms": 5},
            {"intervals": [{"interval_ms": 0}]},
        ],
    )
    peer = trial.peer()
    for bad in ({"catchup_window_ms": 1}, {"catchup_window_ms": -1}, {"remaining_actions": -1}):
        body = trial.schedule_body(trial.name("sched"), NEVER, action("q"), **bad)
        peer.call(op.CREATE_SCHEDULE, body).refused(400)


@case(
    "schedules/limited-actions", "A schedule with remaining_actions fires so many times, and says so.", extension=True
)
def limited_actions(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    scheduled_runs(trial, worker, queue)
    schedule_id = trial.create_schedule(worker, FAST, action(queue), remaining_actions=2)
    take_run(trial, worker)
    take_run(trial, worker)
    worker.quiet_for(1.0, op.DELIVER_WORKFLOW)
    info = describe(trial, worker, schedule_id).get("info", {})
    equal("info.remaining_actions", expected=0, actual=info.get("remaining_actions"))
    equal("info.next_action_times", expected=[], actual=info.get("next_action_times"))
    equal("recent actions", expected=2, actual=len(info.get("recent_actions", [])))


@case(
    "schedules/trigger-over-an-open-run",
    "A trigger waits under buffer-one, and ends the open run under terminate-other.",
    extension=True,
)
def trigger_over_an_open_run(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    scheduled_runs(trial, worker, queue)
    schedule_id = trial.create_schedule(worker, NEVER, action(queue), paused=True)

    def trigger_with(policy: str) -> Json:
        return worker.call(op.TRIGGER_SCHEDULE, {**key(trial, schedule_id), "overlap_policy": policy}).ok()

    first = trigger_with("skip")
    trial.terminate_later({"workflow_id": first["workflow_id"], "run_id": first["run_id"]})
    equal("status under skip", expected="skipped", actual=trigger_with("skip").get("status"))
    equal("status under terminate-other", expected="triggered", actual=trigger_with("terminate-other").get("status"))
    trial.status_becomes(worker, first["workflow_id"], 5)
    equal("status under buffer-one", expected="buffered", actual=trigger_with("buffer-one").get("status"))
    info = describe(trial, worker, schedule_id).get("info", {})
    equal("info.buffer_size", expected=1, actual=info.get("buffer_size"))
    seen = set()
    for _ in range(3):
        task = worker.push(op.DELIVER_WORKFLOW)
        seen.add(task.body["workflow_id"])
        if task.body["workflow_id"] != first["workflow_id"]:
            worker.commands(task, [{"kind": 0, "result": "MQ=="}]).succeeded()
    equal("different runs", expected=3, actual=len(seen))


MINUTELY: Json = {"cron": ["* * * * *"]}


def whole_minute_ms(minutes_ago: int) -> int:
    return (int(time.time()) // 60 - minutes_ago) * 60_000


@case(
    "schedules/backfill", "0x98 acts on every slot of a range of the past, also on a paused schedule.", extension=True
)
def backfill(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    scheduled_runs(trial, worker, queue)
    schedule_id = trial.create_schedule(worker, MINUTELY, action(queue), paused=True)
    body = {
        **key(trial, schedule_id),
        "start_time_ms": whole_minute_ms(20),
        "end_time_ms": whole_minute_ms(18),
        "overlap_policy": "buffer-all",
        "request_id": "once",
    }
    for _ in range(2):
        equal("slots", expected=3, actual=worker.call(op.BACKFILL_SCHEDULE, body).ok().get("slots"))
    runs = [take_run(trial, worker)["workflow_id"] for _ in range(3)]
    equal("the runs, in order", expected=sorted(set(runs)), actual=runs)
    worker.no_push(op.DELIVER_WORKFLOW)


@case(
    "schedules/backfill-refused",
    "0x98 refuses a range that is none, is to come, or has over 1,000 slots, and an unknown schedule.",
    extension=True,
)
def backfill_refused(trial: Trial) -> None:
    peer = trial.peer()
    schedule_id = trial.create_schedule(peer, MINUTELY, action("nobody"), paused=True)
    for first, last in ((5, 6), (5, -60), (1100, 5)):
        times = {"start_time_ms": whole_minute_ms(first), "end_time_ms": whole_minute_ms(last)}
        peer.call(op.BACKFILL_SCHEDULE, {**key(trial, schedule_id), **times}).refused(400)
    peer.call(op.BACKFILL_SCHEDULE, key(trial, schedule_id)).refused(400)
    times = {"start_time_ms": whole_minute_ms(6), "end_time_ms": whole_minute_ms(5)}
    peer.call(op.BACKFILL_SCHEDULE, {**key(trial, trial.name("none")), **times}).refused(404)


@case(
    "schedules/matching-times",
    "0x99 lists the times of a schedule, or of a spec that is not saved, in a range: at most 1,000.",
    extension=True,
)
def matching_times(trial: Trial) -> None:
    peer = trial.peer()
    schedule_id = trial.create_schedule(peer, {"cron": ["30 4 * * *"]}, action("q"), paused=True)
    june: Json = {"start_time_ms": 1_780_272_000_000, "end_time_ms": 1_780_272_000_000 + 2 * 86_400_000}
    wanted = ["2026-06-01T04:30:00Z", "2026-06-02T04:30:00Z"]
    answer = peer.call(op.MATCHING_TIMES, {**key(trial, schedule_id), **june}).ok()
    equal("matching_times", expected=wanted, actual=answer.get("matching_times"))
    phased: Json = {"spec": {"interval_ms": 86_400_000, "phase_ms": 4 * 3_600_000 + 30 * 60_000}}
    answer = peer.call(op.MATCHING_TIMES, {"namespace": trial.namespace, "schedule": phased, **june}).ok()
    equal("matching_times of a spec", expected=wanted, actual=answer.get("matching_times"))
    often: Json = {"spec": {"interval_ms": 1, "phase_ms": 0}}
    answer = peer.call(op.MATCHING_TIMES, {"namespace": trial.namespace, "schedule": often, **june}).ok()
    equal("how many times", expected=1000, actual=len(answer.get("matching_times", [])))
    backwards = {"start_time_ms": june["end_time_ms"], "end_time_ms": june["start_time_ms"]}
    peer.call(op.MATCHING_TIMES, {**key(trial, schedule_id), **backwards}).refused(400)
    peer.call(op.MATCHING_TIMES, key(trial, trial.name("none"))).refused(404)
