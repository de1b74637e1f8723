"""Encoders make the vectors that transformers makes, whatever else is in a step."""

from __future__ import annotations

import json
from array import array

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ipc.errors import CortexError
from ipc.worker_messages import Submit
from tests.workers import encoders, nomic_experts
from tests.workers.cards import assert_asks_for_what_is_declared, refusal
from tests.workers.encoders import ENCODERS, hidden, load, texts, vectors, write, write_modules
from tests.workers.harness import Answer, Workers
from workers.attention import whole
from workers.checkpoints.adapter import read_adapter
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import ALONE, WHOLE, Split

NORMALIZE = ("Normalize", "2_Normalize", None)


def pooling(name: str) -> tuple[str, str, dict[str, bool | int]]:
    modes = ("cls_token", "mean_tokens", "max_tokens", "lasttoken", "mean_sqrt_len_tokens")
    flags = {f"pooling_mode_{mode}": mode == name for mode in modes}
    return "Pooling", "1_Pooling", {"word_embedding_dimension": 48} | flags


def close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_vectors_in_steps_of_many_texts_equal_those_of_transformers_one_by_one(tmp_path, name):
    oracle = write(name, tmp_path)
    inputs = texts(20)
    close(vectors(load(tmp_path), inputs), [hidden(oracle, ids).mean(0) for ids in inputs])


@pytest.mark.parametrize("name", ["modernbert", "gemma"])
def test_a_window_is_the_same_whether_its_queries_are_attended_for_at_once_or_in_blocks(
    tmp_path, name, monkeypatch
):
    oracle = write(name, tmp_path)
    monkeypatch.setattr(whole, "QUERIES", 16)
    inputs = texts(8)
    close(vectors(load(tmp_path), inputs), [hidden(oracle, ids).mean(0) for ids in inputs])


POOLINGS = {
    "cls_token": lambda x: x[0],
    "mean_tokens": lambda x: x.mean(0),
    "max_tokens": lambda x: x.amax(0),
    "lasttoken": lambda x: x[-1],
    "mean_sqrt_len_tokens": lambda x: x.sum(0) / len(x) ** 0.5,
}


@pytest.mark.parametrize("name", POOLINGS)
def test_hidden_states_are_pooled_as_the_modules_say(tmp_path, name):
    oracle = write("bert", tmp_path, [pooling(name)])
    inputs = texts(4)
    close(vectors(load(tmp_path), inputs), [POOLINGS[name](hidden(oracle, ids)) for ids in inputs])
    assert not read_card(tmp_path).embedder.normalize


def test_the_names_of_newer_files_mean_the_same(tmp_path):
    write("bert", tmp_path, [("Pooling", "1_Pooling", {"embedding_dimension": 48, "pooling_mode": "cls"})])
    path = tmp_path / "modules.json"
    path.write_text(
        path.read_text().replace("models.Pooling", "sentence_transformer.modules.pooling.Pooling")
    )
    assert read_card(tmp_path).pooling == "cls"


def test_dense_modules_follow_the_pooled_vector(tmp_path):
    dense = {"in_features": 48, "out_features": 96, "bias": True, "activation_function": "torch.nn.Tanh"}
    narrow = {"in_features": 96, "out_features": 24, "bias": False}
    narrow["activation_function"] = "torch.nn.modules.linear.Identity"
    oracle = write(
        "bert",
        tmp_path,
        [pooling("mean_tokens"), ("Dense", "2_Dense", dense), ("Dense", "3_Dense", narrow), NORMALIZE],
    )
    first, second = nn.Linear(48, 96), nn.Linear(96, 24, bias=False)
    for layer, name in ((first, "2_Dense"), (second, "3_Dense")):
        tensors = {f"linear.{key}": value.detach() for key, value in layer.named_parameters()}
        save_file(tensors, tmp_path / name / "model.safetensors")
    card = read_card(tmp_path)
    assert (card.embedder.size, card.embedder.normalize) == (24, True)
    assert card.bytes_per_rank(ALONE)[0] == 4 * (
        sum(each.numel() for each in oracle.parameters()) + 49 * 96 + 96 * 24
    )
    inputs = texts(5)
    with torch.no_grad():
        expected = [second(torch.tanh(first(hidden(oracle, ids).mean(0)))) for ids in inputs]
    close(vectors(load(tmp_path), inputs), expected)


@pytest.mark.parametrize("name", ["bert", "nomic_bert"])
def test_the_two_texts_of_a_pair_are_told_apart(tmp_path, name):
    oracle = write(name, tmp_path)
    inputs, seconds = texts(5, longest=40), [0, 1, 20, 5, 30]
    expected = [hidden(oracle, ids, second).mean(0) for ids, second in zip(inputs, seconds, strict=True)]
    close(vectors(load(tmp_path), inputs, seconds), expected)


@pytest.mark.parametrize("name", ["bert", "nomic_bert"])
def test_in_an_exact_engine_a_text_has_the_same_bits_beside_any_others(tmp_path, name):
    write(name, tmp_path)
    runner, inputs = load(tmp_path, exact=True), texts(12)
    together = vectors(runner, inputs)
    for mine, ids in zip(together, inputs, strict=True):
        assert torch.equal(mine, vectors(runner, [ids])[0])


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_weights_are_found_under_the_names_that_files_have_for_them(tmp_path, prefix):
    from safetensors.torch import load_file

    oracle = write("bert", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {
        prefix
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x
        for name, x in load_file(path).items()
    }
    save_file(tensors, path)
    close(vectors(load(tmp_path), texts(2)), [hidden(oracle, ids).mean(0) for ids in texts(2)])


# As the published files of nomic-embed-text-v1.5 say it, in the words of GPT-2.
NOMIC = {
    **{"architectures": ["NomicBertModel"], "model_type": "nomic_bert", "torch_dtype": "float32"},
    **{"vocab_size": 131, "n_embd": 48, "n_inner": 64, "n_layer": 2, "n_head": 4, "type_vocab_size": 2},
    **{"n_positions": 640, "max_trained_positions": 160, "rotary_scaling_factor": None},
    **{"rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False},
    **{"rotary_emb_scale_base": None, "layer_norm_epsilon": 1e-12, "activation_function": "swiglu"},
    **{"prenorm": False, "causal": False, "parallel_block": False, "parallel_block_tied_norm": False},
    **{"qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "use_rms_norm": False},
    **{"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "use_flash_attn": True},
    **{"fused_bias_fc": True, "fused_dropout_add_ln": True, "dense_seq_output": True, "use_xentropy": True},
    **{"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "initializer_range": 0.02},
    **{"pad_vocab_size_multiple": 64, "reorder_and_upcast_attn": False, "summary_use_proj": True},
    **{"summary_type": "cls_index", "summary_activation": None, "summary_first_dropout": 0.0},
    **{"summary_proj_to_labels": True, "bos_token_id": None, "eos_token_id": None, "use_cache": True},
}


def test_a_nomic_bert_is_the_same_in_the_words_of_its_published_files(tmp_path):
    oracle = write("nomic_bert", tmp_path)
    ours = read_card(tmp_path).config
    (tmp_path / "config.json").write_text(json.dumps(NOMIC))
    assert read_card(tmp_path).config == ours
    assert ours.context_length == 160, "beyond it the rope would be another"
    close(vectors(load(tmp_path), texts(3)), [hidden(oracle, ids).mean(0) for ids in texts(3)])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prenorm", True),
        ("rotary_emb_fraction", 0.5),
        ("mlp_fc1_bias", True),
        ("use_rms_norm", True),
        ("moe_every_n_layers", 2),
        ("activation_function", "relu"),
        ("n_head", 7),
    ],
)
def test_a_nomic_bert_that_is_another_is_refused_by_its_key(tmp_path, key, value):
    write("nomic_bert", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(NOMIC | {key: value}))
    with pytest.raises(CortexError, match="7 heads" if key == "n_head" else key):
        read_card(tmp_path)


@pytest.mark.parametrize(("name", "parts"), [("modernbert_biased", (1, 3)), ("nomic_bert", (1, 1))])
def test_two_ranks_make_the_vectors_of_one(tmp_path, name, parts):
    oracle = write(name, tmp_path)
    model = {"engine": "transformer", "card": read_card(tmp_path), "dtype": "float32", "simulated": None}
    model["parts"] = parts
    inputs = texts(9)
    with Workers(world_size=2, context_length=128, max_step_tokens=256, max_sequences=8, **model) as workers:
        assert [ready.all_reduce for ready in workers.ready()] == [2, 2]
        for number, ids in enumerate(inputs):
            workers.answers[number] = Answer()
            workers.send(Submit(number, array("I", ids).tobytes(), 1, pooling="mean"))
        workers.collect()
    reports = [report for step in workers.steps for report in step.sequences]
    found = {each.request_id: bytearray(each.details.embedding) for each in reports}
    made = [torch.frombuffer(found[number], dtype=torch.float32) for number in range(len(inputs))]
    close(made, [hidden(oracle, ids).mean(0) for ids in inputs])


REFUSED = {
    "a module that is not known": ([("WordWeights", "1_W", {})], "the module WordWeights is not supported"),
    "several ways of pooling": (
        [("Pooling", "1_P", {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True})],
        "wants 2 ways of pooling",
    ),
    "a way that is not known": (
        [("Pooling", "1_P", {"pooling_mode_weightedmean_tokens": True})],
        "pooling_mode_weightedmean_tokens is not supported",
    ),
    "prompts that do not count": (
        [("Pooling", "1_P", {"pooling_mode_mean_tokens": True, "include_prompt": False})],
        "include_prompt false",
    ),
    "no pooling": ([NORMALIZE], "the module Normalize is not supported, at least not in that place"),
    "a folder elsewhere": ([("Pooling", "../other", None)], "is no folder beside it"),
    "the folder above": ([("Pooling", "..", None)], "is no folder beside it"),
    "a way that is no name": (
        [("Pooling", "1_P", {"pooling_mode": ["mean"]})],
        "pooling_mode ['mean'] is no name",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_make_another_vector_is_refused_by_name(tmp_path, what):
    modules, reason = REFUSED[what]
    write("bert", tmp_path)
    write_modules(tmp_path, modules)
    assert reason in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "key", "value", "reason"),
    [
        ("bert", "position_embedding_type", "relative_key", "relative_key is not supported"),
        ("bert", "is_decoder", True, "is_decoder"),
        ("bert", "hidden_act", "mish", "hidden_act mish is not supported"),
        ("bert", "add_cross_attention", True, "add_cross_attention"),
        ("bert", "num_attention_heads", 5, "do not divide"),
        ("modernbert", "hidden_activation", "mish", "hidden_activation mish is not supported"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(tmp_path, name, key, value, reason):
    write(name, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert reason in refusal(tmp_path)


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "nomic_bert"])
@pytest.mark.parametrize(("key", "value"), [("head_dim", 24), ("num_key_value_heads", 2)])
def test_heads_that_no_encoder_has_are_refused(tmp_path, name, key, value):
    write(name, tmp_path)
    path = tmp_path / "config.json"
    whole = json.loads(path.read_text()) | {"head_dim": 12, "num_key_value_heads": 4}
    path.write_text(json.dumps(whole))
    assert refusal(tmp_path) is None
    path.write_text(json.dumps(whole | {key: value}))
    assert f"{key} {value} is not supported" in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["NewModel", "GteModel"])
def test_a_gte_of_its_own_code_turns_as_that_stretches_it(tmp_path, kind):
    oracle, theta, factor, head_dim = write("gte", tmp_path), 20_000.0, 8.0, 12
    exponents = torch.arange(0, head_dim, 2) / head_dim
    stretched = 1 / (theta * factor) ** exponents / factor ** (2 / head_dim)
    oracle.rotary_emb.inv_freq.copy_(stretched)
    path = tmp_path / "config.json"
    given = json.loads(path.read_text()) | {"architectures": [kind], "rope_theta": theta}
    given |= {"rope_scaling": {"type": "ntk", "factor": factor}, "position_embedding_type": "rope"}
    del given["rope_parameters"]
    path.write_text(json.dumps(given))
    inputs = texts(4)
    close(vectors(load(tmp_path), inputs), [hidden(oracle, ids).mean(0) for ids in inputs])
    for key, value in {"mixed_b": 0.5, "factor": 0.5}.items():
        scaling = given["rope_scaling"] | {key: value}
        path.write_text(json.dumps(given | {"rope_scaling": scaling}))
        assert f"{key}" in refusal(tmp_path)


def test_an_input_has_as_many_tokens_as_the_model_was_made_for_or_by_wish_has_positions_for(tmp_path):
    write("roberta", tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 100, "do_lower_case": false}')
    card = read_card(tmp_path)
    assert (card.context_length, card.config.context_limit) == (100, 158)  # two positions are for padding
    assert card.cache_groups(WHOLE) == []


def test_an_encoder_for_which_there_is_no_memory_says_what_it_takes(tmp_path):
    write("bert", tmp_path)
    with pytest.raises(CortexError, match="the largest step"):
        load(tmp_path, memory_budget=1000)


def test_a_vector_that_is_not_finite_is_an_error_and_touches_no_other(tmp_path):
    oracle = write("bert", tmp_path)
    runner = load(tmp_path)
    runner.model.embedding.weight[5] = torch.inf
    plan_inputs = [[7, 8, 9], [7, 5, 9], [10, 11]]
    scheduler = encoders.scheduler(runner, plan_inputs)
    scheduler.observe(runner.execute(scheduler.plan()))
    reports = scheduler.take_reports()
    assert [report.finish for report in reports] == ["stop", "error", "stop"]
    found = torch.frombuffer(bytearray(reports[0].details.embedding), dtype=torch.float32)
    close([found], [hidden(oracle, plan_inputs[0]).mean(0)])


def test_an_adapter_of_an_encoder_is_refused(tmp_path):
    write("bert", tmp_path)
    with pytest.raises(CortexError, match="adapters of BertModel, an encoder, are not supported"):
        read_adapter("mine", tmp_path / "mine", read_card(tmp_path))


def test_a_nomic_bert_with_experts_makes_the_vectors_of_its_own_code(tmp_path):
    oracle = nomic_experts.write(tmp_path)
    inputs = texts(12)
    close(vectors(load(tmp_path), inputs), [hidden(oracle, ids).mean(0) for ids in inputs])
    for size in (1, 2):
        assert_asks_for_what_is_declared(read_card(tmp_path), "nomic_bert", Split.evenly(size))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("moe_normalize_expert_weights", True),
        ("expert_choice_router", True),
        ("num_shared_experts", 1),
        ("moe_top_k", 6),
        ("moe_every_n_layers", 1),
        ("num_experts", 0),
        ("activation_function", "swiglu"),
        ("mlp_fc2_bias", False),
    ],
)
def test_a_nomic_bert_with_other_experts_is_refused_by_its_key(tmp_path, key, value):
    nomic_experts.write(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(nomic_experts.CONFIG | {key: value}))
    named = {"activation_function": "mlp_fc1_bias", "mlp_fc2_bias": "fc2.bias"}.get(key, key)
    assert named in refusal(tmp_path)
