import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.errors import Code, CortexError
from neuron.text.tokenizer import TextTokenizer, hidden_ids
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
    assert [token in tokenizer.hidden for token in ids] == [False, False, True]


def test_ids_without_a_token_are_hidden():
    tokenizer = byte_level()
    size = tokenizer.get_vocab_size()
    assert {size, size + 1} <= hidden_ids(tokenizer, size + 2)
    assert size - 3 not in hidden_ids(tokenizer, size + 2)


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
        thread.join(timeout=30)
    assert results == expected
