"""Heads that predict the token after the next, beside models of transformers, which have the layer for it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import MtpLayer

from tests.workers import seeing

T = TypeVar("T", int, Tensor)

NAMES = {
    "mtp_block.": "model.layers.{}.",
    "eh_proj.": "model.layers.{}.eh_proj.",
    "enorm.": "model.layers.{}.enorm.",
    "hnorm.": "model.layers.{}.hnorm.",
    "post_norm.": "model.layers.{}.shared_head.norm.",
}
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


def tokenizer() -> Tokenizer:
    """A token for each of some bytes, for grammars."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet())[:130], "\u0120"]  # the last one is a space
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    made.decoder = decoders.ByteLevel()
    return made


class Head:
    """A head of `model`, with random weights; its layer is like the last of the model's that attend."""

    def __init__(self, model: PreTrainedModel, std: float = 0.3) -> None:
        self.model = model
        self.text = getattr(model.model, "language_model", model.model)
        config = model.config.get_text_config()
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(self.text.layers)
        number = max(n for n, kind in enumerate(kinds) if kind == "full_attention")
        block = self.text.layers[number]
        self.layer = MtpLayer(config, type(block), type(block.input_layernorm), number).eval()
        self._read: dict[tuple[int, ...], tuple[Tensor, Tensor, Tensor]] = {}
        self._as_qwen = config.model_type.startswith("qwen")  # whose norms are stored less 1
        with torch.no_grad():
            for name, parameter in self.layer.named_parameters():
                parameter.normal_(std=std).add_(float("norm" in name and not self._as_qwen))
            for buffer in self.layer.buffers():  # corrections of experts
                buffer.normal_(std=0.1)

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
        model.model.norm.weight.fill_(float(not head._as_qwen))
        head.layer.eh_proj.weight[:, : embedding.shape[1]] = torch.eye(embedding.shape[1])
        return head

    def store(self, folder: Path) -> None:
        """Write the model and this, as those of its kind are."""
        self.model.save_pretrained(folder)
        (folder / "tokenizer.json").write_text(tokenizer().to_str())
        weights = load_file(folder / "model.safetensors")
        for name, tensor in self.layer.state_dict().items():
            names = QWEN_NAMES if self._as_qwen else NAMES
            [usual] = [begins for begins in names if name.startswith(begins)]
            stored = names[usual].format(len(self.text.layers)) + name.removeprefix(usual)
            weights |= {stored: tensor.clone()} if self._as_qwen else _one_by_one(stored, tensor)
        if not self._as_qwen:  # which nobody is to read
            again = f"model.layers.{len(self.text.layers)}."
            for name in ("embed_tokens.weight", "shared_head.head.weight"):
                weights[again + name] = torch.full_like(self.model.lm_head.weight, torch.nan)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    @torch.no_grad()
    def drafts(self, token_ids: list[int], count: int, images: seeing.Images = ()) -> list[int]:
        """What it says that follows these, one token after the other.

        Of a text that a longer one began with, which it was asked for before, the model is not asked again.
        """
        length, found = len(token_ids), []
        whole = next((each for each in self._read if each[:length] == tuple(token_ids)), None)
        if whole is None:
            self._read[whole := tuple(token_ids)] = self._of_model(token_ids, images)
        embedded, hidden, places = self._read[whole]
        embedded, hidden = embedded[:, 1:length], hidden[:, : length - 1]
        places = places[..., : length - 1]
        for _ in range(count):
            state = self._run(embedded, hidden, places)[:, -1:]
            token = self.model.lm_head(state).argmax(-1)
            found.append(int(token))
            embedded = torch.cat((embedded, self.text.embed_tokens(token)), dim=1)
            hidden = torch.cat((hidden, state), dim=1)
            places = torch.cat((places, places[..., -1:] + 1), dim=-1)
        return found

    def _of_model(self, token_ids: list[int], images: seeing.Images) -> tuple[Tensor, Tensor, Tensor]:
        """What goes into the model, what comes out of it, and the positions."""
        tokens = torch.tensor([token_ids])
        given, embedded = {"input_ids": tokens}, self.text.embed_tokens(tokens)
        places = torch.arange(len(token_ids))[None]
        if images:
            given = seeing.oracle(self.model, token_ids, images)
            grids = given["image_grid_thw"]
            places, _ = self.model.model.get_rope_index(
                tokens, given["mm_token_type_ids"], image_grid_thw=grids
            )
            features = self.model.model.get_image_features(given["pixel_values"], grids).pooler_output
            embedded[tokens == seeing.IMAGE] = torch.cat([*features])
        return embedded, self.model.model(**given, use_cache=False).last_hidden_state, places

    def _run(self, embedded: Tensor, hidden: Tensor, places: Tensor) -> Tensor:
        length = embedded.shape[1]
        mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
        return self.layer(embedded, hidden, self.text.rotary_emb(embedded, places), mask, places, None)


def _one_by_one(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The weights of each expert, where a tensor has those of all."""
    begins, experts, what = name.partition(".experts.")
    if not experts or tensor.dim() < 3:
        return {name: tensor.clone()}
    names = ("gate_proj", "up_proj") if what == "gate_up_proj" else ("down_proj",)
    return {
        f"{begins}.experts.{number}.{own}.weight": part.clone()
        for number, weight in enumerate(tensor)
        for own, part in zip(names, weight.chunk(len(names)), strict=True)
    }
