"""What type checkers say of calls of the public API: right ones pass, wrong ones do not. The same for both checkers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mypy.api
import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "tests" / "typing").glob("*.py"))


def refused_by_mypy(files: list[Path], tmp_path: Path) -> str:
    output, errors, _ = mypy.api.run(
        [
            "--config-file",
            str(ROOT / "pyproject.toml"),
            "--cache-dir",
            str(tmp_path),
            "--hide-error-context",
            "--no-error-summary",
            "--no-pretty",
            *map(str, files),
        ]
    )
    assert not errors
    return output


def refused_by_pyright(files: list[Path], tmp_path: Path) -> str:
    settings = tmp_path / "pyright.json"
    settings.write_text(
        json.dumps(
            {
                "include": [str(file) for file in files],
                "extraPaths": [str(ROOT / folder) for folder in ("zap", "sdk")],
                "typeCheckingMode": "standard",  # plain pyright's
                "pythonVersion": "3.11",
            }
        )
    )
    command = [sys.executable, "-m", "basedpyright", "--project", str(settings)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert checked.returncode in (0, 1), checked.stdout + checked.stderr
    return checked.stdout


@pytest.mark.slow
@pytest.mark.parametrize("check", [refused_by_mypy, refused_by_pyright])
def test_a_checker_accepts_and_refuses_the_right_calls(
    check: Callable[[list[Path], Path], str], tmp_path: Path
) -> None:
    output = check(EXAMPLES, tmp_path)
    found = {(name, int(line)) for name, line in re.findall(r"(\w+\.py):(\d+):(?:\d+ -)? error: ", output)}
    expected = {
        (file.name, number)
        for file in EXAMPLES
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if line.endswith("# refused")
    }
    assert len(EXAMPLES) == len({name for name, _ in expected}) > 1
    assert len(expected) > 40
    assert found == expected, output
