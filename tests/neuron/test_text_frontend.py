import json

import pytest

from ipc.errors import Code, CortexError
from ipc.messages import Generate, Message, Tool
from neuron.text.formats.hermes import HERMES
from neuron.text.formats.registry import tool_format
from neuron.text.frontend import TextFrontEnd
from tests.neuron.folders import write_checkpoint
from workers.checkpoints.card import read_card

HELLO = [Message(role="user", content="The quick dog")]
ASKED = Generate(id=0, model="m", messages=HELLO, tools=[Tool.function(name="f")])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), vocab_size=512)


@pytest.fixture(scope="module")
def text(folder):
    return TextFrontEnd.load(read_card(folder))


def load_with(folder, tmp_path, **tokenizer_config):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return TextFrontEnd.load(read_card(tmp_path))


def test_a_conversation_becomes_tokens_and_tokens_become_text_again(text):
    prompt = text.render(HELLO, [], {})
    assert prompt == "user: The quick dog\nassistant: "
    ids = text.encode(prompt, special=False)
    detokenizer = text.detokenizer()
    assert "".join([detokenizer.push([token]) for token in ids] + [detokenizer.finish()]) == prompt
    assert text.count_tokens(HELLO, [], {}) == len(ids)


def test_its_vocabulary_is_the_models(text):
    assert text.vocabulary_size == 512
    assert text.detokenizer().push([511]) == ""


def test_a_tool_call_is_seen_even_where_its_tag_is_a_special_token(text):
    answer = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    detokenizer, parser = text.detokenizer(), text.answer_parser("assistant: ", ASKED)
    for token in text.encode(answer, special=False):
        parser.push(detokenizer.push([token]))
    parser.push(detokenizer.finish())
    parser.finish()
    assert [call.name for call in parser.tool_calls] == ["f"]


def test_requests_with_tools_get_the_template_for_tools(folder, tmp_path):
    named = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{ tools | length }}"},
    ]
    text = load_with(folder, tmp_path, chat_template=named)
    assert text.render(HELLO, [], {}) == "plain"
    assert text.render(HELLO, [Tool.function(name="f")], {}) == "1"


def test_a_model_without_a_template_takes_no_messages(folder, tmp_path):
    text = load_with(folder, tmp_path)
    with pytest.raises(CortexError) as raised:
        text.render(HELLO, [], {})
    assert (raised.value.code, raised.value.param) == (Code.NOT_SUPPORTED, "messages")


def test_a_broken_template_stops_the_load(folder, tmp_path):
    with pytest.raises(CortexError) as raised:
        load_with(folder, tmp_path, chat_template="{% for %}")
    assert raised.value.code == Code.MODEL_LOAD_FAILED


def test_a_model_writes_calls_in_the_format_that_its_template_speaks_of():
    assert tool_format(["Write <tool_call> and"]) is HERMES
    assert tool_format(["Write <|call|> and"]) is HERMES  # of which nobody knows more
    assert HERMES.is_of("<tool_call>")
    assert not HERMES.is_of("<|call|>")
