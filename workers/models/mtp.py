"""Multi-token prediction: a head that predicts the token after the next (https://arxiv.org/abs/2412.19437,
section 2.2), as Qwen3-Next, Qwen3.5, GLM and DeepSeek V3 have it.

next token ─ embedding ─ norm ─┐
                               ├─ joined ─ decoder layer ─ norm ─┬─ the model's own head ─ logits
last hidden state ────── norm ─┘                                 └─ in place of a hidden state, one token on

The hidden state is that behind the model's last norm, and so is what stands in its place behind the head's.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from workers.attention.backend import Attend
from workers.checkpoints.model_config import ModelConfig
from workers.layers.linear import RowParallel
from workers.models.decoder import Decoder, Seen, norm_of
from workers.models.residual import Residual
from workers.parallel import RankGroup
from workers.weights.blocks import Empty
from workers.weights.loader import Shard


class MtpHead:
    """One rank's share of the head of `model`, with which it has embedding, positions and output alike."""

    def __init__(self, model: Decoder, config: ModelConfig, group: RankGroup, empty: Empty) -> None:
        name, hidden = f"model.layers.{config.num_layers}", config.hidden_size
        self.model, self.group = model, group
        self.embedding_norm = norm_of(f"{name}.enorm", config, empty)
        self.hidden_norm = norm_of(f"{name}.hnorm", config, empty)
        self.join = RowParallel(f"{name}.eh_proj", hidden, 2 * hidden, False, group, empty)
        self.block = model.block(config.num_layers, config, group, empty)
        self.norm = norm_of(f"{name}.shared_head.norm", config, empty)

    def parts(self) -> Iterator[Shard]:
        """What this rank reads from the checkpoint, as `Decoder.parts` has it."""
        norms = (self.embedding_norm, self.hidden_norm, self.norm)
        yield Shard([piece for norm in norms for piece in norm.pieces()])
        yield Shard([*self.join.pieces()], self.join.pack)
        yield from self.block.parts()

    def __call__(
        self,
        token_ids: Tensor,
        hidden: Tensor,
        positions: Tensor,
        attend: Attend,
        seen: Seen | None = None,
    ) -> Tensor:  # [tokens, hidden]
        """What is known of the token after the next: for `best`, and in place of a hidden state.

        Args:
            token_ids: `[tokens]` int64, of each token that which follows it.
            hidden: `[tokens, hidden]`, of the model behind its last norm, or of this head one token before.
            positions: as of `Decoder`, of the tokens that the hidden states are of.
            attend: of the layer behind the model's own.
            seen: which of the tokens that follow are images; their features are what the model has in the
                place of embeddings.
        """
        stream = Residual(self._joined(token_ids, hidden, seen))
        del hidden  # which the layer has no use for
        self.block(stream, self.model.places(positions), attend)
        return stream.normed(self.norm)

    def _joined(self, token_ids: Tensor, hidden: Tensor, seen: Seen | None) -> Tensor:  # [tokens, hidden]
        embedded = self.model.embedded(token_ids)
        if seen is not None:
            embedded = seen.shown(embedded, 0)
        both = torch.cat((self.embedding_norm(embedded), self.hidden_norm(hidden)), dim=1)
        share = self.join.share
        return self.join(both[:, share.start : share.stop])

    def best(self, hidden: Tensor) -> Tensor:  # [rows, hidden] -> [rows] int64
        """The most probable token for each of its rows, the same on all ranks."""
        logits = self.model.head(hidden)
        found = hidden.new_zeros(len(hidden), dtype=torch.int64) if logits is None else logits.argmax(dim=1)
        return self.group.from_first(found)
