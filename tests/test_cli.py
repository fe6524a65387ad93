"""The command `zaptasks`: real processes for what is about processes, and every subcommand against a real server."""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import trio
from click.testing import CliRunner, Result
from tests.helpers.processes import ANY_PORTS, READY, RunningServer, ended, serving, started, zaptasks

from zapserver.cli import main
from zaptasks.client import open_client

HANDLERS = """
import trio
from zaptasks import activity, task, workflow

@task(name="greet")
async def greet(who: dict) -> str:
    return f"hello {who['name']}"

@task(name="double")
def double(number: int) -> int:
    return 2 * number

@task(name="slow")
async def slow() -> str:
    print("started", flush=True)
    await trio.sleep(0.3)
    return "done"

@task(name="refuse")
async def refuse() -> None:
    from zaptasks.errors import TaskError
    raise TaskError("out of \\x1b[31mstock", code="NoStock", non_retryable=True)

@task(name="talk")
async def talk() -> str:
    for word in ("it", "is"):
        activity.emit(word)
    return "said"

@workflow.defn
class Basket:
    def __init__(self):
        self.items = []

    @workflow.run
    async def run(self) -> list:
        await workflow.wait_condition(lambda: len(self.items) == 2)
        return self.items

    @workflow.update
    def add(self, item: str) -> int:
        if item == "elephant":
            raise ValueError("too large")
        self.items.append(item)
        return len(self.items)

def plain(payload: object) -> object:
    return payload

LISTED = [greet, plain]
NOTHING: list = []
NUMBER = 7
"""


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Commands configure logging, which belongs to the whole process; here that is pytest's."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        data: bytes = answer.read()
    return data


# --- serve --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_prints_one_line_when_it_is_ready_and_ends_well_at_a_signal(number: signal.Signals) -> None:
    with serving() as server:
        assert b'"status":"ok"' in get(f"http://{server.http}/healthz")
        host, port = server.zap.split(":")
        with socket.create_connection((host, int(port))):
            result = server.end(number)
    assert (result.status, result.stdout) == (0, "")
    assert number.name in result.stderr
    assert "Traceback" not in result.stderr


def test_serve_ends_while_clients_and_workers_are_connected() -> None:
    async def connected(server: RunningServer) -> None:
        async with open_client(server.zap) as client:
            await client.start_task("nobody.serves", id="t1")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.get_handle("t1").result)
                await client.health()  # the call before it has arrived by now
                server.process.send_signal(signal.SIGTERM)
                with trio.fail_after(10):
                    await trio.to_thread.run_sync(server.process.wait)
                nursery.cancel_scope.cancel()

    with serving() as server:
        trio.run(connected, server)
        assert server.process.returncode == 0


def test_serve_takes_gos_environment_and_flags_win() -> None:
    environment = {
        "TASKS_ZAP_PORT": "0",
        "TASKS_HTTP_ADDR": ":0",
        "TASKS_NAMESPACE": "shop",
        "TASKSD_DATA_DIR": ":memory:",
        "TASKSD_NODE_ID": "node-1",
    }
    with started("serve", environment=environment) as process:
        server = RunningServer(process)
        assert json.loads(get(f"http://{server.http}/healthz"))["namespace"] == "shop"
    with started("serve", "--namespace", "stock", environment=environment) as process:
        server = RunningServer(process)
        assert json.loads(get(f"http://{server.http}/healthz"))["namespace"] == "stock"


def test_serve_takes_gos_flags_with_one_dash() -> None:
    with serving("-zap-port", "0", "-http=127.0.0.1:0", "-namespace", "shop") as server:
        assert json.loads(get(f"http://{server.http}/healthz"))["namespace"] == "shop"


@pytest.mark.parametrize("flag", ["--zap-port", "--http"])
def test_a_port_in_use_is_one_clear_line_and_status_1(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = zaptasks("serve", *ANY_PORTS, flag, address)
    what = "ZAP" if flag == "--zap-port" else "HTTP"
    assert (result.status, result.stdout) == (1, "")
    assert result.stderr == f"Error: {what} address {address} cannot be had: Address already in use\n"


@pytest.mark.parametrize(
    ("args", "advice"),
    [
        (["--zap-port", "99999"], "0 (any free one) to 65535"),
        (["--zap-port", "-1"], "is not an address"),
        (["--http", "localhost"], "is not an address"),
        (["--zap-port", "0.0.0.0:0"], "--allow-anonymous"),
        (["--data", ""], "name a directory, or :memory: to keep nothing"),
        (["--namespace", "a/b"], "invalid namespace"),
        (["--node-id", "x" * 61], "1 to 60 bytes"),
        (["--log-level", "loud"], "'debug', 'info', 'warning', 'error'"),
        (["--replicator", "quasar"], "No such option"),
        (["start"], "unexpected extra argument"),
    ],
)
def test_a_flag_that_cannot_be_used_is_refused_with_advice(args: list[str], advice: str) -> None:
    result = CliRunner().invoke(main, ["serve", *args])
    assert result.exit_code == 2
    assert advice in result.output


@pytest.mark.parametrize(("name", "value"), [("TASKSD_REQUIRE_IDENTITY", "true"), ("TASKSD_JWKS_URL", "x")])
def test_what_the_environment_asks_for_is_never_silently_left_out(name: str, value: str) -> None:
    result = CliRunner().invoke(main, ["serve", *ANY_PORTS], env={name: value})
    assert result.exit_code == 2
    assert "this version" in result.output


def test_json_logs_are_json_each_line() -> None:
    with serving(*ANY_PORTS, "--log-format", "json") as server:
        result = server.end(signal.SIGTERM)
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["serving", "draining", "ended"]
    assert lines[0]["zap"] == server.zap


def test_a_quiet_server_logs_nothing() -> None:
    with serving(*ANY_PORTS, "--log-level", "warning") as server:
        assert server.end(signal.SIGTERM).stderr == ""


def test_the_ready_line_is_what_scripts_expect() -> None:
    assert READY.fullmatch("ready zap=127.0.0.1:9999 http=127.0.0.1:7243\n")


# --- the command itself -------------------------------------------------------------------------------


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from zapserver.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'trio', 'rich', 'msgspec', 'starlette', 'anycorn'} & set(sys.modules), sys.modules.keys()"
    )
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert "dead-letters" in result.stdout


@pytest.mark.parametrize("missing", ["starlette", "anycorn"])
def test_serve_without_the_server_extra_says_what_to_install(missing: str) -> None:
    result = python(f"import sys; sys.modules[{missing!r}] = None; from zapserver.cli import main; main(['serve'])")
    assert result.returncode == 1
    assert "pip install 'zaptasks[server]'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "command", [[], ["workflow"], ["schedule"], ["dead-letters"], ["serve"], ["now"], ["inspect"], ["backup"]]
)
def test_every_command_has_help(command: list[str]) -> None:
    result = CliRunner().invoke(main, [*command, "--help"])
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")


# --- commands that talk to a server -------------------------------------------------------------------


@pytest.fixture(scope="module")
def handlers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("handlers")
    (directory / "cli_handlers.py").write_text(HANDLERS)
    return directory


@pytest.fixture(scope="module")
def server(handlers: Path) -> Iterator[str]:
    """The address of a server with a worker for HANDLERS."""
    with (
        serving() as server,
        started(
            *("worker", "cli_handlers", "--zap", server.zap, "--identity", "w1", "--build-id", "2026.1"), cwd=handlers
        ) as process,
    ):
        yield server.zap
        process.send_signal(signal.SIGTERM)
        left = ended(process)
        assert left.status == 0, left.stderr


@pytest.fixture
def invoke(server: str) -> Invoke:
    return Invoke(server)


class Invoke:
    """Runs a command in this process against the server."""

    def __init__(self, zap: str) -> None:
        self._environment = {"TASKS_ZAP": zap}

    def __call__(self, *args: str, input: str | None = None) -> Result:
        return CliRunner().invoke(main, args, env=self._environment, input=input)

    def ok(self, *args: str, input: str | None = None) -> str:
        result = self(*args, input=input)
        assert result.exit_code == 0, result.output
        return result.stdout.strip()

    def json(self, *args: str) -> object:
        return json.loads(self.ok(*args, "--json"))

    def refused(self, *args: str) -> str:
        result = self(*args)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr.startswith("Error: ")
        return result.stderr


def test_health(invoke: Invoke) -> None:
    assert invoke.json("health") == {
        "service": "tasks",
        "status": "ok",
        "namespace": "default",
        "durability": "memory",
        "store": "ok",
        "queued_bytes": 0,
        "refused": {},
    }
    assert "status        ok" in invoke.ok("health")


def test_nobody_there_is_one_clear_line_and_status_1() -> None:
    result = zaptasks("health", "--zap", "127.0.0.1:1", "--timeout", "0.5")
    assert (result.status, result.stdout) == (1, "")
    assert "127.0.0.1:1" in result.stderr
    assert "Traceback" not in result.stderr


def test_now_runs_a_task_and_prints_what_it_returned(invoke: Invoke) -> None:
    assert invoke.ok("now", "greet", '{"name": "ada"}', "--wait") == '"hello ada"'
    assert invoke.ok("now", "double", "-", "--wait", input="21") == "42"


def test_now_prints_the_id_and_a_request_id_makes_a_repeat_harmless(invoke: Invoke) -> None:
    first = invoke.json("now", "double", "4", "--request-id", "req-1", "--id", "double-4")
    assert first == invoke.json("now", "double", "4", "--request-id", "req-1", "--id", "double-4")
    assert invoke.ok("workflow", "result", "double-4") == "8"


@pytest.mark.parametrize(
    "command",
    [
        ("now", "double", "4"),
        ("add", "nightly", "0 3 * * *"),
        ("schedule", "add", "nightly", "0 3 * * *", "double", "4"),
        ("workflow", "start", "Nobody"),
    ],
)
def test_a_level_that_a_server_in_memory_cannot_reach_is_visible_and_no_error(
    invoke: Invoke, command: tuple[str, ...]
) -> None:
    result = invoke(*command, "--durability", "written", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["durability"] == "memory"
    assert result.stderr == "the server answered with durability memory, and written was asked for\n"
    result = invoke(*command, "--durability", "memory", "--json")
    assert (json.loads(result.stdout)["durability"], result.stderr) == ("memory", "")
    invoke.ok("schedule", "delete", "nightly")


def test_a_server_that_keeps_everything_says_synced(tmp_path: Path) -> None:
    with serving("--zap-port", "0", "--http", "127.0.0.1:0", "--data", str(tmp_path)) as server:
        kept = Invoke(server.zap)
        started = kept.json("workflow", "start", "Order", "--id", "order-1")
        assert isinstance(started, dict)
        assert started["durability"] == "synced"
        assert kept.json("workflow", "signal", "order-1", "paid", "--durability", "written") == {
            "workflow_id": "order-1",
            "durability": "written",
        }
        assert kept.json("add", "nightly", "0 3 * * *") == {"schedule_id": "nightly", "durability": "synced"}
        assert kept.ok("now", "mail", "--id", "mail-1", "--durability", "synced") == "mail-1"
        assert "durability    synced" in kept.ok("health")


def test_an_unknown_level_is_refused_before_anybody_is_asked(invoke: Invoke) -> None:
    result = invoke("now", "double", "4", "--durability", "forever")
    assert result.exit_code == 2
    assert "'memory', 'written', 'synced'" in result.output


def test_a_payload_that_is_no_json_says_how_to_write_it(invoke: Invoke) -> None:
    result = invoke("now", "greet", "{name: ada}")
    assert result.exit_code == 2
    assert "is not JSON" in result.output


def test_a_failure_is_an_error_and_a_dead_letter_that_can_be_put_back(invoke: Invoke) -> None:
    text = invoke.refused("now", "refuse", "--id", "refuse-1", "--wait")
    assert "NoStock" in text
    letters = invoke.json("dead-letters", "list")
    assert isinstance(letters, list)
    assert [(letter["workflow_id"], letter["status"]) for letter in letters] == [("refuse-1", "FAILED")]
    listed = invoke.ok("dead-letters", "list")
    assert "out of \\x1b[31mstock" in listed
    assert "\x1b" not in listed
    again = invoke.json("dead-letters", "requeue", "refuse-1")
    assert isinstance(again, dict)
    assert again["run_id"] != letters[0]["run_id"]
    assert "NoStock" in invoke.refused("workflow", "result", "refuse-1")
    assert "not found" in invoke.refused("dead-letters", "requeue", "no-such-task")


def test_workflow_commands_show_and_steer_an_execution(invoke: Invoke) -> None:
    started = invoke.json("workflow", "start", "Order", '"teapot"', "2", "--id", "order-1", "--task-queue", "orders")
    described = invoke.json("workflow", "describe", "order-1")
    assert isinstance(started, dict)
    assert isinstance(described, dict)
    assert described["run_id"] == started["run_id"]
    assert (described["kind"], described["status"], described["input"]) == ("workflow", "RUNNING", ["teapot", 2])
    assert 'input           ["teapot",2]' in invoke.ok("workflow", "describe", "order-1")
    assert "no worker" in invoke.ok("workflow", "explain", "order-1")
    invoke.ok("workflow", "signal", "order-1", "paid", '{"cents": 5}')
    metadata = invoke.json("workflow", "query", "order-1", "__workflow_metadata")
    assert isinstance(metadata, dict)
    assert metadata["workflowType"] == "Order"
    assert "404" in invoke.refused("workflow", "query", "order-1", "state")
    history = invoke.json("workflow", "history", "order-1")
    assert isinstance(history, dict)
    assert (history["namespace"], history["workflow_id"], history["workflow_type"]) == ("default", "order-1", "Order")
    assert [event["eventType"].removeprefix("WORKFLOW_EXECUTION_") for event in history["events"]] == [
        "STARTED",
        "SIGNALED",
    ]
    assert "SIGNALED" in invoke.ok("workflow", "history", "order-1")
    invoke.ok("workflow", "terminate", "order-1", "--reason", "sold out")
    assert "order-1 was terminated" in invoke.refused("workflow", "result", "order-1")
    assert "is closed" in invoke.ok("workflow", "explain", "order-1")
    refused = invoke.refused("workflow", "describe", "no-such-order")
    assert 'call 0x64 DescribeWorkflow: status 404: workflow not found: "no-such-order"' in refused


def test_a_worker_serves_the_workflows_of_a_module_and_updates_reach_them(invoke: Invoke) -> None:
    invoke.ok("workflow", "start", "Basket", "--id", "basket-1")
    assert invoke.json("workflow", "update", "basket-1", "add", '"tea"', "--update-id", "one") == 1
    assert invoke.json("workflow", "update", "basket-1", "add", '"tea"', "--update-id", "one") == 1
    assert "update add failed: too large (ValueError)" in invoke.refused(
        "workflow", "update", "basket-1", "add", '"elephant"'
    )
    assert invoke.json("workflow", "update", "basket-1", "add", '"pot"') == 2
    assert invoke.json("workflow", "result", "basket-1") == ["tea", "pot"]
    history = invoke.json("workflow", "history", "basket-1")
    assert isinstance(history, dict)
    first = next(event["eventId"] for event in history["events"] if event["eventType"].endswith("TASK_COMPLETED"))
    again = invoke.json("workflow", "reset", "basket-1", str(first), "--reason", "anew")
    assert isinstance(again, dict)
    assert again["run_id"] != history["run_id"]
    invoke.ok("workflow", "terminate", "basket-1")


def test_the_help_names_the_environment_of_the_address(invoke: Invoke) -> None:
    assert "env var: TASKS_ZAP" in invoke.ok("health", "--help")


def test_output_is_printed_as_it_comes_one_value_a_line(invoke: Invoke) -> None:
    invoke.ok("now", "talk", "--id", "talk-1", "--wait")
    assert invoke.ok("workflow", "output", "talk-1").split() == ['"it"', '"is"']
    assert invoke.json("workflow", "output", "talk-1", "--after", "1") == {
        "number": 2,
        "value": "is",
        "activity_type": "talk",
    }


def test_describe_and_history_say_which_build_did_it(invoke: Invoke) -> None:
    invoke.ok("now", "double", "4", "--id", "built-1", "--wait")
    assert "build_id        2026.1" in invoke.ok("workflow", "describe", "built-1")
    history = invoke.json("workflow", "history", "built-1")
    assert isinstance(history, dict)
    named = [event["attributes"] for event in history["events"] if "buildId" in event["attributes"]]
    assert [(of["identity"], of["buildId"]) for of in named] == [("w1", "2026.1")] * 2


def test_cancel_reaches_what_nobody_runs(invoke: Invoke) -> None:
    invoke.ok("now", "nobody.serves", "--id", "waits-1")
    assert "serves 'nobody.serves'" in invoke.ok("workflow", "explain", "waits-1")
    invoke.ok("workflow", "cancel", "waits-1", "--reason", "too late")
    assert "waits-1 was canceled" in invoke.refused("workflow", "result", "waits-1")


def test_list_shows_the_newest_first_and_no_more_than_asked_for(invoke: Invoke) -> None:
    for number in range(3):
        invoke.ok("workflow", "start", "Listed", "--id", f"listed-{number}", "--task-queue", "nobody")
    query = "WorkflowType = 'Listed'"
    rows = invoke.json("workflow", "list", query, "--limit", "2")
    assert isinstance(rows, list)
    assert [row["workflow_id"] for row in rows] == ["listed-2", "listed-1"]
    table = invoke.ok("workflow", "list", query)
    assert [line.split()[0] for line in table.splitlines()] == ["ID", "listed-2", "listed-1", "listed-0"]
    assert invoke.ok("workflow", "list", "WorkflowType = 'None'") == "no executions"
    assert "400" in invoke.refused("workflow", "list", "broken")


def test_schedule_commands(invoke: Invoke) -> None:
    made = invoke.json("schedule", "add", "nightly", "0 3 * * *", "greet", '{"name": "bob"}', "--overlap", "allow")
    assert isinstance(made, dict)
    assert (made["spec"], made["starts"], made["overlap"]) == (["0 3 * * *"], "task", "allow")
    assert "0 3 * * *" in invoke.ok("schedule", "list")
    invoke.ok("schedule", "pause", "nightly", "--note", "holidays")
    paused = invoke.json("schedule", "describe", "nightly")
    assert isinstance(paused, dict)
    assert (paused["paused"], paused["note"], paused["next"]) == (True, "holidays", [])
    invoke.ok("schedule", "unpause", "nightly")
    task = invoke.ok("schedule", "trigger", "nightly")
    assert invoke.ok("workflow", "result", task) == '"hello bob"'
    shown = invoke.ok("schedule", "describe", "nightly")
    assert "T03:00:00" in shown or "03:00:00" in shown
    invoke.ok("schedule", "delete", "nightly")
    assert "schedule not found" in invoke.refused("schedule", "describe", "nightly")
    assert invoke.ok("schedule", "list") == "no schedules"


def test_a_schedule_says_all_that_it_was_made_of(invoke: Invoke) -> None:
    made = invoke.json(
        *("schedule", "add", "full", "1h", "greet", "--also", "0 3 * * *", "--also", "90m", "--phase", "15m"),
        *("--timezone", "Europe/Berlin", "--start", "2030-01-01", "--end", "2031-01-01T00:00:00+01:00"),
        *("--jitter", "5s", "--overlap", "buffer-all", "--catchup", "10m", "--max-runs", "7", "--pause-on-failure"),
    )
    assert isinstance(made, dict)
    assert made["spec"] == ["0 3 * * *", "1h0m0s + 15m0s", "1h30m0s + 15m0s"]
    assert (made["start"], made["end"]) == ("2030-01-01T00:00:00Z", "2030-12-31T23:00:00Z")
    assert (made["jitter"], made["catchup"], made["remaining"]) == ("5s", "10m0s", 7)
    assert (made["overlap"], made["pause_on_failure"], made["timezone"]) == ("buffer-all", True, "Europe/Berlin")
    described = invoke.json("schedule", "describe", "full")
    assert isinstance(described, dict)
    assert (described["state"], described["buffered"], len(described["next"])) == ("active", 0, 7)
    invoke.ok("schedule", "delete", "full")


def test_the_times_of_a_schedule_and_a_dry_run(invoke: Invoke) -> None:
    invoke.ok("schedule", "add", "morning", "30 4 * * *", "greet", "--paused")
    times = invoke.json("schedule", "times", "morning", "2026-06-01", "2026-06-03T00:00:00Z")
    assert times == [{"time": "2026-06-01T04:30:00Z"}, {"time": "2026-06-02T04:30:00Z"}]
    assert "2026-06-01 04:30:00" in invoke.ok("schedule", "times", "morning", "2026-06-01", "2026-06-02")
    assert invoke.ok("schedule", "times", "morning", "2026-06-01", "2026-06-01") == "no times"
    assert "before its start" in invoke.refused("schedule", "times", "morning", "2026-06-02", "2026-06-01")
    invoke.ok("schedule", "delete", "morning")
    dry = invoke.json("schedule", "add", "dry", "1h", "greet", "--phase", "0s", "--dry-run")
    assert isinstance(dry, list)
    assert len(dry) in (24, 25)
    assert "schedule not found" in invoke.refused("schedule", "describe", "dry")


def test_a_backfill_runs_the_times_of_the_past(invoke: Invoke) -> None:
    invoke.ok("schedule", "add", "hourly", "0 * * * *", "greet", '{"name": "eve"}', "--paused")
    made = invoke.json("schedule", "backfill", "hourly", "2026-01-01T00:00:00Z", "2026-01-01T02:30:00Z")
    assert made == {"schedule_id": "hourly", "slots": 3}
    for hour in range(3):
        assert invoke.ok("workflow", "result", f"hourly-2026-01-01T0{hour}:00:00Z") == '"hello eve"'
    described = invoke.json("schedule", "describe", "hourly")
    assert isinstance(described, dict)
    assert (described["fired"], described["recent"][0]) == (3, "hourly-2026-01-01T00:00:00Z")
    assert "1000 slots" in invoke.refused("schedule", "backfill", "hourly", "2020-01-01", "2026-01-01")
    invoke.ok("schedule", "delete", "hourly")


@pytest.mark.parametrize(
    "bad",
    [
        ("--phase", "5m"),
        ("--phase", "-5m"),
        ("--jitter", "soon"),
        ("--start", "yesterday"),
        ("--max-runs", "0"),
        ("--overlap", "sometimes"),
        ("--also", "0s"),
    ],
)
def test_an_option_that_means_nothing_is_a_usage_error(invoke: Invoke, bad: tuple[str, str]) -> None:
    assert invoke("schedule", "add", "bad", "0 3 * * *", "greet", *bad).exit_code == 2


def test_a_schedule_can_start_a_workflow(invoke: Invoke) -> None:
    made = invoke.json("schedule", "add", "weekly", "168h", "Report", '["all"]', "--workflow", "--paused")
    assert isinstance(made, dict)
    assert (made["starts"], made["input"], made["paused"]) == ("workflow", ["all"], True)
    assert invoke("schedule", "add", "weekly", "168h", "Report", "7", "--workflow").exit_code == 2
    invoke.ok("schedule", "delete", "weekly")


def test_add_makes_the_schedule_of_a_task(invoke: Invoke) -> None:
    invoke.ok("add", "audit.archive", "1h30m")
    made = invoke.json("schedule", "describe", "audit.archive")
    assert isinstance(made, dict)
    assert (made["type"], made["spec"], made["starts"]) == ("audit.archive", ["1h30m0s"], "task")
    invoke.ok("schedule", "delete", "audit.archive")


@pytest.mark.parametrize("command", [("add", "x"), ("schedule", "add", "x")])
@pytest.mark.parametrize("spec", ["", "0s", "-5m", "soon", "0 0 30 2 *"])
def test_a_spec_that_can_never_fire_is_refused_before_any_call(command: tuple[str, ...], spec: str) -> None:
    result = CliRunner().invoke(
        main, [*command, "--zap", "127.0.0.1:1", "--", spec, *(["t"] if len(command) > 2 else [])]
    )
    assert result.exit_code in (1, 2)
    assert "Traceback" not in result.output


# --- worker -------------------------------------------------------------------------------------------


def test_a_worker_finishes_what_runs_before_it_ends(handlers: Path) -> None:
    async def start_and_end(server: RunningServer, worker: subprocess.Popen[str]) -> object:
        async with open_client(server.zap) as client:
            handle = await client.start_task("slow")
            assert worker.stdout is not None
            assert await trio.to_thread.run_sync(worker.stdout.readline) == "started\n"
            worker.send_signal(signal.SIGTERM)
            return await handle.result()

    with serving() as server, started("worker", "cli_handlers:slow", "--zap", server.zap, cwd=handlers) as worker:
        assert trio.run(start_and_end, server, worker) == "done"
        assert ended(worker).status == 0


def test_a_worker_serves_plain_functions_of_a_list(handlers: Path) -> None:
    with serving() as server, started("worker", "cli_handlers:LISTED", "--zap", server.zap, cwd=handlers):
        result = zaptasks("now", "plain", '{"n": 1}', "--wait", "--zap", server.zap)
    assert (result.status, result.stdout) == (0, '{"n":1}\n')


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("no_such_module", "there is no module 'no_such_module'"),
        ("cli_handlers:nothing_here", "has no 'nothing_here'"),
        ("cli_handlers:NOTHING", "holds no handlers"),
        ("cli_handlers:NUMBER", "holds no handlers"),
        ("json", "holds no handlers"),
        (":x", "is no MODULE[:OBJECT]"),
    ],
)
def test_a_worker_without_handlers_says_why(
    handlers: Path, monkeypatch: pytest.MonkeyPatch, target: str, text: str
) -> None:
    monkeypatch.chdir(handlers)
    monkeypatch.setattr(sys, "path", sys.path[:])
    result = CliRunner().invoke(main, ["worker", target, "--zap", "127.0.0.1:1"])
    assert result.exit_code == 2
    assert text in result.output


def test_a_server_takes_all_the_descriptors_that_it_may_have() -> None:
    code = (
        "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (64, 128));"
        " from zapserver.cli.serve import _use_all_descriptors as use; use(); print(r.getrlimit(r.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(128, 128)\n"
