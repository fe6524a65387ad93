"""One owner for one file, whatever else runs on the machine."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from zapserver.store.errors import InUse

PID_BYTES_MAX = 32


class OwnerLock:
    """An exclusive `flock` on a file of its own, with the owner's process id in it.

    Not on the database: closing any descriptor of that would drop the locks that SQLite holds on it. The kernel lets
    go when the process ends, however it ends; the lock file stays, since removing it would be a race.
    """

    def __init__(self, path: Path, what: str) -> None:
        """Take the lock. Raises `InUse` at once if it is taken."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)
        except BlockingIOError:
            text = os.pread(self._descriptor, PID_BYTES_MAX, 0).strip()
            os.close(self._descriptor)
            pid = int(text) if text.isdigit() else None
            owner = "another process" if pid is None else f"process {pid}"
            raise InUse(
                f"{what} is in use by {owner}: stop that server, or give this one another data directory", pid=pid
            ) from None
        except OSError:
            os.close(self._descriptor)
            raise

    def release(self) -> None:
        """Let go; only once."""
        os.close(self._descriptor)
