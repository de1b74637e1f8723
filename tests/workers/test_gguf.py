"""GGUF files: what llama.cpp's converters make of a checkpoint is that checkpoint again."""

from __future__ import annotations

import gguf
import msgspec
import numpy
import pytest
import torch
from safetensors.torch import load_file

import workers.weights.loader
from ipc.errors import CortexError
from tests.workers import gguf_config, gguf_files, tiny_models
from tests.workers.engines import make_runner, prompt_of, request, serve
from tests.workers.oracle import fill, greedy
from tests.workers.predicting import Head
from tests.workers.thread_ranks import Ranks
from workers.checkpoints.card import ModelCard
from workers.checkpoints.families.qwen3_next import DELTA_OUTPUT
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import ALONE, Split
from workers.layers.rotary import frequencies
from workers.models.registry import MODELS
from workers.parallel import RankGroup
from workers.weights.dequantise import dequantise
from workers.weights.loader import Shard, Slice, WeightFiles

SAME = [
    "llama_untied_linear",
    "llama_tied_llama3",
    "llama_yarn_biased",
    "llama_one_key_head_sharded",
    "qwen2_tied",
    "qwen3_untied_biased",
    "qwen3_yarn",
    "qwen3_moe",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_linear_capped",
    "gemma3n",
    "gemma3n_shared_sparse",
    "gemma4",
    "gemma4_inputs_shared",
    "gemma4_experts_k_eq_v",
    "muse_glimmer",
    "phi3_partial_tied",
    "granite_biased",
    "granitemoe",
    "granitemoe_shared",
    "granite_swa",
    "granitemoe_swa",
    "smollm3",
    "olmo2_biased",
    "olmo3",
    "olmo3_by_types",
    "glm4",
    "glm4_moe",
    "glm4_moe_normed_biased",
    "ministral3",
    "mistral4",
    "laguna",
    "mellum",
    "mixtral",
    "qwen2_moe",
    "deepseek_v2",
    "deepseek_v2_in_groups",
    "glm4_moe_lite",
    "youtu",
    "solar_open",
    "cohere",
    "cohere2",
    "cohere2_moe",
    "seed_oss_biased",
    "exaone4_llama3",
    "ernie4_5_biased",
    "ernie4_5_moe",
    "olmoe",
    "minimax_m2",
    "arcee_biased",
    "jais2",
    "starcoder2",
    "hunyuan_v1_dense_plain",
    "hunyuan_v1_moe",
    "afmoe_scaled_biased",
    "dots1",
    "lfm2",
    "lfm2_moe",
    "granitemoehybrid",
    "granitemoehybrid_dense",
    "granitemoe_of_4_plain",
    "nemotron_h",
    "nemotron_h_biased",
    "nemotron_h_moe",
    "qwen3_5",
    "qwen3_5_tied",
    "qwen3_5_moe",
]


CALLED = {  # as what they are of the shape of, or without what sees
    "glm4_moe_lite": "deepseek_v3",
    "solar_open": "glm4_moe",
    "muse_glimmer": "muse_glimmer",
}


def loaded(card: ModelCard, rank: int = 0, size: int = 1) -> list[Slice]:
    """Every tensor of a rank, read."""
    model = MODELS[card.family](
        card.config, RankGroup(rank, size), torch.float32, card.formats(Split.evenly(size))
    )
    pieces = [piece for part in model.parts() for piece in part.pieces]
    WeightFiles(card).load([Shard(pieces)], lambda fraction: None)
    return pieces


@pytest.mark.parametrize("name", SAME)
def test_a_converted_checkpoint_is_the_same_model(tiny, tmp_path, monkeypatch, name):
    monkeypatch.setattr(workers.weights.loader, "BLOCK", 1000)  # tiny tensors have several blocks too
    folder = tiny(name).folder
    ours, theirs = read_card(gguf_files.write(tmp_path / "model.gguf", folder)), read_card(folder)
    if name in CALLED:
        assert (ours.family, theirs.family) == (CALLED[name], name)
    else:
        assert (ours.family, ours.architecture) == (theirs.family, theirs.architecture)
    for rope in ("rope", "window_rope"):
        left, right = getattr(ours.config, rope), getattr(theirs.config, rope)
        if left is not None and right is not None:
            turning = ours.config.rotary_dim
            torch.testing.assert_close(frequencies(left, turning), frequencies(right, turning))
    unlike = {"window_rope"}  # where it is the same as the other
    unlike |= {"rope"} if "llama3" in name else set()  # by its factors, which were compared
    unlike |= {"attention_scale"} if "gemma" in name else set()  # which follows from the sizes
    unlike |= {"delta"} if "qwen3_5" in name else set()  # columns that stay in tiles
    unlike |= {"intermediate_size"} if name == "qwen3_5_moe" else set()  # of no layer
    unlike |= {"intermediate_size"} if name == "nemotron_h_moe" else set()  # of no layer
    unlike |= {"mamba"} if name == "granitemoehybrid_dense" else set()  # limits of steps, which no file says
    assert differing(ours, theirs) <= unlike
    same_weights(ours, theirs)


def differing(ours: ModelCard, theirs: ModelCard) -> set[str]:
    """The fields of their configs that are not equal."""
    left, right = msgspec.to_builtins(ours.config), msgspec.to_builtins(theirs.config)
    return {key for key in left if left[key] != right[key]}


def same_weights(ours: ModelCard, theirs: ModelCard) -> None:
    """On one rank and on two."""
    for size in (1, 2):
        for rank in range(size):
            both = [loaded(card, rank, size) for card in (ours, theirs)]
            if ours.config.delta is not None and ours.config.delta.tiled:  # columns are in another order
                both = [[piece for piece in each if DELTA_OUTPUT not in piece.name] for each in both]
            for mine, other in zip(*both, strict=True):
                assert (mine.name, mine.row, mine.column) == (other.name, other.row, other.column)
                torch.testing.assert_close(mine.into, other.into, rtol=0, atol=2e-7, msg=mine.name)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("qwen2_tied", "qwen2vl"), ("qwen3_yarn", "qwen3vl"), ("qwen3_moe", "qwen3vlmoe")],
)
def test_the_language_model_of_a_qwen_that_sees_is_that_qwen(tiny, tmp_path, monkeypatch, name, architecture):
    folder = tiny(name).folder
    theirs = read_card(folder)
    monkeypatch.setitem(gguf_files.ARCHITECTURES, theirs.family, (architecture, False))
    more = {"rope.dimension_sections": [2, 3, 3, 0], "n_deepstack_layers": 3}
    more = {f"{architecture}.{key}": value for key, value in more.items()}
    ours = read_card(gguf_files.write(tmp_path / "model.gguf", folder, more=more))
    assert (ours.family, differing(ours, theirs)) == (theirs.family, set())
    same_weights(ours, theirs)


RELEASED = {"attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1}  # which no file says


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"interleave_moe_layer_step": 2, "rope_parameters": tiny_models.LLAMA3},
        {"num_local_experts": 128, "use_qk_norm": False},
    ],
    ids=["all_experts", "some_experts_llama3", "no_norms"],
)
def test_a_converted_llama_4_is_the_same_model(tmp_path, changes):
    torch.manual_seed(5)
    model = tiny_models.llama4(**RELEASED | changes)
    fill(model)
    model.save_pretrained(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "tokenizer.json").write_text("{}")
    ours = read_card(gguf_files.write(tmp_path / "model.gguf", tmp_path / "checkpoint"))
    theirs = read_card(tmp_path / "checkpoint")
    assert differing(ours, theirs) <= ({"rope"} if "rope_parameters" in changes else set())
    left, right = (frequencies(card.config.rope, card.config.rotary_dim) for card in (ours, theirs))
    torch.testing.assert_close(left, right)
    same_weights(ours, theirs)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"llama4.attention.chunk_size": 4096}, "llama4.attention.chunk_size 4096"),
        ({"llama4.attention.sliding_window": 0}, "without chunks"),
        ({"llama4.attention.sliding_window_pattern": 2}, "llama4.attention.sliding_window_pattern 2"),
    ],
    ids=["chunk", "no_chunks", "pattern"],
)
def test_a_llama_4_that_is_another_is_refused_by_its_key(tmp_path, said, named):
    tiny_models.llama4(**RELEASED, num_hidden_layers=1).save_pretrained(tmp_path / "checkpoint")
    path = gguf_files.write(tmp_path / "model.gguf", tmp_path / "checkpoint", more=said)
    with pytest.raises(CortexError, match=named):
        read_card(path)


@pytest.mark.parametrize("name", ["glm4_moe", "deepseek_v3", "qwen3_5"])
def test_a_converted_head_that_predicts_several_tokens_is_the_same(tmp_path, name):
    torch.manual_seed(5)
    model = getattr(tiny_models, name)().eval()
    fill(model)
    (folder := tmp_path / "checkpoint").mkdir()
    Head(model).store(folder)
    path = gguf_files.write(tmp_path / "model.gguf", folder)
    for mtp in (False, True):
        ours, theirs = read_card(path, mtp=mtp), read_card(folder, mtp=mtp)
        assert ours.config.num_layers == model.config.num_hidden_layers
        assert differing(ours, theirs) <= {"delta"}  # columns that stay in tiles
        told = [note for note in ours.notes if "`speculation: mtp`" in note]
        assert len(told) == (not mtp)
    same_weights(ours, theirs)


def test_what_is_no_head_is_refused_and_one_of_another_family_is_left_aside(tiny, tmp_path):
    folder, more = tiny("glm4").folder, {"glm4.nextn_predict_layers": 1}
    path = gguf_files.write(tmp_path / "model.gguf", folder, more=more)
    with pytest.raises(CortexError, match=r"nextn_predict_layers 1 is not supported: block \d has no nextn"):
        read_card(path)
    path = gguf_files.write(tmp_path / "cut.gguf", folder, more=more | {"glm4.block_count": 3})
    layers = read_card(path).config.num_layers
    with pytest.raises(CortexError, match="speculation mtp needs a head"):
        read_card(path, mtp=True)
    assert layers == 2


def test_weights_of_one_bit_are_kept_and_read_as_they_are(tmp_path, monkeypatch):
    def signs(array: numpy.ndarray, kind: gguf.GGMLQuantizationType) -> numpy.ndarray:
        blocks = array.reshape(-1, 128)
        scales = numpy.abs(blocks).mean(axis=1, keepdims=True).astype(numpy.float16).view(numpy.uint8)
        packed = numpy.packbits(blocks > 0, axis=1, bitorder="little")
        return numpy.concatenate([scales, packed], axis=1).reshape(len(array), -1)

    monkeypatch.setattr(gguf.quants, "quantize", signs)
    torch.manual_seed(1)
    model = tiny_models.llama(hidden_size=128, intermediate_size=256, head_dim=32)
    fill(model)
    model.save_pretrained(tmp_path / "checkpoint")
    weights = load_file(tmp_path / "checkpoint" / "model.safetensors")
    card = read_card(gguf_files.write(tmp_path / "model.gguf", tmp_path / "checkpoint", "Q1_0"))
    assert set(card.formats(ALONE).values()) == {"Q1_0"}
    for piece in loaded(card):
        if piece.into.dim() == 2 and not (
            "q_proj" in piece.name or "k_proj" in piece.name
        ):  # in another order
            blocks = weights[piece.name].unflatten(1, (-1, 128))
            expected = torch.where(blocks > 0, 1.0, -1.0) * blocks.abs().mean(2, keepdim=True).half().float()
            kept = dequantise("Q1_0", piece.into).unflatten(1, (-1, 128))
            torch.testing.assert_close(kept, expected, rtol=2e-3, atol=0)


def test_rows_in_blocks_are_put_in_order_without_being_touched(tmp_path):
    torch.manual_seed(1)
    model = tiny_models.llama(hidden_size=64, head_dim=16, vocab_size=96)
    fill(model)
    model.save_pretrained(tmp_path / "checkpoint")
    card = read_card(gguf_files.write(tmp_path / "model.gguf", tmp_path / "checkpoint", "Q8_0"))
    kind, weights = gguf.GGMLQuantizationType.Q8_0, load_file(tmp_path / "checkpoint" / "model.safetensors")
    for rank in range(2):
        for piece in loaded(card, rank, 2):
            if "_proj" not in piece.name:
                continue
            whole = gguf.quants.dequantize(gguf.quants.quantize(weights[piece.name].numpy(), kind), kind)
            mine = dequantise("Q8_0", piece.into)
            rows, columns = (
                slice(start, start + size)
                for start, size in zip((piece.row, piece.column), mine.shape, strict=True)
            )
            assert torch.equal(mine, torch.from_numpy(whole)[rows, columns]), piece.name


def test_answers_are_those_of_the_checkpoint_that_was_converted(tmp_path):
    model = tiny_models.gpt_oss(swiglu_limit=7.0)  # of which files do not speak
    torch.manual_seed(3)
    fill(model)
    model.save_pretrained(tmp_path / "checkpoint")
    runner = make_runner(gguf_files.write(tmp_path / "model.gguf", tmp_path / "checkpoint"))
    runner.load(lambda fraction, message: None)
    requests = [request(number, [7 * number + 3, 5, 99], 30) for number in range(3)]
    for asked, output in zip(requests, serve(runner, requests), strict=True):
        assert output == greedy(model, prompt_of(asked), output)
    runner.close()


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "glm4_moe_lite"])
def test_experts_of_a_converted_checkpoint_answer_as_it_does(tiny, tmp_path, name):
    folder, oracle = tiny(name)
    runner = make_runner(gguf_files.write(tmp_path / "model.gguf", folder))
    runner.load(lambda fraction, message: None)
    requests = [request(number, [7 * number + 3, 5, 99], 12) for number in range(3)]
    for asked, output in zip(requests, serve(runner, requests), strict=True):
        assert output == greedy(oracle, prompt_of(asked), output)
    runner.close()


WIDE_HEADS = {  # of whole blocks
    "hidden_size": 64,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "num_attention_heads": 4,
    "head_dim": 32,
}
WIDE_SPACES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "shared_intermediate_size": 64,
    "num_attention_heads": 2,
    "mamba_n_heads": 8,
}
WIDE_BESIDE = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "mamba_d_ssm": 64,
    "mamba_n_heads": 4,
    **dict.fromkeys(
        ("embedding_multiplier", "lm_head_multiplier", "key_multiplier", "ssm_in_multiplier"), 1.0
    ),
    **dict.fromkeys(("attention_in_multiplier", "attention_out_multiplier", "ssm_out_multiplier"), 1.0),
    "ssm_multipliers": [1.0] * 5,
    "mlp_multipliers": [1.0, 1.0],
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("qwen3_5", None),
        ("qwen3_5", "Q8_0"),
        ("qwen3_5_moe", None),
        ("qwen3_next", None),
        ("qwen3_next", "Q8_0"),
        ("granite_hybrid", None),
        ("granite_hybrid", "Q8_0"),
        ("falcon_h1", None),
        ("falcon_h1", "Q8_0"),
    ],
)
def test_a_converted_model_that_keeps_states_answers_as_it_did(tmp_path, monkeypatch, name, kind):
    torch.manual_seed(3)
    inner = {"intermediate_size": 64} if name == "qwen3_5" else {"shared_expert_intermediate_size": 64}
    wide = {"granite_hybrid": WIDE_SPACES, "falcon_h1": WIDE_BESIDE}.get(name, WIDE_HEADS | inner)
    oracle = getattr(tiny_models, name)(**wide if kind else {}).eval()
    fill(oracle)
    oracle.save_pretrained(tmp_path / "checkpoint")
    path = gguf_files.write(tmp_path / "model.gguf", tmp_path / "checkpoint", kind)
    if kind:
        rounded(oracle, kind)
    requests = [request(number, [7 * number + 3, 5, 99], 12) for number in range(3)]
    for size in (1, 2):
        ranks = Ranks(path, size, monkeypatch)
        for asked, output in zip(requests, serve(ranks, requests), strict=True):
            assert output == greedy(oracle, prompt_of(asked), output)
        ranks.close()


def rounded(model: torch.nn.Module, kind: str) -> None:
    """Put all that such a file has in blocks to the numbers that they mean."""
    form = gguf.GGMLQuantizationType[kind]
    for name, parameter in model.named_parameters():
        plain = ("mlp.gate.weight", "router.weight", "shared_expert_gate.weight", "conv1d.weight")
        if parameter.dim() > 1 and not name.endswith(plain):
            blocks = gguf.quants.quantize(parameter.detach().numpy(), form)
            parameter.data.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, form)))


def test_the_first_files_of_qwen3_next_have_its_heads_as_the_checkpoint_has(tmp_path, monkeypatch):
    torch.manual_seed(3)
    model, by_states = tiny_models.qwen3_next(), gguf_files.by_states
    fill(model)
    model.save_pretrained(folder := tmp_path / "checkpoint")
    (folder / "tokenizer.json").write_text("{}")

    def as_before(tensors, config):
        found = by_states(tensors, config)
        joined = {name: each for name, each in tensors.items() if name.endswith("in_proj_qkvz.weight")}
        return {name: each for name, each in found.items() if ".attn_" not in name} | joined

    monkeypatch.setattr(gguf_files, "by_states", as_before)
    ours, theirs = read_card(gguf_files.write(tmp_path / "model.gguf", folder)), read_card(folder)
    assert differing(ours, theirs) == set()
    same_weights(ours, theirs)


def test_a_latent_model_as_old_converters_wrote_it_is_the_same(tiny, tmp_path, monkeypatch):
    said = gguf_config.latent_keys

    def as_heads(config):
        keys = {key: value for key, value in said(config).items() if not key.endswith("_mla")}
        sizes = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
        keys |= {"attention__key_length": sizes[0], "attention__value_length": sizes[1]}
        return keys | {"attention__head_count_kv": config.num_attention_heads, "expert_gating_func": None}

    monkeypatch.setattr(gguf_config, "latent_keys", as_heads)
    monkeypatch.setattr(gguf_files, "by_keys_and_values", lambda tensors, config: tensors)
    folder = tiny("deepseek_v2").folder
    ours, theirs = read_card(gguf_files.write(tmp_path / "model.gguf", folder)), read_card(folder)
    assert ours.config == theirs.config
    for mine, other in zip(loaded(ours), loaded(theirs), strict=True):
        assert torch.equal(mine.into, other.into), mine.name


def test_experts_in_blocks_stay_whole_on_two_ranks_where_their_columns_are_one(tmp_path):
    torch.manual_seed(4)
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 1}
    model = tiny_models.qwen3_moe(**sizes, norm_topk_prob=True)
    fill(model)
    model.save_pretrained(tmp_path / "checkpoint")
    card = read_card(gguf_files.write(tmp_path / "model.gguf", tmp_path / "checkpoint", "Q8_0"))
    assert card.config.experts.whole_in(2)
    on_ranks = [loaded(card, rank, 2) for rank in range(2)]
    experts = [{piece.name for piece in pieces if ".experts." in piece.name} for pieces in on_ranks]
    assert not experts[0] & experts[1]
    assert experts[0] | experts[1] == {name for name in card.tensors if ".experts." in name}
    assert all(
        piece.into.shape[0] in (32, 64) for pieces in on_ranks for piece in pieces if "exp" in piece.name
    )


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"expert_gating_func": 7}, "expert_gating_func 7"),
        ({"attention__value_length_mla": 9}, "its matrices of keys"),
    ],
    ids=["gating", "values"],
)
def test_a_latent_model_that_says_something_else_is_refused(tiny, tmp_path, monkeypatch, more, named):
    said = gguf_config.latent_keys
    monkeypatch.setattr(gguf_config, "latent_keys", lambda config: said(config) | more)
    path = gguf_files.write(tmp_path / "model.gguf", tiny("deepseek_v2").folder)
    with pytest.raises(CortexError, match=named):
        read_card(path)
