"""Readiness for systemd, without a library: one datagram to the socket it names."""

from __future__ import annotations

import os
import socket


def sd_notify(state: str) -> None:
    """Tell the service manager, e.g. "READY=1", "STOPPING=1" or "STATUS=loading demo".

    Does nothing where no manager listens (NOTIFY_SOCKET unset). OSError when the socket refuses.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(1.0)
        sender.sendto(state.encode(), address)
