"""Filling in the middle: the prompts that models were trained on, as their makers write them."""

import itertools
import re
from pathlib import Path

import pytest
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

from ipc.errors import Code, CortexError
from ipc.messages.requests import Generate
from ipc.messages.sampling import Sampling
from neuron.preparation.prompt import encode_prompts
from neuron.requests.generation import Generation
from neuron.text.formats.hermes import HERMES
from neuron.text.frontend import TextFrontEnd
from neuron.text.tokenizer import TextTokenizer
from tests.neuron.doubles import described
from tests.neuron.folders import byte_fallback, byte_level, metaspace

QWEN = Path(__file__).parents[2] / "../shared/data/tokenizers/qwen3/tokenizer.json"
BEFORE, AFTER = "def f(x):\n    ", "\n    return x"


def front_end(path, tokenizer=None, tokens=()):
    if tokenizer is not None:
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
        tokenizer.save(str(path))
    size = tokenizer.get_vocab_size() if tokenizer is not None else 200_000
    return TextFrontEnd(TextTokenizer(path, size, ()), {}, HERMES)


def prompt_of(text, prompt=BEFORE, suffix=AFTER, context_length=4096):
    request = Generate(id=1, model="m", prompt=prompt, suffix=suffix, sampling=Sampling(max_tokens=4))
    [made] = encode_prompts(text, request, context_length)
    return made.ids


@pytest.mark.parametrize(
    "written",
    [
        "<|fim_prefix|>{before}<|fim_suffix|>{after}<|fim_middle|>",
        "<fim_prefix>{before}<fim_suffix>{after}<fim_middle>",
        "<fim-prefix>{before}<fim-suffix>{after}<fim-middle>",
        "<｜fim▁begin｜>{before}<｜fim▁hole｜>{after}<｜fim▁end｜>",
        "<|code_prefix|>{before}<|code_suffix|>{after}<|code_middle|>",
        "<[fim-suffix]>{after}<[fim-prefix]>{before}<[fim-middle]>",
        "[SUFFIX]{after}[PREFIX]{before}",
    ],
)
def test_a_model_is_asked_in_the_form_that_its_vocabulary_shows(tmp_path, written):
    tokens = re.findall(r"[<\[][^{}]+[>\]]", written)
    text = front_end(tmp_path / "tokenizer.json", byte_level(), tokens)
    assert prompt_of(text) == text.encode(written.format(before=BEFORE, after=AFTER), special=False)


def test_a_suffix_has_no_space_that_the_client_did_not_write(tmp_path):
    """Code Llama: its tokenizer writes a space before a text, which is right before the prefix only."""
    tokens = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
    for number, tokenizer in enumerate((byte_fallback(), metaspace())):
        text = front_end(tmp_path / f"{number}.json", tokenizer, tokens)
        pre, suf, mid, eot = map(tokenizer.token_to_id, tokens)
        ids = prompt_of(text, "hello", "world")
        assert (ids[0], ids[-1]) == (pre, mid)
        middle = ids.index(suf)
        assert ids[1:middle] == text.encode("hello", special=False)
        spelled = b"".join(map(text.spell, ids[middle + 1 : -1]))
        assert spelled == b"world"
        assert eot in text.infill.ends


def test_a_begin_of_text_stands_first(tmp_path):
    tokenizer = byte_level()
    tokenizer.post_processor = TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", 1)])
    text = front_end(tmp_path / "tokenizer.json", tokenizer, ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"))
    assert prompt_of(text)[:2] == [1, tokenizer.token_to_id("<fim_prefix>")]


def test_a_prompt_of_token_ids_and_an_empty_one_are_filled_in_too(tmp_path):
    text = front_end(tmp_path / "t.json", byte_level(), ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"))
    pre, suf, mid = map(text._tokenizer.id_of, ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"))
    after = text.encode(AFTER, special=False)
    assert prompt_of(text, [7, 8]) == [pre, 7, 8, suf, *after, mid]
    assert prompt_of(text, "") == [pre, suf, *after, mid]


def test_the_answer_ends_where_another_file_would_begin(tmp_path):
    tokens = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|file_sep|>")
    text = front_end(tmp_path / "tokenizer.json", byte_level(), tokens)
    assert set(text.infill.ends) == {text._tokenizer.id_of(token) for token in tokens}


def test_a_model_without_such_tokens_refuses_by_name(tmp_path):
    text = front_end(tmp_path / "tokenizer.json", byte_level(), ("<|fim_prefix|>", "<|fim_suffix|>"))
    with pytest.raises(CortexError) as refused:
        prompt_of(text)
    assert (refused.value.code, refused.value.param) == (Code.NOT_SUPPORTED, "suffix")


def test_a_suffix_that_cannot_fit_is_refused_by_name(tmp_path):
    text = front_end(tmp_path / "t.json", byte_level(), ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"))
    for prompt, suffix, param in ((BEFORE, "x" * 100_000, "suffix"), ("x" * 100_000, AFTER, "prompt")):
        with pytest.raises(CortexError) as refused:
            prompt_of(text, prompt, suffix, context_length=16)
        assert (refused.value.code, refused.value.param) == (Code.CONTEXT_LENGTH_EXCEEDED, param)


@pytest.mark.skipif(not QWEN.exists(), reason="the tokenizer is not here")
def test_qwen_is_asked_as_its_makers_write_it():
    text = front_end(QWEN)
    written = f"<|fim_prefix|>{BEFORE}<|fim_suffix|>{AFTER}<|fim_middle|>"
    assert prompt_of(text) == text.encode(written, special=False)
    assert text._tokenizer.id_of("<|endoftext|>") in text.infill.ends


def test_what_ends_a_file_ends_the_answer(tmp_path):
    tokens = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>")
    text = front_end(tmp_path / "t.json", byte_level(), tokens)
    description = described(eos_ids=[0])
    for suffix, ends in ((AFTER, {0, *text.infill.ends}), (None, {0})):
        request = Generate(id=1, model="m", prompt=BEFORE, suffix=suffix, sampling=Sampling(max_tokens=4))
        generation = Generation(itertools.count(1), request, print, print)
        generation.prepare(text, description, 4096)
        assert set(generation.parts[0].submit.params.stop_ids) == ends
