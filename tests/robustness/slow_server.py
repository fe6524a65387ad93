"""`zaptasks` with a slow disk: every commit of the namespace `slow` takes SECONDS longer, those of others do not."""

from __future__ import annotations

import time

from zapserver.cli import main
from zapserver.store import Batch, Durability, SqliteStore

SLOW = "slow"
SECONDS = 1.5

_commit = SqliteStore.commit


def _commit_slowly(self: SqliteStore, batch: Batch, durability: Durability = Durability.SYNCED) -> None:
    if self.path.name == f"{SLOW}.db":
        time.sleep(SECONDS)
    _commit(self, batch, durability)


if __name__ == "__main__":
    SqliteStore.commit = _commit_slowly  # type: ignore[method-assign]
    main()
