import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron.text.reasoning import ReasoningSplitter
from tests.neuron.chunks import cut

TEXT = st.lists(st.sampled_from(["<think>", "</think>", "<", "</", "think", " ", "\n", "a", "é"])).map(
    "".join
)
PROMPTS = st.sampled_from(
    ["user: hi\nassistant: ", "assistant: <think>\n", "<think>\n\n</think>", "</think>\n\n"]
)


def run(prompt, chunks):
    """The reasoning and the text of an answer."""
    splitter = ReasoningSplitter(prompt)
    parts = [part for chunk in chunks for part in splitter.push(chunk)] + splitter.finish()
    return tuple("".join(text for kind, text in parts if kind == which) for which in ("reasoning", "text"))


@given(PROMPTS, cut(TEXT))
def test_the_parts_do_not_depend_on_how_the_text_was_cut(prompt, text_and_chunks):
    text, chunks = text_and_chunks
    assert run(prompt, chunks) == run(prompt, [text]) == run(prompt, list(text))


def plainly(prompt, text):
    """The same, said about the whole text at once."""
    if prompt.endswith("</think>"):
        return "", text.lstrip()
    if not prompt.rstrip().endswith("<think>"):
        if not text.lstrip().startswith("<think>"):
            return "", text
        text = text.lstrip().removeprefix("<think>")
    reasoning, tag, said = text.lstrip().partition("</think>")
    return (reasoning.rstrip() if tag else reasoning), said.lstrip()


@given(PROMPTS, TEXT)
def test_nothing_is_lost_but_one_pair_of_tags_and_the_space_around(prompt, text):
    assert run(prompt, [text]) == plainly(prompt, text)


@pytest.mark.parametrize(
    ("prompt", "text", "reasoning", "said"),
    [
        ("assistant\n", "<think>\nhm\n\nso\n</think>\n\nYes.\n", "hm\n\nso", "Yes.\n"),
        ("assistant\n<think>\n", "hm\n</think>\n\nYes.", "hm", "Yes."),
        ("assistant\n<think>\n\n</think>\n\n", "Yes.", "", "Yes."),
        ("assistant\n<think>\n</think>", "\n\nYes.", "", "Yes."),
        ("assistant\n", "<think>\n\n</think>\n\nYes.", "", "Yes."),
        ("assistant\n", "\n <think>hm</think>Yes.", "hm", "Yes."),
        ("assistant\n", "  Yes.", "", "  Yes."),
        ("assistant\n", "The tag <think> opens </think> it.", "", "The tag <think> opens </think> it."),
        ("assistant\n", "<thinking> is no tag", "", "<thinking> is no tag"),
        ("assistant\n", "<think>never closed </thi", "never closed </thi", ""),
        ("assistant\n", "<thi", "", "<thi"),
        ("assistant\n", "<think>a </thought> b</think>c</think>", "a </thought> b", "c</think>"),
        ("user: <think>\nassistant: ", "Yes.", "", "Yes."),
        ("", "", "", ""),
    ],
)
def test_reasoning_is_told_from_the_answer(prompt, text, reasoning, said):
    assert run(prompt, [text]) == (reasoning, said)


def test_it_knows_whether_the_model_reasons_now():
    splitter = ReasoningSplitter("assistant\n")
    states = [splitter.in_reasoning]
    for chunk in ("<think>", "hm", "</think>", "Yes."):
        splitter.push(chunk)
        states.append(splitter.in_reasoning)
    assert states == [False, True, True, False, False]
    assert ReasoningSplitter("assistant\n<think>\n").in_reasoning


def test_text_comes_at_once_where_no_tag_can_begin():
    splitter = ReasoningSplitter("<think>")
    assert splitter.push("so, a < b") == [("reasoning", "so, a < b")]
    assert splitter.push(" <") == []
    assert splitter.push("/b>") == [("reasoning", " </b>")]
