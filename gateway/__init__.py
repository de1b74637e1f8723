"""The HTTP side: dialects, the view of the fleet, placement, metrics, and the `cortex` command.

`gunicorn gateway:app` serves it. The application is made when it is first asked for, so that the command line
and gunicorn's master can import the rest of this package without it.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "app":
        from gateway.startup import application

        return application()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
