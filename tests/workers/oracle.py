"""A model of transformers as the oracle: random weights for it, and what it would answer."""

from __future__ import annotations

import re

import torch
from transformers import PreTrainedModel

INTO_STATE = re.compile(r"\.linear_attn\.(in_proj|[qkvgab]_proj)")


@torch.no_grad()
def fill(model: PreTrainedModel, std: float = 0.4) -> None:
    """Give it random weights of that deviation."""
    config = model.config.get_text_config()
    for key, parameter in model.named_parameters():
        gemma = "gemma" in config.model_type
        # of the weights of norms; not of those in layers with a state
        less_one = config.model_type.startswith(("gemma2", "gemma3", "vaultgemma", "qwen3_5", "qwen3_next"))
        less_one = less_one or config.model_type == "gemma"
        less_one = less_one and "linear_attn" not in key and config.model_type != "gemma3n_text"
        less_one = less_one or (config.model_type.startswith("muse") and "layernorm" in key)
        is_norm = "norm" in key and not key.endswith("bias") and not less_one
        parameter.normal_(std=std).add_(1.0 if is_norm or "scale" in key else 0.0)
        if INTO_STATE.search(key):  # with large ones, what was rounded grows from token to token
            parameter.div_(4)
        if gemma and "embed_tokens" in key:  # which it multiplies
            size = config.hidden_size_per_layer_input if "per_layer" in key else config.hidden_size
            parameter.div_(size**0.5)
    for key, buffer in model.named_buffers():
        if key.endswith("layer_scalar"):
            buffer.uniform_(0.6, 1.4)
        if key.endswith(("e_score_correction_bias", "expert_bias")):
            buffer.normal_(std=0.1)
    model.tie_weights()
    model.eval()


def one_by_one(model: PreTrainedModel) -> PreTrainedModel:
    """The same, whose experts may have any size: what computes them together wants rows of 16 bytes."""
    model.set_experts_implementation("eager")
    return model


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt: list[int], output: list[int]) -> list[int]:
    """What `model` would answer greedily, if it answered as `output` does: equal to it means equal tokens."""
    logits = model(torch.tensor([prompt + output])).logits[0]
    return logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist()
