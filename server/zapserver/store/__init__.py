"""What a namespace keeps, and where: one narrow interface, in memory or in an SQLite file, and its one writer.

`zapserver.store.paths` (file names) and `zapserver.store.maintenance` (backup, verify, compact) are imported by name.
"""

from zapserver.store.errors import (
    Closed,
    Damaged,
    DiskFull,
    Fenced,
    Incompatible,
    InUse,
    QueueFull,
    ReadOnly,
    StoreError,
    Unavailable,
)
from zapserver.store.interface import Batch, Durability, Reader, Store
from zapserver.store.keys import Key, decode_key, encode_key
from zapserver.store.memory import Medium, MemoryStore
from zapserver.store.sqlite import SqliteStore
from zapserver.store.writer import GroupCommit

__all__ = [
    "Batch",
    "Closed",
    "Damaged",
    "DiskFull",
    "Durability",
    "Fenced",
    "GroupCommit",
    "InUse",
    "Incompatible",
    "Key",
    "Medium",
    "MemoryStore",
    "QueueFull",
    "ReadOnly",
    "Reader",
    "SqliteStore",
    "Store",
    "StoreError",
    "Unavailable",
    "decode_key",
    "encode_key",
]
