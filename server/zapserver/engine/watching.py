"""Calls that wait for the next event of a history: a reader that follows an open run."""

from __future__ import annotations

from zapserver.engine import registry
from zapserver.engine.commands import AwaitEvents, PeerKey, Waiter
from zapserver.engine.effects import HistoryGrew
from zapserver.engine.records import Execution, Watch
from zapserver.engine.state import State


def wait(s: State, execution: Execution, command: AwaitEvents) -> bool:
    """Tell the waiter when there is an event past the one that it knows; True when there is, or none will come."""
    if execution.history_length > command.after or not execution.status.is_open:
        return True
    registry.check_wait(s, command.peer, command.waiter)
    execution.watchers[command.waiter] = Watch(command.peer, command.after)
    s.peer(command.peer).watching[command.waiter] = execution
    return False


def go_on(s: State, execution: Execution, waiter: Waiter, peer: PeerKey, after: int) -> None:
    """After the engine was built again: wait as before, or say at once what the waiter may have missed."""
    command = AwaitEvents(
        workflow_id=execution.workflow_id, run_id=execution.run_id, after=after, waiter=waiter, peer=peer
    )
    if wait(s, execution, command):
        s.effects.append(
            HistoryGrew(waiter=waiter, workflow_id=execution.workflow_id, run_id=execution.run_id, after=after)
        )
