"""What a model is, read from its files once: by the neuron, from small files and headers alone.

`read_card` refuses whatever a worker could not load, naming the file and the reason. The card then travels to
the workers in their spec, so that nobody reads `config.json` a second time.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args

import msgspec

from ipc.errors import Code, CortexError
from ipc.model_settings import Dtype, KVCacheDtype, Quantization
from ipc.worker_messages import CacheGroup
from workers.checkpoints import (
    config,
    gemma4_unified_vision,
    gemma4_vision,
    generation,
    pixtral,
    registry,
    siglip,
    text,
    vision,
    within,
)
from workers.checkpoints.blocks import FORMATS, PLAIN, Formats, at_load, is_dear
from workers.checkpoints.caches import group_layers
from workers.checkpoints.config import ModelConfig
from workers.checkpoints.experts import number_of
from workers.checkpoints.families.llama import EMBEDDING, HEAD, MTP_JOINS
from workers.checkpoints.families.qwen3_next import DELTA_OUTPUT
from workers.checkpoints.family import MTP_HEAD, Family, TensorSpec
from workers.checkpoints.files import open_file, read_json, refuse
from workers.checkpoints.generation import GenerationDefaults
from workers.checkpoints.gguf import checkpoint as gguf
from workers.checkpoints.gguf.header import SUFFIX
from workers.checkpoints.gguf.latent import LATENT_HEADS
from workers.checkpoints.layers import Layer
from workers.checkpoints.presence import CONFIG, gguf_files
from workers.checkpoints.quantisation import registry as schemes
from workers.checkpoints.safetensors import DTYPE_BYTES as STORED_BYTES
from workers.checkpoints.safetensors import Tensor, read_tensors
from workers.checkpoints.stored_tensors import StoredTensor, WeightFile, check_tensors
from workers.checkpoints.vectors import purpose
from workers.checkpoints.vectors.modules import Embedder
from workers.checkpoints.vectors.rerankers import Reranker
from workers.checkpoints.vectors.stages import Pooling, Stage
from workers.checkpoints.vision import Vision

DTYPE_BYTES: dict[Dtype, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
WEIGHT_DTYPES: dict[str, Dtype] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
KNOWN_UNUSED = (
    HEAD,
    "rotary_emb.inv_freq",
    "attn.masked_bias",
    "attn.bias",
    "position_ids",
    "pooler.dense.weight",
    "pooler.dense.bias",
    *(f".{name}" for name in ("embed_tokens.weight", "shared_head.head.weight")),  # once more, in a head
)  # what old files hold and nobody reads
BLOCK = 1 << 20  # bytes that are compared at once
NO_MTP = "speculation mtp needs a head that predicts several tokens"
BETTER = "Leave it out, or take ngram"
TOWERS = {
    "vision": vision,
    "pixtral": pixtral,
    "siglip": siglip,
    "gemma4_vision": gemma4_vision,
    "gemma4_unified_vision": gemma4_unified_vision,
}
MOST_RANKS = 8  # of which `check_ranks` tells what would work


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
        made_for = self.embedder or self.reranker
        return "last" if made_for is None else made_for.pooling

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What the pooled vector goes through."""
        made_for = self.embedder or self.reranker
        return () if made_for is None else made_for.stages

    @property
    def layers(self) -> tuple[Layer, ...]:
        """What every layer keeps."""
        return self.config.layers

    def cache_groups(
        self, world_size: int, dtype: Dtype | None = None, kv_cache_dtype: KVCacheDtype | None = None
    ) -> list[CacheGroup]:
        """The layers in groups whose pages are alike, in bytes of each rank; `dtype` None is its own.

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
        return group_layers([layer.on_rank(world_size, itemsize, kv_cache_dtype) for layer in self.layers])

    @property
    def kept_whole(self) -> str | None:
        """Why what its layers keep of tokens cannot be kept in 8 bits; None: it can."""
        if self.config.bidirectional:
            return "it reads every text as a whole, and keeps no keys and values"
        kinds = {layer.kind for layer in self.layers}
        if "latent" in kinds:
            return "its layers keep latent vectors, which are compressed keys and values already"
        return None if kinds - {"state"} else "its layers keep states, and no keys and values"

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
        self, world_size: int, dtype: Dtype | None = None, quantization: Quantization | None = None
    ) -> list[int]:
        """Bytes of weights on each rank, exactly; `dtype` None is the checkpoint's own."""
        self.check_ranks(world_size)
        model, itemsize = self.kept_in(quantization).config, DTYPE_BYTES[dtype or self.dtype]
        formats = self._formats(world_size, quantization)

        experts = model.experts
        are_whole = experts is not None and experts.whole_on(world_size)

        def bytes_of(rank: int) -> int:
            total = 0
            for kind, form in zip(self._alike, formats, strict=True):
                if are_whole and kind.experts:
                    shape = self.tensors[kind.first].shape
                    count = sum(kind.experts[number] for number in experts.share(rank, world_size))
                else:
                    shape, count = self._on_rank(kind.first, model, world_size, rank), len(kind.names)
                if form is not None:
                    each = shape[0] * FORMATS[form].row_bytes(shape[1])
                else:
                    wide = self.tensors[kind.first].sharing in ("wide", "wide_rows")
                    each = math.prod(shape) * (DTYPE_BYTES["float32"] if wide else itemsize)
                total += count * each
            return total

        if self.vision is not None or are_whole:
            return [bytes_of(rank) for rank in range(world_size)]
        return [bytes_of(0)] * world_size

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

    def formats(self, world_size: int, quantization: Quantization | None = None) -> Formats:
        """The block formats in which ranks keep weights, by name; all others are in the type of the model.

        Weights of products and of the embedding stay as they are stored, in blocks, but for an embedding with
        columns that are stored out of order. What is stored in a plain type is quantised where that is wanted
        and the ranks share it: norms, biases, the router of a mixture of experts, and what decides how long a
        state is kept never are.

        Raises:
            CortexError: MODEL_LOAD_FAILED, the ranks would share columns that are not whole blocks.
        """
        found: dict[str, str] = {}
        for kind, form in zip(self._alike, self._formats(world_size, quantization), strict=True):
            found |= dict.fromkeys(kind.names, form) if form is not None else {}
        formats = Formats({name: found[name] for name in self.tensors if name in found})
        formats.orders = {name: order for name in formats if (order := self.tensors[name].order)}
        return formats

    def formats_of_kinds(self, world_size: int, quantization: Quantization | None = None) -> dict[str, str]:
        """The same of one weight of each kind, the embedding among them; raises as `formats`."""
        each = zip(self._alike, self._formats(world_size, quantization), strict=True)
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

    def _formats(self, world_size: int, quantization: Quantization | None) -> list[str | None]:
        """What `formats` says of each of `_alike`; None: the type of the model."""
        model = self.kept_in(quantization).config
        names = [kind.first for kind in self._alike]
        return [
            self._format(name, self._on_rank(name, model, world_size), world_size, quantization)
            for name in names
        ]

    def _format(
        self, name: str, shape: tuple[int, ...], world_size: int, quantization: Quantization | None
    ) -> str | None:
        """The same of a tensor, of which a rank has `shape`."""
        tensor = self.tensors[name]
        if len(shape) != 2 or tensor.sharing in ("none", "wide", "plain_rows", "wide_rows", "first"):
            return None
        vocabulary = tensor.sharing == "vocabulary"
        if tensor.order and vocabulary and name != HEAD:
            return None  # it is looked up, not multiplied: its columns have to be where they are
        together, delta = shape[1], self.config.delta
        if delta is not None and delta.tiled and world_size > 1 and name.endswith(DELTA_OUTPUT):
            together //= delta.value_heads // delta.key_heads  # of each tile a rank has some
        if tensor.dtype in PLAIN:
            layers = self.config.num_layers
            return quantization and at_load(quantization, name, layers, together, vocabulary)
        self._check_blocks(name, together, world_size)
        if tensor.order:
            self._check_order(name, shape[1], world_size)
        return tensor.dtype

    def _on_rank(self, name: str, model: ModelConfig, world_size: int, rank: int = 0) -> tuple[int, ...]:
        tensor = self.tensors[name]
        return TensorSpec(name, tensor.shape, tensor.sharing).shape_on_rank(model, world_size, rank)

    def _check_blocks(self, name: str, columns: int, world_size: int) -> None:
        form = FORMATS[self.tensors[name].dtype]
        if columns % form.elements:
            raise CortexError(
                Code.MODEL_LOAD_FAILED,
                f"{self.folder} cannot be split into {world_size} ranks: {name!r} is {form.name}, in blocks "
                f"of {form.elements}, and each rank would have {columns} of its columns. Fewer ranks work",
            )

    def _check_order(self, name: str, columns: int, world_size: int) -> None:
        if columns < self.tensors[name].shape[1] and number_of(name) is not None:
            raise CortexError(
                Code.MODEL_LOAD_FAILED,
                f"{self.folder} cannot be split into {world_size} ranks: the columns of an expert's {name!r} "
                "are in groups out of order, and ranks would share them. Fewer ranks work",
            )

    def kv_bytes_per_token(
        self, world_size: int, dtype: Dtype | None = None, kv_cache_dtype: KVCacheDtype | None = None
    ) -> int:
        """Bytes that one token takes on each rank, in all layers that still see it."""
        groups = self.cache_groups(world_size, dtype, kv_cache_dtype)
        return sum(group.bytes_per_token for group in groups)

    def check_ranks(self, world_size: int) -> None:
        """See that the model splits into so many ranks.

        Raises:
            CortexError: MODEL_LOAD_FAILED, naming the numbers of ranks that work.
        """
        model = self.config
        if not model.splits_into(world_size):
            works = [str(n) for n in range(1, MOST_RANKS + 1) if model.splits_into(n)]
            raise CortexError(
                Code.MODEL_LOAD_FAILED,
                f"{self.folder} cannot be split into {world_size} ranks: it has {model.num_heads} attention "
                f"heads, {model.num_kv_heads} KV heads and an intermediate size of "
                f"{model.intermediate_size}{_of_experts(model)}{_of_delta(model)}. "
                f"What works: {', '.join(works)}",
            )


class _About(msgspec.Struct):
    architectures: list[str] = []
    model_type: str = "unknown"
    num_hidden_layers: int | None = None
    hidden_size: int | None = None
    max_position_embeddings: int | None = None


def read_card(path: Path | str, *, mtp: bool = False) -> ModelCard:
    """Read what is at `path`, and see that it is whole.

    Args:
        path: a folder of Hugging Face's, a GGUF file (any of a set), or a folder with one such model.
        mtp: its head that predicts the token after the next is wanted, too (`ModelConfig.mtp`).

    Raises:
        CortexError: MODEL_LOAD_FAILED naming the file that is missing, damaged or not supported.
    """
    file = _gguf_file(Path(path))
    return _of_folder(Path(path), mtp) if file is None else _of_gguf(file, mtp)


def _gguf_file(path: Path) -> Path | None:
    """The GGUF file that `path` is, or has and nothing else; None: it is a folder of Hugging Face's."""
    if path.suffix == SUFFIX and not path.is_dir():
        return path
    files = gguf_files(path)
    if len(files) > 1:
        refuse(path, f"has several models; name one of them: {', '.join(each.name for each in files)}")
    return files[0] if files else None


def _of_gguf(path: Path, mtp: bool) -> ModelCard:
    checkpoint = gguf.read(path)
    path, words = checkpoint.file.path, checkpoint.text
    architecture = checkpoint.config["architectures"][0]
    if (family := registry.ARCHITECTURES.get(architecture)) is None:
        refuse(path, f"is {checkpoint.file}: {architecture} is not supported")
    model = checkpoint.as_stored(family.read(path, checkpoint.config))
    if mtp:
        model, _ = _with_mtp(path, family, model, checkpoint.tensors)
    reranker = checkpoint.reranker
    embedder = checkpoint.embedder if reranker is None else None
    if embedder is not None:
        model = msgspec.structs.replace(model, tied_head=True, writes=False)
    stages = made_for.stages if (made_for := embedder or reranker) else ()
    wanted = chain(family.tensors(model), _of_stages(stages))
    files, stored, used = check_tensors(path, wanted, checkpoint.tensors, LATENT_HEADS)
    tensors = {
        name: _as_meant(tensor, *checkpoint.undone(name, tensor.shape)) for name, tensor in stored.items()
    }
    unused = sorted(name for name in checkpoint.tensors.keys() - used if not name.endswith(KNOWN_UNUSED))
    settings, more = checkpoint.sampling
    said, _, left_out = generation.understood(settings, model.vocab_size, path.name)
    return ModelCard(
        folder=str(path.parent),
        architecture=architecture,
        family=family.name,
        config=_with_blocks(model, tensors),
        dtype=_stored_dtype(stored),
        files=files,
        tensors=tensors,
        chat_templates=words.chat_templates,
        special_tokens=words.special_tokens,
        eos_ids=_eos_ids([], None, words.end_ids, model.vocab_size),
        defaults=said,
        notes=[*_unread(family, model, unused), *checkpoint.notes, *more, *left_out],
        created=int(path.stat().st_mtime),
        embedder=embedder,
        reranker=reranker,
    )


def _of_experts(model: ModelConfig) -> str:
    """What of them has to divide as well."""
    if (experts := model.experts) is None:
        return ""
    shared = f", beside one of {experts.shared_size}" if experts.shared_size else ""
    return f", {experts.count} experts of {experts.intermediate_size}{shared}"


def _of_delta(model: ModelConfig) -> str:
    """The same of layers with a state."""
    if model.convolution is not None:
        return f", {model.convolution.channels} channels in layers with a state"
    return "" if model.delta is None else f", {model.delta.key_heads} key heads in layers with a state"


def _with_blocks(model: ModelConfig, tensors: Mapping[str, StoredTensor]) -> ModelConfig:
    """The same, whose experts know what of their columns stays together."""
    if model.experts is None:
        return model
    block = max(
        FORMATS[tensor.dtype].elements
        for name, tensor in tensors.items()
        if tensor.sharing == "columns" and number_of(name) is not None
    )
    return msgspec.structs.replace(model, experts=msgspec.structs.replace(model.experts, block=block))


def _as_meant(tensor: StoredTensor, conversion: str, shapes: tuple[tuple[int, ...], ...]) -> StoredTensor:
    """`tensor` as `conversion` makes it of what is stored, and is read in `shapes`, one behind the other."""
    if not conversion:
        return tensor
    sources, offset = [], tensor.offset
    for shape in shapes:
        sources.append(msgspec.structs.replace(tensor, shape=shape, offset=offset))
        offset += sources[-1].nbytes
    return msgspec.structs.replace(tensor, conversion=conversion, sources=tuple(sources))


def _of_folder(folder: Path, mtp: bool) -> ModelCard:
    path = folder / CONFIG
    given = outer = read_json(path, dict[str, Any])
    about = read_json(path, _About)
    found = registry.find(about.architectures)
    if found is None:
        _refuse_unknown(folder, about)
    architecture, family = found
    is_within = architecture in family.within
    if is_within:
        given = within.config(path, given, family.within[architecture])
    scheme = schemes.read(path, outer) or schemes.read(path, given)
    model = family.read(path, given)
    stored = family.rearrange(
        {family.usual_name(name): tensor for name, tensor in read_tensors(folder).items()}
    )
    if is_within:
        stored = within.tensors(stored)
    if mtp:
        model, stored = _with_mtp(path, family, model, stored)
    seeing, blind = None, ""
    if architecture in family.sees:
        seeing, stored, blind = _sight(family.sees[architecture], folder, path, model, stored)
    made_for = purpose.read(
        path, architecture, given, model, family.classifier and family.classifier(model, given)
    )
    stored |= made_for.beside
    if made_for.embedder is not None:
        model = config.up_to(model, made_for.embedder.max_tokens)
    model, notes = _head(model, stored)
    if made_for.embedder is not None:
        model = msgspec.structs.replace(model, tied_head=True, writes=False)
    if is_within and seeing is None:
        notes.append(f"{within.NOTE}: {blind}" if blind else within.NOTE)
    eyes = [] if seeing is None else TOWERS[family.sees[architecture]].specs(seeing)
    wanted = chain(family.tensors(model), eyes, _of_stages(made_for.stages))
    files, tensors, used = check_tensors(path, wanted, stored, scheme)
    if seeing is not None:
        seeing = msgspec.structs.replace(seeing, token_work=_token_work(model, tensors))
    ignored = KNOWN_UNUSED if scheme is None else (*KNOWN_UNUSED, *scheme.beside)
    unused = sorted(name for name in stored.keys() - used if not name.endswith(ignored))
    notes += [scheme.note] if scheme is not None else []
    notes += _unread(family, model, unused)
    said, end_ids, more = generation.read(folder / "generation_config.json", model.vocab_size)
    words = text.read(folder)
    dtype, stored_as = _dtype(given, tensors)
    return ModelCard(
        folder=str(folder),
        architecture=architecture,
        family=family.name,
        config=_with_blocks(model, tensors),
        dtype=dtype,
        files=files,
        tensors=tensors,
        chat_templates=words.chat_templates,
        special_tokens=words.special_tokens,
        eos_ids=_eos_ids(end_ids, given.get("eos_token_id"), words.end_ids, model.vocab_size),
        defaults=said,
        notes=[*notes, *config.notes(given), *stored_as, *more],
        created=int(path.stat().st_mtime),
        embedder=made_for.embedder,
        reranker=made_for.reranker,
        vision=seeing,
    )


def _of_stages(stages: Iterable[Stage]) -> Iterator[TensorSpec]:
    """The tensors behind a model's last layer."""
    for stage in stages:
        for tensor in stage.tensors():
            yield TensorSpec(*tensor, "none")


def _with_mtp(
    path: Path, family: Family, model: ModelConfig, stored: dict[str, Tensor]
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The same with the head that predicts the token after the next."""
    if family.mtp is None:
        refuse(path, f"{NO_MTP}: none is understood of {family.name}. {BETTER}")
    stored = family.mtp(stored, model.num_layers)
    if f"model.layers.{model.num_layers}.{MTP_JOINS}" not in stored:
        refuse(path, f"{NO_MTP}: its files have none, though models of its kind may. {BETTER}")
    others = (*family.beside, f"model.layers.{model.num_layers + 1}.")
    if more := sorted(name for name in stored if name.startswith(others)):
        refuse(path, f"{NO_MTP}, of one layer, and its files have {more[0]!r} besides. {BETTER}")
    return model.with_mtp(), stored


def _unread(family: Family, model: ModelConfig, unused: list[str]) -> Iterator[str]:
    """What tensors are that nobody reads."""
    beside = _beside(family, model)
    for what in dict.fromkeys(beside.values()):
        prefixes = tuple(prefix for prefix, each in beside.items() if each == what)
        known = [name for name in unused if name.startswith(prefixes)]
        unused = [name for name in unused if not name.startswith(prefixes)]
        if known:
            yield f"{len(known)} tensors are {what}"
    if unused:
        yield f"{len(unused)} tensors are not used, among them {unused[0]}"


def _beside(family: Family, model: ModelConfig) -> Mapping[str, str]:
    """What may be there and is not read, by how its names begin: in some files a head is one layer more."""
    if family.mtp is None or model.mtp:
        return family.beside
    return {**family.beside, f"model.layers.{model.num_layers}.": MTP_HEAD}


def _sight(
    reader: str, folder: Path, path: Path, model: ModelConfig, stored: dict[str, Tensor]
) -> tuple[Vision | None, dict[str, Tensor], str]:
    """What sees, all tensors by the names that are used here, and why nothing does."""
    tower = TOWERS[reader]
    if blind := tower.missing(folder, path, stored, model):
        return None, stored, blind
    seeing = tower.read(folder, path, model)
    return seeing, tower.tensors(stored, seeing), ""


def _token_work(model: ModelConfig, tensors: Mapping[str, StoredTensor]) -> int:
    """Multiplications of the language model for a token, but for attention itself and for what is written."""
    work = routed = 0
    for name, tensor in tensors.items():
        if len(tensor.shape) == 2 and tensor.sharing not in ("first", "vocabulary"):
            if number_of(name) is None:
                work += math.prod(tensor.shape)
            else:
                routed += math.prod(tensor.shape)
    return work if model.experts is None else work + routed * model.experts.chosen // model.experts.count


def refusal(path: Path) -> str | None:
    """Why `read_card` would refuse what is at `path`; None where it would not."""
    try:
        read_card(path)
    except CortexError as error:
        return error.message
    return None


def _refuse_unknown(folder: Path, about: _About) -> NoReturn:
    """Refuse an architecture of which nothing is known, and say what its files are all the same."""
    known = [f"{about.model_type}"]
    if about.num_hidden_layers and about.hidden_size:
        known.append(f"{about.num_hidden_layers} layers of {about.hidden_size}")
    if about.max_position_embeddings:
        known.append(f"a context of {about.max_position_embeddings:,}")
    with suppress(CortexError):
        tensors = read_tensors(folder).values()
        parameters = sum(tensor.size // STORED_BYTES[tensor.dtype] for tensor in tensors)
        types = ", ".join(sorted({tensor.dtype for tensor in tensors}))
        known.append(f"{parameters / 1e6:,.1f}M parameters in {types}")
    refuse(
        folder / CONFIG,
        f"the architecture {', '.join(about.architectures) or 'none'} is not supported "
        f"({', '.join(known)}); there are {', '.join(registry.ARCHITECTURES)}",
    )


def _head(model: ModelConfig, stored: dict[str, Tensor]) -> tuple[ModelConfig, list[str]]:
    """Whether the head is the embedding where files and config disagree: as transformers has it."""
    if not model.tied_head or HEAD not in stored:
        return model, []
    if EMBEDDING not in stored:
        stored[EMBEDDING] = stored[HEAD]
        return model, []
    if _equal(stored[HEAD], stored[EMBEDDING]):
        return model, []
    note = f"config.json: tie_word_embeddings is set, and the files hold another {HEAD}, which is used"
    return msgspec.structs.replace(model, tied_head=False), [note]


def _equal(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same to the bit; reads as far as they are."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    with open_file(first.file) as left, open_file(second.file) as right:
        left.seek(first.offset)
        right.seek(second.offset)
        for start in range(0, first.size, BLOCK):
            size = min(BLOCK, first.size - start)
            if left.read(size) != right.read(size):
                return False
    return True


def _dtype(given: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> tuple[Dtype, list[str]]:
    """The type to serve in: what config.json says, else that of the embedding."""
    said = (given.get("dtype") or given.get("torch_dtype") or "").removeprefix("torch.")
    stored = _stored_dtype(tensors)
    if not said or said in get_args(Dtype):
        return said or stored, []
    return stored, [f"config.json: dtype {said} is none of {', '.join(get_args(Dtype))}; {stored} is used"]


def _stored_dtype(tensors: Mapping[str, StoredTensor]) -> Dtype:
    """That of the embedding, which comes first; of one in blocks bfloat16."""
    return WEIGHT_DTYPES.get(next(iter(tensors.values())).dtype, "bfloat16")


def _eos_ids(said: list[int] | None, in_config: Any, own: list[int], vocabulary: int) -> list[int]:
    """The ids of generation_config.json, else of config.json, and the tokenizer's own end token."""
    if said is None:
        said = in_config if isinstance(in_config, list) else [] if in_config is None else [in_config]
    return [token for token in dict.fromkeys([*said, *own]) if 0 <= token < vocabulary]
