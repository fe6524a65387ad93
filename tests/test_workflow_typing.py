"""What type checkers say of calls of the workflow API: right ones pass, wrong ones do not."""

from __future__ import annotations

import re
from pathlib import Path

import mypy.api
import pytest

CALLS = Path(__file__).parent / "typing" / "workflow_calls.py"
ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_mypy_accepts_and_refuses_the_right_calls(tmp_path: Path) -> None:
    output, errors, _ = mypy.api.run(
        [
            "--config-file",
            str(ROOT / "pyproject.toml"),
            "--cache-dir",
            str(tmp_path),
            "--hide-error-context",
            "--no-error-summary",
            "--no-pretty",
            str(CALLS),
        ]
    )
    assert not errors
    found = {int(line) for line in re.findall(r"^.*?:(\d+): error: ", output, re.MULTILINE)}
    lines = CALLS.read_text().splitlines()
    expected = {number for number, line in enumerate(lines, 1) if line.endswith("# refused")}
    assert len(expected) > 15
    assert found == expected, output
