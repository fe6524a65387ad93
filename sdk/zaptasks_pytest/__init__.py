"""pytest's fixtures for tests of workflows; pytest finds them by itself where zaptasks is installed.

    pytestmark = pytest.mark.zaptasks(workflows=[Order], activities=[charge])

    async def test_order(workflow_env):                 # with pytest-trio
        order = await workflow_env.client.start_workflow(Order, "tea", 450)

    def test_order(blocking_workflow_env):              # without
        order = blocking_workflow_env.client.start_workflow(Order, "tea", 450)

Every run of pytest imports this module, also those that have nothing to do with tasks. So it stands beside `zaptasks`,
whose import takes 0.2 s, and imports it only where a fixture is used.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from zaptasks.testing import BlockingEnvironment, WorkflowEnvironment

_MARKER = "zaptasks"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"{_MARKER}(**arguments): what workflow_env is made with: see zaptasks.testing.WorkflowEnvironment"
    )


@pytest.fixture
async def workflow_env(request: pytest.FixtureRequest) -> AsyncIterator[WorkflowEnvironment]:
    """A `zaptasks.testing.WorkflowEnvironment` for an async test under pytest-trio."""
    async with _environment(request) as env:
        yield env


@pytest.fixture
def blocking_workflow_env(request: pytest.FixtureRequest) -> Iterator[BlockingEnvironment]:
    """A `zaptasks.testing.BlockingEnvironment` for a plain test."""
    with _environment(request) as env:
        yield env


def _environment(request: pytest.FixtureRequest) -> WorkflowEnvironment:
    """Made with what the markers say; of two that name the same argument the one closer to the test counts."""
    from zaptasks.testing import WorkflowEnvironment

    arguments: dict[str, object] = {}
    for marker in request.node.iter_markers(_MARKER):
        if marker.args:
            raise pytest.UsageError(f"pytest.mark.{_MARKER} takes keyword arguments only: {_MARKER}(workflows=[...])")
        arguments = {**marker.kwargs, **arguments}
    return WorkflowEnvironment(**arguments)  # type: ignore[arg-type]  # checked by the call itself
