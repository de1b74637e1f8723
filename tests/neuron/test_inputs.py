"""Texts and pairs of them become the tokens that an encoder was trained with, and are cut only by wish."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ipc.errors import Code, CortexError
from ipc.messages.requests import Embed, Rerank
from neuron.description import ModelDescription
from neuron.preparation.inputs import Input, check_embed, encode_inputs, encode_pairs
from neuron.text.formats.hermes import HERMES
from neuron.text.frontend import TextFrontEnd
from neuron.text.tokenizer import TextTokenizer
from tests.neuron.doubles import described
from workers.checkpoints.vectors.modules import Embedder
from workers.checkpoints.vectors.rerankers import Question, Reranker

WORDS = ["[UNK]", "[CLS]", "[SEP]", *"abcdefgh", "query", ":"]
CLS, SEP, A, B, C, D = 1, 2, 3, 4, 5, 6
MOST = 8


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> TextFrontEnd:
    """A tokenizer of words, as BERT's are."""
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    tokenizer.save(str(path))
    return TextFrontEnd(TextTokenizer(path, len(WORDS), ()), {}, HERMES)


def model(embedder: Embedder | None = None, reranker: Reranker | None = None) -> ModelDescription:
    kind = {"completion": False, "embedding": reranker is None, "vector_size": 48, "whole": True}
    return described(**kind, embedder=embedder, reranker=reranker)


def embedder(**changes) -> ModelDescription:
    return model(Embedder(**{"pooling": "mean", "size": 48} | changes))


def ids(text, inputs, described=None, **fields) -> list[list[int]]:
    request = Embed(id=1, model="m", input=inputs, **fields)
    check_embed(request, described or embedder())
    return [each.ids for each in encode_inputs(request, text, described or embedder(), MOST)]


def refusal(function, *args, **fields) -> CortexError:
    with pytest.raises(CortexError) as refused:
        function(*args, **fields)
    return refused.value


def test_an_input_of_as_many_tokens_as_the_model_takes_is_whole_and_a_longer_one_is_refused(text):
    assert ids(text, ["a b c d e f"]) == [[CLS, 3, 4, 5, 6, 7, 8, SEP]]
    error = refusal(ids, text, ["a", "a b c d e f g"])
    assert (error.code, error.param) == (Code.CONTEXT_LENGTH_EXCEEDED, "input[1]")
    assert refusal(ids, text, [[A] * 9]).param == "input[0]"


@pytest.mark.parametrize(("cut_to", "kept"), [(0, 6), (5, 3), (100, 6)])
def test_what_is_cut_loses_the_end_of_its_text_and_nothing_around_it(text, cut_to, kept):
    [found] = ids(text, ["a b c d e f g h"], cut_to=cut_to)
    assert found == [CLS, *range(A, A + kept), SEP]
    assert ids(text, [[A] * 20], cut_to=cut_to) == [[A] * min(cut_to or MOST, MOST)]


def test_a_long_text_of_spaces_is_not_refused_for_its_length(text):
    assert ids(text, [" " * 100_000 + "a"]) == [[CLS, A, SEP]]
    [found] = ids(text, [" " * 100_000 + "a " * 100_000], cut_to=0)
    assert found == [CLS, *[A] * 6, SEP]


def test_prompts_are_put_before_texts_and_never_before_token_ids(text):
    described = embedder(prompts={"query": "query: ", "none": ""}, default_prompt="query")
    assert ids(text, ["a", [B]], described) == [[CLS, 11, 12, A, SEP], [B]]
    assert ids(text, ["a"], described, prompt_name="none") == [[CLS, A, SEP]]
    error = refusal(ids, text, ["a"], described, prompt_name="passage")
    assert (error.param, "query, none" in error.message) == ("prompt_name", True)
    assert refusal(ids, text, [[A]], described, prompt_name="query").param == "prompt_name"


@pytest.mark.parametrize(
    ("cuts", "dimensions", "refused"),
    [
        (None, 48, ""),
        (None, 24, "do not say"),
        ((), 24, ""),
        ((12, 24), 24, ""),
        ((12, 24), 13, "12, 24"),
        ((), 49, "have 48"),
    ],
)
def test_vectors_are_cut_where_the_model_says_that_they_may_be(text, cuts, dimensions, refused):
    described = embedder(cuts=cuts)
    if not refused:
        assert ids(text, ["a"], described, dimensions=dimensions)
        return
    error = refusal(ids, text, ["a"], described, dimensions=dimensions)
    assert (error.param, refused in error.message) == ("dimensions", True)


def test_another_pooling_than_the_model_s_is_refused(text):
    assert refusal(ids, text, ["a"], pooling="last").param == "pooling"
    assert ids(text, ["a"], pooling="mean")


def pairs(text, documents, described=None, **fields) -> list[Input]:
    request = Rerank(id=1, model="m", input=documents, **{"query": "a b"} | fields)
    return encode_pairs(request, text, described or model(reranker=Reranker()), MOST)


def test_a_pair_is_put_together_by_the_tokenizer_and_the_second_text_is_told_apart(text):
    assert pairs(text, ["c d", ""]) == [
        Input([CLS, A, B, SEP, C, D, SEP], 4),
        Input([CLS, A, B, SEP, SEP], 4),
    ]


def test_of_a_pair_only_the_document_is_cut(text):
    error = refusal(pairs, text, ["c", "c d e f"])
    assert (error.code, error.param) == (Code.CONTEXT_LENGTH_EXCEEDED, "input[1]")
    assert pairs(text, ["c d e f"], cut_to=0) == [Input([CLS, A, B, SEP, 5, 6, 7, SEP], 4)]
    assert pairs(text, ["c d e f", "c"], document_tokens=1) == [Input([CLS, A, B, SEP, C, SEP], 4)] * 2
    assert refusal(pairs, text, ["c"], query="a b c d e f", cut_to=0).param == "input[0]"
    assert refusal(pairs, text, ["c"], query="a" * 1000).param == "query"
    assert refusal(pairs, text, [[C]]).param == "input[0]"


def test_a_causal_model_is_asked_in_its_own_words_and_only_the_document_is_cut(text):
    question = Question(before="a b", behind="h", instruction="c", yes=A, no=B)
    described = model(reranker=Reranker(question=question))
    request = Rerank(id=1, model="m", input=["d e f g"], query="b")

    def asked(**changes) -> list[int]:
        fields = {"model": "m", "input": request.input, "query": "b"} | changes
        [found] = encode_pairs(Rerank(id=1, **fields), text, described, 40)
        return found.ids

    whole = asked()
    assert whole[:2] == [A, B]
    assert whole[-5:] == [6, 7, 8, 9, 10]
    assert asked(document_tokens=2) == [*whole[:-3], 10]
    assert asked(cut_to=len(whole) - 1) == [*whole[:-2], 10]
    assert asked(instruction="d").index(6) < whole.index(6)
    for few in (1, 2, 3, len(whole) - 4):  # less than the words around the document take
        assert refusal(asked, cut_to=few, input=["d e f g h a b c"]).param == "input[0]"
    assert refusal(pairs, text, ["c"], instruction="d").param == "instruction"


def test_a_model_that_does_not_rank_says_where_to_look(text):
    error = refusal(pairs, text, ["c"], embedder())
    assert (error.code, error.param) == (Code.NOT_SUPPORTED, "model")
    assert refusal(ids, text, ["c"], model(reranker=Reranker())).code == Code.NOT_SUPPORTED
