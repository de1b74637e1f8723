"""GGUF files: what llama.cpp's converters make of a checkpoint is that checkpoint again."""

from __future__ import annotations

import math
import re
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import msgspec
import pytest
import torch
from safetensors.torch import load_file

import workers.weights.loader
from ipc.errors import CortexError
from ipc.worker_messages import Submit
from tests.workers import checkpoints, encoders, gguf_files
from tests.workers.engines import Session, make_runner, prompt_of, request, serve
from tests.workers.predicting import Head
from tests.workers.thread_ranks import Ranks
from workers.checkpoints.card import ModelCard
from workers.checkpoints.families.qwen3_next import DELTA_OUTPUT
from workers.checkpoints.gguf import architectures, config, unread
from workers.checkpoints.gguf.header import Gguf, read_header
from workers.checkpoints.reading import read_card
from workers.layers.rotary import attention_factor, frequencies
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
    "gemma4",
    "gemma4_inputs_shared",
    "gemma4_experts_k_eq_v",
    "phi3_partial_tied",
    "granite_biased",
    "smollm3",
    "olmo2_biased",
    "olmo3",
    "glm4",
    "glm4_moe",
    "glm4_moe_normed_biased",
    "ministral3",
    "mellum",
    "mixtral",
    "qwen2_moe",
    "deepseek_v2",
    "deepseek_v2_in_groups",
    "glm4_moe_lite",
    "cohere",
    "cohere2",
    "seed_oss_biased",
    "exaone4_llama3",
    "ernie4_5_biased",
    "ernie4_5_moe",
    "olmoe",
    "minimax_m2",
    "arcee_biased",
    "starcoder2",
    "hunyuan_v1_dense_plain",
    "hunyuan_v1_moe",
    "afmoe_scaled_biased",
    "dots1",
    "lfm2",
    "lfm2_moe",
    "qwen3_5",
    "qwen3_5_tied",
    "qwen3_5_moe",
]


def loaded(card: ModelCard, rank: int = 0, size: int = 1) -> list[Slice]:
    """Every tensor of a rank, read."""
    model = MODELS[card.family](card.config, RankGroup(rank, size), torch.float32, card.formats(size))
    pieces = [piece for part in model.parts() for piece in part.pieces]
    WeightFiles(card).load([Shard(pieces)], lambda fraction: None)
    return pieces


@pytest.mark.parametrize("name", SAME)
def test_a_converted_checkpoint_is_the_same_model(tiny, tmp_path, monkeypatch, name):
    monkeypatch.setattr(workers.weights.loader, "BLOCK", 1000)  # tiny tensors have several blocks too
    folder = tiny(name).folder
    ours, theirs = read_card(gguf_files.write(tmp_path / "model.gguf", folder)), read_card(folder)
    if name == "glm4_moe_lite":  # which files call what it is a smaller one of
        assert (ours.family, theirs.family) == ("deepseek_v3", name)
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


RELEASED = {"attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1}  # which no file says


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"interleave_moe_layer_step": 2, "rope_parameters": checkpoints.LLAMA3},
        {"num_local_experts": 128, "use_qk_norm": False},
    ],
    ids=["all_experts", "some_experts_llama3", "no_norms"],
)
def test_a_converted_llama_4_is_the_same_model(tmp_path, changes):
    torch.manual_seed(5)
    model = checkpoints.llama4(**RELEASED | changes)
    checkpoints.fill(model)
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
    checkpoints.llama4(**RELEASED, num_hidden_layers=1).save_pretrained(tmp_path / "checkpoint")
    path = gguf_files.write(tmp_path / "model.gguf", tmp_path / "checkpoint", more=said)
    with pytest.raises(CortexError, match=named):
        read_card(path)


@pytest.mark.parametrize(
    ("name", "said", "pooling"),
    [
        ("bert", {}, "mean"),
        ("bert", {"pooling_type": 2}, "cls"),
        ("nomic_bert", {"pooling_type": 1}, "mean"),
        ("modernbert", {"pooling_type": 2}, "cls"),
    ],
)
def test_a_converted_encoder_makes_the_same_vectors(tmp_path, name, said, pooling):
    oracle = encoders.write(name, tmp_path / "checkpoint")
    card = read_card(gguf_files.write_bert(tmp_path / "model.gguf", tmp_path / "checkpoint", **said))
    assert (card.family, card.pooling, card.embedder.normalize) == (name, pooling, True)
    assert (card.completion, card.context_length) == (False, 160)
    inputs = encoders.texts(6)
    hidden = [encoders.hidden(oracle, ids) for ids in inputs]
    wanted = [states[0] if pooling == "cls" else states.mean(0) for states in hidden]
    found = encoders.vectors(encoders.load(tmp_path / "model.gguf"), inputs)
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_dense", [False, True])
def test_a_converted_gemma_that_embeds_makes_the_same_vectors(tmp_path, is_dense):
    torch.manual_seed(3)
    oracle = encoders.gemma(query_pre_attn_scalar=16)  # the size of a head: files do not say it
    checkpoints.fill(oracle, std=0.3)
    oracle.save_pretrained(tmp_path / "checkpoint")
    size = oracle.config.hidden_size
    dense = {"dense_2.weight": torch.randn(64, size), "dense_3.weight": torch.randn(size, 64) / 8}
    more = {"gemma-embedding.pooling_type": 1, "gemma-embedding.attention.causal": False}
    if is_dense:
        more |= {"gemma-embedding.dense_2_feat_out": 64, "gemma-embedding.dense_3_feat_in": 64}
    path = gguf_files.write(
        tmp_path / "model.gguf", tmp_path / "checkpoint", more=more, dense=dense if is_dense else None
    )
    card = read_card(path)
    assert (card.family, card.pooling, card.embedder.size) == ("gemma3", "mean", size)
    assert (card.completion, len(card.embedder.stages)) == (False, 2 * is_dense)
    inputs = encoders.texts(6)
    wanted = torch.stack([encoders.hidden(oracle, ids).mean(0) for ids in inputs])
    if is_dense:
        wanted = wanted @ dense["dense_2.weight"].t() @ dense["dense_3.weight"].t()
    found = torch.stack(encoders.vectors(encoders.load(path), inputs))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bert_of_32", "nomic_bert_of_32"])
def test_an_encoder_in_blocks_makes_nearly_the_same_vectors(tmp_path, name):
    oracle = encoders.write(name, tmp_path / "checkpoint")
    gguf_files.write_bert(tmp_path / "model.gguf", tmp_path / "checkpoint", "Q8_0")
    inputs = encoders.texts(6)
    wanted = torch.stack([encoders.hidden(oracle, ids).mean(0) for ids in inputs])
    found = torch.stack(encoders.vectors(encoders.load(tmp_path / "model.gguf"), inputs))
    assert torch.cosine_similarity(found, wanted).min() > 0.999


@pytest.mark.parametrize(
    ("name", "said", "pooling"),
    [
        ("xlm_roberta_classifier", {"pooling_type": 4}, "cls"),
        ("modernbert_classifier", {"classifier__pooling_type": 2}, "cls"),
        ("modernbert_averaged_classifier", {}, "mean"),
    ],
)
def test_a_converted_reranker_scores_as_it_did(tmp_path, name, said, pooling):
    oracle = encoders.write(name, tmp_path / "checkpoint")
    said = said | {"classifier__output_labels": ["LABEL_0"]}
    path = gguf_files.write_bert(tmp_path / "model.gguf", tmp_path / "checkpoint", **said)
    card = read_card(path)
    assert (card.embedder, card.completion, card.reranker.sigmoid) == (None, False, True)
    assert card.pooling == pooling
    inputs = encoders.texts(6)
    wanted = torch.stack([encoders.score(oracle, ids, 0) for ids in inputs])
    found = torch.stack(encoders.vectors(encoders.load(path), inputs))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "said", "named"),
    [
        ("bert", {"pooling_type": 4}, r"pooling_type 4 \(rank\)"),
        ("nomic_bert", {"_tokenizer__ggml__model": "t5"}, "kind 't5'"),
        ("bert_classifier", {}, r"a classifier without cls\.weight"),
    ],
    ids=["pooling", "tokenizer", "classifier"],
)
def test_an_encoder_that_is_another_is_refused_by_its_key(tmp_path, name, said, named):
    encoders.write(name, tmp_path / "checkpoint")
    path = gguf_files.write_bert(tmp_path / "model.gguf", tmp_path / "checkpoint", **said)
    with pytest.raises(CortexError, match=named):
        read_card(path)


ASKED = "Judge.\n<Instruct>: Find it.\n<Query>: {query}\n<Document>: {document}\nNow:"
RANKS = {"qwen3.pooling_type": 4, "qwen3.classifier.output_labels": ["yes", "no"]}


def asked(path: Path, folder: Path, rows: torch.Tensor, **more: Any) -> Path:
    """A causal reranker as its converter writes it, which has these two rows of its head."""
    said = RANKS | {key.replace("__", "."): value for key, value in more.items()}
    return gguf_files.write(path, folder, more=said, dense={"cls.output.weight": rows})


@pytest.mark.parametrize("size", [1, 2])
def test_a_converted_model_that_is_asked_weighs_its_two_answers(tiny, tmp_path, monkeypatch, size):
    folder, oracle = tiny("qwen3_tied")
    torch.manual_seed(7)
    rows = torch.randn(2, oracle.config.hidden_size)
    said = {"qwen3__classifier__output_labels": ["no", "yes"], "tokenizer__chat_template__rerank": ASKED}
    path = asked(tmp_path / "model.gguf", folder, rows, **said)
    card = read_card(path)
    question = card.reranker.question
    assert (question.before, question.behind, question.instruction) == ("Judge.\n", "\nNow:", "Find it.")
    assert (card.completion, card.chat, card.embedding, card.config.writes) == (False, False, False, False)
    inputs = [[(7 * i + k) % 131 for i in range(20 + 9 * k)] for k in range(4)]
    submits = [Submit(k, array("I", ids).tobytes(), 1, pooling="score") for k, ids in enumerate(inputs)]
    ranks = Ranks(path, size, monkeypatch)
    for ids, answer in zip(inputs, Session(ranks, max_step_tokens=7).answer(submits), strict=True):
        with torch.inference_mode():
            no, yes = rows @ oracle.model(torch.tensor([ids])).last_hidden_state[0, -1]
        found = torch.frombuffer(bytearray(answer.embedding), dtype=torch.float32)
        torch.testing.assert_close(found, (yes - no)[None], rtol=1e-4, atol=1e-4)
    ranks.close()


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"qwen3__classifier__output_labels": ["good", "bad"]}, r"qwen3\.classifier\.output_labels"),
        ({"tokenizer__chat_template__rerank": "{query}?"}, r"tokenizer\.chat_template\.rerank"),
    ],
)
def test_a_model_that_is_asked_otherwise_is_refused_by_its_key(tiny, tmp_path, said, named):
    path = asked(tmp_path / "model.gguf", tiny("qwen3_tied").folder, torch.zeros(2, 4), **said)
    with pytest.raises(CortexError, match=named):
        read_card(path)


@pytest.mark.parametrize(("kind", "pooling"), [(None, None), (0, None), (1, "mean"), (3, "last")])
def test_a_decoder_embeds_as_its_file_says(tiny, tmp_path, kind, pooling):
    more = {} if kind is None else {"qwen3.pooling_type": kind}
    path = gguf_files.write(tmp_path / "model.gguf", tiny("qwen3_untied_biased").folder, more=more)
    card = read_card(path)
    if pooling is None:
        assert (card.embedder, card.completion, card.config.writes) == (None, True, True)
        return
    assert (card.pooling, card.embedder.size) == (pooling, card.config.hidden_size)
    assert (card.completion, card.embedding, card.config.writes) == (False, True, False)
    assert "lm_head.weight" not in card.tensors  # which such a file has no use for


def test_a_decoder_that_makes_vectors_in_another_way_is_refused_by_it(tiny, tmp_path):
    more = {"qwen2.pooling_type": 2}
    path = gguf_files.write(tmp_path / "model.gguf", tiny("qwen2_tied").folder, more=more)
    with pytest.raises(CortexError, match=r"qwen2\.pooling_type 2 \(cls\) is not supported"):
        read_card(path)


@pytest.mark.parametrize("name", ["glm4_moe", "deepseek_v3", "qwen3_5"])
def test_a_converted_head_that_predicts_several_tokens_is_the_same(tmp_path, name):
    torch.manual_seed(5)
    model = getattr(checkpoints, name)().eval()
    checkpoints.fill(model)
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


@pytest.mark.parametrize("key", ["attn_factor", "yarn_attn_factor"])
def test_a_yarn_of_deepseek_s_multiplies_what_others_have_in_a_file_too(tiny, tmp_path, key):
    folder = tiny("qwen3_yarn").folder
    rope = read_card(folder).config.rope
    plain = 0.1 * math.log(rope.factor) + 1.0
    more = {f"qwen3.rope.scaling.{key}": 1 / plain}
    card = read_card(gguf_files.write(tmp_path / "model.gguf", folder, more=more))
    assert attention_factor(card.config.rope) == pytest.approx(1.0)


def keys_of_llama_cpp() -> set[str]:
    """What may stand in a file below its architecture's name."""
    known, classes = set(), [gguf.Keys]
    for each in classes:
        for name, value in vars(each).items():
            if isinstance(value, type) and name != "__class__":
                classes.append(value)
            elif isinstance(value, str) and value.startswith("{arch}."):
                known |= {
                    value.removeprefix("{arch}.").format(dense=dense) for dense in ("dense_2", "dense_3")
                }
    return known


@pytest.mark.parametrize("name", ["llama_untied_linear", "qwen3_moe", "gemma3", "phi3_partial_tied"])
def test_a_key_that_changes_numbers_is_followed_or_refused(tiny, tmp_path, name):
    file = read_header(gguf_files.write(tmp_path / "model.gguf", tiny(name).folder))
    usual = outcome(file)
    idle = {"attention.layer_norm_epsilon"}  # beside another, which is read
    if "num_experts" not in usual:
        idle |= {key for key in keys_of_llama_cpp() if key.startswith("expert")}
    if not usual["sliding_window"]:
        idle.add("attention.sliding_window_pattern")
    for key in sorted(keys_of_llama_cpp() - unread.HARMLESS - idle):
        full = f"{file.architecture}.{key}"
        if full not in file.metadata:
            found = outcome(replace(file, metadata=file.metadata | {full: 77}))
            assert found != usual if isinstance(found, dict) else key in found, key


def outcome(file: Gguf) -> dict[str, Any] | str:
    """What its config would be, or why it is refused."""
    try:
        return config.config_json(file, architectures.find(file))
    except CortexError as error:
        return error.message


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama_untied_linear", "llama.attention.scale", 0.5),
        ("llama_untied_linear", "llama.pooling_type", 77),
        ("llama_untied_linear", "llama.rope.global.freq_base", 5e5),
        ("llama_tied_llama3", "llama.rope.scaling.factor", 8.0),
        ("qwen3_moe", "qwen3moe.expert_gating_func", 2),
        ("qwen3_moe", "qwen3moe.expert_group_count", 4),
        ("glm4_moe", "glm4moe.expert_gating_func", 1),
        ("glm4", "glm4.rope.dimension_sections", [8, 12, 12, 0]),
    ],
)
def test_a_model_that_is_another_than_its_family_is_refused_by_its_key(tiny, tmp_path, name, key, value):
    path = gguf_files.write(tmp_path / "model.gguf", tiny(name).folder, more={key: value})
    with pytest.raises(CortexError, match=re.escape(f"{key} {value}")):
        read_card(path)


def test_keys_that_say_what_the_model_has_anyway_are_no_reason_to_refuse_it(tiny, tmp_path):
    folder = tiny("llama_untied_linear").folder
    plain = read_card(gguf_files.write(tmp_path / "plain.gguf", folder))
    more = {
        "attention.scale": plain.config.head_dim**-0.5,
        "rope.freq_base_swa": 10_000.0,
        "expert_gating_func": 2,  # of none
        "vision.attention.head_count": 16,
        "attention.sliding_window": 1 << 20,
        "attention.sliding_window_pattern": 4,
        "swiglu_clamp_exp": [0.0, 0.0],
        "general_remark": "attention",
    }
    more = {f"llama.{key}": value for key, value in more.items()}
    card = read_card(gguf_files.write(tmp_path / "model.gguf", folder, more=more))
    assert card.config == plain.config


def test_a_factor_of_positions_is_linear_where_no_type_stands_there(tiny, tmp_path):
    folder = tiny("qwen2_tied").folder
    more = {"qwen2.rope.scaling.factor": 4.0}
    rope = read_card(gguf_files.write(tmp_path / "linear.gguf", folder, more=more)).config.rope
    assert (rope.rope_type, rope.factor) == ("linear", 4.0)
    none = more | {"qwen2.rope.scaling.type": "none"}
    rope = read_card(gguf_files.write(tmp_path / "none.gguf", folder, more=none)).config.rope
    assert rope.rope_type == "default"


def test_a_ministral_3_says_how_its_positions_and_its_queries_grow(tiny, tmp_path):
    more = {"mistral3.rope.scaling.yarn_log_multiplier": 1.0}  # as it is published
    card = read_card(gguf_files.write(tmp_path / "model.gguf", tiny("ministral3").folder, more=more))
    assert (card.config.rope.mscale, card.config.rope.mscale_all_dim) == (1.0, 1.0)
    assert card.config.temperature.weight == 0.5


def test_rows_in_blocks_are_put_in_order_without_being_touched(tmp_path):
    torch.manual_seed(1)
    model = checkpoints.llama(hidden_size=64, head_dim=16, vocab_size=96)
    checkpoints.fill(model)
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
    model = checkpoints.gpt_oss(swiglu_limit=7.0)  # of which files do not speak
    torch.manual_seed(3)
    checkpoints.fill(model)
    model.save_pretrained(tmp_path / "checkpoint")
    runner = make_runner(gguf_files.write(tmp_path / "model.gguf", tmp_path / "checkpoint"))
    runner.load(lambda fraction, message: None)
    requests = [request(number, [7 * number + 3, 5, 99], 30) for number in range(3)]
    for asked, output in zip(requests, serve(runner, requests), strict=True):
        assert output == checkpoints.greedy(model, prompt_of(asked), output)
    runner.close()


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "glm4_moe_lite"])
def test_experts_of_a_converted_checkpoint_answer_as_it_does(tiny, tmp_path, name):
    folder, oracle = tiny(name)
    runner = make_runner(gguf_files.write(tmp_path / "model.gguf", folder))
    runner.load(lambda fraction, message: None)
    requests = [request(number, [7 * number + 3, 5, 99], 12) for number in range(3)]
    for asked, output in zip(requests, serve(runner, requests), strict=True):
        assert output == checkpoints.greedy(oracle, prompt_of(asked), output)
    runner.close()


WIDE_HEADS = {  # of whole blocks
    "hidden_size": 64,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "num_attention_heads": 4,
    "head_dim": 32,
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("qwen3_5", None),
        ("qwen3_5", "Q8_0"),
        ("qwen3_5_moe", None),
        ("qwen3_next", None),
        ("qwen3_next", "Q8_0"),
    ],
)
def test_a_converted_model_that_keeps_states_answers_as_it_did(tmp_path, monkeypatch, name, kind):
    torch.manual_seed(3)
    inner = {"intermediate_size": 64} if name == "qwen3_5" else {"shared_expert_intermediate_size": 64}
    oracle = getattr(checkpoints, name)(**WIDE_HEADS | inner if kind else {}).eval()
    checkpoints.fill(oracle)
    oracle.save_pretrained(tmp_path / "checkpoint")
    path = gguf_files.write(tmp_path / "model.gguf", tmp_path / "checkpoint", kind)
    if kind:
        rounded(oracle, kind)
    requests = [request(number, [7 * number + 3, 5, 99], 12) for number in range(3)]
    for size in (1, 2):
        ranks = Ranks(path, size, monkeypatch)
        for asked, output in zip(requests, serve(ranks, requests), strict=True):
            assert output == checkpoints.greedy(oracle, prompt_of(asked), output)
        ranks.close()


def rounded(model: torch.nn.Module, kind: str) -> None:
    """Put all that such a file has in blocks to the numbers that they mean."""
    form = gguf.GGMLQuantizationType[kind]
    for name, parameter in model.named_parameters():
        plain = ("mlp.gate.weight", "shared_expert_gate.weight", "conv1d.weight")
        if parameter.dim() > 1 and not name.endswith(plain):
            blocks = gguf.quants.quantize(parameter.detach().numpy(), form)
            parameter.data.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, form)))


def test_the_first_files_of_qwen3_next_have_its_heads_as_the_checkpoint_has(tmp_path, monkeypatch):
    torch.manual_seed(3)
    model, by_states = checkpoints.qwen3_next(), gguf_files.by_states
    checkpoints.fill(model)
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
    said = gguf_files.latent_keys

    def as_heads(config):
        keys = {key: value for key, value in said(config).items() if not key.endswith("_mla")}
        sizes = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
        keys |= {"attention__key_length": sizes[0], "attention__value_length": sizes[1]}
        return keys | {"attention__head_count_kv": config.num_attention_heads, "expert_gating_func": None}

    monkeypatch.setattr(gguf_files, "latent_keys", as_heads)
    monkeypatch.setattr(gguf_files, "by_keys_and_values", lambda tensors, config: tensors)
    folder = tiny("deepseek_v2").folder
    ours, theirs = read_card(gguf_files.write(tmp_path / "model.gguf", folder)), read_card(folder)
    assert ours.config == theirs.config
    for mine, other in zip(loaded(ours), loaded(theirs), strict=True):
        assert torch.equal(mine.into, other.into), mine.name


def test_experts_in_blocks_stay_whole_on_two_ranks_where_their_columns_are_one(tmp_path):
    torch.manual_seed(4)
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 1}
    model = checkpoints.qwen3_moe(**sizes, norm_topk_prob=True)
    checkpoints.fill(model)
    model.save_pretrained(tmp_path / "checkpoint")
    card = read_card(gguf_files.write(tmp_path / "model.gguf", tmp_path / "checkpoint", "Q8_0"))
    assert card.config.experts.whole_on(2)
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
    said = gguf_files.latent_keys
    monkeypatch.setattr(gguf_files, "latent_keys", lambda config: said(config) | more)
    path = gguf_files.write(tmp_path / "model.gguf", tiny("deepseek_v2").folder)
    with pytest.raises(CortexError, match=named):
        read_card(path)
