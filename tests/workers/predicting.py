"""Heads that predict the token after the next, beside models of transformers, which have the layer for it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import MtpLayer

T = TypeVar("T", int, Tensor)

QWEN_NAMES = {
    "mtp_block.": "mtp.layers.0.",
    "eh_proj.": "mtp.fc.",
    "enorm.": "mtp.pre_fc_norm_embedding.",
    "hnorm.": "mtp.pre_fc_norm_hidden.",
    "post_norm.": "mtp.norm.",
}


def following(token: T, vocabulary: int) -> T:
    """What comes after a token in texts of a model that is known."""
    return (token + 37) % vocabulary


class Head:
    """A head of `model`, with random weights; its layer is like the last of the model's that attend."""

    def __init__(self, model: PreTrainedModel, std: float = 0.3) -> None:
        self.model = model
        kinds = getattr(model.config, "layer_types", None) or ["full_attention"]
        number = max(n for n, kind in enumerate(kinds) if kind == "full_attention")
        block = model.model.layers[number]
        self.layer = MtpLayer(model.config, type(block), type(block.input_layernorm), number).eval()
        with torch.no_grad():
            for parameter in self.layer.parameters():
                parameter.normal_(std=std)

    @classmethod
    @torch.no_grad()
    def knowing(cls, model: PreTrainedModel, std: float) -> Head:
        """One that is right as long as the model does what `following` says, and the model does so the more
        the less its layers have to say, whose weights have that deviation."""
        head = cls(model, 0.0)
        for parameter in model.model.layers.parameters():
            parameter.normal_(std=std)
        embedding = model.model.embed_tokens.weight
        embedding.copy_(nn.functional.normalize(torch.randn(embedding.shape), dim=1))
        model.lm_head.weight[following(torch.arange(len(embedding)), len(embedding))] = 8 * embedding
        model.model.norm.weight.zero_()
        head.layer.eh_proj.weight[:, : embedding.shape[1]] = torch.eye(embedding.shape[1])
        return head

    def store(self, folder: Path) -> None:
        """Write the model and this, as Qwen's are."""
        self.model.save_pretrained(folder)
        (folder / "tokenizer.json").write_text("{}")  # nobody reads a text here
        weights = load_file(folder / "model.safetensors")
        for name, tensor in self.layer.state_dict().items():
            [usual] = [begins for begins in QWEN_NAMES if name.startswith(begins)]
            weights[QWEN_NAMES[usual] + name.removeprefix(usual)] = tensor.clone()
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    @torch.no_grad()
    def drafts(self, token_ids: list[int], count: int) -> list[int]:
        """What it says that follows these, one token after the other."""
        tokens = torch.tensor([token_ids])
        embedding: nn.Module = self.model.model.embed_tokens
        hidden = self.model.model(tokens[:, :-1], use_cache=False).last_hidden_state
        embedded, found = embedding(tokens[:, 1:]), []
        for _ in range(count):
            state = self._run(embedded, hidden)[:, -1:]
            token = self.model.lm_head(state).argmax(-1)
            found.append(int(token))
            embedded = torch.cat((embedded, embedding(token)), dim=1)
            hidden = torch.cat((hidden, state), dim=1)
        return found

    def _run(self, embedded: Tensor, hidden: Tensor) -> Tensor:
        length = embedded.shape[1]
        places = torch.arange(length)[None]
        mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
        angles = self.model.model.rotary_emb(embedded, places)
        return self.layer(embedded, hidden, angles, mask, places, None)
