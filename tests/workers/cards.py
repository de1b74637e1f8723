"""Cards for tests: as much of one as a test needs, and a whole one against the model that it describes."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import torch

from ipc.errors import Code, CortexError
from workers.checkpoints.card import ModelCard
from workers.checkpoints.family import TensorSpec
from workers.checkpoints.reading import read_card
from workers.checkpoints.safetensors import read_tensors
from workers.checkpoints.shares import Split
from workers.checkpoints.stored_tensors import StoredTensor, WeightFile
from workers.models.registry import MODELS
from workers.parallel import RankGroup


def card_of(folder: Path) -> SimpleNamespace:
    """As much of a card as reading takes, of whatever tensors are in `folder`."""
    stored = read_tensors(folder)
    files = sorted({tensor.file for tensor in stored.values()})
    tensors = {
        name: StoredTensor(tensor.shape, tensor.dtype, files.index(tensor.file), tensor.offset, "none")
        for name, tensor in stored.items()
    }
    known = [WeightFile(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return SimpleNamespace(folder=str(folder), files=known, tensors=tensors)


def assert_asks_for_what_is_declared(card: ModelCard, variant: str, split: Split) -> None:
    """See that the ranks of a model hold all that its card says, shared as it says."""
    held = dict.fromkeys(card.tensors, 0)
    size = split.ranks
    for rank, planned in enumerate(card.bytes_per_rank(split, "float32")):
        model = MODELS[card.family](card.config, RankGroup(rank, size, split=split), torch.float32)
        assert model.nbytes <= planned  # which counts padding, too
        if "whole" in variant:
            assert planned - model.nbytes <= 2 * 4 * card.config.hidden_size  # a row of padding, twice
        for piece in (piece for part in model.parts() for piece in part.pieces):
            tensor = card.tensors[piece.name]
            assert piece.shape == tensor.shape
            held[piece.name] += piece.into.numel()
            whole = piece.into.shape == tensor.shape
            by_columns = piece.into.dim() == 2 and piece.into.shape[1] < tensor.shape[-1]
            is_whole = "whole" in variant and ".experts." in piece.name
            assert by_columns == (tensor.sharing == "columns" and size > 1 and not is_whole)
            assert whole or tensor.sharing not in ("none", "wide")
    for name, tensor in card.tensors.items():
        in_one = "whole" in variant and ".experts." in name
        copies = size if tensor.sharing in ("none", "wide") and not in_one else 1
        if tensor.sharing in ("kv_rows", "full_kv_rows"):
            kind = next(each.kind for each in card.layers if each.kv_heads)
            kind = "full" if tensor.sharing == "full_kv_rows" else kind
            heads = next(each.kv_heads for each in card.layers if each.kind == kind)
            copies = sum(each.kv_heads(heads) for each in split.shares()) / heads
        if tensor.sharing in ("qkv_rows", "mamba_rows", "mamba_channels"):
            spec = TensorSpec(name, tensor.shape, tensor.sharing)
            assert held[name] == sum(spec.elements_on_rank(card.config, each) for each in split.shares()), (
                name
            )
            continue
        assert held[name] == copies * math.prod(tensor.shape), name


def refusal(path: Path) -> str | None:
    """Why `read_card` would refuse what is at `path`; None where it would not."""
    try:
        read_card(path)
    except CortexError as error:
        if error.code != Code.MODEL_LOAD_FAILED:
            raise
        return error.message
    return None
