"""Safetensors files and the index of several: where each tensor is, and which headers are not believed."""

import json
import os
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.errors import CortexError
from tests.neuron.folders import CONFIG, header, shapes, write_checkpoint, write_json, write_safetensors
from tests.workers.cards import refusal
from workers.checkpoints.reading import read_card
from workers.checkpoints.safetensors import HEADER_LIMIT, read_header

NAMES = list(shapes(CONFIG))


def test_a_tensor_is_where_its_entry_says(tmp_path):
    checkpoint = read_card(write_checkpoint(tmp_path))
    path = tmp_path / "model.safetensors"
    end = max(tensor.offset + tensor.nbytes for tensor in checkpoint.tensors.values())
    start = min(tensor.offset for tensor in checkpoint.tensors.values())
    assert end == path.stat().st_size
    assert start == 8 + int.from_bytes(path.read_bytes()[:8], "little")


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
