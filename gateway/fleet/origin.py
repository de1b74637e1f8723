"""By what neurons tell the files of gateways apart, of which the newest counts."""

from __future__ import annotations

import socket
from pathlib import Path

from ipc.messages.values import MAX_NAME


def origin_of(path: str | Path) -> str:
    """This host and that file of it, whose path is absolute: gateways in other folders have other files."""
    return f"{socket.gethostname()}:{path}"[-MAX_NAME:]
