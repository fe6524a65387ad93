"""The stores of a server: one file a namespace in a data directory, each with its writer, or nothing but memory."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import trio

from zapserver.engine.tables import Table
from zapserver.journal import Writer
from zapserver.settings import MEMORY
from zapserver.store import GroupCommit, MemoryStore, SqliteStore, Store
from zapserver.store.paths import store_path, stored_namespaces

ROOT_ORG = ""
DESCRIPTORS_PER_STORE = 6
"""Two connections with the database and its log, the index that both share, and the lock. Half of the process's
descriptors may go to stores, the others are for connections."""


class Stores:
    """Opens stores in a data directory and closes them all. Needs trio's loop: writers report to it.

    The directory is made if it does not exist. `MEMORY` stands for no directory.
    """

    def __init__(self, data: str) -> None:
        self._folder = None if data == MEMORY else Path(data)
        self._open: list[tuple[Store, GroupCommit | None]] = []

    def known(self) -> list[str]:
        """The namespaces that have a store."""
        return [] if self._folder is None else stored_namespaces(self._folder, ROOT_ORG)

    @property
    def namespaces_max(self) -> int:
        """How many the process has descriptors for. A server with more could not open them all when it starts again."""
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if self._folder is None or descriptors == resource.RLIM_INFINITY:
            return sys.maxsize
        return max(1, descriptors // 2 // DESCRIPTORS_PER_STORE)

    def open(self, namespace: str) -> tuple[Store, Writer | None]:
        """An `OpenStore`. Raises `StoreError`: in use by another server, damaged, not writable, ..."""
        if self._folder is None:
            return MemoryStore(Table), None
        store = SqliteStore(store_path(self._folder, ROOT_ORG, namespace), Table)
        # What may wait is bounded by the journal, before a step; what was decided has to be taken.
        call_soon = trio.lowlevel.current_trio_token().run_sync_soon
        writer = GroupCommit(store, call_soon=call_soon, queue_bytes_max=sys.maxsize)
        self._open.append((store, writer))
        return store, writer

    def close(self) -> None:
        """Commit what is on its way, and close everything. Waits for the disks."""
        while self._open:
            store, writer = self._open.pop()
            if writer is not None:
                writer.close()
            store.close()
