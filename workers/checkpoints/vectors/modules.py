"""`modules.json` and what it names: how sentence-transformers makes a vector of hidden states.

https://sbert.net/docs/package_reference/sentence_transformer/modules.html. What is not done here is refused,
naming the module or the key: a vector that is made another way is no better than a random one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec

from workers.checkpoints.files import read_json, read_text, refuse
from workers.checkpoints.safetensors import Tensor, read_tensors
from workers.checkpoints.vectors.stages import Pooling, Stage, StageActivation

MODULES = "modules.json"
OURS = "sentence_transformers."
# what older files say by flags, and newer ones by `pooling_mode`
FLAGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
}
NAMES: dict[str, Pooling] = {"lasttoken": "last", "mean_sqrt_len_tokens": "mean_sqrt_len"}
SPEAKS_OF_CUTTING = re.compile(r"matryoshka|\bMRL\b", re.IGNORECASE)


class Embedder(msgspec.Struct, frozen=True, kw_only=True):
    """How a text becomes a vector."""

    pooling: Pooling
    stages: tuple[Stage, ...] = ()  # Dense modules
    normalize: bool = True  # to length 1, where a request does not say
    size: int  # of a vector
    prompts: dict[str, str] = {}  # by name: texts that are put before the input
    default_prompt: str | None = None  # a name
    max_tokens: int | None = None  # of an input; None: as many as the model has positions for
    cuts: tuple[int, ...] | None = None  # sizes that a vector may be cut to; none: any; None: it may not


class Module(msgspec.Struct):
    """An entry of `modules.json`."""

    type: str
    path: str = ""

    @property
    def kind(self) -> str:
        """The name of its class, wherever the version that wrote the file had it."""
        return self.type.rpartition(".")[2] if self.type.startswith(OURS) else self.type


class _Transformer(msgspec.Struct):
    max_seq_length: int | None = None
    do_lower_case: bool = False


class _Dense(msgspec.Struct):
    in_features: int
    out_features: int
    bias: bool = True
    activation_function: str = "torch.nn.modules.activation.Tanh"


class _Settings(msgspec.Struct):
    prompts: dict[str, str] | None = None
    default_prompt_name: str | None = None


def read_modules(folder: Path) -> list[Module]:
    """The modules in their order; none where there is no such file."""
    path = folder / MODULES
    if not path.exists():
        return []
    modules = read_json(path, list[Module])
    if not modules or modules[0].kind != "Transformer":
        refuse(path, "does not begin with a Transformer")
    for module in modules:
        if Path(module.path).name != module.path or module.path == "..":
            refuse(path, f"names a module in {module.path!r}, which is no folder beside it")
    if modules[0].path:
        refuse(
            path, f"the Transformer is in a folder of its own, {modules[0].path!r}, which is not supported"
        )
    return modules


def read_embedder(
    folder: Path, modules: list[Module], hidden_size: int, given: Mapping[str, Any]
) -> tuple[Embedder, dict[str, Tensor]]:
    """What the modules say, and the tensors of those that have some.

    Args:
        modules: those of a model that embeds; none: vectors are means, as sentence-transformers has it then.
        given: `config.json`.

    Raises:
        CortexError: MODEL_LOAD_FAILED, naming what is not supported.
    """
    path = folder / MODULES
    pooling: Pooling | None = None if modules else "mean"
    stages: list[Stage] = []
    normalize = not modules
    tensors: dict[str, Tensor] = {}
    size = hidden_size
    for module in modules[1:]:
        if normalize:
            refuse(path, f"{module.kind} after Normalize is not supported")
        match module.kind:
            case "Pooling" if pooling is None:
                pooling = _pooling(folder / module.path / "config.json")
            case "Dense" if pooling is not None:
                stage = _dense(folder / module.path / "config.json", module.path)
                if stage.inputs != size:
                    refuse(path, f"{module.path} takes {stage.inputs} dimensions, and gets {size}")
                size = stage.outputs
                stages.append(stage)
                found = read_tensors(folder / module.path)
                tensors |= {f"{module.path}.{name}": tensor for name, tensor in found.items()}
            case "Normalize" if pooling is not None:
                normalize = True
            case kind:
                refuse(path, f"the module {kind} is not supported, at least not in that place")
    if pooling is None:
        refuse(path, "has no Pooling")
    limits, settings = _limits(folder), _settings(folder)
    if settings.default_prompt_name and settings.default_prompt_name not in (settings.prompts or {}):
        refuse(
            folder / "config_sentence_transformers.json",
            f"default_prompt_name {settings.default_prompt_name!r} is none of its prompts",
        )
    embedder = Embedder(
        pooling=pooling,
        stages=tuple(stages),
        normalize=normalize,
        size=size,
        prompts=settings.prompts or {},
        default_prompt=settings.default_prompt_name,
        max_tokens=limits.max_seq_length,
        cuts=_cuts(folder, given),
    )
    return embedder, tensors


def _pooling(path: Path) -> Pooling:
    """The one way of pooling. Several, whose vectors would be put side by side, are not supported."""
    given = read_json(path, dict[str, Any])
    if given.get("include_prompt", True) is not True:
        refuse(path, "include_prompt false is not supported: prompts count in the mean")
    name = given.get("pooling_mode")
    if not isinstance(name, str | None):
        refuse(path, f"pooling_mode {name!r} is no name")
    chosen = [name] if name else [key for key, on in given.items() if key.startswith("pooling_mode_") and on]
    if len(chosen) != 1:
        refuse(
            path, f"wants {len(chosen)} ways of pooling ({', '.join(map(str, chosen))}), and one is supported"
        )
    found = FLAGS.get(chosen[0]) or NAMES.get(chosen[0], chosen[0])
    if found not in get_args(Pooling):
        refuse(path, f"{chosen[0]} is not supported; there are {', '.join(get_args(Pooling))}")
    return found


def _dense(path: Path, name: str) -> Stage:
    file = read_json(path, _Dense)
    activation = file.activation_function.rpartition(".")[2].lower()
    if activation not in get_args(StageActivation):
        refuse(path, f"activation_function {file.activation_function} is not supported")
    return Stage(f"{name}.linear", file.in_features, file.out_features, file.bias, activation)


def _limits(folder: Path) -> _Transformer:
    path = folder / "sentence_bert_config.json"
    limits = read_json(path, _Transformer) if path.exists() else _Transformer()
    if limits.do_lower_case:
        refuse(path, "do_lower_case is not supported: tokenizers say by themselves whether case counts")
    if limits.max_seq_length is not None and limits.max_seq_length < 1:
        refuse(path, f"max_seq_length is {limits.max_seq_length}")
    return limits


def _settings(folder: Path) -> _Settings:
    path = folder / "config_sentence_transformers.json"
    return read_json(path, _Settings) if path.exists() else _Settings()


def _cuts(folder: Path, given: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Where vectors may be cut: as `config.json` says (in vLLM's words), or its README, of any size."""
    sizes = given.get("matryoshka_dimensions")
    if isinstance(sizes, list) and sizes and all(type(size) is int and size > 0 for size in sizes):
        return tuple(sorted(sizes))
    if given.get("is_matryoshka") is True:
        return ()
    path = folder / "README.md"
    return () if path.exists() and SPEAKS_OF_CUTTING.search(read_text(path)) else None
