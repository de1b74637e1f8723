"""What a checkpoint folder in Hugging Face format holds, from its small files and headers alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec

from ipc.errors import Code, CortexError
from ipc.messages import Sampling
from workers.checkpoints.families.llama import EMBEDDING, DecoderShape
from workers.checkpoints.safetensors import INDEX, SINGLE, Tensor, read_json, read_tensors, refuse

Dtype = Literal["bfloat16", "float32"]

DTYPE_BYTES: dict[Dtype, int] = {"bfloat16": 2, "float32": 4}
ARCHITECTURES = ("LlamaForCausalLM", "Qwen3ForCausalLM")
WEIGHT_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
TOKENIZER = "tokenizer.json"
QWEN3_HEAD_DIM = 128  # where config.json says nothing, as in transformers
MOST_RANKS = 8  # of which `check_ranks` tells what would work

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class _Config(msgspec.Struct):
    """What `config.json` says besides shapes."""

    architectures: list[str]
    eos_token_id: int | list[int] | None = None
    dtype: str | None = None  # since transformers 5; before, it was torch_dtype
    torch_dtype: str | None = None
    quantization_config: dict[str, Any] | None = None


class _Generation(msgspec.Struct):
    eos_token_id: int | list[int] | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0)] | None = None
    top_k: int | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0)] | None = None


class _AddedToken(msgspec.Struct):
    content: str
    id: int = -1


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


class _TokenizerConfig(msgspec.Struct):
    bos_token: str | _AddedToken | None = None
    eos_token: str | _AddedToken | None = None
    unk_token: str | _AddedToken | None = None
    sep_token: str | _AddedToken | None = None
    pad_token: str | _AddedToken | None = None
    cls_token: str | _AddedToken | None = None
    mask_token: str | _AddedToken | None = None
    chat_template: str | list[_NamedTemplate] | None = None


class _Tokenizer(msgspec.Struct):
    added_tokens: list[_AddedToken] = []


class _TemplateFile(msgspec.Struct):
    chat_template: str | list[_NamedTemplate]


@dataclass(frozen=True)
class ModelCard:
    """A model on disk that can be loaded. Everything here was checked against the headers of its files."""

    folder: Path
    architecture: str  # one of ARCHITECTURES
    config: dict[str, Any]  # config.json as it is
    shapes: DecoderShape
    dtype: Dtype  # the checkpoint's own; float16 is served as bfloat16
    tensors: dict[str, Tensor]
    tokenizer_file: Path
    chat_templates: dict[str, str]  # by name; the first one is the default
    special_tokens: dict[str, str]  # bos_token, eos_token, ..., for templates
    eos_ids: list[int]  # tokens that end an answer
    defaults: Sampling  # of generation_config.json; None where it says nothing
    created: int  # Unix time

    @property
    def context_length(self) -> int:
        """Tokens that the model was made for."""
        return self.shapes.max_position_embeddings

    @property
    def chat_template(self) -> str | None:
        """The default template; None for a model that does not chat."""
        return next(iter(self.chat_templates.values()), None)

    @cached_property
    def chat(self) -> bool:
        """Whether it takes conversations."""
        return bool(self.chat_templates)

    @cached_property
    def tools(self) -> bool:
        """Whether a template mentions tools."""
        return any(re.search(r"\btools\b", text) for text in self.chat_templates.values())

    @cached_property
    def reasoning(self) -> bool:
        """Whether a template knows thinking."""
        return any("think" in text for text in self.chat_templates.values())

    def bytes_per_rank(self, world_size: int, dtype: Dtype | None = None) -> list[int]:
        """Bytes of weights on each rank, exactly; `dtype` None is the checkpoint's own."""
        self.check_ranks(world_size)
        elements = sum(
            self.shapes.elements_on_rank(weight, world_size)
            for weight in self.shapes.weights(self.architecture == "Qwen3ForCausalLM")
        )
        return [elements * DTYPE_BYTES[dtype or self.dtype]] * world_size

    def kv_bytes_per_token(self, world_size: int, dtype: Dtype | None = None) -> int:
        """Bytes of keys and values that one token takes on each rank."""
        heads = self.shapes.kv_heads_on_rank(world_size)
        width = heads * self.shapes.head_size * DTYPE_BYTES[dtype or self.dtype]
        return 2 * self.shapes.num_hidden_layers * width

    def check_ranks(self, world_size: int) -> None:
        """See that the model splits into so many ranks.

        Raises:
            CortexError: MODEL_LOAD_FAILED, naming the numbers of ranks that work.
        """
        if world_size < 1 or not self.shapes.splits_into(world_size):
            works = [str(n) for n in range(1, MOST_RANKS + 1) if self.shapes.splits_into(n)]
            raise CortexError(
                Code.MODEL_LOAD_FAILED,
                f"{self.folder} cannot be split into {world_size} ranks: it has "
                f"{self.shapes.num_attention_heads} attention heads, {self.shapes.kv_heads} KV heads and an "
                f"intermediate size of {self.shapes.intermediate_size}. What works: {', '.join(works)}",
            )


def inspect(folder: Path | str) -> ModelCard:
    """Read what is in `folder`, and see that it is whole.

    Raises:
        CortexError: MODEL_LOAD_FAILED naming the file that is missing, damaged or not supported.
    """
    folder = Path(folder)
    path = folder / "config.json"
    config = read_json(path, dict[str, Any])
    said = read_json(path, _Config)
    architecture = next((name for name in said.architectures if name in ARCHITECTURES), None)
    if architecture is None:
        refuse(
            path,
            f"the architecture {', '.join(said.architectures) or 'none'} is not supported; "
            f"there are {', '.join(ARCHITECTURES)}",
        )
    if said.quantization_config is not None:
        method = said.quantization_config.get("quant_method", "unknown")
        refuse(path, f"the weights are quantised ({method}), which is not supported")
    shapes = read_json(path, DecoderShape)
    if shapes.head_dim is None and architecture == "Qwen3ForCausalLM":
        shapes = msgspec.structs.replace(shapes, head_dim=QWEN3_HEAD_DIM)
    tensors = read_tensors(folder)
    _check_tensors(folder, shapes, architecture, tensors)
    tokenizer_file = folder / TOKENIZER
    if not tokenizer_file.exists():
        refuse(tokenizer_file, "is missing")
    tokens = _optional(folder / "tokenizer_config.json", _TokenizerConfig)
    special = {name: _content(token) for name in _SPECIAL if (token := getattr(tokens, name)) is not None}
    generation = _optional(folder / "generation_config.json", _Generation)
    return ModelCard(
        folder=folder,
        architecture=architecture,
        config=config,
        shapes=shapes,
        dtype=_dtype(said, tensors),
        tensors=tensors,
        tokenizer_file=tokenizer_file,
        chat_templates=_templates(folder, tokens),
        special_tokens=special,
        eos_ids=_eos_ids(generation, said, special, tokenizer_file, shapes.vocab_size),
        defaults=_defaults(generation),
        created=int(path.stat().st_mtime),
    )


def seems_loadable(folder: Path) -> bool:
    """Whether `folder` holds what `inspect` needs, by file names and architecture: cheap enough for lists."""
    if not ((folder / SINGLE).exists() or (folder / INDEX).exists()) or not (folder / TOKENIZER).exists():
        return False
    try:
        return any(name in ARCHITECTURES for name in read_json(folder / "config.json", _Config).architectures)
    except CortexError:
        return False


def _check_tensors(folder: Path, shapes: DecoderShape, architecture: str, tensors: dict[str, Tensor]) -> None:
    """See that every tensor is there, in the shape that config.json promises."""
    for weight in shapes.weights(architecture == "Qwen3ForCausalLM"):
        tensor = tensors.get(weight.name)
        if tensor is None:
            refuse(folder, f"the tensor {weight.name!r} is in none of its files")
        if tensor.shape != weight.shape:
            refuse(
                tensor.file,
                f"{weight.name!r} is {list(tensor.shape)}, and config.json wants {list(weight.shape)}",
            )
        if tensor.dtype not in WEIGHT_DTYPES:
            refuse(
                tensor.file,
                f"{weight.name!r} is {tensor.dtype}, and weights are {', '.join(WEIGHT_DTYPES)}",
            )


def _dtype(config: _Config, tensors: dict[str, Tensor]) -> Dtype:
    name = config.dtype or config.torch_dtype or WEIGHT_DTYPES[tensors[EMBEDDING].dtype]
    return name if name in get_args(Dtype) else "bfloat16"


def _eos_ids(
    generation: _Generation, config: _Config, special: dict[str, str], tokenizer_file: Path, vocabulary: int
) -> list[int]:
    """The ids of generation_config.json, else of config.json, and the tokenizer's own end token."""
    said = generation.eos_token_id if generation.eos_token_id is not None else config.eos_token_id
    ids = said if isinstance(said, list) else [] if said is None else [said]
    if "eos_token" in special:
        added = read_json(tokenizer_file, _Tokenizer).added_tokens
        ids = ids + [token.id for token in added if token.content == special["eos_token"]]
    return [token for token in dict.fromkeys(ids) if 0 <= token < vocabulary]


def _defaults(generation: _Generation) -> Sampling:
    return Sampling(
        temperature=0.0 if generation.do_sample is False else generation.temperature,
        top_k=None if generation.top_k is None else max(0, generation.top_k),
        top_p=generation.top_p,
        min_p=generation.min_p,
        repetition_penalty=generation.repetition_penalty,
    )


def _templates(folder: Path, tokens: _TokenizerConfig) -> dict[str, str]:
    """Chat templates by name, the default first, from the first of three places that has any."""
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return {"default": path.read_text(encoding="utf-8")}
        except (OSError, UnicodeDecodeError) as error:
            refuse(path, f"cannot be read: {error}")
    path = folder / "chat_template.json"
    found = read_json(path, _TemplateFile).chat_template if path.exists() else tokens.chat_template
    if not found:
        return {}
    if isinstance(found, str):
        return {"default": found}
    templates = {each.name: each.template for each in found}
    return dict(sorted(templates.items(), key=lambda item: item[0] != "default"))


def _content(token: str | _AddedToken) -> str:
    return token if isinstance(token, str) else token.content


def _optional(path: Path, kind: type[Any]) -> Any:
    return read_json(path, kind) if path.exists() else kind()
