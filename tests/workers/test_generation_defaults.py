"""`generation_config.json`: what it wants is done as transformers does it, and what is not done is named."""

from __future__ import annotations

import json

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from ipc.messages.sampling import Sampling
from ipc.worker_messages import SamplingParams
from neuron.preparation.sampling import resolve
from workers.checkpoints.generation import GenerationDefaults, read
from workers.sampling.sampler import Sampler

VOCABULARY = 50
EOS = 3


def written(path, **values):
    path = path / "generation_config.json"
    path.write_text(json.dumps(values))
    return read(path, VOCABULARY)


def test_without_a_file_nothing_is_said(tmp_path):
    assert read(tmp_path / "generation_config.json", VOCABULARY) == (GenerationDefaults(), None, [])


def test_what_can_be_followed_is(tmp_path):
    defaults, eos, notes = written(
        tmp_path,
        max_new_tokens=100,
        min_new_tokens=2,
        suppress_tokens=[1, 2],
        begin_suppress_tokens=[4],
        bad_words_ids=[[5], [6, 7]],
        no_repeat_ngram_size=3,
        eos_token_id=EOS,
    )
    assert defaults == GenerationDefaults(
        max_tokens=100,
        min_tokens=2,
        suppress_ids=[1, 2],
        begin_suppress_ids=[4],
        bad_words=[[5], [6, 7]],
        no_repeat_ngram=3,
    )
    assert (eos, notes) == ([EOS], [])


@pytest.mark.parametrize(
    ("values", "defaults", "words"),
    [
        ({"temperature": "0.6"}, GenerationDefaults(temperature=0.6), "temperature '0.6' is a text"),
        ({"temperature": "warm"}, GenerationDefaults(), "temperature 'warm' is left out"),
        ({"temperature": True}, GenerationDefaults(), "temperature True is left out"),
        ({"top_p": 0.0}, GenerationDefaults(top_k=1), "top_p 0"),
        ({"top_p": 1.5}, GenerationDefaults(), "top_p 1.5 is left out: it is no number of 0 to 1"),
        ({"top_k": 2.5}, GenerationDefaults(), "top_k 2.5 is left out"),
        ({"top_k": 1e300}, GenerationDefaults(), "top_k 1e+300 is left out"),
        ({"suppress_tokens": "all"}, GenerationDefaults(), "suppress_tokens 'all' is left out"),
        ({"suppress_tokens": [1, 99]}, GenerationDefaults(suppress_ids=[1]), "the model does not have"),
        ({"bad_words_ids": [1]}, GenerationDefaults(), "bad_words_ids [1] is left out"),
        ({"num_beams": 4}, GenerationDefaults(), "num_beams 4 is not followed"),
        ({"sequence_bias": [[[1], 2.0]]}, GenerationDefaults(), "sequence_bias"),
        ({"eos_token_id": "x"}, GenerationDefaults(), "eos_token_id 'x' is left out"),
    ],
)
def test_a_value_that_cannot_be_meant_is_named_and_no_obstacle(tmp_path, values, defaults, words):
    found, _, notes = written(tmp_path, **values)
    assert found == defaults
    assert len(notes) == 1
    assert notes[0].startswith("generation_config.json: ")
    assert words in notes[0]


def test_neutral_values_are_not_worth_a_word(tmp_path):
    assert (
        written(tmp_path, num_beams=1, typical_p=1.0, guidance_scale=None, renormalize_logits=True)[2] == []
    )


def test_a_request_goes_before_the_model_s_defaults():
    defaults = GenerationDefaults(temperature=0.5, min_tokens=4, suppress_ids=[9], bad_words=[[1, 2]])
    plain = resolve(Sampling(), defaults, [EOS], None)
    assert (plain.temperature, plain.min_tokens, plain.bad_words) == (0.5, 4, [[1, 2], [9]])
    own = resolve(Sampling(temperature=0.0, min_tokens=1), defaults, [EOS], None)
    assert (own.temperature, own.min_tokens) == (0.0, 1)


PROMPT = [5, 6, 7, 8, 5, 6]
SETTINGS: list[tuple[GenerationDefaults, list[LogitsProcessor]]] = [
    (GenerationDefaults(suppress_ids=[1, 2]), [SuppressTokensLogitsProcessor([1, 2])]),
    (GenerationDefaults(begin_suppress_ids=[10]), [SuppressTokensAtBeginLogitsProcessor([10], len(PROMPT))]),
    (GenerationDefaults(no_repeat_ngram=3), [NoRepeatNGramLogitsProcessor(3)]),
    (GenerationDefaults(no_repeat_ngram=1), [NoRepeatNGramLogitsProcessor(1)]),
    (GenerationDefaults(bad_words=[[11], [12, 13]]), [NoBadWordsLogitsProcessor([[11], [12, 13]], EOS)]),
    (GenerationDefaults(min_tokens=6), [MinNewTokensLengthLogitsProcessor(len(PROMPT), 6, EOS)]),
]


@pytest.mark.parametrize(("defaults", "processors"), SETTINGS, ids=range(len(SETTINGS)))
def test_the_same_tokens_are_forbidden_as_in_transformers(defaults, processors):
    params = resolve(Sampling(temperature=0.0), defaults, [EOS], None)
    generator = torch.Generator().manual_seed(1)
    # few tokens are likely, so that what was there wants to come again
    spread = torch.tensor([4.0 if token < 14 else 1.0 for token in range(VOCABULARY)])
    changed = 0
    for _ in range(30):
        sampler = Sampler(VOCABULARY)
        sampler.add(0, params, PROMPT)
        tokens = list(PROMPT)
        for _ in range(12):
            logits = torch.randn(1, VOCABULARY, generator=generator) * spread
            wanted = logits.clone()
            for processor in processors:
                wanted = processor(torch.tensor([tokens]), wanted)
            changed += int(wanted.argmax() != logits.argmax())
            [token] = sampler.sample(logits.clone(), [0]).tokens
            assert token == int(wanted.argmax())
            tokens.append(token)
    assert changed, "nothing was forbidden that would have come"


def test_a_sequence_that_was_preempted_knows_what_it_wrote():
    params = SamplingParams(temperature=0.0, no_repeat_ngram=2)
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 7] = 1.0
    sampler = Sampler(VOCABULARY)
    sampler.add(0, params, [1, 7], [7])
    assert sampler.sample(logits.clone(), [0]).tokens != [7]
