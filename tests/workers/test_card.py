"""A folder becomes a card that says what the model is, or is refused by the file and the reason."""

import json
import math
import os
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.errors import CortexError
from tests.neuron.folders import CONFIG, header, shapes, write_checkpoint, write_json, write_safetensors
from tests.workers.cards import refusal
from workers.checkpoints.card import ModelCard
from workers.checkpoints.files import those_known
from workers.checkpoints.generation import GenerationDefaults
from workers.checkpoints.presence import is_checkpoint
from workers.checkpoints.reading import read_card
from workers.checkpoints.safetensors import read_header
from workers.checkpoints.shares import ALONE, Split

NAMES = list(shapes(CONFIG))


def elements(config, split=lambda name, shape: shape):
    """Elements of all tensors, each with the shape that `split` leaves of it."""
    total = 0
    for name, shape in shapes(config).items():
        part = 1
        for size in split(name, shape):
            part *= size
        total += part
    return total


# --- what is found --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
def test_a_checkpoint_is_known_from_its_headers(tmp_path, shards):
    checkpoint = read_card(write_checkpoint(tmp_path, shards=shards))
    assert checkpoint.architecture == "Qwen3ForCausalLM"
    assert checkpoint.context_length == 512
    assert checkpoint.dtype == "bfloat16"
    assert set(checkpoint.tensors) == set(NAMES)
    assert checkpoint.special_tokens == {"eos_token": "<|end|>", "pad_token": "<|start|>"}
    assert checkpoint.created == int(os.stat(tmp_path / "config.json").st_mtime)
    tensor = checkpoint.tensors["model.norm.weight"]
    assert (tensor.shape, tensor.nbytes, tensor.dtype) == ((48,), 96, "BF16")
    assert {tensor.file for tensor in checkpoint.tensors.values()} == set(range(shards))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(checkpoint), type=ModelCard) == checkpoint


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True},
        {"architectures": ["LlamaForCausalLM"], "attention_bias": True, "mlp_bias": True},
    ],
)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_bytes_per_rank_are_exact(tmp_path, changes, ranks):
    checkpoint = read_card(write_checkpoint(tmp_path, **changes))

    def split(name, shape):
        if "norm" in name or name.endswith(("o_proj.bias", "down_proj.bias")):
            return shape
        if "k_proj" in name or "v_proj" in name:
            return [max(1, 2 // ranks) * 16, *shape[1:]]
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            return [shape[0], shape[1] // ranks]
        return [-(-shape[0] // ranks), *shape[1:]]  # 131 tokens are padded to equal parts

    config = {**CONFIG, **changes}
    assert checkpoint.bytes_per_rank(Split.evenly(ranks)) == [2 * elements(config, split)] * ranks
    assert checkpoint.bytes_per_rank(Split.evenly(ranks), "float32") == [4 * elements(config, split)] * ranks
    assert checkpoint.kv_bytes_per_token(Split.evenly(ranks).part) == 2 * 2 * max(1, 2 // ranks) * 16 * 2


def test_one_rank_holds_the_file_and_nothing_else(tmp_path):
    checkpoint = read_card(write_checkpoint(tmp_path))
    assert checkpoint.bytes_per_rank(ALONE) == [sum(tensor.nbytes for tensor in checkpoint.tensors.values())]


@pytest.mark.parametrize(("ranks", "works"), [(3, "1, 2, 4"), (8, "1, 2, 4"), (0, "1, 2, 4")])
def test_ranks_that_do_not_work_are_told_from_those_that_do(tmp_path, ranks, works):
    checkpoint = read_card(write_checkpoint(tmp_path))
    with pytest.raises(CortexError, match=f"{ranks} ranks.*What works: {works}"):
        checkpoint.check_split(Split.evenly(ranks))


def test_a_refusal_of_ranks_names_the_heads_of_all_layers(tmp_path):
    checkpoint = read_card(write_checkpoint(tmp_path))
    config = msgspec.structs.replace(checkpoint.config, heads_of=(4, 6))
    with pytest.raises(CortexError, match=r"4 ranks: it has 4 or 6 attention heads.*What works: 1, 2\b"):
        msgspec.structs.replace(checkpoint, config=config).check_split(Split.evenly(4))


@pytest.mark.parametrize(
    ("changes", "weights", "dtype"),
    [
        ({}, "BF16", "bfloat16"),
        ({"torch_dtype": "float16"}, "F16", "float16"),
        ({"torch_dtype": "float32"}, "F32", "float32"),
        ({"torch_dtype": None, "dtype": "float32"}, "F32", "float32"),
        ({"torch_dtype": None}, "F32", "float32"),
    ],
)
def test_the_dtype_is_the_checkpoint_s(tmp_path, changes, weights, dtype):
    assert read_card(write_checkpoint(tmp_path, weights=weights, **changes)).dtype == dtype


@pytest.mark.parametrize(
    ("generation", "config", "ids"),
    [
        ({"eos_token_id": [7, 9, 7]}, 5, [7, 9, 0]),
        ({"eos_token_id": 7}, 5, [7, 0]),
        ({"eos_token_id": 0}, 5, [0]),
        ({}, 5, [5, 0]),
        (None, [5, 6], [5, 6, 0]),
        (None, None, [0]),
        ({"eos_token_id": [131, -1]}, None, [0]),
    ],
)
def test_end_of_text_ids_come_from_all_files_that_know_them(tmp_path, generation, config, ids):
    write_checkpoint(tmp_path, eos_token_id=config)  # the tokenizer's end token has the id 0
    if generation is not None:
        write_json(tmp_path / "generation_config.json", generation)
    assert read_card(tmp_path).eos_ids == ids


@pytest.mark.parametrize(
    ("generation", "defaults"),
    [
        (None, GenerationDefaults()),
        ({"do_sample": False, "temperature": 0.7}, GenerationDefaults(temperature=0.0)),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
            GenerationDefaults(temperature=0.6, top_k=20, top_p=0.95),
        ),
        ({"top_k": -1, "top_p": None}, GenerationDefaults(top_k=0)),
    ],
)
def test_sampling_defaults_are_the_checkpoint_s(tmp_path, generation, defaults):
    write_checkpoint(tmp_path)
    if generation is not None:
        write_json(tmp_path / "generation_config.json", generation)
    assert read_card(tmp_path).defaults == defaults


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("little_memory")
def test_experts_that_nobody_can_have_are_refused_by_the_first_that_is_missing(tmp_path):
    experts = {"num_local_experts": 1 << 31, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5}
    folder = write_checkpoint(tmp_path, architectures=["MixtralForCausalLM"], **experts)
    assert "is in none of its files" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(tmp_path, name):
    write_checkpoint(tmp_path)
    (tmp_path / name).unlink()
    assert name in refusal(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"architectures": ["MambaForCausalLM"]},
            ["MambaForCausalLM is not supported", "docs/configuration.md"],
        ),
        ({"architectures": []}, ["none", "not supported"]),
        ({"quantization_config": {"quant_method": "hqq"}}, ["hqq"]),
        ({"max_position_embeddings": 0}, [">= 1"]),
        ({"max_position_embeddings": None}, ["max_position_embeddings"]),
        ({"rope_theta": float("nan")}, ["bad JSON: rope_theta is NaN"]),
        ({"unread": [1, {"a": float("-inf")}]}, ["bad JSON: unread[1].a is -Infinity"]),
        ({"eos_token_id": "5"}, ["eos_token_id"]),
    ],
)
def test_a_config_that_cannot_be_served_says_why(tmp_path, changes, words):
    message = refusal(write_checkpoint(tmp_path, **changes))
    assert "config.json" in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
def test_a_number_that_json_does_not_have_is_named_by_its_file_and_field(tmp_path, name):
    write_checkpoint(tmp_path)
    (tmp_path / name).write_text('{"unread": {"a": [1, Infinity]}}')
    assert f"{name}: has bad JSON: unread.a[1] is Infinity" in refusal(tmp_path)


def test_that_a_step_has_no_limit_may_be_said_with_a_number_that_json_has_not(tmp_path):
    """As files of Mamba-2 have it, which Python wrote."""
    unlimited = {"time_step_limit": [0.0, math.inf]}
    write_checkpoint(tmp_path, **unlimited)
    read_card(tmp_path)
    for others in ({"unread": math.inf}, {"time_step_limit": [0.0, math.nan]}, {"unread": -math.inf}):
        write_checkpoint(tmp_path, **unlimited | others)
        assert f"has bad JSON: {next(iter(others))}" in refusal(tmp_path)
    write_checkpoint(tmp_path, **unlimited | {"eos_token_id": "5"})
    assert "eos_token_id" in refusal(tmp_path)


def test_a_tensor_that_contradicts_the_config_is_named(tmp_path):
    write_checkpoint(tmp_path)
    config = {**CONFIG, "intermediate_size": 96}
    write_json(tmp_path / "config.json", config)
    assert "mlp.gate_proj.weight" in refusal(tmp_path)
    write_json(tmp_path / "config.json", {**CONFIG, "num_hidden_layers": 3})
    assert "'model.layers.2.input_layernorm.weight' is in none" in refusal(tmp_path)


def test_weights_of_an_unknown_kind_are_refused(tmp_path):
    assert "is I8" in refusal(write_checkpoint(tmp_path, weights="I8"))


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"],
)
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path, name):
    write_checkpoint(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    assert f"{name}: is no regular file" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_in_place_of_a_file_is_told_as_one(tmp_path, name):
    write_checkpoint(tmp_path)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0a' * 32}\nsize 11421896\n"
    (tmp_path / name).write_text(pointer)
    assert f"{name}: is a pointer of git-lfs" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("ending", "said"),
    [(".qweight", True), (".scales", True), (".bias", False), (".base_layer.weight", False)],
)
def test_what_stands_where_a_weight_is_missing_is_told(tmp_path, ending, said):
    write_checkpoint(tmp_path)
    packed = {
        name.replace("q_proj.weight", f"q_proj{ending}"): shape for name, shape in shapes(CONFIG).items()
    }
    write_safetensors(tmp_path / "model.safetensors", header(packed))
    name = "model.layers.0.self_attn.q_proj"
    other = f", and '{name}{ending}' is: the weights are quantised, and config.json does not say how"
    assert refusal(tmp_path).endswith(f"{name}.weight' is in none of its files{other if said else ''}")


@pytest.mark.parametrize(
    ("architectures", "told"),
    [
        (["A" * 1_000_000], "A" * 100 + "…"),
        (["A\nb"], r"'A\nb'"),
        ([f"A{number}" for number in range(100_000)], ", ".join(f"A{number}" for number in range(10))),
    ],
)
def test_an_architecture_whatever_its_name_is_told_in_a_line(tmp_path, architectures, told):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": architectures}))
    assert f"the architecture {told} is not supported (unknown); docs/configuration.md" in refusal(tmp_path)


def test_a_dtype_that_is_none_is_that_of_the_weights_and_named(tmp_path):
    card = read_card(write_checkpoint(tmp_path, torch_dtype="float8_e4m3fn"))
    assert card.dtype == "bfloat16"
    assert card.notes == [
        "config.json: dtype float8_e4m3fn is none of bfloat16, float16, float32; bfloat16 is used"
    ]


def tied(folder, head):
    """A checkpoint whose config ties the head, and that holds one all the same."""
    write_checkpoint(folder, tie_word_embeddings=True)
    path = folder / "model.safetensors"
    write_safetensors(path, header(shapes(CONFIG)))
    with path.open("r+b") as file:
        file.seek(read_header(path)["lm_head.weight"].offset + 100)
        file.write(head)
    return read_card(folder)


def test_a_tied_head_that_is_stored_and_another_is_the_stored_one(tmp_path):
    card = tied(tmp_path, b"x")
    assert not card.config.tied_head
    assert "lm_head.weight" in card.tensors
    assert "the files hold another lm_head.weight" in card.notes[0]


def test_a_tied_head_that_is_stored_and_the_same_is_the_embedding(tmp_path):
    card = tied(tmp_path, b"\0")
    assert card.config.tied_head
    assert "lm_head.weight" not in card.tensors
    assert card.notes == []


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(["config.json", "generation_config.json", "tokenizer_config.json", "chat_template.json"]),
    st.sampled_from(["eos_token_id", "chat_template", "architectures", "num_hidden_layers", "top_p", ""]),
)
def test_any_json_is_a_checkpoint_or_a_typed_error(whole, value, name, key):
    before = (whole / name).read_text() if (whole / name).exists() else None
    data = {**CONFIG, key: value} if key else value
    write_json(whole / name, data)
    with suppress(CortexError):
        read_card(whole)
    (whole / name).unlink() if before is None else (whole / name).write_text(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    ("unknown", "near"),
    [
        ("Qwen3ForSpeech", "; near by name are Qwen3ForCausalLM, Qwen2ForCausalLM"),
        ("Qwen9Model", "; near by name are Qwen3ForCausalLM, Qwen2ForCausalLM"),
        ("ElectraModel", ""),
        ("", ""),
    ],
)
def test_of_architectures_that_are_known_the_near_ones_are_named(unknown, near):
    known = ["Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3Model", "BertModel"]
    assert those_known(known, unknown) == f"docs/configuration.md has the 4 that are{near}"


def test_what_is_in_a_folder_can_be_loaded_or_there_is_a_reason(tmp_path):
    assert refusal(write_checkpoint(tmp_path / "one")) is None
    assert refusal(write_checkpoint(tmp_path / "many", shards=2)) is None
    assert "config.json: is missing" in refusal(tmp_path)
    assert not is_checkpoint(tmp_path)
    bert = write_checkpoint(tmp_path / "other", architectures=["ElectraModel"], model_type="electra")
    assert "ElectraModel is not supported (electra, 2 layers of 48, a context of 512, 0.0M" in refusal(bert)
    assert len(refusal(bert)) < 300 + len(str(tmp_path))  # whatever is supported instead
    assert is_checkpoint(bert)
    (tmp_path / "one" / "config.json").write_text("{")
    assert "bad JSON" in refusal(tmp_path / "one")
