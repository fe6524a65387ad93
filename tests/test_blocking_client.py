"""The blocking client: from many threads, with and without a server, across forks and exits."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.helpers.running_server import RunningServer, running_server

import zaptasks
from zaptasks import CallFailed, Client, ClientClosed, NoHandler, NotSent, PayloadError, Placement, TaskFailed

NOBODY = "127.0.0.1:1"
"""Nothing listens there: a connection is refused at once."""

PATIENCE = 20.0
"""Seconds that a test waits for what must happen; it never takes nearly as long."""


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server() as running:
        yield running


@pytest.fixture(autouse=True)
def _no_client_is_left_over() -> Iterator[None]:
    yield
    zaptasks.set_default(None)
    gc.collect()
    assert [thread.name for thread in threading.enumerate() if thread.name == "zaptasks-client"] == []


class Heard:
    """A handler that remembers what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self._news = threading.Condition()

    def __call__(self, type: str, payload: Any) -> None:
        with self._news:
            self.calls.append((type, payload))
            self._news.notify_all()

    def note(self, name: str) -> Callable[[], None]:
        return lambda: self(name, None)

    def wait(self, count: int) -> None:
        with self._news:
            assert self._news.wait_for(lambda: len(self.calls) >= count, PATIENCE), self.calls


def result_of(server: RunningServer, submission: zaptasks.Submission) -> Any:
    """Wait for a submitted task with the other client."""

    async def wait() -> Any:
        async with zaptasks.open_client(server.zap) as client:
            with trio.fail_after(PATIENCE):
                return await client.get_handle(submission.workflow_id, submission.run_id).result()

    return trio.run(wait)


# --- without a server ---------------------------------------------------------------------------------


def test_without_a_server_everything_runs_here() -> None:
    heard = Heard()
    with Client(handler=heard) as client:
        submission = client.now("mail", {"to": "ada"})
        assert submission.placement is Placement.LOCAL
        assert client.add("tick", "2ms", heard.note("tick")) is Placement.LOCAL
        heard.wait(3)
    assert heard.calls[0] == ("mail", {"to": "ada"})
    assert {type for type, _ in heard.calls[1:]} == {"tick"}


def test_what_stays_here_is_in_memory_and_says_so() -> None:
    heard = Heard()
    with Client(handler=heard) as client:
        assert client.now("mail", durability="synced").durability == "memory"
        assert client.add("tick", "1h", heard.note("tick"), durability="synced") is Placement.LOCAL
        for call in (
            lambda: client.now("mail", durability="forever"),  # type: ignore[arg-type]
            lambda: client.add("tick", "1h", heard.note("tick"), durability=""),  # type: ignore[arg-type]
        ):
            with pytest.raises(ValueError, match='must be "memory", "written" or "synced", or None'):
                call()


@pytest.mark.parametrize("asked", ["memory", "written", "synced", None])
def test_a_submission_says_how_durable_it_is(tmp_path: Path, asked: zaptasks.Durability | None) -> None:
    with running_server(data=tmp_path) as kept:
        with Client(zap=kept.zap, fallback="none") as client:
            submission = client.now("mail", durability=asked)
            assert (submission.placement, submission.durability) == (Placement.ZAP, asked or "synced")
        with Client(zap="", url=kept.url, fallback="none") as client:
            submission = client.now("mail", durability=asked)
            assert (submission.placement, submission.durability) == (Placement.HTTP, asked or "synced")


def test_a_schedule_of_which_less_is_kept_is_named_in_the_log(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    for zap, url in ((server.zap, ""), ("", server.url)):
        with Client(zap=zap, url=url, fallback="none") as client:
            client.add("less.audit", "1h", print, durability="memory")
            assert "is kept with durability" not in caplog.text
            client.add("less.audit", "1h", print, durability="written")
            assert "schedule 'less.audit' is kept with durability 'memory', and 'written' was asked for" in caplog.text
        caplog.clear()


def test_the_same_request_id_runs_once_here_too() -> None:
    heard = Heard()
    with Client(handler=heard) as client:
        for _ in range(3):
            assert client.now("mail", request_id="welcome-7").request_id == "welcome-7"
    assert heard.calls == [("mail", None)]


def test_what_was_added_can_also_be_run_now() -> None:
    heard = Heard()
    with Client() as client:
        client.add("audit", "1h", heard.note("audit"))
        client.now("audit")
    assert heard.calls == [("audit", None)]


def test_a_task_that_nothing_handles_is_an_error_and_not_a_silence() -> None:
    with Client() as client, pytest.raises(NoHandler, match="'mail'"):
        client.now("mail")


def test_with_fallback_none_nothing_runs_here() -> None:
    heard = Heard()
    for client in (Client(handler=heard, fallback="none"), Client(zap=NOBODY, handler=heard, fallback="none")):
        with client:
            with pytest.raises(NotSent):
                client.now("mail")
            with pytest.raises(NotSent):
                client.add("tick", "1ms", heard.note("tick"))
    assert heard.calls == []


# --- with a server ------------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [{"zap"}, {"url"}, {"zap", "url"}])
def test_tasks_go_to_the_server(server: RunningServer, places: set[str]) -> None:
    addresses = {"zap": server.zap, "url": server.url}
    with Client(**{place: addresses[place] for place in places}) as client:  # type: ignore[arg-type]
        submission = client.now("nobody", {"n": 1}, schedule_to_close=0.01)
        again = client.now("nobody", {"n": 1}, request_id=submission.request_id)
    assert submission.placement is (Placement.ZAP if "zap" in places else Placement.HTTP)
    assert (again.workflow_id, again.run_id) == (submission.workflow_id, submission.run_id)
    with pytest.raises(zaptasks.TaskTimedOut):
        result_of(server, submission)


def test_what_is_added_is_served_and_a_function_that_raises_fails_its_task(server: RunningServer) -> None:
    heard = Heard()

    def boom() -> None:
        heard("boom", zaptasks.current_task().attempt)
        raise zaptasks.TaskError("broken", code="Broken", non_retryable=True)

    with Client(zap=server.zap) as client:
        assert client.add("served-tick", "20ms", heard.note("tick")) is Placement.ZAP
        heard.wait(2)
        client.add("served-boom", "1h", boom)
        with pytest.raises(TaskFailed, match="broken"):
            result_of(server, client.now("served-boom"))
    count = len(heard.calls)
    time.sleep(0.05)
    assert len(heard.calls) == count, "a stopped client still ran a firing"
    trio.run(_delete_schedules, server)


async def _delete_schedules(server: RunningServer) -> None:
    async with zaptasks.open_client(server.zap) as client:
        for schedule in await client.list_schedules():
            await client.delete_schedule(schedule.id)


def test_many_threads_share_a_client(server: RunningServer) -> None:
    runs: list[str] = []
    failures: list[BaseException] = []

    def submit(client: Client) -> None:
        try:
            runs.extend(client.now("nobody").run_id for _ in range(20))
        except BaseException as error:
            failures.append(error)

    with Client(zap=server.zap) as client:
        threads = [threading.Thread(target=submit, args=[client]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert len(set(runs)) == 160


def test_it_works_from_within_other_loops(server: RunningServer) -> None:
    with Client(zap=server.zap) as client:

        async def in_a_loop() -> Placement:
            return client.now("nobody").placement

        assert asyncio.run(in_a_loop()) is Placement.ZAP
        assert trio.run(in_a_loop) is Placement.ZAP


def test_a_served_function_may_use_the_client_in_a_thread_and_is_told_so_on_the_loop(server: RunningServer) -> None:
    with Client(zap=server.zap) as client:

        def in_a_thread() -> str:
            return client.now("nobody").placement.value

        async def on_the_loop() -> None:
            client.now("nobody")

        client.add("uses-thread", "1h", in_a_thread)
        client.add("uses-loop", "1h", on_the_loop)
        assert result_of(server, client.now("uses-thread")) == "zap"
        once = zaptasks.RetryPolicy(maximum_attempts=1)
        with pytest.raises(TaskFailed, match="would wait for itself"):
            result_of(server, client.now("uses-loop", retry_policy=once))
    trio.run(_delete_schedules, server)


def test_two_clients_that_added_the_same_name_share_its_firings(server: RunningServer) -> None:
    heard = Heard()

    async def trigger() -> None:
        async with zaptasks.open_client(server.zap) as client:
            for _ in range(20):
                handle = await client.trigger_schedule("shared", overlap="allow")
                assert handle is not None
                await handle.result()

    with Client(zap=server.zap) as one, Client(zap=server.zap) as two:
        one.add("shared", "1h", heard.note("one"))
        two.add("shared", "1h", heard.note("two"))
        trio.run(trigger)
    shares = Counter(name for name, _ in heard.calls)
    assert shares.total() == 20
    assert set(shares) == {"one", "two"}
    trio.run(_delete_schedules, server)


def test_a_server_that_dies_and_returns() -> None:
    heard = Heard()
    with running_server() as first, Client(zap=first.zap, handler=heard) as client:
        assert client.now("mail").placement is Placement.ZAP
        client.add("tick", "20ms", heard.note("tick"))
        heard.wait(2)
        first.kill()
        _until(lambda: client.now("mail", "meanwhile").placement is Placement.LOCAL)
        start = time.monotonic()
        assert client.now("mail", "meanwhile").placement is Placement.LOCAL
        assert time.monotonic() - start < 0.5, "a call to a server that is known to be away must not wait"
        with running_server(zap=first.zap):
            _until(lambda: client.now("mail").placement is Placement.ZAP)
            heard.wait(len(heard.calls) + 2)  # the schedule is renewed on a server that forgot it
    assert ("mail", "meanwhile") in heard.calls


def _until(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_server_that_accepts_and_says_nothing_costs_a_second_once() -> None:
    heard = Heard()
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        Client(zap=f"127.0.0.1:{silent.getsockname()[1]}", handler=heard) as client,
    ):
        start = time.monotonic()
        assert client.now("mail").placement is Placement.LOCAL
        first = time.monotonic() - start
        assert client.now("mail").placement is Placement.LOCAL
        assert 0.9 < first < 5
        assert time.monotonic() - start - first < 0.5
    assert len(heard.calls) == 2


# --- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"fallback": "maybe"}, 'must be "local" or "none"'),
        ({"zap": "host:0"}, "no address of a ZAP server"),
        ({"url": "host:80"}, "no URL of a server"),
        ({"timeout": -1}, "timeout is -1"),
        ({"task_queue": ""}, "task name ''"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Client(**options)


@pytest.mark.parametrize("spec", ["", "0s", "-5s", "often", "0 0 30 2 *", "* * * *", "1.5"])
def test_a_spec_that_could_never_fire_is_refused_at_once(spec: str) -> None:
    with Client(zap=NOBODY) as client:
        with pytest.raises(ValueError):
            client.add("tick", spec, print)
        assert not client._loop.is_running, "nothing was to be asked of a server"


def test_a_function_that_cannot_be_called_is_refused_at_once() -> None:
    with Client(zap=NOBODY) as client:
        with pytest.raises(TypeError, match="needs 2 arguments"):
            client.add("tick", "1h", lambda a, b: None)
        with pytest.raises(ValueError, match="task name"):
            client.add("", "1h", print)


def test_a_payload_that_cannot_be_encoded_is_refused_at_once() -> None:
    with Client(zap=NOBODY, handler=Heard()) as client:
        with pytest.raises(PayloadError, match=r"\$\.a is of type object"):
            client.now("mail", {"a": object()})
        assert not client._loop.is_running


def test_what_the_server_refuses_is_told(server: RunningServer) -> None:
    heard = Heard()
    with Client(zap=server.zap, namespace="nowhere", handler=heard) as client:
        with pytest.raises(CallFailed, match="not registered"):
            client.now("mail")
        with pytest.raises(CallFailed, match="not registered"):
            client.add("tick", "1ms", heard.note("tick"))
    assert heard.calls == []


# --- the end ------------------------------------------------------------------------------------------


def test_a_stopped_client_says_so(server: RunningServer) -> None:
    for client in (Client(zap=server.zap), Client(handler=Heard())):
        client.now("nobody") if client._loop.settings.has_server else client.now("mail")
        client.stop()
        client.stop()
        with pytest.raises(ClientClosed, match="was stopped"):
            client.now("mail")
        with pytest.raises(ClientClosed):
            client.add("tick", "1h", print)


def test_stopping_lets_a_running_firing_finish(server: RunningServer) -> None:
    started, finished = threading.Event(), threading.Event()

    def slow() -> None:
        started.set()
        time.sleep(0.05)
        finished.set()

    with Client(zap=server.zap) as client:
        client.add("slow", "1h", slow)
        submission = client.now("slow")
        assert started.wait(PATIENCE)
    assert finished.is_set()
    assert result_of(server, submission) is None
    trio.run(_delete_schedules, server)


def test_calls_that_wait_while_the_client_is_stopped_end_with_an_error() -> None:
    outcomes: list[object] = []

    def call(client: Client) -> None:
        try:
            outcomes.append(client.now("mail"))
        except ClientClosed as error:
            outcomes.append(error)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(zap=f"127.0.0.1:{silent.getsockname()[1]}", fallback="none")
        thread = threading.Thread(target=call, args=[client])
        thread.start()
        _until(lambda: client._loop.is_running)
        client.stop()
        thread.join(PATIENCE)
    assert len(outcomes) == 1
    assert isinstance(outcomes[0], ClientClosed)


def test_a_client_that_is_dropped_ends_its_thread(server: RunningServer) -> None:
    client = Client(zap=server.zap)
    client.now("nobody")
    del client
    gc.collect()  # the fixture looks for the thread


def run_program(source: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source), *args], capture_output=True, text=True, timeout=40, check=False
    )


def test_a_process_that_ends_without_stop_finishes_what_it_accepted_and_does_not_hang() -> None:
    done = run_program(
        """
        import sys, time, zaptasks
        def work(type, payload):
            time.sleep(0.2)
            print("worked", flush=True)
        client = zaptasks.Client(zap=sys.argv[1], handler=work)
        print(client.now("mail").placement.value, flush=True)
        """,
        NOBODY,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["local", "worked"]
    assert "Traceback" not in done.stderr


def test_a_fork_is_told_apart(server: RunningServer) -> None:
    done = run_program(
        """
        import os, sys, zaptasks
        used, unused = zaptasks.Client(zap=sys.argv[1]), zaptasks.Client(zap=sys.argv[1])
        used.now("nobody")
        os.environ["TASKS_ZAP"] = sys.argv[1]
        zaptasks.default().now("nobody")
        pid = os.fork()
        if pid == 0:
            try:
                used.now("nobody")
            except zaptasks.ClientClosed as error:
                print("did not survive the fork" in str(error), flush=True)
            used.stop()
            print(unused.now("nobody").placement.value, flush=True)
            print(zaptasks.default().now("nobody").placement.value, flush=True)
            unused.stop()
            zaptasks.default().stop()
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), used.now("nobody").placement.value, flush=True)
        """,
        server.zap,
    )
    assert done.stdout.split() == ["True", "zap", "zap", "7", "zap"], done.stderr


def test_the_default_client_is_made_of_the_environment_once(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKS_ZAP", server.zap)
    monkeypatch.setenv("TASKS_URL", server.url)
    client = zaptasks.default()
    assert zaptasks.default() is client
    assert repr(client) == f"<Client of {server.zap} then {server.url}>"
    assert repr(Client(zap="other:1")) == "<Client of other:1>", "what is given is not mixed with the environment"
    assert repr(Client(zap="")) == "<Client of this process>"
    assert client.now("nobody").placement is Placement.ZAP
    client.stop()
    heard = Heard()
    with Client(zap="", handler=heard) as mine:
        zaptasks.set_default(mine)
        zaptasks.default().now("mail", 1)
    assert heard.calls == [("mail", 1)]
    monkeypatch.delenv("TASKS_ZAP")
    monkeypatch.delenv("TASKS_URL")
    zaptasks.set_default(None)
    assert repr(zaptasks.default()) == "<Client of this process>"
