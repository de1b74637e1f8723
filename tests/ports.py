"""Ports that stay free between the moment a test chooses one and the moment somebody listens there.

Whoever connects, or listens on any port, gets one from a range of the kernel's. A port of that range which is
free now is somebody else's a moment later, on a machine that runs other tests. So these lie below it.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST = 14_000  # above those that a neuron and a gateway listen on by default

_given: set[int] = set()
_random = random.SystemRandom()  # a seed of one test would give two processes the same


def free_ports(count: int) -> list[int]:
    """So many, none of which this process has given before."""
    end = int(RANGE.read_text().split()[0])
    ports: list[int] = []
    while len(ports) < count:
        port = _random.randrange(LOWEST, end)
        if port not in _given and _is_free(port):
            _given.add(port)
            ports.append(port)
    return ports


def free_port() -> int:
    return free_ports(1)[0]


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("", port)).close()
    except OSError:
        return False
    return True
