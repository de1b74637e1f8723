"""A test that waits for ever fails, whatever it waits in."""

from __future__ import annotations

import asyncio
import queue
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable

import pytest

Wait = Callable[[], object]


def _in_a_loop() -> None:
    async def look() -> None:
        while threading.active_count():  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    asyncio.run(look())


def _for_a_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.recv(1)


def _for_a_thread() -> None:
    thread = threading.Thread(target=time.sleep, args=[1e6], daemon=True)
    thread.start()
    thread.join()


def _for_a_process() -> None:
    with subprocess.Popen(["sleep", "100000"]) as process:
        try:
            process.wait()
        finally:
            process.kill()


WAITS: dict[str, Wait] = {
    "a loop that is idle": lambda: asyncio.run(asyncio.Event().wait()),
    "a loop that goes round": _in_a_loop,
    "a queue": lambda: queue.Queue().get(),
    "a socket": _for_a_socket,
    "a thread": _for_a_thread,
    "a process": _for_a_process,
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS.keys())
def test_it_is_told_that_it_takes_too_long(wait: Wait) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with pytest.raises(pytest.fail.Exception, match="waits for something that does not come"):
        wait()
