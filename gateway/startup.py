"""Making `gateway:app` in a gunicorn process, or saying in one line why that cannot be.

The exit codes are gunicorn's: with them its master stops, instead of starting the same process for ever.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

from gateway import config
from gateway.telemetry import metrics_directory
from ipc import logs
from ipc.errors import CortexError
from ipc.responsive import stay_responsive
from ipc.settings import ConfigError
from ipc.structs import learn_structs

APP_LOAD_ERROR = 4  # gunicorn.arbiter.Arbiter.APP_LOAD_ERROR

WRONG_WORKER = (
    "cortex needs its own kind of gunicorn's asgi worker, and this is another one. Start it with\n"
    "    gunicorn -c python:gateway.gunicorn_conf gateway:app\n"
    "or have a gunicorn.conf.py in this directory that says: from gateway.gunicorn_conf import *"
)


def application() -> Callable[..., Any]:
    """The ASGI application. Exits the process where the worker class or the configuration is wrong."""
    if "gunicorn.arbiter" in sys.modules and "gateway.http.connections" not in sys.modules:
        _refuse(WRONG_WORKER)
    try:
        chosen = config.in_force or config.load()
        logs.log_to_stderr(chosen.gateway.log_level, config.LOG_FORMAT, chosen.gateway.log_format)
        metrics_directory.ensure()
        from gateway.http.application import Gateway  # it counts, so it must know where

        learn_structs()
        made = Gateway(chosen)
        stay_responsive()
        return made
    except (ConfigError, CortexError) as error:
        _refuse(f"cortex: {error}")


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    sys.exit(APP_LOAD_ERROR)
