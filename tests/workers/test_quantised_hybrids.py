"""Models with layers that keep a state, in blocks: quantised on the way in, or stored so.

How much is lost is no measure of faults here: random weights make ten times as much of what was rounded, and
a token that goes to another expert for it has other logits. What the rounded weights answer is one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ipc.worker_messages import Submit
from tests.workers import quantised, tiny_models
from tests.workers.engines import request, serve, some_requests
from tests.workers.oracle import fill
from tests.workers.thread_ranks import Ranks
from workers.checkpoints.blocks import QUANTIZATIONS
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import ALONE, Split
from workers.models.registry import MODELS
from workers.parallel import RankGroup
from workers.weights.dequantise import dequantise
from workers.weights.quantise import quantise

SIZES = {
    "vocab_size": 128,
    "hidden_size": 256,
    "head_dim": 64,
    "linear_key_head_dim": 48,  # so that heads begin and end within blocks of 128 rows
    "linear_value_head_dim": 64,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
}
EXPERTS = {"moe_intermediate_size": 256, "shared_expert_intermediate_size": 256}
# heads that begin and end within blocks of 128 rows
SPACES = {"vocab_size": 128, "hidden_size": 256, "intermediate_size": 256}
MAKERS = {
    "qwen3_next": lambda: tiny_models.qwen3_next(**SIZES | EXPERTS),
    "qwen3_5": lambda: tiny_models.qwen3_5(**SIZES, intermediate_size=512),
    "qwen3_5_moe": lambda: tiny_models.qwen3_5_moe(**SIZES | EXPERTS),
    "granite_hybrid": lambda: tiny_models.granite_hybrid(
        **SPACES | {"shared_intermediate_size": 256},
        layer_types=SIZES["layer_types"],
        mamba_n_heads=8,
        num_hidden_layers=2,
    ),
    "nemotron_h": lambda: tiny_models.nemotron_h(
        **SPACES | {"moe_intermediate_size": 256, "moe_shared_expert_intermediate_size": 256},
        layers_block_type=["linear_attention", "moe", "full_attention", "mlp"],
        head_dim=64,
        mamba_num_heads=8,
        mamba_head_dim=64,
    ),
    "falcon_h1": lambda: tiny_models.falcon_h1(**SPACES, mamba_d_ssm=512, mamba_n_heads=8),
}
PLAIN = {  # matrices that are never in blocks: few rows each, of which every token's state or way hangs
    "qwen3_next": {"in_proj_ba", "conv1d", "gate", "shared_expert_gate"},
    "qwen3_5": {"in_proj_a", "in_proj_b", "conv1d"},
    "qwen3_5_moe": {"in_proj_a", "in_proj_b", "conv1d", "gate", "shared_expert_gate"},
    "granite_hybrid": {"conv1d", "gate"},
    "nemotron_h": {"conv1d", "gate"},
    "falcon_h1": {"conv1d"},
}
LIMITS = {"max_sequences": 4, "max_step_tokens": 64}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`made(name)` is the folder of that model in float32, whose columns are whole blocks."""
    torch.set_num_threads(1)

    @cache
    def make(name: str) -> Path:
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(name)
        model = MAKERS[name]()
        fill(model, std=0.2)
        model.save_pretrained(folder)
        (folder / "tokenizer.json").write_text("{}")
        return folder

    return make


def answered(ranks: Ranks, requests: list[Submit]) -> tuple[list[list[int]], torch.Tensor]:
    """The tokens of each, and the logits of every step."""
    seen, model = [], ranks.ranks[0].model
    logits = model.logits
    model.logits = lambda x: seen.append(logits(x)) or seen[-1].clone()
    tokens = serve(ranks, requests, max_sequences=4)
    ranks.close()
    return tokens, torch.cat(seen)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_5"])
def test_a_quantised_hybrid_answers_as_its_dequantised_weights_do(
    made, tmp_path, monkeypatch, name, quantization, size
):
    folder = made(name)
    card, tensors = read_card(folder), load_file(folder / "model.safetensors")
    for each, form in card.formats(Split.evenly(size), quantization).items():
        tensors[each] = dequantise(form, quantise(form, tensors[each]))
    save_file(tensors, tmp_path / "model.safetensors")
    for file in ("config.json", "tokenizer.json"):
        (tmp_path / file).symlink_to(folder / file)

    def engine(path: Path, **changes: Any) -> Ranks:
        return Ranks(path, size, monkeypatch, **LIMITS | changes)

    requests = some_requests(3, 128, seed=0, longest=8)
    tokens, logits = answered(engine(folder, quantization=quantization), requests)
    expected_tokens, expected = answered(engine(tmp_path), requests)
    assert tokens == expected_tokens
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", MAKERS)
def test_planned_bytes_of_a_hybrid_are_the_bytes_that_are_held(made, name):
    card = read_card(made(name))
    for quantization in (None, *QUANTIZATIONS):
        config = card.kept_in(quantization).config
        for size in (1, 2):
            formats = card.formats(Split.evenly(size), quantization)
            held = [
                MODELS[card.family](config, RankGroup(rank, size), torch.bfloat16, formats).nbytes
                for rank in range(size)
            ]
            assert held == card.bytes_per_rank(Split.evenly(size), "bfloat16", quantization)


@pytest.mark.parametrize("name", MAKERS)
def test_what_states_and_routes_hang_on_stays_plain_in_every_quantisation(made, name):
    card = read_card(made(name))
    matrices = {each for each, tensor in card.tensors.items() if len(tensor.shape) > 1}
    for quantization in QUANTIZATIONS:
        plain = matrices - card.formats(ALONE, quantization).keys()
        assert {each.split(".")[-2] for each in plain} == PLAIN[name]


@pytest.mark.parametrize("name", MAKERS)
def test_a_hybrid_that_is_stored_in_blocks_of_fp8_has_the_logits_of_what_they_mean(
    tmp_path, monkeypatch, name
):
    """As they are published: what states hang on is left plain. Regions of heads begin within blocks."""
    oracle = quantised.write("fp8_blocks", tmp_path, MAKERS[name])
    formats = read_card(tmp_path).formats(ALONE)
    inputs = {each.split(".in_proj")[1] for each in formats if ".in_proj" in each}
    assert inputs == (
        {"_qkvz.weight"}
        if name == "qwen3_next"
        else {"_qkv.weight", "_z.weight"}
        if "qwen" in name
        else {".weight"}
    )
    prompt = [(7 * i + 3) % 128 for i in range(40)]
    with torch.inference_mode():
        expected = oracle(torch.tensor([prompt])).logits[0, -1]
    for size in (1, 2):
        ranks = Ranks(tmp_path, size, monkeypatch, **LIMITS)
        _, logits = answered(ranks, [request(1, prompt, 1)])
        torch.testing.assert_close(logits[-1], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scheme", ["fp8_modelopt", "nvfp4"])
def test_a_hybrid_as_modelopt_published_it_has_the_logits_of_what_it_means(tmp_path, monkeypatch, scheme):
    """How it is quantised stands in a file beside `config.json`, which lists what is not, by its own names.
    The cache of its keys and values has scales, which nobody needs who keeps them whole."""
    oracle = quantised.write(scheme, tmp_path, MAKERS["nemotron_h"])
    given = json.loads((tmp_path / "config.json").read_text())
    algorithm = given.pop("quantization_config")["quant_algo"]
    (tmp_path / "config.json").write_text(json.dumps(given))
    said = {
        "quant_algo": algorithm,
        "kv_cache_quant_algo": "FP8",
        "group_size": 16 if scheme == "nvfp4" else None,
        "exclude_modules": ["lm_head", "backbone.layers.0.mixer.conv1d", "backbone.layers.1.mixer.gate"],
    }
    about = {"producer": {"name": "modelopt", "version": "0.29.0"}, "quantization": said}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(about))
    tensors = load_file(tmp_path / "model.safetensors")
    scales = {f"backbone.layers.2.mixer.{part}_proj.{part}_scale": torch.ones(()) for part in "kv"}
    save_file(tensors | scales, tmp_path / "model.safetensors")
    prompt = [(7 * i + 3) % 128 for i in range(40)]
    with torch.inference_mode():
        expected = oracle(torch.tensor([prompt])).logits[0, -1]
    for size in (1, 2):
        ranks = Ranks(tmp_path, size, monkeypatch, **LIMITS)
        _, logits = answered(ranks, [request(1, prompt, 1)])
        torch.testing.assert_close(logits[-1], expected, rtol=1e-3, atol=1e-3)
