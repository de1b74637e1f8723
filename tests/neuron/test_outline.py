"""What a check says of a tokenizer, without its vocabulary, is what is found when it is read."""

import json
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, models

from ipc.errors import CortexError
from neuron.text.outline import Outline, added_tokens, frame_of
from neuron.text.tokenizer import TextTokenizer
from tests.neuron.folders import byte_level


def replaced(at, value):
    """A change of what stands at a place, such as `model.vocab`."""
    *way, last = at.split(".")

    def change(file):
        for name in way:
            file = file[name]
        file[last] = value(file[last]) if callable(value) else value

    return change


CHANGES = {
    "nothing": lambda file: None,
    "merges as lines": replaced("model.merges", lambda pairs: ["#version: 0.2", *map(" ".join, pairs)]),
    "a line of three": replaced("model.merges", lambda pairs: [*map(" ".join, pairs), "a b c"]),
    "lines and pairs": replaced("model.merges", lambda pairs: [*pairs, "d o"]),
    "a merge of three": replaced("model.merges", lambda pairs: [*pairs, ["a", "b", "c"]]),
    "a left half": replaced("model.merges", lambda pairs: [*pairs, ["qqq", "a"]]),
    "a right half": replaced("model.merges", lambda pairs: [*pairs, ["a", "qqq"]]),
    "a whole": replaced("model.merges", lambda pairs: [*pairs, ["!", "?"]]),
    "merges of numbers": replaced("model.merges", [[1, 2]]),
    "no merges": replaced("model.merges", []),
    "a negative id": replaced("model.vocab", lambda vocabulary: vocabulary | {"qqq": -1}),
    "an id of 33 bits": replaced("model.vocab", lambda vocabulary: vocabulary | {"qqq": 1 << 32}),
    "an id and a half": replaced("model.vocab", lambda vocabulary: vocabulary | {"qqq": 1.5}),
    "an id as a float": replaced("model.vocab", lambda vocabulary: vocabulary | {"qqq": 900.0}),
    "a vocabulary in a list": replaced("model.vocab", []),
    "a dropout of 2": replaced("model.dropout", 2.0),
    "a prefix": replaced("model.continuing_subword_prefix", "##"),
    "another model": replaced("model.type", "Other"),
    "a model that is not named": lambda file: file["model"].pop("type"),
    "words": replaced("model", {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
    "an unknown normalizer": replaced("normalizer", {"type": "Other"}),
    "a pattern that is none": replaced(
        "normalizer", {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}
    ),
    "a pattern without bound": replaced(
        "normalizer", {"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "content": ""}
    ),
    "a pattern to be tried": replaced(
        "normalizer", {"type": "Replace", "pattern": {"Regex": "(?: ?b)+"}, "content": ""}
    ),
    "a long text": replaced(
        "normalizer", {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 20_000}
    ),
    "characters that are none": replaced(
        "normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    ),
    "a tag without its text": replaced("added_tokens", lambda tokens: [*tokens, {"id": 999}]),
    "a tag of another id": replaced(
        "added_tokens", lambda tokens: [tokens[0] | {"id": 990, "content": "<other>"}, *tokens]
    ),
    "a tag far behind": replaced(
        "added_tokens", lambda tokens: [*tokens, tokens[0] | {"id": 999_999, "content": "<far>"}]
    ),
    "a tag of a token's text": replaced(
        "added_tokens", lambda tokens: [*tokens, tokens[0] | {"id": 402, "content": "the"}]
    ),
    "an empty tag": replaced("added_tokens", lambda tokens: [*tokens, tokens[0] | {"content": ""}]),
    "two tags of an id": replaced(
        "added_tokens", lambda tokens: [*tokens, tokens[0] | {"content": "<twice>"}]
    ),
    "no tags": replaced("added_tokens", []),
    "another version": replaced("version", "9.9"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("outlines")


def found(read):
    """The tags, or why there are none."""
    try:
        return read()
    except CortexError as error:
        return error.message


@pytest.mark.parametrize("change", CHANGES)
def test_a_tokenizer_is_taken_or_refused_as_it_is_read(folder, change):
    file = json.loads(byte_level().to_str())
    CHANGES[change](file)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(file))
    said = found(lambda: added_tokens(path, 1000))
    assert said == found(lambda: TextTokenizer(path, 1000, shown=()).added)


def test_a_tag_whose_id_is_another_than_the_library_gives_it_is_refused(folder):
    file = json.loads(byte_level().to_str())
    CHANGES["a tag far behind"](file)
    path = folder / "far.json"
    path.write_text(json.dumps(file))
    with pytest.raises(CortexError, match="'<far>' is the token 999999, and is read as if it were 402"):
        added_tokens(path, 1000)


def test_a_library_that_panics_is_one_line_and_no_page(folder, capfd):
    file = json.loads(byte_level().to_str())
    CHANGES["characters that are none"](file)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(file))
    with pytest.raises(CortexError, match="is no tokenizer: ") as raised:
        Outline(path).added_tokens(path, 1000)
    assert "\n" not in raised.value.message
    assert capfd.readouterr() == ("", "")


def test_a_large_vocabulary_is_not_built(folder):
    path = folder / "whole.json"
    byte_level().save(str(path))
    assert frame_of(path).tokenizer.get_vocab_size(with_added_tokens=False) == 0
    assert isinstance(frame_of(path).tokenizer.model, models.BPE)
    assert Tokenizer.from_file(str(path)).get_vocab_size(with_added_tokens=False) > 0


def test_a_copy_of_a_command_reads_it_and_one_that_fails_is_replaced(folder):
    path = folder / "beside" / "tokenizer.json"
    path.parent.mkdir()
    byte_level().save(str(path))
    script = (
        "import sys; from pathlib import Path; from neuron.text import outline\n"
        "path, works = Path(sys.argv[1]), sys.argv[2] == 'works'\n"
        "read = outline.frame_of\n"
        "outline.frame_of = lambda path: read(path) if works else sys.exit('a copy that ends')\n"
        "beside = outline.Outline(path)\n"
        "works_here = lambda path: sys.exit('not in a copy') if works else read(path)\n"
        "outline.frame_of = works_here\n"
        "print(*sorted(beside.added_tokens(path, 1000)))\n"
    )
    for works in ("works", "fails"):
        done = subprocess.run(
            [sys.executable, "-c", script, str(path), works], capture_output=True, text=True, timeout=150
        )
        assert done.stdout.split() == sorted(added_tokens(path, 1000)), done.stderr
