"""What the blocking client asks of a server: workflows, handles, lists, schedules; waits with an end; Ctrl-C."""

from __future__ import annotations

import gc
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import pytest
import trio
from tests.helpers.running_server import RunningServer, running_server
from tests.helpers.workers import NO_RETRY, worker_in_a_thread

import zaptasks
from zaptasks import (
    CallFailed,
    Client,
    ClientClosed,
    NotSent,
    OutcomeUnknown,
    Placement,
    StartTask,
    StartWorkflow,
    Status,
    TaskCanceled,
    TaskFailed,
    TaskTerminated,
    UpdateFailed,
    UpdateRejected,
    WithStart,
    activity,
    workflow,
)
from zaptasks.blocking.stepping import Hop, step

PATIENCE = 20.0
"""Seconds that a test waits for what must happen; it never takes nearly as long."""

NOBODY = "127.0.0.1:1"
QUEUE = "blocking"


@dataclass
class Receipt:
    number: int


@workflow.defn
class Order:
    def __init__(self) -> None:
        self.item = ""
        self.is_approved = False

    @workflow.run
    async def run(self, item: str) -> Receipt:
        self.item = item
        await workflow.wait_condition(lambda: self.is_approved)
        return Receipt(await workflow.execute_activity("charge", self.item))

    @workflow.signal
    def approve(self, who: str) -> None:
        self.is_approved = True

    @workflow.query
    def state(self, prefix: str = "") -> str:
        return prefix + ("approved" if self.is_approved else f"waits for {self.item}")

    @workflow.update
    async def rename(self, item: str) -> str:
        if item == "bad":
            raise LookupError("no such item")
        self.item, before = item, self.item
        return before

    @rename.validator
    def check_rename(self, item: str) -> None:
        if not item:
            raise ValueError("an item is needed")

    @workflow.update
    async def never(self) -> None:
        await workflow.sleep_forever()


def charge(item: str) -> int:
    return len(item)


def resize(width: int) -> int:
    return width // 2


def approve(item: str) -> bool:
    activity.emit(item)
    activity.emit(activity.info().task_token)
    activity.complete_later()


def broken(_: object = None) -> None:
    try:
        raise OSError("no route")
    except OSError as error:
        raise zaptasks.TaskError("no mail", code="Mail", non_retryable=True, details=[7]) from error


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with (
        running_server() as running,
        worker_in_a_thread(running.zap, QUEUE, workflows=[Order], activities=[charge], tasks=[resize, broken, approve]),
    ):
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with Client(zap=server.zap, task_queue=QUEUE) as opened:
        yield opened
    gc.collect()
    assert [thread.name for thread in threading.enumerate() if thread.name == "zaptasks-client"] == []


def start(client: Client, item: str = "tea", **options: Any) -> zaptasks.BlockingWorkflowHandle:
    return client.start_workflow("Order", item, task_queue=QUEUE, **options)


def waiting_calls(client: Client) -> int:
    """How many calls the client's loop is waiting for."""
    thread = client._loop._parts.thread
    assert thread is not None
    assert thread._block._calls is not None
    return len(thread._block._calls.child_tasks)


def until(ready: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.005)


# --- activities -------------------------------------------------------------------------------------------


def test_output_is_read_and_an_attempt_completed_by_its_token(client: Client) -> None:
    task = client.start_task("approve", "tea", task_queue=QUEUE)
    output = task.output(timeout=PATIENCE)
    assert next(output).value == "tea"
    token = next(output).value
    with pytest.raises(TimeoutError, match="the next item did not come within"):
        next(task.output(after=2, timeout=0.05))
    held = client.get_activity_handle(token)
    assert (repr(held), held.token) == (f"<BlockingActivityTokenHandle {token}>", token)
    assert not held.heartbeat(1)
    held.complete(True)
    assert task.result(timeout=PATIENCE) is True
    assert list(output) == []
    with pytest.raises(CallFailed, match="task token not found"):
        held.fail(LookupError("late"))
    canceled = client.start_task("approve", "tea", task_queue=QUEUE)
    held = client.get_activity_handle([item.value for item in islice(canceled.output(), 2)][1])
    canceled.cancel("enough")
    assert held.heartbeat()
    held.report_canceled("enough")
    with pytest.raises(TaskCanceled, match="enough"):
        canceled.result(timeout=PATIENCE)


# --- workflows and handles ------------------------------------------------------------------------------


def test_a_workflow_from_its_start_to_its_result(client: Client) -> None:
    handle = start(client, id="order-1", memo={"for": "ada"}, search_attributes={"Shop": "north"})
    assert repr(handle) == f"<BlockingWorkflowHandle order-1 run {handle.run_id}>"
    assert handle.durability == "memory"
    assert handle.query("state", "it ") == "it waits for tea"
    assert handle.update("rename", "coffee", timeout=PATIENCE) == "tea"
    assert handle.describe().status is Status.RUNNING
    assert handle.describe().memo == {"for": "ada"}
    assert next(handle.history()).event_type == "WORKFLOW_EXECUTION_STARTED"
    assert handle.signal("approve", "ada").durability == "memory"
    assert handle.result(Receipt) == Receipt(6)
    assert client.get_handle("order-1").result(timeout=PATIENCE) == {"number": 6}
    assert handle.explain() == []


def test_a_history_is_followed_to_its_end(client: Client) -> None:
    handle = client.start_workflow(Order, "tea", task_queue=QUEUE)
    events = handle.history(follow=True, timeout=0.2)
    seen: list[str] = []
    with pytest.raises(TimeoutError, match=r"the next item did not come within 0\.2 seconds"):
        seen.extend(event.event_type for event in events)
    handle.signal(Order.approve, "ada")
    seen += [event.event_type for event in handle.history(follow=True, timeout=PATIENCE)]
    assert seen[-1] == "WORKFLOW_EXECUTION_COMPLETED"
    more = [event.event_type for event in events]
    assert more[-1] == "WORKFLOW_EXECUTION_COMPLETED"
    assert "WORKFLOW_EXECUTION_STARTED" not in more, "it goes on after a wait that was too long"


def test_other_ends_are_raised(client: Client) -> None:
    canceled, terminated = start(client), start(client)
    canceled.cancel("changed my mind")
    with pytest.raises(TaskCanceled, match="changed my mind"):
        canceled.result(timeout=PATIENCE)
    terminated.terminate("out of tea")
    with pytest.raises(TaskTerminated, match="out of tea"):
        terminated.result(timeout=PATIENCE)


def test_what_an_update_raises(client: Client) -> None:
    handle = start(client)
    with pytest.raises(UpdateRejected, match="an item is needed"):
        handle.update("rename", "")
    with pytest.raises(UpdateFailed, match="no such item"):
        handle.update("rename", "bad")
    with pytest.raises(TimeoutError, match=r"the answer to the update did not come within 0\.05 seconds"):
        handle.update("never", timeout=0.05)
    handle.terminate()


def test_a_signal_starts_what_is_not_there(client: Client) -> None:
    new = WithStart(Order, "tea", id="order-2", task_queue=QUEUE)
    handle = client.signal_with_start(Order.approve, "ada", start=new)
    assert handle.result(timeout=PATIENCE) == Receipt(3)


def test_an_update_starts_what_is_not_there(client: Client) -> None:
    new = WithStart(Order, "tea", id="order-3", task_queue=QUEUE)
    handle, before = client.update_with_start(Order.rename, "coffee", start=new, timeout=PATIENCE)
    assert before == "tea"
    handle.signal(Order.approve, "ada")
    assert client.get_handle_for(Order, "order-3").result(timeout=PATIENCE) == Receipt(6)
    new = WithStart(Order, "tea", id="order-5", task_queue=QUEUE)
    with pytest.raises(TimeoutError, match="the answer to the update did not come"):
        client.update_with_start(Order.never, start=new, timeout=0.05)
    client.get_handle("order-5").terminate()


def test_what_is_named_by_its_method_is_read_as_it_is_annotated(client: Client) -> None:
    handle = client.start_workflow(Order.run, "tea", task_queue=QUEUE)
    assert handle.query(Order.state) == "waits for tea"
    assert handle.update(Order.rename, "milk") == "tea"
    handle.signal(Order.approve, "ada")
    assert handle.result(timeout=PATIENCE) == Receipt(4)
    assert client.get_handle(handle.workflow_id, result_type=Receipt).result() == Receipt(4)


def test_a_workflow_is_started_and_waited_for_in_one_call(client: Client) -> None:
    with pytest.raises(TimeoutError, match="the result of the workflow did not come"):
        client.execute_workflow(Order, "tea", id="order-4", task_queue=QUEUE, timeout=0.05)
    client.get_handle("order-4").signal("approve", "ada")
    again = client.execute_workflow(Order, "tea", id="order-4", task_queue=QUEUE, id_conflict_policy="use-existing")
    assert again == Receipt(3)


def test_a_reset_gives_the_handle_of_the_new_run(client: Client) -> None:
    first = start(client)
    first.signal("approve", "ada")
    first.result(timeout=PATIENCE)
    answered = next(event.event_id for event in first.history() if event.event_type == "WORKFLOW_TASK_COMPLETED")
    second = first.reset(answered, "again")
    assert second.run_id != first.run_id
    second.signal("approve", "ada")
    assert second.result(Receipt, timeout=PATIENCE) == Receipt(3)


def test_lists_are_fetched_while_they_are_iterated_and_may_be_left_half_way(client: Client) -> None:
    ids = {client.start_task("listed", task_queue="nobody").workflow_id for _ in range(5)}
    query = "WorkflowType = 'listed'"
    assert {info.workflow_id for info in client.list(query, page_size=2)} == ids
    some = client.list(query, page_size=2)
    assert next(some).workflow_id in ids
    del some
    assert len(list(client.list(query))) == 5
    empty = client.list("WorkflowType = 'nothing'")
    assert list(empty) == []
    assert list(empty) == [], "a list that is over stays so"
    with pytest.raises(CallFailed, match="400"):
        list(client.list("= ="))


# --- tasks ----------------------------------------------------------------------------------------------


def test_a_task_and_its_handle(client: Client) -> None:
    handle = client.start_task("resize", 640, task_queue=QUEUE, id="picture", memo={"for": "ada"})
    assert handle.workflow_id == "picture"
    assert handle.result(int, timeout=PATIENCE) == 320
    with pytest.raises(zaptasks.ZapError, match=r"cannot be read as"):
        handle.result(str)


def test_a_submission_leads_to_its_result_and_its_handle(client: Client) -> None:
    submission = client.now("resize", 640)
    assert submission.result(timeout=PATIENCE) == 320
    assert submission.handle is not None
    assert submission.handle.describe().status is Status.COMPLETED
    with pytest.raises(TaskFailed, match="no mail") as caught:
        client.now("broken").result(timeout=PATIENCE)
    failed = caught.value
    assert (failed.type, failed.details, str(failed.__cause__)) == ("Mail", [7], "no route (OSError)")


def test_what_is_added_can_be_run_now_and_waited_for(client: Client) -> None:
    client.add("blocking.report", "0 3 * * *", lambda: {"rows": 3})
    assert client.now("blocking.report").result(timeout=PATIENCE) == {"rows": 3}
    client.delete_schedule("blocking.report")


def test_a_submission_in_this_process_has_the_same_result_and_the_same_errors() -> None:
    go_on = threading.Event()

    def run(type: str, payload: Any) -> Any:
        if type == "slow":
            assert go_on.wait(PATIENCE)
        return broken() if type == "broken" else Receipt(payload)

    with Client(zap="", handler=run) as local:
        done = local.now("receipt", 3)
        assert (done.placement, done.handle) == (Placement.LOCAL, None)
        assert done.result() == {"number": 3}
        assert done.result(Receipt, timeout=PATIENCE) == Receipt(3)
        with pytest.raises(TaskFailed, match="no mail") as caught:
            local.now("broken").result()
        failed = caught.value
        assert (failed.type, failed.details, str(failed.__cause__)) == ("Mail", [7], "no route (OSError)")
        slow = local.now("slow", 4)
        with pytest.raises(TimeoutError, match=r"the result of .* did not come within 0\.01 seconds"):
            slow.result(timeout=0.01)
        go_on.set()
        assert slow.result(Receipt) == Receipt(4)


def test_a_handler_here_that_raises_a_timeout_is_no_timeout_of_the_caller() -> None:
    def run(type: str, payload: Any) -> None:
        raise TimeoutError("the printer")

    with Client(zap="", handler=run) as local, pytest.raises(TaskFailed, match="the printer"):
        local.now("print").result(timeout=PATIENCE)


def test_a_task_that_was_dropped_here_says_so() -> None:
    hold = threading.Event()
    local = Client(zap="", handler=lambda type, payload: hold.wait(PATIENCE), shutdown_timeout=0)
    waiting = [local.now("hold") for _ in range(9)][-1]  # one more than there are threads
    local.stop()
    hold.set()
    with pytest.raises(ClientClosed, match="was dropped"):
        waiting.result(timeout=PATIENCE)


def test_dead_letters(client: Client) -> None:
    failed = client.start_task("broken", task_queue=QUEUE, id="letter", retry_policy=NO_RETRY)
    with pytest.raises(TaskFailed):
        failed.result(timeout=PATIENCE)
    assert "letter" in [letter.workflow_id for letter in client.dead_letters()]
    again = client.requeue_dead_letter("letter")
    assert again.run_id != failed.run_id
    with pytest.raises(TaskFailed):
        again.result(timeout=PATIENCE)


# --- schedules, namespaces, health -------------------------------------------------------------------------


def test_schedules(client: Client) -> None:
    made = client.create_schedule("nightly", "0 3 * * *", StartTask("resize", 640, task_queue=QUEUE))
    assert made.id == "nightly"
    assert [schedule.id for schedule in client.list_schedules()] == ["nightly"]
    client.update_schedule("nightly", action=StartTask("resize", 20, task_queue=QUEUE))
    client.pause_schedule("nightly", "holidays")
    assert client.describe_schedule("nightly").paused
    handle = client.trigger_schedule("nightly")
    assert handle is not None
    assert handle.result(timeout=PATIENCE) == 10
    client.unpause_schedule("nightly")
    start = datetime(2026, 1, 1, tzinfo=UTC)
    assert len(client.schedule_times("nightly", start, start + timedelta(days=3))) == 3
    assert client.backfill_schedule("nightly", start, start + timedelta(days=2)) == 2
    client.delete_schedule("nightly")
    client.create_schedule("orders", "1h", StartWorkflow("Order", ["tea"], task_queue=QUEUE), paused=True)
    client.delete_schedule("orders")
    assert client.list_schedules() == []


def test_namespaces_and_health(client: Client) -> None:
    client.register_namespace("north", description="the other shop")
    assert {"default", "north"} <= {namespace.name for namespace in client.list_namespaces()}
    assert client.describe_namespace("north").description == "the other shop"
    assert client.describe_namespace().name == "default"
    assert client.health().status == "ok"


# --- threads, and waits that end --------------------------------------------------------------------------


def test_many_threads_wait_for_many_workflows(client: Client) -> None:
    def order(number: int) -> int:
        handle = start(client, "x" * number)
        handle.signal("approve", "ada")
        return handle.result(Receipt, timeout=PATIENCE).number

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(order, range(1, 41))) == list(range(1, 41))


def test_a_timeout_ends_the_wait_and_nothing_else(client: Client) -> None:
    handle = start(client)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=rf"the result of {handle.workflow_id} did not come within 0\.1 seconds"):
        handle.result(timeout=0.1)
    assert 0.1 <= time.monotonic() - began < 5
    with pytest.raises(TimeoutError):
        handle.result(timeout=timedelta(0))
    until(lambda: not waiting_calls(client))
    handle.signal("approve", "ada")
    assert handle.result(Receipt, timeout=PATIENCE) == Receipt(3)


@pytest.mark.parametrize("timeout", [-1, float("nan"), 1e12])
def test_a_timeout_that_means_nothing_is_refused(client: Client, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout is"):
        client.get_handle("nobody").result(timeout=timeout)


def test_control_c_ends_a_wait_and_the_client_goes_on(server: RunningServer) -> None:
    done = run_program(
        """
        import os, signal, sys, threading, time, zaptasks
        client = zaptasks.Client(zap=sys.argv[1])
        handle = client.start_task("nobody", task_queue="nowhere")
        calls = client._loop._parts.thread._block._calls
        def interrupt():
            while not calls.child_tasks:
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=interrupt).start()
        try:
            handle.result()
        except KeyboardInterrupt:
            print("interrupted")
        while calls.child_tasks:
            time.sleep(0.001)
        print(client.health().status)
        client.stop()
        """,
        server.zap,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["interrupted", "ok"]), done.stderr


def test_a_script_that_is_interrupted_ends_at_once(server: RunningServer) -> None:
    script = """
        import sys, zaptasks
        client = zaptasks.Client(zap=sys.argv[1])
        handle = client.start_task("nobody", task_queue="nowhere")
        print("waits", flush=True)
        handle.result()
        """
    command = [sys.executable, "-c", textwrap.dedent(script), server.zap]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_waits_end_with_an_error_when_the_client_is_stopped(server: RunningServer) -> None:
    client = Client(zap=server.zap, task_queue=QUEUE)
    handle = start(client)
    outcomes: list[BaseException] = []

    def wait() -> None:
        try:
            handle.result()
        except BaseException as error:
            outcomes.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: waiting_calls(client))
    client.stop()
    thread.join(PATIENCE)
    assert [type(outcome) for outcome in outcomes] == [ClientClosed]
    for call in (handle.describe, lambda: handle.result(timeout=1), client.health, lambda: client.get_handle("x")):
        with pytest.raises(ClientClosed, match="was stopped"):
            call()


def test_a_handle_outlives_the_variable_of_its_client(server: RunningServer) -> None:
    handle = start(Client(zap=server.zap, task_queue=QUEUE))
    gc.collect()
    handle.signal("approve", "ada")
    assert handle.result(Receipt, timeout=PATIENCE) == Receipt(3)
    items = handle.history()
    del handle
    gc.collect()
    assert next(items).event_id == 1
    del items
    gc.collect()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "zaptasks-client"])


def test_calls_from_other_loops_work_and_from_the_clients_own_are_refused(client: Client) -> None:
    async def elsewhere() -> str:
        return client.health().status

    assert trio.run(elsewhere) == "ok"
    handle = start(client)

    async def on_the_loop() -> str:
        return handle.describe().type

    def in_a_thread() -> str:
        return handle.describe().type

    client.add("blocking.loop", "1h", on_the_loop)
    client.add("blocking.thread", "1h", in_a_thread)
    assert client.now("blocking.thread").result(timeout=PATIENCE) == "Order"
    with pytest.raises(TaskFailed, match="would wait for itself"):
        client.now("blocking.loop", retry_policy=NO_RETRY).result(timeout=PATIENCE)
    client.delete_schedule("blocking.loop")
    client.delete_schedule("blocking.thread")
    handle.terminate()


def test_a_handle_does_not_survive_a_fork(server: RunningServer) -> None:
    done = run_program(
        """
        import os, sys, zaptasks
        client = zaptasks.Client(zap=sys.argv[1])
        handle = client.start_task("nobody", task_queue="nowhere")
        pages = handle.history()
        pid = os.fork()
        if pid == 0:
            lost = client.health, handle.describe, lambda: next(pages), lambda: handle.result(timeout=1)
            for call in lost:
                try:
                    call()
                except zaptasks.ClientClosed as error:
                    print("did not survive the fork" in str(error), flush=True)
            with zaptasks.Client(zap=sys.argv[1]) as mine:
                print(mine.get_handle(handle.workflow_id).describe().status.name, flush=True)
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), handle.describe().status.name, flush=True)
        """,
        server.zap,
    )
    assert done.stdout.split() == ["True"] * 4 + ["RUNNING", "7", "RUNNING"], done.stderr


# --- without a server -------------------------------------------------------------------------------------


def test_without_a_zap_address_the_calls_say_what_to_do() -> None:
    with Client(zap="") as local:
        for call in (local.health, lambda: local.start_workflow("Order"), lambda: local.list(), local.list_schedules):
            with pytest.raises(NotSent, match=r"has no server to ask: start one with `zaptasks serve`.*TASKS_ZAP"):
                call()
        assert not local._loop.is_running


def test_with_only_a_url_they_do_too_and_a_result_cannot_be_had(server: RunningServer) -> None:
    with Client(url=server.url) as over_http:
        with pytest.raises(NotSent, match="has only an HTTP address, and this call goes over ZAP"):
            over_http.get_handle("x")
        submission = over_http.now("nobody", schedule_to_close=0.01)
        assert (submission.placement, submission.handle) == (Placement.HTTP, None)
        with pytest.raises(NotSent, match="comes over ZAP, and this client has only an HTTP address"):
            submission.result()


def test_a_task_that_went_over_http_has_its_result_over_zap_where_both_are_configured(server: RunningServer) -> None:
    with Client(zap=server.zap, url=server.url) as client:
        submission = client.now("nobody", schedule_to_close=0.01)
        assert submission.handle is not None
        over_http = Client(url=server.url, task_queue="default").now("nobody", request_id=submission.request_id)
        assert (over_http.placement, over_http.run_id) == (Placement.HTTP, submission.run_id)


@pytest.mark.parametrize("fallback", ["local", "none"])
def test_a_server_that_is_away_is_not_sent_after_the_timeout(fallback: Any) -> None:
    with Client(zap=NOBODY, timeout=0.2, fallback=fallback) as client:
        for call in (client.health, lambda: client.start_workflow("Order"), lambda: list(client.list())):
            began = time.monotonic()
            with pytest.raises(NotSent, match=r"127\.0\.0\.1:1"):
                call()
            assert 0.15 < time.monotonic() - began < 5


def test_a_wait_for_a_server_that_is_away_ends_with_its_own_timeout() -> None:
    with Client(zap=NOBODY, timeout=0.1) as client, pytest.raises(TimeoutError):
        client.get_handle("x").result(timeout=0.5)


def test_a_server_that_says_nothing_is_an_unknown_outcome() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        Client(zap=f"127.0.0.1:{silent.getsockname()[1]}", timeout=0.2) as client,
        pytest.raises((NotSent, OutcomeUnknown)),
    ):
        client.health()


# --- the stepping of coroutines -----------------------------------------------------------------------------


async def nothing() -> int:
    return 0


def test_a_coroutine_is_stepped_and_gets_what_its_calls_return_or_raise() -> None:
    async def sums() -> int:
        total = 0
        for number in range(3):
            total += await Hop(nothing, (number,))
        try:
            await Hop(nothing, (-1,))
        except LookupError:
            return total
        return -1

    def make(hop: Hop[Any]) -> int:
        (number,) = hop.args
        assert isinstance(number, int)
        if number < 0:
            raise LookupError(number)
        return number

    assert step(sums(), make) == 3


def test_an_error_that_no_coroutine_catches_comes_out_with_its_lines() -> None:
    async def asks() -> None:
        await Hop(nothing, ())

    def interrupted(hop: Hop[Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step(asks(), interrupted)


def test_a_coroutine_that_never_began_leaves_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    with Client(zap=NOBODY) as client:
        coroutine: Coroutine[Any, Any, int] = nothing()
        with pytest.raises(ValueError, match="timeout is"):
            client._loop.run(coroutine, timeout=-1)
        del coroutine
        gc.collect()
    assert not recwarn.list


def run_program(source: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source), *args], capture_output=True, text=True, timeout=40, check=False
    )
