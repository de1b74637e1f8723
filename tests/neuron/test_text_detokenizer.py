from functools import cache
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from neuron.text.detokenizer import Detokenizer
from neuron.text.tags import TOKEN
from neuron.text.vocabulary import PackedVocabulary, Vocabulary
from tests.neuron.folders import byte_fallback, byte_level, metaspace

BYTE_LEVEL, METASPACE, BYTE_FALLBACK = byte_level(), metaspace(), byte_fallback()
ALL = [BYTE_LEVEL, METASPACE, BYTE_FALLBACK]
PADDING = 4  # ids that the model has and the tokenizer does not
TEXT = st.text() | st.text("aé你😀👩‍🇩 \n")


@cache
def vocabulary(tokenizer, shown=()):
    return Vocabulary(PackedVocabulary.of(tokenizer, tokenizer.get_vocab_size() + PADDING, shown))


def all_shown(tokenizer):
    """Its vocabulary, where special tokens are text, too."""
    return vocabulary(tokenizer, tuple(t.content for t in tokenizer.get_added_tokens_decoder().values()))


def stream(tokenizer, chunks, after=()):
    detokenizer = Detokenizer(vocabulary(tokenizer), after)
    return [detokenizer.push(chunk) for chunk in chunks] + [detokenizer.finish()]


def chunked(draw, ids):
    marks = sorted(draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    return [ids[a:b] for a, b in zip([0, *marks], [*marks, len(ids)], strict=True)]


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, METASPACE], ids=["byte_level", "metaspace"])
@given(data=st.data())
def test_the_pieces_of_any_ids_are_the_whole(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() + PADDING - 1), max_size=40))
    pieces = stream(tokenizer, chunked(data.draw, ids))
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("tokenizer", ALL, ids=["byte_level", "metaspace", "byte_fallback"])
@given(text=TEXT)
def test_the_pieces_of_any_text_are_the_whole_token_by_token(tokenizer, text):
    ids = tokenizer.encode(text).ids
    assert "".join(stream(tokenizer, [[token] for token in ids])) == tokenizer.decode(ids)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["byte_level", "byte_fallback"])
@given(text=TEXT.filter(lambda text: "\ufffd" not in text))
def test_no_piece_ever_holds_a_part_of_a_character(tokenizer, text):
    pieces = stream(tokenizer, [[token] for token in tokenizer.encode(text).ids])
    assert not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.integers(0, BYTE_FALLBACK.get_vocab_size() - 1), max_size=40))
def test_bytes_that_are_no_characters_break_nothing(ids):
    pieces = stream(BYTE_FALLBACK, [[token] for token in ids])
    assert all(isinstance(piece, str) for piece in pieces)


def test_a_character_of_several_tokens_comes_once_and_whole():
    ids = BYTE_FALLBACK.encode("h😀").ids
    assert stream(BYTE_FALLBACK, [[token] for token in ids]) == ["h", "", "", "", "😀", ""]


@pytest.mark.parametrize("decoder", [decoders.Metaspace(), decoders.ByteLevel(), decoders.WordPiece(), None])
def test_a_token_that_is_written_as_nothing_is_one_for_the_decoder_all_the_same(decoder):
    tokenizer = Tokenizer(models.WordLevel({"": 0, "\u2581a": 1, "b": 2, "##c": 3}, unk_token=""))
    if decoder is not None:
        tokenizer.decoder = decoder
    size = tokenizer.get_vocab_size() + PADDING
    for ids in product(range(size), repeat=3):
        whole = tokenizer.decode(ids, skip_special_tokens=False)
        assert vocabulary(tokenizer).decode(ids) == whole
        assert "".join(stream(tokenizer, [[token] for token in ids])) == whole
    assert vocabulary(tokenizer).spell(0) == b""


def test_special_tokens_are_no_text():
    (end,) = BYTE_LEVEL.encode("<|end|>").ids
    ids = [end, *BYTE_LEVEL.encode("dog").ids, end]
    assert "".join(stream(BYTE_LEVEL, [[token] for token in ids])) == "dog"


def test_an_answer_that_continues_a_text_keeps_its_leading_space():
    prompt, answer = METASPACE.encode("The quick").ids, METASPACE.encode("dog").ids
    tokens = [[token] for token in answer]
    assert "".join(stream(METASPACE, tokens)) == "dog"
    assert "".join(stream(METASPACE, tokens, after=prompt)) == " dog"


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["byte_level", "byte_fallback"])
def test_a_prompt_may_end_in_the_middle_of_a_character(tokenizer):
    ids = tokenizer.encode("Жh").ids  # in no merge of these tokenizers, so that it takes a token a byte
    assert "".join(stream(tokenizer, [[token] for token in ids[-2:]], after=ids[:-2])) == "Жh"


def test_what_stays_broken_is_handed_out_before_it_costs_much():
    broken = BYTE_LEVEL.token_to_id(token_of_a_lone_byte())
    detokenizer = Detokenizer(all_shown(BYTE_LEVEL))
    pieces = [detokenizer.push([broken]) for _ in range(1000)]
    assert max(map(len, pieces)) < 100
    assert "".join(pieces) + detokenizer.finish() == "\ufffd" * 1000


def token_of_a_lone_byte():
    """A token that is a byte which is no character."""
    return next(
        token
        for token in BYTE_LEVEL.get_vocab()
        if len(token) == 1 and BYTE_LEVEL.decode([BYTE_LEVEL.token_to_id(token)]) == "\ufffd"
    )


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, METASPACE], ids=["byte_level", "metaspace"])
@given(data=st.data())
def test_tags_are_told_from_text_and_change_nothing_else(tokenizer, data):
    size = tokenizer.get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size - 1), max_size=40))
    tags = {token: tokenizer.decode([token], skip_special_tokens=False) for token in (size - 1, size - 2)}
    detokenizer = Detokenizer(all_shown(tokenizer), (), tags)
    text = "".join([detokenizer.push(chunk) for chunk in chunked(data.draw, ids)] + [detokenizer.finish()])
    assert text.count(TOKEN) == sum(token in tags for token in ids)
    at = 0
    for token in ids:
        if token in tags:
            at = text.index(TOKEN, at) + 1
            assert text.startswith(tags[token], at)


def test_what_a_tag_cuts_ends_there():
    (tag,) = BYTE_FALLBACK.encode("h").ids[-1:]
    begun = BYTE_FALLBACK.encode("😀").ids[:-1]
    detokenizer = Detokenizer(all_shown(BYTE_FALLBACK), (), {tag: "<tag>"})
    assert detokenizer.push(begun) == ""
    assert detokenizer.push([tag]).endswith(f"{TOKEN}<tag>")
