"""What stands beside a tokenizer in a checkpoint, and how little of a tokenizer is read for it."""

import io
import json

import pytest
from tokenizers import Tokenizer, models, processors

from tests.neuron.folders import TEMPLATE, write_checkpoint, write_json
from tests.workers.cards import refusal
from workers.checkpoints import text
from workers.checkpoints.files import read_json
from workers.checkpoints.reading import read_card


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
