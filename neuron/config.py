"""The neuron's configuration: what may stand in its YAML or TOML file, and what it means."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from ipc.settings import ConfigError, Size, load_settings
from ipc.worker_messages import FailurePlan

Name = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\s:/]+$")]
Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Duration = Annotated[float, Meta(ge=0)]

_DEVICE = re.compile(r"cpu|cuda:(0|[1-9]\d*)")
_ENDPOINT = re.compile(r"ipc://.+|tcp://(\[[0-9A-Fa-f:.%*]+\]|[^:/\[\]\s]+):(\d{1,5}|\*)")


class Cpu(Struct, frozen=True, kw_only=True):
    """Limits on the CPU as a device; null: what the kernel lets this process have."""

    cores: Count | None = None
    memory: Size | None = None


class Queue(Struct, frozen=True, kw_only=True):
    """Requests that may wait for one model, and how long one may wait while the model is ready."""

    limit: Count = 256
    wait_seconds: Seconds = 120.0


class Memory(Struct, frozen=True, kw_only=True):
    """Memory that one model holds and another waits for."""

    wait_seconds: Seconds = 120.0  # until whoever waits is refused
    turn_seconds: Duration = 10.0  # that a model serves before it leaves for another


class Simulated(Struct, frozen=True, kw_only=True):
    """The simulated engine in place of a checkpoint: its speed, size and failure plan."""

    step_seconds: Duration = 0.0
    prefill_tokens_per_second: Duration = 0.0  # 0: prefill takes no time
    load_seconds: Duration = 0.0
    memory: Size = 0  # on each rank
    context_length: Count = 32768
    failure: FailurePlan | None = None


class ModelSettings(Struct, frozen=True, kw_only=True):
    """One model as the user wants it served; null: the neuron decides."""

    id: Annotated[str, Meta(min_length=1)]
    path: str | None = None  # a checkpoint folder; null: looked up by id
    dtype: Literal["bfloat16", "float16", "float32"] | None = None  # null: the checkpoint's
    quantization: Literal["q8", "q6", "q4", "int8", "fp8"] | None = None  # of weights stored in a plain type
    exact: bool = False  # the same bits whatever else the engine does
    ranks: Count = 1
    devices: list[str] | None = None  # one a rank, or just "cpu"
    pin: bool = False  # loaded at start, never evicted
    priority: int = 100  # higher stays longer
    context_length: Count | None = None
    max_sequences: Count = 32
    max_step_tokens: Count | None = None
    kv_memory: Size | None = None  # bytes of the KV pool on each rank
    adapters: dict[Name, str] = {}  # LoRA adapters by their names: folders; served as `ID:NAME`
    tool_format: str | None = None  # how it writes tool calls; null: as its chat template says
    simulated: Simulated | None = None


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
    standby: bool = True  # keep a warm process on each device that a model may be loaded on
    step_deadline_seconds: Seconds = 120.0
    load_deadline_seconds: Seconds = 1800.0
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
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
    _check_devices(config.devices, "devices", source)
    seen: dict[str, int] = {}
    for i, model in enumerate(config.models):
        key = f"models[{i}]"
        if model.id in seen:
            raise ConfigError(
                source, f"{key}.id", f"{model.id!r} is the id of models[{seen[model.id]}] already"
            )
        seen[model.id] = i
        if model.adapters and (model.exact or model.simulated is not None):
            what = "exact" if model.exact else "simulated"
            raise ConfigError(source, f"{key}.adapters", f"a model that is {what} has none")
        for name in model.adapters:
            if any(other.id == f"{model.id}:{name}" for other in config.models):
                raise ConfigError(source, f"{key}.adapters.{name}", f"a model is called {model.id}:{name}")
        if model.path is not None and model.simulated is not None:
            raise ConfigError(source, f"{key}.path", f"{model.path!r} is never read: the model is simulated")
        _check_devices(model.devices, f"{key}.devices", source)
        _check_placement(model, config.devices, key, source)
        if model.tool_format is not None:
            _check_tool_format(model.tool_format, f"{key}.tool_format", source)


def _check_tool_format(name: str, key: str, source: str | Path) -> None:
    from neuron.text.formats.registry import BY_NAME  # not for everybody who reads a configuration

    if name not in BY_NAME:
        raise ConfigError(source, key, f"{name!r} is none of {', '.join(sorted(BY_NAME))}")


def _check_devices(devices: list[str] | None, key: str, source: str | Path) -> None:
    if devices == []:
        raise ConfigError(source, key, "the list is empty; leave it out to use every device")
    for i, device in enumerate(devices or []):
        if not _DEVICE.fullmatch(device):
            raise ConfigError(source, f"{key}[{i}]", f"Expected cpu or cuda:N, not {device!r}")
        if device in devices[:i]:
            raise ConfigError(source, f"{key}[{i}]", f"{device!r} is given twice")


def _check_placement(model: ModelSettings, allowed: list[str] | None, key: str, source: str | Path) -> None:
    devices = model.devices
    if devices is None:
        return
    if allowed is not None and (outside := [device for device in devices if device not in allowed]):
        raise ConfigError(
            source,
            f"{key}.devices",
            f"{outside[0]!r} is not one of the neuron's: {', '.join(allowed)}",
        )
    if devices != ["cpu"] and ("cpu" in devices or len(devices) < model.ranks):
        raise ConfigError(
            source,
            f"{key}.devices",
            f"{', '.join(devices)} cannot take {model.ranks} ranks: name cpu alone, or one GPU a rank",
        )
