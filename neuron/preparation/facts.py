"""What preparing a request takes of a model beside its text path, as it travels to another process."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from workers.checkpoints.generation import GenerationDefaults
from workers.checkpoints.vectors.modules import Embedder
from workers.checkpoints.vectors.rerankers import Reranker


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Some fields of a `neuron.description.ModelDescription`, which can be used in its place."""

    engine: Literal["transformer", "simulated"] = "transformer"
    defaults: GenerationDefaults = GenerationDefaults()
    eos_ids: list[int] = []
    completion: bool = True
    embedding: bool = False
    vector_size: int = 0
    embedder: Embedder | None = None
    reranker: Reranker | None = None
    whole: bool = False

    @classmethod
    def of(cls, description: Any) -> ModelFacts:
        """Those of a description."""
        return cls(**{name: getattr(description, name) for name in cls.__struct_fields__})
