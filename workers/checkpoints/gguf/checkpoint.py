"""A GGUF file as a checkpoint of Hugging Face: its config, and its tensors under their usual names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from workers.checkpoints.gguf import architectures, names, pooling, splits, text
from workers.checkpoints.gguf.architectures import Architecture
from workers.checkpoints.gguf.config import config_json
from workers.checkpoints.gguf.families import delta_net, mamba
from workers.checkpoints.gguf.header import ALIGNMENT, Gguf
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.safetensors import Tensor
from workers.checkpoints.text import TextFormat
from workers.checkpoints.vectors.modules import Embedder
from workers.checkpoints.vectors.rerankers import Reranker

# Conversions of `workers.weights.conversions`, which undo what the writer did.
APART, LESS_ONE = "halves_apart", "less_one"
TURNED = ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")


@dataclass(frozen=True, slots=True)
class GgufCheckpoint:
    """All that a card is made of."""

    file: Gguf
    architecture: Architecture
    config: dict[str, Any]  # as `config.json` would have it
    tensors: dict[str, Tensor]

    @property
    def text(self) -> TextFormat:
        """What stands beside the tokenizer."""
        return text.read(self.file)

    @property
    def sampling(self) -> tuple[dict[str, Any], list[str]]:
        """As `generation_config.json` would have it, and what of it is not followed."""
        return text.sampling(self.file)

    @property
    def reranker(self) -> Reranker | None:
        """How two texts become a score, where that is what it was made for."""
        read = pooling.of_classifier if self.architecture.embeds else pooling.of_answers
        return read(self.file, self.config["hidden_size"])

    @property
    def embedder(self) -> Embedder | None:
        """How texts become vectors, where that is what it was made for. Files do not say whether these have
        the length 1, which llama.cpp gives them."""
        encodes = self.architecture.embeds or self.architecture.encodes
        found = pooling.of_encoder(self.file) if encodes else pooling.of_decoder(self.file)
        if found is None:
            return None
        size = self.config["hidden_size"]
        stages = pooling.stages(self.file, size) if encodes else ()
        return Embedder(pooling=found, stages=stages, size=stages[-1].outputs if stages else size)

    @property
    def notes(self) -> list[str]:
        """What of its files nobody reads: bytes behind the last tensor, which llama.cpp does not mind."""
        found, ends = [], dict[Path, int]()
        for tensor in self.file.tensors.values():
            ends[tensor.file] = max(ends.get(tensor.file, 0), tensor.offset + tensor.size)
        for path, end in ends.items():
            behind = path.stat().st_size - end
            if behind >= self.file.metadata.get("general.alignment", ALIGNMENT):  # else it fills that up
                found.append(f"{path.name} has {behind:,} bytes behind its last tensor, which are not read")
        return found

    def as_stored(self, model: ModelConfig) -> ModelConfig:
        """`model`, in the orders in which files have its rows."""
        if model.experts is not None:  # whose gates are never stored between what they open
            experts = msgspec.structs.replace(model.experts, interleaved=False)
            model = msgspec.structs.replace(model, experts=experts)
        if model.delta is not None:
            model = msgspec.structs.replace(model, delta=delta_net.as_stored(self.file, model.delta))
        return model

    def undone(self, name: str, shape: tuple[int, ...]) -> tuple[str, tuple[tuple[int, ...], ...]]:
        """What makes the tensor that is meant of the one that is stored, and the shapes to read that in, of
        parts one behind the other.

        Rows whose dimensions are to be apart are read as `[heads, head_dim, columns]`. "": as it is.
        """
        if (ending := self.architecture.norms_with_one) and name.endswith(ending):
            return ("", (shape,)) if name.endswith(delta_net.NORM) else (LESS_ONE, (shape,))
        if self.architecture.halves_as_pairs and name.endswith(TURNED):
            head_dim = self.config["head_dim"]
            return APART, ((shape[0] // head_dim, head_dim, *shape[1:]),)
        if ".linear_attn." in name:
            return delta_net.undone(self.file, self.config, name, shape)
        if ".mamba." in name:
            return mamba.undone(name, shape)
        return "", (shape,)


def read(path: Path) -> GgufCheckpoint:
    """Read the headers of the model that `path` is a file of.

    Raises:
        CortexError: MODEL_LOAD_FAILED naming the file, and what of it is damaged or not known here.
    """
    file = splits.read(path)
    architecture = architectures.find(file)
    config = config_json(file, architecture)
    tensors = {
        usual: mamba.flat(usual, part)
        for name, tensor in file.tensors.items()
        for usual, part in names.usual(name, tensor, architecture, file.tensors)
    }
    return GgufCheckpoint(file, architecture, config, tensors)
