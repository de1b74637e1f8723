"""Gemma 3 270M in Q4_K_M: its tokens are llama.cpp's, its numbers those of its dequantised weights."""

from __future__ import annotations

import math
import os
from pathlib import Path

import gguf
import numpy
import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel

from benchmarks.perplexity import perplexity, write_plain
from ipc.worker_messages import Submit
from neuron.text.tokenizer import TextTokenizer
from tests.workers import ranks
from tests.workers.engines import Answer, Session, make_runner, request
from workers.checkpoints.gguf.header import read_header

FOLDER = Path(os.environ.get("CORTEX_REAL_MODELS", ""))
GEMMA = FOLDER / "gemma-3-270m-q4_k_m.gguf"

pytestmark = pytest.mark.skipif("CORTEX_REAL_MODELS" not in os.environ, reason="make test-real fetches them")

# What llama.cpp (llama-cpp-python 0.3.36) makes of these texts: `tokenize(text, add_bos=True, special=True)`.
TOKENS = {
    "The capital of France is": [2, 818, 5279, 529, 7001, 563],
    "def fibonacci(n):\n    if n < 2:\n        return n\n": [
        *(2, 2063, 10779, 78113, 236769, 236749, 1473, 107, 140, 584, 538, 655, 236743, 236778, 236787, 107),
        *(144, 2060, 538, 107),
    ],
    "Столица России — город Москва, а столица Франции —": [
        *(2, 127677, 189729, 28973, 2192, 42924, 99776, 236764, 1943, 98656, 7484, 131450, 2192),
    ],
    "日本の首都は東京です。フランスの首都は": [
        *(2, 76444, 120211, 237048, 31414, 3652, 236924, 98022, 236945, 120211, 237048),
    ],
    "عاصمة فرنسا هي مدينة": [2, 236941, 191780, 184962, 15008, 111033],
    "भारत की राजधानी नई दिल्ली है और फ्रांस की राजधानी": [
        *(2, 34782, 1165, 65103, 24110, 15109, 820, 1402, 123531, 1165, 65103),
    ],
    "1, 2, 3, 4, 5, 6,  7,\t8,\n\n\n9": [
        *(2, 236770, 236764, 236743, 236778, 236764, 236743, 236800, 236764, 236743, 236812, 236764, 236743),
        *(236810, 236764, 236743, 236825, 236764, 138, 236832, 236764, 255968, 236828, 236764, 109, 236819),
    ],
    "<start_of_turn>user\nWhat's 3 plus 4? 😀<end_of_turn>\n<start_of_turn>model\n": [
        *(2, 105, 2364, 107, 3689, 236789, 236751, 236743, 236800, 2915, 236743, 236812, 236881, 163543, 106),
        *(107, 105, 4368, 107),
    ],
}
CONFIG = {  # of the model, as its publisher has it
    "vocab_size": 262_144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "max_position_embeddings": 32_768,
    "sliding_window": 512,
    "layer_types": [("full" if number % 6 == 5 else "sliding") + "_attention" for number in range(18)],
    "query_pre_attn_scalar": 256,
}
CHARACTERS = 4000  # of a text whose perplexity is measured
# Of perplexity, what each quantisation may cost.
MOST_LOST = {"q8": 0.001, "q6": 0.005, "fp8": 0.005, "int8": 0.005, "q4": 0.01}
CLOSE = 0.05  # of logits: which of two is the larger may be chance


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(GEMMA, vocabulary_size=262_144, shown=())


@pytest.fixture(scope="module")
def oracle() -> PreTrainedModel:
    """transformers with the weights as the package `gguf` dequantises them, in float32."""
    model = Gemma3ForCausalLM(Gemma3TextConfig(**CONFIG)).eval()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, CONFIG["num_hidden_layers"])
    stored = read_header(GEMMA).tensors
    for name, parameter in model.named_parameters():  # without the head, which is the embedding
        tensor = stored[names.get_name(name, (".weight",))]
        data = numpy.fromfile(GEMMA, numpy.uint8, tensor.size, offset=tensor.offset)
        kind = gguf.GGMLQuantizationType[tensor.dtype]
        rows = data.view(numpy.float32) if kind == 0 else data.reshape(tensor.shape[0], -1)
        weight = torch.from_numpy(gguf.quants.dequantize(rows, kind))
        parameter.data = weight - 1 if name.endswith("norm.weight") else weight
    model.tie_weights()
    return model


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """The same weights as a checkpoint in float32."""
    folder = tmp_path_factory.mktemp("plain")
    write_plain(GEMMA, folder)
    return folder


@pytest.fixture(scope="module")
def text(tokenizer) -> list[int]:
    """Tokens of a text whose perplexity is measured."""
    return tokenizer.encode((Path(__file__).parents[2] / "LICENSE").read_text()[:CHARACTERS], special=True)


@torch.inference_mode()
def logits_of(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:  # [tokens, vocabulary]
    """What it says after each token."""
    return model(torch.tensor([tokens])).logits[0]


def served(dtype: str, requests: list[Submit]) -> list[Answer]:
    """The answers of an engine in that type."""
    runner = make_runner(GEMMA, dtype=dtype, threads=2, max_step_tokens=512)
    runner.load(lambda fraction, message: None)
    answers = Session(runner, max_step_tokens=512).answer(requests)
    runner.close()
    return answers


def test_tokens_are_those_of_llama_cpp(tokenizer):
    for text, tokens in TOKENS.items():
        assert tokenizer.encode(text, special=True) == tokens


def far_from_best(oracle: PreTrainedModel, prompt: list[int], answer: list[int]) -> float:
    """How much more than a token of the answer another one would have got at most, of logits."""
    logits = logits_of(oracle, prompt + answer)[len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    return float((logits.amax(dim=1) - chosen).max())


def test_greedy_answers_are_those_of_the_dequantised_weights(oracle):
    prompts = list(TOKENS.values())
    answers = served("float32", [request(number, prompt, 32) for number, prompt in enumerate(prompts)])
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.token_ids
        assert far_from_best(oracle, prompt, answer.token_ids) < CLOSE


@pytest.mark.parametrize("size", [1, 2])
def test_the_dequantised_checkpoint_answers_on_so_many_ranks(oracle, plain, size):
    [result] = ranks.run([ranks.Job(str(plain), "answer")], size)
    assert result.all_reduce == size
    for prompt, output in zip(result.prompts, result.outputs, strict=True):
        assert not output or far_from_best(oracle, prompt, output) < CLOSE


def test_perplexity_is_that_of_the_dequantised_weights(oracle, text):
    (answer,) = served("bfloat16", [request(0, text, 1, prompt_logprobs=0)])
    ours = -sum(each.logprob for each in answer.prompt_logprobs) / (len(text) - 1)
    logits = logits_of(oracle, text)[:-1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(text[1:])).item()
    assert len(answer.prompt_logprobs) == len(text) - 1
    assert math.exp(ours) == pytest.approx(math.exp(expected), rel=0.005)


def test_no_quantisation_costs_more_than_its_share(plain, text):
    exact = perplexity(plain, text, None)
    lost = {name: perplexity(plain, text, name) / exact - 1 for name in MOST_LOST}
    assert {name: loss for name, loss in lost.items() if loss > MOST_LOST[name]} == {}
