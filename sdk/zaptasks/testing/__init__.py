"""Testing for those who write tasks, activities and workflows: whole systems in one test, in virtual time.

    from zaptasks import testing

    async def test_an_order_is_shipped() -> None:
        async with testing.WorkflowEnvironment(workflows=[Order], activities=[charge]) as env:
            order = await env.client.start_workflow(Order, "tea", 450)
            await env.sleep(days=100)
            assert await order.result() == "shipped"

Not imported by `zaptasks` itself: it brings the server along.
"""

from .activity_environment import ActivityEnvironment
from .blocking import BlockingEnvironment
from .client import Stuck
from .environment import START, WorkflowEnvironment
from .exploring import CounterExample, Outcome, explore
from .mocks import Mock, mock
from .play import Call
from .script import Cancel, Signal, Update

__all__ = [
    "START",
    "ActivityEnvironment",
    "BlockingEnvironment",
    "Call",
    "Cancel",
    "CounterExample",
    "Mock",
    "Outcome",
    "Signal",
    "Stuck",
    "Update",
    "WorkflowEnvironment",
    "explore",
    "mock",
]
