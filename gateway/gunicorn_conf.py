"""gunicorn's settings, from the gateway's own: `gunicorn -c python:gateway.gunicorn_conf gateway:app`.

`from gateway.gunicorn_conf import *` in a `gunicorn.conf.py` does the same. What stands on gunicorn's command
line wins. SIGHUP reads the configuration again and replaces the processes; listeners and their number stay.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import Any

from gunicorn import systemd
from msgspec.structs import replace

from gateway import catalogue as _catalogue  # gunicorn takes every public name here for a setting
from gateway import config as _config
from gateway import signals, startup, successors
from gateway.access.keyring import has_keys
from gateway.config import split_address
from gateway.telemetry import metrics_directory
from ipc.errors import CortexError
from ipc.farewell import leave_modules_alone
from ipc.logs import hide_keys
from ipc.settings import ConfigError
from ipc.socket_file import check_free

try:
    _config.in_force = _config.load()
    _catalogue.check(_config.in_force)
except ConfigError as error:
    sys.exit(f"cortex: {error}")
_gateway = _config.in_force.gateway

_bind_given: list[str] = []  # here, or on the command line
bind = [address for address in (_gateway.listen, _gateway.metrics_listen) if address is not None]
workers = _gateway.workers
logging.getLogger("gunicorn.error").addFilter(hide_keys)  # at DEBUG it has the path of each request
loglevel = _gateway.log_level.lower()
if _gateway.log_format == "json":
    logconfig_dict = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "ipc.logs.JSONLines"}},
        "handlers": {"stderr": {"class": "ipc.logs.Lines", "formatter": "json"}},
        "loggers": {"gunicorn.error": {"handlers": ["stderr"], "propagate": False}},
        "root": {},
    }
proc_name = "cortex"

worker_class = "gateway.http.connections.Worker"
asgi_loop = "uvloop"
asgi_lifespan = "on"
asgi_disconnect_grace_period = 0  # a client that leaves cancels its handler, and so its request, at once
control_socket_disable = True  # it would leave a file in the home directory

timeout = 60  # seconds that the event loop may stand still; streams may last as long as they like
graceful_timeout = 30  # seconds for open requests when it is told to stop
keepalive = int(_gateway.keepalive_seconds)
limit_request_line = limit_request_field_size = _gateway.header_limit


def on_starting(server: Any) -> None:
    """In the master, before anything listens: refuse what cannot work, and make room for metrics."""
    if server.worker_class.__module__ != "gateway.http.connections":
        sys.exit(startup.WRONG_WORKER)
    global _bind_given
    _bind_given = server.cfg.bind
    if _gateway.metrics_listen is not None and _gateway.metrics_listen not in server.cfg.bind:
        server.cfg.set("bind", [*server.cfg.bind, _gateway.metrics_listen])  # after a --bind
    if not os.environ.keys() & {"GUNICORN_FD", "LISTEN_FDS"}:  # else the listeners are there already
        for address in server.cfg.address:
            _check_free(address)
    _decide_access(server, may_exit=True)
    metrics_directory.create()
    leave_modules_alone()
    os.register_at_fork(after_in_parent=signals.release)


def when_ready(server: Any) -> None:
    """In the master, which listens by now: what stood beside a --bind is taken out again, for a reload that
    finds another `bind` listens anew, while the old processes still have the ports."""
    if not server.cfg.reuse_port:  # else each process listens itself
        server.cfg.set("bind", _bind_given)
    stop = server.stop

    def end_all(graceful: bool = True) -> None:
        successors.end_all()
        stop(graceful)

    server.stop = end_all


def on_reload(server: Any) -> None:
    """In the master, at SIGHUP, before new processes start."""
    successors.replace(server.worker_age)
    try:
        new = _config.load()
        _catalogue.check(new)
        _config.in_force = new
    except ConfigError as error:
        server.log.error("cortex: the old configuration stays: %s", error)
        return
    _decide_access(server)
    server.cfg.set("keepalive", int(_config.in_force.gateway.keepalive_seconds))
    for name in ("limit_request_line", "limit_request_field_size"):
        server.cfg.set(name, _config.in_force.gateway.header_limit)


def pre_fork(server: Any, worker: Any) -> None:
    """In the master, which has its signals back once it has forked; the new process, when it is ready."""
    signals.hold()


def child_exit(server: Any, worker: Any) -> None:
    """In the master, when a process ended: nothing of it is in flight any more. Those that are replaced serve
    nobody else, and gunicorn takes them for processes that do."""
    metrics_directory.forget(worker.pid)
    serving = sum(not successors.is_replaced(each.age) for each in server.WORKERS.values())
    if serving < server.num_workers <= len(server.WORKERS) and server.LISTENERS:  # else it stops
        server.spawn_worker()


def _decide_access(server: Any, may_exit: bool = False) -> None:
    """Whether requests without a key are served, by where this gateway listens in fact.

    A neuron refuses to listen off loopback without keys, and so does a gateway.
    """
    config = _config.in_force
    metrics = _gateway.metrics_listen and split_address(_gateway.metrics_listen)[1]
    apis = [each[:2] for each in _addresses(server) if isinstance(each, tuple) and each[1] != metrics]
    reached = [f"{host}:{port}" for host, port in apis if not _config.is_loopback(host)]
    if not reached:
        if config.access.anonymous is None:
            server.log.warning(
                "cortex: only this host reaches the API, so who asks there needs no key, and is an "
                "administrator until a key is one's. Where a proxy on this host lets others in, say "
                "access: {anonymous: false}"
            )
        return
    _config.in_force = replace(config, gateway=replace(config.gateway, listen=reached[0]))
    if config.access.anonymous:
        server.log.warning(
            "cortex: the API at %s serves whoever reaches it, also without a key (access.anonymous). "
            "Keep it behind a firewall, or a proxy that asks",
            ", ".join(reached),
        )
        return
    path = _config.keys_path(config.access)
    try:
        some = has_keys(path)
    except CortexError as error:
        text = f"cortex: {error.message}"
    else:
        if some:
            return
        text = (
            f"cortex: others can reach the API at {', '.join(reached)}, and nobody has a key yet ({path}). "
            "Make one with `cortex keys create NAME`, or serve everybody with access: {anonymous: true}"
        )
    if may_exit:
        sys.exit(text)
    server.log.error("%s", text)


def _addresses(server: Any) -> list[Any]:
    """Where it listens: what it was handed over counts, by systemd or by a gunicorn that it replaces."""
    if server.LISTENERS:
        return [listener.getsockname() for listener in server.LISTENERS]
    count = systemd.listen_fds(unset_environment=False)
    handed = list(range(systemd.SD_LISTEN_FDS_START, systemd.SD_LISTEN_FDS_START + count))
    if not handed and server.master_pid:
        handed = [int(fd) for fd in os.environ["GUNICORN_FD"].split(",")]
    handed += [each for each in server.cfg.address if isinstance(each, int)]  # --bind fd://N
    if not handed:
        return server.cfg.address
    return [_address_of(fd) for fd in handed]


def _address_of(fd: int) -> Any:
    """The address that a socket is bound to."""
    bound = socket.socket(fileno=fd)
    try:
        return bound.getsockname()
    finally:
        bound.detach()


def _check_free(address: Any) -> None:
    """Exit with one line where somebody listens, instead of gunicorn's five seconds of tries at a port, and
    before it takes a path from who has it."""
    if isinstance(address, int):
        return
    try:
        if isinstance(address, str):
            check_free(address)
            return
        host, port = address[:2]
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        where = address if isinstance(address, str) else f"{host}:{port}"
        sys.exit(f"cortex: cannot listen on {where}: {error.strerror or error}")
