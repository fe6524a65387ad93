"""Functions for the processes of workers: those import this module, and nothing else of the tests."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

from zaptasks import TaskError, activity, task


@dataclass
class Image:
    width: int
    tint: str = "none"


@activity.defn(process=True)
def resize(image: Image, factor: int) -> dict[str, object]:
    return {"width": image.width * factor, "tint": image.tint, "pid": os.getpid()}


@task(process=True)
def who(payload: object = None) -> int:
    return os.getpid()


@task(process=True)
def speak(text: str) -> list[object]:
    """Everything that a handler may say, and what it may ask."""
    info = activity.info()
    if info.attempt == 1:
        for word in text.split():
            activity.emit(word)
        activity.heartbeat(7, text)
        activity.progress(0.5, "half")
        raise OSError("the disk is away")
    activity.metrics.counter("words", 2, lang="en")
    activity.logger.warning("attempt %d goes on", info.attempt)
    logging.getLogger("shop.images").error("from a library")
    return [*activity.heartbeat_details(), info.workflow_id, activity.cancel_reason()]


@task(process=True)
def fail(payload: object = None) -> None:
    try:
        raise KeyError("vault")
    except KeyError as error:
        raise TaskError("no funds", code="Payment", details=[3], non_retryable=True) from error


@task(process=True)
def die(how: str) -> str:
    if activity.info().attempt > 1:
        return f"alive in attempt {activity.info().attempt}"
    match how:
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "fork":  # a child of its own holds the connection open
            if os.fork() == 0:
                time.sleep(5)
                os._exit(0)
            os._exit(4)
        case "close":
            for descriptor in range(3, 256):
                with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
                    connection.shutdown(socket.SHUT_WR)
            time.sleep(60)
    return "alive"


@task(process=True)
def leave(payload: object = None) -> None:
    sys.exit("bye")


@task(process=True)
def heed(payload: object = None) -> str:
    """Stops when it is asked to, and cleans up."""
    activity.emit(os.getpid())
    while not activity.cancel_requested():
        time.sleep(0.005)
    activity.emit(f"cleaned up after: {activity.cancel_reason()}")
    activity.raise_if_canceled()
    return "never"


@task(process=True)
def ignore(payload: object = None) -> str:
    """Stops for nothing but force."""
    activity.emit(os.getpid())
    while True:
        try:
            time.sleep(60)
        except BaseException:
            continue


@task(process=True)
def later(payload: object = None) -> str:
    activity.emit(activity.info().task_token)
    activity.complete_later()


@task(process=True)
def unencodable(payload: object = None) -> object:
    return object()


@task(process=True)
def big(payload: object = None) -> str:
    return "x" * 3_000_000


@task(process=True)
def fork_and_return(payload: object = None) -> str:
    """Both processes return from here; the copy does so first."""
    if pid := os.fork():
        time.sleep(0.3)
        return f"forked {pid}"
    return "the copy's"


@task(process=True)
def close_everything(payload: object = None) -> str:
    os.closerange(3, 256)
    return "closed"


@task(process=True)
def log_badly(payload: object = None) -> str:
    logging.getLogger("gallery").warning("%d rows", "no")
    logging.getLogger("gallery").warning("the file %s", os.fsdecode(b"caf\xe9"))
    logging.getLogger("gallery").warning("x" * 2_000_000)
    return "logged"
