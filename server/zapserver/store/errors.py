"""What a store refuses or cannot do, each with the status it is answered with and what helps.

`may_pass` tells the server what to do about it: try `recover()` again until the disk is well, or give up.
"""

from __future__ import annotations

from typing import ClassVar


class StoreError(Exception):
    """The root of the store's errors; `status` is in HTTP's numbering.

    Of a commit that raised anything but `Unavailable` nothing is kept.
    """

    code: ClassVar[str] = "store_error"
    status: ClassVar[int] = 500
    may_pass: ClassVar[bool] = False
    """Whether the same call can succeed later without a change of the program or of the file."""


class DiskFull(StoreError):
    """No room for a commit."""

    code = "disk_full"
    status = 507
    may_pass = True


class ReadOnly(StoreError):
    """The file, its folder or the whole file system cannot be written."""

    code = "read_only"
    status = 503
    may_pass = True


class Unavailable(StoreError):
    """The disk failed a read or a write, or another process held the file for too long.

    If it was a commit that failed, a restart right now may still find it: its last write may have reached the
    disk although the sync failed. `recover()` settles it: once that succeeds the commit is gone for good.
    """

    code = "store_unavailable"
    status = 503
    may_pass = True


class Damaged(StoreError):
    """A record whose checksum does not match, or, with an empty `table`, a file that SQLite cannot read.

    `key` is the record's key as it stands in the file, encoded: the damage may be in the key itself.
    """

    code = "store_damaged"

    def __init__(self, message: str, *, table: str = "", key: bytes = b"") -> None:
        super().__init__(message)
        self.table = table
        self.key = key


class Fenced(StoreError):
    """A newer owner has opened the same store; this one must stop."""

    code = "store_fenced"
    status = 503

    def __init__(self, what: str, epoch: int, newest: int) -> None:
        super().__init__(f"{what} was opened again by a newer owner (epoch {newest}, here {epoch}): stop this server")


class InUse(StoreError):
    """Another process owns the file. `pid` is None where it could not be read."""

    code = "store_in_use"
    status = 503

    def __init__(self, message: str, *, pid: int | None) -> None:
        super().__init__(message)
        self.pid = pid


class Incompatible(StoreError):
    """A file that a newer version wrote, or that is something else altogether."""

    code = "store_incompatible"


class Closed(StoreError):
    """The store, or its writer, has been closed by this process."""

    code = "store_closed"
    status = 503


class QueueFull(StoreError):
    """More bytes wait for the disk than the bound allows; nothing of the batch was taken."""

    code = "store_queue_full"
    status = 429
    may_pass = True
