"""A process that commits numbered batches until it is killed, and says each number once it is kept.

    python store_writer.py FILE IN_FLIGHT

Batch n is the records (n, 0) to (n, 3). Numbers go on after the largest that the file has.
"""

from __future__ import annotations

import enum
import sys
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from zapserver.store import Batch, GroupCommit, SqliteStore, StoreError

RECORDS = 4


class Table(enum.StrEnum):
    NUMBERS = "numbers"


def numbered(number: int) -> Batch:
    """Also takes away half of an older batch's records, so that a torn delete would be seen."""
    batch = Batch()
    for part in range(RECORDS):
        batch.put(Table.NUMBERS, (number, part), b"%d" % number * 20)
    for part in range(0, RECORDS, 2):
        batch.delete(Table.NUMBERS, (number - 100, part))
    return batch


def main(path: Path, in_flight: int) -> None:
    store = SqliteStore(path, Table)
    last = next(store.scan(Table.NUMBERS, reverse=True, limit=1), None)
    number = int(last[0][0]) if last else 0
    mine: SimpleQueue[partial[None]] = SimpleQueue()
    writer = GroupCommit(store, call_soon=lambda function: mine.put(partial(function)))

    def submit() -> None:
        nonlocal number
        number += 1
        writer.submit(numbered(number), partial(done, number))

    def done(its_number: int, error: StoreError | None) -> None:
        if error is not None:
            raise error
        print(its_number, flush=True)
        submit()

    for _ in range(in_flight):
        submit()
    while True:
        mine.get()()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
