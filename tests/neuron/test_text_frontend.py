import json
from itertools import groupby
from operator import itemgetter

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from ipc.errors import Code, CortexError
from ipc.messages.conversation import Message, Tool
from ipc.messages.requests import Detokenize, Generate, Tokenize
from ipc.messages.sampling import Thinking
from ipc.model_settings import REASONING_FORMATS
from neuron.preparation.tokens import detokenize, tokenize
from neuron.text.formats.hermes import HERMES
from neuron.text.formats.registry import BY_NAME, tool_format
from neuron.text.frontend import TextFrontEnd
from neuron.text.reasoning import BY_NAME as REASONING
from tests.neuron.folders import write_checkpoint
from workers.checkpoints.reading import read_card

HELLO = [Message(role="user", content="The quick dog")]
ASKED = Generate(id=0, model="m", messages=HELLO, tools=[Tool.function(name="f")])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), vocab_size=512)


@pytest.fixture(scope="module")
def text(folder):
    return TextFrontEnd.load(read_card(folder))


def parser_of(text, prompt, request):
    """Of an answer to what became `prompt`."""
    return text.answer_parser(text.think_tags.state(prompt), request, request.tools)


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


def test_its_vocabulary_is_the_models(text):
    assert text.vocabulary_size == 512
    assert text.detokenizer().push([511]) == ""


@pytest.mark.parametrize("said", ["The quick dog", "Größe 😀", "<|start|>a<tool_call>"])
def test_a_text_comes_back_from_its_tokens_with_the_special_ones(text, said):
    tokens = tokenize(text, Tokenize(id=1, model="m", prompt=said, return_bytes=True), 512)
    assert tokens.token_ids == text.encode(said, special=True)
    assert b"".join(tokens.pieces).decode() == said
    back = detokenize(text, Detokenize(id=2, model="m", token_ids=tokens.token_ids))
    assert (back.id, back.text) == (2, said)


def test_a_token_that_the_model_does_not_have_is_refused(text):
    assert detokenize(text, Detokenize(id=1, model="m", token_ids=[])).text == ""
    for wrong in (512, -1):
        with pytest.raises(CortexError) as error:
            detokenize(text, Detokenize(id=1, model="m", token_ids=[1, wrong]))
        assert (error.value.code, error.value.param) == (Code.BAD_REQUEST, "token_ids")


def test_special_tokens_around_a_text_are_for_whoever_asks(text):
    begin = TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", 1)])
    text._tokenizer.tokenizer.post_processor, before = begin, text._tokenizer.tokenizer.post_processor
    try:
        for asked, is_there in ((None, True), (True, True), (False, False)):
            request = Tokenize(id=1, model="m", prompt="a", add_special_tokens=asked)
            assert (tokenize(text, request, 512).token_ids[0] == 1) == is_there
        for asked, is_there in ((None, False), (True, True), (False, False)):
            request = Tokenize(id=1, model="m", messages=HELLO, add_special_tokens=asked)
            assert (tokenize(text, request, 512).token_ids[0] == 1) == is_there
    finally:
        text._tokenizer.tokenizer.post_processor = before


def test_a_tool_call_is_seen_even_where_its_tag_is_a_special_token(text):
    answer = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    detokenizer, parser = text.detokenizer(), parser_of(text, "assistant: ", ASKED)
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


def test_templates_in_files_of_their_own_count_more(folder, tmp_path):
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools | length }} tools")
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    text = load_with(folder, tmp_path, chat_template="plain")
    assert text.render(HELLO, [], {}) == "plain"
    assert text.render(HELLO, [Tool.function(name="f")], {}) == "1 tools"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "of a file"}))
    assert load_with(folder, tmp_path, chat_template="plain").render(HELLO, [], {}) == "of a file"
    (tmp_path / "chat_template.jinja").write_text("of its own")
    assert load_with(folder, tmp_path, chat_template="plain").render(HELLO, [], {}) == "of its own"


def test_a_model_without_a_template_takes_no_messages(folder, tmp_path):
    text = load_with(folder, tmp_path)
    with pytest.raises(CortexError) as raised:
        text.render(HELLO, [], {})
    assert (raised.value.code, raised.value.param) == (Code.NOT_SUPPORTED, "messages")


def test_a_format_that_is_named_is_the_format(folder):
    assert TextFrontEnd.load(read_card(folder), "kimi").tool_format is BY_NAME["kimi"]


def test_a_broken_template_stops_the_load(folder, tmp_path):
    with pytest.raises(CortexError) as raised:
        load_with(folder, tmp_path, chat_template="{% for %}")
    assert raised.value.code == Code.MODEL_LOAD_FAILED


def test_a_model_writes_calls_in_the_format_that_its_template_speaks_of():
    assert tool_format(["Write <tool_call> and"]) is HERMES
    assert tool_format(["Write <|call|> and"]) is HERMES  # of which nobody knows more
    assert HERMES.is_of("<tool_call>")
    assert not HERMES.is_of("<|call|>")


THINKING = "{% for m in messages %}{{ m.content }}{% endfor %}assistant: {# <think> </think> #}"
OFF = Thinking(enabled=False)


def test_a_model_that_cannot_be_told_not_to_think_finds_its_thought_over(folder, tmp_path):
    text = load_with(folder, tmp_path, chat_template=THINKING)
    plain = text.render(HELLO, [], {})
    assert text.render(HELLO, [], {}, thinking=Thinking(enabled=True)) == plain
    assert text.render(HELLO, [], {}, thinking=OFF) == plain + "<think>\n\n</think>\n\n"
    opening = load_with(folder, tmp_path, chat_template=THINKING + "<think>\n")
    assert opening.render(HELLO, [], {}, thinking=OFF) == plain + "<think>\n\n</think>\n\n"
    assert opening.thought_after(plain + "<think>\n") == "open"


def test_a_model_that_does_not_think_is_told_nothing(folder, tmp_path):
    text = load_with(folder, tmp_path, chat_template="{{ messages[0].content }}")
    assert text.render(HELLO, [], {}, thinking=OFF) == HELLO[0].content
    assert text.thought_after("anything") == "none"


def test_tags_in_the_vocabulary_alone_do_not_make_a_model_think(folder, tmp_path):
    load_with(folder, tmp_path, chat_template="{{ messages[0].content }}")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_special_tokens(["[THINK]", "[/THINK]"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = TextFrontEnd.load(read_card(tmp_path))
    assert text.render(HELLO, [], {}, thinking=OFF) == HELLO[0].content
    assert text.thought_after("anything") == "none"
    assert text.think_tags.closing == "[/THINK]"  # but what it writes between them is told apart


def test_the_clients_own_variables_count_more_than_what_thinking_says(folder, tmp_path):
    switch = THINKING + "{{ enable_thinking }}"
    text = load_with(folder, tmp_path, chat_template=switch)
    assert text.render(HELLO, [], {}, thinking=OFF).endswith("assistant: False")
    assert text.render(HELLO, [], {"enable_thinking": True}, thinking=OFF).endswith("assistant: True")


def test_a_tag_that_is_a_token_is_told_from_text_that_spells_it(folder, tmp_path):
    text = load_with(folder, tmp_path, chat_template=THINKING)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    spelled = [token for letter in "<think>a</think>b" for token in tokenizer.encode(letter).ids]
    tokenizer.add_special_tokens(["<think>", "</think>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = TextFrontEnd.load(read_card(tmp_path))
    request = Generate(id=0, model="m", messages=HELLO)
    for ids, pieces in (
        (text.encode("<think>a</think>b", special=False), [("reasoning", "a"), ("text", "b")]),
        (spelled, [("text", "<think>a</think>b")]),
    ):
        detokenizer, parser = text.detokenizer(), parser_of(text, "assistant: ", request)
        said = [piece for token in ids for piece in parser.push(detokenizer.push([token]))]
        said += parser.push(detokenizer.finish()) + parser.finish()
        assert joined(said) == pieces


def joined(pieces):
    """Pieces of the same kind that follow each other as one."""
    return [(kind, "".join(text for _, text in group)) for kind, group in groupby(pieces, key=itemgetter(0))]


HARMONY = """{% for message in messages %}<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>
{% endfor %}{# <|channel|>analysis<|message|> ... <|call|> #}<|start|>assistant"""


@pytest.mark.parametrize("tools", [[], [Tool.function(name="f")]])
def test_what_frames_the_text_of_a_message_is_told_to_nobody(folder, tmp_path, tools):
    text = load_with(folder, tmp_path, chat_template=HARMONY)
    prompt = text.render(HELLO, tools, {})
    assert prompt.endswith("<|end|>\n<|start|>assistant")
    parser = parser_of(text, prompt, Generate(id=0, model="m", messages=HELLO, tools=tools))
    said = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes."
    detokenizer, pieces = text.detokenizer(), []
    for token in text.encode(said, special=False):
        pieces += parser.push(detokenizer.push([token]))
    pieces += parser.push(detokenizer.finish()) + parser.finish()
    assert "".join(piece for kind, piece in pieces if kind == "reasoning") == "Hm."
    assert "".join(piece for kind, piece in pieces if kind == "text") == "Yes."


@pytest.mark.parametrize(
    ("thinks_as", "parts"),
    [
        (None, [("text", "[THINK]a[/THINK]b")]),  # no template of its speaks of thoughts
        ("magistral", [("reasoning", "a"), ("text", "b")]),
        ("none", [("text", "[THINK]a[/THINK]b")]),
    ],
)
def test_what_stands_around_thoughts_may_be_said_where_no_template_does(folder, thinks_as, parts):
    text = TextFrontEnd.load(read_card(folder), thinks_as=thinks_as)
    thought = text.thought_after(text.render(HELLO, [], {}))
    parser = text.answer_parser(thought, Generate(id=1, model="m", messages=HELLO), [])
    pieces = parser.push("[THINK]a[/THINK]b") + parser.finish("stop")
    joined = [(kind, "".join(piece for _, piece in group)) for kind, group in groupby(pieces, itemgetter(0))]
    assert joined == parts


def test_settings_know_the_names_of_all_that_stands_around_thoughts():
    assert sorted(["none", *REASONING]) == sorted(REASONING_FORMATS)
