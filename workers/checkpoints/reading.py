"""From a model's files to its card, once: by the neuron, from small files and headers alone.

`read_card` refuses whatever a worker could not load, naming the file and the reason.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn, get_args

import msgspec

from ipc.errors import CortexError
from ipc.model_settings import Dtype
from workers.checkpoints import (
    config,
    gemma4_unified_vision,
    gemma4_vision,
    generation,
    missing,
    pixtral,
    registry,
    rope,
    siglip,
    text,
    unused_tensors,
    vision,
    within,
)
from workers.checkpoints.blocks import FORMATS
from workers.checkpoints.card import ModelCard
from workers.checkpoints.experts import number_of
from workers.checkpoints.families.llama import EMBEDDING, HEAD, MTP_JOINS
from workers.checkpoints.family import Family, TensorSpec
from workers.checkpoints.files import open_file, read_json, refuse, shown, those_known
from workers.checkpoints.gguf import checkpoint as gguf
from workers.checkpoints.gguf.header import SUFFIX
from workers.checkpoints.gguf.latent import LATENT_HEADS
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.presence import CONFIG, gguf_files, is_checkpoint, is_whole
from workers.checkpoints.quantisation import registry as schemes
from workers.checkpoints.safetensors import DTYPE_BYTES as STORED_BYTES
from workers.checkpoints.safetensors import Tensor, read_tensors
from workers.checkpoints.stored_tensors import StoredTensor, check_tensors
from workers.checkpoints.vectors import purpose
from workers.checkpoints.vectors.stages import Stage
from workers.checkpoints.vision import Vision

WEIGHT_DTYPES: dict[str, Dtype] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
BLOCK = 1 << 20  # bytes that are compared at once
MOST_SAID = 10  # architectures of one model that are told
MOST_WITHIN = 1000  # folders of a level that are looked into for what is said of a folder that is no model
NO_MTP = "speculation mtp needs a head that predicts several tokens"
BETTER = "Leave it out, or take ngram"
TOWERS = {
    "vision": vision,
    "pixtral": pixtral,
    "siglip": siglip,
    "gemma4_vision": gemma4_vision,
    "gemma4_unified_vision": gemma4_unified_vision,
}


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
    if path.suffix == SUFFIX and not os.path.isdir(path):
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
    made_for = purpose.Purpose(checkpoint.embedder if reranker is None else None, reranker)
    if made_for.embedder is not None or reranker is not None:
        model = msgspec.structs.replace(model, tied_head=True, writes=False)
    wanted = chain(family.tensors(model), _of_stages(made_for.stages))
    files, stored, used = check_tensors(path, wanted, checkpoint.tensors, LATENT_HEADS)
    tensors = {
        name: _as_meant(tensor, *checkpoint.undone(name, tensor.shape)) for name, tensor in stored.items()
    }
    unused = unused_tensors.notes(path, family, model, checkpoint.tensors, used)
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
        notes=[*unused, *checkpoint.notes, *more, *left_out],
        created=int(path.stat().st_mtime),
        embedder=made_for.embedder,
        reranker=made_for.reranker,
    )


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
    architecture, family = _family(folder, path)
    given = outer = read_json(path, dict[str, Any])
    is_within = architecture in family.within
    if is_within:
        given = within.config(path, given, family.within[architecture])
    scheme = schemes.read(path, outer) or schemes.read(path, given)
    given = rope.said_once(path, given)
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
        model = model.up_to(made_for.embedder.max_tokens)
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
    notes += [scheme.note] if scheme is not None else []
    notes += unused_tensors.notes(path, family, model, stored, used, () if scheme is None else scheme.beside)
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


def _family(folder: Path, path: Path) -> tuple[str, Family]:
    """The architecture that its `config.json` names, and whose it is."""
    if os.path.isfile(folder):
        is_of_one = (folder.parent / CONFIG).exists()
        refuse(folder, "is of a model: give its folder" if is_of_one else missing.what_is(folder.name))
    if not os.path.lexists(path):
        said = missing.instead(folder, missing.PIPELINES) or _within(folder) or missing.instead(folder)
        refuse(path, f"is missing{said}")
    about = read_json(path, _About)
    if (found := registry.find(about.architectures)) is None:
        _refuse_unknown(folder, about)
    return found


def _within(folder: Path) -> str:
    """What is said of models in a folder that is none."""
    levels = (sorted(islice(folder.glob(level), MOST_WITHIN)) for level in ("*/", "*/*/", "*/snapshots/*/"))
    found = (each for each in chain.from_iterable(levels) if is_checkpoint(each) and is_whole(each))
    with suppress(OSError):  # some folder may be gone by now
        if (one := next(found, None)) is not None:
            return f", and models are within: name one of them, as {one.relative_to(folder)}"
    return ""


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


def _refuse_unknown(folder: Path, about: _About) -> NoReturn:
    """Refuse an architecture of which nothing is known, and say what its files are all the same."""
    said, known = shown(", ".join(about.architectures[:MOST_SAID])), [shown(about.model_type)]
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
        f"the architecture {said or 'none'} is not supported ({', '.join(known)}); "
        + those_known(registry.ARCHITECTURES, said),
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
