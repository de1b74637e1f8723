"""The neuron's configuration: what may stand in its YAML or TOML file, and what it means."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from ipc.model_settings import ModelSettings, check_devices, check_models
from ipc.settings import ConfigError, Duration, Period, Size, Timeout, load_settings

Count = Annotated[int, Meta(ge=1)]

_ENDPOINT = re.compile(r"ipc://.+|tcp://(\[[0-9A-Fa-f:.%*]+\]|[^:/\[\]\s]+):(\d{1,5}|\*)")


class Cpu(Struct, frozen=True, kw_only=True):
    """Limits on the CPU as a device; null: what the kernel lets this process have."""

    cores: Count | None = None
    memory: Size | None = None


class Queue(Struct, frozen=True, kw_only=True):
    """Requests that may wait for one model, and how long one may wait while the model is ready."""

    limit: Count = 512
    account_limit: Count | None = None  # of one account; null: half of them
    wait_seconds: Timeout = 120.0

    @property
    def most_of_one_account(self) -> int:
        """Requests of one account that may wait for one model."""
        return self.account_limit if self.account_limit is not None else (self.limit + 1) // 2


class Memory(Struct, frozen=True, kw_only=True):
    """Memory that one model holds and another waits for."""

    wait_seconds: Timeout = 120.0  # until whoever waits is refused
    turn_seconds: Duration = 10.0  # that a model serves before it leaves for another
    resize_pools: bool = False  # pools of keys and values shrink for another model, before anybody leaves


class QuantisedCache(Struct, frozen=True, kw_only=True):
    """Copies on disk of what `quantization` makes of models."""

    path: str | None = None  # a folder; null: quantised/ in the cache folder of the service, or of the user
    max_size: Size = 64 << 30  # of all of them; 0: none is kept


class NeuronConfig(Struct, frozen=True, kw_only=True):
    """Everything a neuron can be told. Every key has a default: an empty file is a working configuration."""

    name: Annotated[str, Meta(min_length=1)] = field(default_factory=socket.gethostname)
    listen: str = "tcp://127.0.0.1:13131"
    insecure: bool = False  # allow a listener off loopback without keys
    key_file: str | None = None  # the neuron's secret key
    allowed_keys: list[str] = []  # public keys of gateways: files, or the 40 characters themselves
    model_folders: list[str] = []  # searched for <folder>/<id>
    hf_cache: str | None = None  # null: where Hugging Face tools put it
    only_configured: bool = False  # serve `models` and nothing else that is found on this host
    devices: list[str] | None = None  # null: all that are found
    cpu: Cpu = Cpu()
    queue: Queue = Queue()
    memory: Memory = Memory()
    quantised_cache: QuantisedCache = QuantisedCache()
    keep_alive: Period = -1.0  # of models that do not say; below 0: until their memory is wanted
    # Bytes of the host's memory for weights of models that leave; null: half of what is free at the start, if
    # there is a GPU, else none.
    parking: Size | None = None
    default_model: str | None = None  # loaded at start, and again when the one that it left for is idle
    default_after_seconds: Duration = 60.0  # without a request, that is
    standby: bool = True  # keep a warm process on each device that a model may be loaded on
    step_deadline_seconds: Timeout = 120.0
    load_deadline_seconds: Timeout = 1800.0
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"
    models: list[ModelSettings] = []


def load(path: str | Path) -> NeuronConfig:
    """Read and check the file at `path`.

    Raises:
        ConfigError: naming file, key and value.
    """
    config = load_settings(path, NeuronConfig)
    check(config, path)
    return config


def check(config: NeuronConfig, source: str | Path) -> None:
    """Check what types alone cannot say, also for a configuration that was made in code.

    Args:
        source: where it comes from, for the error.

    Raises:
        ConfigError: naming key and value.
    """
    endpoint = _ENDPOINT.fullmatch(config.listen)
    port = endpoint and endpoint[2]
    if endpoint is None or (port and port != "*" and int(port) > 65535):
        raise ConfigError(source, "listen", f"Expected tcp://host:port or ipc://path, not {config.listen!r}")
    check_devices(config.devices, "devices", source)
    check_models({f"models[{i}]": model for i, model in enumerate(config.models)}, config.devices, source)
