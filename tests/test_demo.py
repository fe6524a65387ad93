"""`zaptasks demo`: it ends well when all is well, is pleasant in a log and a terminal, and can fail."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from tests.helpers.processes import ended, started, zaptasks

from zapserver.demo.journal import Entry, read_entry
from zapserver.demo.night import (
    BUSY_ORDER,
    DECLINED_ORDER,
    ORDERS,
    WORKERS,
    NotAsExpected,
    check_attempts,
    check_import,
)
from zapserver.demo.report import Attempt, read_attempts, span


@pytest.mark.slow
def test_the_demo_ends_well_and_says_what_ran_where_and_how_long_it_took() -> None:
    result = zaptasks("demo")
    assert result.status == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert "\x1b" not in result.stdout
    assert "All as expected" in result.stdout
    for line in ("worker ada", "worker grace", "thumbnails: 30 of 30 done", "charge-3 is a dead letter"):
        assert line in result.stdout
    for work in ("till.ring", "image.thumbnail", "email.send", "payment.charge", "stock.check", "parcel.label"):
        row = next(line for line in result.stdout.splitlines() if line.startswith(work))
        assert re.search(r"[0-9.]+ m?s .*(ada|grace) [0-9]+", row)
    assert len(max(result.stdout.splitlines(), key=len)) <= 160


@pytest.mark.slow
def test_the_demo_shows_bars_in_a_terminal() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "zapserver.cli", "demo"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                data = os.read(ours, 65_536)
            except OSError:  # how a terminal ends on Linux
                break
            if not data:
                break
            shown += data
        assert process.wait() == 0
    os.close(ours)
    assert "━".encode() in shown
    assert b"30/30" in shown
    assert b"All as expected" in shown


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["server", "worker grace"])
def test_the_demo_fails_when_a_process_dies(victim: str) -> None:
    with started("demo") as process:
        assert process.stdout is not None
        lines: list[str] = []
        pids: dict[str, int] = {}
        while "worker grace" not in pids:
            lines.append(process.stdout.readline())
            assert lines[-1], lines
            if match := re.match(r"(server|worker \w+) +pid ([0-9]+)", lines[-1]):
                pids[match[1]] = int(match[2])
        os.kill(pids[victim], signal.SIGKILL)
        result = ended(process)
    assert result.status == 1
    assert f"NOT AS EXPECTED: {'the server' if victim == 'server' else victim} ended by itself" in result.stdout
    assert "the last words of" in result.stdout
    assert "Traceback" not in result.stderr


# --- what it expects, each expectation with a night that must fail it ----------------------------------


def attempt(id: str, type: str, number: int, end: str, worker: str) -> Attempt:
    return Attempt(id, type, number, worker, due=0.0, started=1.0, ended=2.0, end=end)


def good_night() -> list[Attempt]:
    ada, grace = WORKERS
    night = [attempt(f"thumbnail-{order}", "image.thumbnail", 1, "completed", ada) for order in range(1, ORDERS + 1)]
    for order in range(1, ORDERS + 1):
        ends = ["failed", "failed", "completed"] if order == BUSY_ORDER else ["completed"]
        night += [attempt(f"mail-{order}", "email.send", number, end, grace) for number, end in enumerate(ends, 1)]
    night += [attempt(f"charge-{DECLINED_ORDER}", "payment.charge", 1, end, ada) for end in ("failed", "completed")]
    night += [attempt("import-autumn", "catalog.import", 1, end, ada) for end in ("failed", "canceled")]
    return [*night, *(attempt("order-1", type, 1, "completed", ada) for type in ("warehouse.reserve", "parcel.label"))]


def lose_a_mail(night: list[Attempt]) -> None:
    night.remove(next(item for item in night if item.id == "mail-7"))


def run_a_thumbnail_twice(night: list[Attempt]) -> None:
    night.append(next(item for item in night if item.id == "thumbnail-7"))


def leave_the_declined_payment(night: list[Attempt]) -> None:
    night.remove(next(item for item in night if item.type == "payment.charge" and item.end == "completed"))


def finish_the_import(night: list[Attempt]) -> None:
    next(item for item in night if item.end == "canceled").end = "completed"


def swap_the_steps(night: list[Attempt]) -> None:
    night[-1], night[-2] = night[-2], night[-1]


def idle_grace(night: list[Attempt]) -> None:
    for item in night:
        item.worker = "ada"


def hang(night: list[Attempt]) -> None:
    night[0].end = ""


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lose_a_mail, "mail-7 ran 0 times, not 1"),
        (run_a_thumbnail_twice, "thumbnail-7 ran 2 times, not 1"),
        (leave_the_declined_payment, "charge-3 ended in"),
        (finish_the_import, "import-autumn ended in"),
        (swap_the_steps, "order-1 ran"),
        (idle_grace, "nothing ran on grace"),
        (hang, "never ended"),
    ],
)
def test_a_night_that_went_wrong_is_noticed(spoil: Callable[[list[Attempt]], None], words: str) -> None:
    night = good_night()
    check_attempts(night)
    spoil(night)
    with pytest.raises(NotAsExpected, match=words):
        check_attempts(night)


def test_an_import_that_began_anew_is_noticed() -> None:
    first = Entry(event="progress", worker="ada", at=1.0, attempt=1, text="row 50 of 5000")
    anew = Entry(event="progress", worker="ada", at=2.0, attempt=2, text="row 50 of 5000")
    check_import([first, Entry(event="progress", worker="ada", at=2.0, attempt=2, text="goes on at row 900")])
    with pytest.raises(NotAsExpected, match="began anew"):
        check_import([first, anew])


# --- the report ---------------------------------------------------------------------------------------


def entry(event: str, at: float, *, id: str = "mail-1", number: int = 1, text: str = "", due: float = 0.0) -> Entry:
    return Entry(event=event, worker="ada", at=at, id=id, type="email.send", attempt=number, text=text, due=due)


def test_attempts_wait_from_submission_from_their_slot_or_from_the_attempt_before() -> None:
    entries = [
        entry("started", 10.5),
        entry("failed", 11.0, text="busy"),
        entry("started", 11.25, number=2),
        entry("completed", 12.0, number=2),
        entry("started", 30.5, id="tick-1", due=30.0),
        entry("completed", 31.0, id="tick-1"),
    ]
    attempts = read_attempts(reversed(entries), {"mail-1": [10.0]})
    assert [(item.number, item.waited, item.ran, item.end) for item in attempts] == [
        (1, 0.5, 0.5, "failed"),
        (2, 0.25, 0.75, "completed"),
        (1, 0.5, 0.5, "completed"),
    ]


def test_a_dead_letter_that_was_put_back_waits_from_then() -> None:
    entries = [entry("started", 1.5), entry("failed", 2.0), entry("started", 5.25), entry("completed", 6.0)]
    assert [item.waited for item in read_attempts(entries, {"mail-1": [1.0, 5.0]})] == [0.5, 0.25]


def test_a_journal_line_reads_back() -> None:
    assert read_entry('{"event":"ready","worker":"ada","at":1.5}') == Entry(event="ready", worker="ada", at=1.5)


@pytest.mark.parametrize(("seconds", "text"), [(0.00042, "0.4 ms"), (0.0994, "99 ms"), (1.234, "1.2 s")])
def test_spans_as_people_read_them(seconds: float, text: str) -> None:
    assert span(seconds) == text
