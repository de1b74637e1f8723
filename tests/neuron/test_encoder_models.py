"""A neuron with an embedder and a reranker: each does what it was made for, and says no to the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ipc.errors import Code, CortexError
from ipc.messages.conversation import Message
from ipc.messages.requests import Embed, Generate, ListModels, Rerank
from neuron.inspection import inspect
from tests.neuron.harness import PATIENCE, Neuron
from tests.neuron.word_tokenizer import CLS, SEP, WORDS, write_tokenizer
from tests.workers import encoders

TEXTS = ["w1 w2 w3", "w4", "w1 w2 w3", "w9 " * 30]
POOLING = ("Pooling", "1_Pooling", {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture(scope="module")
def served(folder):
    """(a client of the neuron, the oracles)."""
    torch.set_num_threads(1)
    oracles = {}
    for name, modules in (("bert", [POOLING, ("Normalize", "2_Normalize", None)]), ("bert_classifier", ())):
        (folder / name).mkdir()
        oracles[name] = encoders.write(name, folder / name, modules)
        write_tokenizer(folder / name)
    entries = [{"id": name, "path": str(folder / name), "max_sequences": 4} for name in oracles]
    with Neuron(folder / "neuron", entries) as neuron, neuron.client() as client:
        yield client, oracles


def ask(client, request):
    return client.ask(request, PATIENCE)


def ids_of(text: str) -> list[int]:
    return [CLS, *(WORDS[word] for word in text.split()), SEP]


def test_an_embedder_answers_with_the_vectors_of_transformers(served):
    client, oracles = served
    reply = ask(client, Embed(id=0, model="bert", input=[*TEXTS, ids_of("w7")]))
    assert reply.prompt_tokens == 5 + 3 + 5 + 32 + 3
    for text, vector in zip([*TEXTS, "w7"], reply.vectors, strict=True):
        expected = encoders.hidden(oracles["bert"], ids_of(text)).mean(0)
        expected = torch.nn.functional.normalize(expected, dim=0).numpy()
        np.testing.assert_allclose(np.frombuffer(vector, "<f4"), expected, atol=1e-4)
    raw = ask(client, Embed(id=0, model="bert", input=["w4"], normalize=False))
    expected = encoders.hidden(oracles["bert"], ids_of("w4")).mean(0).numpy()
    np.testing.assert_allclose(np.frombuffer(raw.vectors[0], "<f4"), expected, atol=1e-3)


def test_a_reranker_answers_with_the_scores_of_transformers(served):
    client, oracles = served
    reply = ask(client, Rerank(id=0, model="bert_classifier", query="w1 w2", input=TEXTS))
    query = ids_of("w1 w2")
    pairs = [[*query, *ids_of(text)[1:]] for text in TEXTS]
    logits = torch.cat([encoders.score(oracles["bert_classifier"], ids, len(query)) for ids in pairs])
    np.testing.assert_allclose(reply.scores, logits.sigmoid().numpy(), atol=1e-4)
    assert reply.prompt_tokens == sum(map(len, pairs))


def test_what_a_model_was_not_made_for_it_refuses(served):
    client, _ = served
    chat = [Message(role="user", content="w1")]
    for request in (
        Generate(id=0, model="bert", messages=chat),
        Generate(id=0, model="bert_classifier", prompt="w1"),
        Embed(id=0, model="bert_classifier", input=["w1"]),
        Rerank(id=0, model="bert", query="w1", input=["w2"]),
    ):
        with pytest.raises(CortexError) as refused:
            ask(client, request)
        assert (refused.value.code, refused.value.param) == (Code.NOT_SUPPORTED, "model")


def test_the_list_of_models_says_what_each_can_do(served):
    client, _ = served
    can = {
        model.id: (model.completion, model.chat, model.embedding, model.rerank)
        for model in ask(client, ListModels(id=0)).models
    }
    assert can["bert"] == (False, False, True, False)
    assert can["bert_classifier"] == (False, False, False, True)
    assert can.get("demo", (True, True, True, False)) == (True, True, True, False)


def test_a_check_says_what_each_was_made_for(served, folder):
    assert inspect(folder / "bert", []).facts["does"] == "turns texts into vectors (mean)"
    assert inspect(folder / "bert_classifier", []).facts["does"] == "scores documents for a query"
