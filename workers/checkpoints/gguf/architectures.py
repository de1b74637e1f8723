"""The architectures of llama.cpp: which of Hugging Face's each is, and how its files are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workers.checkpoints.files import refuse, those_known
from workers.checkpoints.gguf import pooling, unread
from workers.checkpoints.gguf.families import (
    bert,
    deepseek,
    delta_net,
    dense,
    experts,
    gemma,
    gemma3n,
    gemma4,
    lfm2,
    mamba,
)
from workers.checkpoints.gguf.header import Gguf
from workers.checkpoints.gguf.keys import Json, Keys
from workers.checkpoints.gguf.unread import SIGMOID, SOFTMAX, SOFTMAX_OF_CHOSEN


@dataclass(frozen=True, slots=True)
class Architecture:
    """How files of one architecture are read.

    Args:
        name: of the architecture in `config.json`.
        config: what of `config.json` is not the same for all.
        halves_as_pairs: rows of queries and keys are stored so that the two dimensions that turn together are
            neighbours, where `config.json` means them half a head apart.
        norms_with_one: how the names of norms end whose weights are stored with the 1 that the model adds to
            them; "": of none.
        tensors: names that are others than in `names.LAYER`.
        whole: names of tensors, their endings included; of a layer without its number.
        read_with_config: names of a layer's tensors that say what is no tensor of the model.
        stacked: names of tensors that are several, one after the other; `{}` is the number of each.
        experts: what the names of a layer's experts begin with.
        layers: what the names of all layers begin with.
        embeds: it is an encoder: `config` is all of `config.json`.
        encodes: it is one whose config is that of a decoder.
        latent: what is kept of a token is one vector, of which all heads make their keys and values.
        neutral: values of keys that nobody reads and that change nothing, where they are others than in
            `unread.NEUTRAL`.
    """

    name: str
    config: Callable[[Keys], Json] = lambda keys: {}
    halves_as_pairs: bool = False
    norms_with_one: str = ""
    tensors: Mapping[str, str] = field(default_factory=dict)
    whole: Mapping[str, str] = field(default_factory=dict)
    read_with_config: tuple[str, ...] = ()
    stacked: Mapping[str, str] = field(default_factory=dict)
    experts: str = "mlp.experts"
    layers: str = "model.layers"
    embeds: bool = False
    encodes: bool = False
    latent: bool = False
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


ALL_NORMS, NORMS_OF_LAYERS = "norm.weight", "layernorm.weight"
AFTER = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
GLM_NORMS = {"post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm"}
AFMOE_NORMS = AFTER | {"ffn_norm": "pre_mlp_layernorm", "post_ffw_norm": "post_mlp_layernorm"}
FUSED = {"ffn_up": "mlp.gate_up_proj"}
SHARED_EXPERT, SHARED_MLP = (
    {f"ffn_{part}_shexp": f"mlp.{name}.{part}_proj" for part in ("gate", "up", "down")}
    for name in ("shared_expert", "shared_mlp")
)

NEMOTRON_H = Architecture(
    "NemotronHForCausalLM",
    mamba.nemotron,
    tensors=mamba.LAYER | {"attn_norm": "norm"},
    whole=mamba.WHOLE,
    neutral={"expert_gating_func": (0, SIGMOID)},
)
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("LlamaForCausalLM", experts.llama, halves_as_pairs=True),
    "mistral3": Architecture("MistralForCausalLM", dense.mistral3, halves_as_pairs=True),
    "qwen2": Architecture("Qwen2ForCausalLM"),
    "qwen2vl": Architecture("Qwen2ForCausalLM", dense.seeing),
    "qwen3": Architecture("Qwen3ForCausalLM"),
    "qwen3vl": Architecture("Qwen3ForCausalLM", dense.seeing),
    "qwen3vlmoe": Architecture("Qwen3MoeForCausalLM", experts.qwen3_vl),
    "qwen3moe": Architecture("Qwen3MoeForCausalLM", experts.qwen3_moe),
    "mellum": Architecture("MellumForCausalLM", experts.mellum),
    "qwen2moe": Architecture(
        "Qwen2MoeForCausalLM",
        experts.qwen2_moe,
        tensors=SHARED_EXPERT,
        neutral={"expert_weights_norm": (False,)},
    ),
    "qwen3next": Architecture(
        "Qwen3NextForCausalLM",
        delta_net.with_experts,
        norms_with_one=ALL_NORMS,
        tensors=SHARED_EXPERT | delta_net.LAYER,
        whole=delta_net.WHOLE,
    ),
    "qwen35": Architecture(
        "Qwen3_5ForCausalLM",
        delta_net.config,
        norms_with_one=ALL_NORMS,
        tensors=delta_net.LAYER,
        whole=delta_net.WHOLE,
    ),
    "qwen35moe": Architecture(
        "Qwen3_5MoeForCausalLM",
        delta_net.with_experts,
        norms_with_one=ALL_NORMS,
        tensors=SHARED_EXPERT | delta_net.LAYER,
        whole=delta_net.WHOLE,
    ),
    "deepseek2": Architecture(
        "DeepseekV3ForCausalLM",
        deepseek.config,
        tensors=deepseek.LAYER,
        latent=True,
        neutral={"attention.scale": unread.NOTHING},
    ),
    "mistral4": Architecture("Mistral4ForCausalLM", deepseek.mistral4, tensors=deepseek.LAYER, latent=True),
    "gemma": Architecture("GemmaForCausalLM", norms_with_one=ALL_NORMS),
    "gemma2": Architecture("Gemma2ForCausalLM", gemma.gemma2, norms_with_one=ALL_NORMS, tensors=gemma.NORMS),
    "gemma3": Architecture("Gemma3ForCausalLM", gemma.gemma3, norms_with_one=ALL_NORMS, tensors=gemma.NORMS),
    "gemma-embedding": Architecture(
        "Gemma3TextModel",
        gemma.embedding,
        norms_with_one=ALL_NORMS,
        tensors=gemma.NORMS,
        whole=pooling.DENSE,
        encodes=True,
        neutral=bert.NEUTRAL,
    ),
    "eurobert": Architecture("EuroBertModel", encodes=True, neutral=bert.NEUTRAL),
    "bert": Architecture(
        "BertModel",
        bert.config,
        tensors=bert.LAYER,
        whole=bert.WHOLE,
        layers="encoder.layer",
        embeds=True,
        neutral=bert.NEUTRAL,
    ),
    "nomic-bert": Architecture(
        "NomicBertModel",
        bert.nomic_config,
        tensors=bert.NOMIC_LAYER,
        whole=bert.NOMIC_WHOLE,
        layers="encoder.layers",
        embeds=True,
        neutral=bert.NEUTRAL,
    ),
    "nomic-bert-moe": Architecture(
        "NomicBertModel",
        bert.nomic_moe_config,
        tensors=bert.NOMIC_MOE_LAYER,
        whole=bert.NOMIC_WHOLE,
        layers="encoder.layers",
        embeds=True,
        neutral=bert.NEUTRAL,
    ),
    "modern-bert": Architecture(
        "ModernBertModel",
        bert.modern_config,
        tensors=bert.MODERN_LAYER,
        whole=bert.MODERN_WHOLE,
        layers="layers",
        embeds=True,
        neutral=bert.NEUTRAL,
    ),
    "gemma3n": Architecture(
        "Gemma3nForCausalLM",
        gemma3n.config,
        tensors=gemma3n.LAYER,
        whole=gemma3n.WHOLE,
        stacked=gemma3n.STACKED,
        neutral={"attention.scale": (0, 1.0)},
    ),
    "gemma4": Architecture(
        "Gemma4ForCausalLM",
        gemma4.config,
        tensors=gemma.NORMS | gemma4.INPUT_NAMES | gemma4.BESIDE_MLP,
        whole=gemma4.WHOLE,
        experts="experts",
        neutral={"attention.scale": (0, 1.0)},
    ),
    "muse-glimmer": Architecture(
        "MuseGlimmerForCausalLM",
        gemma.muse_glimmer,
        halves_as_pairs=True,
        norms_with_one=NORMS_OF_LAYERS,
        tensors=gemma.NORMS | {"attn_gate": "self_attn.gate_proj"},
        read_with_config=("attn_q_norm", "attn_k_norm"),
    ),
    "phi3": Architecture("Phi3ForCausalLM", dense.phi3, tensors=FUSED),
    "granite": Architecture("GraniteForCausalLM", dense.granite, halves_as_pairs=True),
    "granitemoe": Architecture(
        "GraniteMoeForCausalLM", experts.granite_moe, halves_as_pairs=True, tensors=SHARED_MLP
    ),
    "granite_swa": Architecture("GraniteSWAForCausalLM", experts.granite_swa, halves_as_pairs=True),
    "smollm3": Architecture("SmolLM3ForCausalLM", halves_as_pairs=True),
    "olmo2": Architecture("Olmo2ForCausalLM", dense.olmo2, tensors=AFTER),
    "glm4moe": Architecture(
        "Glm4MoeForCausalLM", experts.glm4_moe, tensors=AFTER, neutral={"expert_gating_func": (0, SIGMOID)}
    ),
    "gpt-oss": Architecture(
        "GptOssForCausalLM",
        experts.gpt_oss,
        tensors=AFTER | {"ffn_gate_inp": "mlp.router"},
        neutral={"expert_gating_func": (0, SOFTMAX, SOFTMAX_OF_CHOSEN), "swiglu_clamp_exp": (7.0,)},
    ),
    "glm4": Architecture("Glm4ForCausalLM", tensors=FUSED | GLM_NORMS),
    "command-r": Architecture("CohereForCausalLM", dense.cohere),
    "cohere2": Architecture("Cohere2ForCausalLM", dense.cohere2),
    "cohere2moe": Architecture("Cohere2MoeForCausalLM", experts.cohere2_moe),
    "seed_oss": Architecture(
        "SeedOssForCausalLM", dense.seed_oss, tensors={"post_attention_norm": "post_attention_layernorm"}
    ),
    "exaone4": Architecture("Exaone4ForCausalLM", dense.exaone4, tensors=AFTER),
    "ernie4_5": Architecture("Ernie4_5ForCausalLM", dense.ernie4_5),
    "ernie4_5-moe": Architecture("Ernie4_5_MoeForCausalLM", experts.ernie4_5_moe),
    "olmoe": Architecture("OlmoeForCausalLM", experts.olmoe, neutral={"expert_weights_norm": (False,)}),
    "minimax-m2": Architecture("MiniMaxM2ForCausalLM", experts.minimax_m2),
    "arcee": Architecture("ArceeForCausalLM", dense.arcee, halves_as_pairs=True),
    "jais2": Architecture("Jais2ForCausalLM", dense.jais2),
    "starcoder2": Architecture("Starcoder2ForCausalLM", dense.starcoder2),
    "lfm2": Architecture("Lfm2ForCausalLM", lfm2.config, tensors=lfm2.LAYER, whole=lfm2.WHOLE),
    "lfm2moe": Architecture("Lfm2MoeForCausalLM", lfm2.with_experts, tensors=lfm2.LAYER, whole=lfm2.WHOLE),
    "granitehybrid": Architecture(
        "GraniteMoeHybridForCausalLM",
        mamba.granite,
        halves_as_pairs=True,
        tensors=SHARED_MLP | mamba.LAYER,
        whole=mamba.WHOLE,
    ),
    "falcon-h1": Architecture(
        "FalconH1ForCausalLM",
        mamba.falcon,
        tensors=mamba.LAYER | {"ffn_norm": "pre_ff_layernorm"},
        whole=mamba.WHOLE | {"ffn_norm": "pre_ff_layernorm.weight"},  # as llama.cpp has it, without an ending
    ),
    "nemotron_h": NEMOTRON_H,
    "nemotron_h_moe": NEMOTRON_H,
    "hunyuan-dense": Architecture("HunYuanDenseV1ForCausalLM"),
    "hunyuan-moe": Architecture("HunYuanMoEV1ForCausalLM", experts.hunyuan_moe, tensors=SHARED_MLP),
    "afmoe": Architecture(
        "AfmoeForCausalLM",
        experts.afmoe,
        tensors=AFMOE_NORMS | {"attn_gate": "self_attn.gate_proj"},
        neutral={"expert_gating_func": (0, SIGMOID)},
    ),
    "laguna": Architecture(
        "LagunaForCausalLM",
        experts.laguna,
        tensors={"attn_gate": "self_attn.gate_proj"},
        neutral={"expert_gating_func": (0, SIGMOID), "expert_shared_count": (1,)},
    ),
    "dots1": Architecture("Dots1ForCausalLM", experts.dots1),
    "llama4": Architecture(
        "Llama4ForCausalLM",
        experts.llama4,
        tensors=SHARED_EXPERT | {"ffn_gate_inp": "mlp.router"},
        neutral={"expert_gating_func": (0, SIGMOID), "expert_weights_norm": (False,)},
    ),
}

SEES = "is what sees for a model, and no model: that one's own GGUF file is read, and without this one"
NO_MODELS = {  # what else files are, by `general.type` or their architecture
    "mmproj": SEES,
    "clip": SEES,
    "adapter": "is an adapter in GGUF, and adapters are read as PEFT writes them",
    "imatrix": "is figures for whoever quantises a model, and no model",
}


def find(file: Gguf) -> Architecture:
    """How `file` is read; raises CortexError for an unknown architecture, saying what the file is."""
    for kind in (file.metadata.get("general.type"), file.architecture):
        if kind in NO_MODELS:
            refuse(file.path, NO_MODELS[kind])
    found = ARCHITECTURES.get(file.architecture)
    if found is None:
        others = those_known(ARCHITECTURES, file.architecture)
        refuse(file.path, f"is {file}: such files are not supported; {others}")
    return found
