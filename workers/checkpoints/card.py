"""What a model is, and what it takes on each of so many ranks.

`reading.py` makes a card of files. The card then travels to the workers in their spec, so that nobody reads
`config.json` a second time.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ipc.errors import Code, CortexError
from ipc.model_settings import Dtype, KVCacheDtype, Quantization
from ipc.worker_messages import CacheGroup
from workers.checkpoints import text
from workers.checkpoints.blocks import FORMATS, PLAIN, Formats, at_load, is_dear
from workers.checkpoints.caches import group_layers
from workers.checkpoints.experts import number_of
from workers.checkpoints.families.llama import EMBEDDING, HEAD
from workers.checkpoints.families.qwen3_next import DELTA_OUTPUT
from workers.checkpoints.family import NEVER_IN_BLOCKS, TensorSpec
from workers.checkpoints.generation import GenerationDefaults
from workers.checkpoints.gguf.header import SUFFIX
from workers.checkpoints.layers import Layer
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.shares import Share, Split, ways
from workers.checkpoints.stored_tensors import StoredTensor, WeightFile
from workers.checkpoints.vectors.modules import Embedder
from workers.checkpoints.vectors.purpose import Purpose
from workers.checkpoints.vectors.rerankers import Reranker
from workers.checkpoints.vectors.stages import Pooling, Stage
from workers.checkpoints.vision import Vision

DTYPE_BYTES: dict[Dtype, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
MOST_RANKS = 8  # of which `check_split` tells what would work


class _Kind(NamedTuple):
    """Tensors that are alike but for their layers, and the experts that they are parts of."""

    names: list[str]
    experts: Counter[int]  # how many each expert has, by its number; empty of what is not theirs

    @property
    def first(self) -> str:
        return self.names[0]


class ModelCard(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A model on disk that can be loaded. Everything here was checked against the headers of its files."""

    folder: str
    architecture: str  # as config.json names it
    family: str  # a key of `registry.FAMILIES`
    config: ModelConfig
    dtype: Dtype  # the checkpoint's own
    files: list[WeightFile]
    tensors: dict[str, StoredTensor]  # all that are loaded, by name
    chat_templates: dict[str, str]  # by name; the first one is the default
    special_tokens: dict[str, str]  # bos_token, eos_token, ..., for templates
    eos_ids: list[int]  # tokens that end an answer
    defaults: GenerationDefaults
    notes: list[str]  # what is not as the files have it, for whoever serves the model
    created: int  # Unix time
    embedder: Embedder | None = None  # of a model that is made for nothing but vectors
    reranker: Reranker | None = None  # the same, for scores
    vision: Vision | None = None  # of a model that sees

    @property
    def completion(self) -> bool:
        """Whether it writes text."""
        return self.embedder is None and self.reranker is None

    @property
    def embedding(self) -> bool:
        """Whether it turns texts into vectors, as every model does that is not made for something else."""
        return self.reranker is None

    @property
    def pooling(self) -> Pooling:
        """What becomes of the hidden states of a text, where no request says."""
        return Purpose(self.embedder, self.reranker).pooling

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What the pooled vector goes through."""
        return Purpose(self.embedder, self.reranker).stages

    @property
    def layers(self) -> tuple[Layer, ...]:
        """What every layer keeps."""
        return self.config.layers

    def cache_groups(
        self, share: Share, dtype: Dtype | None = None, kv_cache_dtype: KVCacheDtype | None = None
    ) -> list[CacheGroup]:
        """The layers in groups whose pages are alike, in bytes of a rank; `dtype` None is its own.

        Raises:
            CortexError: MODEL_LOAD_FAILED, it keeps nothing that could be kept in `kv_cache_dtype`.
        """
        if kv_cache_dtype is not None and (reason := self.kept_whole) is not None:
            raise CortexError(
                Code.MODEL_LOAD_FAILED,
                f"{self.folder} cannot be served with kv_cache_dtype {kv_cache_dtype}: {reason}. "
                "Leave it out",
            )
        if self.config.bidirectional:
            return []
        itemsize = DTYPE_BYTES[dtype or self.dtype]
        return group_layers(
            [layer.on_rank(share, itemsize, kv_cache_dtype) for layer in self.layers],
            [layer.beside_on_rank(share) for layer in self.layers],
        )

    @property
    def kept_whole(self) -> str | None:
        """Why what its layers keep of tokens cannot be kept in 8 bits; None: it can."""
        if self.config.bidirectional:
            return "it reads every text as a whole, and keeps no keys and values"
        kinds = {layer.kind for layer in self.layers}
        if "latent" in kinds:
            return "its layers keep latent vectors, which are compressed keys and values already"
        return None if kinds - {"state", "nothing"} else "its layers keep states, and no keys and values"

    @property
    def context_length(self) -> int:
        """Tokens that the model was made for."""
        return self.config.context_length

    @property
    def tokenizer_file(self) -> Path:
        """A `tokenizer.json`, or a GGUF file with what it would have."""
        first = self.files[0].name
        return Path(self.folder) / (first if first.endswith(SUFFIX) else text.TOKENIZER)

    @property
    def chat_template(self) -> str | None:
        """The default template; None for a model that does not chat."""
        return next(iter(self.chat_templates.values()), None)

    @property
    def chat(self) -> bool:
        """Whether it takes conversations."""
        return self.completion and bool(self.chat_templates)

    @cached_property
    def tools(self) -> bool:
        """Whether a template mentions tools."""
        return any(re.search(r"\btools\b", template) for template in self.chat_templates.values())

    @cached_property
    def reasoning(self) -> bool:
        """Whether a template knows thinking."""
        return any("think" in template.lower() for template in self.chat_templates.values())

    def bytes_per_rank(
        self, split: Split, dtype: Dtype | None = None, quantization: Quantization | None = None
    ) -> list[int]:
        """Bytes of weights on each rank, exactly; `dtype` None is the checkpoint's own."""
        itemsize = DTYPE_BYTES[dtype or self.dtype]

        def size(name: str, form: str | None, shape: tuple[int, ...]) -> int:
            if form is not None:
                return shape[0] * FORMATS[form].row_bytes(shape[1])
            wide = self.tensors[name].sharing in ("wide", "wide_rows")
            return math.prod(shape) * (DTYPE_BYTES["float32"] if wide else itemsize)

        return self._per_rank(split, quantization, size)

    def filling_per_rank(
        self, split: Split, dtype: Dtype | None = None, quantization: Quantization | None = None
    ) -> list[int]:
        """Bytes that a GPU takes besides, where rows in blocks are filled up to what its kernels read."""
        if (dtype or self.dtype) == "float32":  # which have none for it
            return [0] * split.ranks
        multiplied = self.config.tied_head and self.config.writes  # and not only looked up

        def size(name: str, form: str | None, shape: tuple[int, ...]) -> int:
            is_read = form is not None and (name != EMBEDDING or multiplied)
            return shape[0] * FORMATS[form].filling(shape[1]) if is_read else 0

        return self._per_rank(split, quantization, size)

    def has_whole_experts(self, split: Split, quantization: Quantization | None = None) -> bool:
        """Whether each rank has some experts, and those whole."""
        experts = self.kept_in(quantization).config.experts
        return experts is not None and experts.whole_in(split.parts)

    def _per_rank(
        self,
        split: Split,
        quantization: Quantization | None,
        size: Callable[[str, str | None, tuple[int, ...]], int],
    ) -> list[int]:
        """On each rank, the sizes of all that it has: of a tensor's name, its format and its shape there."""
        self.check_split(split)
        model, formats = self.kept_in(quantization).config, self._formats(split, quantization)
        experts, are_whole = model.experts, self.has_whole_experts(split, quantization)

        def bytes_of(share: Share) -> int:
            total = 0
            for kind, form in zip(self._alike, formats, strict=True):
                if are_whole and kind.experts:
                    shape = self.tensors[kind.first].shape
                    count = sum(kind.experts[number] for number in experts.of(share))
                else:
                    shape, count = self._on_rank(kind.first, model, share), len(kind.names)
                total += count * size(kind.first, form, shape)
            return total

        if self.vision is not None or are_whole or not split.even:
            return [*map(bytes_of, split.shares())]
        return [bytes_of(split.share(0))] * split.ranks

    def kept_in(self, quantization: Quantization | None) -> ModelCard:
        """The same model, whose experts know in what blocks they are kept once they are quantised: whole ones
        keep a format that parts of them would be too small for."""
        experts = self.config.experts
        if quantization is None or experts is None or experts.block > 1:  # these are in blocks as they are
            return self
        columns = experts.intermediate_size
        chosen = at_load(quantization, "", self.config.num_layers, columns, vocabulary=False)
        if chosen is None:
            return self
        experts = msgspec.structs.replace(experts, block=FORMATS[chosen].elements)
        kept = msgspec.structs.replace(self, config=msgspec.structs.replace(self.config, experts=experts))
        vars(kept)["_alike"] = self._alike  # for its tensors are the same
        return kept

    def formats(self, split: Split, quantization: Quantization | None = None) -> Formats:
        """The block formats in which ranks keep weights, by name; all others are in the type of the model.

        Weights of products and of the embedding stay as they are stored, in blocks, but for an embedding with
        columns that are stored out of order. What is stored in a plain type is quantised where that is wanted
        and the ranks share it: norms, biases, the router of a mixture of experts, and what decides how long a
        state is kept never are.

        Raises:
            CortexError: MODEL_LOAD_FAILED, the ranks would share columns that are not whole blocks.
        """
        found: dict[str, str] = {}
        for kind, form in zip(self._alike, self._formats(split, quantization), strict=True):
            found |= dict.fromkeys(kind.names, form) if form is not None else {}
        formats = Formats({name: found[name] for name in self.tensors if name in found})
        formats.orders = {name: order for name in formats if (order := self.tensors[name].order)}
        return formats

    def formats_of_kinds(self, split: Split, quantization: Quantization | None = None) -> dict[str, str]:
        """The same of one weight of each kind, the embedding among them; raises as `formats`."""
        each = zip(self._alike, self._formats(split, quantization), strict=True)
        return {kind.first: form for kind, form in each if form is not None}

    @cached_property
    def _alike(self) -> list[_Kind]:
        """All tensors, those together that ranks share and keep alike: a dozen kinds, in most models."""
        found: dict[tuple[Any, ...], _Kind] = {}
        for name, tensor in self.tensors.items():
            stored = tensor.shape, tensor.dtype, tensor.sharing, bool(tensor.order)
            number = number_of(name)
            own = name if name in (EMBEDDING, HEAD) else ""
            about = (*stored, own, number is None, is_dear(name, self.config.num_layers))
            if (kind := found.get(about)) is None:
                kind = found[about] = _Kind([], Counter())
            kind.names.append(name)
            if number is not None:
                kind.experts[number] += 1
        return list(found.values())

    def _formats(self, split: Split, quantization: Quantization | None) -> list[str | None]:
        """What `formats` says of each of `_alike`; None: the type of the model."""
        model = self.kept_in(quantization).config
        names = [kind.first for kind in self._alike]
        return [
            self._format(name, self._on_rank(name, model, split.part), split, quantization) for name in names
        ]

    def _format(
        self, name: str, shape: tuple[int, ...], split: Split, quantization: Quantization | None
    ) -> str | None:
        """The same of a tensor, of which each part has `shape`."""
        tensor = self.tensors[name]
        if len(shape) != 2 or tensor.sharing in NEVER_IN_BLOCKS:
            return None
        vocabulary = tensor.sharing == "vocabulary"
        if tensor.order and vocabulary and name != HEAD:
            return None  # it is looked up, not multiplied: its columns have to be where they are
        together, delta = shape[1], self.config.delta
        if delta is not None and delta.tiled and split.parts > 1 and name.endswith(DELTA_OUTPUT):
            together //= delta.value_heads // delta.key_heads  # of each tile a rank has some
        if tensor.dtype in PLAIN:
            layers = self.config.num_layers
            return quantization and at_load(quantization, name, layers, together, vocabulary)
        self._check_blocks(name, together, split)
        if tensor.order:
            self._check_order(name, shape[1], split)
        return tensor.dtype

    def _on_rank(self, name: str, model: ModelConfig, share: Share) -> tuple[int, ...]:
        tensor = self.tensors[name]
        return TensorSpec(name, tensor.shape, tensor.sharing).shape_on_rank(model, share)

    def _check_blocks(self, name: str, columns: int, split: Split) -> None:
        form = FORMATS[self.tensors[name].dtype]
        if columns % form.elements:
            raise CortexError(
                Code.MODEL_LOAD_FAILED,
                f"{self.folder} cannot be split into {split}: {name!r} is {form.name}, in blocks of "
                f"{form.elements}, and each {'rank' if split.even else 'part'} would have {columns} of its "
                "columns. Fewer ranks work",
            )

    def _check_order(self, name: str, columns: int, split: Split) -> None:
        if columns < self.tensors[name].shape[1] and number_of(name) is not None:
            raise CortexError(
                Code.MODEL_LOAD_FAILED,
                f"{self.folder} cannot be split into {split}: the columns of an expert's {name!r} "
                "are in groups out of order, and ranks would share them. Fewer ranks work",
            )

    def kv_bytes_per_token(
        self, share: Share, dtype: Dtype | None = None, kv_cache_dtype: KVCacheDtype | None = None
    ) -> int:
        """Bytes that one token takes on a rank, in all layers that still see it."""
        groups = self.cache_groups(share, dtype, kv_cache_dtype)
        return sum(group.bytes_per_token for group in groups)

    def splits_into(self, split: Split, quantization: Quantization | None = None) -> bool:
        """Whether ranks can share the model so, as its weights are kept."""
        if not self.config.splits_into(split):
            return False
        with suppress(CortexError):
            self._formats(split, quantization)
            return True
        return False

    def check_split(self, split: Split) -> None:
        """See that the ranks can share the model so.

        Raises:
            CortexError: MODEL_LOAD_FAILED, naming the numbers of ranks that work.
        """
        model = self.config
        if not model.splits_into(split):
            works = [str(n) for n in range(1, MOST_RANKS + 1) if any(map(self.splits_into, ways(n)))]
            heads = " or ".join(map(str, model.head_counts))
            raise CortexError(
                Code.MODEL_LOAD_FAILED,
                f"{self.folder} cannot be split into {split}: it has {heads} attention "
                f"heads, {model.num_kv_heads} KV heads and an intermediate size of "
                f"{model.intermediate_size}{_of_experts(model)}{_of_states(model)}. "
                f"What works: {', '.join(works)}",
            )


def _of_experts(model: ModelConfig) -> str:
    """What of them has to divide as well."""
    if (experts := model.experts) is None:
        return ""
    shared = f", beside one of {experts.shared_size}" if experts.shared_size else ""
    return f", {experts.count} experts of {experts.intermediate_size}{shared}"


def _of_states(model: ModelConfig) -> str:
    """The same of layers with a state."""
    if model.convolution is not None:
        return f", {model.convolution.channels} channels in layers with a state"
    if model.mamba is not None:
        mamba = model.mamba
        return f", {mamba.heads} heads in {mamba.groups} groups in layers with a state"
    return "" if model.delta is None else f", {model.delta.key_heads} key heads in layers with a state"
