"""What a checkpoint was made for: to write text, to embed texts, or to rank them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.safetensors import Tensor
from workers.checkpoints.vectors import modules, rerankers
from workers.checkpoints.vectors.modules import Embedder
from workers.checkpoints.vectors.rerankers import Reranker
from workers.checkpoints.vectors.stages import Pooling, Stage


class Purpose(NamedTuple):
    """Neither of the two: it writes.

    Attributes:
        beside: tensors in the folders of modules.
    """

    embedder: Embedder | None = None
    reranker: Reranker | None = None
    beside: Mapping[str, Tensor] = {}

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


def read(
    path: Path,
    architecture: str,
    given: Mapping[str, Any],
    model: ModelConfig,
    classifier: tuple[Pooling, tuple[Stage, ...]] | None,
) -> Purpose:
    """What the files in a folder say.

    Args:
        path: of its `config.json`, which is `given`, and says `model`.
        classifier: the pooling and the stages that a classifier of the family has.

    Raises:
        CortexError: MODEL_LOAD_FAILED, naming what is not supported.
    """
    listed = modules.read_modules(path.parent)
    if classifier is not None and architecture.endswith(rerankers.CLASSIFIES):
        return Purpose(reranker=rerankers.read_classifier(path, listed, given, classifier))
    if not model.bidirectional:
        reranker = rerankers.read_causal(path, architecture, listed, given)
        if reranker is not None or not listed:
            return Purpose(reranker=reranker)
    embedder, beside = modules.read_embedder(path.parent, listed, model.hidden_size, given)
    if not model.bidirectional and (embedder.stages or embedder.pooling not in ("last", "mean")):
        # which is computed in chunks, from prefixes that are cached
        what = "Dense" if embedder.stages else f"pooling by {embedder.pooling}"
        refuse(path.parent / modules.MODULES, f"{what} after a causal model is not supported")
    return Purpose(embedder, beside=beside)
