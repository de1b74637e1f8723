"""llama.cpp's own vocabularies: our tokens of its texts are those that it has written down for them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from neuron.text.tokenizer import TextTokenizer

FOLDER = Path(os.environ.get("CORTEX_REAL_MODELS", "")) / "llama.cpp-vocabularies"
BETWEEN = "\n__ggml_vocab_test__\n"  # two texts of `.gguf.inp`; `.gguf.out` has a line of ids for each

pytestmark = pytest.mark.skipif("CORTEX_REAL_MODELS" not in os.environ, reason="make test-real fetches them")

PUBLISHED = """
    bert-bge command-r deepseek-coder deepseek-llm falcon gemma-4 gpt-2 llama-bpe llama-spm mpt phi-3 qwen2
    qwen35 refact starcoder
"""
# Of the others: SHA-256 of such a file, from what llama-cpp-python 0.3.36 makes of GPT-2's texts
# (`tokenize(text, add_bos=False, special=False)`).
TOLD = {
    "aquila": "79fdcc6a94dd094ad2abb0cd1f42f7653324f1d9010c767753c67ad7a7c81bf3",
    "baichuan": "98d6a4be61c0a5b5b2217cfce6e4b1cb9e65dddb3419f9b7c7b024af00329150",
    "gpt-neox": "c171661e58f83968eaf0586b62cc3c6696133a7b29c96026fc829d4b1e113465",
    "nomic-bert-moe": "2cd0bbb9902ff91ba98ee5f811e296cf88658dc737c0552f8392d0271594a14f",
}
BERT_LIKE = ("bert-bge", "nomic-bert-moe")  # whose tokens do not tell what they have left out


def tokenizer(name: str) -> TextTokenizer:
    return TextTokenizer(FOLDER / f"ggml-vocab-{name}.gguf", vocabulary_size=1 << 20, shown=())


def texts(name: str) -> list[str]:
    return (FOLDER / f"ggml-vocab-{name}.gguf.inp").read_text().split(BETWEEN)


@pytest.mark.parametrize("name", PUBLISHED.split())
def test_tokens_are_those_that_llama_cpp_has_written_down(name):
    lines = (FOLDER / f"ggml-vocab-{name}.gguf.out").read_text().split("\n")
    found = tokenizer(name)
    for text, line in zip(texts(name), lines, strict=name != "gemma-4"):  # which ends in a line too many
        ids = found.encode(text, special=False)
        assert ids == list(map(int, line.split())), text
        if name not in BERT_LIKE:
            assert found.decode(ids) == text


@pytest.mark.parametrize("name", TOLD)
def test_tokens_are_those_that_llama_cpp_was_asked_for(name):
    found = tokenizer(name)
    ids = [found.encode(text, special=False) for text in texts("gpt-2")]
    lines = "".join(f" {' '.join(map(str, each))}\n" for each in ids)
    assert hashlib.sha256(lines.encode()).hexdigest() == TOLD[name]
    if name not in BERT_LIKE:
        assert [found.decode(each) for each in ids] == texts("gpt-2")
