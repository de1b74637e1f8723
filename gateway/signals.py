"""Signals that come while a gunicorn process starts: held until its event loop can take them.

Before that loop runs, gunicorn's worker would lose them, and its master wait half a minute for it.
"""

from __future__ import annotations

import signal

_ENDING = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def hold() -> None:
    """Keep signals that end a process until `release`, across a fork, too."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)


def release() -> None:
    """Let the process have the signals that were held."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
