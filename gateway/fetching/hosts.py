"""Names of hosts, in the one way of writing in which they are compared and looked up."""

from __future__ import annotations

import re
from ipaddress import ip_address

_NAME = re.compile(r"[a-z0-9_~-]+(?:\.[a-z0-9_~-]+)*")


def canonical(host: str) -> str:
    """The name or the IP address of a host. ValueError where it is neither."""
    try:
        return str(ip_address(host))
    except ValueError:
        name = host.rstrip(".").lower()
    if not name.isascii():
        name = name.encode("idna").decode()
    if not _NAME.fullmatch(name):  # what looks a name up would take a part of it
        raise ValueError(f"{host!r} is no name of a host")
    return name
