import io
import json
import math
import os
import struct
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors

from ipc.errors import Code, CortexError
from tests.neuron.folders import CONFIG, TEMPLATE, header, shapes, write_checkpoint, write_safetensors
from tests.workers.cards import refusal as why_not
from workers.checkpoints import text
from workers.checkpoints.card import ModelCard
from workers.checkpoints.files import read_json, those_known
from workers.checkpoints.generation import GenerationDefaults
from workers.checkpoints.presence import is_checkpoint
from workers.checkpoints.reading import read_card
from workers.checkpoints.safetensors import HEADER_LIMIT, read_header
from workers.checkpoints.shares import ALONE, Split

NAMES = list(shapes(CONFIG))


def refusal(folder):
    with pytest.raises(CortexError) as raised:
        read_card(folder)
    assert raised.value.code == Code.MODEL_LOAD_FAILED
    return raised.value.message


def write_json(path, value):
    path.write_text(json.dumps(value))


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


def test_a_tensor_is_where_its_entry_says(tmp_path):
    checkpoint = read_card(write_checkpoint(tmp_path))
    path = tmp_path / "model.safetensors"
    end = max(tensor.offset + tensor.nbytes for tensor in checkpoint.tensors.values())
    start = min(tensor.offset for tensor in checkpoint.tensors.values())
    assert end == path.stat().st_size
    assert start == 8 + int.from_bytes(path.read_bytes()[:8], "little")


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


# --- templates ------------------------------------------------------------------------------------------


def test_a_template_is_found_in_each_of_its_three_places_in_order(tmp_path):
    write_checkpoint(tmp_path)
    assert read_card(tmp_path).chat_template == TEMPLATE
    write_json(tmp_path / "chat_template.json", {"chat_template": "from json"})
    assert read_card(tmp_path).chat_template == "from json"
    (tmp_path / "chat_template.jinja").write_text("from jinja")
    assert read_card(tmp_path).chat_template == "from jinja"


def test_named_templates_are_kept_with_the_default_first(tmp_path):
    write_checkpoint(tmp_path)
    named = [{"name": "tool_use", "template": "with {{ tools }}"}, {"name": "default", "template": "plain"}]
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": named})
    checkpoint = read_card(tmp_path)
    assert checkpoint.chat_template == "plain"
    assert list(checkpoint.chat_templates) == ["default", "tool_use"]
    assert (checkpoint.chat, checkpoint.tools, checkpoint.reasoning) == (True, True, False)


def test_a_model_without_a_template_does_not_chat(tmp_path):
    write_checkpoint(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    checkpoint = read_card(tmp_path)
    assert (checkpoint.chat, checkpoint.tools, checkpoint.reasoning) == (False, False, False)


def test_a_template_tells_what_the_model_can_do(tmp_path):
    write_checkpoint(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{% if enable_thinking %}<think>{% endif %}")
    checkpoint = read_card(tmp_path)
    assert (checkpoint.tools, checkpoint.reasoning) == (False, True)


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


@pytest.mark.parametrize("indent", [None, 2])
def test_a_tokenizer_that_is_still_copied_makes_no_model(tmp_path, indent):
    path = write_checkpoint(tmp_path) / "tokenizer.json"
    whole = json.dumps(json.loads(path.read_text()), indent=indent, ensure_ascii=False).encode()
    for size in [0, *range(1, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert str(path) in refusal(tmp_path), size
    for end in (b"", b"\n"):
        path.write_bytes(whole + end)
        assert read_card(tmp_path).eos_ids == [5, 0]


def test_no_more_of_a_tokenizer_is_searched_than_one_may_have(tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path) / "tokenizer.json"
    path.write_text(json.dumps({"x": {"y": "a" * (8 << 20)}}, separators=(",", ":")))
    monkeypatch.setattr(text, "FILE_LIMIT", 1 << 20)
    read = 0

    class Counted(io.FileIO):
        def read(self, size):
            nonlocal read
            read += len(data := super().read(size))
            return data

    monkeypatch.setattr(text, "open_file", Counted)
    read_card(tmp_path)
    assert 1 << 20 <= read < 4 << 20


@pytest.mark.parametrize("kind", ["BPE", "WordPiece", "WordLevel", "Unigram"])
@pytest.mark.parametrize("more", [0, 300])
def test_a_compact_tokenizer_ends_at_no_other_pair_of_braces_than_its_last(tmp_path, monkeypatch, kind, more):
    """Tokens have braces, too, and so has what stands before the model."""
    path = write_checkpoint(tmp_path) / "tokenizer.json"
    tokens = ["a", "}", "a}", "}}", '"}}', "]}}", "1}}}", '\\"]}}', *(f"w{number}" for number in range(more))]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    makers = {
        "BPE": lambda: models.BPE(vocabulary, [("a", "}"), ("}", "}")]),
        "WordPiece": lambda: models.WordPiece(vocabulary, unk_token="a"),
        "WordLevel": lambda: models.WordLevel(vocabulary, unk_token="a"),
        "Unigram": lambda: models.Unigram([(token, -1.0) for token in tokens], 0),
    }
    tokenizer = Tokenizer(makers[kind]())
    tokenizer.post_processor = processors.TemplateProcessing("a $A", special_tokens=[("a", 0)])
    whole = tokenizer.to_str()
    cuts = [end for end in range(2, len(whole)) if whole[end - 2 : end] == "}}"]
    assert len(cuts) >= 8
    for end in cuts:
        path.write_text(whole[:end])
        assert "tokenizer.json: has bad JSON" in refusal(tmp_path), whole[:end][-80:]
    path.write_text(whole)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    write_json(tmp_path / "tokenizer_config.json", config | {"eos_token": None})
    read = []

    def counted(file, *more):
        read.append(file.name)
        return read_json(file, *more)

    monkeypatch.setattr(text, "read_json", counted)
    read_card(tmp_path)
    assert "tokenizer.json" not in read


@pytest.mark.parametrize(
    ("changes", "whole"),
    [({}, False), ({"normalizer": "before them"}, True), ({"added_tokens": "thousands"}, False)],
)
def test_of_a_tokenizer_no_more_is_read_than_where_its_added_tokens_stand(
    tmp_path, monkeypatch, changes, whole
):
    path = write_checkpoint(tmp_path) / "tokenizer.json"
    said = json.loads(path.read_text())
    if "normalizer" in changes:
        said = {"normalizer": said.pop("normalizer"), **said}
    if "added_tokens" in changes:
        said["added_tokens"] += [{"id": 400 + n, "content": f"<{n}>" + "x" * 100} for n in range(1000)]
    write_json(path, said)
    read = []

    def counted(file, *more):
        read.append(file.name)
        return read_json(file, *more)

    monkeypatch.setattr(text, "read_json", counted)
    assert read_card(tmp_path).eos_ids == [5, 0]
    assert ("tokenizer.json" in read) is whole


def test_a_missing_shard_is_named(tmp_path):
    write_checkpoint(tmp_path, shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors: is missing" in refusal(tmp_path)


def test_a_shard_without_the_tensor_that_the_index_promises_is_named(tmp_path):
    write_checkpoint(tmp_path, shards=3)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = NAMES[1]
    index["weight_map"][name] = "model-00001-of-00003.safetensors"
    write_json(path, index)
    message = refusal(tmp_path)
    assert "model-00001-of-00003.safetensors" in message
    assert name in message


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "a/b"])
def test_an_index_cannot_point_out_of_its_folder(tmp_path, shard):
    write_checkpoint(tmp_path / "in", shards=2)
    write_json(tmp_path / "in" / "model.safetensors.index.json", {"weight_map": {NAMES[0]: shard}})
    assert "outside its folder" in refusal(tmp_path / "in")


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


def test_a_tensor_named_twice_is_refused_by_its_name(tmp_path):
    path = write_checkpoint(tmp_path) / "model.safetensors"
    entries = header(shapes(CONFIG))
    last = NAMES[-1]
    twice = json.dumps({last: entries[last]})[1:-1]
    text = f"{json.dumps(entries)[:-1]}, {twice}}}".encode()
    size = max(entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    assert f"names '{last}' twice in its header" in refusal(tmp_path)


def test_a_tensor_in_two_shards_is_refused_with_both(tmp_path):
    write_checkpoint(tmp_path, shards=2)
    names = list(shapes(CONFIG).items())
    entries = header(dict(names[1::2]) | dict(names[:1]))
    write_safetensors(tmp_path / "model-00002-of-00002.safetensors", entries)
    message = refusal(tmp_path)
    assert "model-00002-of-00002.safetensors: holds" in message
    assert "and so does model-00001-of-00002.safetensors" in message


def test_a_stale_index_beside_a_whole_file_is_not_read(tmp_path):
    write_checkpoint(tmp_path)
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": {"w": "gone.safetensors"}})
    assert len(read_card(tmp_path).files) == 1


def test_tensors_that_are_not_used_are_named(tmp_path):
    write_checkpoint(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", header(shapes(CONFIG) | {"model.mtp.weight": [4]}))
    assert read_card(tmp_path).notes == ["1 tensors are not used, among them model.mtp.weight"]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.q_proj.bias", [64]),
        ("model.layers.1.mlp.gate.weight", [4, 32]),
        ("model.layers.1.mlp.down_proj.scale", [1]),
        ("model.layers.0.pre_feedforward_layernorm.weight", [32]),
        ("model.norm.bias", [32]),
        ("lm_head.bias", [40]),
    ],
)
def test_a_tensor_of_what_is_computed_that_nobody_reads_is_refused(tmp_path, name, shape):
    write_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    write_safetensors(path, header(shapes(CONFIG) | {name: shape}))
    with path.open("r+b") as file:  # the last byte of it
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    assert f"{path}: {name!r} is not used, and config.json says of no such tensor" in refusal(tmp_path)


def test_a_bias_of_zeros_and_a_layer_that_is_none_of_the_model_are_left_alone(tmp_path):
    """Which some write beside each quantised weight."""
    write_checkpoint(tmp_path)
    behind = f"model.layers.{CONFIG['num_hidden_layers']}.self_attn.q_proj.weight"
    more = {"model.layers.0.self_attn.q_proj.bias": [64], behind: [4]}
    write_safetensors(tmp_path / "model.safetensors", header(shapes(CONFIG) | more))
    assert read_card(tmp_path).notes == [f"2 tensors are not used, among them {min(more)}"]


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


def damaged(tmp_path, change):
    """A checkpoint whose safetensors header went through `change`; the data stays as long as it was."""
    write_checkpoint(tmp_path)
    entries = header(shapes(CONFIG))
    size = max(entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")
    change(entries)
    write_safetensors(tmp_path / "model.safetensors", entries, size=size)
    return tmp_path


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("dtype", "F12", ["unknown dtype", "F12"]),
        ("dtype", "F32", ["its shape needs"]),
        ("dtype", 3, ["bad JSON"]),
        ("shape", [130, 48], ["its shape needs"]),
        ("shape", [-131, -48], ["bad JSON", ">= 0"]),
        ("shape", [131.0, 48.5], ["bad JSON"]),
        ("shape", [1] * 17, ["bad JSON", "<= 16"]),
        ("shape", [float("nan"), 48], ["bad JSON", "shape[0] is NaN"]),
        ("shape", [float("inf"), 48], ["bad JSON"]),
        ("data_offsets", [0, 1 << 40], ["bytes"]),
        ("data_offsets", [12576, 0], ["a hole"]),
        ("data_offsets", [2, 12578], ["a hole"]),
        ("data_offsets", [0], ["bad JSON"]),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, field, value, words):
    def change(entries):
        entries[NAMES[0]][field] = value

    message = refusal(damaged(tmp_path, change))
    assert "model.safetensors" in message
    assert all(word in message for word in words), message


def test_tensors_that_overlap_are_refused(tmp_path):
    def change(entries):
        start, end = entries[NAMES[1]]["data_offsets"]
        entries[NAMES[1]]["data_offsets"] = [start - 2, end - 2]

    assert "overlap" in refusal(damaged(tmp_path, change))


@pytest.mark.parametrize("lost", [1, 100, 10_000])
def test_a_file_that_was_cut_short_is_refused(tmp_path, lost):
    path = write_checkpoint(tmp_path) / "model.safetensors"
    os.truncate(path, path.stat().st_size - lost)
    assert "cut short" in refusal(tmp_path)


@pytest.mark.parametrize("length", [0, 4, 8, 40])
def test_a_file_without_its_header_is_refused(tmp_path, length):
    path = write_checkpoint(tmp_path) / "model.safetensors"
    os.truncate(path, length)
    assert "cut short" in refusal(tmp_path)


def test_bytes_that_no_tensor_claims_are_refused(tmp_path):
    path = write_checkpoint(tmp_path) / "model.safetensors"
    os.truncate(path, path.stat().st_size + 3)
    assert "3 bytes that its header does not describe" in refusal(tmp_path)


def test_a_header_over_the_limit_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", HEADER_LIMIT + 1))
    os.truncate(path, HEADER_LIMIT + 100)  # a hole in the file: it takes no space
    with pytest.raises(CortexError, match="100,000,000 is the limit"):
        read_header(path)


@given(st.binary(max_size=200))
def test_any_bytes_are_tensors_or_a_typed_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    for content in (data, struct.pack("<Q", len(data)) + data):
        path.write_bytes(content)
        with suppress(CortexError):
            read_header(path)


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
    assert why_not(write_checkpoint(tmp_path / "one")) is None
    assert why_not(write_checkpoint(tmp_path / "many", shards=2)) is None
    assert "config.json: is missing" in why_not(tmp_path)
    assert not is_checkpoint(tmp_path)
    bert = write_checkpoint(tmp_path / "other", architectures=["ElectraModel"], model_type="electra")
    assert "ElectraModel is not supported (electra, 2 layers of 48, a context of 512, 0.0M" in why_not(bert)
    assert len(why_not(bert)) < 300 + len(str(tmp_path))  # whatever is supported instead
    assert is_checkpoint(bert)
    (tmp_path / "one" / "config.json").write_text("{")
    assert "bad JSON" in why_not(tmp_path / "one")
