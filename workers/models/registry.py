"""The mathematics of each family of models, by the name that its card gives it."""

from __future__ import annotations

from workers.models.bert import Bert
from workers.models.decoder import Decoder
from workers.models.gemma4 import Gemma4
from workers.models.hybrid import Hybrid
from workers.models.modernbert import ModernBert
from workers.models.nomic_bert import NomicBert

MODELS = {
    "apertus": Decoder,
    "arcee": Decoder,
    "bert": Bert,
    "cohere": Decoder,
    "cohere2": Decoder,
    "cwm": Decoder,
    "deepseek_v2": Decoder,
    "deepseek_v3": Decoder,
    "ernie4_5": Decoder,
    "ernie4_5_moe": Decoder,
    "exaone4": Decoder,
    "gemma": Decoder,
    "gemma2": Decoder,
    "gemma3": Decoder,
    "gemma4": Gemma4,
    "gemma4_unified": Gemma4,
    "glm": Decoder,
    "glm4": Decoder,
    "glm4_moe": Decoder,
    "glm4_moe_lite": Decoder,
    "gpt_oss": Decoder,
    "granite": Decoder,
    "granitemoe": Decoder,
    "hunyuan_v1_dense": Decoder,
    "hyperclovax": Decoder,
    "lfm2": Hybrid,
    "lfm2_moe": Hybrid,
    "llama": Decoder,
    "llama4": Decoder,
    "mellum": Decoder,
    "minimax_m2": Decoder,
    "ministral3": Decoder,
    "mistral": Decoder,
    "mixtral": Decoder,
    "modernbert": ModernBert,
    "nomic_bert": NomicBert,
    "olmo2": Decoder,
    "olmo3": Decoder,
    "olmoe": Decoder,
    "phi3": Decoder,
    "phimoe": Decoder,
    "qwen2": Decoder,
    "qwen2_moe": Decoder,
    "qwen3": Decoder,
    "qwen3_5": Hybrid,
    "qwen3_5_moe": Hybrid,
    "qwen3_moe": Decoder,
    "qwen3_next": Hybrid,
    "roberta": Bert,
    "seed_oss": Decoder,
    "smollm3": Decoder,
    "starcoder2": Decoder,
}
