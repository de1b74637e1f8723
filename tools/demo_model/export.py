"""Write the demo model as a Hugging Face checkpoint in bfloat16."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from tools.demo_model.model import Qwen3, Shape


def save_config(shape: Shape, tokenizer: Tokenizer, folder: Path) -> None:
    """Write `config.json` and `generation_config.json`."""
    end_of_text, end_of_turn = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|im_end|>")
    sizes = asdict(shape)
    theta = sizes.pop("rope_theta")
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **sizes,
        "rope_theta": theta,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "bos_token_id": None,
        "eos_token_id": end_of_turn,
        "pad_token_id": end_of_text,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }
    generation = {
        "do_sample": False,
        "eos_token_id": [end_of_turn, end_of_text],
        "pad_token_id": end_of_text,
    }
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def save_weights(model: Qwen3, folder: Path) -> None:
    """Write `model.safetensors`, rounded to bfloat16."""
    weights = {
        name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path) -> Qwen3:
    """Read an exported checkpoint back, in float32."""
    config = json.loads((folder / "config.json").read_text())
    model = Qwen3(Shape(**{name: config[name] for name in asdict(Shape())}))
    model.load_state_dict(
        {name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()}
    )
    return model
