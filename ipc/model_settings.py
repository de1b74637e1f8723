"""How a model is to be served: the same keys in a neuron's file, in a fleet's catalogue, and between them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Literal

from msgspec import Meta, Struct

from ipc.settings import ConfigError, Duration, Period, Size

Name = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\s:/]+$")]
Count = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]

MAX_MODELS = 2000  # of a fleet's catalogue, which a neuron reads within some milliseconds
MAX_MODEL_ID = 1024  # characters; it may be a folder's path

Dtype = Literal["bfloat16", "float16", "float32"]  # that a model computes in
Quantization = Literal["q8", "q6", "q4", "int8", "fp8"]  # of weights that are stored in a plain type
KVCacheDtype = Literal["int8", "fp8"]  # in which keys and values may be kept

# How tokens are guessed: by what followed the same ones before, in the same text; or by a head of the model.
Speculation = Literal["ngram", "mtp"]

HUB = "hf:"  # the scheme of a source in the Hugging Face cache

# The formats in which models write tool calls, by their names; `neuron.text.formats.registry` has them.
TOOL_FORMATS = (
    "apertus",
    "apriel",
    "command_a",
    "command_r",
    "deepseek_v3",
    "deepseek_v31",
    "deepseek_v32",
    "deepseek_v4",
    "falcon_h1",
    "functionary",
    "gemma4",
    "gigachat",
    "glm",
    "granite",
    "harmony",
    "hermes",
    "hunyuan",
    "hy3",
    "kimi",
    "lfm2",
    "llama3_json",
    "minicpm5",
    "minimax_m1",
    "minimax_m2",
    "minimax_m3",
    "mistral",
    "mistral_args",
    "muse",
    "nemotron",
    "olmo3",
    "phi4",
    "pythonic",
    "qwen3_coder",
    "seed_oss",
    "solar_open",
)

# What models write around their thoughts, by name; `neuron.text.reasoning` has it.
REASONING_FORMATS = (
    "none",
    "apertus",
    "apriel",
    "command_a",
    "ernie",
    "gemma4",
    "hunyuan",
    "hy3",
    "kimi_vl",
    "magistral",
    "minimax_m3",
    "north",
    "seed_oss",
    "think",
)

_DEVICE = re.compile(r"cpu|cuda:(0|[1-9]\d*)")
_REPOSITORY = re.compile(r"[^\s:/]+/[^\s:/]+(:[^\s:/]+)?")
_SOURCE = re.compile(rf"{HUB}{_REPOSITORY.pattern}|[^:]*/[^:]*")


class FailurePlan(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a simulated engine does wrong, and when. Steps count from 1; None is never."""

    rank: int = 0
    fail_load: str | None = None  # refuse to load, with this message
    out_of_memory_in_load: bool = False
    die_at_step: int | None = None  # SIGKILL itself
    hang_at_step: int | None = None  # never come back from that step
    error_at_step: int | None = None  # raise in that step
    out_of_memory_at_step: int | None = None  # and not for good: the next step is as any other
    epochs: int | None = None  # only in the first so many epochs; None: in all


class Simulated(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The simulated engine in place of a checkpoint: its speed, size and failure plan."""

    step_seconds: Duration = 0.0
    prefill_tokens_per_second: Annotated[float, Meta(ge=0)] = 0.0  # 0: prefill takes no time
    load_seconds: Duration = 0.0
    memory: Size = 0  # on each rank
    context_length: Count = 32768
    failure: FailurePlan | None = None


class SamplingDefaults(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How tokens are chosen where a request does not say; null: as the checkpoint says."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    max_tokens: Count | None = None  # of an answer


class ModelSettings(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model as the user wants it served; null: the neuron decides."""

    id: Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_ID)]
    path: str | None = None  # a checkpoint folder or a GGUF file; null: looked up by source or id
    source: str | None = None  # hf:ORG/NAME, hf:ORG/NAME:Q4_K_M, or a path
    dtype: Dtype | None = None  # null: the checkpoint's
    quantization: Quantization | None = None  # of weights stored in a plain type
    exact: bool = False  # the same bits whatever else the engine does
    ranks: Count = 1
    devices: list[str] | None = None  # one a rank, or just "cpu"
    min_device_memory: Size = 0  # a device with less in all is not used for it
    min_memory: Size = 0  # a host that has less in all, on the devices of its ranks, does not serve it
    pin: bool = False  # loaded at start, never evicted
    preload: bool = False  # loaded at start, if nobody has to leave for it, and evicted as any other
    priority: int = 100  # its class: it leaves for no model with a lower one
    keep_alive: Period | None = None  # without a request, until it leaves; below 0: never; null: the neuron's
    context_length: Count | None = None
    max_output: Count | None = None  # tokens of one answer, whatever a request wants
    max_sequences: Count = 32
    max_step_tokens: Count | None = None
    kv_memory: Size | None = None  # bytes of the KV pool on each rank
    adapters: dict[Name, str] = {}  # LoRA adapters by their names: folders; served as `ID:NAME`
    sampling: SamplingDefaults = SamplingDefaults()
    tool_format: str | None = None  # how it writes tool calls; null: as its chat template says
    reasoning_format: str | None = None  # what it writes around its thoughts; null: the same
    simulated: Simulated | None = None
    max_adapters: Count = 8  # in memory at once; who was used longest ago makes way
    host_state_memory: Size = 0  # of the host, for states that leave the device of a rank, at most
    pull: bool = False  # a host without its files fetches them from the hub when somebody asks for it
    kv_cache_dtype: KVCacheDtype | None = None  # of keys and values; null: the model's own type
    speculation: Speculation | None = None  # tokens are guessed, and several checked in one step

    @property
    def folder(self) -> str | None:
        """The path that was given for it, where one was."""
        if self.path is None and self.source is not None and not self.source.startswith(HUB):
            return self.source
        return self.path

    @property
    def name_on_hub(self) -> str | None:
        """The name by which it is looked up, where its source is another than its id."""
        is_hub = self.source is not None and self.source.startswith(HUB)
        return self.source.removeprefix(HUB) if is_hub else None


# What may change while a model is loaded, without another load of it.
LIVE = frozenset(
    (
        *("min_device_memory", "min_memory", "pin", "preload", "priority", "keep_alive", "max_output"),
        *("sampling", "pull"),
    )
)


def changed_keys(before: ModelSettings, after: ModelSettings) -> list[str]:
    """The keys in which the two differ."""
    names = ModelSettings.__struct_fields__
    return [name for name in names if getattr(before, name) != getattr(after, name)]


def check_models(models: Mapping[str, ModelSettings], devices: Collection[str] | None, source: str) -> None:
    """Check what types alone cannot say.

    Args:
        models: by the dotted key that each has in its file.
        devices: those that there are; None: not known.
        source: the file, for the error.

    Raises:
        ConfigError: naming file, key and value.
    """
    seen: dict[str, str] = {}
    for key, model in models.items():
        if model.id in seen:
            raise ConfigError(source, f"{key}.id", f"{model.id!r} is the id of {seen[model.id]} already")
        seen[model.id] = key
    for key, model in models.items():
        for name in model.adapters:
            if f"{model.id}:{name}" in seen:
                raise ConfigError(source, f"{key}.adapters.{name}", f"a model is called {model.id}:{name}")
        _check_one(model, devices, key, source)


def check_devices(devices: list[str] | None, key: str, source: str) -> None:
    """See that each is a name of a device, and no two are the same. ConfigError where not."""
    if devices == []:
        raise ConfigError(source, key, "the list is empty; leave it out to use every device")
    for i, device in enumerate(devices or []):
        if not _DEVICE.fullmatch(device):
            raise ConfigError(source, f"{key}[{i}]", f"Expected cpu or cuda:N, not {device!r}")
        if device in devices[:i]:
            raise ConfigError(source, f"{key}[{i}]", f"{device!r} is given twice")


def _check_one(model: ModelSettings, devices: Collection[str] | None, key: str, source: str) -> None:
    if model.adapters and (model.exact or model.simulated is not None):
        what = "exact" if model.exact else "simulated"
        raise ConfigError(source, f"{key}.adapters", f"a model that is {what} has none")
    if model.kv_cache_dtype is not None and model.simulated is not None:
        text = f"{model.kv_cache_dtype!r} is of no use: the model is simulated, and keeps no keys and values"
        raise ConfigError(source, f"{key}.kv_cache_dtype", text)
    if model.speculation is not None and model.simulated is not None:
        text = f"{model.speculation!r} is never used: the model is simulated"
        raise ConfigError(source, f"{key}.speculation", text)
    given = [name for name in ("path", "source") if getattr(model, name) is not None]
    if given and model.simulated is not None:
        value = getattr(model, given[0])
        raise ConfigError(source, f"{key}.{given[0]}", f"{value!r} is never read: the model is simulated")
    if len(given) == 2:
        raise ConfigError(source, f"{key}.source", f"there is a path, too: {model.path!r}; give one of them")
    if model.source is not None and not _SOURCE.fullmatch(model.source):
        text = f"Expected hf:ORG/NAME, hf:ORG/NAME:QUANTISATION or a path, not {model.source!r}"
        raise ConfigError(source, f"{key}.source", text)
    if model.pull and (model.simulated is not None or model.folder is not None):
        raise ConfigError(source, f"{key}.pull", "its source is no repository of a hub, so nothing is pulled")
    if model.pull and not _REPOSITORY.fullmatch(model.name_on_hub or model.id):
        text = f"{model.id!r} is no repository of a hub: give one as source, hf:ORG/NAME"
        raise ConfigError(source, f"{key}.pull", text)
    check_devices(model.devices, f"{key}.devices", source)
    _check_placement(model, devices, key, source)
    for name, known in (("tool_format", TOOL_FORMATS), ("reasoning_format", REASONING_FORMATS)):
        value = getattr(model, name)
        if value is not None and value not in known:
            raise ConfigError(source, f"{key}.{name}", f"{value!r} is none of {', '.join(known)}")


def _check_placement(model: ModelSettings, allowed: Collection[str] | None, key: str, source: str) -> None:
    devices = model.devices
    if devices is None:
        return
    if allowed is not None and (outside := [device for device in devices if device not in allowed]):
        text = f"{outside[0]!r} is not one of the neuron's: {', '.join(allowed)}"
        raise ConfigError(source, f"{key}.devices", text)
    if devices != ["cpu"] and ("cpu" in devices or len(devices) < model.ranks):
        text = f"{', '.join(devices)} cannot take {model.ranks} ranks: name cpu alone, or one GPU a rank"
        raise ConfigError(source, f"{key}.devices", text)
