"""What workers warn of: clocks and chance in workflow code, and code that holds its worker."""

from __future__ import annotations

import datetime
import inspect
import logging
import random
import threading
import time
import uuid
from uuid import uuid4

import pytest

from zaptasks import workflow
from zaptasks.watchdog import Watchdog
from zaptasks.workflow import WorkflowTaskHandler, definition_of
from zaptasks.workflow.suspects import suspects


@workflow.defn
class Careless:
    def __init__(self) -> None:
        self.began = time.time()  # noticed: time.time()

    @workflow.run
    async def run(self) -> object:
        async def helper() -> None:
            random.shuffle([1, 2])  # noticed: random.shuffle()

        kept = workflow.side_effect(lambda: random.random())
        now = datetime.datetime.now(datetime.UTC)  # noticed: datetime.datetime.now()
        with open("x") as file:  # noqa: ASYNC230  # noticed: open()
            self.text = file.read()
        await helper()
        return kept, now, uuid4(), workflow.random().random()  # noticed: uuid4()

    @workflow.query
    def id(self) -> str:
        time.sleep(0)  # noticed: time.sleep()
        return str(uuid.UUID(int=3))


@workflow.defn
async def careful() -> object:
    random = workflow.random()
    return random.random(), workflow.uuid4(), datetime.timedelta(3), time.strftime("")


def test_clocks_and_chance_are_noticed_with_their_lines(caplog: pytest.LogCaptureFixture) -> None:
    lines, first = inspect.getsourcelines(Careless)
    expected = {
        (number, line.partition("# noticed: ")[2].strip())
        for number, line in enumerate(lines, first)
        if "# noticed: " in line
    }
    assert len(expected) == 6
    assert {(suspect.place.line, suspect.call) for suspect in suspects(definition_of(Careless))} == expected
    assert suspects(definition_of(careful)) == []
    WorkflowTaskHandler([Careless, careful])
    assert "uuid4() is not the same in a replay; use workflow.uuid4()" in caplog.text
    assert f"{__file__}:" in caplog.text


def test_code_that_holds_its_worker_is_shown_with_its_stack(caplog: pytest.LogCaptureFixture) -> None:
    told = threading.Event()

    class Teller(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.set()

    teller = Teller()
    logging.getLogger("zaptasks.worker").addHandler(teller)
    watchdog = Watchdog(0.02)
    try:
        with watchdog.watch("workflow Quick"):
            pass
        with watchdog.watch("workflow Slow"):
            assert told.wait(10), "nobody noticed"
    finally:
        watchdog.close()
        logging.getLogger("zaptasks.worker").removeHandler(teller)
    assert "workflow Slow has held its thread for" in caplog.text
    assert 'told.wait(10), "nobody noticed"' in caplog.text
    assert "Quick" not in caplog.text


def test_a_watchdog_without_work_ends() -> None:
    watchdog = Watchdog()
    watchdog.close()
    with pytest.raises(ValueError, match="more than 0"):
        Watchdog(0)
