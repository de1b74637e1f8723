"""A file that a model needs is missing: the line says what is there in its place, and what to do."""

from __future__ import annotations

import re

import pytest

from tests.neuron.folders import write_checkpoint
from tests.workers.cards import refusal
from workers.checkpoints import missing
from workers.checkpoints.reading import read_card

NOTHING = "config.json: is missing"
HUB = "models--org--name/snapshots/" + "0123456789" * 4
# Of a folder with one such file alone.
IN_PLACE = {
    "model-Q4_K_M.gguf.part": "is a download that is not finished",
    "model.safetensors.aria2": "is a download that is not finished",
    "model.gguf.!qB": "is a download that is not finished",
    "adapter_config.json": "list it there, under `adapters`",
    "adapter_model.safetensors": "list it there, under `adapters`",
    "model_index.json": "is a pipeline of diffusers",
    "mmproj-F16.gguf": "is what sees for a model, whose own GGUF file is not here",
    "model.imatrix.dat": "is figures for whoever quantises a model",
    "M.GGUF": "has to end in .gguf",
    "m.llamafile": "`unzip` takes its .gguf out",
    "sha256-" + "0f" * 32: "by links that end in .gguf",
    "model.tar.gz": "is an archive: unpack it",
    "ggml-model-q4_0.bin": "is of a llama.cpp before GGUF",
    "model_q4.onnx": "is for another engine",
    "weights.npz": "is for another engine",
    "openvino_model.bin": "is for another engine",
    "tf_model.h5": "is for another engine",
    "model-00001-of-00002.safetensors": "is one of several, whose model.safetensors.index.json is missing",
    "model.safetensors": "is of no use without it",
    "consolidated.safetensors": "is for its makers' own code",
    "Model.safetensors": "is not read: weights are in model.safetensors",
    "qwen3.safetensors": "is not read: weights are in model.safetensors",
    "pytorch_model.bin": "is a pickle, which can run code",
    "epoch.ckpt": "is a pickle, which can run code",
    "original": "is for its makers' own code",
}
WITHOUT_CONFIG = ("model_index.json", "model.safetensors", "mmproj-F16.gguf")  # says so where that is missing
TOKENIZERS = {
    "qwen.tiktoken": "take tokenizer.json from",
    "tekken.json": "take tokenizer.json from",
    "tokenizer.model": "`save_pretrained` writes tokenizer.json",
    "vocab.json": "`save_pretrained` writes tokenizer.json",
    "tokenizer.json.incomplete": "is a download that is not finished",
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_there_is_without_a_config_is_said(tmp_path, name):
    (tmp_path / name).write_bytes(b"some")
    said = refusal(tmp_path)
    assert said.startswith(f"{tmp_path / NOTHING}, and {name} ")
    assert IN_PLACE[name] in said
    if not name.endswith((".gguf", ".json", ".safetensors")):
        assert IN_PLACE[name] in refusal(tmp_path / name)


@pytest.mark.parametrize("name", [name for name in IN_PLACE if name not in WITHOUT_CONFIG])
def test_what_there_is_without_weights_is_said(tmp_path, name):
    write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    assert f"nor model.safetensors.index.json, and {name} " in refusal(tmp_path)
    assert IN_PLACE[name] in refusal(tmp_path)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_there_is_without_a_tokenizer_is_said(tmp_path, name):
    write_checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / name)
    assert f"tokenizer.json: is missing, and {name} is " in refusal(tmp_path)
    assert TOKENIZERS[name] in refusal(tmp_path)


@pytest.mark.parametrize(
    ("table", "examples"),
    [(missing.MODELS, IN_PLACE), (missing.PIPELINES, IN_PLACE), (missing.TOKENIZERS, TOKENIZERS)],
)
def test_every_line_of_a_table_has_an_example_here(table, examples):
    for pattern, what in table:
        assert any(re.fullmatch(pattern, name, re.IGNORECASE) and examples[name] in what for name in examples)


def test_a_folder_with_nothing_known_in_it_says_no_more(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path / NOTHING}, and all else: the folder is empty"
    (tmp_path / "README.md").touch()
    assert refusal(tmp_path) == f"{tmp_path / NOTHING}"
    assert refusal(tmp_path / "README.md").endswith(
        "is no model by itself: that is a folder with config.json, or a file whose name ends in .gguf"
    )


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "rng_state_0.pth", "scheduler.pt"])
def test_what_a_trainer_keeps_is_not_taken_for_weights(tmp_path, name):
    (tmp_path / name).touch()
    assert refusal(tmp_path) == f"{tmp_path / NOTHING}"
    (tmp_path / "pytorch_model.bin").touch()
    assert "and pytorch_model.bin is a pickle" in refusal(tmp_path)


def test_a_download_is_seen_however_much_lies_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(missing, "MOST_NAMES", 2)
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    (tmp_path / missing.DOWNLOADS).mkdir(parents=True)
    (tmp_path / missing.DOWNLOADS / "0a.incomplete").touch()
    assert "and 0a.incomplete is a download" in refusal(tmp_path)


def test_a_folder_within_that_goes_meanwhile_is_passed_over(tmp_path, monkeypatch):
    def glob(folder, pattern):
        raise FileNotFoundError(f"{folder}/gone")

    monkeypatch.setattr(type(tmp_path), "glob", glob)
    (tmp_path / "README.md").touch()
    assert refusal(tmp_path) == f"{tmp_path / NOTHING}"


def test_a_file_of_a_model_is_not_taken_for_it(tmp_path):
    weights = write_checkpoint(tmp_path) / "model.safetensors"
    assert refusal(weights) == f"{weights}: is of a model: give its folder"
    (tmp_path / "config.json").unlink()
    assert refusal(weights).startswith(f"{weights}: is no model by itself: that is a folder with config.json")
    adapter = weights.rename(tmp_path / "adapter_model.safetensors")
    assert "list it there, under `adapters`" in refusal(adapter)


def test_what_cannot_be_looked_into_is_not_called_empty(tmp_path):
    assert refusal(tmp_path / "gone") == f"{tmp_path / 'gone' / NOTHING}: No such file or directory"


def test_a_name_that_no_line_can_have_is_escaped(tmp_path):
    (tmp_path / "a\udcff.bin").touch()
    assert refusal(tmp_path).startswith(f"{tmp_path / NOTHING}, and 'a\\udcff.bin' is a pickle")


def test_models_within_a_folder_are_named_before_what_lies_beside_them(tmp_path):
    write_checkpoint(tmp_path / "checkpoint-500")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert refusal(tmp_path).endswith("models are within: name one of them, as checkpoint-500")
    write_checkpoint(tmp_path / HUB)
    assert refusal(tmp_path / "models--org--name").endswith(f"as {HUB.partition('/')[2]}")
    (tmp_path / "checkpoint-500").rename(tmp_path / "1_Pooling" / "inner")
    assert refusal(tmp_path).endswith("name one of them, as 1_Pooling/inner")
    (tmp_path / "model_index.json").touch()
    assert "pipeline of diffusers" in refusal(tmp_path)


def test_a_cache_of_the_hub_s_says_where_in_it_models_are(tmp_path):
    write_checkpoint(tmp_path / HUB)
    assert refusal(tmp_path).endswith(f"name one of them, as {HUB}")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_link_to_what_is_not_there_says_so_and_of_the_hub_s_cache_how_to_get_it(tmp_path, name):
    for folder, get in ((tmp_path / "mine", ""), (tmp_path / HUB, ": `neuron pull org/name` fetches it")):
        write_checkpoint(folder)
        (folder / name).unlink()
        (folder / name).symlink_to("../../blobs/gone")
        assert refusal(folder) == f"{folder / name}: is a link to a file that is not there{get}"


def test_the_rest_of_a_model_comes_as_its_beginning_did(tmp_path):
    shard = "model-00002-of-00003.safetensors"
    for folder, get in (
        (tmp_path / "mine", ""),
        (tmp_path / "half", ", and 0a.incomplete is a download that is not finished"),
        (tmp_path / HUB, ": `neuron pull org/name` fetches it"),
    ):
        write_checkpoint(folder, shards=3)
        (folder / shard).unlink()
        if folder.name == "half":
            (folder / missing.DOWNLOADS).mkdir(parents=True)
            (folder / missing.DOWNLOADS / "0a.incomplete").touch()
        assert refusal(folder) == f"{folder / shard}: is missing, and the index names it{get}"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_with_holes_in_it_is_not_read_until_it_is_whole(tmp_path, name):
    write_checkpoint(tmp_path)
    half = tmp_path / f"{name}.aria2"
    half.touch()
    assert f"{name}: is a download that is not finished, as {half.name} beside it says" in refusal(tmp_path)
    half.unlink()
    read_card(tmp_path)


@pytest.mark.parametrize(("beginning", "what"), missing.BEGINNINGS.items())
def test_what_has_another_name_than_it_should_is_told_by_how_it_begins(tmp_path, beginning, what):
    write_checkpoint(tmp_path)
    (tmp_path / "m.gguf").write_bytes(beginning.ljust(64, b"\xff"))
    (tmp_path / "model.safetensors").write_bytes(beginning.ljust(64, b"\xff"))
    if beginning != b"GGUF":
        assert refusal(tmp_path / "m.gguf").endswith(f"is no GGUF file, but {what}")
    assert refusal(tmp_path).endswith(f"is no safetensors file, but {what}")
