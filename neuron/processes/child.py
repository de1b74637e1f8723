"""A Python process that ends with this one or before, and is reaped in the running loop when it does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType

NOTHING: Mapping[str, str] = MappingProxyType({})


class Child:
    """Made in the running loop, on the main thread: a process may die with the thread that started it.

    Args:
        arguments: of Python.
        fd: a descriptor that it inherits, under the same number.
        environment: what is other in it than in ours.
        on_gone: told when it has ended.

    Attributes:
        gone: set when it has ended and was reaped.

    Raises:
        OSError: it cannot be had; nothing stays behind.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        fd: int,
        environment: Mapping[str, str] = NOTHING,
        on_gone: Callable[[], None] = lambda: None,
    ) -> None:
        self.gone = asyncio.Event()
        self._on_gone = on_gone
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            pass_fds=[fd],
            process_group=0,  # with what it starts; Ctrl-C reaches the neuron alone, which ends it
            stdin=subprocess.DEVNULL,
            stdout=2,  # whatever a library prints is a log line
            env=os.environ | environment,
        )
        try:
            self._pidfd = os.pidfd_open(self._process.pid)
        except OSError:
            self._process.kill()
            self._process.wait()
            raise
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_there(self) -> bool:
        """Whether it has not ended."""
        return not self.gone.is_set() and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """As `subprocess` has it, a signal being negative; None while it runs."""
        return self._process.returncode

    def kill(self) -> None:
        """End it with whatever it started, if it has not ended; `gone` says when it has."""
        if self.is_there:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()
        self.gone.set()
        self._on_gone()
