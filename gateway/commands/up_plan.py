"""What `cortex up` was asked for, checked before anything starts, and the settings that follow from it."""

from __future__ import annotations

import errno
import json
import re
import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.aliases import AliasError, Aliases
from gateway.commands.clients import KEY_VARIABLE
from gateway.config import is_loopback, split_address

LOOPBACK = "127.0.0.1"
NEURON_PORT = 13131
GGUF = ".gguf"
PART = re.compile(r"-\d{5}-of-\d{5}$")  # at the end of the name of a part of a set


class UpError(Exception):
    """Why `cortex up` cannot start, in one sentence."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything the children are told.

    Attributes:
        listen: the API's host and port.
        metrics_port: on loopback.
        neuron_port: on loopback.
        models: entries of the neuron's `models`.
        devices: the neuron's `devices`; None: every one that it finds.
        aliases: of the models.
    """

    listen: tuple[str, int]
    metrics_port: int
    neuron_port: int
    models: list[dict[str, Any]]
    devices: list[str] | None
    aliases: dict[str, str]

    @property
    def base(self) -> str:
        """The API's address for a client on this host."""
        host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(self.listen[0], self.listen[0])
        return f"http://{_address(host, self.listen[1])}"

    @property
    def wants_key(self) -> bool:
        """Whether the API asks for keys, as it does where others can reach it."""
        return not is_loopback(self.listen[0])

    def curl(self, path: str, body: dict[str, Any]) -> str:
        """A line for a shell on this host that posts `body`."""
        key = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if self.wants_key else ""
        data = shlex.quote(json.dumps(body))
        return f"curl {self.base}{path}{key} -H 'Content-Type: application/json' -d {data}"

    @property
    def neuron_endpoint(self) -> str:
        return f"tcp://{LOOPBACK}:{self.neuron_port}"

    def neuron_settings(self) -> dict[str, Any]:
        return {
            "listen": self.neuron_endpoint,
            "devices": self.devices,
            "models": self.models,
            "only_configured": True,
            "log_level": "WARNING",
        }

    def gateway_settings(self, folder: Path) -> dict[str, Any]:
        """What is kept is in `folder`, and goes with it."""
        return {
            "gateway": {
                "listen": _address(*self.listen),
                "metrics_listen": f"{LOOPBACK}:{self.metrics_port}",
                "log_level": "WARNING",
            },
            "aliases": self.aliases,
            "store": {"path": str(folder / "responses.db")},
            "neurons": [{"name": socket.gethostname(), "endpoint": self.neuron_endpoint}],
        }


def make_plan(
    models: Sequence[str],
    dtype: str | None,
    ranks: int,
    device: str | None,
    listen: str,
    aliases: Sequence[str] = (),
) -> Plan:
    """Check what can be checked before anything starts, and choose the ports that nobody named.

    Raises:
        UpError: naming the option that cannot be followed.
    """
    devices = parse_devices(device) if device is not None else None
    if devices is not None and devices != ["cpu"] and ranks > len(devices):
        raise UpError(f"--ranks {ranks} needs as many devices, and --device {device} names {len(devices)}")
    entries = [model_entry(name, dtype, ranks, devices) for name in models]
    ids = [entry["id"] for entry in entries]
    for name in ids:
        if ids.count(name) > 1:
            raise UpError(f"--model: two models would have the id {name!r}")
    named = parse_aliases(aliases, ids)
    try:
        host, port = split_address(listen)
    except ValueError as error:
        raise UpError(f"--listen: {error}") from error
    neuron_port = NEURON_PORT if port else 0  # who lets chance choose may start several at once
    with free_socket(host, port) as api:
        port = api.getsockname()[1]
        metrics = _socket_near(port + 1 if port < 65535 else 0)
        with metrics, _socket_near(neuron_port) as neuron:
            ports = metrics.getsockname()[1], neuron.getsockname()[1]
            return Plan((host, port), *ports, entries, devices, named)


def _socket_near(port: int) -> socket.socket:
    """A socket on loopback that has the port where clients look first, or where that is taken, a free one."""
    try:
        return free_socket(LOOPBACK, port)
    except UpError:
        return free_socket(LOOPBACK, 0)


def parse_devices(text: str) -> list[str]:
    """The devices meant by `cpu`, `cuda:0,1` or `cuda:0,cuda:1`; UpError when it means none."""
    if text == "cpu":
        return ["cpu"]
    match = re.fullmatch(r"cuda:(\d+(?:,(?:cuda:)?\d+)*)", text)
    if match is None:
        raise UpError(f"--device {text}: expected cpu, cuda:0 or cuda:0,1")
    devices = [f"cuda:{int(number)}" for number in match[1].replace("cuda:", "").split(",")]
    if len(set(devices)) < len(devices):
        raise UpError(f"--device {text}: a device is named twice")
    return devices


def parse_aliases(texts: Sequence[str], models: Sequence[str]) -> dict[str, str]:
    """Models by alias, as `NAME=MODEL` says each; UpError when one leads to none of `models`."""
    targets: dict[str, str] = {}
    for text in texts:
        name, equals, target = text.partition("=")
        if not equals:
            raise UpError(f"--alias {text}: expected NAME=MODEL")
        if name in targets:
            raise UpError(f"--alias {text}: {name} means {targets[name]} already")
        targets[name] = target
    try:
        ends = Aliases(targets).targets()
    except AliasError as error:
        raise UpError(f"--alias {error.name}={targets[error.name]}: {error.message}") from error
    for name, target in ends.items():
        if target not in models:
            raise UpError(f"--alias {name}={target}: there is no such model here, but {', '.join(models)}")
    return targets


def model_entry(name: str, dtype: str | None, ranks: int, devices: list[str] | None) -> dict[str, Any]:
    """The neuron's settings of the model that `--model NAME` means."""
    entry: dict[str, Any] = {"id": name, "ranks": ranks, "pin": True}
    if dtype is not None:
        entry["dtype"] = dtype
    if devices == ["cpu"]:
        entry["devices"] = devices
    folder = Path(name).expanduser()
    if name == "simulated":
        entry["simulated"] = {}
    elif folder.suffix == GGUF and not folder.is_dir():
        if not folder.is_file():
            raise UpError(f"--model {name}: there is no such file")
        entry |= {"id": PART.sub("", folder.stem), "path": str(folder.absolute())}
    elif name != "demo" and folder.is_file():
        raise UpError(f"--model {name}: it is a file, and neither a checkpoint's folder nor a GGUF file")
    elif name != "demo" and (folder.is_dir() or name.startswith(("/", ".", "~"))):
        if not folder.is_dir():
            raise UpError(f"--model {name}: there is no such folder")
        if not (folder / "config.json").is_file() and not any(folder.glob(f"*{GGUF}")):
            raise UpError(f"--model {name}: the folder holds neither a config.json nor a GGUF file")
        entry |= {"id": folder.resolve().name, "path": str(folder.resolve())}
    return entry


def free_socket(host: str, port: int) -> socket.socket:
    """A socket bound to `host:port` (0: a free one), as proof that a server can have it.

    Raises:
        UpError: naming the address.
    """
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UpError(f"--listen: {host} is no address ({error.strerror})") from error
    probe = socket.socket(family, kind)
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind(address)
    except OSError as error:
        probe.close()
        if error.errno == errno.EADDRINUSE:
            raise UpError(f"port {port} on {host} is in use; choose another with --listen") from error
        raise UpError(f"--listen: cannot listen on {host}:{port}: {error.strerror}") from error
    return probe


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
