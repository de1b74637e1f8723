"""`neuron check` says what is offered, what is not and why, and what is not as the files have it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

import neuron.catalogue.catalogue
import neuron.description
from ipc.errors import CortexError
from ipc.messages.state import Device
from neuron.catalogue.appraisal import place
from neuron.cli import app
from neuron.config import ModelSettings
from neuron.inspection import inspect, size_of
from neuron.memory.devices import Inventory
from neuron.memory.step_bytes import UNMEASURED_BYTES
from neuron.processes.worker import Worker
from neuron.text.frontend import TextFrontEnd
from tests.neuron.folders import CONFIG, TEMPLATE, write_checkpoint
from workers.checkpoints.presence import gguf_files
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import ALONE, Split

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Runs the command over a configuration; what it prints, on one line, and the exit code."""
    monkeypatch.setattr(Worker, "measure", lambda kind: 0)

    def run(**config: Any) -> tuple[int, str]:
        file = tmp_path / "neuron.yaml"
        file.write_text(json.dumps({"devices": ["cpu"], "hf_cache": str(tmp_path / "none"), **config}))
        result = CliRunner().invoke(app, ["check", "--config", str(file)], env={"COLUMNS": "200"})
        return result.exit_code, " ".join(result.output.split())

    return run


def configured(folder: Path, **settings: Any) -> dict[str, Any]:
    return {"models": [{"id": "mine", "path": str(folder), **settings}]}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"listen": "tcp://0.0.0.0:*"}, "listen: tcp://0.0.0.0:* can be reached from other hosts"),
        ({"key_file": "/nope"}, "key_file: cannot read the key file /nope"),
        ({"allowed_keys": ["a" * 40, "abc"]}, "allowed_keys[1]: cannot read the key file abc"),
        ({"allowed_keys": ["a" * 40]}, "key_file: a secret key and the public keys"),
    ],
)
def test_keys_with_which_it_would_not_start_are_problems(check, config, words):
    code, said = check(only_configured=True, **config)
    assert code == 1
    assert words in said


def test_a_default_model_that_is_not_here_is_a_note(check, tmp_path):
    folder = write_checkpoint(tmp_path / "model")
    code, said = check(default_model="nope", **configured(folder))
    assert code == 0
    assert "default_model: " in said
    assert "'nope'" in said
    assert "default_model: " not in check(default_model="mine", **configured(folder))[1]


def test_what_is_not_followed_is_a_note(check, tmp_path):
    folder = write_checkpoint(tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"num_beams": 4, "temperature": "0.6"}))
    code, said = check(**configured(folder))
    assert code == 0
    assert "mine: generation_config.json: num_beams 4 is not followed" in said
    assert "mine: generation_config.json: temperature '0.6' is a text, and read as 0.6" in said


@pytest.mark.parametrize("count", [2, 5])
def test_a_model_is_read_once_and_its_folder_is_not_looked_at_for_each(check, tmp_path, monkeypatch, count):
    looks, reads = [], []

    def looked(folder: Path) -> list[Path]:
        looks.append(folder)
        return gguf_files(folder)

    def counted(path: Path, **more: bool) -> Any:
        reads.append(path)
        return read_card(write_checkpoint(tmp_path / "model"), **more)

    monkeypatch.setattr(neuron.catalogue.catalogue, "gguf_files", looked)
    monkeypatch.setattr(neuron.catalogue.catalogue, "read_card", counted)
    monkeypatch.setattr(neuron.description, "read_card", counted)
    folder = tmp_path / "shelf" / "many"
    folder.mkdir(parents=True)
    files = [folder / f"m{number}.gguf" for number in range(count)]
    for file in files:
        file.touch()
    code, said = check(model_folders=[str(folder.parent)])
    assert code == 0
    assert all(f" many:m{number} " in said for number in range(count))
    assert [path for path in reads if path.suffix] == files
    assert looks.count(folder) == 1


def test_names_are_shown_as_they_are_whatever_they_hold(check, tmp_path):
    folder = write_checkpoint(tmp_path / "model")
    names = ["[/red]", "[bold]x", "模型"]
    code, said = check(models=[{"id": name, "path": str(folder)} for name in names])
    assert code == 0
    assert all(f" {name} " in said for name in names)


def test_a_context_that_positions_do_not_reach_is_cut_with_a_word(check, tmp_path):
    folder = write_checkpoint(tmp_path / "model")
    code, said = check(**configured(folder, context_length=8192))
    assert code == 0
    assert "mine: context_length 8192 is cut to 512, which the model was made for" in said


def test_where_quantised_weights_are_kept_is_said(check, tmp_path):
    folder = write_checkpoint(tmp_path / "model")
    config = configured(folder, quantization="q4")
    _, said = check(**config, quantised_cache={"path": str(tmp_path / "kept")})
    assert f"mine: what q4 makes of it is kept in {tmp_path / 'kept'}" in said
    _, said = check(**config, quantised_cache={"max_size": 0})
    assert "is kept" not in said


def test_a_model_folder_that_is_not_there_is_said(check, tmp_path):
    code, said = check(model_folders=[str(tmp_path), "/nowhere"], only_configured=True)
    assert code == 0
    assert said.count("model_folders: ") == said.count("model_folders: /nowhere is no folder") == 1


def test_keys_and_values_in_8_bits_make_a_longer_context_fit(check, tmp_path):
    folder = write_checkpoint(tmp_path / "model", head_dim=128, max_position_embeddings=40_000)
    config = configured(folder, kv_memory="16MiB")
    assert " 8192 " in check(**config)[1]
    config["models"][0]["kv_cache_dtype"] = "int8"
    assert " 16128 " in check(**config)[1]
    _, said = look(folder)
    assert "a token keeps 2.0 KiB of keys and values, on one rank; 1.0 KiB with kv_cache_dtype" in said


def test_keys_and_values_that_a_simulation_does_not_have_are_refused(check):
    code, said = check(models=[{"id": "s", "simulated": {}, "kv_cache_dtype": "fp8"}])
    assert code == 1
    assert "models[0].kv_cache_dtype: 'fp8' is of no use: the model is simulated" in said


def test_a_yarn_has_the_context_that_it_is_stretched_to(check, tmp_path):
    folder = write_checkpoint(tmp_path / "model", rope_scaling=YARN)
    _, said = check(**configured(folder, context_length=2048))
    assert "is cut" not in said
    assert " 2048 " in said


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"quantization_config": {"quant_method": "hqq"}}, "quantised (hqq)"),
        ({"hidden_act": "relu"}, "hidden_act relu is not supported"),
        ({"rope_scaling": {"type": "axial", "factor": 2.0}}, "axial"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0 is not understood"),
        ({"architectures": ["ElectraModel"]}, "ElectraModel is not supported"),
    ],
)
def test_what_cannot_be_served_says_why_wherever_it_lies(check, tmp_path, changes, reason):
    folder = write_checkpoint(tmp_path / "shelf" / "model", **CONFIG | changes)
    code, said = check(**configured(folder))
    assert (code, reason in said) == (1, True), said
    code, said = check(model_folders=[str(tmp_path / "shelf")])
    assert code == 0
    assert "model is not offered: " in said
    assert reason in said


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("chat_template.jinja", "{% if %}", "chat_template.jinja is wrong in line 1"),
        ("chat_template.jinja", "{{ 'x' * 10 ** 12 }}", "chat_template.jinja is never done"),
        ("tokenizer.json", "{}", "tokenizer.json: is no tokenizer"),
    ],
)
def test_what_a_load_would_find_of_template_and_tokenizer_is_said(check, tmp_path, name, content, reason):
    folder = write_checkpoint(tmp_path / "shelf" / "model")
    (folder / name).write_text(content)
    code, said = check(**configured(folder))
    assert (code, "mine cannot be loaded: " in said, reason in said) == (1, True, True), said
    code, said = check(model_folders=[str(tmp_path / "shelf")])
    assert (code, "model cannot be loaded: " in said, reason in said) == (0, True, True), said


def test_a_gguf_file_is_told_for_what_it_is(check, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    code, said = check(**configured(tmp_path / "model.gguf"))
    assert code == 1
    assert "model.gguf: is unknown, 0.0M parameters" in said
    assert "such files are not supported; docs/configuration.md has the" in said
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 16)
    assert "entries, above" in check(**configured(tmp_path / "model.gguf"))[1]


# --- one checkpoint -------------------------------------------------------------------------------------


def look(*arguments: object) -> tuple[int, str]:
    """`neuron check PATH` on a host with a CPU alone: the exit code, and what it prints, on one line."""
    environment = {"COLUMNS": "200", "CUDA_VISIBLE_DEVICES": ""}
    result = CliRunner().invoke(app, ["check", *map(str, arguments)], env=environment)
    return result.exit_code, " ".join((result.output + result.stderr).split())


def test_a_checkpoint_is_told_for_what_it_is_and_takes(tmp_path):
    sizes = {"vocab_size": 402, "hidden_size": 256, "intermediate_size": 512}
    folder = write_checkpoint(tmp_path / "model", **sizes)
    (folder / "chat_template.jinja").write_text("{{ tools }}<tool_call></tool_call><think></think>")
    config = tmp_path / "neuron.yaml"  # without it what is free on this host is said, and changes
    config.write_text(json.dumps({"devices": ["cpu"], "cpu": {"memory": "500MB"}}))
    code, said = look(folder, "--config", config)
    assert code == 0, said
    card = read_card(folder)
    for fact in (
        "family qwen3 (Qwen3ForCausalLM)",
        "parameters 1.1M",
        "layers 2 of 256 (2 full)",
        "stored as BF16 2.1 MiB",
        "context 512 tokens",
        "tool calls hermes",
        "reasoning <think> … </think>",
    ):
        assert fact in said
    for quantization in (None, "q8", "q6", "q4", "int8", "fp8"):
        sizes = [
            size_of(card.bytes_per_rank(Split.evenly(ranks), None, quantization)[0]) for ranks in (1, 2, 4)
        ]
        assert f"│ {quantization or 'as stored'} │ {' │ '.join(sizes)} │ 512 │" in said
    assert look(folder / "config.json", "--config", config) == (code, said)


def test_a_gpu_that_does_not_compute_in_the_type_of_a_model_is_named(tmp_path):
    gpus = [
        Device(
            id=f"cuda:{number}",
            kind="cuda",
            name="",
            memory_total=1,
            memory_free=1,
            compute_capability=capability,
        )
        for number, capability in enumerate(("7.5", "8.6", "12.0"))
    ]
    note = inspect(write_checkpoint(tmp_path), gpus).notes[-1]
    assert note.startswith("cuda:0 has no bfloat16 (its compute capability is 7.5")


def devices(gpus: int) -> list[Device]:
    """Of a host with so many GPUs, on none of which there is much room."""
    free = {"cpu": 450_000_000} | {f"cuda:{number}": 1_400_000_000 for number in range(gpus)}
    return [
        Device(id=name, kind=name.partition(":")[0], name="", memory_total=size, memory_free=size)
        for name, size in free.items()
    ]


@pytest.mark.parametrize(
    "family",
    [
        {},
        {"architectures": ["LlamaForCausalLM"]},
        {"architectures": ["MistralForCausalLM"], "sliding_window": 64},
    ],
    ids=["qwen3", "llama", "mistral"],
)
def test_figures_are_those_that_a_load_plans_with(tmp_path, family):
    sizes = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "head_dim": 128,
        "max_position_embeddings": 200_000,
    }
    folder, here = write_checkpoint(tmp_path / "model", **sizes, **family), devices(2)
    free = {device.id: device.memory_free for device in here}
    places = {"cpu": ["cpu"], "cuda:0": ["cuda:0"], "cuda:1": ["cuda:1"], "2 GPUs": ["cuda:0", "cuda:1"]}
    choices = inspect(folder, here).choices
    assert [choice.quantization for choice in choices] == [None, "q8", "q6", "q4", "int8", "fp8"]
    for choice in choices:
        assert choice.contexts.keys() == places.keys()
        for name, chosen in places.items():
            said = choice.contexts[name]
            for kept, context in ((None, said), ("int8", choice.kept_in_8_bits.get(name, said))):
                settings = ModelSettings(
                    id="m",
                    quantization=choice.quantization,
                    devices=chosen,
                    ranks=len(chosen),
                    kv_cache_dtype=kept,
                )
                description, fit = place(settings, folder, free, {}, UNMEASURED_BYTES)
                assert max(description.rank_bytes) == choice.rank_bytes[len(chosen)]
                assert (fit.context_length, None) == context


@pytest.mark.parametrize(
    ("gpus", "heads", "numbers"),
    [(1, 2, []), (3, 2, [2]), (3, 8, [2, 3]), (5, 2, [2, 4]), (5, 8, [2, 3, 4, 5])],
)
def test_each_number_of_gpus_that_can_share_a_model_has_its_place(tmp_path, gpus, heads, numbers):
    folder = write_checkpoint(tmp_path, num_attention_heads=8, num_key_value_heads=heads)
    [stored, *_] = inspect(folder, devices(gpus)).choices
    together = [place for place in stored.contexts if place.endswith("GPUs")]
    assert together == [f"{number} GPUs" for number in numbers]
    assert all(context.tokens for context in stored.contexts.values())
    assert list(stored.rank_bytes) == ([1, *numbers] if gpus > 1 else [1, 2, 4, 8])


def test_gpus_that_share_a_model_unevenly_say_by_which_parts(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path, num_attention_heads=8, num_key_value_heads=8)
    read_faster = dict(zip(("cuda:0", "cuda:1", "cuda:2"), (1008, 1792, 1792), strict=True))
    here = [msgspec.structs.replace(each, memory_rate=read_faster.get(each.id)) for each in devices(3)]
    [stored, *_] = inspect(folder, here).choices
    assert {place: split.counts for place, (_, split) in stored.contexts.items() if split} == {
        "2 GPUs": (3, 5),
        "3 GPUs": (2, 3, 3),
    }
    sizes = read_card(folder).bytes_per_rank
    assert stored.rank_bytes == {
        1: sizes(ALONE)[0],
        2: sizes(Split((3, 5)))[1],
        3: sizes(Split((2, 3, 3)))[1],
    }
    monkeypatch.setattr(Inventory, "_find_gpus", lambda self: here[1:])
    code, said = look(folder)
    assert (code, "(3:5) │" in said, "(2:3:3) │" in said) == (0, True, True), said


def test_with_keys_in_8_bits_gpus_may_share_a_model_by_other_parts(tmp_path, monkeypatch):
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 8, "num_hidden_layers": 4}
    folder = write_checkpoint(tmp_path, **sizes, max_position_embeddings=131_072)
    cpu, *gpus = devices(2)
    memory = {"cuda:0": (1_008_582_248, 1000), "cuda:1": (2_179_364_600, 1800)}
    here = [
        msgspec.structs.replace(each, memory_free=memory[each.id][0], memory_rate=memory[each.id][1])
        for each in gpus
    ]
    [stored, *_] = inspect(folder, [cpu, *here]).choices
    few, more = stored.contexts["2 GPUs"], stored.kept_in_8_bits["2 GPUs"]
    assert few.split == Split((3, 5))
    assert more == (131_072, Split((1, 7)))
    monkeypatch.setattr(Inventory, "_find_gpus", lambda self: here)
    code, said = look(folder)
    assert (code, f"│ {few.tokens:,} (3:5); 131,072 (1:7) in 8 bits │" in said) == (0, True), said


def test_what_does_not_fit_on_a_device_says_so(tmp_path):
    folder, config = write_checkpoint(tmp_path / "model"), tmp_path / "neuron.yaml"
    config.write_text(json.dumps({"devices": ["cpu"], "cpu": {"memory": "100MB"}}))
    code, said = look(folder, "--config", config)
    assert code == 0, said
    assert f"│ as stored │ {size_of(read_card(folder).bytes_per_rank(ALONE)[0])} │" in said
    assert "│ does not fit │" in said


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not supported"),
        ({"logits_scaling": 3.0}, "logits_scaling 3.0 is not understood"),
        ({"quantization_config": {"quant_method": "hqq"}}, "quantised (hqq)"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "quantization: the weights are quantised (MLX)"),
        ({"quip_params": {"codebook": "E8P12"}}, "quip_params: the weights are quantised (QuIP#)"),
        ({"num_hidden_layers": 3}, "'model.layers.2.input_layernorm.weight' is in none of its files"),
    ],
)
def test_a_checkpoint_that_is_not_served_says_why(tmp_path, changes, reason):
    folder = write_checkpoint(tmp_path)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    code, said = look(folder)
    assert (code, reason in said) == (1, True), said


def test_a_text_format_that_fails_is_a_problem_beside_what_is_known(tmp_path):
    folder = write_checkpoint(tmp_path)
    (folder / "chat_template.jinja").write_text("{% for %}")
    code, said = look(folder)
    assert code == 1
    assert "family qwen3" in said
    assert "chat_template.jinja" in said


def test_tokens_that_the_model_does_not_have_are_told(check, tmp_path):
    folder = write_checkpoint(tmp_path / "model", vocab_size=400)
    note = "the model has no place for '<think>', '<tool_call>' of its tokenizer"
    for code, said in (look(folder), check(**configured(folder))):
        assert (code, note in said) == (0, True), said
    assert note not in look(write_checkpoint(tmp_path / "other", vocab_size=402))[1]


def test_a_template_that_writes_one_of_them_is_refused_as_it_is_when_it_is_loaded(check, tmp_path):
    folder = write_checkpoint(tmp_path / "model", vocab_size=400)
    (folder / "chat_template.jinja").write_text(TEMPLATE + "<think>")
    reason = "has a chat template that writes '<think>', the token 400, and the model has only 400"
    for code, said in (look(folder), check(**configured(folder))):
        assert (code, reason in said) == (1, True), said
    with pytest.raises(CortexError, match=reason):
        TextFrontEnd.load(read_card(folder))


def test_what_is_no_checkpoint_says_what_it_is(tmp_path):
    assert "nowhere: is not there" in look(tmp_path / "nowhere")[1]
    assert ": cannot be read: File name too long" in look(tmp_path / ("a" * 300))[1]
    (tmp_path / "gone.gguf").symlink_to("nowhere")
    assert "gone.gguf: is a link to a file that is not there" in look(tmp_path / "gone.gguf")[1]
    (tmp_path / "gone.gguf").unlink()
    (tmp_path / "adapter_config.json").write_text("{}")
    for path in (tmp_path, tmp_path / "adapter_config.json"):
        assert "is an adapter, which is served beside its base" in look(path)[1]
    assert look(write_checkpoint(tmp_path) / "adapter_config.json")[0] == 0  # of one with that beside it


def test_a_model_may_be_given_by_its_name(tmp_path):
    config = tmp_path / "neuron.yaml"
    places = {"model_folders": [str(tmp_path)], "hf_cache": str(tmp_path / "none")}
    config.write_text(json.dumps({"devices": ["cpu"], "cpu": {"memory": "500MB"}, **places}))
    write_checkpoint(tmp_path / "org" / "mine")
    assert look("demo", "--config", config)[0] == 0
    assert look("org/mine", "--config", config) == look(tmp_path / "org" / "mine", "--config", config)
    code, said = look("org/other", "--config", config)
    assert (code, "`neuron pull org/other` gets it from the hub" in said) == (1, True), said


def test_a_name_is_looked_for_where_the_neuron_would(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "shelf" / "mine")
    places = {"model_folders": [str(tmp_path / "shelf")], "hf_cache": str(tmp_path / "none")}
    (tmp_path / "neuron.yaml").write_text(
        json.dumps({"devices": ["cpu"], "cpu": {"memory": "5MB"}, **places})
    )
    assert look("mine") == look("mine", "--config", "neuron.yaml")
    (tmp_path / "neuron.yaml").rename(tmp_path / "other.yaml")
    assert "`neuron pull mine`" in look("mine")[1]
    monkeypatch.setenv("NEURON_CONFIG", "other.yaml")
    assert look("mine")[0] == 0


@pytest.mark.parametrize(
    "path", ["./nope", "../nope", "nope/", "nope.safetensors", "mine/nope", "./mine/config.json", "/n"]
)
def test_a_path_is_not_taken_for_a_name(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    code, said = look(path)
    assert (code, f"{Path(path)}: is not there" in said) == (1, True), said


def test_a_checkpoint_is_looked_at_without_torch(tmp_path):
    folder = write_checkpoint(tmp_path)
    code = (
        "import sys\nfrom neuron.memory.devices import Inventory\nfrom neuron.config import NeuronConfig\n"
        "from pathlib import Path\nfrom neuron.inspection import inspect\n"
        f"inspect(Path({str(folder)!r}), Inventory(NeuronConfig()).devices)\nsys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=150)
