"""The life of a workflow: start, its task, its end, its history, signals and lists."""

from __future__ import annotations

import base64

from zapconform import opcodes as op
from zapconform import wire
from zapconform.case import SHOULD, Failed, case, check, equal
from zapconform.peer import Json, Peer, failure, payload_value, same_json
from zapconform.trial import Execution, Trial, about, text

RUNNING, COMPLETED, FAILED, CANCELED, TERMINATED, TIMED_OUT = 1, 2, 3, 4, 5, 7
CANCELING = 0
"""Go's SDK has no number for it."""


def encoded(value: object) -> str:
    """A result in a command: base64 of JSON."""
    return base64.b64encode(wire.compact(value)).decode()


def event_types(events: list[Json]) -> list[str]:
    return [str(event.get("eventType")).removeprefix("WORKFLOW_EXECUTION_") for event in events]


# --- start ---------------------------------------------------------------------------------------------


@case("workflow/start-answers-ids", "0x60 answers the workflow id that was asked for, and a run id.")
def start_answers_ids(trial: Trial) -> None:
    peer = trial.peer()
    workflow_id = trial.name("wf")
    execution = trial.start(peer, trial.name("queue"), workflow_id=workflow_id)
    equal("workflow_id", expected=workflow_id, actual=execution.workflow_id)


@case("workflow/start-makes-ids", "0x60 without a workflow id makes one; every start has a run id of its own.")
def start_makes_ids(trial: Trial) -> None:
    peer = trial.peer()
    made = {trial.start(peer, trial.name("queue"), workflow_id="") for _ in range(5)}
    equal("different runs", expected=5, actual=len({execution.run_id for execution in made}))
    equal("different workflow ids", expected=5, actual=len({execution.workflow_id for execution in made}))
    for execution in made:
        trial.describe(peer, execution.workflow_id)


@case("workflow/start-keeps-run-id", "0x60 with a run id of the caller's uses it.", severity=SHOULD)
def start_keeps_run_id(trial: Trial) -> None:
    run_id = trial.name("run")
    equal("run_id", expected=run_id, actual=trial.start(trial.peer(), trial.name("queue"), run_id=run_id).run_id)


@case(
    "workflow/start-repeated-with-request-id", "A start repeated with its request id is the same run.", severity=SHOULD
)
def start_repeated_with_request_id(trial: Trial) -> None:
    peer = trial.peer()
    workflow_id, queue, request_id = trial.name("wf"), trial.name("queue"), trial.name("request")
    first = trial.start(peer, queue, workflow_id=workflow_id, request_id=request_id)
    again = trial.start(peer, queue, workflow_id=workflow_id, request_id=request_id)
    equal("the run of the repeat", expected=first, actual=again)


@case(
    "workflow/describe-running",
    "0x64 describes a started workflow: ids, type, queue, status 1, history_length 1, start_time.",
)
def describe_running(trial: Trial) -> None:
    peer = trial.peer()
    queue = trial.name("queue")
    execution = trial.start(peer, queue)
    info = trial.describe(peer, execution.workflow_id)
    wanted: Json = {
        "workflow_id": execution.workflow_id,
        "run_id": execution.run_id,
        "workflow_type": "Conform",
        "task_queue": queue,
        "status": RUNNING,
        "history_length": 1,
    }
    equal("info", expected=wanted, actual={key: info.get(key) for key in wanted})
    check(str(info.get("start_time", ""))[4:5] == "-", expected="start_time in RFC 3339", actual=info)
    check("close_time" not in info, expected="no close_time while it runs", actual=info)


@case("workflow/describe-by-run", "0x64 with a run id describes that run, without one the latest.")
def describe_by_run(trial: Trial) -> None:
    peer = trial.peer()
    workflow_id, queue = trial.name("wf"), trial.name("queue")
    first = trial.start(peer, queue, workflow_id=workflow_id)
    peer.call(op.TERMINATE, {"namespace": trial.namespace, **first.key}).succeeded()
    second = trial.start(peer, queue, workflow_id=workflow_id)
    check(first.run_id != second.run_id, expected="a new run", actual=second)
    equal("the latest run", expected=second.run_id, actual=trial.describe(peer, workflow_id).get("run_id"))
    equal("the first run", expected=TERMINATED, actual=trial.describe(peer, workflow_id, first.run_id).get("status"))


# --- the workflow task ------------------------------------------------------------------------------------


@case("workflow/task-delivered", "0xB0 brings a token, the ids, the type and the input as JSON text.")
def task_delivered(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = trial.held_workflow(worker, trial.name("queue"), input=["ada", {"n": 1}])
    equal("workflow_type_name", expected="Conform", actual=task.body.get("workflow_type_name"))
    equal("run_id", expected=execution.run_id, actual=task.body.get("run_id"))
    same_json("the input", ["ada", {"n": 1}], task.body.get("input"))
    check(bool(task.token), expected="a token", actual=task.body)


@case(
    "workflow/task-waits-for-a-worker",
    "A workflow that starts before any worker is delivered to the first that subscribes.",
)
def task_waits_for_a_worker(trial: Trial) -> None:
    peer = trial.peer()
    queue = trial.name("queue")
    execution = trial.start(peer, queue)
    peer.subscribe_workflows(trial.namespace, queue)
    peer.push(op.DELIVER_WORKFLOW, about(execution))


@case("workflow/task-delivered-once", "A workflow task that is held is delivered to nobody else.")
def task_delivered_once(trial: Trial) -> None:
    worker, other = trial.peer("worker"), trial.peer("other")
    queue = trial.name("queue")
    trial.held_workflow(worker, queue)
    other.subscribe_workflows(trial.namespace, queue)
    other.no_push(op.DELIVER_WORKFLOW)
    worker.no_push(op.DELIVER_WORKFLOW)


@case(
    "workflow/completes", "Command kind 0 completes the workflow: status 2, close_time, a last event with the result."
)
def completes(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = trial.held_workflow(worker, trial.name("queue"))
    worker.commands(task, [{"kind": 0, "result": encoded("hello ada")}]).succeeded()
    info = trial.describe(worker, execution.workflow_id)
    equal("status", expected=COMPLETED, actual=info.get("status"))
    check(bool(info.get("close_time")), expected="a close_time", actual=info)
    last = trial.history(worker, execution)["events"][-1]
    equal("the last event", expected=["COMPLETED"], actual=event_types([last]))
    equal("its result", expected="hello ada", actual=payload_value(last.get("attributes", {}).get("result")))


@case("workflow/completes-without-result", "Command kind 0 without a result completes the workflow.")
def completes_without_result(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    worker.subscribe_workflows(trial.namespace, queue)
    for command in ({"kind": 0}, {"kind": 0, "result": None}, {"kind": 0, "result": encoded(None)}):
        execution = trial.start(worker, queue)
        worker.commands(worker.push(op.DELIVER_WORKFLOW, about(execution)), [command]).succeeded()
        equal("status", expected=COMPLETED, actual=trial.describe(worker, execution.workflow_id).get("status"))


@case("workflow/fails", "Command kind 1 fails the workflow: status 3, and a last event with the failure.")
def fails(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = trial.held_workflow(worker, trial.name("queue"))
    why = base64.b64encode(failure("no funds", code="Payment")).decode()
    worker.commands(task, [{"kind": 1, "failure": why}]).succeeded()
    equal("status", expected=FAILED, actual=trial.describe(worker, execution.workflow_id).get("status"))
    last = trial.history(worker, execution)["events"][-1]
    equal("the last event", expected=["FAILED"], actual=event_types([last]))
    check("no funds" in str(last.get("attributes")), expected="the failure's message in it", actual=last)


@case("workflow/result-never-changes", "A closed workflow stays as it closed, whatever comes later.")
def result_never_changes(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = trial.held_workflow(worker, trial.name("queue"))
    worker.commands(task, [{"kind": 0, "result": encoded(1)}]).succeeded()
    before = trial.describe(worker, execution.workflow_id)
    worker.call(op.CANCEL, {"namespace": trial.namespace, **execution.key})
    worker.call(op.TERMINATE, {"namespace": trial.namespace, **execution.key})
    worker.call(op.SIGNAL, {"namespace": trial.namespace, **execution.key, "signal_name": "s"})
    equal("info", expected=before, actual=trial.describe(worker, execution.workflow_id))


@case(
    "workflow/no-commands-does-not-complete",
    "An empty or null command list (Go's worker without the type) never completes the workflow.",
)
def no_commands_does_not_complete(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    worker.subscribe_workflows(trial.namespace, queue)
    nothing: tuple[object, ...] = (None, [])
    for number, commands in enumerate(nothing):
        # Of two types: a server may remember that this worker does not know the first.
        execution = trial.start(worker, queue, workflow_type=f"Unknown{number}")
        worker.commands(worker.push(op.DELIVER_WORKFLOW, about(execution)), commands)
        equal("status", expected=RUNNING, actual=trial.describe(worker, execution.workflow_id).get("status"))


@case(
    "workflow/unknown-type-goes-elsewhere",
    "A workflow whose worker answers with no commands goes to another worker.",
    severity=SHOULD,
)
def unknown_type_goes_elsewhere(trial: Trial) -> None:
    worker, other = trial.peer("worker"), trial.peer("other")
    queue = trial.name("queue")
    execution, task = trial.held_workflow(worker, queue)
    other.subscribe_workflows(trial.namespace, queue)
    worker.commands(task, None)
    again = other.push(op.DELIVER_WORKFLOW, about(execution))
    other.commands(again, [{"kind": 0, "result": encoded(1)}]).succeeded()
    equal("status", expected=COMPLETED, actual=trial.describe(other, execution.workflow_id).get("status"))


@case(
    "workflow/worker-death-redelivers",
    "When the worker that holds a workflow task is lost, another gets the task at once.",
)
def worker_death_redelivers(trial: Trial) -> None:
    worker, other = trial.peer("worker"), trial.peer("other")
    queue = trial.name("queue")
    execution, first = trial.held_workflow(worker, queue, input=["again"])
    other.subscribe_workflows(trial.namespace, queue)
    worker.close()
    second = other.push(op.DELIVER_WORKFLOW, about(execution))
    check(second.token != first.token, expected="a new token", actual=second.token)
    same_json("the input", ["again"], second.body.get("input"))
    other.commands(first, [{"kind": 1}]).refused()
    other.commands(second, [{"kind": 0, "result": encoded(2)}]).succeeded()
    equal("status", expected=COMPLETED, actual=trial.describe(other, execution.workflow_id).get("status"))


@case("workflow/types-filter", "A workflow worker that names its types gets those only.", extension=True)
def types_filter(trial: Trial) -> None:
    picky, other = trial.peer("picky"), trial.peer("other")
    queue = trial.name("queue")
    picky.subscribe_workflows(trial.namespace, queue, types=["Wanted"])
    unwanted = trial.start(picky, queue, workflow_type="Unwanted")
    wanted = trial.start(picky, queue, workflow_type="Wanted")
    picky.push(op.DELIVER_WORKFLOW, about(wanted))
    picky.no_push(op.DELIVER_WORKFLOW)
    other.subscribe_workflows(trial.namespace, queue)
    other.push(op.DELIVER_WORKFLOW, about(unwanted))


@case(
    "workflow/execution-timeout",
    "workflow_execution_ms and workflow_run_ms of a start take effect: the workflow is over when they have passed.",
    severity=SHOULD,
    seconds=1,
)
def execution_timeout(trial: Trial) -> None:
    worker = trial.peer()
    worker.subscribe_workflows(trial.namespace, queue := trial.name("queue"))
    for name in ("workflow_execution_ms", "workflow_run_ms"):
        execution = trial.start(worker, queue, timeouts={name: 400})
        info = trial.status_becomes(worker, execution.workflow_id, TIMED_OUT, FAILED, TERMINATED)
        check(bool(info.get("close_time")), expected="a close_time", actual=info)


@case(
    "workflow/retry-policy",
    "retry_policy of a start takes effect: a workflow that fails is delivered again, as often as the policy says.",
    severity=SHOULD,
)
def retry_policy(trial: Trial) -> None:
    worker = trial.peer()
    policy = {"initial_interval_ms": 30, "backoff_coefficient": 1, "maximum_attempts": 2}
    execution, task = trial.held_workflow(worker, trial.name("queue"), retry_policy=policy)
    trial.terminate_later({"workflow_id": execution.workflow_id})
    why = base64.b64encode(failure("again")).decode()
    worker.commands(task, [{"kind": 1, "failure": why}]).succeeded()
    again = worker.push(op.DELIVER_WORKFLOW, lambda body: body.get("workflow_id") == execution.workflow_id)
    worker.commands(again, [{"kind": 1, "failure": why}]).succeeded()
    trial.status_becomes(worker, execution.workflow_id, FAILED)
    worker.no_push(op.DELIVER_WORKFLOW)


@case("workflow/memo-kept", "A start's memo is part of what 0x64 describes.", severity=SHOULD)
def memo_kept(trial: Trial) -> None:
    peer = trial.peer()
    memo = {"k": "v", "n": 2**60}
    execution = trial.start(peer, trial.name("queue"), memo=memo)
    equal("memo", expected=memo, actual=payload_value(trial.describe(peer, execution.workflow_id).get("memo")))


@case("workflow/search-attributes", "A start's search attributes can be asked for in a list's query.", severity=SHOULD)
def search_attributes(trial: Trial) -> None:
    peer = trial.peer()
    customer = trial.name("customer")
    execution = trial.start(peer, trial.name("queue"), search_attributes={"Customer": customer})
    trial.start(peer, trial.name("queue"), search_attributes={"Customer": "another"})
    found = listed(trial, peer, f"Customer = '{customer}'")
    equal("runs", expected=[execution.run_id], actual=[entry.get("run_id") for entry in found])


# --- signals -----------------------------------------------------------------------------------------------


@case("workflow/signal-recorded", "0x61 answers `signaled` and adds a SIGNALED event with the name and the input.")
def signal_recorded(trial: Trial) -> None:
    peer = trial.peer()
    execution = trial.start(peer, trial.name("queue"))
    signal = {"namespace": trial.namespace, **execution.key, "signal_name": "approve", "input": {"by": "x", "n": 2**60}}
    equal("status", expected="signaled", actual=peer.call(op.SIGNAL, signal).ok().get("status"))
    events = trial.history(peer, execution)["events"]
    equal("events", expected=["STARTED", "SIGNALED"], actual=event_types(events))
    attributes = events[1].get("attributes", {})
    equal("signalName", expected="approve", actual=attributes.get("signalName"))
    equal("input", expected={"by": "x", "n": 2**60}, actual=payload_value(attributes.get("input")))


@case("workflow/signal-closed-refused", "A closed workflow takes no signal.")
def signal_closed_refused(trial: Trial) -> None:
    peer = trial.peer()
    execution = trial.start(peer, trial.name("queue"))
    peer.call(op.TERMINATE, {"namespace": trial.namespace, **execution.key}).succeeded()
    signal = {"namespace": trial.namespace, **execution.key, "signal_name": "late"}
    peer.call(op.SIGNAL, signal).refused(400, 404, 409)


@case(
    "workflow/signal-with-start-0x69",
    "0x69 starts and signals, then signals the same run, and after its end starts anew.",
)
def signal_with_start_0x69(trial: Trial) -> None:
    signal_with_start(trial, op.SIGNAL_WITH_START)


@case("workflow/signal-with-start-0x66", "0x66 with signal_name is signal-with-start, as Go's SDK sends it.")
def signal_with_start_0x66(trial: Trial) -> None:
    signal_with_start(trial, op.HISTORY)


def signal_with_start(trial: Trial, opcode: int) -> None:
    peer = trial.peer()
    workflow_id = trial.name("cart")
    fields: Json = {"workflow_id": workflow_id, "signal_name": "add", "signal_input": "item", "input": ["in"]}

    def go() -> Execution:
        return trial.start(peer, trial.name("queue"), opcode=opcode, **fields)

    first = go()
    equal("events", expected=["STARTED", "SIGNALED"], actual=event_types(trial.history(peer, first)["events"]))
    second = go()
    equal("the run of the second call", expected=first.run_id, actual=second.run_id)
    events = trial.history(peer, first)["events"]
    equal("events", expected=["STARTED", "SIGNALED", "SIGNALED"], actual=event_types(events))
    equal("signal input", expected="item", actual=payload_value(events[2].get("attributes", {}).get("input")))
    peer.call(op.TERMINATE, {"namespace": trial.namespace, **first.key}).succeeded()
    third = go()
    check(third.run_id != first.run_id, expected="a new run after the first ended", actual=third)
    equal("status of the new run", expected=RUNNING, actual=trial.describe(peer, workflow_id).get("status"))


@case("workflow/signal-with-start-request-id", "0x69 repeated with its request id changes nothing.", severity=SHOULD)
def signal_with_start_request_id(trial: Trial) -> None:
    peer = trial.peer()
    fields: Json = {"workflow_id": trial.name("cart"), "signal_name": "add", "request_id": trial.name("request")}
    queue = trial.name("queue")
    first = trial.start(peer, queue, opcode=op.SIGNAL_WITH_START, **fields)
    again = trial.start(peer, queue, opcode=op.SIGNAL_WITH_START, **fields)
    equal("the run of the repeat", expected=first, actual=again)
    equal("history_length", expected=2, actual=trial.describe(peer, first.workflow_id).get("history_length"))


# --- history ------------------------------------------------------------------------------------------------


def signaled_twice(trial: Trial, peer: Peer) -> Execution:
    execution = trial.start(peer, trial.name("queue"))
    for name in ("one", "two"):
        peer.call(op.SIGNAL, {"namespace": trial.namespace, **execution.key, "signal_name": name}).succeeded()
    return execution


def ids(page: Json) -> list[object]:
    return [event.get("eventId") for event in page["events"]]


@case("workflow/history", "0x66 answers all events, ids from 1 without gaps, with times and types; next_cursor 0.")
def history(trial: Trial) -> None:
    peer = trial.peer()
    execution = signaled_twice(trial, peer)
    page = trial.history(peer, execution)
    equal("event ids", expected=[1, 2, 3], actual=ids(page))
    equal("types", expected=["STARTED", "SIGNALED", "SIGNALED"], actual=event_types(page["events"]))
    equal("next_cursor", expected=0, actual=page.get("next_cursor"))
    for event in page["events"]:
        check(str(event.get("eventTime", ""))[10:11] == "T", expected="eventTime in RFC 3339", actual=event)
    started = page["events"][0].get("attributes", {})
    equal("workflowType of STARTED", expected="Conform", actual=started.get("workflowType"))


@case("workflow/history-pages", "0x66 pages forward: page_size 2 of 3 gives next_cursor 2, and after 2 comes event 3.")
def history_pages(trial: Trial) -> None:
    peer = trial.peer()
    execution = signaled_twice(trial, peer)
    first = trial.history(peer, execution, page_size=2)
    equal("the first page", expected=([1, 2], 2), actual=(ids(first), first.get("next_cursor")))
    second = trial.history(peer, execution, page_size=2, after_event_id=2)
    equal("the second page", expected=([3], 0), actual=(ids(second), second.get("next_cursor")))


@case("workflow/history-reverse", "0x66 with reverse starts at the end: 3, 2 and then, after 2, 1.")
def history_reverse(trial: Trial) -> None:
    peer = trial.peer()
    execution = signaled_twice(trial, peer)
    equal("all", expected=[3, 2, 1], actual=ids(trial.history(peer, execution, reverse=True)))
    first = trial.history(peer, execution, reverse=True, page_size=2)
    equal("the first page", expected=[3, 2], actual=ids(first))
    second = trial.history(peer, execution, reverse=True, page_size=2, after_event_id=first.get("next_cursor"))
    equal("the second page", expected=[1], actual=ids(second))


@case("workflow/history-of-latest-run", "0x66 without a run id reads the latest run.")
def history_of_latest_run(trial: Trial) -> None:
    peer = trial.peer()
    execution = signaled_twice(trial, peer)
    answer = peer.call(op.HISTORY, {"namespace": trial.namespace, "workflow_id": execution.workflow_id}).ok()
    equal("event ids", expected=[1, 2, 3], actual=ids(answer))


# --- reset -----------------------------------------------------------------------------------------------------


@case(
    "workflow/reset",
    "0x68 makes a new run of the same id: RUNNING with 2 events, the last RESET; the source is TERMINATED.",
)
def reset(trial: Trial) -> None:
    worker = trial.peer()
    source, _ = trial.held_workflow(worker, trial.name("queue"), input=["again"])
    answer = reset_to(trial, worker, source, 1)
    new = Execution(source.workflow_id, text(answer, "run_id"))
    trial.terminate_later(new.key)
    check(new.run_id != source.run_id, expected="a new run id", actual=answer)
    equal(
        "status of the new run",
        expected=RUNNING,
        actual=trial.describe(worker, *(new.workflow_id, new.run_id))["status"],
    )
    equal(
        "status of the source",
        expected=TERMINATED,
        actual=trial.describe(worker, source.workflow_id, source.run_id)["status"],
    )
    events = trial.history(worker, new)["events"]
    equal("events of the new run", expected=["STARTED", "RESET"], actual=event_types(events))
    again = worker.push(op.DELIVER_WORKFLOW, about(new))
    same_json("the input", ["again"], again.body.get("input"))


def reset_to(trial: Trial, peer: Peer, execution: Execution, event_id: int) -> Json:
    body = {"namespace": trial.namespace, **execution.key, "event_id": event_id, "reason": "try again"}
    return peer.call(op.RESET, body).ok()


@case(
    "workflow/reset-event-out-of-range", "0x68 to an event that is not in the history (0, -1, 999) is refused with 400."
)
def reset_event_out_of_range(trial: Trial) -> None:
    peer = trial.peer()
    execution = trial.start(peer, trial.name("queue"))
    for event_id in (999, 0, -1, 2):
        body = {"namespace": trial.namespace, **execution.key, "event_id": event_id}
        peer.call(op.RESET, body).refused(400)
    equal("status", expected=RUNNING, actual=trial.describe(peer, execution.workflow_id).get("status"))


@case("workflow/reset-closed", "A closed workflow can be reset: its new run is delivered and may complete.")
def reset_closed(trial: Trial) -> None:
    worker = trial.peer()
    source, task = trial.held_workflow(worker, trial.name("queue"))
    worker.commands(task, [{"kind": 1, "failure": encoded({})}]).succeeded()
    new = Execution(source.workflow_id, text(reset_to(trial, worker, source, 1), "run_id"))
    trial.terminate_later(new.key)
    worker.commands(worker.push(op.DELIVER_WORKFLOW, about(new)), [{"kind": 0}]).succeeded()
    equal("status of the new run", expected=COMPLETED, actual=trial.describe(worker, new.workflow_id).get("status"))


# --- lists ----------------------------------------------------------------------------------------------------


def listed(trial: Trial, peer: Peer, query: str, page_size: int = 100) -> list[Json]:
    """Every page of a list."""
    found: list[Json] = []
    token = ""
    for _ in range(100):
        body = {"namespace": trial.namespace, "query": query, "page_size": page_size, "next_page_token": token}
        answer = peer.call(op.LIST, body).ok()
        page = answer.get("executions")
        if not isinstance(page, list) or len(page) > page_size:
            raise Failed(expected=f"at most {page_size} under `executions`", actual=str(answer)[:400])
        found += page
        token = answer.get("next_page_token") or ""
        if not token:
            return found
    raise Failed(expected="an end of the pages", actual="a next_page_token on the hundredth page")


@case("workflow/list", "0x65 lists executions as info objects.")
def lists(trial: Trial) -> None:
    peer = trial.peer()
    kind = trial.name("Type")
    execution = trial.start(peer, trial.name("queue"), workflow_type=kind)
    found = listed(trial, peer, f"WorkflowType = '{kind}'")
    equal("runs", expected=[execution.run_id], actual=[entry.get("run_id") for entry in found])
    equal("status", expected=RUNNING, actual=found[0].get("status"))


@case("workflow/list-query", "0x65 honors its query: =, !=, AND, OR, NOT, IN, parentheses, statuses, ids and queues.")
def list_query(trial: Trial) -> None:
    peer = trial.peer()
    queue, one, two = trial.name("queue"), trial.name("One"), trial.name("Two")
    first = trial.start(peer, queue, workflow_type=one)
    second = trial.start(peer, queue, workflow_type=two)
    peer.call(op.TERMINATE, {"namespace": trial.namespace, **second.key}).succeeded()
    on_queue = f"TaskQueue = '{queue}'"
    both = {first.run_id, second.run_id}
    wanted: tuple[tuple[str, set[str]], ...] = (
        (on_queue, both),
        (f"WorkflowType='{one}'", {first.run_id}),
        (f"{on_queue} AND ExecutionStatus = 'Running'", {first.run_id}),
        (f'{on_queue} and ExecutionStatus = "Terminated"', {second.run_id}),
        (f"{on_queue} AND WorkflowType != '{one}'", {second.run_id}),
        (f"{on_queue} AND NOT WorkflowType = '{one}'", {second.run_id}),
        (f"WorkflowType = '{one}' OR WorkflowType = '{two}'", both),
        (f"{on_queue} AND (WorkflowType = '{one}' OR WorkflowType = 'none')", {first.run_id}),
        (f"WorkflowType IN ('{one}', '{two}')", both),
        (f"{on_queue} AND WorkflowType NOT IN ('{one}')", {second.run_id}),
        (f"WorkflowId = '{first.workflow_id}'", {first.run_id}),
        (f"RunId = '{second.run_id}'", {second.run_id}),
        (f"{on_queue} AND StartTime > '2001-01-01T00:00:00Z'", both),
        (f"{on_queue} AND StartTime BETWEEN '2001-01-01' AND '2999-01-01'", both),
    )
    wrong = []
    for query, runs in wanted:
        got = {str(entry.get("run_id")) for entry in listed(trial, peer, query)}
        if got != runs:
            wrong.append(f"{query}: {len(got)} runs, {len(got & runs)} of the {len(runs)} wanted")
    check(not wrong, expected="the runs that each query means", actual="; ".join(wrong))


@case("workflow/list-bad-query", "0x65 refuses with 400 a query that it cannot read.")
def list_bad_query(trial: Trial) -> None:
    peer = trial.peer()
    for query in ("broken", "(WorkflowType = 'A'", "WorkflowType IN", "WorkflowType = ", "= 'A'", "A = 'b' AND"):
        peer.call(op.LIST, {"namespace": trial.namespace, "query": query}).refused(400)


@case("workflow/list-pages", "0x65 honors page_size: pages of 2 hold all 5 runs, each once.")
def list_pages(trial: Trial) -> None:
    peer = trial.peer()
    kind = trial.name("Type")
    started = {trial.start(peer, trial.name("queue"), workflow_type=kind).run_id for _ in range(5)}
    found = [entry.get("run_id") for entry in listed(trial, peer, f"WorkflowType = '{kind}'", page_size=2)]
    equal("runs", expected=(5, started), actual=(len(found), set(found)))
