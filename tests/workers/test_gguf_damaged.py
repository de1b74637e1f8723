"""GGUF files that are damaged, or not what they say: one error, which names the file."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers import gguf_files
from tests.workers.cards import refusal
from tests.workers.gguf_files import file
from workers.checkpoints.gguf.architectures import ARCHITECTURES
from workers.checkpoints.gguf.header import Gguf, read_header
from workers.checkpoints.reading import read_card

SIZES = {"context_length": 512, "embedding_length": 32, "block_count": 1, "feed_forward_length": 32}
SIZES |= {"attention.head_count": 2, "rope.freq_base": 1e4, "attention.layer_norm_rms_epsilon": 1e-5}


def llama(**changes: Any) -> dict[str, Any]:
    """The metadata of a small model, without those that are None."""
    given = {"general.architecture": "llama"} | {f"llama.{key}": value for key, value in SIZES.items()}
    given |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.scores": [0]}
    return {key: value for key, value in (given | changes).items() if value is not None}


EMBEDDING = ("token_embd.weight", (32, 4), 0, 0)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ([EMBEDDING, ("b", (32, 4), 0, 480)], "has 'b' in the bytes of 'token_embd.weight'"),
        ([EMBEDDING, ("b", (32, 4), 0, 544)], "has 32 bytes before 'b' that are no tensor's"),
        ([("a", (32, 4), 8, 0), ("b", (32, 4), 0, 512)], "has 376 bytes before 'b' that are no tensor's"),
        ([EMBEDDING, EMBEDDING], "names 'token_embd.weight' twice"),
        ([("a", (32, 4), 99, 0)], "has 'a' in the unknown type 99"),
        ([("a", (32, 4), 4, 0)], "has 'a' in the unknown type 4"),  # Q4_2, of which nobody knows any more
        ([("a", (33, 4), 8, 0)], "in Q8_0, and rows of 33 are no whole blocks"),
        ([("a", (32, 4), 0, 4)], "at an offset that is no multiple of 32"),
        ([("a", (32, 400), 0, 0)], "is cut short: it has"),
        ([("a", (32, 4), 0, 1 << 62)], "is cut short: it has"),
        ([("a", (1 << 40, 1 << 40), 0, 0)], "gives 'a' the shape"),
        ([("a", (0, 4), 0, 0)], "gives 'a' the shape"),
        ([("a", (), 0, 0)], "gives 'a' 0 dimensions"),
        ([("a", (1,) * 9, 0, 0)], "gives 'a' 9 dimensions"),
    ],
)
def test_tensors_that_lie_are_named(tmp_path, tensors, reason):
    path = file(tmp_path / "model.gguf", llama(), tensors)
    assert (message := refusal(path)).startswith(f"{path}: ")
    assert reason in message


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"general.architecture": "unheard-of"},
            "is unheard-of, 0.0M parameters, tensors: 1 F32: such files",
        ),
        ({"general.architecture": None}, "is unknown"),
        ({"general.architecture": "clip"}, "is what sees for a model, and no model"),
        ({"general.type": "mmproj"}, "is what sees for a model, and no model"),
        ({"general.type": "adapter"}, "is an adapter in GGUF, and adapters are read as PEFT writes them"),
        ({"general.type": "imatrix"}, "is figures for whoever quantises a model"),
        ({"llama.block_count": None}, "has no llama.block_count"),
        ({"llama.block_count": "many"}, "llama.block_count 'many' is not supported"),
        ({"llama.attention.head_count": [2, 4]}, "llama.attention.head_count differs from layer to layer"),
        ({"llama.attention.value_length": 8}, "has keys of 16 and values of 8"),
        ({"llama.attention.causal": False}, "llama.attention.causal False is not supported"),
        ({"llama.attention.sliding_window": 64}, "llama.attention.sliding_window 64 is not supported"),
        ({"llama.nextn_predict_layers": 1}, "llama.nextn_predict_layers 1 is not supported"),
        ({"llama.residual_scale": 2.5}, "llama.residual_scale 2.5 is not supported"),
        ({"llama.rope.scaling.type": "spiral"}, "rope.scaling.type 'spiral' is not supported"),
        ({"llama.expert_count": 8}, "has no llama.expert_used_count"),
        ({"general.alignment": 24}, "general.alignment 24 is no power of two"),
        ({"tokenizer.ggml.model": None}, "tokenizer.ggml.model is missing"),
        ({"tokenizer.ggml.model": "rwkv"}, "tokenizer.ggml.model 'rwkv' is not supported; there are gpt2"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "new"}, "tokenizer.ggml.pre 'new' is not"),
        ({"tokenizer.ggml.model": "gpt2"}, "has no list tokenizer.ggml.merges"),
        ({"tokenizer.ggml.scores": None}, "has no list tokenizer.ggml.scores"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "has no list tokenizer.ggml.tokens of texts"),
        ({"tokenizer.chat_template": 1}, "tokenizer.chat_template is no text"),
    ],
)
def test_metadata_that_are_not_understood_are_named(tmp_path, changes, reason):
    assert reason in refusal(file(tmp_path / "model.gguf", llama(**changes), [EMBEDDING]))


def test_a_tensor_that_is_missing_is_named(tmp_path):
    idle = {"attention.causal": True, "attention.sliding_window": 512, "nextn_predict_layers": 0}
    idle |= {"expert_weights_scale": 1.0, "logit_scale": 0.0}  # which change nothing
    path = file(tmp_path / "model.gguf", llama(**{f"llama.{key}": idle[key] for key in idle}), [EMBEDDING])
    assert f"{path}: the tensor 'model.layers.0.input_layernorm.weight' is in none" in refusal(path)


@pytest.mark.parametrize("name", ["blk.1.attn_q.scale", "blk.0.attn_sub_norm.weight", "output.bias"])
def test_a_tensor_of_what_is_computed_that_nobody_reads_is_refused(tiny, tmp_path, name, monkeypatch):
    close = gguf_files.Writer.close

    def and_one(writer: gguf_files.Writer) -> Path:
        writer.tensor(name, torch.ones(48))
        return close(writer)

    monkeypatch.setattr(gguf_files.Writer, "close", and_one)
    path = gguf_files.write(tmp_path / "model.gguf", tiny("llama_untied_linear").folder)
    assert "is not used, and model.gguf says of no such tensor" in refusal(path)


def test_more_experts_than_any_model_has_are_refused(tmp_path):
    experts = ("blk.0.ffn_gate_exps.weight", (1, 1, 5000), 24, 512)
    path = file(tmp_path / "model.gguf", llama(), [EMBEDDING, experts])
    path.write_bytes(path.read_bytes() + bytes(8192))
    assert f"{path}: has 'blk.0.ffn_gate_exps.weight' of 5,000 experts" in refusal(path)


def test_a_vector_in_blocks_is_named(tmp_path):
    norm = ("blk.0.attn_norm.weight", (32,), 8, 512)
    message = refusal(file(tmp_path / "model.gguf", llama(), [EMBEDDING, norm]))
    assert "'model.layers.0.input_layernorm.weight' is Q8_0, and vectors are F32" in message


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"version": 1}, "is GGUF version 1, and known are 2, 3"),
        ({"version": 3 << 24}, "is GGUF for a big-endian machine"),
        ({"described": 1 << 40}, "entries, above"),
        ({"entries": 1 << 63}, "entries, above"),
        ({"entries": 40}, "model.gguf: "),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, more, reason):
    assert reason in refusal(file(tmp_path / "model.gguf", llama(), [EMBEDDING], **more))


def test_bytes_behind_the_last_tensor_are_told_of_and_left_alone(tiny, tmp_path):
    path = gguf_files.write(tmp_path / "model.gguf", tiny("llama_untied_linear").folder)
    whole, plain = path.read_bytes(), read_card(path)
    path.write_bytes(whole + bytes(31))
    assert read_card(path).notes == plain.notes
    path.write_bytes(whole + bytes(4096))
    card = read_card(path)
    assert (card.tensors, card.config) == (plain.tensors, plain.config)
    assert "model.gguf has 4,096 bytes behind its last tensor" in card.notes[-1]


def test_what_is_no_gguf_file_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    assert "is missing" in refusal(path)
    for data in (b"", b"GGUF", b"GGUF\3\0\0\0", b"PK\3\4" * 100):
        path.write_bytes(data)
        assert str(path) in refusal(path)


# --- sets of files ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(tiny, tmp_path_factory) -> Path:
    """The first of several parts of one model."""
    folder = tmp_path_factory.mktemp("parts")
    return gguf_files.write(folder / "model.gguf", tiny("llama_untied_linear").folder, split_max_tensors=6)


def test_any_part_of_a_set_is_the_model(parts):
    cards = [read_card(part) for part in sorted(parts.parent.iterdir())]
    assert len(cards[0].files) == len(cards) > 2
    assert all(card == cards[0] for card in cards)
    assert read_card(parts.parent) == cards[0]
    assert cards[0].tokenizer_file == parts


def test_sets_that_are_no_set_are_refused_naming_the_file(parts, tmp_path):
    def copy(name: str) -> list[Path]:
        shutil.copytree(parts.parent, tmp_path / name)
        return sorted((tmp_path / name).iterdir())

    first, second, *_ = copy("missing")
    second.unlink()
    assert f"{second}: is missing, and {first.name} is another part" in refusal(first)
    first, second, third, *_ = copy("doubled")
    shutil.copy(third, second)
    assert f"{second}: is called part 2 of" in refusal(first)
    first, second, *_ = copy("renamed")
    whole = first.rename(first.with_name("whole.gguf"))
    assert f"{whole}: is called a whole model, and has the split.no 0 of" in refusal(whole)
    metadata = {"split.no": 1, "split.count": len(list(parts.parent.iterdir()))}
    first, second, *_ = copy("foreign")
    file(second, metadata | {"general.architecture": "gemma3"}, [])
    assert f"{second}: is of a gemma3, and {first.name} of a llama" in refusal(first)
    file(second, metadata, [EMBEDDING])
    assert f"{second}: holds 'token_embd.weight', and so does {first.name}" in refusal(first)
    file(second, metadata, [("other", (32, 4), 0, 0)])
    assert f"{first}: says that the model has" in refusal(first)


# --- and any other ------------------------------------------------------------------------------------------


def test_damage_is_a_refusal_and_nothing_else(tiny, tmp_path):
    whole = gguf_files.write(tmp_path / "whole.gguf", tiny("llama_tied_llama3").folder)
    data, path, rng = whole.read_bytes(), tmp_path / "model.gguf", random.Random(5)
    header = min(tensor.offset for tensor in read_header(whole).tensors.values())
    refused = 0
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            place = rng.randrange(header)
            if rng.random() < 0.5:
                changed[place] ^= 1 << rng.randrange(8)
            else:
                changed[place : place + 8] = rng.choice((b"\xff" * 8, bytes(8), rng.randbytes(8)))
        path.write_bytes(changed[: rng.randrange(len(data))] if rng.random() < 0.2 else changed)
        reason = refusal(path)
        refused += reason is not None
        assert reason is None or str(path) in reason
    assert refused > 50


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_value_of_any_key_is_more_than_a_refusal(tmp_path, architecture):
    more = {
        "split.no": 0,
        "split.count": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.pre": "default",
    }
    sizes = SIZES | dict.fromkeys(("expert_count", "expert_used_count", "expert_feed_forward_length"), 1)
    sizes |= {"attention.sliding_window": 512, "logit_scale": 1.0, "attention.sliding_window_pattern": 2}
    sizes |= {"attention.key_length": 16, "rope.dimension_count": 16, "rope.scaling.type": "yarn"}
    sizes |= {"rope.scaling.factor": 2.0, "rope.scaling.original_context_length": 64, "expert_group_count": 1}
    whole = llama(**{"general.architecture": architecture}, **more)
    whole |= {f"{architecture}.{key}": value for key, value in sizes.items()}
    path = tmp_path / "model.gguf"
    for key in whole:
        for value in ("x", 0, 1 << 31, [1, 2], 1e30, True):
            reason = refusal(file(path, whole | {key: value}, [EMBEDDING]))
            assert reason is not None, (key, value)
            assert str(path) in reason


def test_a_list_is_read_when_it_is_asked_for(tmp_path):
    values = {"general.architecture": "llama", "a": ["x", "", "é" * 3], "b": [1, 2], "c": 1e-6}
    header = read_header(file(tmp_path / "model.gguf", values, []))
    assert isinstance(header, Gguf)
    assert [header.get(key) for key in ("a", "b", "c", "d")] == [["x", "", "ééé"], [1, 2], 1e-6, None]
