import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron.text.reasoning import BY_NAME, KNOWN, THINK, ReasoningSplitter, ThinkTags, think_tags
from neuron.text.tags import TOKEN, HeldSpace
from tests.neuron.chunks import cut

TEXT = st.lists(st.sampled_from(["<think>", "</think>", "<", "</", "think", " ", "\n", "a", "é"])).map(
    "".join
)
PROMPTS = st.sampled_from(
    ["user: hi\nassistant: ", "assistant: <think>\n", "<think>\n\n</think>", "</think>\n\n"]
)


def run(prompt, chunks):
    """The reasoning and the text of an answer."""
    splitter = ReasoningSplitter(THINK.state(prompt))
    parts = [part for chunk in chunks for part in splitter.push(chunk)] + splitter.finish()
    return tuple("".join(text for kind, text in parts if kind == which) for which in ("reasoning", "text"))


@given(PROMPTS, cut(TEXT))
def test_the_parts_do_not_depend_on_how_the_text_was_cut(prompt, text_and_chunks):
    text, chunks = text_and_chunks
    assert run(prompt, chunks) == run(prompt, [text]) == run(prompt, list(text))


def plainly(prompt, text):
    """The same, said about the whole text at once."""
    if prompt.rstrip().endswith("</think>"):
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
    splitter = ReasoningSplitter(THINK.state("assistant\n"))
    states = [splitter.in_reasoning]
    for chunk in ("<think>", "hm", "</think>", "Yes."):
        splitter.push(chunk)
        states.append(splitter.in_reasoning)
    assert states == [False, True, True, False, False]
    assert ReasoningSplitter(THINK.state("assistant\n<think>\n")).in_reasoning


def test_text_comes_at_once_where_no_tag_can_begin():
    splitter = ReasoningSplitter("open")
    assert splitter.push("so, a < b") == [("reasoning", "so, a < b")]
    assert splitter.push(" <") == []
    assert splitter.push("/b>") == [("reasoning", " </b>")]


@pytest.mark.parametrize("tags", KNOWN, ids=lambda tags: tags.opening)
def test_every_known_pair_of_tags_is_told_from_the_answer(tags):
    answer = f"{tags.opening}\nhm\n{tags.closing}\n\nYes, {tags.closing} ends it."
    for chunks in ([answer], list(answer)):
        splitter = ReasoningSplitter(tags.state("assistant\n"), tags)
        parts = [part for chunk in chunks for part in splitter.push(chunk)] + splitter.finish()
        assert "".join(text for kind, text in parts if kind == "reasoning") == "hm"
        assert "".join(text for kind, text in parts if kind == "text") == f"Yes, {tags.closing} ends it."
    assert tags.state(f"assistant\n{tags.opening}\n") == "open"
    assert tags.state(f"assistant\n{tags.opening}\n\n{tags.closing}\n\n") == "none"


HUNYUAN = BY_NAME["hunyuan"]


@pytest.mark.parametrize(
    ("prompt", "text", "reasoning", "said"),
    [
        ("hi", "<think>\nhm\n</think>\n<answer>\nYes.\n</answer>", "hm", "Yes."),
        ("hi", "<think>\n\n</think>\n<answer>\nYes.\n\nNo.\n</answer>\n\n", "", "Yes.\n\nNo."),
        ("<think>\n\n</think>\n", "<answer>\nYes.\n</answer>", "", "Yes."),
        ("hi", "<answer>Yes.</answer>", "", "Yes."),
        (
            "hi",
            "<think>hm</think>\n<answer>a </answer> b\n</answer> c\n</answer>",
            "hm",
            "a </answer> b\n</answer> c",
        ),
        ("hi", "<think>hm</think>\n<answer>x</answer></answer>", "hm", "x</answer>"),
        ("hi", "<think>hm</think>\n<answer>\nYes, in full </ans", "hm", "Yes, in full </ans"),
        ("hi", "<think>hm</think>\nYes.\n<answer>\n</answer>", "hm", "Yes.\n<answer>\n</answer>"),
        ("hi", "<think>hm</think>\n<ans", "hm", "<ans"),
        ("hi", "<think>hm</think>\n<answer>\n</answer>", "hm", ""),
        ("hi", "Yes. \n", "", "Yes. \n"),
    ],
)
def test_what_stands_around_an_answer_is_taken_away(prompt, text, reasoning, said):
    for chunks in ([text], list(text), [text[:9], text[9:]]):
        splitter = ReasoningSplitter(HUNYUAN.state(prompt), HUNYUAN)
        parts = [part for chunk in chunks for part in splitter.push(chunk)] + splitter.finish()
        assert "".join(text for kind, text in parts if kind == "reasoning") == reasoning
        assert "".join(text for kind, text in parts if kind == "text") == said


@given(cut(st.lists(st.sampled_from(["<answer>", "</answer>", "<", "</an", " ", "\n", "a"])).map("".join)))
def test_what_stands_around_one_is_found_however_the_text_was_cut(text_and_chunks):
    text, chunks = text_and_chunks
    said = []
    for pieces in (chunks, [text], list(text)):
        splitter = ReasoningSplitter("none", HUNYUAN)
        parts = [part for piece in pieces for part in splitter.push(piece)] + splitter.finish()
        said.append("".join(text for _, text in parts))
    start, end = text.strip(), "</answer>"
    if start.startswith("<answer>"):
        start = start.removeprefix("<answer>").lstrip()
        is_whole = start.endswith(end)
        rest = (
            start.removesuffix(end).rstrip() if is_whole else text.lstrip().removeprefix("<answer>").lstrip()
        )
    else:
        rest = text.lstrip()
    assert said == [rest] * 3


NORTH = BY_NAME["north"]
NORTH_TOKENS = NORTH.spelled(NORTH.pieces)


@pytest.mark.parametrize(
    ("text", "reasoning", "said"),
    [
        ("hm^<|END_THINKING|>^<|START_TEXT|>Yes.^<|END_TEXT|>", "hm", "Yes."),
        (
            "hm^<|END_THINKING|>^<|START_TEXT|>Yes. ^<|END_TEXT|>\n^<|START_ACTION|>[",
            "hm",
            "Yes.^<|START_ACTION|>[",
        ),
        ("hm^<|END_THINKING|>^<|START_ACTION|>[", "hm", "^<|START_ACTION|>["),
        ("hm^<|END_THINKING|>Yes.^<|END_TEXT|>", "hm", "Yes.^<|END_TEXT|>"),
        ("hm^<|END_THINKING|>^<|START_TEXT|>I write <|END_TEXT|>.", "hm", "I write <|END_TEXT|>."),
    ],
)
def test_a_call_may_follow_an_answer_whose_end_is_a_token(text, reasoning, said):
    text, said = (each.replace("^", TOKEN) for each in (text, said))
    for chunks in ([text], list(text), [text[:-9], text[-9:]]):
        splitter = ReasoningSplitter(NORTH.state("<|START_THINKING|>"), NORTH_TOKENS)
        parts = [part for chunk in chunks for part in splitter.push(chunk)] + splitter.finish()
        assert "".join(text for kind, text in parts if kind == "reasoning") == reasoning
        assert "".join(text for kind, text in parts if kind == "text") == said


def test_an_answer_between_tags_streams_and_is_text_as_it_is_where_it_has_none():
    splitter = ReasoningSplitter("none", HUNYUAN)
    assert splitter.push("<answer>\n") == []
    assert splitter.push("Yes, ") == [("text", "Yes,")]
    assert splitter.push("and no") == [("text", " and no")]
    assert not splitter.is_over
    splitter = ReasoningSplitter("none", HUNYUAN)
    assert splitter.push("Yes") == [("text", "Yes")]
    assert splitter.is_over


def test_where_a_tag_is_a_token_text_that_spells_it_is_none():
    tags = THINK.spelled({"<think>", "</think>"})
    assert tags[:2] == (f"{TOKEN}<think>", f"{TOKEN}</think>")
    splitter = ReasoningSplitter("possible", tags)
    assert splitter.push("<think>") == [("text", "<think>")]
    splitter = ReasoningSplitter("possible", tags)
    assert splitter.push(f"{TOKEN}<think>I write </think>.") == [("reasoning", "I write </think>.")]
    assert splitter.push(f"{TOKEN}</think>Yes.") == [("text", "Yes.")]
    assert ThinkTags("<|channel>thought", "<channel|>").spelled({"<|channel>"})[:2] == (
        f"{TOKEN}<|channel>thought",
        "<channel|>",
    )


@pytest.mark.parametrize(
    ("texts", "vocabulary", "opening"),
    [
        (["{{ '<think>' }}...</think>"], (), "<think>"),
        (["{{ '<think></think>' }}{{ content.strip('</answer>') }}"], ("</think>",), "<think>"),
        (["no tags", "[THINK]a[/THINK]"], ("</think>",), "[THINK]"),
        (["<|START_THINKING|>a<|END_THINKING|>"], (), "<|START_THINKING|>"),
        (["no tags"], ("<seed:think>", "</seed:think>"), "<seed:think>"),
    ],
)
def test_the_tags_of_a_model_are_those_of_its_template_or_of_its_vocabulary(texts, vocabulary, opening):
    assert (found := think_tags(texts, vocabulary)).opening == opening
    assert bool(found.behind) == ("</answer>" in texts[0] or "START" in opening)


def test_where_several_think_alike_the_tokens_around_answers_tell_which_it_is():
    texts = ["<|START_THINKING|>hm<|END_THINKING|>"]
    assert think_tags(texts) == BY_NAME["command_a"]
    assert think_tags(texts, ("<|START_TEXT|>", "<|END_TEXT|>")) == NORTH
    assert think_tags([], ("<|END_THINKING|>", "<|END_TEXT|>")) == NORTH
    assert think_tags(["no tags"], ("</think>", "</answer>")) == BY_NAME["hunyuan"]
    assert think_tags(["no tags"], ("</think>", "</response>")) == BY_NAME["ernie"]
    assert think_tags(["no tags"], ("</think>", "</tool_call>")) == THINK
    assert think_tags(["<think>hm</think>"], ("</think>", "</tool_call>")) == THINK


def test_a_model_that_writes_no_tags_has_none():
    assert think_tags(["{{ messages }}"], ("<s>",)) is None


@pytest.mark.parametrize(
    ("prompt", "without"),
    [
        ("assistant\n", "assistant\n<think>\n\n</think>\n\n"),
        ("assistant\n<think>\n", "assistant\n<think>\n\n</think>\n\n"),
        ("assistant\n<think></think>", "assistant\n<think></think>"),
    ],
)
def test_a_thought_can_be_over_before_the_model_writes_one(prompt, without):
    assert THINK.without_thought(prompt) == without


@pytest.mark.parametrize("prompt", ["assistant\n", "assistant\n<think>\n"])
def test_space_without_end_is_not_looked_at_again_with_each_token(prompt):
    splitter = ReasoningSplitter(THINK.state(prompt))
    parts = []
    for _ in range(1000):
        parts += splitter.push("\n   ")
        assert len(splitter._held) < len("</think>")
    parts += splitter.push("a") + splitter.finish()
    assert "".join(text for _, text in parts).lstrip() == "a"


def test_space_that_is_held_comes_out_where_it_stood():
    space = HeldSpace()
    assert [space.push(text) for text in ("a ", "\n", " ", "b c", "\t")] == ["a", "", "", " \n b c", ""]
    assert space.take() == "\t"
    assert space.take() == ""
