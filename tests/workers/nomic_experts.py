"""Nomic's second BERT, which transformers has not: its first one with experts, and files as published."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.workers import gguf_files
from tests.workers.encoders import nomic_bert
from tests.workers.oracle import fill

HIDDEN, INNER, LAYERS, COUNT, CHOSEN = 48, 64, 3, 5, 2
CONFIG = {
    **{"architectures": ["NomicBertModel"], "model_type": "nomic_bert", "torch_dtype": "float32"},
    **{"vocab_size": 131, "n_embd": HIDDEN, "n_inner": INNER, "n_layer": LAYERS, "n_head": 4},
    **{"n_positions": 160, "max_trained_positions": 160, "rotary_emb_base": 500, "type_vocab_size": 1},
    **{"layer_norm_epsilon": 1e-5, "activation_function": "gelu", "qkv_proj_bias": True},
    **{"mlp_fc1_bias": True, "mlp_fc2_bias": True, "num_experts": COUNT, "moe_top_k": CHOSEN},
    **{"moe_every_n_layers": 2, "moe_normalize_expert_weights": False, "expert_choice_router": False},
    **{"ffn_div": 1, "moe_impl": "megablocks", "moe_resid_pdrop": 0.0, "num_shared_experts": 0},
    **{"router_aux_loss_coef": 0.1, "prenorm": False, "causal": False, "use_rms_norm": None},
}
ATTENTION = {"q_proj": "q", "k_proj": "k", "v_proj": "v"}


class Plain(nn.Module):
    """An MLP without gates."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(HIDDEN, INNER), nn.Linear(INNER, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Mixture(nn.Module):
    """Every expert for every token, of which those count that the router chose."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, COUNT, bias=False)
        self.w1, self.w2 = (nn.Parameter(torch.empty(COUNT, INNER, HIDDEN)) for _ in range(2))
        self.bias = nn.Parameter(torch.empty(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        best, numbers = self.router(x).softmax(-1).topk(CHOSEN)
        weights = torch.zeros(*x.shape[:-1], COUNT).scatter(-1, numbers, best)
        inner = F.gelu(torch.einsum("bth,efh->btef", x, self.w1))
        return torch.einsum("btef,efh,bte->bth", inner, self.w2, weights) + self.bias


def model(*, expert_bias: bool = True) -> PreTrainedModel:
    """With random weights."""
    torch.manual_seed(11)
    made = nomic_bert(
        num_hidden_layers=LAYERS,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )
    for number, layer in enumerate(made.layers):
        layer.mlp = Mixture() if number % 2 else Plain()
        for name in (*ATTENTION, "o_proj"):
            setattr(layer.self_attn, name, nn.Linear(HIDDEN, HIDDEN))
    fill(made, std=0.3)
    if not expert_bias:
        made.layers[1].mlp.bias.data.zero_()
    return made


def published(made: PreTrainedModel) -> dict[str, Tensor]:
    """Its tensors by their names in files."""
    found = {}
    for name, tensor in made.state_dict().items():
        name = name.replace("embeddings.LayerNorm", "emb_ln").replace("self_attn.o_proj", "attn.out_proj")
        name = name.replace("post_attention_layernorm", "norm1").replace("post_mlp_layernorm", "norm2")
        name = name.replace("mlp.router", "mlp.router.layer").replace("mlp.bias", "mlp.experts.bias")
        if name.endswith((".w1", ".w2")):
            name, tensor = name.replace("mlp.w", "mlp.experts.mlp.w"), tensor.flatten(0, 1)
        found["encoder." * name.startswith("layers.") + name] = tensor
    for layer in range(LAYERS):
        for kind in ("weight", "bias"):
            prefix = f"encoder.layers.{layer}"
            parts = [found.pop(f"{prefix}.self_attn.{each}.{kind}") for each in ATTENTION]
            found[f"{prefix}.attn.Wqkv.{kind}"] = torch.cat(parts)
    return {name: tensor.contiguous() for name, tensor in found.items()}


def write(folder: Path) -> PreTrainedModel:
    """One in `folder`; returns the oracle."""
    made = model()
    save_file(published(made), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")  # nobody reads a text here
    return made


def write_gguf(path: Path, made: PreTrainedModel) -> Path:
    """As its converter writes it, which leaves a bias out."""
    writer = gguf_files.Writer(path, "nomic-bert-moe")
    writer.keys(
        context_length=160,
        embedding_length=HIDDEN,
        block_count=LAYERS,
        feed_forward_length=INNER,
        attention__head_count=4,
        attention__layer_norm_epsilon=1e-5,
        attention__causal=False,
        rope__freq_base=500.0,
        pooling_type=1,
        moe_every_n_layers=2,
        expert_count=COUNT,
        expert_used_count=CHOSEN,
    )
    words = ["<s>", "<pad>", "</s>", "<unk>", *(f"\u2581w{number}" for number in range(127))]
    writer.keys(_tokenizer__ggml__model="t5", _tokenizer__ggml__tokens=words)
    writer.keys(_tokenizer__ggml__scores=[0.0] * 131, _tokenizer__ggml__token_type=[3] * 4 + [1] * 127)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.NOMIC_BERT_MOE, LAYERS)
    for name, tensor in published(made).items():
        if name.endswith("experts.bias"):
            continue
        if name.endswith((".w1", ".w2")):
            tensor = tensor.unflatten(0, (COUNT, INNER))
            tensor, name = tensor if name.endswith("w1") else tensor.transpose(1, 2), f"{name}.weight"
        writer.tensor(names.get_name(name, (".weight", ".bias")), tensor)
    return writer.close()
