"""StarCoder 2 (https://arxiv.org/abs/2402.19173): layer norms and biases, and an MLP without gates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.families.llama import dense_tensors
from workers.checkpoints.family import Family, renaming
from workers.checkpoints.model_config import ModelConfig

DEFAULTS = {"num_key_value_heads": 2, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True}
usual_name = renaming({".mlp.c_fc.": ".mlp.up_proj.", ".mlp.c_proj.": ".mlp.down_proj."})


class Starcoder2File(ConfigFile, kw_only=True):
    """The keys of StarCoder's `config.json`."""

    norm_epsilon: Annotated[float, Meta(ge=0)] = 1e-5
    use_bias: bool = True  # of all projections
    norm_type: Literal["layer_norm"] = "layer_norm"
    mlp_type: Literal["default"] = "default"
    scale_attn_weights: Literal[True] = True
    # nobody's: `hidden_act` and `norm_epsilon` count, and scores are float32
    activation_function: Any = None
    layer_norm_epsilon: Any = None
    attention_softmax_in_fp32: Any = None
    scale_attention_softmax_in_fp32: Any = None


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """A window is that of all layers."""
    file = config.read(path, DEFAULTS | dict(given), Starcoder2File)
    file = msgspec.structs.replace(file, rms_norm_eps=file.norm_epsilon, attention_bias=file.use_bias)
    windows = [file.sliding_window] * file.num_hidden_layers
    return config.model_config(path, file, windows, mlp_bias=file.use_bias, layer_norm=True, gates=False)


STARCODER2 = Family("starcoder2", ("Starcoder2ForCausalLM",), read, dense_tensors, usual_name=usual_name)
