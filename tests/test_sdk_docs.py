"""The programs in the README and in pages of docs/ run, and print what the pages say they print."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.helpers.running_server import RunningServer, running_server

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": ROOT / "README.md",
    "client.md": ROOT / "docs/client.md",
    "worker.md": ROOT / "docs/worker.md",
    "activities.md": ROOT / "docs/activities.md",
    "data.md": ROOT / "docs/data.md",
    "asyncio.md": ROOT / "docs/asyncio.md",
    "schedules.md": ROOT / "docs/schedules.md",
    "workflows.md": ROOT / "docs/workflows.md",
    "testing.md": ROOT / "docs/testing.md",
}
_PROGRAM = re.compile(r"```python\n(?P<program>.*?)```\n(?:```text\n(?P<output>.*?)```)?", re.DOTALL)


def programs() -> list[tuple[str, str, str]]:
    found = []
    for page, path in PAGES.items():
        for number, match in enumerate(_PROGRAM.finditer(path.read_text()), 1):
            found.append((f"{page} {number}", match["program"], match["output"] or ""))
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(data=tmp_path_factory.mktemp("data")) as running:
        yield running


def test_there_are_programs_on_every_page() -> None:
    assert {name.split()[0] for name, _, _ in programs()} == PAGES.keys()


@pytest.mark.slow
@pytest.mark.parametrize(("program", "output"), [row[1:] for row in programs()], ids=[row[0] for row in programs()])
def test_a_program_of_the_pages_prints_what_they_say(server: RunningServer, program: str, output: str) -> None:
    program = program.replace("127.0.0.1:9999", server.zap)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=40, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == output
