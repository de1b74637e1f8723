"""gunicorn's settings, from the gateway's own: `gunicorn -c python:gateway.gunicorn_conf gateway:app`.

`from gateway.gunicorn_conf import *` in a `gunicorn.conf.py` does the same. What stands on gunicorn's command
line wins. SIGHUP reads the configuration again and replaces the processes; listeners and their number stay.
"""

from __future__ import annotations

import os
import socket
import sys
from ipaddress import ip_address
from typing import Any

from gateway import config as _config  # gunicorn takes every public name here for a setting
from gateway import signals, startup
from gateway.config import split_address
from gateway.telemetry import metrics_directory
from ipc.settings import ConfigError

try:
    _config.in_force = _config.load()
except ConfigError as error:
    sys.exit(f"cortex: {error}")
_gateway = _config.in_force.gateway

bind = [address for address in (_gateway.listen, _gateway.metrics_listen) if address is not None]
workers = _gateway.workers
loglevel = _gateway.log_level.lower()
proc_name = "cortex"

worker_class = "gateway.http.connections.Worker"
asgi_loop = "uvloop"
asgi_lifespan = "on"
asgi_disconnect_grace_period = 0  # a client that leaves cancels its handler, and so its request, at once
control_socket_disable = True  # it would leave a file in the home directory

timeout = 60  # seconds that the event loop may stand still; streams may last as long as they like
graceful_timeout = 30  # seconds for open requests when it is told to stop
keepalive = _gateway.keepalive_seconds
limit_request_line = limit_request_field_size = _gateway.header_limit


def on_starting(server: Any) -> None:
    """In the master, before anything listens: refuse what cannot work, and make room for metrics."""
    if server.worker_class.__module__ != "gateway.http.connections":
        sys.exit(startup.WRONG_WORKER)
    if _gateway.metrics_listen is not None and _gateway.metrics_listen not in server.cfg.bind:
        server.cfg.set("bind", [*server.cfg.bind, _gateway.metrics_listen])  # after a --bind
    if not os.environ.keys() & {"GUNICORN_FD", "LISTEN_FDS"}:  # else the listeners are there already
        for address in server.cfg.address:
            _check_free(address)
    for address in server.cfg.address:
        _warn_if_open(server, address)
    metrics_directory.create()
    os.register_at_fork(after_in_parent=signals.release)


def on_reload(server: Any) -> None:
    """In the master, at SIGHUP, before new processes start."""
    try:
        _config.in_force = _config.load()
    except ConfigError as error:
        server.log.error("cortex: the old configuration stays: %s", error)
        return
    server.cfg.set("keepalive", _config.in_force.gateway.keepalive_seconds)
    for name in ("limit_request_line", "limit_request_field_size"):
        server.cfg.set(name, _config.in_force.gateway.header_limit)


def pre_fork(server: Any, worker: Any) -> None:
    """In the master, which has its signals back once it has forked; the new process, when it is ready."""
    signals.hold()


def child_exit(server: Any, worker: Any) -> None:
    """In the master, when a process ended: nothing of it is in flight any more."""
    metrics_directory.forget(worker.pid)


def _warn_if_open(server: Any, address: Any) -> None:
    """A neuron refuses to listen off loopback without keys. The API has none to ask for, so it says it."""
    metrics = _gateway.metrics_listen and split_address(_gateway.metrics_listen)
    if not isinstance(address, tuple) or address[:2] == metrics or _is_loopback(address[0]):
        return
    server.log.warning(
        "cortex: the API at %s:%s asks nobody for a key: whoever reaches it can use the models. "
        "Keep it behind a firewall, or a proxy that asks",
        *address[:2],
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_free(address: Any) -> None:
    """Exit with one line where a port is in use, instead of gunicorn's five seconds of tries."""
    if not isinstance(address, tuple):
        return
    host, port = address[:2]
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        sys.exit(f"cortex: cannot listen on {host}:{port}: {error.strerror or error}")
