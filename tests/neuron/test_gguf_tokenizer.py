"""Tokenizers from GGUF files: those of Hugging Face that they came from, and llama.cpp's rules."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from ipc.errors import CortexError
from ipc.messages.conversation import Message
from neuron.text.frontend import TextFrontEnd
from neuron.text.outline import added_tokens
from neuron.text.tokenizer import TextTokenizer
from neuron.text.vocabulary import PackedVocabulary
from tests.neuron.folders import byte_level
from tests.workers import checkpoints, gguf_files
from workers.checkpoints.gguf import merges
from workers.checkpoints.gguf.header import read_header
from workers.checkpoints.gguf.merges import every_merge
from workers.checkpoints.gguf.pretokenizers import BY_NAME
from workers.checkpoints.gguf.tokenizer import tokenizer_json
from workers.checkpoints.reading import read_card

NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
SPACE = "\u2581"
TEXTS = st.text(
    st.sampled_from("abc \n\u2581\u00e9\u4e00'1<s>") | st.characters(exclude_categories=["Cs"]), max_size=40
)


def write(path: Path, kind: str, tokens: list[str], **more: Any) -> Path:
    """A file with a tokenizer and nothing else."""
    keys = {"model": kind, "tokens": tokens} | more
    return gguf_files.file(path, {f"tokenizer.ggml.{key}": value for key, value in keys.items()}, [])


def read(path: Path) -> TextTokenizer:
    return TextTokenizer(path, vocabulary_size=10_000, shown=())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


# --- sentencepiece ------------------------------------------------------------------------------------------

PIECES = [
    "a",
    "b",
    "c",
    SPACE,
    "ab",
    "abc",
    "bc",
    f"{SPACE}a",
    f"{SPACE}ab",
    "\u00e9",
    SPACE * 2,
    SPACE * 3,
    SPACE * 4,
]
SPM = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES, "<s>x"]
SPM_TYPES = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(PIECES), USER]
SPM_SCORES = [0.0] * 259 + [
    -5.0,
    -6.0,
    -7.0,
    -8.0,
    -3.0,
    -1.0,
    -2.0,
    -4.0,
    -2.5,
    -9.0,
    -10.0,
    -10.0,
    -10.0,
    -11.0,
]


def merged(text: str, scores: dict[str, float]) -> list[str]:
    """Sentencepiece's BPE as it is defined: of all pairs that make a piece, the best first; then the left."""
    parts: list[str | None] = list(text)
    while True:
        alive = [place for place, part in enumerate(parts) if part is not None]
        pairs = [
            (-scores[whole], left, right)
            for left, right in pairwise(alive)
            if (whole := parts[left] + parts[right]) in scores
        ]
        if not pairs:
            return [part for part in parts if part is not None]
        _, left, right = heapq.nsmallest(1, pairs)[0]
        parts[left], parts[right] = parts[left] + parts[right], None


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "plain"])
def spm(folder, request) -> tuple[TextTokenizer, bool]:
    path = folder / f"spm{request.param}.gguf"
    more = {"scores": SPM_SCORES, "token_type": SPM_TYPES, "add_space_prefix": request.param}
    return read(write(path, "llama", SPM, **more)), request.param


@given(text=st.text(st.sampled_from("aabbcc  \u00e9\u4e00\u2581"), max_size=30))
def test_sentencepiece_merges_what_scores_best(spm, text):
    tokenizer, prefix = spm
    ids = {piece: number for number, piece in enumerate(SPM)}
    scores = {piece: SPM_SCORES[ids[piece]] for piece in PIECES}
    given = (SPACE if prefix and text else "") + text.replace(" ", SPACE)
    expected = []
    for part in merged(given, scores):
        expected += [ids[part]] if part in ids else [3 + byte for byte in part.encode()]
    assert tokenizer.encode(text, special=False) == expected
    assert tokenizer.encode(text, special=True) == [1, *expected]


@given(text=TEXTS.filter(lambda text: "<" not in text and SPACE not in text))
def test_sentencepiece_tokens_make_the_text_again(spm, text):
    tokenizer, _ = spm
    assert tokenizer.decode(tokenizer.encode(text, special=False)) == text


@given(texts=st.sets(st.text("ab\u4e00\U0001f600", min_size=1, max_size=6), min_size=1), data=st.data())
def test_every_pair_of_tokens_that_makes_one_is_a_merge_in_its_order(texts, data):
    tokens = sorted(texts)
    scores = data.draw(
        st.lists(st.sampled_from([-1.0, -2.0, -3.5]), min_size=len(tokens), max_size=len(tokens))
    )
    made = [number for number, token in enumerate(tokens) if len(token) > 1]
    expected = []
    for number in sorted(made, key=lambda number: (-scores[number], -len(tokens[number]))):
        whole = tokens[number]
        cuts = [(whole[:cut], whole[cut:]) for cut in range(1, len(whole))]
        expected += [cut for cut in cuts if texts.issuperset(cut)]
    assert every_merge(tokens, scores, made) == expected


def thue_morse(length: int) -> tuple[str, str]:
    """Two texts that no such sum modulo a power of two tells apart, whatever its letters and its factor."""
    bits = [number.bit_count() & 1 for number in range(length)]
    return "".join("ab"[bit] for bit in bits), "".join("ba"[bit] for bit in bits)


def test_tokens_made_to_share_a_hash_merge_as_all_others_do(folder):
    one, other = thue_morse(2048)
    sums, back = merges._sums(np.frombuffer((one + other).encode("utf-32-le"), np.uint32))
    assert sums[2048] == ((sums[4096:] - sums[2048]) * back[2048])[0], "they do not share it"
    for tokens, expected in (
        (["c", "a", one, other, other + "c"], [(other, "c")]),  # two tokens
        (["c", one, other + "c", one + "c"], [(one, "c")]),  # a part, and a token that it is not
    ):
        scores = [0.0] * len(tokens)
        made = [number for number, token in enumerate(tokens) if len(token) > 1]
        assert every_merge(tokens, scores, made) == expected
        path = write(folder / "same.gguf", "llama", ["<unk>", *tokens], scores=[0.0, *scores])
        assert added_tokens(path, 10) == {}
        assert len(read(path).encode(expected[0][0] + "c", special=False)) > 0


def test_tokens_that_take_too_long_to_be_cut_are_refused_by_the_check_and_the_load(folder):
    tokens = ["<unk>", *(str(number) + "a" * 4000 for number in range(20))]
    path = write(folder / "long.gguf", "llama", tokens, scores=[0.0] * len(tokens))
    for look in (read, lambda path: added_tokens(path, 100)):
        with pytest.raises(CortexError, match=r"21 tokens of up to 4,002 characters"):
            look(path)


def test_tokens_are_known_by_their_hashes_however_many_meet_in_a_table():
    drawn = np.random.default_rng(1).integers(0, 1 << 64, 300_000, dtype=np.uint64)
    drawn[1000:2000] &= np.uint64((1 << 40) - 1)  # all in one place of the first table
    hashes, others = drawn[:200_000], drawn[200_000:]
    known = merges._Known(hashes)
    assert (known.find(hashes[::-1]) == np.arange(len(hashes))[::-1]).all()
    assert (known.find(others) == -1).all()
    hashes[7] = hashes[150_000]
    with pytest.raises(merges.SameHashError):
        merges._Known(hashes)


def test_a_tokenizer_of_parts_is_the_one_that_its_json_would_be(spm, bpe):
    for tokenizer in (spm[0], bpe[0]):
        theirs = Tokenizer.from_buffer(tokenizer_json(read_header(tokenizer._path)))
        theirs.no_padding()
        theirs.no_truncation()
        assert json.loads(tokenizer.tokenizer.to_str()) == json.loads(theirs.to_str())
        assert tokenizer.vocabulary.packed == PackedVocabulary.of(theirs, 10_000)


def test_marks_are_tokens_wherever_they_stand_and_control_tokens_are_hidden(spm):
    tokenizer, prefix = spm
    space = [262] if prefix else []
    assert tokenizer.encode("a</s><s>xb", special=False)[-3:] == [2, len(SPM) - 1, *space, 260][-3:]
    assert [tokenizer.vocabulary.hides(each) for each in (1, 2, len(SPM) - 1)] == [True, True, False]


def test_what_stands_around_a_text_is_as_the_file_says(folder):
    more = {"scores": SPM_SCORES, "token_type": SPM_TYPES, "add_space_prefix": False}
    for number, (settings_, ids) in enumerate(
        [
            ({}, [1, 259]),
            ({"add_bos_token": False}, [259]),
            ({"add_eos_token": True}, [1, 259, 2]),
            ({"bos_token_id": 2, "eos_token_id": 1, "add_eos_token": True}, [2, 259, 1]),
        ]
    ):
        path = write(folder / f"around{number}.gguf", "llama", SPM, **more, **settings_)
        assert read(path).encode("a", special=True) == ids


# --- byte-level BPE -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bpe(folder) -> tuple[TextTokenizer, Tokenizer]:
    """A tokenizer from a file, and the one of Hugging Face that is in it."""
    original = byte_level()
    state = json.loads(original.to_str())
    vocab = state["model"]["vocab"] | {each["content"]: each["id"] for each in state["added_tokens"]}
    tokens = sorted(vocab, key=vocab.__getitem__)
    marks = {each["content"]: CONTROL if each["special"] else USER for each in state["added_tokens"]}
    path = write(
        folder / "bpe.gguf",
        "gpt2",
        tokens,
        pre="gpt-2",
        merges=[" ".join(merge) for merge in state["model"]["merges"]],
        token_type=[marks.get(token, NORMAL) for token in tokens],
        bos_token_id=1,
    )
    return read(path), original


@given(text=TEXTS)
@settings(max_examples=200)
def test_byte_level_tokens_are_those_of_the_original(bpe, text):
    tokenizer, original = bpe
    ids = tokenizer.encode(text, special=False)
    assert ids == original.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == original.decode(ids, skip_special_tokens=False)


def test_tokens_are_spelled_and_hidden_as_in_the_original(bpe):
    tokenizer, original = bpe
    path = tokenizer._path.with_name("tokenizer.json")
    original.save(str(path))
    theirs = TextTokenizer(path, vocabulary_size=10_000, shown=())
    ours, theirs = tokenizer.vocabulary, theirs.vocabulary
    assert (ours.packed.text, ours.packed.kinds) == (theirs.packed.text, theirs.packed.kinds)
    assert [ours.spell(number) for number in range(450)] == [theirs.spell(number) for number in range(450)]


CUTS = {
    "default": ["a", " ", "123", "45", ",", " B", "'", "s", "\n\n", " c"],
    "gpt-2": ["a", " 12345", ",", " B", "'s", "\n\n", " c"],
    "starcoder": ["a", " ", "1", "2", "3", "4", "5", ",", " B", "'s", "\n\n", " c"],
    "qwen2": ["a", " ", "1", "2", "3", "4", "5", ",", " B", "'s", "\n\n", " c"],
    "llama-bpe": ["a", " ", "123", "45", ",", " B", "'s", "\n\n", " c"],
    "tekken": ["a", " ", "1", "2", "3", "4", "5", ",", " B", "'s", "\n\n", " c"],
    "gpt-4o": ["a", " ", "123", "45", ",", " B's", "\n\n", " c"],
    "deepseek-v3": ["a", " ", "123", "45", ",", " B", "'s", "\n\n", " c"],
    "deepseek-llm": ["a", " ", "12345", ",", " B", "'", "s", "\n", "\n", " c"],
    "deepseek-coder": ["a", " ", "1", "2", "3", "4", "5", ",", " B", "'", "s", "\n", "\n", " c"],
    "kimi-k2": ["a", " ", "123", "45", ",", " B's", "\n\n", " c"],
    "spark2_5": ["a", " ", "1", "2", "3", "4", "5", ",", " B", "'s", "\n", "\n", " c"],
    "ufakzeka": ["a", " ", "1", "2", "3", "4", "5", ",", " B", "'s", "\n\n", " c"],
    "tiny_aya": ["a", " ", "12", "345", ",", " B's", "\n\n", " c"],
    "afmoe": ["a", " ", "12", "345", ",", " B", "'s", "\n\n", " c"],
    "falcon": ["a", " ", "123", "45", ",", " B", "'", "s", "\n\n", " c"],
}


@pytest.mark.parametrize("name", BY_NAME)
def test_texts_are_cut_into_words_by_rules_that_take_no_time(folder, name):
    tokens = [*pre_tokenizers.ByteLevel.alphabet()]
    path = write(folder / f"{name}.gguf", "gpt2", tokens, pre=name, merges=["a b"])
    tokenizer = read(path)
    assert tokenizer.is_linear
    pieces = tokenizer.tokenizer.pre_tokenizer.pre_tokenize_str("a 12345, B's\n\n c")
    text = "a 12345, B's\n\n c"
    assert "".join(text[start:end] for _, (start, end) in pieces) == text
    if name in CUTS:
        assert [text[start:end] for _, (start, end) in pieces] == CUTS[name]


NUMBERS = "1 12  123 x1234_ 12345a 1234567"


@pytest.mark.parametrize(
    ("name", "mine", "original", "text"),
    [
        ("afmoe", slice(0, 3), r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", NUMBERS),
        ("tiny_aya", slice(0, 2), r"\d{1,3}(?=(?:\d{3})*\b)", NUMBERS),
        ("deepseek-llm", slice(3, 4), r"\s+$", "a   b \t \n   c ,   \n  "),
    ],
)
def test_a_rule_that_is_written_to_take_less_time_cuts_as_the_original(name, mine, original, text):
    """Which looks for an end from each character of a run, and these once."""
    theirs = list(BY_NAME[name].regexes)
    theirs[mine] = [original]
    cuts = []
    for regexes in (BY_NAME[name].regexes, theirs):
        cutting = [pre_tokenizers.Split(Regex(each), "isolated") for each in regexes]
        pieces = pre_tokenizers.Sequence(cutting).pre_tokenize_str(text)
        cuts.append([text[start:end] for _, (start, end) in pieces])
    assert cuts[0] == cuts[1]
    assert len(cuts[0]) > 7


def test_a_word_that_is_a_token_is_that_token_where_its_model_has_it_so(folder):
    tokens = ["a", "b", "c", "abc", "ab"]
    for pre, ids in (("llama-bpe", [3]), ("gpt-2", [4, 2])):
        path = write(
            folder / f"whole{pre}.gguf", "gpt2", tokens, pre=pre, merges=["a b"], add_bos_token=False
        )
        assert read(path).encode("abc", special=False) == ids


# --- the others ---------------------------------------------------------------------------------------------


@given(text=TEXTS)
@example(text="a[SEP] b[MASK]")
def test_wordpiece_is_that_of_bert(folder, text):
    plain = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "##a", "##bc", "c", "\u4e00", "'", "e", "1"]
    path = folder / "bert.gguf"
    if not path.exists():
        marked = [
            token if token[0] == "[" else token[2:] if token[:2] == "##" else SPACE + token for token in plain
        ]
        types = [CONTROL if token[0] == "[" else NORMAL for token in plain]
        ids = {"unknown_token_id": 1, "cls_token_id": 2, "seperator_token_id": 3, "padding_token_id": 0}
        write(path, "bert", marked, token_type=types, **ids)
    original = Tokenizer(models.WordPiece({token: n for n, token in enumerate(plain)}, unk_token="[UNK]"))
    original.normalizer = normalizers.BertNormalizer()
    original.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    original.add_special_tokens([token for token in plain if token[0] == "["])
    ids = original.encode(text).ids
    assert read(path).encode(text, special=True) == [2, *ids, 3]


@given(text=TEXTS)
@example(text="a</s> b<pad>")
def test_unigram_is_that_of_sentencepiece(folder, text):
    vocab = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        (SPACE, -2.0),
        ("a", -3.0),
        ("b", -3.1),
        ("ab", -4.0),
    ]
    vocab += [(f"{SPACE}a", -3.5), ("bc", -5.0), ("c", -6.0)]
    path = folder / "unigram.gguf"
    if not path.exists():
        tokens, scores = map(list, zip(*vocab, strict=True))
        types = [CONTROL, CONTROL, UNKNOWN] + [NORMAL] * 7
        write(path, "t5", tokens, scores=scores, token_type=types, unknown_token_id=2)
    original = Tokenizer(models.Unigram(vocab, unk_id=2))
    original.pre_tokenizer = pre_tokenizers.Metaspace()
    original.add_special_tokens(["<pad>", "</s>"])
    assert read(path).encode(text, special=True) == [*original.encode(text).ids, 1]


def test_a_pair_of_texts_is_put_together_as_its_encoder_was_trained(folder):
    ids = {"unknown_token_id": 1, "cls_token_id": 2, "seperator_token_id": 3}
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", f"{SPACE}a", f"{SPACE}b"]
    path = write(folder / "pair.gguf", "bert", tokens, token_type=[CONTROL] * 4 + [NORMAL] * 2, **ids)
    found = read(path).encoding(("a", "b"), special=True)
    assert (found.ids, found.type_ids) == ([2, 4, 3, 5, 3], [0, 0, 0, 1, 1])
    tokens = ["<s>", "<pad>", "</s>", "<unk>", f"{SPACE}a", f"{SPACE}b"]  # of XLM-R
    more = {"token_type": [CONTROL] * 3 + [UNKNOWN] + [NORMAL] * 2, "scores": [0.0] * 6, "bos_token_id": 0}
    more |= {"eos_token_id": 2, "unknown_token_id": 3, "add_bos_token": True, "add_eos_token": True}
    found = read(write(folder / "xlmr.gguf", "t5", tokens, **more)).encoding(("a", "b"), special=True)
    assert (found.ids, found.type_ids) == ([0, 4, 2, 2, 5, 2], [0] * 6)


def test_a_pair_for_a_modernbert_has_one_end_between_its_texts(folder):
    tokens = ["[CLS]", "[SEP]", "a", "b"]
    more = {"pre": "modern-bert", "merges": ["a b"], "token_type": [CONTROL] * 2 + [NORMAL] * 2}
    more |= {"bos_token_id": 0, "eos_token_id": 1, "add_bos_token": True, "add_eos_token": True}
    keys = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens}
    keys |= {f"tokenizer.ggml.{key}": value for key, value in more.items()}
    path = gguf_files.file(folder / "modern.gguf", {"general.architecture": "modern-bert"} | keys, [])
    assert read(path).encoding(("a", "b"), special=True).ids == [0, 2, 1, 3, 1]


def test_of_superfluous_spaces_only_spaces_are_left_out(folder):
    tokens = ["<pad>", "</s>", "<unk>", SPACE, "a", "b", "\x85"]
    more = {"scores": [0.0] * 3 + [-1.0] * 4, "token_type": [CONTROL, CONTROL, UNKNOWN] + [NORMAL] * 4}
    path = write(folder / "spaces.gguf", "t5", tokens, **more, remove_extra_whitespaces=True)
    assert read(path).encode("  a  b \x85 ", special=False) == [3, 4, 3, 5, 3, 6]


# --- and what is wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"tokens": ["a", "b", "a"]}, "has the token 'a' twice"),
        ({"scores": [0.0]}, "has 3 tokens, and the scores of 1"),
        ({"token_type": [1]}, "has 3 tokens, and the types of 1"),
    ],
)
def test_a_vocabulary_that_is_not_whole_is_refused(folder, more, reason):
    given = {"tokens": ["a", "b", "ab"], "scores": [0.0] * 3} | more
    path = write(folder / "wrong.gguf", "llama", given.pop("tokens"), **given)
    with pytest.raises(CortexError, match=reason):
        read(path)


@pytest.fixture(scope="module")
def model(folder) -> Callable[..., Path]:
    """Writes a whole model with further metadata: `a__b` is `a.b`."""
    checkpoints.write("llama_untied_linear", folder / "checkpoint")
    return lambda name, **more: gguf_files.write(folder / f"{name}.gguf", folder / "checkpoint", more=more)


def test_templates_and_ends_of_a_text_come_from_the_file(model):
    templates = {"": "{{ bos_token }}{{ messages[0].content }}", "__tool_use": "tools"}
    given = {f"tokenizer__chat_template{name}": source for name, source in templates.items()}
    card = read_card(model("templates", **given, general__sampling__temp=0.5, general__sampling__mirostat=2))
    assert card.chat_templates == {"default": templates[""], "tool_use": "tools"}
    assert card.eos_ids == [2]
    assert card.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert card.defaults.temperature == 0.5
    assert card.notes == ["general.sampling.mirostat is not followed"]
    text = TextFrontEnd.load(card)
    assert text.render([Message(role="user", content="ab")], [], {}) == "<s>ab"
    assert text.encode("<s>", special=False) == [1]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% if %}", "is wrong in line 1"),
        ("{{ messages[0].content }}{{ 1 / 0 }}", "refuses every conversation: division by zero"),
        ("{{ raise_exception('') }}", "refuses every conversation: "),
    ],
    ids=["syntax", "division", "raised"],
)
def test_a_template_that_fails_names_the_file(model, template, reason):
    path = model("bad", tokenizer__chat_template=template)
    with pytest.raises(CortexError, match=rf"the chat template in {path} {reason}"):
        TextFrontEnd.load(read_card(path))


def test_a_template_for_conversations_of_another_kind_may_refuse_all_that_are_tried(model):
    more = {"tokenizer__chat_template__rag": "{{ documents[0].text + 1 }}", "tokenizer__chat_template": "a"}
    assert TextFrontEnd.load(read_card(model("rag", **more))).render([], [], {}) == "a"
