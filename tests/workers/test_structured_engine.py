"""Grammars in a real engine: a model with random weights, at temperature 1, in one batch with others."""

from __future__ import annotations

import shutil
from array import array
from pathlib import Path

import pytest
import torch

from ipc.messages.sampling import Structured
from ipc.worker_messages import Constraint, SamplingParams, Submit
from neuron.grammar.structured import constrain, form, hold
from tests.demo import DEMO
from tests.workers.demo_grammars import END_THINK, STOPS, VOCAB, completion, encode, errors, text_of
from tests.workers.engines import make_runner, request, serve
from tests.workers.schemas import SCHEMAS
from tests.workers.tiny_models import qwen3
from workers.sampling.grammar import Grammars

NAMES = ("person", "any of", "tree", "names by pattern", "uuid", "bounded items")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint with random weights, and the demo model's tokenizer."""
    folder = tmp_path_factory.mktemp("random")
    torch.manual_seed(7)
    qwen3(vocab_size=VOCAB, tie_word_embeddings=True).save_pretrained(folder)
    shutil.copy(DEMO / "tokenizer.json", folder)
    return folder


@pytest.fixture(scope="module")
def constraints() -> list[tuple[str, Constraint]]:
    return [
        (name, constrain(Structured(json=SCHEMAS[name]), encode, thought))
        for name in NAMES
        for thought in ("none", "possible")
    ]


def run(folder: Path, requests: list[Submit], **limits: int) -> list[list[int]]:
    engine = make_runner(folder, kv_pages=limits.get("kv_pages", 200))
    engine.load(lambda fraction, message: None)
    outputs = serve(engine, requests, **limits)
    engine.close()
    return outputs


def ask(constraints: list[tuple[str, Constraint]]) -> list[Submit]:
    """One request under each grammar, and between them one without any."""
    requests = []
    for place, (_, constraint) in enumerate(constraints):
        params = SamplingParams(temperature=1.0, seed=place, stop_ids=list(STOPS), logit_bias={3: -100.0})
        requests.append(Submit(2 * place, array("I", [9, 40, 41]).tobytes(), 60, params, constraint))
        requests.append(request(2 * place + 1, [9, 40 + place], 20))
    return requests


def test_answers_follow_their_grammars_beside_others_that_have_none(folder, constraints):
    outputs = run(folder, ask(constraints))
    grammars = Grammars(folder / "tokenizer.json", VOCAB)
    for (name, constraint), output in zip(constraints, outputs[::2], strict=True):
        text = text_of(output)
        if len(output) == 60:
            text = text_of(output + completion(grammars, constraint, output))
        assert not errors(name, text), (name, text)
    grammars.close()


def test_preempted_answers_are_the_same_as_undisturbed_ones(folder, constraints):
    requests = ask(constraints)
    assert run(folder, requests) == run(folder, requests, kv_pages=9)


def test_answers_that_began_elsewhere_follow_their_grammars_on(folder, constraints):
    requests = ask(constraints)
    whole = run(folder, requests)
    cuts = [number % len(output) for number, output in enumerate(whole)]
    for submit, output, cut in zip(requests, whole, cuts, strict=True):
        submit.output = array("I", output[:cut]).tobytes()
    assert run(folder, requests) == [output[cut:] for output, cut in zip(whole, cuts, strict=True)]


def test_thoughts_end_at_their_budgets_in_any_company(folder):
    requests = []
    for budget in range(12):
        params = SamplingParams(temperature=1.0, seed=budget, stop_ids=list(STOPS))
        grammar = "" if budget % 2 else form(Structured(choice=["yes"]))
        held = hold(grammar, encode, "open", budget=budget)
        requests.append(Submit(budget, array("I", [9, 40, 41]).tobytes(), 40, params, held))
    together = run(folder, requests)
    for budget, output in enumerate(together):
        ended = output.index(END_THINK) if END_THINK in output else len(output)
        assert ended <= budget
        if budget % 2 == 0:
            assert text_of(output[ended + 1 :]).strip() == "yes"
    assert run(folder, requests, kv_pages=9) == together
    for request_alone, output in zip(requests[:3], together, strict=False):
        assert run(folder, [request_alone]) == [output]
