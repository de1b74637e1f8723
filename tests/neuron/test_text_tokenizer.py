import base64
import json
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ipc.errors import Code, CortexError
from neuron.text.growth import growth
from neuron.text.tokenizer import TextTokenizer, nests
from neuron.text.vocabulary import PackedVocabulary, Vocabulary
from tests.neuron.folders import TEXT, byte_level


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer = byte_level()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def tokenizer(path):
    return TextTokenizer(path, vocabulary_size=1000, shown=("<tool_call>",))


@given(text=st.text())
def test_no_text_is_cut_or_padded(tokenizer, text):
    ids = tokenizer.encode(text, special=False)
    assert tokenizer.tokenizer.decode(ids, skip_special_tokens=False) == text


def test_special_tokens_around_a_text_are_added_when_asked_for(path):
    from tokenizers.processors import TemplateProcessing

    begun = TextTokenizer(path, vocabulary_size=1000, shown=())
    begun.tokenizer.post_processor = TemplateProcessing("<|start|> $A", None, [("<|start|>", 1)])
    assert begun.encode("dog", special=True) == [1, *begun.encode("dog", special=False)]


def test_a_tag_that_is_a_special_token_is_shown_where_it_means_something(tokenizer):
    ids = [tokenizer.tokenizer.token_to_id(token) for token in ("<tool_call>", "<think>", "<|end|>")]
    assert [tokenizer.vocabulary.hides(token) for token in ids] == [False, False, True]


def test_ids_without_a_token_are_hidden():
    tokenizer = byte_level()
    size = tokenizer.get_vocab_size()
    vocabulary = Vocabulary(PackedVocabulary.of(tokenizer, size + 2))
    assert [vocabulary.hides(each) for each in (size - 3, size, size + 1)] == [False, True, True]


def test_a_token_that_the_model_does_not_have_is_refused(path):
    small = TextTokenizer(path, vocabulary_size=2, shown=())
    with pytest.raises(CortexError, match="the model has only 2") as raised:
        small.encode("dog", special=False)
    assert raised.value.code == Code.NOT_SUPPORTED
    assert small.encode("<|end|>", special=False) == [0]


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": {"type": "Other"}}'])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(CortexError, match=r"tokenizer\.json: is no tokenizer") as raised:
        TextTokenizer(path, 10, ())
    assert raised.value.code == Code.MODEL_LOAD_FAILED


def test_several_threads_encode_at_once(tokenizer):
    texts = [text * (i + 1) for i, text in enumerate(TEXT * 4)]
    expected = [tokenizer.encode(text, special=False) for text in texts]
    results = [None] * len(texts)

    def work(i):
        results[i] = tokenizer.encode(texts[i], special=False)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=150)
    assert results == expected


def splitting(path, pattern):
    """A tokenizer that splits text by a regular expression."""
    tokenizer = byte_level()
    splits = [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(False, use_regex=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("pattern", ["(a+)+b", "(?:q|q)*[^q]$"])
def test_a_regular_expression_that_explodes_is_refused_with_its_file(tmp_path, pattern):
    path = splitting(tmp_path / "tokenizer.json", pattern)
    with pytest.raises(CortexError, match="takes time without bound") as raised:
        TextTokenizer(path, 1000, ())
    assert raised.value.code == Code.MODEL_LOAD_FAILED
    assert str(path) in raised.value.message


def test_one_that_explodes_for_some_texts_alone_ends_and_its_file_is_logged(tmp_path, caplog):
    path = splitting(tmp_path / "tokenizer.json", "((?:qz)+)+y")
    tokenizer = TextTokenizer(path, 1000, ())
    assert not tokenizer.is_linear
    with pytest.raises(CortexError, match="take too long") as raised:
        tokenizer.encode("qz" * 40, special=False)
    assert raised.value.code == Code.NOT_SUPPORTED
    assert str(path) in caplog.text
    assert tokenizer.encode("dog", special=False)


LONGER = normalizers.Replace("a", "a" * 100)


@pytest.mark.parametrize(
    ("part", "steps"),
    [
        ("normalizer", normalizers.Sequence([LONGER] * 8)),
        ("normalizer", normalizers.Sequence([normalizers.Sequence([LONGER])] * 3)),
        (
            "normalizer",
            normalizers.Sequence([normalizers.Replace(a, b * 100) for a, b in pairwise("abcdef")]),
        ),
        ("normalizer", normalizers.Sequence([normalizers.Replace(Regex("."), "a" * 100)] * 3)),
        ("normalizer", normalizers.Sequence([normalizers.Replace(Regex(""), "a")] * 20)),
        ("normalizer", normalizers.Sequence([normalizers.ByteLevel()] * 9)),
        ("pre_tokenizer", pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(False, use_regex=False)] * 9)),
        ("decoder", decoders.Sequence([decoders.Replace("d", "d" * 100)] * 2)),
    ],
)
def test_steps_that_multiply_a_text_are_refused_with_their_file(tmp_path, part, steps):
    tokenizer, path = byte_level(), tmp_path / "tokenizer.json"
    setattr(tokenizer, part, steps)
    tokenizer.save(str(path))
    with pytest.raises(CortexError, match=r"makes a text up to [\d,]+ times as long") as raised:
        TextTokenizer(path, 1000, ())
    assert raised.value.code == Code.MODEL_LOAD_FAILED
    assert str(path) in raised.value.message


def regex(pattern, content):
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def markers(letters):
    steps = [normalizers.Replace(letter, f"<{number:07}>") for number, letter in enumerate(letters)]
    return json.loads(normalizers.Sequence(steps).__getstate__())


@pytest.mark.parametrize(
    ("steps", "factor"),
    [
        ([regex("a+", "b")] * 14, 1),
        ([{"type": "NFKC"}, *[regex(r"[\r\n]+", "\n")] * 8, {"type": "ByteLevel"}], 72),
        ([regex(r" \.", ".")] * 7, 1),
        ([regex(r"[\p{L}[:space:]]+|\p{N}", " ")] * 7, 1),
        (markers("abcde"), 9),
        ([markers("abc"), regex("x+", "y"), markers("de")], 9),
        ([markers("abc"), {"type": "Lowercase"}, markers("de")], 9 * 2 * 9),
        ([markers("ab"), regex("a|<", "[open]")], 9 * 6),
        (markers("a0"), 81),  # the second is in what the first puts there
        ([regex("(?=q)", "b")] * 7, 128),
        ([regex("(?:ab){2}?", "b")] * 7, 128),
        ([regex("[[a]b]*", "b")] * 7, 128),
        ([regex(r"\K", "b")] * 7, 128),
    ],
)
def test_replacements_multiply_a_text_where_one_meets_what_another_put_there(steps, factor):
    assert growth(steps) == factor


@pytest.mark.parametrize("pattern", ["(?=[?])", "(?<!b)", "a{2}?", "[[a]b]*", r"\p{L}?", "x|", "(?#[)a*"])
def test_what_finds_nothing_before_each_character_is_taken_to(pattern):
    step = normalizers.Replace(Regex(pattern), "ab")
    assert step.normalize_str("????").startswith("ab?" * 4)
    assert growth(json.loads(step.__getstate__())) == 3


def test_a_table_of_characters_makes_of_one_what_its_longest_text_is():
    table = base64.b64encode((4).to_bytes(4, "little") + b"trie" + b"a\0" + b"b" * 300 + b"\0").decode()
    assert growth({"type": "Precompiled", "precompiled_charsmap": table}) == 300


def test_what_takes_a_large_factor_is_not_done_in_the_loop(tmp_path):
    path = tmp_path / "tokenizer.json"
    for normalizer, quick in ((normalizers.Replace("a", "a" * 101), False), (normalizers.NFKC(), True)):
        tokenizer = byte_level()
        tokenizer.normalizer = normalizer
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(path))
        assert TextTokenizer(path, 1000, ()).is_linear is quick
    for longest, quick in ((100, True), (100_000, False)):
        Tokenizer(
            models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]", max_input_chars_per_word=longest)
        ).save(str(path))
        assert TextTokenizer(path, 2, ()).is_linear is quick


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (
            r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+",
            False,
        ),
        (r"[\p{Lu}\p{Lt}]*[\p{Ll}\p{M}]+(?i:'s|'t)?| ?[^(\s|[.,!?])]+", False),
        (r"(?<=a)(b\+)+[+*]+(c)*", False),
        (r"\d{1,3}(?=(\d{3})+\b)", False),
        ("(a+)+b", True),
        ("(?:x(?:y{2,}z))*", True),
        ("((a|b)c)+", True),
        ("(a*){3,}", True),
    ],
)
def test_what_repeats_a_choice_is_looked_at(pattern, expected):
    assert nests(pattern) is expected
