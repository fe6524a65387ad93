"""A planted fault: `zaptasks` with a server whose answers leave before what they tell is on the disk.

The robustness run has to find the losses.
"""

from __future__ import annotations

import time
from functools import partial

from zapserver.cli import main
from zapserver.store.errors import StoreError
from zapserver.store.interface import Batch, Durability
from zapserver.store.writer import GroupCommit, OnDone

BEHIND_SECONDS = 0.4

_submit, _commit = GroupCommit.submit, GroupCommit._commit


def _submit_hastily(
    self: GroupCommit, batch: Batch, on_done: OnDone, durability: Durability = Durability.SYNCED
) -> None:
    _submit(self, batch, _ignore, durability)
    self._call_soon(partial(on_done, None))


def _ignore(error: StoreError | None) -> None:
    return None


def _commit_late(self: GroupCommit, group: list) -> None:  # type: ignore[type-arg]
    time.sleep(BEHIND_SECONDS)
    _commit(self, group)


if __name__ == "__main__":
    GroupCommit.submit = _submit_hastily  # type: ignore[method-assign]
    GroupCommit._commit = _commit_late  # type: ignore[method-assign]
    main()
