"""zapconform against tiny servers with planted faults: a kit that cannot fail a bad server proves nothing."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from zapconform import wire
from zapconform.case import REGISTRY, Case, Failed, Severity, Verdict
from zapconform.catalog import all_cases, select
from zapconform.cli import _url, main
from zapconform.codec import Unreadable, parse
from zapconform.replay import Row, read_recording
from zapconform.runner import Outcome, Report, Target, run
from zapconform.trial import Trial
from zapconform.vector_files import BUILT_IN, cases_of

FAST = 0.4
"""Seconds that a case waits for an answer here: these servers answer at once or never."""

HONEST = ["frame/whole", "frame/coalesced", "frame/one-over-refused", "frame/zero-length-ignored", "frame/dribbled"]
HONEST += ["call/health", "call/request-id-echoed", "call/many-in-flight", "call/unserved-opcodes-answered-501"]
HONEST += ["handshake/id-of-61-bytes-refused", "handshake/server-speaks-second", "handshake/calls-in-the-same-write"]


class FakeServer:
    """The least of a server: handshake, Health, 501 for the rest. A subclass plants one fault."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._listener.close()
        self._accepting.join(5)
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, Unreadable), connection:
            hello = self._frame(connection)
            if not hello or not 1 <= wire.read_hello(hello).length <= 60:
                return
            self.shake_hands(connection)
            while (payload := self._frame(connection)) is not None:
                header = wire.correlated(payload)
                if header is not None and header.kind == wire.KIND_REQUEST:
                    self.answer(connection, header)

    def _frame(self, connection: socket.socket) -> bytes | None:
        prefix = self._exactly(connection, 4)
        if prefix is None or self.refuses(length := int.from_bytes(prefix, "little")):
            return None
        return self._exactly(connection, length)

    def _exactly(self, connection: socket.socket, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            piece = connection.recv(min(count - len(data), 65536))
            if not piece:
                return None
            data += piece
        return data

    # --- what a fault changes -----------------------------------------------------------------------

    def refuses(self, length: int) -> bool:
        return length > wire.FRAME_BYTES_MAX

    def shake_hands(self, connection: socket.socket) -> None:
        connection.sendall(wire.frame(wire.hello(b"fake")))

    def answer(self, connection: socket.socket, call: wire.Correlated) -> None:
        connection.sendall(wire.frame(wire.response_payload(call.request_id, self.reply(call))))

    def reply(self, call: wire.Correlated) -> bytes:
        opcode = parse(call.message).opcode
        if opcode == 0x90:
            return wire.response(0, 200, b'{"service":"tasks","status":"ok","namespace":"default"}')
        return wire.response(0, 501, b"null", f"opcode 0x{opcode:02X} is not served".encode())


class NeverAnswers(FakeServer):
    def answer(self, connection: socket.socket, call: wire.Correlated) -> None:
        pass


class AnswersAnotherId(FakeServer):
    def answer(self, connection: socket.socket, call: wire.Correlated) -> None:
        super().answer(connection, wire.Correlated(call.request_id ^ 1 << 20, call.kind, call.message))


class AnswersTwice(FakeServer):
    def answer(self, connection: socket.socket, call: wire.Correlated) -> None:
        super().answer(connection, call)
        super().answer(connection, call)


class Closes(FakeServer):
    def answer(self, connection: socket.socket, call: wire.Correlated) -> None:
        connection.shutdown(socket.SHUT_RDWR)


class AcceptsOversized(FakeServer):
    def refuses(self, length: int) -> bool:
        return False


class RefusesTheMaximum(FakeServer):
    def refuses(self, length: int) -> bool:
        return length >= wire.FRAME_BYTES_MAX


class SilentAboutUnknown(FakeServer):
    """What Go's server does."""

    def answer(self, connection: socket.socket, call: wire.Correlated) -> None:
        if parse(call.message).opcode == 0x90:
            super().answer(connection, call)


class EndsZeroLength(FakeServer):
    def refuses(self, length: int) -> bool:
        return length == 0 or super().refuses(length)


class SpeaksFirst(FakeServer):
    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self.shake_hands(connection)
            super()._serve(connection)

    def shake_hands(self, connection: socket.socket) -> None:
        if not hasattr(self, "_spoken"):
            self._spoken: set[socket.socket] = set()
        if connection not in self._spoken:
            self._spoken.add(connection)
            super().shake_hands(connection)


class NoHandshake(FakeServer):
    def shake_hands(self, connection: socket.socket) -> None:
        threading.Event().wait(30)


class DiesOf501(FakeServer):
    """A call that it does not know ends the whole server."""

    def answer(self, connection: socket.socket, call: wire.Correlated) -> None:
        if parse(call.message).opcode != 0x90:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            connection.shutdown(socket.SHUT_RDWR)
            return
        super().answer(connection, call)


class PlaysTheRecordedServer(FakeServer):
    """Answers a recorded session as Go's server did, its faults included."""

    rows: list[Row] = read_recording(BUILT_IN / "go-sdk-client.jsonl")

    def answer(self, connection: socket.socket, call: wire.Correlated) -> None:
        for row in self.rows:
            header = wire.correlated(row.payload)
            is_answer = header is not None and header.kind == wire.KIND_RESPONSE
            if not row.from_client and is_answer and header is not None and header.request_id == call.request_id:
                connection.sendall(wire.frame(row.payload))


@contextlib.contextmanager
def serving(kind: type[FakeServer]) -> Iterator[FakeServer]:
    server = kind()
    try:
        yield server
    finally:
        server.close()


def run_against(kind: type[FakeServer], *patterns: str, strict: bool = False, timeout: float = FAST) -> Report:
    with serving(kind) as server:
        host, _, port = server.address.partition(":")
        cases = select(all_cases(), patterns)
        assert cases
        return run(Target(host, int(port), timeout=timeout), cases, seed=7, strict=strict, threads=4)


def only(report: Report) -> Outcome:
    assert len(report.outcomes) == 1
    return report.outcomes[0]


# --- the planted faults -----------------------------------------------------------------------------------


def test_an_honest_server_passes() -> None:
    report = run_against(FakeServer, *HONEST)
    assert [(o.case.id, o.expected, o.actual) for o in report.outcomes if o.verdict is not Verdict.PASS] == []
    assert report.exit_code == 0


@pytest.mark.parametrize(
    ("kind", "case_id", "words"),
    [
        (NeverAnswers, "call/health", "within 0.4 s; got nothing"),
        (NeverAnswers, "frame/whole", "got nothing"),
        (AnswersAnotherId, "call/health", "got nothing"),
        (AnswersTwice, "call/many-in-flight", "one answer each"),
        (Closes, "call/health", "connection ended"),
        (AcceptsOversized, "frame/one-over-refused", "still open"),
        (RefusesTheMaximum, "frame/maximum-accepted", "connection ended"),
        (SilentAboutUnknown, "call/unserved-opcodes-answered-501", "got nothing"),
        (EndsZeroLength, "frame/zero-length-ignored", "connection ended"),
        (SpeaksFirst, "handshake/server-speaks-second", "silence until our handshake"),
    ],
)
def test_a_planted_fault_is_caught(kind: type[FakeServer], case_id: str, words: str) -> None:
    report = run_against(kind, case_id)
    outcome = only(report)
    assert outcome.verdict is Verdict.FAIL
    assert words in f"expected {outcome.expected}; got {outcome.actual}"
    assert outcome.traffic
    assert report.exit_code == 1


def test_a_501_is_unsupported_and_fails_a_must() -> None:
    report = run_against(FakeServer, "workflow/start-answers-ids")
    assert only(report).verdict is Verdict.UNSUPPORTED
    assert report.exit_code == 1


def test_the_recorded_servers_faults_are_not_taken_for_right() -> None:
    """A server that answers as Go's did is told each call that it reads differently from its own SDK."""
    with serving(PlaysTheRecordedServer) as server:
        host, _, port = server.address.partition(":")
        report = run(Target(host, int(port), timeout=FAST), cases_of(BUILT_IN / "go-sdk-client.jsonl"), seed=1)
    outcome = only(report)
    assert outcome.verdict is Verdict.FAIL
    named = [line.partition("0x")[2][:2] for line in outcome.actual.splitlines()]
    assert {"66", "71", "72", "75", "80", "81"} <= set(named)


class SmallHttp(BaseHTTPRequestHandler):
    """Answers everything with the same JSON error."""

    def do_GET(self) -> None:
        body = b'{"error":"workflow not found","code":404}\n'
        self.send_response(404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test is quiet."""


def test_an_http_sample_is_judged_by_status_and_keys(tmp_path: Path) -> None:
    known = {"method": "GET", "path": "/a", "request": None, "status": 404, "response": {"error": "e", "code": 404}}
    mistake = known | {"path": "/b", "status": 500}
    wrong = [known | {"path": "/c", "status": 200}, known | {"path": "/d", "response": {"executions": []}}]
    for name, entries in (("right.json", [known, mistake]), ("wrong.json", [known, mistake, *wrong])):
        (tmp_path / name).write_text(json.dumps(entries))
    web = HTTPServer(("127.0.0.1", 0), SmallHttp)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        with serving(FakeServer) as server:
            host, _, port = server.address.partition(":")
            target = Target(host, int(port), f"http://127.0.0.1:{web.server_port}", timeout=FAST)
            cases = [*cases_of(tmp_path / "right.json"), *cases_of(tmp_path / "wrong.json")]
            report = run(target, cases, seed=1)
    finally:
        web.shutdown()
        web.server_close()
    right, bad = report.outcomes
    assert right.verdict is Verdict.PASS
    assert bad.verdict is Verdict.FAIL
    assert "/c" in bad.actual
    assert "no `executions`" in bad.actual
    assert "/b" not in bad.actual


@pytest.mark.parametrize("content", ["{}", "[]", '{"build": []}', "not json", '{"dir": "c2s"}'])
def test_a_file_that_is_no_vector_is_refused(tmp_path: Path, content: str) -> None:
    for name in ("file.json", "file.jsonl"):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError):
            cases_of(tmp_path / name)


# --- dead targets, nothing selected, severities --------------------------------------------------------------


def unused_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_dead_target_is_an_error_and_not_a_list_of_failures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--zap", unused_address(), "--quiet"]) == 3
    printed = capsys.readouterr().out
    assert "TARGET DEAD" in printed
    assert "FAIL " not in printed


@pytest.mark.parametrize("text", ["127.0.0.1:7243", "http://127.0.0.1:7243", "http://127.0.0.1:7243/"])
def test_the_http_address_may_be_as_a_ready_line_has_it(text: str) -> None:
    assert _url(text) == "http://127.0.0.1:7243"


def test_a_target_that_never_shakes_hands_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zapconform.runner.LIVENESS_SECONDS", FAST)
    report = run_against(NoHandshake, *HONEST)
    assert report.exit_code == 3
    assert {outcome.verdict for outcome in report.outcomes} == {Verdict.ERROR}


def test_a_target_that_dies_in_the_middle_ends_the_run() -> None:
    """The case that saw it is named; the others are errors that say they were not run."""
    with serving(DiesOf501) as server:
        host, _, port = server.address.partition(":")
        cases = select(all_cases(), ["call/501-names-the-opcode", "call/health", "frame/*"])
        cases.sort(key=lambda case: case.id != "call/501-names-the-opcode")
        cases = [Case(c.id, c.requirement, c.severity, c.body, c.hostile) for c in cases]  # in this order
        report = run(Target(host, int(port), timeout=FAST), cases, seed=1, threads=1)
    assert report.exit_code == 3
    assert "noticed by call/501-names-the-opcode" in report.dead
    assert Verdict.FAIL not in report.counts()
    assert sum(o.actual.startswith("not run") for o in report.outcomes) == len(cases) - 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--zap", "127.0.0.1:1", "--select", "frame/no-such-case"],
        ["run", "--zap", "127.0.0.1"],
        ["run", "--zap", "127.0.0.1:http"],
        ["run", "--zap", "127.0.0.1:1", "--timeout", "0"],
        ["run", "--zap", "127.0.0.1:1", "--vectors", "/no/such/file.jsonl"],
        ["run"],
        ["list", "--select", "nothing/*"],
        [],
    ],
)
def test_a_mistake_on_the_command_line_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err


def test_a_run_in_which_nothing_is_judged_does_not_pass() -> None:
    """Only cases that need --http, without --http: all skipped, so nothing is known."""
    report = run_against(FakeServer, "http")
    assert {outcome.verdict for outcome in report.outcomes} == {Verdict.SKIPPED}
    assert report.exit_code == 2


def test_extension_cases_are_skipped_on_a_v1_server() -> None:
    report = run_against(FakeServer, "tasks/await-result", "call/health")
    assert report.extension is False
    assert [outcome.verdict for outcome in report.outcomes] == [Verdict.PASS, Verdict.SKIPPED]
    assert report.exit_code == 0


def judged_by(body: object, severity: Severity = Severity.MUST, *, strict: bool = False) -> Report:
    """A run of one case with this body against an honest server."""
    assert callable(body)
    made = Case("call/made-for-this-test", "A requirement.", severity, body)
    with serving(FakeServer) as server:
        host, _, port = server.address.partition(":")
        return run(Target(host, int(port), timeout=FAST), [made], seed=1, strict=strict)


def fails(trial: Trial) -> None:
    trial.peer().settle()
    raise Failed(expected="this", actual="that")


def notes(trial: Trial) -> None:
    trial.note("acceptable, not preferred")


def breaks(trial: Trial) -> None:
    raise KeyError("a fault of the case")


@pytest.mark.parametrize(
    ("body", "severity", "strict", "verdict", "exit_code"),
    [
        (fails, Severity.MUST, False, Verdict.FAIL, 1),
        (fails, Severity.SHOULD, False, Verdict.FAIL, 0),
        (fails, Severity.SHOULD, True, Verdict.FAIL, 1),
        (notes, Severity.MUST, False, Verdict.LENIENT, 0),
        (notes, Severity.MUST, True, Verdict.LENIENT, 1),
        (breaks, Severity.SHOULD, False, Verdict.ERROR, 1),
    ],
)
def test_verdicts_and_what_they_mean_for_the_run(
    body: object, severity: Severity, strict: bool, verdict: Verdict, exit_code: int
) -> None:
    report = judged_by(body, severity, strict=strict)
    assert only(report).verdict is verdict
    assert report.exit_code == exit_code


def test_a_hostile_case_that_harms_a_bystander_fails() -> None:
    """The body of the case is content; the check after it is not."""

    poisoned = threading.Event()

    class PoisonedByGarbage(FakeServer):
        def _frame(self, connection: socket.socket) -> bytes | None:
            payload = super()._frame(connection)
            if payload == b"poison":
                poisoned.set()
            return payload

        def answer(self, connection: socket.socket, call: wire.Correlated) -> None:
            if not poisoned.is_set():
                super().answer(connection, call)

    def poisons(trial: Trial) -> None:
        peer = trial.peer()
        peer.connection.send_frame(b"poison")
        assert poisoned.wait(FAST)
        peer.close()

    made = Case("call/poison", "A requirement.", Severity.MUST, poisons, hostile=True)
    with serving(PoisonedByGarbage) as server:
        host, _, port = server.address.partition(":")
        report = run(Target(host, int(port), timeout=FAST), [made], seed=1)
    assert only(report).verdict is Verdict.FAIL
    assert "bystander" in only(report).expected


# --- the report ------------------------------------------------------------------------------------------------


def test_the_reports_can_be_read_without_the_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_json, as_junit = tmp_path / "out" / "report.json", tmp_path / "out" / "report.xml"
    with serving(NeverAnswers) as server:
        arguments = ["run", "--zap", server.address, "--select", "call/health", "frame/whole", "http"]
        arguments += ["--json", str(as_json), "--junit", str(as_junit), "--timeout", str(FAST), "--seed", "99"]
        assert main(arguments) == 1
    printed = capsys.readouterr().out
    health = REGISTRY["call/health"]
    assert all(words in printed for words in ("FAIL call/health (MUST)", health.requirement, "seed 99", "[ 1/"))

    document = json.loads(as_json.read_text())
    entry = next(entry for entry in document["cases"] if entry["id"] == "call/health")
    assert (entry["verdict"], entry["severity"], entry["requirement"]) == ("fail", "MUST", health.requirement)
    assert entry["expected"]
    assert entry["actual"]
    sent = [frame for frame in entry["frames"] if frame["direction"] == "sent"]
    assert sent[-1]["hex"].startswith("0100000001000000" + "5a415000")
    assert "0x90" in sent[-1]["reading"]
    assert document["exit_code"] == 1
    assert document["counts"]["fail"] == 2

    suite = Xml.parse(as_junit).getroot()
    assert (suite.get("failures"), suite.get("errors")) == ("2", "0")
    assert int(suite.get("skipped", "0")) == document["counts"]["skipped"] > 0
    failed = next(case for case in suite if case.get("name") == "call/health")
    assert failed.get("classname") == "call"
    failure = failed.find("failure")
    assert failure is not None
    assert health.requirement in (failure.text or "")


def test_a_report_is_bounded_however_much_is_sent() -> None:
    def chatters(trial: Trial) -> None:
        peer = trial.peer()
        for _ in range(500):
            peer.settle()
        peer.connection.send_frame(b"x" * 100_000)
        raise Failed(expected="a bounded report", actual="this one")

    outcome = only(judged_by(chatters))
    assert len(outcome.traffic) <= 40
    assert outcome.traffic_dropped > 900
    assert all(len(entry.hex) <= 2 * 192 + 1 for entry in outcome.traffic)


def test_junit_survives_control_characters(tmp_path: Path) -> None:
    from zapconform.report import as_junit

    def odd(trial: Trial) -> None:
        raise Failed(expected="plain text", actual="\x00\x1b[31m\ufffe <&>")

    Xml.fromstring(as_junit(judged_by(odd)))


# --- the list of cases -----------------------------------------------------------------------------------------


def test_there_are_cases_for_every_area() -> None:
    counts = {area: len(select(all_cases(), [area])) for area in ("frame", "handshake", "call", "push", "errors")}
    counts |= {area: len(select(all_cases(), [area])) for area in ("tasks", "schedules", "workflow", "http")}
    assert min(counts.values()) >= 8, counts
    assert len(all_cases()) >= 120


def test_ids_are_names_and_requirements_are_sentences() -> None:
    for case in all_cases():
        name = case.id.partition("/")[2]
        assert name == name.lower(), case.id
        assert name.isascii(), case.id
        assert " " not in name, case.id
        assert not name.isdigit(), case.id
        assert case.requirement.endswith("."), case.id
        assert len(case.requirement) > 20, case.id


def test_an_id_is_given_once() -> None:
    from zapconform.case import case

    with pytest.raises(ValueError, match="taken"):
        case("call/health", "Again.")(fails)
    with pytest.raises(ValueError, match="must be area/name"):
        case("nowhere/health", "Again.")(fails)


def test_the_list_is_machine_readable(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json", "--select", "frame/*"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {entry["area"] for entry in listed} == {"frame"}
    assert {"id", "requirement", "severity"} <= listed[0].keys()
    assert main(["list"]) == 0


def test_it_shares_no_code_with_what_it_judges() -> None:
    program = (
        "import sys, zapconform.cli\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}"
        " & {'zapwire', 'zaptasks', 'zapserver', 'trio', 'msgspec', 'construct', 'cbor2'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
