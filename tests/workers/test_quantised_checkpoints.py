"""Checkpoints of every scheme answer as transformers does with the weights that they mean, and stay so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

import workers.weights.loader
from ipc.errors import CortexError
from tests.workers import quantised
from tests.workers.cards import refusal
from tests.workers.conftest import Tiny
from tests.workers.engines import make_runner, prompt_of, request, serve, some_requests
from tests.workers.oracle import greedy
from tests.workers.quantised import SCHEMES
from tests.workers.ranks import Job, run
from tests.workers.tiny_models import SIZES, qwen3
from workers.checkpoints.blocks import PLAIN
from workers.checkpoints.quantisation.scheme import matches
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import ALONE, Split
from workers.execution.model_runner import ModelRunner
from workers.models.decoder import Decoder
from workers.parallel import RankGroup
from workers.weights.dequantise import dequantise
from workers.weights.loader import Shard, Slice, WeightFiles

QUERIES = "model.layers.0.self_attn.q_proj"
ROUNDING = 2e-7  # of float32, where a scale is a product or a quotient itself
SHORT = 1e-6  # of float32 with 20 bits
BITS = {  # of a quantised weight, with the scales of its groups
    "fp8_blocks": 8.25,
    "gptq": 4.5,
    "awq": 4.25,
    "awq_64": 4.5,
    "gptq_zeros_32": 5,
    "nf4": 4.5,
    "nvfp4": 4.5,
    "mxfp4": 4.25,
    "w8a8": 8,
}
ROW_BYTES = {"nvfp4": 16, "w8a8": 16}  # of what has a scale for each row besides


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """`made(name)` is the folder of a checkpoint in that scheme, and transformers with the same weights."""

    @cache
    def make(name: str) -> Tiny:
        folder = tmp_path_factory.mktemp(name)
        return Tiny(folder, quantised.write(name, folder))

    return make


def load(folder: Path) -> ModelRunner:
    """An engine that measures no larger steps than these tests make."""
    runner = make_runner(folder, max_sequences=4, max_step_tokens=64)
    runner.load(lambda fraction, message: None)
    return runner


@pytest.mark.parametrize("name", SCHEMES)
def test_logits_are_those_of_the_weights_that_are_meant(made, name):
    same_logits(*made(name))


@pytest.mark.parametrize("name", ["awq", "fp8_blocks", "gptq_act_order"])
def test_experts_may_be_quantised(tmp_path, name):
    same_logits(tmp_path, quantised.write(name, tmp_path, experts=True))
    formats = read_card(tmp_path).formats(ALONE)
    assert "model.layers.1.mlp.experts.3.down_proj.weight" in formats
    assert "model.layers.1.mlp.gate.weight" not in formats


def test_experts_of_a_mixtral_may_be_quantised_under_their_own_names(tmp_path, monkeypatch):
    def mixtral(**changes: int) -> PreTrainedModel:
        return MixtralForCausalLM(MixtralConfig(**SIZES | quantised.SIZES, num_local_experts=4))

    monkeypatch.setattr(quantised, "qwen3_moe", mixtral)
    oracle = quantised.write("awq", tmp_path, experts=True)
    assert any(name.endswith(".w2.qweight") for name in load_file(tmp_path / "model.safetensors"))
    same_logits(tmp_path, oracle)


def test_groups_out_of_order_may_be_those_of_the_head(tmp_path, monkeypatch):
    monkeypatch.setattr(quantised, "PROJECTIONS", ("lm_head",))
    make = partial(qwen3, **quantised.SIZES, tie_word_embeddings=False)
    oracle = quantised.write("w4a16_act_order", tmp_path, make, ignore=[])
    assert list(read_card(tmp_path).formats(ALONE).orders) == ["lm_head.weight"]
    same_logits(tmp_path, oracle)


@pytest.mark.parametrize(("name", "tied"), [("w4a16_act_order", True), ("gptq_act_order", False)])
def test_an_embedding_whose_groups_are_out_of_order_is_looked_up_as_it_is_meant(
    tmp_path, monkeypatch, name, tied
):
    monkeypatch.setattr(quantised, "PROJECTIONS", ("embed_tokens",))
    make = partial(qwen3, **quantised.SIZES, tie_word_embeddings=tied, vocab_size=136)  # whole int32
    oracle = quantised.write(name, tmp_path, make)
    assert not read_card(tmp_path).formats(ALONE)
    same_logits(tmp_path, oracle)


def test_a_weight_that_is_kept_plain_has_its_columns_where_they_are(made):
    for name in ("gptq_act_order", "w4a16_act_order"):
        folder, oracle = made(name)
        whole = oracle.state_dict()[f"{QUERIES}.weight"]
        plain = torch.empty(whole[100:].shape)
        piece = Slice(f"{QUERIES}.weight", tuple(whole.shape), plain, row=100)
        WeightFiles(read_card(folder)).load([Shard([piece])], lambda fraction: None)
        torch.testing.assert_close(plain, whole[100:], rtol=ROUNDING, atol=0)


def same_logits(folder: Path, oracle: PreTrainedModel) -> None:
    """See that an engine has the logits of transformers after a prompt."""
    runner = load(folder)
    seen, logits = [], runner.model.logits
    runner.model.logits = lambda x: seen.append(logits(x)) or seen[-1].clone()
    prompt = [(7 * i + 3) % 131 for i in range(40)]
    serve(runner, [request(1, prompt, 1)])
    with torch.inference_mode():
        expected = oracle(torch.tensor([prompt])).logits[0, -1]
    torch.testing.assert_close(seen[-1][0], expected, rtol=1e-4, atol=1e-4)


def test_what_blocks_of_fp8_mean_is_what_transformers_makes_of_them():
    stored, values = quantised.fp8_blocks(np.random.default_rng(0).normal(size=(256, 384)).astype(np.float32))
    theirs = Fp8Dequantize(None)._dequantize_one(*stored.values(), output_dtype=torch.float32)
    assert torch.equal(theirs, torch.from_numpy(values.astype(np.float32)))


@pytest.mark.parametrize("name", ["awq", "fp8_blocks"])
def test_greedy_tokens_are_those_of_the_weights_that_are_meant(made, name):
    folder, oracle = made(name)
    runner = load(folder)
    requests = some_requests(4, 131, seed=7)
    outputs = serve(runner, requests, seed=7, max_sequences=4)
    for submit, output in zip(requests, outputs, strict=True):
        assert output == greedy(oracle, prompt_of(submit), output)
    assert len({token for output in outputs for token in output}) > 20, "answers too dull to prove much"


@pytest.mark.parametrize("name", SCHEMES)
def test_every_rank_keeps_its_part_quantised_and_means_the_same_by_it(made, monkeypatch, name):
    monkeypatch.setattr(workers.weights.loader, "BLOCK", 20_000)  # parts that begin within an int32
    folder, oracle = made(name)
    card, weights, stored = read_card(folder), oracle.state_dict(), load_file(folder / "model.safetensors")
    for size in (1, 2):
        formats = card.formats(Split.evenly(size))
        assert len(formats) == 14
        for rank in range(size):
            model = Decoder(card.config, RankGroup(rank, size), torch.float32, formats)
            parts = list(model.parts())
            WeightFiles(card).load(parts, lambda fraction: None)
            for piece in (piece for part in parts for piece in part.pieces if piece.format is not None):
                assert piece.format.name == formats[piece.name] == card.tensors[piece.name].dtype
                whole = weights[piece.name]
                width = piece.format.columns(piece.into.shape[1])
                if order := card.tensors[piece.name].order:
                    whole = whole[:, stored[order].argsort(stable=True)]
                mine = whole[piece.row :][: len(piece.into), piece.column : piece.column + width]
                meant = dequantise(piece.format.name, piece.into)
                rounding = SHORT if name == "w4a16_float32_scales" else ROUNDING
                torch.testing.assert_close(meant, mine, rtol=rounding, atol=0)


@pytest.mark.parametrize(("name", "bits"), BITS.items())
def test_bytes_of_a_rank_are_those_that_are_kept(made, name, bits):
    card = read_card(made(name).folder)
    shapes = [tensor.shape for each, tensor in card.tensors.items() if "_proj" in each]
    kept = sum(rows * (columns * bits // 8 + ROW_BYTES.get(name, 0)) for rows, columns in shapes)
    plain = sum(tensor.nbytes for tensor in card.tensors.values() if tensor.dtype in PLAIN)
    [size] = card.bytes_per_rank(ALONE)
    assert size - plain == kept


def test_two_ranks_answer_as_one_does(made):
    names = ["gptq", "nf4_nested", "gptq_act_order"]
    for name, result in zip(
        names, run([Job(str(made(name).folder), "answer") for name in names], 2), strict=True
    ):
        for prompt, output in zip(result.prompts, result.outputs, strict=True):
            assert output == greedy(made(name).oracle, prompt, output)


# --- what is refused ------------------------------------------------------------------------------------


def without(folder: Path, *names: str) -> Path:
    path = folder / "model.safetensors"
    save_file({name: each for name, each in load_file(path).items() if name not in names}, path)
    return folder


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("fp8_blocks", "weight_scale_inv"),
        ("fp8_rows", "weight_scale"),
        ("awq", "scales"),
        ("awq", "qzeros"),
        ("gptq", "qweight"),
        ("gptq_act_order", "g_idx"),
        ("w4a16_act_order", "weight_g_idx"),
        ("w4a16", "weight_scale"),
        ("w4a16_zeros_32", "weight_zero_point"),
        ("nvfp4", "weight_scale_2"),
        ("nvfp4_compressed", "weight_global_scale"),
        ("mxfp4", "weight_scale"),
        ("nf4", "weight.absmax"),
        ("nf4", "weight.quant_state.bitsandbytes__nf4"),
        ("nf4_nested", "weight.nested_absmax"),
        ("int8", "SCB"),
    ],
)
def test_a_tensor_that_a_quantised_weight_needs_is_named_where_it_is_missing(tmp_path, name, missing):
    quantised.write(name, tmp_path)
    assert f"{QUERIES}.{missing}" in refusal(without(tmp_path, f"{QUERIES}.{missing}"))


@pytest.mark.parametrize(
    ("name", "end", "change", "words"),
    [
        ("fp8_blocks", "weight_scale_inv", lambda t: t[:1], "is [1, 2], and its scheme has [2, 2]"),
        ("fp8_whole", "weight", lambda t: t.to(torch.float8_e5m2), "is F8_E5M2, and its scheme has F8_E4M3"),
        ("awq", "scales", lambda t: t.int(), "is I32, and its scheme has F16 or BF16 or F32"),
        ("gptq", "qweight", lambda t: t[:-1], "is [31, 256], and its scheme has [32, 256]"),
        ("int8", "weight_format", lambda t: t + 1, "weight_format is not 0"),
        ("gptq", "g_idx", lambda t: t * 0, "does not put inputs into 2 groups of 128"),
        ("gptq", "g_idx", lambda t: t[:-1], "is [255], and its scheme has [256]"),
        ("nf4", "weight", lambda t: t[1:], "is [32767, 1]"),
        ("nf4", "weight.quant_state.bitsandbytes__nf4", lambda t: t[1:], "bad JSON in 'the state of"),
    ],
)
def test_a_tensor_that_is_not_as_its_scheme_has_it_is_named(tmp_path, name, end, change, words):
    quantised.write(name, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors[f"{QUERIES}.{end}"] = change(tensors[f"{QUERIES}.{end}"]).contiguous()
    save_file(tensors, path)
    message = refusal(tmp_path)
    assert QUERIES in message
    assert words in message


def test_zero_points_that_a_symmetric_weight_should_not_have_end_the_load_with_the_reason(tmp_path):
    quantised.write("gptq", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors[f"{QUERIES}.qzeros"] += 1
    save_file(tensors, path)
    with pytest.raises(CortexError, match="sym is true, and a zero point is 9"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "end"), [("fp8_blocks", "weight"), ("fp8_whole", "weight"), ("nvfp4", "weight_scale")]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_of_fp8_that_are_nan_end_the_load_naming_their_tensor(tmp_path, name, end, sign):
    quantised.write(name, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    one = torch.full((1,), torch.nan).copysign(torch.tensor(sign)).to(torch.float8_e4m3fn)
    tensors[f"{QUERIES}.{end}"].view(torch.uint8)[3, 5] = one.view(torch.uint8).item()
    save_file(tensors, path)
    with pytest.raises(CortexError, match=f"NaN among its FP8 numbers, found while tensor {QUERIES}.weight"):
        load(tmp_path)


GROUP = {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 128}}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "hqq"}, "the weights are quantised (hqq), which is not supported; there are awq,"),
        ({"quant_method": None}, "quantised (unknown)"),
        (
            {"group_size": 64, "bits": 4, "mode": "affine"},
            "quantization_config: the weights are quantised (MLX)",
        ),
        ({"quant_method": ["awq"]}, "the weights are quantised (['awq'])"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, "weight_block_size [64, 64]"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt 'e5m2' is not supported"),
        ({"quant_method": "awq", "bits": 3}, "bits 3 is not supported"),
        ({"quant_method": "awq", "backend": "llm-awq"}, "backend llm-awq is not supported"),
        ({"quant_method": "awq", "version": "gemv"}, "version gemv is not supported; gemm is"),
        ({"quant_method": "awq", "group_size": 48}, "group_size 48 is not supported"),
        ({"quant_method": "gptq"}, "bits is missing"),
        ({"quant_method": "gptq", "bits": 2}, "bits 2 is not supported; there are 4, 8"),
        ({"quant_method": "gptq", "bits": 8, "sym": False}, "8 bits with zero points"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format marlin"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"-:down": {}}}, "dynamic is not supported"),
        ({"quant_method": "bitsandbytes"}, "neither load_in_4bit nor load_in_8bit"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo W4A8_AWQ is not supported"),
        ({"quant_method": "modelopt", "quantization": {"quant_algo": "INT4_AWQ"}}, "quant_algo INT4_AWQ is"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "has no quantized_layers"),
        (
            {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {}},
            "has no quantized_layers",
        ),
        (
            {
                "quant_method": "modelopt",
                "quant_algo": "MIXED_PRECISION",
                "quantized_layers": {"a": {"quant_algo": "FP8"}, "b": {"quant_algo": "FP8_PB_WO"}},
            },
            "quant_algo FP8_PB_WO is not supported",
        ),
        ({"quant_method": "compressed-tensors"}, "config_groups"),
        (
            {"quant_method": "compressed-tensors", "format": "marlin-24", "config_groups": {"a": GROUP}},
            "format marlin-24 with weights of int 4, by group, is not supported",
        ),
        (
            quantised.compressed("pack-quantized", actorder="sideways"),
            "actorder sideways is not supported",
        ),
        (
            quantised.compressed("int-quantized", num_bits=8, strategy="channel", symmetric=False),
            "by channel, asymmetric, is not supported",
        ),
        (
            quantised.compressed("pack-quantized") | {"sparsity_config": {"format": "sparse-24-bitmask"}},
            "sparsity_config sparse-24-bitmask is not supported",
        ),
        (quantised.compressed("pack-quantized") | {"ignore": ["re:(a+)+$"]}, "or may take for ever"),
        (quantised.compressed("pack-quantized") | {"ignore": ["re:" + ".?" * 32 + "X"]}, "take for ever"),
        (quantised.compressed("pack-quantized") | {"ignore": ["re:" + "(?:.|m)" * 32]}, "take for ever"),
        ({"quant_method": "awq", "modules_to_not_convert": "lm_head"}, "no list of names"),
    ],
)
def test_a_setting_that_is_not_supported_is_named(made, tmp_path, config, words):
    source = made("awq").folder / "config.json"
    (tmp_path / "config.json").write_text(
        json.dumps(json.loads(source.read_text()) | {"quantization_config": config})
    )
    message = refusal(tmp_path)
    assert "config.json: quantization_config" in message
    assert words in message


def test_the_layers_of_a_mixed_checkpoint_may_stand_in_modelopts_own_file_alone(made, tmp_path):
    shutil.copytree(made("modelopt_mixed").folder, tmp_path, dirs_exist_ok=True)
    whole = read_card(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    layers = config["quantization_config"].pop("quantized_layers")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "config.json: quantization_config.quant_algo MIXED_PRECISION has no" in refusal(tmp_path)
    said = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": said}))
    card = read_card(tmp_path)
    assert (card.tensors, card.notes) == (whole.tensors, whole.notes)


@pytest.mark.parametrize("is_in_config", [True, False])
@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            {"quantized_layers": {"a": {"quant_algo": "FP8_PB_WO"}}},
            "quantized_layers.a.quant_algo FP8_PB_WO is",
        ),
        (
            {"quantized_layers": {"a": {"quant_algo": "NVFP4", "group_size": 8}}},
            "quantized_layers.a.group_size 8 is",
        ),
        ({"quantized_layers": ["a"]}, "quant_algo MIXED_PRECISION has no quantized_layers"),
    ],
)
def test_what_is_wrong_in_modelopts_own_file_is_said_of_that(made, tmp_path, is_in_config, said, words):
    config = json.loads((made("modelopt_mixed").folder / "config.json").read_text())
    del config["quantization_config"]["quantized_layers"]
    if not is_in_config:
        del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    beside = {"quantization": {"quant_algo": "MIXED_PRECISION"} | said}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
    assert f"hf_quant_config.json: quantization.{words}" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"quant_algo": "INT4_AWQ"}, "quantization.quant_algo INT4_AWQ is not supported"),
        ({"quant_algo": "FP8", "exclude_modules": "lm_head"}, "quantization.exclude_modules is no list"),
        ([], "quantization is no object"),
    ],
)
def test_so_is_what_stands_there_alone(made, tmp_path, said, words):
    config = json.loads((made("modelopt_mixed").folder / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": said}))
    assert f"hf_quant_config.json: {words}" in refusal(tmp_path)


def test_modules_that_are_listed_as_not_quantised_have_plain_weights(tmp_path):
    quantised.write("fp8_whole", tmp_path, modules_to_not_convert=["model.layers.0.self_attn", "lm_head"])
    assert f"{QUERIES}.weight' is F8_E4M3, and weights are F32" in refusal(tmp_path)


def test_columns_that_are_no_whole_blocks_are_refused_naming_the_file(tmp_path, monkeypatch):
    monkeypatch.setitem(quantised.SIZES, "intermediate_size", 448)
    quantised.write("fp8_blocks", tmp_path)
    assert refusal(tmp_path) == (
        f"{tmp_path}/model.safetensors: 'model.layers.0.mlp.down_proj.weight' is FP8_128, in blocks of 128, "
        "which do not divide its 448 columns"
    )


def test_names_and_patterns_of_modules_mean_what_their_writers_mean_by_them():
    module = "model.layers.11.mlp.gate_proj"
    for pattern in (
        "gate_proj",
        "mlp",
        module,
        "model.layers.11",
        "*gate_proj",
        "re:.*mlp.*",
        "re:model[.]layers",
    ):
        assert matches(module, [pattern])
    for pattern in ("model.layers.1", "gate", "proj", "re:mlp", "layers.1*", "lm_head"):
        assert not matches(module, [pattern])


def test_how_weights_are_kept_is_a_note(made):
    assert read_card(made("awq").folder).notes == [
        "config.json: weights are AWQ, 4 bits in groups of 128, and stay so in memory; "
        "what the scheme does to activations is not imitated"
    ]
