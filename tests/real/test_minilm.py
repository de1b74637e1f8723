"""all-MiniLM-L6-v2 makes the vectors that sentence-transformers makes with it."""

from __future__ import annotations

import os
import random
from array import array
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from ipc.messages.requests import Embed
from ipc.worker_messages import Submit
from neuron.config import ModelSettings
from neuron.description import describe
from neuron.preparation.inputs import encode_inputs
from neuron.text.frontend import TextFrontEnd
from tests.workers.engines import make_spec
from workers.execution.encoder_runner import EncoderRunner
from workers.scheduling.whole import WholeScheduler

FOLDER = Path(os.environ.get("CORTEX_REAL_MODELS", "")) / "all-MiniLM-L6-v2"
TEXT = (
    "the sea is high again today with a thrilling flush of wind café naïve Zürich 東京 で 会い ましょう "
    "привет мир مرحبا बारिश 안녕하세요 (yes!) 3.14 x=y+1 don't e-mail: a@b.org — “quoted” 😀 "
    "antidisestablishment"
)
LENGTHS = [1, 2, 3, 127, 128, 129, 254, 255, 256, 257, 300, 511, 512, *range(4, 512, 5)][:100]
CUT = 256  # tokens: `max_seq_length`, at which sentence-transformers cuts without a word

pytestmark = pytest.mark.skipif("CORTEX_REAL_MODELS" not in os.environ, reason="make test-real fetches them")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def sentences(tokenizer) -> list[str]:
    """100 of 1 to 512 tokens, in several scripts."""
    dice, found = random.Random(1), []
    for length in LENGTHS:
        text = ""
        while True:
            longer = f"{text} {dice.choice(TEXT.split())}".strip()
            if text and len(tokenizer(longer, verbose=False)["input_ids"]) > max(length, 3):
                break
            text = longer
        found.append(text)
    return found


@pytest.fixture(scope="module")
def oracle(tokenizer):
    """transformers, the mean of its hidden states, at length 1; of at most so many tokens."""
    model = AutoModel.from_pretrained(FOLDER).eval()

    @torch.inference_mode()
    def embed(text: str, most: int) -> tuple[list[int], Tensor]:
        ids = tokenizer(text, truncation=True, max_length=most)["input_ids"]
        hidden = model(torch.tensor([ids])).last_hidden_state[0]
        return ids, torch.nn.functional.normalize(hidden.mean(dim=0), dim=0)

    return embed


@pytest.mark.parametrize("most", [CUT, 512], ids=["as it is", "as long as it can"])
def test_tokens_and_vectors_of_100_sentences_are_those_of_transformers(sentences, oracle, most):
    settings = ModelSettings(id="minilm", context_length=None if most == CUT else most)
    description = describe(settings, FOLDER)
    assert description.context_length == most
    request = Embed(id=1, model="minilm", input=sentences, cut_to=0)
    inputs = encode_inputs(
        request, TextFrontEnd.load(description.card), description, description.context_length
    )
    spec = make_spec(context_length=most, max_step_tokens=1024, max_sequences=32)
    runner = EncoderRunner(spec, description.card)
    runner.load(lambda fraction, message: None)
    scheduler = WholeScheduler(max_sequences=32, max_step_tokens=1024, context_length=most)
    for number, each in enumerate(inputs):
        scheduler.submit(Submit(number, array("I", each.ids).tobytes(), 1, pooling="mean"))
    found: dict[int, Tensor] = {}
    while (plan := scheduler.plan()) is not None:
        scheduler.observe(runner.execute(plan))
        for report in scheduler.take_reports():
            vector = torch.frombuffer(bytearray(report.details.embedding), dtype=torch.float32)
            found[report.request_id] = torch.nn.functional.normalize(vector, dim=0)
    lengths = set()
    for number, sentence in enumerate(sentences):
        ids, expected = oracle(sentence, most)
        assert inputs[number].ids == ids
        assert float(found[number] @ expected) >= 0.99999
        lengths.add(len(ids))
    assert max(lengths) == most
    assert len(lengths) > 30
